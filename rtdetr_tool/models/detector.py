"""What every detector has in common: backbone, encoder and decoder, parts of which may be frozen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn

from rtdetr_tool.errors import UserError


class Detector(nn.Module):
    """The base of the families. `forward(images, targets)` gives `Predictions`, `features(images)` the maps that the
    decoder reads, `deploy()` a copy for inference."""

    decoder_layers: tuple[str, ...] = ()  # how the names of the decoder's layers start, without queries and heads
    size_multiple: int = 32  # height and width of an image must be multiples of this: the stride of the coarsest level
    static_batch: int | None = None  # the one batch size that can be exported; None = any

    def __init__(self, backbone: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self._frozen: list[str] = []

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

    def fix_pretrained_norms(self) -> None:
        """Fix what a pretrained backbone of this kind does not learn: a ResNet's stem and norms, nothing of others."""
        if hasattr(self.backbone, "freeze_stem_and_norms"):
            self.backbone.freeze_stem_and_norms()

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self
