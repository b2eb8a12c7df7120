"""D-FINE (Peng et al. 2024, arXiv:2410.13842): HGNetV2, a hybrid encoder, a decoder of box distributions.

Shape legend: B batch, H, W input size (multiples of 32), Q queries, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from rtdetr_tool.families.dfine.model.decoder import DFINEDecoder
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.models.hybrid_encoder import EncoderOutput, HybridEncoder
from rtdetr_tool.ops.layers import fold_batch_norms, fuse_reparameterized
from rtdetr_tool.ops.structures import Predictions, Target


class DFINE(Detector):
    """A detector from images to raw predictions; every input size that is a multiple of 32 works."""

    decoder: DFINEDecoder
    decoder_layers = ("decoder.decoder.",)
    fuses_levels = True
    selects_queries = True

    def __init__(self, backbone: ImageBackbone, encoder: HybridEncoder, decoder: DFINEDecoder) -> None:
        super().__init__(backbone, encoder, decoder)

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, 3, H, W] RGB 0..1. In training mode `targets` feed the denoising queries (none without them)."""
        predictions: Predictions = self.decoder(self.features(images), targets)
        return predictions

    def features(self, images: Tensor) -> list[Tensor]:
        fused: EncoderOutput = self.encoder(self.backbone(images))
        return fused.maps

    def deploy(self) -> DFINE:
        """A copy for inference and export: fused RepVGG blocks, folded batch norms, no layers after `eval_idx`.

        It has the same outputs up to rounding and cannot be trained.
        """
        lean = copy.deepcopy(self).eval().requires_grad_(False)
        fuse_reparameterized(lean)
        lean.backbone.fold_batch_norms()
        fold_batch_norms(lean.encoder)
        fold_batch_norms(lean.decoder)
        lean.decoder.keep_predicting_layers()
        return lean
