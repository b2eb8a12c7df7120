"""The operators of ML Programs that detectors consist of, on PyTorch's tensors.

Arguments have MIL's names. Constant arguments are tensors, numbers or strings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Operator = Callable[..., Any]


def _list(value: Any) -> list[int]:
    return [int(item) for item in value]


def _padding(pad_type: str, pad: Any) -> list[int]:
    """MIL's [top, bottom, left, right] in the order of `F.pad`."""
    if pad_type == "valid" or pad is None:
        return [0, 0, 0, 0]
    if pad_type != "custom":
        raise NotImplementedError(f"pad_type {pad_type}")
    top, bottom, left, right = _list(pad)
    return [left, right, top, bottom]


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Any = (1, 1), pad_type: str = "valid",
    pad: Any = None, dilations: Any = (1, 1), groups: Any = 1,
) -> Tensor:  # fmt: skip
    padded = F.pad(x, _padding(pad_type, pad))
    return F.conv2d(padded, weight, bias, _list(strides), 0, _list(dilations), int(groups))


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, pad: Any = None, output_shape: Any = None,
    pad_type: str = "valid", strides: Any = (1, 1), dilations: Any = (1, 1), groups: Any = 1,
) -> Tensor:  # fmt: skip
    if any(_padding(pad_type, pad)):
        raise NotImplementedError("conv_transpose with padding")
    return F.conv_transpose2d(x, weight, bias, _list(strides), 0, 0, int(groups), _list(dilations))


def max_pool(
    x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any = None, ceil_mode: Any = False
) -> Tensor:
    padded = F.pad(x, _padding(pad_type, pad), value=-torch.inf)
    return F.max_pool2d(padded, _list(kernel_sizes), _list(strides), ceil_mode=bool(ceil_mode))


def avg_pool(
    x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any = None,
    exclude_padding_from_average: Any = False, ceil_mode: Any = False,
) -> Tensor:  # fmt: skip
    left, right, top, bottom = _padding(pad_type, pad)
    if (left, top) != (right, bottom):
        raise NotImplementedError("avg_pool with uneven padding")
    return F.avg_pool2d(
        x, _list(kernel_sizes), _list(strides), (top, left), bool(ceil_mode), not bool(exclude_padding_from_average)
    )


def reshape(x: Tensor, shape: Any) -> Tensor:
    sides = [x.shape[axis] if side == 0 else side for axis, side in enumerate(_list(shape))]
    return x.reshape(sides)


def expand_dims(x: Tensor, axes: Any) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in _list(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_list(axes)))


def split(x: Tensor, axis: Any, split_sizes: Any = None, num_splits: Any = None) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return tuple(x.split(_list(split_sizes), int(axis)))
    return tuple(x.chunk(int(num_splits), int(axis)))


