"""Classes: the one place where category ids of annotation files and class indices of the network meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.catalog import COCO_CATEGORIES
from rtdetr_tool.data.class_names import unique_names
from rtdetr_tool.errors import DataError

RULES = ("auto", "raw", "contiguous")

MSCOCO_IDS = tuple(COCO_CATEGORIES)  # an id's rank is its class index


@dataclass(frozen=True)
class ClassEntry:
    """One class: output index of the network, category id of the annotation files, name."""

    index: int
    category_id: int
    name: str


class ClassMap:
    """Which class index stands for which category.

    Not every index needs a category: a data set with ids 1..N used as indices leaves index 0 unused; such an index has
    no name and no category id (`None`), and what the network says about it is not a detection.
    Files of other programs may know names only: then `ids_known` is False and `with_ids_of` finds the ids.
    """

    ids_known = True

    def __init__(self, entries: Iterable[ClassEntry], num_classes: int | None = None, reason: str = "") -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.index))
        if not self.entries:
            raise DataError("There are no categories: at least one is needed.")
        self.num_classes = self.entries[-1].index + 1 if num_classes is None else num_classes
        self.reason = reason
        self._by_index = {entry.index: entry for entry in self.entries}
        self._by_id = {entry.category_id: entry for entry in self.entries}
        if len(self._by_index) != len(self.entries) or len(self._by_id) != len(self.entries):
            raise DataError("A class index or category id occurs twice in the list of classes.")
        if self.entries[0].index < 0 or self.entries[-1].index >= self.num_classes:
            raise DataError(f"Class indices must lie in 0..{self.num_classes - 1}.")

    # Making one

    @classmethod
    def from_categories(
        cls,
        categories: Mapping[int, str],
        num_classes: int | None = None,
        class_ids: str = "auto",
        remap_mscoco_category: bool = False,
    ) -> ClassMap:
        """Number the categories (id -> name) as the spec's `class_ids` and `remap_mscoco_category` say.

        `auto` is TAO's convention, index = id, when every id allows it, and otherwise `contiguous`: 0..K-1 in the order
        of the ids. Without `num_classes` there are as many as are needed.
        """
        if class_ids not in RULES:
            raise DataError(f"dataset.class_ids is {class_ids!r}; it must be one of {', '.join(RULES)}.")
        if not categories:
            raise DataError("The annotation file lists no categories: at least one is needed.")
        if remap_mscoco_category:
            return cls._remapped(categories, num_classes, class_ids)
        categories, ids = unique_names(categories), sorted(categories)
        if num_classes is None:
            num_classes = max(ids[-1] + 1, 1) if class_ids == "raw" else len(ids)
        outside = [i for i in ids if not 0 <= i < num_classes]
        if class_ids == "raw" or (class_ids == "auto" and not outside):
            if outside:
                raise DataError(
                    f"dataset.class_ids is raw (class index = category id), but {_some(outside)} "
                    f"not in 0..{num_classes - 1} (dataset.num_classes is {num_classes}). "
                    f"Set dataset.num_classes to at least {max(ids) + 1}, or dataset.class_ids to contiguous."
                    if min(ids) >= 0
                    else f"Category id {min(ids)} is negative; with dataset.class_ids raw an id is a class index."
                )
            reason = f"class index = category id, because every id is in 0..{num_classes - 1}"
            return cls((ClassEntry(i, i, categories[i]) for i in ids), num_classes, reason)
        if len(ids) > num_classes:
            raise DataError(
                f"There are {len(ids)} categories (ids {_span(ids)}) but dataset.num_classes is {num_classes}. "
                f"Set dataset.num_classes to {len(ids)} (or more)."
            )
        why = f"because {_some(outside)} not in 0..{num_classes - 1}"
        why = "as dataset.class_ids says" if class_ids == "contiguous" else why
        reason = f"class indices 0..{len(ids) - 1} in the order of the category ids, {why}"
        return cls((ClassEntry(k, i, categories[i]) for k, i in enumerate(ids)), num_classes, reason)

    @classmethod
    def _remapped(cls, categories: Mapping[int, str], num_classes: int | None, class_ids: str) -> ClassMap:
        if class_ids != "auto":
            raise DataError(
                f"dataset.remap_mscoco_category fixes the numbering; dataset.class_ids {class_ids} contradicts it."
            )
        rank = {category_id: index for index, category_id in enumerate(MSCOCO_IDS)}
        foreign = sorted(set(categories) - set(rank))
        if foreign:
            raise DataError(
                f"dataset.remap_mscoco_category is for COCO's own 80 ids in 1..90, and {_some(foreign)} not one of "
                "them. Set it to False for other data."
            )
        num_classes = num_classes or len(MSCOCO_IDS)
        if num_classes < len(MSCOCO_IDS):
            raise DataError(f"dataset.remap_mscoco_category needs dataset.num_classes >= 80, not {num_classes}.")
        entries = (ClassEntry(rank[i], i, name) for i, name in categories.items())
        return cls(entries, num_classes, "COCO's ids 1..90 become 0..79 (dataset.remap_mscoco_category)")

    # Plain data, as a checkpoint keeps it

    def to_list(self) -> list[dict[str, Any]]:
        """`[{index, id, name}]`, one plain dict per class that has a category, by index; id None where not known."""
        return [
            {"index": e.index, "id": e.category_id if self.ids_known else None, "name": e.name} for e in self.entries
        ]

    @classmethod
    def from_list(cls, classes: Sequence[Mapping[str, Any]], num_classes: int | None = None) -> ClassMap:
        """The reverse of `to_list`; without `num_classes` it is the highest index + 1."""
        ids_known = not classes or any(c.get("id", 0) is not None for c in classes)
        try:
            ids = {int(c["index"]): int(c["id" if ids_known else "index"]) for c in classes}
            names = unique_names({int(c["index"]): str(c["name"]) for c in classes})
            if len(ids) < len(classes):
                raise ValueError("a class index occurs twice")
            entries = [ClassEntry(index, category_id, names[index]) for index, category_id in ids.items()]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"A list of classes must hold index, id and name of each: {error!r}") from error
        made = cls(entries, num_classes, "as stored with the weights")
        made.ids_known = ids_known
        return made

    def with_ids_of(self, categories: Mapping[int, str], source: str) -> ClassMap:
        """The classes with the ids that an annotation file has for their names; classes it does not have are left out.

        Where names differ, but there are as many categories as classes and most names agree, the order of ids counts.
        """
        by_name = {entry.name: entry.index for entry in self.entries}
        if set(categories.values()) <= set(by_name):
            entries = [ClassEntry(by_name[name], i, name) for i, name in categories.items()]
            return ClassMap(entries, self.num_classes, f"names as stored with the weights, ids as in {source}")
        ranked = list(zip(self.entries, sorted(categories.items()), strict=False))
        other = [(entry.name, name) for entry, (_, name) in ranked if entry.name != name]
        moved = any(name in by_name for _, name in other)
        if len(categories) != len(self.entries) or moved or 2 * len(other) > len(ranked):
            unknown = sorted(set(categories.values()) - set(by_name))
            raise DataError(
                f"{source} has categories that the weights do not know: {', '.join(map(repr, unknown[:6]))}"
                f"{', ...' if len(unknown) > 6 else ''}. The weights know {_listing(self.entries)}."
            )
        entries = [ClassEntry(entry.index, i, name) for entry, (i, name) in ranked]
        spellings = ", ".join(f"{ours!r} is {theirs!r}" for ours, theirs in other[:4]) + ", ..." * (len(other) > 4)
        reason = f"in the order of the ids in {source}, where {spellings}"
        return ClassMap(entries, self.num_classes, reason)

    # Asking it

    def index_of(self, category_id: int) -> int:
        """Class index of a category id; DataError when the id is unknown."""
        entry = self._by_id.get(category_id)
        if entry is None:
            raise DataError(f"Category id {category_id} is unknown. Known are {_listing(self.entries)}.")
        return entry.index

    def category_id_of(self, index: int) -> int | None:
        """Category id of a class index, None for an index without a category."""
        entry = self._by_index.get(index)
        return entry.category_id if entry else None

    def name_of(self, index: int) -> str:
        """Name of a class index; `class_<index>` for an index without a category."""
        entry = self._by_index.get(index)
        return entry.name if entry else f"class_{index}"

    @property
    def names(self) -> list[str | None]:
        """Name by class index, `num_classes` long; None where an index has no category."""
        return [self._by_index[i].name if i in self._by_index else None for i in range(self.num_classes)]

    @property
    def categories(self) -> dict[int, str]:
        """Category id -> name, by class index."""
        return {entry.category_id: entry.name for entry in self.entries}

    def describe(self) -> str:
        """One line: how many classes, how they are numbered and why."""
        unused = self.num_classes - len(self.entries)
        more = f"; {unused} of {self.num_classes} outputs unused" if unused else ""
        return f"{len(self.entries)} classes: {self.reason or 'as given'} ({_listing(self.entries)}){more}"

    def check_categories(self, categories: Mapping[int, str], source: str) -> None:
        """DataError naming both sides when a file's categories are not (a part of) these classes."""
        for category_id, name in sorted(categories.items()):
            entry = self._by_id.get(category_id)
            if entry is None:
                raise DataError(
                    f"{source} has category {category_id} ({name!r}), which is not among the classes of the training "
                    f"data or checkpoint: {_listing(self.entries)}."
                )
            if entry.name != name:
                raise DataError(
                    f"{source} calls category {category_id} {name!r}, the training data or checkpoint calls it "
                    f"{entry.name!r}. The annotation files must agree."
                )

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassMap) and (self.entries, self.num_classes) == (other.entries, other.num_classes)

    def __hash__(self) -> int:
        return hash((self.entries, self.num_classes))

    def __repr__(self) -> str:
        return f"ClassMap({_listing(self.entries)}, num_classes={self.num_classes})"


def _some(ids: Sequence[int], limit: int = 5) -> str:
    shown = ", ".join(str(i) for i in ids[:limit]) + (", ..." if len(ids) > limit else "")
    return f"category id {shown} is" if len(ids) == 1 else f"category ids {shown} are"


def _span(ids: Sequence[int]) -> str:
    return f"{ids[0]}..{ids[-1]}"


def _listing(entries: Sequence[ClassEntry], limit: int = 6) -> str:
    ids = [f" = id {entry.category_id}" if entry.category_id != entry.index else "" for entry in entries]
    shown = [f"{entry.index} {entry.name!r}{text}" for entry, text in zip(entries[:limit], ids, strict=False)]
    return ", ".join(shown) + (f", ... ({len(entries)} in all)" if len(entries) > limit else "")
