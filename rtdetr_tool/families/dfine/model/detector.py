"""D-FINE (Peng et al. 2024, arXiv:2410.13842): HGNetV2, a hybrid encoder, a decoder of box distributions."""

from __future__ import annotations

from rtdetr_tool.families.dfine.model.decoder import DFINEDecoder
from rtdetr_tool.models.hybrid_detector import HybridDetector


class DFINE(HybridDetector):
    """RT-DETR's design with boxes as distributions over their edges."""

    decoder: DFINEDecoder

    def deploy(self) -> DFINE:
        """As `HybridDetector.deploy`, without the layers after `eval_idx`."""
        fused = super().deploy()
        fused.decoder.keep_predicting_layers()
        return fused
