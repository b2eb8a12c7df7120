"""RF-DETR (Robinson et al. 2025, arXiv:2511.09554): a windowed DINOv2, a projector, LW-DETR's decoder.

Shape legend: B batch, H, W input size (multiples of patch size times windows), Q queries, C class logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from rtdetr_tool.checkpoints.renames import split_by_prefix
from rtdetr_tool.families.rfdetr.model.decoder import Decoded, RFDETRDecoder
from rtdetr_tool.families.rfdetr.model.mask_head import MaskHead
from rtdetr_tool.families.rfdetr.model.projector import MultiScaleProjector
from rtdetr_tool.models.backbones.dinov2_windowed import WindowedDinov2
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.structures import Predictions, Target


class RFDETR(Detector):
    """A detector from images to raw predictions. Images are normalized inside the model, not in the data pipeline.

    Additional heads read the finest level and the decoder's query content, as `segmentation_head` does.
    """

    backbone: WindowedDinov2
    encoder: MultiScaleProjector
    decoder: RFDETRDecoder
    decoder_layers = ("decoder.layers.", "decoder.norm.", "decoder.ref_point_head.")

    def __init__(
        self,
        backbone: WindowedDinov2,
        encoder: MultiScaleProjector,
        decoder: RFDETRDecoder,
        segmentation_head: MaskHead | None = None,
    ) -> None:
        super().__init__(backbone, encoder, decoder)
        self.segmentation_head = segmentation_head

    @property
    def has_masks(self) -> bool:
        """Whether there is a segmentation head."""
        return self.segmentation_head is not None

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.backbone.size_multiple

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, 3, H, W] RGB 0..1; `targets` are not used, because RF-DETR has no denoising queries."""
        levels = self.features(images)
        decoded: Decoded = self.decoder(levels)
        if self.segmentation_head is None:
            return decoded.predictions
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return replace(decoded.predictions, **self.segmentation_head(levels[0], decoded, size))

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.encoder(self.backbone(images))
        return levels

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the ViT's position and patch embeddings resized to this model, without extra groups and
        queries."""
        vit, remaining = split_by_prefix(weights, "backbone.")
        resized = {f"backbone.{name}": tensor for name, tensor in self.backbone.resize_weights(vit).items()}
        return self.decoder.resize_weights({**resized, **remaining}, "decoder.")

    def deploy(self) -> RFDETR:
        """A copy for inference and export with one group of queries, folded normalization and layer scales, and
        without unused blocks. It has the same outputs up to rounding and cannot be trained.
        """
        lean = copy.deepcopy(self).eval().requires_grad_(False)
        lean.decoder.keep_groups(1)
        lean.backbone.fold_for_inference()
        return lean.requires_grad_(False)
