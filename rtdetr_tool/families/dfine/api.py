"""D-FINE in the Python API: a class for each published variant."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import open_variant
from rtdetr_tool.errors import UserError
from rtdetr_tool.spec import ModelSpec

__all__ = ["DFINE", "DFINELarge", "DFINEMedium", "DFINENano", "DFINESmall", "DFINEXLarge"]


class DFINE(Detector):
    """A D-FINE; its subclasses are the published variants.

    Args:
        pretrain_weights: a file of this tool, the official D-FINE or transformers, or a published name; None for random
            weights.
        num_classes: by default that of the weights, or 80.
        keywords: fields of `model.dfine` (`num_queries=100`) and of `model` (`pretrained_backbone_path="timm"`).
    """

    variant: ClassVar[str] = ""

    def __init__(
        self,
        pretrain_weights: str | os.PathLike[str] | None = None,
        num_classes: int | None = None,
        device: torch.device | str = "auto",
        **keywords: Any,
    ) -> None:
        where = type(self).__name__
        if not self.variant:
            raise UserError(
                "DFINE is the base class of DFINENano, DFINESmall, ...; create one of these, or open a file with "
                "DFINE.from_checkpoint"
            )
        base = {"model.arch": "dfine", "model.dfine.variant": self.variant}
        super().__init__(*open_variant(pretrain_weights, base, keywords, num_classes, where), device)


class DFINENano(DFINE):
    variant = "n"


class DFINESmall(DFINE):
    variant = "s"


class DFINEMedium(DFINE):
    variant = "m"


class DFINELarge(DFINE):
    variant = "l"


class DFINEXLarge(DFINE):
    variant = "x"


VARIANTS: dict[str, type[DFINE]] = {kind.variant: kind for kind in DFINE.__subclasses__()}


def class_of(model: ModelSpec) -> type[DFINE]:
    """The class of a detector with this `model` section."""
    return VARIANTS[model.dfine.variant]
