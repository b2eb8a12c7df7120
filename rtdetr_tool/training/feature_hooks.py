"""Reading what modules inside a detector give out, by name, while it runs.

Besides every name of `named_modules` there are those of TAO: `bb_feats` (maps of the backbone), `srcs` (the encoder's
levels after projection and attention, before fusion) and `dsrcs` (after fusion, what the decoder gets); and the
predictions `pred_logits` and `pred_boxes`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.distillation import Queries
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec.tables import FEATURES, PREDICTIONS


def _levels_before_fusion(output: Any) -> Sequence[Tensor]:
    return output.projected[: len(output.maps)]  # a frozen foundation model adds a level that the decoder never sees


# Name -> (module, how its levels are found in what that module gives out).
_NAMED: dict[str, tuple[str, Callable[[Any], Sequence[Tensor]]]] = {
    "bb_feats": ("backbone", list),
    "srcs": ("encoder", _levels_before_fusion),
    "dsrcs": ("encoder", lambda output: getattr(output, "maps", output)),
}


def unknown_name(detector: Detector, name: str) -> str | None:
    """None for a name that can be read from this detector; else what is wrong, with the nearest names."""
    modules = [known for known, _ in detector.named_modules() if known]
    named = [known for known in FEATURES if _NAMED[known][0] in modules and (known != "srcs" or detector.fuses_levels)]
    if name in PREDICTIONS or name in named or name in modules:
        return None
    near = difflib.get_close_matches(name, [*named, *PREDICTIONS, *modules], n=3, cutoff=0.5)
    hint = f"; near: {', '.join(near)}" if near else ""
    return f"no module '{name}'{hint}. Besides the names of its modules it has {', '.join([*named, *PREDICTIONS])}"


@contextmanager
def tapped(detector: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Within it, each forward pass leaves the outputs of the named modules in the dictionary, as lists of tensors.

    Of a module that runs several times in a pass, the last time counts. Predictions are not modules and not read here.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, select: Callable[[Any], Sequence[Tensor]]) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = list(select(output))

        return hook

    with ExitStack() as handles:
        for name in names:
            if name not in PREDICTIONS:
                path, select = _NAMED.get(name, (name, _tensors))
                handle = detector.get_submodule(path).register_forward_hook(keep(name, select))
                handles.callback(handle.remove)
        yield found


@contextmanager
def tapped_queries(detector: Detector) -> Iterator[list[Queries]]:
    """Within it, each forward pass appends what the decoder's layers start from: the selected queries."""
    found: list[Queries] = []
    decoder = detector.decoder

    def hook(module: nn.Module, inputs: Any) -> None:
        content, box_logits = inputs[:2]
        head = decoder.enc_score_head  # not called, as its own call may be tapped
        scores = F.linear(content, head.weight, head.bias).float().sigmoid().amax(-1)
        found.append(Queries(content, scores, box_logits.float().sigmoid()))

    handle = decoder.decoder.register_forward_pre_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


def check_complete(found: Mapping[str, Sequence[Tensor]], names: Iterable[str], whose: str) -> list[str]:
    """One line for each name that a forward pass left without a tensor."""
    return [
        f"the module '{name}' of the {whose} gives out no tensors (or does not run in a forward pass)"
        for name in dict.fromkeys(names)
        if name not in PREDICTIONS and not found.get(name)
    ]


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor in what a module gave out, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def check_query_selection(detector: Detector) -> None:
    """UserError unless the detector ranks the encoder's tokens as RT-DETR does (criterion IOU is made from that)."""
    if not detector.selects_queries:
        raise UserError(
            f"criterion IOU with srcs or dsrcs needs an RT-DETR teacher; this one is {type(detector).__name__}. "
            "Bind pred_logits and pred_boxes instead, or features with L1, L2 or KL."
        )
