"""`rtdetr export`: a checkpoint as ONNX, compared with torch on real pictures before it counts as written."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import onnx
import torch

from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.checkpoints.onnx_file import (
    OnnxInterface,
    attach,
    bytes_of,
    describe,
    interface_of,
    replacing_onnx,
    weights_beside,
)
from rtdetr_tool.commands.detection import with_input_size
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.deploy.compare import Difference, compare_on
from rtdetr_tool.deploy.deepstream import write_side_files
from rtdetr_tool.deploy.onnx_export import export_graph
from rtdetr_tool.deploy.pictures import drawn_pictures, pictures_of
from rtdetr_tool.deploy.wrapper import ExportModel
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.files import sha256_of, write_atomically
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.runtimes.onnx_runtime import OnnxRuntime
from rtdetr_tool.runtimes.open import OpenedDetector, open_detector
from rtdetr_tool.spec import ExportSpec, LoadedSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)

PICTURES = 4  # at least so many are compared
DYNAMIC_BATCHES = (1, 3)  # batch sizes at which a dynamic graph is compared


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.export
    check_target(section)
    choose_device(section)
    current_status().running(f"Loading checkpoint: {section.checkpoint}")
    opened = open_detector(section.checkpoint, with_input_size(loaded, section))
    export_detector(opened, section, loaded.spec.inference.conf_threshold)


def export_detector(opened: OpenedDetector, section: ExportSpec, conf_threshold: float) -> Path:
    """Write a detector as ONNX, as `section` says; the detector stays as it is. The file is returned.

    Args:
        conf_threshold: smallest score that DeepStream shows.
    """
    target = check_target(section)
    device = choose_device(section)
    augmentation = opened.spec.dataset.augmentation
    if augmentation.preserve_aspect_ratio and section.input_height != section.input_width:
        raise UserError(
            f"export.input_height is {section.input_height}, input_width {section.input_width}; with "
            "dataset.augmentation.preserve_aspect_ratio they must be equal"
        )
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    check_batch(section, opened.detector.static_batch)
    model = ExportModel(
        opened.detector.to(device), opened.spec.model.num_select if section.include_postprocess else None
    ).eval()

    start = time.perf_counter()
    batch = None if section.batch_size == -1 else section.batch_size
    graph = export_graph(model, size, batch, section.opset_version, section.verbose)
    attach(graph, describe(metadata_of(opened), size, section.notes or notes_of(opened)))
    seconds = time.perf_counter() - start
    interface = interface_of(graph, target)
    with replacing_onnx(target, graph) as temporary:
        runtime = OnnxRuntime(temporary, interface, provider="cpu")
        differences, pictures = verify(model, runtime, batch, opened, size, section.tolerance)
        report(differences, section.tolerance, section.onnx_file)
        content = summary(graph, temporary, interface, section, size, differences, pictures, seconds)
    write_atomically(Path(section.results_dir) / "export.json", json.dumps(content, indent=2) + "\n")
    if section.serialize_nvdsinfer:
        if opened.class_map is None:
            raise UserError("export.serialize_nvdsinfer: the checkpoint does not know its classes")
        write_side_files(
            target, opened.class_map, size, augmentation.preserve_aspect_ratio, opened.spec.model.num_select,
            conf_threshold,
        )  # fmt: skip
    worst = max(differences, key=lambda d: max(d.score, d.box))
    kpi = {"score_difference": worst.score, "box_difference": worst.box, "nodes": content["nodes"]}
    current_status().running("Export finished.", kpi=kpi)
    logger.info(
        "%s: opset %d, %d nodes, %.1f MB, %.1f s, batch %s, input %d x %d",
        target, content["opset"], content["nodes"], content["bytes"] / 1e6, seconds, batch or "dynamic", *size,
    )  # fmt: skip
    return target


def check_target(section: ExportSpec) -> Path:
    """The file to write, in a folder that exists."""
    target = Path(section.onnx_file)
    if target.suffix.lower() != ".onnx":
        raise UserError(f"export.onnx_file: {target} must end in .onnx")
    if target.is_dir():
        raise UserError(f"export.onnx_file: {target} is a directory")
    if target.exists() and not section.overwrite:
        raise UserError(f"export.onnx_file: {target} exists already; set export.overwrite=true, or choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"export.onnx_file: {target.parent} cannot be made: {error.strerror}") from None
    return target


def check_batch(section: ExportSpec, static_batch: int | None) -> None:
    if static_batch is not None and section.batch_size != static_batch:
        raise UserError(
            f"export.batch_size: {section.batch_size} is not allowed; allowed: {static_batch}, because this detector "
            "has a frozen foundation model (model.frozen_fm)"
        )


def choose_device(section: ExportSpec) -> torch.device:
    """The GPU that is asked for where there is one; the graph is the same."""
    if section.on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if section.gpu_id >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"export.gpu_id is {section.gpu_id}; this machine has {found} GPU(s), numbered from 0")
    return torch.device("cuda", section.gpu_id)


def metadata_of(opened: OpenedDetector) -> dict:
    """What the file will say: the checkpoint's own words with the spec as it holds now."""
    from rtdetr_tool.spec import spec_to_dict

    stored = dict(opened.meta) if opened.meta is not None else {}
    classes = opened.class_map.to_list() if opened.class_map is not None else []
    return build_metadata(package_version(), spec_to_dict(opened.spec), classes, stored.get("weights", "raw"))


