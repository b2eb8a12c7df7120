"""The base class of detectors of RT-DETR's design (arXiv:2304.08069): backbone, hybrid encoder, decoder of queries.

Shape legend: B batch, H, W input size (multiples of 32).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from rtdetr_tool.models.detector import Detector
from rtdetr_tool.models.hybrid_encoder import EncoderOutput
from rtdetr_tool.models.query_selection import QuerySelection
from rtdetr_tool.ops.layers import fold_batch_norms, fuse_reparameterized
from rtdetr_tool.ops.structures import Predictions, Target

_Self = TypeVar("_Self", bound="HybridDetector")


class HybridDetector(Detector):
    """A detector from images to raw predictions.

    The encoder is a `HybridEncoder`, the decoder a `QuerySelection`. Every input size that is a multiple of 32 works,
    in training and in eval mode.
    """

    decoder: QuerySelection
    decoder_layers = ("decoder.decoder.",)
    fuses_levels = True
    selects_queries = True

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, 3, H, W] RGB 0..1. In training mode `targets` feed the denoising queries (none without them)."""
        predictions: Predictions = self.decoder(self.features(images), targets)
        return predictions

    def features(self, images: Tensor) -> list[Tensor]:
        fused: EncoderOutput = self.encoder(self.backbone(images))
        return fused.maps

    def run_as(self, **choices: int) -> None:
        """Choices: `decoder_layers`, `num_queries`."""
        self.decoder.run_as(**choices)

    def skipped(self) -> list[nn.Parameter]:
        return self.decoder.skipped()

    def deploy(self: _Self) -> _Self:
        """A copy for inference and export, with RepVGG blocks fused and batch norms folded into convolutions.

        It has the same outputs up to rounding and cannot be trained.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        fuse_reparameterized(fused)
        fused.backbone.fold_batch_norms()
        fold_batch_norms(fused.encoder)
        fold_batch_norms(fused.decoder)
        return fused
