"""What a model family knows about files of weights: the contract of `families/<name>/weights.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from torch import Tensor

from rtdetr_tool.families import DEFAULT_FAMILY, Family, all_families, family_named

if TYPE_CHECKING:
    from rtdetr_tool.checkpoints.detector_file import DetectorFile
    from rtdetr_tool.checkpoints.layout import Layout

Tensors = Mapping[str, Tensor]


class Recognized(NamedTuple):
    """What another program's file is."""

    what: str  # for people, such as "an official RT-DETRv2 checkpoint"
    version: int = 1


class ForeignFormat(NamedTuple):
    """A format in which another program keeps a family's weights."""

    kind: str
    recognize: Callable[[Tensors], Recognized | None]  # by the names of the tensors
    convert: Callable[[Tensors], dict[str, Tensor]]  # to our names; CheckpointError where a tensor has no counterpart
    holds_epoch: bool = False  # its checkpoints say which epoch of training has ended, so that a run can resume there


class FileContents(NamedTuple):
    """A loaded file and what it was loaded from."""

    layout: Layout
    payload: Mapping[str, Any]
    path: Path  # of the weights
    from_directory: bool  # the user named the directory of `path`


class WeightsModule(Protocol):
    """Which files hold a family's weights, and what they say."""

    FORMATS: tuple[ForeignFormat, ...]

    def is_complete(self, weights: Tensors) -> bool:
        """Whether these tensors, by our names, are a detector of the family."""

    def own_names(self, weights: Tensors) -> dict[str, Tensor]:
        """Our names for those of TAO, which differ for some backbones only."""

    def describe(self, file: DetectorFile, contents: FileContents, given: Mapping[str, Any]) -> None:
        """Fill in `meta` and `notes` of another program's file.

        Args:
            given: fields of `model` that the user gave; they decide where the file leaves a choice.
        """

    def summary(self, model: Mapping[str, Any], classes: int) -> str:
        """The architecture in a line."""

    def read_backbone(self, source: str, model: Any) -> dict[str, Tensor]:
        """The backbone's tensors for `model.pretrained_backbone_path`, from a file or from timm."""


def weights_of(family: Family) -> WeightsModule:
    return cast(WeightsModule, family.module("weights"))


def family_of_tensors(weights: Tensors) -> Family:
    """The family of a detector's tensors by our names; the default one where no family knows them."""
    known = (family for family in all_families() if weights_of(family).is_complete(weights))
    return next(known, family_named(DEFAULT_FAMILY))
