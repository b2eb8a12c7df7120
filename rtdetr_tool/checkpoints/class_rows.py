"""Which row of a file's class tensors each class of a new run starts from: that of the class with the same name.

Class tensors hold one row per class. The same row of two files means the same class only where both number their
classes alike, so rows are matched by name. A file without names can be taken by position only, and only where it has
as many rows as the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import COCO_SPELLINGS
from rtdetr_tool.errors import CheckpointError

# Parts of the names of class tensors: weights and biases of the class heads of both families.
SCORE_HEADS = ("enc_score_head.", "dec_score_head.", "decoder.class_embed.", "enc_out_class_embed.")
_DENOISING = "denoising_class_embed."  # one row per class, then one for padding
Classes = Sequence[Mapping[str, Any]]  # `[{index, id, name}]`, as metadata and `ClassMap.to_list` have them


@dataclass
class ClassRows:
    """For each class row of a model the row of the file that it starts from; None keeps the initial value."""

    rows: list[int | None]
    file_rows: int
    named: bool = True  # whether the file has class names
    kept: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    spelled: list[tuple[str, str]] = field(default_factory=list)  # (the model's, the file's name) of the same class
    similar: list[tuple[str, str]] = field(default_factory=list)  # the same but for case and spaces: not matched
    repeated: list[str] = field(default_factory=list)  # names that several classes of the file have

    @property
    def complete(self) -> bool:
        """Whether every class of the model has its row, every row of the file its class, all known by name."""
        return self.named and not (self.new or self.dropped or self.repeated)

    @property
    def any_taken(self) -> bool:
        return bool(self.kept) if self.named else any(row is not None for row in self.rows)

    def taken(self, given: Tensor, own: Tensor) -> Tensor | None:
        """A class tensor of the model with the file's rows in their places; None where nothing can be taken."""
        beyond = own.shape[0] - len(self.rows)  # rows behind those of the classes
        if not self.any_taken or given.shape[1:] != own.shape[1:] or given.shape[0] - self.file_rows != beyond:
            return None
        made = own.detach().clone()
        for index, row in enumerate(self.rows):
            if row is not None:
                made[index] = given[row]
        if beyond:
            made[-beyond:] = given[-beyond:]
        return made

    def lines(self, source: str) -> list[str]:
        """What was done, in words; `source` is the file."""
        if not self.named:
            return [self._without_names(source)]
        lines = []
        if self.kept:
            lines.append(f"Class rows were copied by name for {len(self.kept)} classes: {some(self.kept)}.")
        else:
            lines.append(f"No class of {source} has the name of a class in the data; class heads start anew.")
        if self.new:
            lines.append(f"New classes, which start from their initial values: {some(self.new)}.")
        if self.dropped:
            lines.append(f"Classes of {source} that the data does not have, dropped: {some(self.dropped)}.")
        if self.spelled:
            pairs = some([f"{theirs!r} for {ours!r}" for ours, theirs in self.spelled])
            lines.append(f"{source} spells some of COCO's names differently: {pairs}.")
        if self.similar:
            pairs = some([f"{ours!r} in the data, {theirs!r} in {source}" for ours, theirs in self.similar])
            lines.append(
                f"Names that differ only in case or spaces are different classes: {pairs}. Use the same spelling to "
                "keep the rows."
            )
        if self.repeated:
            lines.append(f"Several classes of {source} have the same name; the first was used: {some(self.repeated)}.")
        return lines

    def _without_names(self, source: str) -> str:
        advice = "`rtdetr convert IN OUT --classes NAMES` adds names to a file, and rows are then copied by name."
        if self.any_taken:
            return (
                f"Class rows were copied by position, because {source} has no class names: that is right only if its "
                f"{self.file_rows} class rows are in the order of the data's classes. {advice}"
            )
        return (
            f"Class rows start from their initial values, because {source} has no class names and another number of "
            f"class rows: {self.file_rows}, the model {len(self.rows)}. {advice}"
        )


def is_score_head(name: str) -> bool:
    return any(part in name for part in SCORE_HEADS)


def is_class_tensor(name: str) -> bool:
    return is_score_head(name) or _DENOISING in name


