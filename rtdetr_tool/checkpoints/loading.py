"""Putting weights into a detector, never silently: every tensor is loaded, or named with the reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rtdetr_tool.checkpoints.class_rows import (
    Classes,
    ClassRows,
    is_class_tensor,
    is_score_head,
    some,
    with_class_rows,
)
from rtdetr_tool.errors import CheckpointError

_SMALLEST_SHARE = 0.5


@runtime_checkable
class TakesFrozen(Protocol):
    """A module with frozen weights outside of its state dict."""

    def take_frozen(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Load these weights, if the file has them, and return the others."""


@runtime_checkable
class Fits(Protocol):
    """A module with tensors of a free size, such as position embeddings."""

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with such tensors resized to the module's."""


@dataclass
class LoadReport:
    """What happened to each tensor of a file and of the module that it was loaded into."""

    source: str
    loaded: list[str] = field(default_factory=list)
    reinitialised: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # (file, module)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    class_rows: ClassRows | None = None  # where classes have been matched by name

    @property
    def total(self) -> int:
        """Tensors that the module has and that matter (not the counters of batch norms)."""
        return len(self.loaded) + len(self.reinitialised) + len(self.missing)

    @property
    def share(self) -> float:
        return len(self.loaded) / self.total if self.total else 0.0

    @property
    def complete(self) -> bool:
        matched = self.class_rows is None or self.class_rows.complete
        return matched and not (self.reinitialised or self.missing or self.unused)

    @property
    def class_counts(self) -> tuple[int, int] | None:
        """Classes of (file, module) where they differ."""
        for name, (in_file, in_module) in self.reinitialised.items():
            if is_score_head(name) and in_file[0] != in_module[0] and in_file[1:] == in_module[1:]:
                return in_file[0], in_module[0]
        return None

    def summary(self) -> str:
        """One line, then one per group of tensors that did not fit."""
        lines = [f"Loaded {len(self.loaded)} of {self.total} tensors from {self.source}."]
        if self.class_rows is not None:
            lines += self.class_rows.lines(self.source)
        elif classes := self.class_counts:
            lines.append(
                f"The file has {classes[0]} classes, the model {classes[1]} (dataset.num_classes): its class heads "
                "start from their initial values."
            )
        shapes = [
            f"{name} (file {list(in_file)}, model {list(in_module)})"
            for name, (in_file, in_module) in self.reinitialised.items()
            if self.class_rows is None or self.class_rows.any_taken or not is_class_tensor(name)
        ]
        if shapes:
            lines.append(f"Another shape, left at their initial values: {some(shapes)}.")
        if self.missing:
            lines.append(f"Not in the file, left at their initial values: {some(self.missing)}.")
        if self.unused:
            lines.append(f"In the file but not in the model: {some(self.unused)}.")
        return "\n".join(lines)


def load_into(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    strict: bool = True,
    what: str = "detector",
    classes: Classes | None = None,
    file_classes: Classes = (),
) -> LoadReport:
    """Copy tensors by name. `strict` (evaluate, inference, resume) takes nothing but a complete fit.

    Otherwise (a pretrained model) tensors of another shape keep their initial values and the report says so;
    when less than half of the module's tensors fit, it is another model and an error. A module that keeps frozen
    weights outside of its state dict (`take_frozen`) takes those from the file first.

    A module with `fitted` first brings tensors whose size is free, such as position embeddings, to its own.

    Tensors that differ by axes of length 1 only (a linear layer against a 1x1 convolution) have the same shape.

    With `classes`, those of the module, rows of class tensors go by the names of `file_classes` (see `class_rows`).
    Without, they go by position: that is for weights that bring their classes with them.
    """
    if isinstance(module, TakesFrozen):
        state_dict = module.take_frozen(state_dict, source)
    if isinstance(module, Fits):
        state_dict = module.fitted(state_dict)
    own = module.state_dict()
    report, arranged = LoadReport(source), state_dict
    if classes is not None:
        arranged, report.class_rows = with_class_rows(state_dict, own, classes, file_classes, source)
    for name, tensor in own.items():
        if name not in state_dict:
            if not name.endswith("num_batches_tracked"):  # frozen batch norms have none; it has no effect on results
                report.missing.append(name)
        elif name not in arranged or _essential(arranged[name]) != _essential(tensor):
            report.reinitialised[name] = (tuple(state_dict[name].shape), tuple(tensor.shape))
        else:
            report.loaded.append(name)
    report.unused = [name for name in state_dict if name not in own and not name.endswith("num_batches_tracked")]
    if strict and not report.complete:
        raise CheckpointError(f"{source} does not fit this {what}{_class_hint(report)}.\n{report.summary()}")
    if report.share < _SMALLEST_SHARE:
        raise CheckpointError(
            f"{source} is not the weights of this {what}: only {len(report.loaded)} of {report.total} tensors fit "
            f"(at least half must).\n{report.summary()}"
        )
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(arranged[name].reshape(own[name].shape))
    return report


def _essential(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _class_hint(report: LoadReport) -> str:
    """Say it in words when only the number of classes differs."""
    counts = report.class_counts
    return f": the file has {counts[0]} classes, the model {counts[1]} (dataset.num_classes)" if counts else ""
