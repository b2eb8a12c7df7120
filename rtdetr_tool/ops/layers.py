"""Building blocks shared by the detectors: convolution with norm, RepVGG, CSPRep, MLP, fixed and folded norms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.catalog import ACTIVATIONS
from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.batch_norm import FixedBatchNorm2d, fold_into, scale_and_shift
from rtdetr_tool.ops.onednn import linear

M = TypeVar("M", bound=nn.Module)


def build_activation(name: str | None) -> nn.Module:
    """The activation called `name`; None means identity."""
    if name is None:
        return nn.Identity()
    if name not in ACTIVATIONS:
        raise UserError(f"activation '{name}' is invalid; expected one of {', '.join(ACTIVATIONS)}")
    kind, arguments = ACTIVATIONS[name]
    activation: nn.Module = SiLU() if name == "silu" else getattr(nn, kind)(**arguments)
    return activation


class SiLU(nn.SiLU):
    """SiLU in place unless there will be a backward pass, for which PyTorch would copy the input first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


def modules_of_type(modules: Sequence[nn.Module] | nn.ModuleList, kind: type[M]) -> list[M]:
    """The modules of a list as the type that all of them have; `nn.ModuleList` does not know it."""
    typed = [module for module in modules if isinstance(module, kind)]
    assert len(typed) == len(modules), f"a module is not a {kind.__name__}"
    return typed


def zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the bias of a layer to zero, if it has one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class PointwiseLinear(nn.Linear):
    """A linear layer for tokens [B, S, i], or for the channels of a map [B, i, h, w], as a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)
        return linear(x, self.weight, self.bias)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and activation; padding keeps the size at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, act: str | None = None, groups: int = 1
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = build_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.norm(self.conv(x)))
        return output

    def fused(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of a convolution equivalent to convolution plus norm in eval mode."""
        scale, shift = scale_and_shift(self.norm)
        return self.conv.weight * scale[:, None, None, None], shift


class RepVggBlock(nn.Module):
    """Sum of a 3x3 and a 1x1 ConvNorm, then an activation (Ding et al. 2021, arXiv:2101.03697; no identity branch)."""

    conv: nn.Conv2d | None  # both branches, once they are fused

    def __init__(self, inputs: int, outputs: int, act: str | None) -> None:
        super().__init__()
        self.conv = None
        self.conv1 = ConvNorm(inputs, outputs, 3)
        self.conv2 = ConvNorm(inputs, outputs, 1)
        self.act = build_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        summed = self.conv1(x) + self.conv2(x) if self.conv is None else self.conv(x)
        output: Tensor = self.act(summed)
        return output

    @torch.no_grad()
    def fuse(self) -> None:
        """Replace both branches with an equivalent 3x3 convolution; for eval mode only."""
        if self.conv is not None:
            return
        kernel3, bias3 = self.conv1.fused()
        kernel1, bias1 = self.conv2.fused()
        conv = nn.Conv2d(kernel3.shape[1], kernel3.shape[0], 3, padding=1).to(kernel3)
        conv.weight.copy_(kernel3 + F.pad(kernel1, [1, 1, 1, 1]))
        conv.bias = nn.Parameter(bias3 + bias1)
        self.conv = conv
        del self.conv1, self.conv2


class CSPRepLayer(nn.Module):
    """RT-DETR's fusion block (cross-stage partial): two 1x1 branches, one followed by RepVGG blocks, summed."""

    def __init__(self, inputs: int, outputs: int, blocks: int, expansion: float, act: str) -> None:
        super().__init__()
        hidden = int(outputs * expansion)
        self.conv1 = ConvNorm(inputs, hidden, 1, act=act)
        self.conv2 = ConvNorm(inputs, hidden, 1, act=act)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden, hidden, act) for _ in range(blocks)))
        self.conv3 = ConvNorm(hidden, outputs, 1, act=act) if hidden != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))
        return output


class MLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int, act: str = "relu") -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.act = build_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        output: Tensor = self.layers[-1](x)
        return output


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm in `module` into the convolution directly before it among its siblings, in place.

    For eval mode only. Assumes that submodules run in the order of registration; leaves an identity in their place.
    """
    previous: nn.Module | None = None
    for name, child in module.named_children():
        if not isinstance(child, (nn.BatchNorm2d, FixedBatchNorm2d)):
            fold_batch_norms(child)
        elif isinstance(previous, nn.Conv2d) and previous.out_channels == len(child.weight):
            fold_into(previous, child)
            setattr(module, name, nn.Identity())
        previous = child


def fuse_reparameterized(module: nn.Module) -> None:
    """Fuse every RepVGG block in `module`, in place."""
    for child in module.modules():
        if isinstance(child, RepVggBlock):
            child.fuse()