def count_rows(weights: Mapping[str, Tensor]) -> int | None:
    """Class rows of weights by our names; None where there is no class head."""
    return next((tensor.shape[0] for name, tensor in weights.items() if is_score_head(name)), None)


def with_class_rows(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], classes: Classes, file_classes: Classes, source: str
) -> tuple[dict[str, Tensor], ClassRows | None]:
    """The tensors of a file (`source`) with class rows in the order of a model's (`own`, `classes`), and the account.

    Class tensors that start from their initial values are not among them. The account is None where there are no class
    tensors, or none of the model's width.
    """
    names = [name for name in own if is_class_tensor(name) and name in weights]
    rows = count_rows(own), count_rows(weights)
    if not names or None in rows:
        return dict(weights), None
    match = match_rows(classes, file_classes, *rows, source)
    taken = {name: match.taken(weights[name], own[name]) for name in names}
    fitting = {name: tensor for name, tensor in taken.items() if tensor is not None}
    others = {name: tensor for name, tensor in weights.items() if name not in taken}
    return {**others, **fitting}, match if fitting or not match.any_taken else None


def match_rows(own: Classes, stored: Classes, own_rows: int, file_rows: int, source: str = "the file") -> ClassRows:
    """Find for each class of a model (`own`, `own_rows` rows) its row in a file (`stored`, `file_rows` rows).

    Rows that belong to no class, such as the last of an RF-DETR, take one of the file's that belongs to none.

    Raises:
        CheckpointError: the file's classes are not a list of indices and names.
    """
    in_file = _by_index(stored, file_rows, source)
    if not in_file:
        equal = own_rows == file_rows
        return ClassRows(list(range(own_rows)) if equal else [None] * own_rows, file_rows, named=False)
    places: dict[str, list[int]] = defaultdict(list)
    for index, name in sorted(in_file.items()):
        places[name].append(index)
    names = _by_index(own, own_rows, "the data")
    match = ClassRows([None] * own_rows, file_rows)
    spellings = _spellings(places, set(names.values()))
    seen: dict[str, int] = defaultdict(int)
    for index, name in sorted(names.items()):
        theirs = name if name in places else spellings.get(name)
        if theirs is None:
            match.new.append(name)
            continue
        row = places[theirs][min(seen[theirs], len(places[theirs]) - 1)]  # the second of a name takes the second row
        seen[theirs] += 1
        match.rows[index] = row
        match.kept.append(name)
        if theirs != name:
            match.spelled.append((name, theirs))
    match.dropped = [name for name in places if name not in seen]
    match.repeated = [name for name, count in seen.items() if len(places[name]) > max(count, 1)]
    match.similar = _similar(match.new, match.dropped)
    _match_rows_without_class(match, names, in_file)
    return match


def some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _by_index(classes: Classes, rows: int, source: str) -> dict[int, str]:
    try:
        found = {int(entry["index"]): str(entry["name"]) for entry in classes}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} has a list of classes without their indices and names: {error!r}") from error
    outside = [index for index in found if not 0 <= index < rows]
    if outside:
        raise CheckpointError(
            f"{source} names a class {found[outside[0]]!r} with index {outside[0]}, but has {rows} class rows."
        )
    return found


def _spellings(places: Mapping[str, Any], wanted: set[str]) -> dict[str, str]:
    """The model's name -> the file's of COCO classes that only the other spelling finds."""
    pairs = [pair for theirs, ours in COCO_SPELLINGS.items() for pair in ((ours, theirs), (theirs, ours))]
    return {ours: theirs for ours, theirs in pairs if theirs in places and theirs not in wanted and ours in wanted}


def _similar(new: Sequence[str], dropped: Sequence[str]) -> list[tuple[str, str]]:
    by_key = {_key(name): name for name in dropped}
    return [(name, by_key[_key(name)]) for name in new if _key(name) in by_key]


def _key(name: str) -> str:
    return "".join(name.split()).casefold()


def _match_rows_without_class(match: ClassRows, names: Mapping[int, str], in_file: Mapping[int, str]) -> None:
    free = [row for row in range(match.file_rows) if row not in in_file]
    for index in range(len(match.rows)):
        if index not in names and free:
            match.rows[index] = index if index in free else free[-1]
