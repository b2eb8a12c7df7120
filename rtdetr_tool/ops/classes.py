"""Classes: category ids of annotation files and the class indices of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rtdetr_tool.catalog import COCO_CATEGORIES
from rtdetr_tool.class_names import spelling_hint, unique_names
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.keypoints import Pose

RULES = ("auto", "raw", "contiguous")

MSCOCO_IDS = tuple(COCO_CATEGORIES)  # the rank of an id is its class index


@dataclass(frozen=True)
class ClassEntry:
    """One class: output index of the network, category id of the annotation files, name, and keypoints if any."""

    index: int
    category_id: int
    name: str
    pose: Pose | None = None


class ClassMap:
    """Maps class indices to categories.

    Not every index needs a category: if the ids 1..N are used as indices, index 0 is unused. An unused index has no
    name and no category id (None), and predictions for it are dropped. Files of other programs may have only names;
    then `ids_known` is False, and `with_ids_of` adds the ids.
    """

    ids_known = True

    def __init__(self, entries: Iterable[ClassEntry], num_classes: int | None = None, reason: str = "") -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.index))
        if not self.entries:
            raise DataError("The list of classes is empty; expected at least one class.")
        self.num_classes = self.entries[-1].index + 1 if num_classes is None else num_classes
        self.reason = reason
        self._by_index = {entry.index: entry for entry in self.entries}
        self._by_id = {entry.category_id: entry for entry in self.entries}
        if len(self._by_index) != len(self.entries) or len(self._by_id) != len(self.entries):
            raise DataError("The list of classes has a class index or category id twice; expected each once.")
        if self.entries[0].index < 0 or self.entries[-1].index >= self.num_classes:
            raise DataError(
                f"The class indices {self.entries[0].index}..{self.entries[-1].index} are invalid; expected values in "
                f"0..{self.num_classes - 1}."
            )

    # Construction

    @classmethod
    def from_categories(
        cls,
        categories: Mapping[int, str],
        num_classes: int | None = None,
        class_ids: str = "auto",
        remap_mscoco_category: bool = False,
    ) -> ClassMap:
        """Assign class indices to categories (id -> name), as in the spec's `class_ids` and `remap_mscoco_category`.

        `auto` is TAO's convention, index = id, if all ids are valid indices, and otherwise `contiguous`: 0..K-1 in the
        order of the ids. Without `num_classes`, the smallest possible number is used.
        """
        if class_ids not in RULES:
            raise DataError(f"dataset.class_ids: {class_ids!r} is invalid; expected one of {', '.join(RULES)}")
        if not categories:
            raise DataError("The annotation file has no categories; expected at least one.")
        if remap_mscoco_category:
            return cls._remapped(categories, num_classes, class_ids)
        categories, ids = unique_names(categories), sorted(categories)
        if num_classes is None:
            num_classes = max(ids[-1] + 1, 1) if class_ids == "raw" else len(ids)
        outside = [i for i in ids if not 0 <= i < num_classes]
        if class_ids == "raw" or (class_ids == "auto" and not outside):
            if outside:
                raise DataError(
                    f"dataset.class_ids is raw (class index = category id), but {_ids(outside)} "
                    f"not in 0..{num_classes - 1} (dataset.num_classes is {num_classes}). "
                    f"Set dataset.num_classes to at least {max(ids) + 1}, or dataset.class_ids to contiguous."
                    if min(ids) >= 0
                    else f"Category id {min(ids)} is negative, but with dataset.class_ids raw the ids are class "
                    "indices. Set dataset.class_ids to contiguous."
                )
            reason = f"class index = category id, because every id is in 0..{num_classes - 1}"
            return cls((ClassEntry(i, i, categories[i]) for i in ids), num_classes, reason)
        if len(ids) > num_classes:
            raise DataError(
                f"The dataset has {len(ids)} categories (ids {_span(ids)}), but dataset.num_classes is {num_classes}. "
                f"Set dataset.num_classes to {len(ids)} or more."
            )
        why = f"because {_ids(outside)} not in 0..{num_classes - 1}"
        why = "as set by dataset.class_ids" if class_ids == "contiguous" else why
        reason = f"class indices 0..{len(ids) - 1} in the order of the category ids, {why}"
        return cls((ClassEntry(k, i, categories[i]) for k, i in enumerate(ids)), num_classes, reason)

    @classmethod
    def _remapped(cls, categories: Mapping[int, str], num_classes: int | None, class_ids: str) -> ClassMap:
        if class_ids != "auto":
            raise DataError(f"dataset.remap_mscoco_category and dataset.class_ids={class_ids} cannot both be set.")
        rank = {category_id: index for index, category_id in enumerate(MSCOCO_IDS)}
        foreign = sorted(set(categories) - set(rank))
        if foreign:
            raise DataError(
                f"dataset.remap_mscoco_category is only for COCO's 80 category ids in 1..90, but {_ids(foreign)} not "
                "among them. Set it to false for other datasets."
            )
        num_classes = num_classes or len(MSCOCO_IDS)
        if num_classes < len(MSCOCO_IDS):
            raise DataError(
                f"dataset.num_classes: {num_classes} is invalid with remap_mscoco_category; expected at least 80"
            )
        entries = (ClassEntry(rank[i], i, name) for i, name in categories.items())
        return cls(entries, num_classes, "COCO's ids 1..90 mapped to 0..79 (dataset.remap_mscoco_category)")

    # Plain data, as stored in checkpoints

    def to_list(self) -> list[dict[str, Any]]:
        """`[{index, id, name}]`, one plain dict per class with a category, by index; the id is None if unknown.

        Classes with keypoints also have `Pose.to_dict`.
        """
        return [
            {
                "index": entry.index,
                "id": entry.category_id if self.ids_known else None,
                "name": entry.name,
                **({} if entry.pose is None else entry.pose.to_dict()),
            }
            for entry in self.entries
        ]

    @classmethod
    def from_list(cls, classes: Sequence[Mapping[str, Any]], num_classes: int | None = None) -> ClassMap:
        """The inverse of `to_list`; `num_classes` defaults to the highest index + 1."""
        ids_known = not classes or any(c.get("id", 0) is not None for c in classes)
        try:
            ids = {int(c["index"]): int(c["id" if ids_known else "index"]) for c in classes}
            names = unique_names({int(c["index"]): str(c["name"]) for c in classes})
            if len(ids) < len(classes):
                raise ValueError("duplicate class index")
            poses = {int(c["index"]): Pose.from_dict(c) for c in classes}
            entries = [ClassEntry(index, id_, names[index], poses[index]) for index, id_ in ids.items()]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The list of classes is invalid ({error!r}); expected index, id and name per class."
            ) from error
        class_map = cls(entries, num_classes, "as stored with the weights")
        class_map.ids_known = ids_known
        return class_map

    def with_ids_of(self, categories: Mapping[int, str], source: str) -> ClassMap:
        """These classes with the ids of an annotation file, matched by name; classes without a category are omitted.

        If some names differ but the number of categories is the same and most names agree, they are matched in the
        order of the ids.
        """
        by_name = {entry.name: entry for entry in self.entries}
        if set(categories.values()) <= set(by_name):
            entries = [replace(by_name[name], category_id=i) for i, name in categories.items()]
            return ClassMap(entries, self.num_classes, f"names from the weights, ids from {source}")
        ranked = list(zip(self.entries, sorted(categories.items()), strict=False))
        different = [(entry.name, name) for entry, (_, name) in ranked if entry.name != name]
        reordered = any(name in by_name for _, name in different)
        if len(categories) != len(self.entries) or reordered or 2 * len(different) > len(ranked):
            unknown = sorted(set(categories.values()) - set(by_name))
            raise DataError(
                f"{source} has categories that the weights do not have: {first_of(map(repr, unknown), 6)}"
                f"{spelling_hint(unknown, by_name)}. The classes of the weights are {_listing(self.entries)}. Rename "
                "or remove these categories, or use other weights."
            )
        entries = [replace(entry, category_id=i, name=name) for entry, (i, name) in ranked]
        renamed = first_of([f"{name!r} is {other!r}" for name, other in different], 4)
        reason = f"in the order of the ids in {source}, where {renamed}"
        return ClassMap(entries, self.num_classes, reason)

    def with_poses(self, poses: Mapping[int, Pose]) -> ClassMap:
        """These classes with the keypoints of an annotation file by category id, where they have none of their own."""
        entries = [replace(e, pose=e.pose or poses.get(e.category_id)) for e in self.entries]
        class_map = ClassMap(entries, self.num_classes, self.reason)
        class_map.ids_known = self.ids_known
        return class_map

    # Lookup

    @property
    def poses(self) -> dict[int, Pose]:
        """The keypoints of the classes that have any, by class index."""
        return {entry.index: entry.pose for entry in self.entries if entry.pose is not None}

    @property
    def keypoint_counts(self) -> list[int]:
        """Number of keypoints by class index, up to the last class; empty without any keypoints."""
        poses = self.poses
        last = self.entries[-1].index
        return [len(poses[i].names) if i in poses else 0 for i in range(last + 1)] if poses else []

    def index_of(self, category_id: int) -> int:
        """Class index of a category id; DataError if it is unknown."""
        entry = self._by_id.get(category_id)
        if entry is None:
            raise DataError(f"Category id {category_id} is unknown; expected one of {_listing(self.entries)}.")
        return entry.index

    def category_id_of(self, index: int) -> int | None:
        """Category id of a class index; None for an index without a category."""
        entry = self._by_index.get(index)
        return entry.category_id if entry else None

    def name_of(self, index: int) -> str:
        """Name of a class index; `class_<index>` for an index without a category."""
        entry = self._by_index.get(index)
        return entry.name if entry else f"class_{index}"

    @property
    def names(self) -> list[str | None]:
        """Names by class index, `num_classes` long; None for an index without a category."""
        return [self._by_index[i].name if i in self._by_index else None for i in range(self.num_classes)]

    @property
    def categories(self) -> dict[int, str]:
        """Category id -> name, in the order of class indices."""
        return {entry.category_id: entry.name for entry in self.entries}

    def describe(self) -> str:
        """One line: the number of classes, how they are numbered and why."""
        unused = self.num_classes - len(self.entries)
        more = f"; {unused} of {self.num_classes} outputs unused" if unused else ""
        return f"{len(self.entries)} classes: {self.reason or 'as given'} ({_listing(self.entries)}){more}"

    def check_categories(self, categories: Mapping[int, str], source: str) -> None:
        """DataError unless the categories of an annotation file are among these classes, with equal ids and names."""
        for category_id, name in sorted(categories.items()):
            entry = self._by_id.get(category_id)
            if entry is None:
                raise DataError(
                    f"{source} has category {category_id} ({name!r}), which is not a class of the training data or "
                    f"checkpoint; expected one of {_listing(self.entries)}."
                )
            if entry.name != name:
                raise DataError(
                    f"Category {category_id} is {name!r} in {source}, but {entry.name!r} in the training data or "
                    "checkpoint. Use the same name in both."
                )

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassMap) and (self.entries, self.num_classes) == (other.entries, other.num_classes)

    def __hash__(self) -> int:
        return hash((self.entries, self.num_classes))

    def __repr__(self) -> str:
        return f"ClassMap({_listing(self.entries)}, num_classes={self.num_classes})"


def _ids(ids: Sequence[int]) -> str:
    return f"category id {ids[0]} is" if len(ids) == 1 else f"category ids {first_of(ids)} are"


def _span(ids: Sequence[int]) -> str:
    return f"{ids[0]}..{ids[-1]}"


def _listing(entries: Sequence[ClassEntry]) -> str:
    ids = [f" = id {entry.category_id}" if entry.category_id != entry.index else "" for entry in entries]
    return first_of([f"{entry.index} {entry.name!r}{text}" for entry, text in zip(entries, ids, strict=True)], 6)
