"""Load weights into a module and report every tensor that was not loaded, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rtdetr_tool.checkpoints.adapters import has_adapters, restart_adapters, without_adapters
from rtdetr_tool.checkpoints.class_rows import (
    Classes,
    ClassRows,
    is_class_tensor,
    is_score_head,
    with_class_rows,
)
from rtdetr_tool.checkpoints.input_channels import RGB, adapt_inputs, differs_in_channels
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.messages import first_of

_SMALLEST_SHARE = 0.5


@runtime_checkable
class HasFrozenWeights(Protocol):
    """A module with frozen weights that are not in its state dict."""

    def load_frozen(self, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Load the frozen weights if the file has them, and return the remaining ones."""


@runtime_checkable
class HasResizableWeights(Protocol):
    """A module with tensors that may have another size in a file, such as position embeddings."""

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with such tensors resized to the module's size."""


@dataclass
class LoadReport:
    """What happened to each tensor of a file and of the module that it was loaded into."""

    source: str
    loaded: list[str] = field(default_factory=list)
    reinitialized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # (file, module)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    class_rows: ClassRows | None = None  # if classes were matched by name
    adapted: dict[str, int] = field(default_factory=dict)  # convolutions of RGB images -> their channels in the module

    @property
    def total(self) -> int:
        """The number of tensors of the module, except counters of batch norms."""
        return len(self.loaded) + len(self.reinitialized) + len(self.missing)

    @property
    def share(self) -> float:
        return len(self.loaded) / self.total if self.total else 0.0

    @property
    def complete(self) -> bool:
        matched = self.class_rows is None or self.class_rows.complete
        return matched and not (self.reinitialized or self.missing or self.unused)

    @property
    def class_counts(self) -> tuple[int, int] | None:
        """Classes of (file, module) if they differ."""
        for name, (in_file, in_module) in self.reinitialized.items():
            if is_score_head(name) and in_file[0] != in_module[0] and in_file[1:] == in_module[1:]:
                return in_file[0], in_module[0]
        return None

    def summary(self) -> str:
        """One line, then one per group of tensors that were not loaded."""
        lines = [f"Loaded {len(self.loaded)} of {self.total} tensors from {self.source}."]
        heads_explained = False
        if self.class_rows is not None:
            lines += self.class_rows.lines(self.source)
            heads_explained = not self.class_rows.any_copied
        elif classes := self.class_counts:
            lines.append(
                f"The class heads keep their initial values, because the model has {classes[1]} classes "
                f"(dataset.num_classes), but {self.source} {classes[0]}."
            )
            heads_explained = True
        lines += [f"Adapted {name} from {RGB} to {channels} channels." for name, channels in self.adapted.items()]
        shapes = [
            f"{name} (file {list(in_file)}, model {list(in_module)})"
            for name, (in_file, in_module) in self.reinitialized.items()
            if not (heads_explained and is_class_tensor(name))
        ]
        if shapes:
            lines.append(f"Not loaded because of another shape: {first_of(shapes, 8)}.")
        if self.missing:
            lines.append(f"Not in the file, keeping initial values: {first_of(self.missing, 8)}.")
        if self.unused:
            lines.append(f"In the file but not in the model: {first_of(self.unused, 8)}.")
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
    """Copy tensors by name. With `strict` (evaluate, inference, resume) all of them must match.

    Otherwise (pretrained weights) tensors of another shape keep their initial values, which the report lists. If less
    than half of the module's tensors match, the weights belong to another model, which is an error. Frozen weights
    that are not in the state dict (`HasFrozenWeights`) are loaded first, and tensors of variable size
    (`HasResizableWeights`) are resized. Without `strict`, the first convolution of RGB images is adapted to another
    number of channels (`input_channels`).

    Weights without adapters (`adapters`) can be loaded into a module that has some, which start from scratch then.

    Shapes that only differ by axes of length 1 (a linear layer and a 1x1 convolution) count as equal.

    With `classes` (those of the module), rows of class tensors are matched to the names in `file_classes` (see
    `class_rows`). Without, they are copied by position, for weights that define the classes themselves.

    Raises:
        CheckpointError: not all tensors match with `strict`, or less than half otherwise.
    """
    if isinstance(module, HasFrozenWeights):
        state_dict = module.load_frozen(state_dict, source)
    if isinstance(module, HasResizableWeights):
        state_dict = module.resize_weights(state_dict)
    whole = target = module.state_dict()
    restart = has_adapters(target) and not has_adapters(state_dict)
    if restart:
        target = without_adapters(target)
    report = LoadReport(source)
    if not strict:
        state_dict, names = adapt_inputs(state_dict, target)
        report.adapted = {name: target[name].shape[1] for name in names}
    arranged = state_dict
    if classes is not None:
        arranged, report.class_rows = with_class_rows(state_dict, target, classes, file_classes, source)
    for name, tensor in target.items():
        if name not in state_dict:
            if not name.endswith("num_batches_tracked"):  # frozen batch norms have none; it has no effect on results
                report.missing.append(name)
        elif name not in arranged or _essential(arranged[name]) != _essential(tensor):
            report.reinitialized[name] = (tuple(state_dict[name].shape), tuple(tensor.shape))
        else:
            report.loaded.append(name)
    report.unused = [name for name in state_dict if name not in target and not name.endswith("num_batches_tracked")]
    if strict and not report.complete:
        raise CheckpointError(
            f"{source} does not match this {what}{_class_hint(report) or _channel_hint(report)}.\n{report.summary()}"
        )
    if report.share < _SMALLEST_SHARE:
        raise CheckpointError(
            f"{source} does not have the weights of this {what}: only {len(report.loaded)} of {report.total} tensors "
            f"match; expected at least half.\n{report.summary()}"
        )
    with torch.no_grad():
        for name in report.loaded:
            target[name].copy_(arranged[name].reshape(target[name].shape))
    if restart:
        restart_adapters(whole)
    return report


def _essential(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _channel_hint(report: LoadReport) -> str:
    """An explanation if the first convolution is for images with another number of channels."""
    for name, (in_file, in_module) in report.reinitialized.items():
        if differs_in_channels(in_file, in_module):
            return f": {name} is for {in_file[1]} channels in the file, but for {in_module[1]} (model.num_channels)"
    return ""


def _class_hint(report: LoadReport) -> str:
    """An explanation if the number of classes differs."""
    counts = report.class_counts
    return f": the file has {counts[0]} classes, but the model {counts[1]} (dataset.num_classes)" if counts else ""
