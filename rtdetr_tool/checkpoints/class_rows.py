"""Match the class rows of a checkpoint to the classes of a model by name.

Class tensors hold one row per class. A row number means the same class in two files only if both number their classes
in the same way, so rows are matched by class name. Rows of a file without names can only be copied by position, and
only if the file has as many rows as the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import COCO_SPELLINGS
from rtdetr_tool.class_names import other_spellings
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import all_families
from rtdetr_tool.messages import first_of

# Parts of the names of class tensors of all families: class heads, and embeddings with a row more than classes.
SCORE_HEADS = tuple(part for family in all_families() for part in family.class_heads)
EMBEDDINGS = tuple(part for family in all_families() for part in family.class_embeddings)
Classes = Sequence[Mapping[str, Any]]  # `[{index, id, name}]`, as in metadata and `ClassMap.to_list`


@dataclass
class ClassRows:
    """For each class row of a model, the row of the file to copy; None keeps the initial value."""

    rows: list[int | None]
    file_rows: int
    named: bool = True  # whether the file has class names
    kept: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    spelled: list[tuple[str, str]] = field(default_factory=list)  # (the model's, the file's name) of the same class
    similar: list[tuple[str, str]] = field(default_factory=list)  # differ only in spelling: not matched
    repeated: list[str] = field(default_factory=list)  # names that several classes of the file share

    @property
    def complete(self) -> bool:
        """Whether the classes of the model and of the file match one to one, by name."""
        return self.named and not (self.new or self.dropped or self.repeated)

    @property
    def any_copied(self) -> bool:
        return bool(self.kept) if self.named else any(row is not None for row in self.rows)

    def copy_rows(self, source: Tensor, target: Tensor) -> Tensor | None:
        """A copy of the model's class tensor `target` with the matching rows of `source`; None if no row fits."""
        extra = target.shape[0] - len(self.rows)  # rows after those of the classes
        if not self.any_copied or source.shape[1:] != target.shape[1:] or source.shape[0] - self.file_rows != extra:
            return None
        result = target.detach().clone()
        for index, row in enumerate(self.rows):
            if row is not None:
                result[index] = source[row]
        if extra:
            result[-extra:] = source[-extra:]
        return result

    def lines(self, source: str) -> list[str]:
        """Messages about what was copied; `source` is the file."""
        if not self.named:
            return [self._without_names(source)]
        lines = []
        if self.kept:
            lines.append(f"Copied the class rows of {len(self.kept)} classes by name: {first_of(self.kept, 8)}.")
        else:
            lines.append(f"{source} has no class of the dataset; the class heads keep their initial values.")
        if self.new:
            lines.append(f"New classes, which keep their initial values: {first_of(self.new, 8)}.")
        if self.dropped:
            lines.append(f"Dropped classes of {source} that the dataset does not have: {first_of(self.dropped, 8)}.")
        if self.spelled:
            pairs = first_of([f"{in_file!r} for {in_model!r}" for in_model, in_file in self.spelled], 8)
            lines.append(f"{source} spells some of COCO's names differently: {pairs}.")
        if self.similar:
            pairs = first_of(
                [f"{in_model!r} in the dataset, {in_file!r} in {source}" for in_model, in_file in self.similar], 8
            )
            lines.append(
                "Names that differ only in case, spaces, hyphens or underscores are treated as different classes: "
                f"{pairs}. Use the same spelling to copy their rows."
            )
        if self.repeated:
            lines.append(f"Several classes of {source} share a name; using the first: {first_of(self.repeated, 8)}.")
        return lines

    def _without_names(self, source: str) -> str:
        advice = "To copy rows by name, add names to the file with `rtdetr convert IN OUT --classes NAMES`."
        if self.any_copied:
            return (
                f"Copied class rows by position, because {source} has no class names. This is only correct if its "
                f"{self.file_rows} class rows are in the order of the dataset's classes. {advice}"
            )
        return (
            f"The class heads keep their initial values, because {source} has no class names, and its class heads have "
            f"{self.file_rows} rows, but those of the model {len(self.rows)}. {advice}"
        )


def is_score_head(name: str) -> bool:
    return any(part in name for part in SCORE_HEADS)


