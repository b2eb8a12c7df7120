"""The base class of detectors: backbone, encoder and decoder, parts of which may be frozen."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.ops.batch_norm import fix_batch_norms
from rtdetr_tool.ops.structures import Predictions, Target


class Detector(nn.Module):
    """The base class of the families. `forward(images, targets)` returns `Predictions`, `features(images)` the maps
    that the decoder reads, and `deploy()` a copy for inference."""

    backbone: ImageBackbone
    decoder_layers: tuple[str, ...] = ()  # prefixes of names of the decoder's layers, without queries and heads
    fuses_levels: bool = False  # the encoder fuses its levels, and its output has them before fusion as `projected`
    selects_queries: bool = False  # `decoder.decoder` gets boxes and tokens that `decoder.enc_score_head` ranks
    static_batch: int | None = None  # the one batch size that can be exported; None = any

    def __init__(self, backbone: ImageBackbone, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self._frozen: list[str] = []

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this: by default the stride of the coarsest level."""
        return 32

    @property
    def num_channels(self) -> int:
        """The channels of images: 3 = RGB."""
        return self.backbone.num_channels

    @property
    def predicts(self) -> str:
        """What it predicts for each object, one of `catalog.PREDICTS`."""
        return BOXES

    @abstractmethod
    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        """images [B, C, H, W] 0..1, mostly RGB; in training mode, `targets` may feed denoising queries."""

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that the decoder reads."""

    @abstractmethod
    def deploy(self) -> Detector:
        """A copy for inference and export. It cannot be trained."""

    def run_as(self, **choices: int) -> None:
        """Run as a sub-detector with the same weights from now on, in training and in eval mode.

        Args:
            choices: the values of choices of `train.supernet` that the family has; the others are the whole model's.
        """
        if choices:
            raise UserError(f"{type(self).__name__} has no sub-detectors with other values of {', '.join(choices)}")

    def skipped(self) -> list[nn.Parameter]:
        """The parameters that take no part in the sub-detector of `run_as`."""
        return []

    def forget_data(self) -> None:
        """Reset what only holds for the data that weights were trained on, before they are trained on other data."""

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze the modules with these dotted names, and keep them in eval mode."""
        known = dict(self.named_modules())
        for name in names:
            if name not in known or not name:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise UserError(f"train.freeze: the detector has no module {name!r}{hint}")
            known[name].requires_grad_(False)
            self._frozen.append(name)
        self.train(self.training)

    def freeze_published(self) -> None:
        """Freeze the backbone except for layers that are not in published files."""
        self.freeze([f"backbone.{self.backbone.published_name}".rstrip(".")])

    def freeze_backbone(self, norms: bool, stages: int) -> int:
        """Freeze all batch norms of the backbone, its stem (0) and this number of first stages; -1 = no stage.

        Returns the number of frozen norms. UserError if the backbone does not consist of a stem and stages.
        """
        parts = self.backbone.freezable_parts
        if parts is None and (norms or stages >= 0):
            raise UserError(
                "model.freeze_norm and model.freeze_at are only supported with backbones that consist of a stem and "
                "stages, such as ResNets; use train.freeze to freeze modules by name"
            )
        if parts is not None and stages >= 0:
            self.freeze(f"backbone.{name}" for part in parts[: stages + 1] for name in part)
        return fix_batch_norms(self.backbone) if norms else 0

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self
