"""RT-DETR (Zhao et al. 2023, arXiv:2304.08069): backbone, hybrid encoder, decoder."""

from __future__ import annotations

from rtdetr_tool.models.hybrid_detector import HybridDetector


class RTDETR(HybridDetector):
    """Parameters of `backbone`, `encoder` and `decoder` have the names of the public RT-DETR and TAO's checkpoints."""
