"""A mixed-precision graph and its report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from rtdetr_tool.formats.precision.audit_report import NodeAudit
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.rules import LayerRules


@dataclass(frozen=True)
class KeptNode:
    """A node in a higher precision than requested, and the reason; numbers are None without images."""

    name: str
    op_type: str
    precision: str  # the one it runs in: fp32 or fp16
    reason: str
    max_abs: float | None = None
    smallest: float | None = None
    flushed_share: float | None = None
    half_error: float | None = None


@dataclass
class PrecisionGraph:
    """An ONNX graph in mixed precision; inputs and outputs are those of the FP32 graph."""

    model: onnx.ModelProto
    kept: list[KeptNode]
    converted: int  # nodes in FP16
    casts: int
    quantized: int = 0  # nodes in INT8
    notes: list[str] = field(default_factory=list)  # messages for the user
    calibration: dict[str, Any] | None = None  # method, costs, images of INT8

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report, without the graph."""
        return {
            "nodes_fp16": self.converted,
            "nodes_int8": self.quantized,
            "nodes_fp32": sum(node.precision == "fp32" for node in self.kept),
            "casts": self.casts,
            "notes": self.notes,
            "calibration": self.calibration,
            "kept": [asdict(node) for node in self.kept],
        }


def apply_rules(graph: Graph, rows: Mapping[str, NodeAudit], rules: LayerRules) -> tuple[dict[str, str], list[str]]:
    """The reasons for nodes in FP32 by name, after applying the user's rules, and notes about risky rules.

    fp32 adds to the audit, fp16 and int8 override it, int32 does not apply to floating-point nodes.
    """
    rules.check((node.name, node.op_type) for node in graph.nodes)
    reasons, overruled, indices = {}, [], []
    for name, row in rows.items():
        rule = rules.match(name, row.op_type)
        if rule is not None and rule.precision == "fp32":
            reasons[name] = f"layers_precision: {rule}"
        elif rule is not None and rule.precision in ("fp16", "int8"):
            if any(reason.startswith(("overflow", "underflow", "does not run")) for reason in row.reasons):
                overruled.append(name)
            if row.role == "index":
                indices.append(name)
        elif row.reasons:
            reasons[name] = "; ".join(row.reasons)
    notes = []
    risks = {
        "with values out of range": overruled,
        "that compute indices, which are exact in FP16 only up to 2048": indices,
    }
    for what, names in risks.items():
        if names:
            some = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
            notes.append(f"layers_precision puts {len(names)} nodes into FP16 {what}: {some}")
    return reasons, notes


def kept_nodes(
    graph: Graph, rows: Mapping[str, NodeAudit], half: Collection[str], reasons: Mapping[str, str]
) -> list[KeptNode]:
    """The nodes that stay in FP32, in the order of the graph."""
    kept = []
    for node in graph.nodes:
        row = rows.get(node.name)
        if row is not None and node.name not in half:
            why = reasons.get(node.name, "between nodes in FP32: saves casts")
            figures = row.max_abs, row.smallest, row.flushed_share, row.half_error
            kept.append(KeptNode(node.name, node.op_type, "fp32", why, *figures))
    return kept
