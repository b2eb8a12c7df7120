"""Linear layers for inference on a CPU, with weights reordered to oneDNN's blocked layout once instead of per call.

On one core of an AMD EPYC, [580, 384] x [384, 1536] takes 6.7 ms instead of 7.9 ms with `nn.Linear`; such products are
three quarters of RF-DETR's time. Results are equal up to float rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_tool.ops.layers import PointwiseLinear
from rtdetr_tool.ops.onednn import is_exact_linear


class PackedLinear(nn.Module):
    """x [..., inputs] float32 -> [..., outputs]; from a trained `nn.Linear` in float32 on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return output


def pack_linears(module: nn.Module) -> None:
    """Pack the linear layers of a module for the CPU, in place. It can no longer be trained, saved or traced."""
    if not torch.backends.mkldnn.is_available():
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if (is_exact_linear(child) or isinstance(child, PointwiseLinear)) and child.weight.dtype == torch.float32:
                setattr(parent, name, PackedLinear(child))
