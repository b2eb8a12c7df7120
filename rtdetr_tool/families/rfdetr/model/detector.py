"""RF-DETR (Robinson et al. 2025, arXiv:2511.09554): a windowed ViT, a projector, LW-DETR's decoder.

Shape legend: B batch, H, W input size (multiples of patch size times windows), Q queries, C class logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.checkpoints.renames import split_by_prefix
from rtdetr_tool.families.rfdetr.model.decoder import Decoded, RFDETRDecoder, without_later
from rtdetr_tool.families.rfdetr.model.keypoint_decoder import KeypointDecoder
from rtdetr_tool.families.rfdetr.model.mask_head import MaskHead
from rtdetr_tool.families.rfdetr.model.projector import MultiScaleProjector
from rtdetr_tool.models.backbones.single_stride import SingleStrideBackbone
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.structures import Predictions, Target


class RFDETR(Detector):
    """A detector from images to raw predictions. Images are normalized inside the model, not in the data pipeline.

    `segmentation_head` reads the finest level and the decoder's query content. Keypoints have queries of their own in
    the decoder (`KeypointDecoder`).

    Args:
        second_encoder: another projector, of the levels that the decoder attends to.
        keypoints_only: only keypoints attend to the levels of `second_encoder`.
    """

    backbone: SingleStrideBackbone
    encoder: MultiScaleProjector
    decoder: RFDETRDecoder
    decoder_layers = ("decoder.layers.", "decoder.norm.", "decoder.ref_point_head.")

    def __init__(
        self,
        backbone: SingleStrideBackbone,
        encoder: MultiScaleProjector,
        decoder: RFDETRDecoder,
        segmentation_head: MaskHead | None = None,
        second_encoder: MultiScaleProjector | None = None,
        keypoints_only: bool = False,
    ) -> None:
        super().__init__(backbone, encoder, decoder)
        self.segmentation_head = segmentation_head
        self.second_encoder, self.keypoints_only = second_encoder, keypoints_only

    @property
    def predicts(self) -> str:
        if self.segmentation_head is not None:
            return MASKS
        return KEYPOINTS if isinstance(self.decoder, KeypointDecoder) else BOXES

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.backbone.size_multiple

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, 3, H, W] RGB 0..1; `targets` are not used, because RF-DETR has no denoising queries."""
        maps = self.backbone(images)
        levels: list[Tensor] = self.encoder(maps)
        decoded = self._decode(levels, None if self.second_encoder is None else self.second_encoder(maps))
        if self.segmentation_head is None:
            return decoded.predictions
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return replace(decoded.predictions, **self.segmentation_head(levels[0], decoded, size))

    def _decode(self, levels: list[Tensor], other: list[Tensor] | None) -> Decoded:
        """The decoder's output; `other` are the levels of the second projector."""
        decoded: Decoded
        if isinstance(self.decoder, KeypointDecoder):
            decoded = self.decoder(levels, other, self.keypoints_only)
        else:
            decoded = self.decoder(levels, None if self.keypoints_only else other)
        return decoded

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.encoder(self.backbone(images))
        return levels

    def run_as(self, **choices: int) -> None:
        """Choices: `decoder_layers`, `num_queries`, `num_windows`, `patch_size`."""
        of_backbone = {name: choices.pop(name) for name in ("num_windows", "patch_size") if name in choices}
        self.backbone.run_as(**of_backbone)
        self.decoder.run_as(**choices)
        if self.segmentation_head is not None:
            self.segmentation_head.depth = self.decoder.depth

    def skipped(self) -> list[nn.Parameter]:
        blocks = () if self.segmentation_head is None else self.segmentation_head.blocks[self.decoder.depth :]
        return [*self.decoder.skipped(), *(weight for block in blocks for weight in block.parameters())]

    def forget_data(self) -> None:
        """How precise keypoints are."""
        if isinstance(self.decoder, KeypointDecoder):
            self.decoder.forget_precision()

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with position and patch embeddings of the backbone resized to this model, without extra groups,
        queries and decoder layers."""
        backbone, remaining = split_by_prefix(weights, "backbone.")
        resized = {f"backbone.{name}": tensor for name, tensor in self.backbone.resize_weights(backbone).items()}
        if self.segmentation_head is not None:
            remaining = without_later(remaining, "segmentation_head.blocks.", len(self.segmentation_head.blocks))
        return self.decoder.resize_weights({**resized, **remaining}, "decoder.")

    def deploy(self) -> RFDETR:
        """A copy for inference and export with one group of queries, folded normalization and layer scales, and
        without unused blocks. It has the same outputs up to rounding and cannot be trained.
        """
        lean = copy.deepcopy(self).eval().requires_grad_(False)
        lean.decoder.keep_groups(1)
        lean.backbone.fold_for_inference()
        return lean.requires_grad_(False)
