"""RF-DETR (Robinson et al. 2025, arXiv:2511.09554): a windowed DINOv2, a projector, LW-DETR's decoder.

Shape legend: B batch, H, W input size (multiples of patch size times windows), Q queries, C class logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor

from rtdetr_tool.models.backbones.dinov2_windowed import WindowedDinov2
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.models.rfdetr.decoder import RFDETRDecoder
from rtdetr_tool.models.rfdetr.projector import MultiScaleProjector
from rtdetr_tool.ops.structures import Predictions, Target


class RFDETR(Detector):
    """A detector from images to raw predictions. ImageNet's normalisation belongs to the model, not to the data.

    Heads for masks or keypoints would be further children that read what `encoder` and `decoder` give.
    """

    backbone: WindowedDinov2
    encoder: MultiScaleProjector
    decoder: RFDETRDecoder

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.backbone.size_multiple

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, 3, H, W] RGB 0..1; `targets` are not read: RF-DETR has no denoising queries."""
        return self.decoder(self.encoder(self.backbone(images)))

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by our names with a ViT's positions and patches of this model's sizes; of groups and queries that the
        file has beyond this model's, the first ones stay."""
        start = "backbone."
        own = {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}
        others = {name: tensor for name, tensor in weights.items() if not name.startswith(start)}
        fitted = {f"{start}{name}": tensor for name, tensor in self.backbone.fitted(own).items()}
        return self.decoder.fitted({**fitted, **others}, "decoder.")

    def deploy(self) -> RFDETR:
        """A copy for inference and export: one group of queries, normalisation and layer scales folded, unused blocks
        gone. Same outputs up to rounding, less work. The copy cannot be trained.
        """
        lean = copy.deepcopy(self).eval().requires_grad_(False)
        lean.decoder.keep_groups(1)
        lean.backbone.fold_for_inference()
        return lean.requires_grad_(False)
