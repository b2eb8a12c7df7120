"""Number formats that Q/DQ nodes convert to, and the formats of each quantized node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper


@dataclass(frozen=True)
class NumberFormat:
    """A symmetric 8-bit format.

    Args:
        largest: the largest magnitude that it holds; a scale maps a tensor's range to it.
        opset: the first ONNX operator set with Q/DQ nodes of this format and one scale per channel.
    """

    name: str
    onnx_type: int
    largest: float
    opset: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.onnx_type))

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values divided by their scale, rounded to nearest (ties to even) and clipped."""
        clipped = np.clip(values, -self.largest, self.largest)
        whole: np.ndarray = np.rint(clipped) if self.dtype.kind == "i" else clipped
        return whole.astype(self.dtype)


INT8 = NumberFormat("int8", TensorProto.INT8, 127.0, 13)
FP8 = NumberFormat("fp8_e4m3fn", TensorProto.FLOAT8E4M3FN, 448.0, 19)
NUMBER_FORMATS = {row.name: row for row in (INT8, FP8)}


@dataclass(frozen=True)
class NodeFormats:
    """What a quantized node computes with; without `activations` only its weights are stored in fewer bits."""

    weights: NumberFormat = INT8
    activations: NumberFormat | None = INT8


INT8_NODE = NodeFormats()
