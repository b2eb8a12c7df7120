"""`Detector`: a detector in Python, from images to detections, training, scores and files.

Everything here calls what the commands call: one preprocessing, one detection loop, one postprocessing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdetr_tool.api.images import to_pixels
from rtdetr_tool.api.keywords import data_settings, train_settings
from rtdetr_tool.api.opening import choose_device, loaded_for_deployed, open_weights, with_size
from rtdetr_tool.api.results import result_of
from rtdetr_tool.api.runtime_cache import RuntimeCache
from rtdetr_tool.api.train_arguments import read_train_arguments
from rtdetr_tool.data.preprocess import input_size, prepare_image
from rtdetr_tool.errors import DataError, UserError, nearest_multiples
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.detection_loop import detect
from rtdetr_tool.formats.opening import OpenedDetector, OpenedModel, format_of, open_model
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.formats.torch.traced_runtime import DTYPES, TracedRuntime
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Batch, Target
from rtdetr_tool.spec import ExperimentSpec

if TYPE_CHECKING:
    from rtdetr_tool.metrics.result import CocoResult
    from rtdetr_tool.training.fit_result import FitResult

logger = logging.getLogger(__name__)


class Detector:
    """A detector with its weights, classes and settings. `Detector.from_checkpoint` and the named classes make one.

    `spec` is what holds for it, `class_map` what its class indices mean (None where that is not known), `network` the
    trainable network (None for a graph or engine, which only predicts and is scored).
    """

    def __init__(self, opened: OpenedDetector | OpenedModel, source: str, device: torch.device | str = "auto") -> None:
        self.source = source
        self.device = choose_device(device)
        self._opened = opened
        self._cache = RuntimeCache()
        self._traced: dict[str, Any] | None = None  # what `optimize_for_inference` was asked for

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self.device = choose_device(self.device)
        except UserError:
            logger.warning("%s was on %s, which is not here; it predicts on the CPU", self.source, self.device)
            self.device = torch.device("cpu")

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "auto",
        num_classes: int | None = None,
        **keywords: Any,
    ) -> Detector:
        """Open weights of any known kind, a published name, an ONNX or TFLite file, or a TensorRT engine.

        Args:
            num_classes: another number of classes than the file's: its class heads then start anew.
            keywords: fields of the spec's `model` section, or of its family's section, that the file leaves open.

        Raises:
            CheckpointError: the file is missing, damaged or foreign, or keywords contradict it.
            UserError: an unknown keyword, or a file of another kind than the class that this is called on.
        """
        path, where = os.fspath(path), f"{cls.__name__}.from_checkpoint"
        opened: OpenedDetector | OpenedModel
        if format_of(path).trainable:
            opened = open_weights(path, {}, keywords, num_classes, where)
        else:
            opened = open_model(path, loaded_for_deployed(keywords, where), choose_device(device))
        from rtdetr_tool.api.variants import class_of

        kind = class_of(opened.spec.model)
        if not issubclass(kind, cls):
            raise UserError(f"{path} is a {kind.__name__}, not a {cls.__name__}; open it with Detector.from_checkpoint")
        made = kind.__new__(kind)
        Detector.__init__(made, opened, path, device)
        return made

    # What it is

    @property
    def spec(self) -> ExperimentSpec:
        return self._opened.spec

    @property
    def class_map(self) -> ClassMap | None:
        return self._opened.class_map if isinstance(self._opened, OpenedDetector) else self._opened.runtime.class_map

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their indices; empty where they are not known."""
        return [entry.name for entry in self.class_map.entries] if self.class_map else []

    @property
    def network(self) -> nn.Module | None:
        return self._opened.detector if isinstance(self._opened, OpenedDetector) else None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that images are brought to."""
        augmentation = self.spec.dataset.augmentation
        return input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)

    # Predicting

    def predict(
        self,
        images: Any,
        threshold: float = 0.5,
        shape: Sequence[int] | None = None,
        *,
        include_source_image: bool = True,
    ) -> Any:
        """What is in an image, or in each image of a list.

        Args:
            images: one or a list of paths, http(s) addresses, PIL images, arrays [H, W, 3] or tensors [3, H, W]; RGB,
                uint8 or floats 0..1.
            threshold: smallest score.
            shape: (height, width) to bring the images to instead of `input_size`.
            include_source_image: keep the image as `metadata["source_image"]`.

        Returns:
            `supervision.Detections` where that package is installed, else `PlainDetections` with the same fields;
            for a list (of one image, too) a list of them.

        Raises:
            DataError: an image cannot be read or is none.
        """
        if not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise UserError(f"predict: threshold {threshold!r} is invalid; expected 0 to 1")
        several = isinstance(images, (list, tuple))
        pictures: dict[int, Tensor] = {}
        batches = self._batches(list(images) if several else [images], self._shape(shape), pictures)
        results = []
        for batch, found in detect(self.runtime, batches, self.spec.model.num_select):
            for target, one in zip(batch.targets, found, strict=True):
                pixels = pictures.pop(target.image_id)
                source = pixels.permute(1, 2, 0).numpy() if include_source_image else None
                results.append(result_of(one.above(threshold), self.class_map, target.original_size, source))
        return results if several else results[0]

    def _batches(self, images: Sequence[Any], shape: tuple[int, int], pictures: dict[int, Tensor]) -> Iterator[Batch]:
        """Batches of prepared images, decoded when it is their turn; `pictures` gets the originals by position."""
        count = self._traced["shape"][0] if self._traced else self.spec.dataset.batch_size
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        for start in range(0, len(images), count):
            prepared, targets = [], []
            for index, image in enumerate(images[start : start + count], start):
                try:
                    pixels = pictures[index] = to_pixels(image)
                except UserError as error:
                    place = f"Image {index} of {len(images)}: " if len(images) > 1 else ""
                    kind = type(error) if isinstance(error, DataError) else DataError
                    raise kind(f"{place}{error}") from error
                one = prepare_image(pixels, shape, self.spec.dataset.augmentation.preserve_aspect_ratio)
                prepared.append(one.image)
                path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
                targets.append(Target(*nothing, index, one.original_size, one.box_scale, path))
            yield Batch(torch.stack(prepared), targets)

    def _shape(self, shape: Sequence[int] | None) -> tuple[int, int]:
        """The wanted (height, width), or that of `input_size`; UserError where the detector cannot take it."""
        if shape is None:
            height, width = self.spec.dataset.augmentation.eval_spatial_size
            return height, width
        pair = isinstance(shape, (tuple, list)) and len(shape) == 2
        if not pair or not all(isinstance(side, int) and side > 0 for side in shape):
            raise UserError(f"shape: {shape!r} is invalid; expected (height, width) in pixels")
        height, width = shape
        fixed = self.runtime.input_size
        if fixed is not None and (height, width) != fixed:
            raise UserError(f"shape: {self.source} takes inputs of {fixed[0]} x {fixed[1]} (height x width) only")
        multiple = self.spec.model.size_multiple
        for side in (height, width):
            if side % multiple:
                near = nearest_multiples(side, multiple)
                raise UserError(f"shape: {side} is invalid; expected a multiple of {multiple}, nearest: {near}")
        return height, width

    @property
    def runtime(self) -> Runtime:
        """What predicts: a deployed file's own runtime, or one for the weights that the network has now."""
        if isinstance(self._opened, OpenedModel):
            return self._opened.runtime
        return self._cache.get(self._opened.detector, self._build_runtime, sums=self._traced is None)

    def _build_runtime(self) -> Runtime:
        network = self._trainable("predict").detector
        if self._traced is None:
            return TorchRuntime(network, self.class_map, self.device)
        return TracedRuntime(network, self.class_map, self.device, **self._traced)

    def optimize_for_inference(
        self, compile: bool = True, batch_size: int = 1, dtype: torch.dtype | str = torch.float32
    ) -> None:
        """Predict with a copy that is faster; other sizes and numbers of images go on working as before.

        When the network's weights change, the copy is made anew before the next prediction; only changes in place
        through `.data` are not noticed: call this again after them.

        Args:
            compile: trace the network for `batch_size` images of `input_size`; in float32 on a CPU the weights are
                packed instead, which is faster for every size.
            dtype: float32, float16 or bfloat16.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise UserError(f"dtype: {dtype!r} is invalid; expected one of {', '.join(DTYPES)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size: {batch_size!r} is invalid; expected a number of at least 1")
        network = self._trainable("optimize_for_inference").detector
        before, self._traced = self._traced, {
            "shape": (batch_size, *self.input_size), "dtype": DTYPES[name], "trace": compile
        }  # fmt: skip
        self._cache.clear()
        try:
            self._cache.get(network, self._build_runtime, sums=False)
        except BaseException:
            self._traced = before
            raise

    def remove_optimized_model(self) -> None:
        """Undo `optimize_for_inference`; without it nothing happens."""
        if self._traced is not None:
            self._traced = None
            self._cache.clear()

    # Training and scores

    def train(
        self,
        callbacks: Sequence[Any] | Mapping[str, Any] = (),
        resume: str | os.PathLike[str] | bool | None = None,
        **keywords: Any,
    ) -> FitResult:
        """Train on a data set, starting from the weights that this detector has; it has the best ones afterwards.

        Args:
            callbacks: Lightning callbacks beside the built-in ones.
            resume: go on with an interrupted run instead: True for the newest checkpoint in `output_dir`, or a path.
            keywords: fields of the spec's `train` and `dataset` sections by their last name (`num_epochs=5`), by their
                dotted name (`**{"train.optim.lr": 1e-4}`), or by the names that users of RF-DETR know; the table is in
                docs/python_api.md.

        Raises:
            UserError: an unknown keyword, a data set that cannot be used, or `output_dir` holds another run.
        """
        from rtdetr_tool.api.training import train

        opened = self._trainable("train")
        family = opened.spec.model.family
        arguments = read_train_arguments(callbacks, keywords, family.deprecated_keywords)
        settings = train_settings(arguments.keywords, family)
        result, trained = train(opened, settings, resume, arguments)
        if trained is not None:
            self._opened, self.source = trained, str(result.best_path or result.latest_path)
        if arguments.run_test and trained is not None:
            data = {name: value for name, value in settings.items() if name.startswith("dataset.")}
            scores = self.evaluate("test", **data)
            result.metrics.update({"test_mAP": scores.map, "test_mAP50": scores.map50})
        return result

    def evaluate(self, split: str = "test", conf_threshold: float = 0.0, **keywords: Any) -> CocoResult:
        """COCO metrics on the `test` or `val` split of a data set, the numbers of `rtdetr evaluate`.

        Args:
            conf_threshold: leave out detections with a lower score.
            keywords: fields of the spec's `dataset` section, such as `test_data_sources` or `batch_size`, and
                `max_dets` of its `evaluate` section.

        Raises:
            CheckpointError: keywords contradict how the detector was trained.
        """
        from rtdetr_tool.api.training import evaluate, scoring_spec

        if split not in ("test", "val"):
            raise UserError(f"evaluate: split {split!r} is invalid; expected 'test' or 'val'")
        spec = scoring_spec(self.spec, data_settings(keywords), self.source, self.class_map, self.runtime.input_size)
        return evaluate(OpenedModel(self.runtime, spec), split, conf_threshold)

    # Files

    def export(
        self,
        output_dir: str | os.PathLike[str] = "output",
        *,
        shape: Sequence[int] | None = None,
        batch_size: int = 1,
        dynamic_batch: bool = False,
        output_name: str | None = None,
        calibration_data: Any = None,
        **keywords: Any,
    ) -> Path:
        """Write the detector as ONNX, or TFLite (`format="tflite"`), compared with torch before it counts as written.

        Args:
            shape: (height, width) of the input; None = `input_size`.
            batch_size: of the graph, unless `dynamic_batch`.
            output_name: of the file, without suffix; None = the kind of detector, such as
                `rtdetr-resnet_50`.
            calibration_data: images for TFLite's INT8: a folder, an array file, or an array [N, H, W, 3].
            keywords: fields of the spec's `export` section, such as `opset_version`, `notes` or `overwrite`; for TFLite
                `quantization` (fp32, fp16, int8) and `max_images`.
        """
        from rtdetr_tool.api.export import export

        folder = Path(output_dir)
        opened = with_size(self._trainable("export"), self._shape(shape))
        base = {
            "export.onnx_file": str(folder / f"{output_name or self.name}.onnx"),
            "export.results_dir": str(folder),
            "export.batch_size": -1 if dynamic_batch else batch_size,
            "export.checkpoint": self.source,
            "export.on_cpu": self.device.type == "cpu",
        }
        return export(opened, base, keywords, calibration_data)

    def export_for_roboflow(self, output_dir: str | os.PathLike[str]) -> None:
        """Write what Roboflow accepts for an upload, `weights.pt` and `class_names.txt`; nothing is sent.

        Families that Roboflow accepts implement it.
        """
        title = self.spec.model.family.title
        raise UserError(f"export_for_roboflow: Roboflow does not accept {title}; export it with export() instead")

    @property
    def name(self) -> str:
        """The kind of detector, for file names, such as `rtdetr-resnet_50`."""
        return self.spec.model.kind.replace("/", "-")

    def __repr__(self) -> str:
        known = f"{len(self.class_map)} classes" if self.class_map else f"{self.spec.dataset.num_classes} class logits"
        height, width = self.input_size
        return f"{type(self).__name__}({self.name}, {known}, {height} x {width}, {self.source})"

    def _trainable(self, what: str) -> OpenedDetector:
        if isinstance(self._opened, OpenedDetector):
            return self._opened
        raise UserError(f"{what}: {self.source} is a deployed file, which predicts and is scored; open its checkpoint")
