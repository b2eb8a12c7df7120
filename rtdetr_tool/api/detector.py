"""`Detector`: predict, train, evaluate and export from Python.

It uses the same preprocessing, detection loop and postprocessing as the commands.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rtdetr_tool.api.keywords import data_settings, train_settings
from rtdetr_tool.api.opening import choose_device, loaded_for_deployed, open_weights, with_size
from rtdetr_tool.api.prediction import Prediction, check_batch_size, check_shape, check_threshold, is_lazy
from rtdetr_tool.api.runtime_cache import RuntimeCache
from rtdetr_tool.api.train_arguments import read_train_arguments
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.data.video_container import require_video
from rtdetr_tool.data.video_formats import video_source
from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.opening import OpenedDetector, OpenedModel, format_of, open_model
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec

if TYPE_CHECKING:
    from rtdetr_tool.data.video import VideoFrame
    from rtdetr_tool.metrics.result import CocoResult
    from rtdetr_tool.training.fit_result import FitResult

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Optimization:
    """The settings of `optimize_for_inference`."""

    dtype: torch.dtype
    compiled: bool
    batch_size: int


class Detector:
    """A detector with its weights, classes and settings; created by `Detector.from_checkpoint` or a named class.

    `spec` is its resolved spec, `class_map` maps class indices to names (None if unknown), and `network` is the
    trainable network (None for a graph or engine, which can only predict and be evaluated).
    """

    def __init__(self, opened: OpenedDetector | OpenedModel, source: str, device: torch.device | str = "auto") -> None:
        self.source = source
        self.device = choose_device(device)
        self._opened = opened
        self._cache = RuntimeCache()
        self._optimized: _Optimization | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self.device = choose_device(self.device)
        except UserError:
            logger.warning("%s: falling back to the CPU, because %s is not available here", self.source, self.device)
            self.device = torch.device("cpu")

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "auto",
        num_classes: int | None = None,
        **keywords: Any,
    ) -> Detector:
        """Open weights in any supported format, published weights by name, an ONNX or TFLite file, or an engine.

        Args:
            num_classes: if it differs from the file's, the class heads are initialized from scratch.
            keywords: fields of the spec's `model` section, or of its family's section, that the file does not record.

        Raises:
            CheckpointError: the file is missing, corrupted or not supported, or keywords contradict it.
            UserError: a keyword is unknown, or the file contains a detector of another class.
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

    # Properties

    @property
    def spec(self) -> ExperimentSpec:
        return self._opened.spec

    @property
    def class_map(self) -> ClassMap | None:
        return self._opened.class_map if isinstance(self._opened, OpenedDetector) else self._opened.runtime.class_map

    @property
    def class_names(self) -> list[str]:
        """Class names by index; empty if they are unknown."""
        return [entry.name for entry in self.class_map.entries] if self.class_map else []

    @property
    def network(self) -> nn.Module | None:
        return self._opened.detector if isinstance(self._opened, OpenedDetector) else None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) to which images are resized."""
        augmentation = self.spec.dataset.augmentation
        return input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)

    # Prediction

    def predict(
        self,
        images: Any,
        threshold: float = 0.5,
        shape: Sequence[int] | None = None,
        *,
        include_source_image: bool = True,
        batch_size: int | None = None,
    ) -> Any:
        """Detect objects in an image, in each image of a list, or in each image of an iterator.

        Args:
            images: one, a list or an iterator of paths, http(s) addresses, PIL images, arrays [H, W, 3] or tensors
                [3, H, W]; RGB, uint8 or floats 0..1. With `model.num_channels`, that number instead of 3.
            threshold: minimum score.
            shape: (height, width) to which images are resized, instead of `input_size`.
            include_source_image: return the image in `metadata["source_image"]`.
            batch_size: images per step; None = the spec's for a list, and 1 for an iterator, whose results then come
                before the next image is taken.

        Returns:
            `supervision.Detections` if that package is installed, else `PlainDetections` with the same fields; a list
            of them for a list of images, even of one image, and a generator of them for an iterator or generator.

        Raises:
            DataError: an image cannot be read, or an object is not an image.
        """
        if is_lazy(images):
            one_by_one = batch_size is None and self._optimized is None
            count = 1 if one_by_one else batch_size
            prediction = self._prediction("predict", threshold, shape, include_source_image, count)
            return prediction.of_images(images, None, 0 if one_by_one else None)
        several = isinstance(images, (list, tuple))
        images = list(images) if several else [images]
        prediction = self._prediction("predict", threshold, shape, include_source_image, batch_size)
        results = list(prediction.of_images(images, len(images)))
        return results if several else results[0]

    def predict_video(
        self,
        source: str | os.PathLike[str] | int,
        threshold: float = 0.5,
        shape: Sequence[int] | None = None,
        *,
        include_source_image: bool = True,
        batch_size: int | None = None,
    ) -> Iterator[tuple[VideoFrame, Any]]:
        """Detect objects in a video file, a stream (URL) or a camera (its index), frame by frame.

        Memory does not depend on the length of the video. What is wrong with a damaged file is logged at the end.

        Yields:
            Each frame (`index`, `time` in seconds, `image` as a tensor [3, H, W]) with its detections as in `predict`.

        Raises:
            DataError: the source does not exist or has no video.
            UserError: the package `av` is not installed.
        """
        try:
            video = video_source(source if isinstance(source, int) else os.fspath(source))
        except ValueError as error:
            raise UserError(f"predict_video: {error}") from None
        require_video()
        if (channels := self.spec.model.num_channels) != 3:
            raise UserError(f"predict_video: frames have 3 channels, but model.num_channels is {channels}; use predict")
        return self._prediction("predict_video", threshold, shape, include_source_image, batch_size).of_video(video)

    def _prediction(
        self, method: str, threshold: float, shape: Sequence[int] | None, include_source: bool, batch_size: int | None
    ) -> Prediction:
        """The checked arguments of `predict`; without `batch_size`, that of `optimize_for_inference` or of the spec."""
        threshold, size = check_threshold(method, threshold), self._shape(shape)
        if batch_size is None:
            batch_size = (self._optimized or self.spec.dataset).batch_size
        keep_ratio = self.spec.dataset.augmentation.preserve_aspect_ratio
        return Prediction(
            self.runtime, self.class_map, size, keep_ratio, self.spec.model.num_select, threshold, include_source,
            check_batch_size(method, batch_size), pixel_format_of(self.spec),
        )  # fmt: skip

    def _shape(self, shape: Sequence[int] | None) -> tuple[int, int]:
        """The requested (height, width), or else `input_size`."""
        if shape is None:
            height, width = self.spec.dataset.augmentation.eval_spatial_size
            return height, width
        return check_shape(shape, self.runtime, self.spec.model.size_multiple, self.source)

    @property
    def runtime(self) -> Runtime:
        """The runtime that predicts: that of a deployed file, or one with the current weights of the network."""
        if isinstance(self._opened, OpenedModel):
            return self._opened.runtime
        return self._cache.get(self._opened.detector, self._build_runtime, sums=self._optimized is None)

    def _build_runtime(self) -> Runtime:
        network = self._trainable("predict").detector
        if self._optimized is None:
            return TorchRuntime(network, self.class_map, self.device)
        return TorchRuntime(network, self.class_map, self.device, self._optimized.dtype, self._optimized.compiled)

    def optimize_for_inference(
        self, compile: bool = True, batch_size: int = 1, dtype: torch.dtype | str = torch.float32
    ) -> None:
        """Predict with an optimized copy of the network, masks and keypoints included.

        If the weights change, the copy is rebuilt before the next prediction. In-place changes through `.data` are not
        detected: call this method again after them.

        Args:
            compile: on a GPU, compile the network as a CUDA graph for `batch_size` images of `input_size`; smaller
                batches are padded, other sizes are compiled again. No effect on a CPU, where compiled networks were
                not faster.
            batch_size: images per step of `predict`, unless it is given there.
            dtype: float32, bfloat16 or, on a GPU, float16; that of convolutions and matrix products. Coordinates, sums
                and norms stay float32, so that boxes keep their precision.

        Raises:
            UserError: the device does not support the network in `dtype`, or torch.compile fails.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise UserError(f"dtype: {dtype!r} is invalid; expected one of {', '.join(_DTYPES)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size: {batch_size!r} is invalid; expected a number of at least 1")
        self._trainable("optimize_for_inference")
        before = self._optimized
        self._optimized = _Optimization(_DTYPES[name], compile and self.device.type == "cuda", batch_size)
        self._cache.clear()
        try:
            self.runtime.predict(
                torch.zeros(batch_size, self.spec.model.num_channels, *self.input_size, device=self.device)
            )
        except BaseException as error:
            self._optimized = before
            self._cache.clear()
            if isinstance(error, RuntimeError):
                raise UserError(
                    f"{self.device} cannot run this detector in {name}: {first_line(error)}; use float32"
                ) from error
            raise

    def remove_optimized_model(self) -> None:
        """Undo `optimize_for_inference`, if it was called."""
        if self._optimized is not None:
            self._optimized = None
            self._cache.clear()

    # Training and evaluation

    def train(
        self,
        callbacks: Sequence[Any] | Mapping[str, Any] = (),
        resume: str | os.PathLike[str] | bool | None = None,
        **keywords: Any,
    ) -> FitResult:
        """Train on a dataset, starting from the current weights; afterwards, the detector has the best weights.

        Args:
            callbacks: Lightning callbacks, added to the built-in ones.
            resume: resume an interrupted run: True for the newest checkpoint in `output_dir`, or a path.
            keywords: fields of the spec's `train` and `dataset` sections by their last name (`num_epochs=5`) or their
                dotted name (`**{"train.optim.lr": 1e-4}`), or keywords of RF-DETR's package; see docs/python_api.md.

        Raises:
            UserError: a keyword is unknown, the dataset cannot be used, or `output_dir` contains another run.
        """
        from rtdetr_tool.api.training import train

        opened = self._trainable("train")
        family = opened.spec.model.family
        arguments = read_train_arguments(callbacks, keywords, family.deprecated_keywords)
        settings = train_settings(arguments.keywords, family)
        result, trained = train(opened, settings, resume, arguments)
        if trained is not None:
            self._opened, self.source = trained, str(result.best_path or result.latest_path)
        return result

    def evaluate(self, split: str = "test", conf_threshold: float = 0.0, **keywords: Any) -> CocoResult:
        """COCO metrics on the `test` or `val` split of a dataset, as in `rtdetr evaluate`.

        Args:
            conf_threshold: ignore detections with a lower score.
            keywords: fields of the spec's `dataset` section, such as `test_data_sources` or `batch_size`, and
                `max_dets` of the `evaluate` section.

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
        """Export to ONNX or another `format`. The file is verified against PyTorch before it is written.

        Args:
            shape: (height, width) of the input; None = `input_size`.
            batch_size: batch size of the graph, unless `dynamic_batch` is set.
            output_name: file name, with or without suffix; None = the kind of detector, such as `rtdetr-resnet_50`.
            calibration_data: images for INT8: a folder, an array file, or an array [N, H, W, C].
            keywords: fields of the spec's `export` section, such as `opset_version`, `notes` or `overwrite`, and of its
                section for the format (`max_cost`); `quantization` (fp32, fp16, int8) is its precision, `max_images`
                the number of images for INT8.
        """
        from rtdetr_tool.api.export import export

        folder = Path(output_dir)
        opened = with_size(self._trainable("export"), self._shape(shape))
        base = {
            "export.onnx_file": str(folder / f"{(output_name or self.name).removesuffix('.onnx')}.onnx"),
            "export.results_dir": str(folder),
            "export.batch_size": -1 if dynamic_batch else batch_size,
            "export.checkpoint": self.source,
            "export.on_cpu": self.device.type == "cpu",
        }
        return export(opened, base, keywords, calibration_data)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        layout: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write weights, spec and a model card into a folder that `from_checkpoint` opens, as on the Hugging Face Hub.

        Args:
            license: for the card, such as `apache-2.0`.
            layout: `transformers` for files that transformers opens too.
        """
        from rtdetr_tool.api.sharing import save

        return save(self._trainable("save_pretrained"), folder, license, layout, overwrite)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; returns the address.

        Args:
            repo_id: `owner/name`; the repository is created if there is none.
            options: `license` and `layout` as for `save_pretrained`, `private`, `message` of the commit, and `token`
                (by default that of `hf auth login` or `HF_TOKEN`).

        Raises:
            UserError: the Hub refuses it or cannot be reached.
        """
        from rtdetr_tool.api.sharing import push

        return push(self._trainable("push_to_hub"), repo_id, **options)

    def export_for_roboflow(self, output_dir: str | os.PathLike[str]) -> None:
        """Write `weights.pt` and `class_names.txt` for an upload to Roboflow; nothing is sent.

        Implemented by the families that Roboflow supports.
        """
        title = self.spec.model.family.title
        raise UserError(f"export_for_roboflow: Roboflow does not support {title}; use export() instead")

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
        raise UserError(f"{what}: {self.source} is a deployed file, which can only predict; open its checkpoint")
