"""Linear layers and 1x1 convolutions that oneDNN computes when a network is trained on a CPU.

PyTorch computes them in float32 with MKL's matrix product: linear layers always, 1x1 convolutions with one thread and
fewer than 16 images. On AMD's processors oneDNN takes half the time: on one core of an EPYC (Zen 5), the products of
[992, 256] x [256, 1024] and its backward pass take 8 ms instead of 16 ms. Results are equal up to float rounding.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SMALLEST = 1_000_000  # multiplications; below, the additional calls cost more than they save


class OneDNNLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class OneDNNPointwiseConv(nn.Conv2d):
    """A convolution with a 1x1 kernel, where dilation only has the effect that PyTorch uses oneDNN."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dilation = (2, 2) if _is_trained(input) else self.dilation
        return F.conv2d(input, weight, bias, self.stride, self.padding, dilation, self.groups)


def is_exact_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the output depends only on weight and bias, so that other code may use them; not a LoRA adapter's."""
    return type(layer) in (nn.Linear, OneDNNLinear)


def use_onednn(network: nn.Module) -> None:
    """Change the classes of layers, in place; on devices other than the CPU they compute what they did before."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear
        elif type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.padding_mode == "zeros":
            module.__class__ = OneDNNPointwiseConv


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`: x [..., I], weight [O, I], bias [O] -> [..., O]."""
    if not _is_trained(x) or x.dim() < 2 or x.numel() * weight.shape[0] < _SMALLEST:
        return F.linear(x, weight, bias)
    rows: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], -1)


def _is_trained(x: Tensor) -> bool:
    """Whether this is a float32 tensor of a training step on a CPU, and not of a traced or compiled graph."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
    )


class _Product(torch.autograd.Function):
    """x [N, I], weight [O, I], bias [O] -> [N, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if needs_x else None,
            _product(gradient.t(), x.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output
