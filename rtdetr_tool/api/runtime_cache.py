"""The runtime that predicts with a network's weights, rebuilt when they change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rtdetr_tool.formats.base import Runtime

Tensors = tuple[tuple[str, int, int], ...]


class RuntimeCache:
    """Keeps one runtime (a folded copy of a network) until the network's weights change.

    The cache is not part of its owner's state: copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[Runtime, Tensors, Tensor | None] | None = None

    def __reduce__(self) -> tuple[type[RuntimeCache], tuple[()]]:
        return RuntimeCache, ()

    def get(self, network: nn.Module, build: Callable[[], Runtime], sums: bool = True) -> Runtime:
        """The runtime for the current weights of `network`, built by `build` if necessary.

        Changes are detected by PyTorch's version counters. These do not count in-place changes through `.data`, which
        are detected by the sum of each tensor; `sums=False` saves that time (9 ms for 20 million weights on one core).
        """
        tensors, totals = tensors_of(network), sums_of(network) if sums else None
        if self._kept is not None:
            runtime, known, known_totals = self._kept
            same = totals is None or known_totals is None or torch.equal(totals, known_totals)
            if known == tensors and same:
                return runtime
        runtime = build()
        self._kept = runtime, tensors, totals
        return runtime

    def clear(self) -> None:
        self._kept = None


def tensors_of(network: nn.Module) -> Tensors:
    """Name, address and version counter of every parameter and buffer."""
    return tuple(
        (name, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for name, tensor in _named_tensors(network)
    )


def sums_of(network: nn.Module) -> Tensor:
    """The sum of each tensor as bits, so that NaN sums compare equal."""
    totals = [tensor.detach().sum().to("cpu", torch.float64) for _, tensor in _named_tensors(network)]
    return torch.stack(totals).view(torch.int64)


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]