def is_class_tensor(name: str) -> bool:
    return is_score_head(name) or any(part in name for part in EMBEDDINGS)


def count_rows(weights: Mapping[str, Tensor]) -> int | None:
    """Class rows of weights with our names; None if there is no class head."""
    return next((tensor.shape[0] for name, tensor in weights.items() if is_score_head(name)), None)


def with_class_rows(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], classes: Classes, file_classes: Classes, source: str
) -> tuple[dict[str, Tensor], ClassRows | None]:
    """The tensors of a file (`source`) with class rows in the order of the model's classes, and how they were matched.

    Class tensors of which no row could be copied are omitted. The match is None if there are no class tensors, or none
    of the model's width.
    """
    names = [name for name in model if is_class_tensor(name) and name in weights]
    rows, file_rows = count_rows(model), count_rows(weights)
    if not names or rows is None or file_rows is None:
        return dict(weights), None
    match = match_rows(classes, file_classes, rows, file_rows, source)
    copied = {name: match.copy_rows(weights[name], model[name]) for name in names}
    fitting = {name: tensor for name, tensor in copied.items() if tensor is not None}
    unchanged = {name: tensor for name, tensor in weights.items() if name not in copied}
    return {**unchanged, **fitting}, match if fitting or not match.any_copied else None


def match_rows(model: Classes, stored: Classes, model_rows: int, file_rows: int, source: str = "the file") -> ClassRows:
    """Find the row of a file (`stored`, `file_rows` rows) for each class of a model (`model`, `model_rows` rows).

    Rows without a class, such as the last row of RF-DETR, are copied from a row of the file without a class.

    Raises:
        CheckpointError: the file's classes are not a list of indices and names.
    """
    in_file = _by_index(stored, file_rows, source)
    if not in_file:
        equal = model_rows == file_rows
        return ClassRows(list(range(model_rows)) if equal else [None] * model_rows, file_rows, named=False)
    file_rows_of: dict[str, list[int]] = defaultdict(list)
    for index, name in sorted(in_file.items()):
        file_rows_of[name].append(index)
    names = _by_index(model, model_rows, "the dataset")
    match = ClassRows([None] * model_rows, file_rows)
    spellings = _spellings(file_rows_of, set(names.values()))
    seen: dict[str, int] = defaultdict(int)
    for index, name in sorted(names.items()):
        file_name = name if name in file_rows_of else spellings.get(name)
        if file_name is None:
            match.new.append(name)
            continue
        rows = file_rows_of[file_name]
        row = rows[min(seen[file_name], len(rows) - 1)]  # the second class of a name gets the second row
        seen[file_name] += 1
        match.rows[index] = row
        match.kept.append(name)
        if file_name != name:
            match.spelled.append((name, file_name))
    match.dropped = [name for name in file_rows_of if name not in seen]
    match.repeated = [name for name, count in seen.items() if len(file_rows_of[name]) > max(count, 1)]
    match.similar = other_spellings(match.new, match.dropped)
    _match_rows_without_class(match, names, in_file)
    return match


def _by_index(classes: Classes, rows: int, source: str) -> dict[int, str]:
    try:
        names = {int(entry["index"]): str(entry["name"]) for entry in classes}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} has an invalid list of classes ({error!r}); expected index and name per class."
        ) from error
    outside = [index for index in names if not 0 <= index < rows]
    if outside:
        raise CheckpointError(
            f"{source} has a class {names[outside[0]]!r} with index {outside[0]}, but only {rows} class rows."
        )
    return names


def _spellings(in_file: Container[str], in_model: set[str]) -> dict[str, str]:
    """Name in the model -> name in the file, for COCO classes that the file spells differently."""
    pairs = [pair for name, other in COCO_SPELLINGS.items() for pair in ((name, other), (other, name))]
    return {name: other for name, other in pairs if name in in_model and other in in_file and other not in in_model}


def _match_rows_without_class(match: ClassRows, names: Mapping[int, str], in_file: Mapping[int, str]) -> None:
    free = [row for row in range(match.file_rows) if row not in in_file]
    for index in range(len(match.rows)):
        if index not in names and free:
            match.rows[index] = index if index in free else free[-1]