def notes_of(opened: OpenedDetector) -> str | None:
    """`train.notes` of the run that the checkpoint comes from."""
    stored = (opened.meta or {}).get("spec") or {}
    return (stored.get("train") or {}).get("notes")


def verify(
    model: ExportModel,
    runtime: OnnxRuntime,
    batch: int | None,
    opened: OpenedDetector,
    size: tuple[int, int],
    tolerance: float,
) -> tuple[list[Difference], str]:
    """The graph in onnxruntime against the detector in torch, at each batch size, and which pictures were taken."""
    sizes = (batch,) if batch else DYNAMIC_BATCHES
    augmentation = opened.spec.dataset.augmentation
    count = max(sizes) * -(-PICTURES // max(sizes))  # whole batches
    source = pictures_of(
        opened.spec.dataset, None, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio
    )
    if source is None:
        logger.warning("The spec names no folder with pictures: the graph is compared on drawn ones")
        images, origin = drawn_pictures(count, size), "drawn"
    else:
        images, origin = source.load(count), source.origin
        if len(images) < count:
            images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]

    @torch.inference_mode()
    def in_torch(part: torch.Tensor) -> Predictions:
        logits, boxes = model(part.to(next(model.parameters()).device))[:2]
        return Predictions(logits.cpu(), boxes.cpu())

    return [compare_on(images, each, in_torch, runtime.predict, tolerance) for each in sizes], origin


def report(differences: list[Difference], tolerance: float, name: str) -> None:
    """Log what was found; fail above the tolerance, before the file gets its name."""
    for difference in differences:
        logger.info(
            "Against torch at batch %d: %d images, %d detections, largest difference of a score %.1e, of a relative "
            "box coordinate %.1e",
            difference.batch, difference.images, difference.detections, difference.score, difference.box,
        )  # fmt: skip
        if difference.ambiguous:
            logger.info("  %d more are left out: noise below a grey level changes them", difference.ambiguous)
    wrong = [difference for difference in differences if not difference.within(tolerance)]
    if any(difference.images == 0 for difference in wrong):
        raise RtdetrError(
            f"{name} was not written: it differs from torch, and on every picture compared noise below a grey level "
            f"changes what torch finds by more than export.tolerance ({tolerance:.1e})"
        )
    if wrong:
        worst = wrong[0]
        raise RtdetrError(
            f"{name} was not written: in onnxruntime the graph finds other objects than torch (batch {worst.batch}: "
            f"score {worst.score:.1e}, box {worst.box:.1e}, {worst.unmatched} without a counterpart; export.tolerance "
            f"is {tolerance:.1e})"
        )


def summary(
    graph: onnx.ModelProto,
    file: Path,
    interface: OnnxInterface,
    section: ExportSpec,
    size: tuple[int, int],
    differences: list[Difference],
    pictures: str,
    seconds: float,
) -> dict:
    beside = weights_beside(file)
    return {
        "onnx_file": section.onnx_file,
        "checkpoint": section.checkpoint,
        "sha256": sha256_of(file),
        "weights_sha256": sha256_of(beside) if beside else None,
        "bytes": bytes_of(file),
        "nodes": len(graph.graph.node),
        "opset": interface.opset,
        "batch": "dynamic" if interface.batch is None else interface.batch,
        "input_size": list(size),
        "outputs": list(interface.outputs),
        "seconds": round(seconds, 2),
        "tolerance": section.tolerance,
        "pictures": pictures,
        "differences": [difference.to_dict() for difference in differences],
        "version": package_version(),
    }