def concat(values: list[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    if bool(interleave):
        raise NotImplementedError("interleaved concat")
    return torch.cat(values, int(axis))


def slice_by_index(
    x: Tensor, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:  # fmt: skip
    index: list[Any] = []
    for axis in range(x.dim()):
        start, stop = int(begin[axis]), int(end[axis])
        if squeeze_mask is not None and bool(squeeze_mask[axis]):
            index.append(start)
            continue
        step = 1 if stride is None else int(stride[axis])
        if step < 0:
            raise NotImplementedError("slice_by_index backwards")
        open_start = begin_mask is not None and bool(begin_mask[axis])
        open_stop = end_mask is not None and bool(end_mask[axis])
        index.append(slice(None if open_start else start, None if open_stop else stop, step))
    return x[tuple(index)]


def gather(x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    if int(batch_dims):
        raise NotImplementedError("gather with batch_dims")
    taken = x.index_select(int(axis), indices.long().flatten())
    return taken.unflatten(int(axis), indices.shape) if indices.dim() != 1 else taken


def gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = False) -> Tensor:
    return x.gather(int(axis), indices.long())


def topk(
    x: Tensor, k: Any, axis: Any = -1, ascending: Any = False, sort: Any = True, return_indices: Any = True,
    output_indices_dtype: Any = "int32",
) -> tuple[Tensor, ...] | Tensor:  # fmt: skip
    values, indices = x.topk(int(k), int(axis), largest=not bool(ascending), sorted=bool(sort))
    return (values, indices) if bool(return_indices) else values


def resample(
    x: Tensor, coordinates: Tensor, sampling_mode: str, padding_mode: str, padding_value: Any, coordinates_mode: str,
    align_corners: Any,
) -> Tensor:  # fmt: skip
    if (padding_mode, coordinates_mode, float(padding_value)) != ("constant", "normalized_minus_one_to_one", 0.0):
        raise NotImplementedError(f"resample with {padding_mode}, {coordinates_mode}, {float(padding_value)}")
    return F.grid_sample(x, coordinates, sampling_mode, "zeros", align_corners=bool(align_corners))


def upsample(mode: str) -> Operator:
    def run(x: Tensor, scale_factor_height: Any, scale_factor_width: Any, align_corners: Any = None) -> Tensor:
        corners = None if align_corners is None else bool(align_corners)
        scale = (float(scale_factor_height), float(scale_factor_width))
        return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=corners)

    return run


def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    return (x.mT if bool(transpose_x) else x) @ (y.mT if bool(transpose_y) else y)


def layer_norm(x: Tensor, axes: Any, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Tensor:
    if [axis % x.dim() for axis in _list(axes)] != list(range(x.dim() - len(axes), x.dim())):
        raise NotImplementedError("layer_norm over axes that are not the last ones")
    return F.layer_norm(x, x.shape[-len(axes) :], gamma, beta, float(epsilon))


def cast(x: Tensor, dtype: str) -> Tensor:
    kinds = {"fp32": torch.float32, "fp16": torch.float32, "int32": torch.int64, "bool": torch.bool}
    return x.to(kinds[dtype])


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def run(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:
        return function(x, _list(axes) if axes is not None else list(range(x.dim())), bool(keep_dims))

    return run


OPERATORS: dict[str, Operator] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": matmul,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "upsample_nearest_neighbor": upsample("nearest"),
    "upsample_bilinear": upsample("bilinear"),
    "resample": resample,
    "layer_norm": layer_norm,
    "softmax": lambda x, axis=-1: x.softmax(int(axis)),
    "reshape": reshape,
    "transpose": lambda x, perm: x.permute(_list(perm)),
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "split": split,
    "concat": concat,
    "stack": lambda values, axis: torch.stack(values, int(axis)),
    "tile": lambda x, reps: x.repeat(_list(reps)),
    "slice_by_index": slice_by_index,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "topk": topk,
    "cast": cast,
    "select": lambda cond, a, b: torch.where(cond.bool(), a, b),
    "reduce_sum": _reduction(torch.sum),
    "reduce_mean": _reduction(torch.mean),
    "reduce_max": _reduction(torch.amax),
    "reduce_min": _reduction(torch.amin),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "gelu": lambda x, mode: F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode]),
    "log": lambda x, epsilon=1e-45: (x + float(epsilon)).log(),
    "rsqrt": lambda x, epsilon=1e-12: (x + float(epsilon)).rsqrt(),
    "pow": lambda x, y: torch.pow(x, y),
    "real_div": lambda x, y: x / y,
    "floor_div": lambda x, y: x // y,
    "mod": lambda x, y: torch.remainder(x, y),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "maximum": lambda x, y: torch.maximum(x, torch.as_tensor(y)),
    "minimum": lambda x, y: torch.minimum(x, torch.as_tensor(y)),
    "greater": lambda x, y: x > y,
    "less": lambda x, y: x < y,
    "logical_and": lambda x, y: x.bool() & y.bool(),
    "logical_or": lambda x, y: x.bool() | y.bool(),
    "logical_not": lambda x: ~x.bool(),
    "relu": lambda x: x.relu(),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "exp": lambda x: x.exp(),
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x.square(),
    "floor": lambda x: x.floor(),
    "abs": lambda x: x.abs(),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "erf": lambda x: x.erf(),
    "silu": lambda x: F.silu(x),
}
