"""Steps of the Albumentations library, from the dictionaries that its `to_dict` writes.

They are applied to the decoded image before all other steps. The package is an extra: albumentations (MIT), or the
successor albumentationsx, which has the same module name and is licensed under AGPL 3.0 or commercially.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtdetr_tool.data.scene import MaskReader, Scene
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_line

logger = logging.getLogger(__name__)

FIELD = "dataset.augmentation.albumentations"
_INSTALL = f'{FIELD} requires albumentations: pip install "rtdetr-tool[albumentations]"'


class AlbumentationsSteps:
    """A sequence of transforms that depends only on the generator that it is called with.

    Raises:
        DataError: the package is missing, or an entry is invalid.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        if find_spec("albumentations") is None:
            raise DataError(_INSTALL)
        self.entries = list(entries)
        self._compose: Any = _compose(self.entries)
        self.changes_geometry = not all(_is_pixel_only(step) for step in self._compose.transforms)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compose": None}  # built again in the worker process

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        if self._compose is None:
            self._compose = _compose(self.entries)
        self._compose.set_random_seed(int(rng.integers(2**31)))
        masks = scene.masks
        arguments = {"image": np.ascontiguousarray(scene.image.permute(1, 2, 0).numpy())}
        if self.changes_geometry:
            arguments |= {"bboxes": scene.boxes, "objects": np.arange(len(scene.boxes))}
            if masks is not None and len(scene.boxes):
                arguments["masks"] = np.ascontiguousarray(masks(np.arange(len(scene.boxes))))
        try:
            result = self._compose(**arguments)
        except Exception as error:  # any type, from any transform
            raise DataError(
                f"{FIELD}: failed on an image of {_size(arguments['image'])}: {first_line(error)}"
            ) from error
        image = torch.from_numpy(_checked(result["image"], arguments["image"])).permute(2, 0, 1)
        if not self.changes_geometry:
            return replace(scene, image=image)
        kept = np.array(result["objects"], dtype=np.int64)
        boxes = np.array(result["bboxes"], dtype=np.float64).reshape(-1, 4)
        changed = replace(scene.select(kept), image=image, boxes=boxes)
        return replace(changed, masks=None if masks is None else _reader(result.get("masks"), kept, image.shape[1:]))


def _compose(entries: Sequence[Mapping[str, Any]]) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # parallelism comes from the worker processes
    steps = [_transform(albumentations, entry, index) for index, entry in enumerate(entries)]
    boxes = albumentations.BboxParams("pascal_voc", label_fields=["objects"], clip=True, filter_invalid_bboxes=True)
    pixel_only = all(_is_pixel_only(step) for step in steps)
    return albumentations.Compose(steps, bbox_params=None if pixel_only else boxes)


def _transform(albumentations: Any, entry: Mapping[str, Any], index: int) -> Any:
    name = entry.get("__class_fullname__")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # about unknown arguments
            return albumentations.from_dict({"transform": dict(entry)})
    except KeyError as error:
        raise DataError(f"{FIELD}[{index}]: Albumentations {_version()} has no transform {error}") from error
    except Exception as error:  # of the library's own checks
        raise DataError(f"{FIELD}[{index}]: {name} is invalid: {first_line(error)}") from error


def _is_pixel_only(step: Any) -> bool:
    """Whether a transform, or each part of a composition, leaves objects where they are."""
    import albumentations

    parts = getattr(step, "transforms", None)
    if parts is not None:
        return all(_is_pixel_only(part) for part in parts)
    return isinstance(step, (albumentations.ImageOnlyTransform, albumentations.NoOp))


def _checked(image: Any, original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The result of the transforms; `DataError` unless it is an image like the original."""
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.shape[2] != original.shape[2]:
        raise DataError(
            f"{FIELD}: the result has {image.shape[2]} channels of {image.dtype}; expected {original.shape[2]} of "
            "uint8. Remove transforms such as Normalize, ToFloat and ToTensorV2: images are normalized by the model"
        )
    return np.ascontiguousarray(image)


def _reader(masks: Any, kept: NDArray[np.int64], size: Sequence[int]) -> MaskReader:
    array = np.zeros((0, *size), np.uint8) if masks is None else np.asarray(masks, dtype=np.uint8)[kept]
    return lambda indices: array[indices]


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]} pixels"


def log_package() -> None:
    """Log the installed package and its license."""
    if "albumentationsx" in set(_installed()):
        logger.info("Using AlbumentationsX %s, which is licensed under AGPL 3.0 or commercially", _version())
    else:
        logger.info("Using Albumentations %s (MIT license)", _version())


def _installed() -> Iterator[str]:
    from importlib.metadata import packages_distributions

    return (name.lower() for name in packages_distributions().get("albumentations", []))


def _version() -> str:
    import albumentations

    return str(albumentations.__version__)
