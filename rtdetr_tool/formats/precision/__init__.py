"""Precision in the graph: which nodes of an ONNX graph run in FP16 or INT8, decided by measurement.

TensorRT 11 and TensorRT-RTX use the types of a graph as they are, so precision is written into the graph: casts and
FP16 weights, or Q/DQ nodes. `audit_precision` measures, `to_mixed_fp16`, `to_int8` and `to_quantized` write,
`emulate_half` makes a graph whose score on a CPU is that of FP16, under `scoring_options`.
"""

from rtdetr_tool.formats.onnx.half_emulation import emulate_half
from rtdetr_tool.formats.precision.audit import audit_precision
from rtdetr_tool.formats.precision.audit_report import Audit, GroupCost, NodeAudit
from rtdetr_tool.formats.precision.int8 import to_int8
from rtdetr_tool.formats.precision.mixed import to_mixed_fp16
from rtdetr_tool.formats.precision.naming import is_quantized, precision_name
from rtdetr_tool.formats.precision.observe import scoring_options
from rtdetr_tool.formats.precision.post_training import to_quantized
from rtdetr_tool.formats.precision.result import KeptNode, PrecisionGraph
from rtdetr_tool.formats.precision.rules import LayerRules, parse_layers_precision

__all__ = [
    "Audit",
    "GroupCost",
    "KeptNode",
    "LayerRules",
    "NodeAudit",
    "PrecisionGraph",
    "audit_precision",
    "emulate_half",
    "is_quantized",
    "parse_layers_precision",
    "precision_name",
    "scoring_options",
    "to_int8",
    "to_mixed_fp16",
    "to_quantized",
]
