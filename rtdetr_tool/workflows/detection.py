"""Open a model for evaluation or inference, and score it on a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from rtdetr_tool.catalog import BOXES, KEYPOINTS
from rtdetr_tool.data.build import build_eval_dataset, build_loader, scoring_of, tiling_of
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.collate import InferenceBatch
from rtdetr_tool.data.dataset import EvalDataset
from rtdetr_tool.data.folder import ImageFolder
from rtdetr_tool.data.loader import DetectionLoader
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.data.scoring import log_scoring
from rtdetr_tool.data.tiles import Tiling
from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.detection_loop import LoopTimes, detect
from rtdetr_tool.formats.onnx.file import read_onnx
from rtdetr_tool.formats.opening import OpenedModel, format_of, open_model
from rtdetr_tool.formats.precision import is_quantized
from rtdetr_tool.formats.requested_size import RequestedSize
from rtdetr_tool.metrics.build import build_evaluator
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.ops.keypoints import check_counts
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.progress import Task
from rtdetr_tool.spec import MISSING, EvaluateSpec, ExperimentSpec, InferenceSpec, LoadedSpec
from rtdetr_tool.spec.tiles import TilesSpec
from rtdetr_tool.training.distributed import rank, start_processes, world_size


@dataclass
class Detecting:
    """An opened model that is ready to run on a dataset."""

    model: OpenedModel
    spec: ExperimentSpec  # with the command's input size and batch size in the `dataset` section

    def loader(self, dataset: ImageFolder) -> DetectionLoader[InferenceBatch]:
        """A loader of this process's share of `dataset`, in order and without repetition."""
        return build_loader(dataset, self.spec.dataset, training=False, rank=rank(), world_size=world_size())


class ScoredSplit(NamedTuple):
    """The detections of a split, before metrics are computed."""

    evaluator: CocoEvaluator
    times: LoopTimes
    dataset: EvalDataset


def open_for(loaded: LoadedSpec, section: EvaluateSpec | InferenceSpec) -> Detecting:
    """Start the processes of the section and open its checkpoint or engine in each."""
    command = "evaluate" if isinstance(section, EvaluateSpec) else "inference"
    if not section.trt_engine and section.checkpoint == MISSING:
        raise UserError(f"{command}.checkpoint: required by `rtdetr {command}`, but not set")
    device = start_processes(section.num_gpus, section.gpu_ids, section.num_nodes)
    if section.batch_size > 0:
        loaded = loaded.with_value("dataset.batch_size", section.batch_size)
    size = RequestedSize(section.input_height, section.input_width, command)
    path, name = (section.trt_engine, "tensorrt") if section.trt_engine else (section.checkpoint, "")
    if section.is_quantized and not section.trt_engine:
        check_is_quantized(path, f"{command}.is_quantized")
    model = open_model(path, loaded, device, section.onnx_provider, size, section.precision, section.compile, name)
    return Detecting(model, model.spec)


def check_is_quantized(path: str, field: str) -> None:
    """UserError if a file that the spec declares to be quantized (`is_quantized`) is not."""
    if format_of(path).name != "onnx" or not is_quantized(read_onnx(path, weights=False)):
        raise UserError(f"{field}: {path} is not quantized; expected a file that `rtdetr quantize` wrote")


def as_run(spec: ExperimentSpec, command: str) -> ExperimentSpec:
    """The spec with the actual input size and batch size in the command's section."""
    augmentation = spec.dataset.augmentation
    height, width = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    batch = spec.dataset.batch_size
    section = replace(getattr(spec, command), input_height=height, input_width=width, batch_size=batch)
    return replace(spec, **{command: section})


def tiling_for(tiles: TilesSpec, spec: ExperimentSpec) -> Tiling | None:
    """How a command cuts images into tiles; UserError for a model that predicts more than boxes."""
    kind = spec.model.predicts
    if tiles.enabled and kind != BOXES:
        raise UserError(
            f"tiles.enabled is not supported for models with {kind}, because the {kind} of tiles would have to be "
            f"joined; use a model without {kind}, or tiles.enabled=false"
        )
    return tiling_of(tiles, spec.dataset)


def evaluator_for(split: str, dataset: EvalDataset, spec: ExperimentSpec) -> CocoEvaluator:
    """The evaluator for a split; objects that are not scored are logged."""
    scoring = scoring_of(spec)
    if dataset.tiling is not None:
        scoring = replace(scoring, num_select=None, num_queries=None)  # they limit a tile, not an image
    log_scoring(split, dataset, scoring)
    return build_evaluator(dataset, spec)


def score(
    runtime: Runtime,
    loader: DetectionLoader[Batch],
    evaluator: CocoEvaluator,
    num_select: int,
    conf_threshold: float = 0.0,
    title: str = "Evaluating",
) -> LoopTimes:
    """Run on `loader` and pass all detections with a score of at least `conf_threshold` to `evaluator`."""
    times = LoopTimes()
    with Task(title, len(loader), "batches") as task:
        for batch, detections in detect(runtime, loader, num_select, times):
            kept = [entry.above(conf_threshold) for entry in detections]
            evaluator.update([target.image_id for target in batch.targets], kept)
            task.advance()
    return times


def score_split(
    model: OpenedModel,
    split: str,
    conf_threshold: float,
    rank: int = 0,
    world_size: int = 1,
    tiles: TilesSpec | None = None,
) -> ScoredSplit:
    """Run a model on a share of the `test` or `val` source of its spec, and collect its detections.

    Args:
        rank, world_size: this process's share of the images; the caller merges the evaluators of all shares.
        tiles: detect in tiles of the images, if enabled.
    """
    runtime, spec = model.runtime, model.spec
    tiling = tiling_for(tiles, spec) if tiles is not None else None
    kind = spec.model.predicts
    pixels = pixel_format_of(spec)
    dataset = build_eval_dataset(spec.dataset, split, runtime.class_map, kind, tiling, pixels)
    if kind == KEYPOINTS:
        check_counts(spec.model.keypoints.counts, dataset.class_map, f"the {split} data")
    evaluator = evaluator_for(split, dataset, spec)
    loader = build_loader(dataset, spec.dataset, training=False, rank=rank, world_size=world_size)
    times = score(runtime, loader, evaluator, spec.model.num_select, conf_threshold)
    return ScoredSplit(evaluator, times, dataset)
