"""What a request is answered with: decoded images, thresholds, detections as JSON rows, metadata of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.decoding import content_size, decode_content
from rtdetr_tool.data.image_formats import FORMATS
from rtdetr_tool.data.preprocess import PreparedImage, input_size, prepare_image
from rtdetr_tool.errors import DataError, UserError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.opening import format_of, open_model
from rtdetr_tool.formats.requested_size import RequestedSize
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, ServeSpec
from rtdetr_tool.version import package_version
from rtdetr_tool.workflows.inference import resolve_classes
from rtdetr_tool.workflows.kitti import CocoRow, coco_rows, with_category
from rtdetr_tool.workflows.thresholds import score_thresholds


@dataclass(frozen=True)
class Options:
    """What a request may choose.

    Args:
        thresholds: minimum score by class index, [C].
        max_detections: largest number of detections of an image; None = those of the model.
    """

    thresholds: Tensor
    max_detections: int | None = None


@dataclass(frozen=True)
class Predictor:
    """An opened model with its classes. All methods may be called from several threads at once."""

    section: ServeSpec
    runtime: Runtime
    spec: ExperimentSpec
    class_map: ClassMap
    thresholds: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        augmentation = self.spec.dataset.augmentation
        return input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)

    def prepare(self, content: bytes, name: str) -> PreparedImage:
        """Decode and resize the content of an image file; DataError, naming the image, if that is impossible."""
        width, height = content_size(content, name)
        if width * height > self.section.max_pixels:
            raise DataError(
                f"Cannot read image {name}: its size of {width}x{height} is above the limit of "
                f"{self.section.max_pixels} pixels (serve.max_pixels). Reduce its size."
            )
        augmentation = self.spec.dataset.augmentation
        image = decode_content(content, name, pixel_format_of(self.spec))
        return prepare_image(image, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)

    def options(self, threshold: float | None, of_classes: Mapping[str, float], most: int | None) -> Options:
        """The options of a request; UserError for an unknown class.

        `threshold` replaces all thresholds of the spec, and `of_classes` then those of single classes, by name.
        """
        thresholds = self.thresholds if threshold is None else torch.full_like(self.thresholds, threshold)
        if not of_classes:
            return Options(thresholds, most)
        index_of, thresholds = {entry.name: entry.index for entry in self.class_map.entries}, thresholds.clone()
        for name, value in of_classes.items():
            if name not in index_of:
                expected = first_of(list(index_of), 12)
                raise UserError(f"class_threshold: {name!r} is not a class of the model; expected {expected}")
            thresholds[index_of[name]] = value
        return Options(thresholds, most)

    def rows(self, detections: Detections, options: Options) -> list[CocoRow]:
        """The detections as in `predictions.json` of `rtdetr inference`, without `image_id`."""
        kept = with_category(detections.above(options.thresholds), self.class_map)
        if options.max_detections is not None and options.max_detections < len(kept):
            kept = kept.select([position < options.max_detections for position in range(len(kept))])
        return coco_rows(kept, self.class_map)

    def metadata(self) -> dict[str, Any]:
        """The content of `GET /metadata`."""
        section = self.section
        return {
            "name": "rtdetr",
            "version": package_version(),
            "model": {
                "file": Path(section.checkpoint).name,
                "format": format_of(section.checkpoint).name,
                "runtime": self.runtime.name,
                "device": str(self.runtime.device),
                "predicts": self.spec.model.predicts,
                "input": dict(zip(("height", "width"), self.size, strict=True)),
                "num_channels": self.spec.model.num_channels,
                "preserve_aspect_ratio": self.spec.dataset.augmentation.preserve_aspect_ratio,
                "max_detections": self.spec.model.num_select,
            },
            "classes": self.class_map.to_list(),
            "thresholds": {
                entry.name: round(float(self.thresholds[entry.index]), 6) for entry in self.class_map.entries
            },
            "image_formats": list(FORMATS),
            "limits": {
                "images": section.max_images,
                "megabytes": section.max_body,
                "pixels": section.max_pixels,
                "seconds": section.timeout,
                "queue": section.max_queue,
            },
            "batching": {"max_batch_size": section.max_batch_size, "max_delay_ms": section.max_delay},
        }


def open_predictor(loaded: LoadedSpec) -> Predictor:
    """Open the model of the `serve` section on its device."""
    section = loaded.spec.serve
    size = RequestedSize(section.input_height, section.input_width, "serve")
    model = open_model(
        section.checkpoint, loaded, choose_device(section), section.onnx_provider, size, section.precision,
        section.compile,
    )  # fmt: skip
    runtime, spec = model.runtime, model.spec
    class_map = resolve_classes(runtime.class_map, section.classmap, spec.dataset.num_classes, "serve.classmap")
    return Predictor(section, runtime, spec, class_map, score_thresholds(section, class_map, "serve"))


def choose_device(section: ServeSpec) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if section.on_cpu or not count:
        return torch.device("cpu")
    if section.gpu_id >= count:
        raise UserError(f"serve.gpu_id: {section.gpu_id} is invalid; this machine has {count} GPU(s), from 0")
    return torch.device("cuda", section.gpu_id)
