"""AdamW that updates all parameter groups together where it can.

`torch.optim.AdamW` repeats its whole step for each group. On a GPU that costs three kernel launches per group with the
fused kernels and eight without them, and a recipe with a learning rate per layer has 29 groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

_SHARED = ("betas", "eps", "amsgrad", "maximize", "foreach", "fused", "capturable", "differentiable")


class _Slice(NamedTuple):
    """The tensors of one group, in the order of `torch.optim.AdamW`."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    largest: list[Tensor]  # with `amsgrad`
    steps: list[Tensor]


class GroupedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with the same results and states, and fewer kernels.

    With `fused`, each group has one kernel (its learning rate is an argument of it), and the step counters of all
    groups are updated together. Without it, the lists of tensors of all groups go through one sequence of kernels.
    Everything else is left to torch.
    """

    found_inf: Tensor | None = None  # set by the step guard: not 0 turns a fused step into a no-op
    grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        first = self.param_groups[0]
        alike = all(group[key] == first[key] for group in self.param_groups for key in _SHARED)
        if closure is not None or not alike or first["differentiable"] or first["capturable"]:
            return super().step(closure)
        slices = [self._slice(group) for group in self.param_groups]
        tensors = [param for part in slices for param in part.params]
        if not tensors:
            return None
        alike = len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1 and not torch.is_complex(tensors[0])
        if alike and first["fused"]:
            self._step_fused(slices)
        elif alike and _is_foreach(first, tensors[0]):
            _step_foreach(slices)
        else:
            for part in slices:
                self._step_alone(part)
        return None

    def _slice(self, group: dict[str, Any]) -> _Slice:
        part = _Slice(group, [], [], [], [], [], [])
        self._init_group(group, *part[1:])  # type: ignore[no-untyped-call]  # not annotated in torch
        return part

    def _step_fused(self, slices: list[_Slice]) -> None:
        steps = [step for part in slices for step in part.steps]
        torch._foreach_add_(steps, 1)
        for part in slices:
            if part.params:
                torch._fused_adamw_(
                    *part[1:],
                    lr=part.group["lr"],
                    beta1=part.group["betas"][0],
                    beta2=part.group["betas"][1],
                    weight_decay=part.group["weight_decay"],
                    eps=part.group["eps"],
                    amsgrad=part.group["amsgrad"],
                    maximize=part.group["maximize"],
                    grad_scale=self.grad_scale,
                    found_inf=self.found_inf,
                )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def _step_alone(self, part: _Slice) -> None:
        group = part.group
        options = {key: group[key] for key in _SHARED if key != "betas"}
        adam(
            *part[1:],
            **options,
            has_complex=any(map(torch.is_complex, part.params)),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            decoupled_weight_decay=True,
        )


def _is_foreach(group: dict[str, Any], tensor: Tensor) -> bool:
    """Whether torch would take its kernels for lists of tensors; by default it does so on a GPU."""
    requested = tensor.is_cuda if group["foreach"] is None else group["foreach"]
    return requested and not group["amsgrad"] and not group["maximize"]


def _step_foreach(slices: list[_Slice]) -> None:
    """The arithmetic of `torch.optim.AdamW(foreach=True)` in the same order, with numbers per tensor where they differ
    between groups. The step counters are on the host."""
    (beta1, beta2), eps = slices[0].group["betas"], slices[0].group["eps"]
    steps = [step for part in slices for step in part.steps]
    torch._foreach_add_(steps, torch.tensor(1.0), alpha=1.0)
    counts = [step.item() for step in steps]
    params, decayed, factors, rates = [], [], [], []
    for part in slices:
        rate, decay = part.group["lr"], part.group["weight_decay"]
        params += part.params
        rates += [rate] * len(part.params)
        decayed += part.params if decay else []
        factors += [1 - rate * decay] * len(part.params) if decay else []
    if decayed:
        torch._foreach_mul_(decayed, factors)
    grads = [grad for part in slices for grad in part.grads]
    means = [mean for part in slices for mean in part.means]
    squares = [square for part in slices for square in part.squares]
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, eps)
    sizes = [-rate / (1 - beta1**count) for rate, count in zip(rates, counts, strict=True)]
    torch._foreach_addcdiv_(params, means, roots, sizes)
