"""Results of the precision audit: a row for each node, and the cost of each group of nodes in FP16."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class NodeAudit:
    """Results for one node; ranges are the worst of its float inputs and outputs."""

    name: str
    op_type: str
    role: str | None
    max_abs: float | None = None  # None if nothing was measured
    smallest: float | None = None
    flushed_share: float | None = None
    half_error: float | None = None
    reasons: list[str] = field(default_factory=list)  # why it stays in FP32; empty = FP16

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


@dataclass
class GroupCost:
    """The change of the detections if only this group of nodes runs in FP16."""

    group: str
    nodes: int
    cost: float | None  # None if the graph does not run
    kept: bool
    failure: str | None = None  # the node that fails, and the reason


@dataclass
class Audit:
    nodes: dict[str, NodeAudit]
    images: int
    groups: list[GroupCost] = field(default_factory=list)
    cost_all_half: float | None = None  # every node in FP16; None if that does not run
    failure_all_half: str | None = None
    cost_kept: float | None = None  # with the nodes that the audit keeps in FP32

    @property
    def kept(self) -> list[NodeAudit]:
        return [node for node in self.nodes.values() if node.kept]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "pictures": self.images,
            "cost_all_fp16": self.cost_all_half,
            "failure_all_fp16": self.failure_all_half,
            "cost_mixed": self.cost_kept,
            "groups": [asdict(group) for group in self.groups],
            "nodes": [asdict(node) for node in self.nodes.values()],
        }
