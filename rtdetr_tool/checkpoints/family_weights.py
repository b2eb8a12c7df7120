"""How a model family reads weight files: the interface of `families/<name>/weights.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import DEFAULT_FAMILY, Family, all_families, family_named

if TYPE_CHECKING:
    from rtdetr_tool.checkpoints.detector_file import DetectorFile
    from rtdetr_tool.checkpoints.identify import Identified

Tensors = Mapping[str, Tensor]


class Recognized(NamedTuple):
    """The recognized format of a file of another program."""

    what: str  # for messages, such as "an official RT-DETRv2 checkpoint"
    version: int = 1


class ForeignFormat(NamedTuple):
    """A file format of another program for the weights of a family."""

    kind: str
    recognize: Callable[[Tensors], Recognized | None]  # by the names of the tensors
    convert: Callable[[Tensors], dict[str, Tensor]]  # to our names; CheckpointError if a tensor has no counterpart
    holds_epoch: bool = False  # its checkpoints store the last completed epoch, so that training can resume


class FileContents(NamedTuple):
    """A loaded file and its path."""

    identified: Identified
    payload: Mapping[str, Any]
    path: Path  # of the weights
    from_directory: bool  # the user gave the directory of `path`


class Writer(Protocol):
    """Writes a detector in the format of another program."""

    def __call__(self, target: Path, weights: Tensors, meta: Mapping[str, Any]) -> list[str]:
        """Write weights with our names and complete metadata; returns messages about parts that cannot be converted.

        Raises:
            CheckpointError: the detector has parts that the other program does not have.
        """


class WeightsModule(Protocol):
    """How to read the weights of a family from the files of several programs."""

    FORMATS: tuple[ForeignFormat, ...]
    WRITERS: Mapping[str, Writer]  # another program's layout that `convert --to` writes

    def is_complete(self, weights: Tensors) -> bool:
        """Whether these tensors, with our names, are a detector of the family."""

    def native_names(self, weights: Tensors) -> dict[str, Tensor]:
        """Weights with TAO's names under our names; only some backbones differ."""

    def describe(self, file: DetectorFile, contents: FileContents, given: Mapping[str, Any]) -> None:
        """Fill in `meta` and `notes` of another program's file.

        Args:
            given: fields of `model` that the user set; they decide what the file leaves open.
        """

    def summary(self, model: Mapping[str, Any], classes: int) -> str:
        """One line about the architecture, for the log."""

    def read_backbone(self, source: str, model: Any) -> dict[str, Tensor]:
        """The backbone's tensors for `model.pretrained_backbone_path`, from a file or from timm."""


def weights_of(family: Family) -> WeightsModule:
    return cast(WeightsModule, family.module("weights"))


def writer_of(family: Family, layout: str) -> Writer:
    """The writer of the family's detectors for another program's format; CheckpointError if there is none."""
    writer = weights_of(family).WRITERS.get(layout)
    if writer is None:
        raise CheckpointError(
            f"model.arch {family.name} cannot be written for {layout}, which has no {family.title}; write it as a file "
            "of this tool (--to rtdetr)"
        )
    return writer


def family_of_tensors(weights: Tensors) -> Family:
    """The family of a detector's tensors with our names; the default family if none recognizes them."""
    known = (family for family in all_families() if weights_of(family).is_complete(weights))
    return next(known, family_named(DEFAULT_FAMILY))
