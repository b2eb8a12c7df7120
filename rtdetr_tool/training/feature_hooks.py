"""Capture the outputs of modules inside a detector by name, with forward hooks.

Besides every name in `named_modules`, TAO's names work: `bb_feats` (feature maps of the backbone), `srcs` (encoder
levels after projection and attention, before fusion), `dsrcs` (fused levels, the decoder's input), and the predictions
`pred_logits` and `pred_boxes`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.distillation import Queries
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec.distill import FEATURES, PREDICTIONS


class FusedLevels(Protocol):
    """The output of an encoder that mixes its levels (`Detector.fuses_levels`)."""

    @property
    def maps(self) -> Sequence[Tensor]:
        """The levels that the decoder reads."""

    @property
    def projected(self) -> Sequence[Tensor]:
        """The levels before they are mixed."""


def _levels_before_fusion(output: FusedLevels) -> Sequence[Tensor]:
    return output.projected[: len(output.maps)]  # a frozen foundation model adds a level that the decoder never sees


def _levels_of_decoder(output: FusedLevels | list[Tensor]) -> Sequence[Tensor]:
    return output if isinstance(output, list) else output.maps


# Name -> (module, function from the module's output to its levels).
_NAMED: dict[str, tuple[str, Callable[[Any], Sequence[Tensor]]]] = {
    "bb_feats": ("backbone", list),
    "srcs": ("encoder", _levels_before_fusion),
    "dsrcs": ("encoder", _levels_of_decoder),
}


def name_problem(detector: Detector, name: str) -> str | None:
    """None if `name` can be captured from this detector, otherwise what is wrong, with the nearest names."""
    modules = [module_name for module_name, _ in detector.named_modules() if module_name]
    aliases = [name for name in FEATURES if _NAMED[name][0] in modules and (name != "srcs" or detector.fuses_levels)]
    if name in PREDICTIONS or name in aliases or name in modules:
        return None
    near = difflib.get_close_matches(name, [*aliases, *PREDICTIONS, *modules], n=3, cutoff=0.5)
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    return f"no module '{name}'{hint}; expected the name of a module or one of {', '.join([*aliases, *PREDICTIONS])}"


@contextmanager
def capture_outputs(detector: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the block, each forward pass stores the outputs of the named modules in the dictionary.

    Outputs are lists of tensors. For a module that runs several times in a pass, the last call counts. Predictions are
    not modules and are not captured.
    """
    captured: dict[str, list[Tensor]] = {}

    def hook_for(name: str, select: Callable[[Any], Sequence[Tensor]]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            captured[name] = list(select(output))

        return hook

    with ExitStack() as handles:
        for name in names:
            if name not in PREDICTIONS:
                path, select = _NAMED.get(name, (name, _tensors))
                handle = detector.get_submodule(path).register_forward_hook(hook_for(name, select))
                handles.callback(handle.remove)
        yield captured


@contextmanager
def capture_queries(detector: Detector) -> Iterator[list[Queries]]:
    """Inside the block, each forward pass of an RT-DETR appends its selected queries, the decoder's input."""
    captured: list[Queries] = []
    decoder: Any = detector.decoder

    def hook(module: nn.Module, inputs: Any) -> None:
        content, box_logits = inputs[:2]
        head = decoder.enc_score_head  # not called, because its output may be captured, too
        scores = F.linear(content, head.weight, head.bias).float().sigmoid().amax(-1)
        captured.append(Queries(content, scores, box_logits.float().sigmoid()))

    handle = decoder.decoder.register_forward_pre_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


def missing_outputs(captured: Mapping[str, Sequence[Tensor]], names: Iterable[str], role: str) -> list[str]:
    """One problem for each name that a forward pass of the `role` (teacher or student) left without a tensor."""
    return [
        f"the module '{name}' of the {role} returns no tensors, or does not run in a forward pass"
        for name in dict.fromkeys(names)
        if name not in PREDICTIONS and not captured.get(name)
    ]


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor in the output of a module, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def check_query_selection(detector: Detector) -> None:
    """Raise UserError unless the decoder starts from ranked encoder tokens, which criterion IOU needs."""
    if not detector.selects_queries:
        raise UserError(
            "criterion IOU with srcs or dsrcs requires a teacher that selects its queries from encoder tokens, but "
            f"{type(detector).__name__} does not. Bind pred_logits and pred_boxes instead, or features with L1, L2 or "
            "KL."
        )
