"""RT-DETR (Zhao et al. 2023, arXiv:2304.08069): backbone, hybrid encoder, decoder.

Shape legend: B batch, H, W input size (multiples of 32), Q queries, C classes.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.layers import fold_batch_norms, fuse_reparameterized
from rtdetr_tool.ops.structures import Predictions, Target


class RTDETR(nn.Module):
    """A detector from images to raw predictions.

    Parameter names below `backbone`, `encoder` and `decoder` are those of the public RT-DETR and of TAO's checkpoints.
    Every input size that is a multiple of 32 works, in training and in eval mode.
    """

    static_batch: int | None = None  # the one batch size that can be exported; None = any

    def __init__(self, backbone: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self._frozen: list[str] = []

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, 3, H, W] RGB 0..1. In training mode `targets` feed the denoising queries (none without them)."""
        return self.decoder(self.encoder(self.backbone(images)).maps, targets)

    def freeze(self, names: Iterable[str]) -> None:
        """Stop training the modules with these dotted names and keep them in eval mode from now on."""
        known = dict(self.named_modules())
        for name in names:
            if name not in known or not name:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
                hint = f"; near: {', '.join(near)}" if near else ""
                raise UserError(f"freeze: the detector has no module '{name}'{hint}")
            known[name].requires_grad_(False)
            self._frozen.append(name)
        self.train(self.training)

    def train(self, mode: bool = True) -> RTDETR:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def deploy(self) -> RTDETR:
        """A copy for inference and export: RepVGG blocks are single convolutions, batch norms are folded into theirs.

        Same outputs up to rounding, less work. The copy cannot be trained.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        fuse_reparameterized(fused)
        fused.backbone.fold_batch_norms()
        fold_batch_norms(fused.encoder)
        fold_batch_norms(fused.decoder)
        return fused
