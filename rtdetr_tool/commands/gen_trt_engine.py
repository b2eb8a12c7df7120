"""`rtdetr gen_trt_engine`: an ONNX file in the wanted precision, scored, as a TensorRT engine.

Precision lives in the graph, for every version of TensorRT alike: FP16 is a graph with casts, INT8 one with Q/DQ nodes.
Both are written below the results folder, and their loss is measured before an engine is built.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.table import Table

from rtdetr_tool.artifacts.graph_interface import GraphInterface
from rtdetr_tool.artifacts.onnx_file import bytes_of, description_of, interface_of, read_onnx
from rtdetr_tool.catalog import Layout
from rtdetr_tool.commands.detection import score
from rtdetr_tool.data.build import build_eval_dataset, build_loader, scoring_of
from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.scoring import log_scoring
from rtdetr_tool.deploy.engine import BuildSettings, choose_backend, write_engine
from rtdetr_tool.deploy.engine_report import summary
from rtdetr_tool.deploy.pictures import UNSCORED_FIRST, PictureSource, pictures_of
from rtdetr_tool.deploy.precision import (
    KeptNode,
    LayerRules,
    PrecisionGraph,
    audit_precision,
    parse_layers_precision,
    scoring_options,
    to_int8,
    to_mixed_fp16,
)
from rtdetr_tool.errors import CheckpointError, RtdetrError, UserError
from rtdetr_tool.files import sha256_of, write_atomically
from rtdetr_tool.log import console
from rtdetr_tool.metrics.build import build_evaluator
from rtdetr_tool.metrics.result import score_text
from rtdetr_tool.runtimes.graph_tensors import to_graph
from rtdetr_tool.runtimes.onnx_runtime import OnnxRuntime
from rtdetr_tool.runtimes.settle import settle_file
from rtdetr_tool.spec import MISSING, ExperimentSpec, LoadedSpec
from rtdetr_tool.status import current_status

logger = logging.getLogger(__name__)

AUDIT_PICTURES, CALIBRATION_PICTURES = 32, 100  # where the spec does not say how many
SHOWN_REASONS = 12
FEW_PICTURES = 32  # below this, INT8 ranges depend on which pictures were taken


@dataclass
class Source:
    """The ONNX file to build from, and what holds for it."""

    path: Path
    model: onnx.ModelProto
    interface: GraphInterface
    spec: ExperimentSpec
    class_map: ClassMap | None
    description: dict[str, Any]


@dataclass
class Variant:
    """The graph in one precision, and its score where there is a validation set."""

    precision: str
    file: Path
    scores: dict[str, float | None] | None = None


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.gen_trt_engine
    rules = parse_layers_precision(section.tensorrt.layers_precision)
    source = open_source(loaded)
    settings = build_settings(loaded, source.interface)
    backend = None
    if section.backend != "none":
        backend = choose_backend(section.backend, torch.cuda.is_available(), section.compute_capability)
        backend.check(source.path, settings)
    folder = Path(section.results_dir)

    variants, report = make_variants(source, rules, loaded, folder)
    score_variants(variants, source, section.score_images)
    report["scores"] = {variant.precision: variant.scores for variant in variants}
    write_atomically(folder / "precision.json", json.dumps(report, indent=2) + "\n")
    show_scores(variants)
    check_drop(variants, section.max_score_drop)

    chosen = variants[-1]
    if backend is None:
        logger.info("%s is ready; no engine was asked for (gen_trt_engine.backend is none)", chosen.file)
        return
    current_status().running(f"Building the engine with {backend.name} {backend.version}.")
    built = backend.build(chosen.file, settings)
    description = {
        **source.description,
        "precision": chosen.precision,
        "onnx": {"file": chosen.file.name, "sha256": sha256_of(chosen.file)},
        "scores": report["scores"],
    }
    write_engine(Path(section.trt_engine), built, description)
    logger.info("%s", summary(built.report))
    logger.info("%s is written; what it is stands in %s.json", section.trt_engine, section.trt_engine)


# Input


def open_source(loaded: LoadedSpec) -> Source:
    """Read the ONNX file and settle classes and input size, as evaluate would."""
    path = Path(loaded.spec.gen_trt_engine.onnx_file)
    if path.suffix.lower() != ".onnx":
        raise UserError(f"gen_trt_engine.onnx_file: {path} must be an ONNX file (.onnx); `rtdetr export` writes one")
    model = read_onnx(path, weights=loaded.spec.gen_trt_engine.tensorrt.data_type != "FP32")
    interface, description = interface_of(model, path), description_of(model)
    check_input(loaded, interface, path)
    spec, class_map = settle_file(str(path), loaded, description, interface)
    return Source(path, model, interface, spec, class_map, description)


def check_input(loaded: LoadedSpec, interface: GraphInterface, path: Path) -> None:
    """UserError where TAO's fields for the input are given and are not those of the ONNX file."""
    given = loaded.explicit.get("gen_trt_engine") or {}
    height, width = interface.size
    found = {"input_channel": 3, "input_height": height, "input_width": width}
    for name, value in found.items():
        if given.get(name) not in (None, value):
            raise UserError(
                f"gen_trt_engine.{name} is {given[name]}, but {path} takes inputs of 3 x {height} x {width} (channels, "
                "height, width); leave the field out, or export the checkpoint at that size"
            )


def build_settings(loaded: LoadedSpec, interface: GraphInterface) -> BuildSettings:
    """Profile and limits; for a graph with a fixed batch only batch sizes that the user gave can contradict it."""
    section = loaded.spec.gen_trt_engine
    names = ("min_batch_size", "opt_batch_size", "max_batch_size")
    given = (loaded.explicit.get("gen_trt_engine") or {}).get("tensorrt") or {}
    if section.batch_size > 0:
        batches: list[int | None] = [section.batch_size] * 3
    elif interface.batch is None:
        batches = [getattr(section.tensorrt, name) for name in names]
    else:
        batches = [given.get(name) for name in names]
    settings = BuildSettings(
        *batches,
        workspace_mb=section.tensorrt.workspace_size,
        timing_cache=Path(section.timing_cache) if section.timing_cache else None,
        verbose=section.verbose,
        gpu_id=section.gpu_id,
        compute_capabilities=tuple(section.compute_capability),
    )
    settings.batches(interface.batch)
    return settings


@dataclass(frozen=True)
class CalibrationPictures:
    """A fixed choice of pictures that can be gone through several times."""

    source: PictureSource
    count: int
    batch: int
    layout: Layout

    def feeds(self) -> Iterator[np.ndarray]:
        """Parts [N, 3, H, W] float32 as the graph takes them."""
        for part in self.source.batches(self.count, self.batch):
            yield to_graph(part, self.layout).numpy()


def calibration_pictures(source: Source, loaded: LoadedSpec) -> CalibrationPictures | None:
    """From `calibration.cal_image_dir`, else from the spec's data; None where there are none and FP16 does without.

    Raises:
        UserError: too few of them, or none for INT8.
    """
    section = loaded.spec.gen_trt_engine.tensorrt
    calibration, needed = section.calibration, section.data_type == "INT8"
    given = ((loaded.explicit.get("gen_trt_engine") or {}).get("tensorrt") or {}).get("calibration") or {}
    folders = None if calibration.cal_image_dir in (MISSING, [], None) else list(calibration.cal_image_dir)
    augmentation = source.spec.dataset.augmentation
    found = pictures_of(
        source.spec.dataset, folders, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio, UNSCORED_FIRST
    )
    name = "gen_trt_engine.tensorrt.calibration.cal_image_dir"
    if found is None:
        if needed:
            raise UserError(f"{name}: INT8 needs calibration pictures; name one or more folders of images")
        logger.warning("%s is not set: without pictures the precision of each node is chosen by its kind alone", name)
        return None
    count = calibration.cal_batches * calibration.cal_batch_size
    if "cal_batches" in given and len(found.paths) < count:
        raise UserError(
            f"gen_trt_engine.tensorrt.calibration: cal_batches x cal_batch_size is {count}, but {found.origin} hold "
            f"{len(found.paths)} pictures. Lower cal_batches, or name more folders in cal_image_dir."
        )
    if "cal_batches" not in given:
        count = min(CALIBRATION_PICTURES if needed else AUDIT_PICTURES, len(found.paths))
    if needed and count < FEW_PICTURES:
        logger.warning("INT8 is calibrated on %d pictures; some hundred give steadier ranges (cal_batches)", count)
    logger.info("Calibration: %d pictures of %s", count, folders or found.origin)
    return CalibrationPictures(found, count, calibration.cal_batch_size, source.interface.layout)


# Precision


def make_variants(
    source: Source, rules: LayerRules, loaded: LoadedSpec, folder: Path
) -> tuple[list[Variant], dict[str, Any]]:
    """FP32, then FP16, then INT8, as far as asked for, each written below `folder`; and the report about them."""
    section = loaded.spec.gen_trt_engine.tensorrt
    variants = [Variant("FP32", source.path)]
    report: dict[str, Any] = {"onnx_file": str(source.path), "data_type": section.data_type}
    if section.data_type == "FP32":
        if rules.rules:
            logger.warning("layers_precision has no effect: data_type is FP32")
        return variants, report
    pictures = calibration_pictures(source, loaded)
    audit = None
    if pictures is not None:
        current_status().running("Measuring the precision that each node needs.")
        audit = audit_precision(source.model, pictures.feeds())
        report["audit"] = audit.to_dict()
    without_int8 = LayerRules(tuple(rule for rule in rules.rules if rule.precision != "int8"))
    mixed = to_mixed_fp16(source.model, audit, without_int8 if section.data_type == "INT8" else rules)
    variants.append(written("FP16", mixed, source, folder))
    report["fp16"] = mixed.to_dict()
    show_kept("FP16", mixed)
    if section.data_type == "INT8" and pictures is not None:
        current_status().running("Calibrating INT8.")
        cache = section.calibration.cal_cache_file
        quantized = to_int8(
            source.model, pictures.feeds(), rules, None if cache in (MISSING, None, "") else Path(cache), audit
        )
        variants.append(written("INT8", quantized, source, folder))
        report["int8"] = quantized.to_dict()
        show_kept("INT8", quantized)
    return variants, report


def written(precision: str, graph: PrecisionGraph, source: Source, folder: Path) -> Variant:
    file = folder / f"{source.path.stem}_{precision.lower()}.onnx"
    content = graph.model.SerializeToString()
    write_atomically(file, content)
    logger.info("%s: %s, %.1f MB, %d casts", precision, file, len(content) / 1e6, graph.casts)
    for note in graph.notes:
        logger.warning("%s: %s", precision, note)
    return Variant(precision, file)


def show_kept(precision: str, graph: PrecisionGraph) -> None:
    """How many nodes stay in a higher precision and why; the full list with figures stands in precision.json."""
    reasons: dict[str, list[KeptNode]] = {}
    for node in graph.kept:
        reasons.setdefault(f"{node.precision}: {kind_of(node.reason)}", []).append(node)
    counts = f"{graph.converted} nodes in FP16, {len(graph.kept)} kept higher"
    eight = f"{graph.quantised} nodes in INT8, " if precision == "INT8" else ""
    table = Table("kept in, because of", title=f"{precision}: {eight}{counts}")
    table.add_column("nodes", justify="right")
    table.add_column("largest value", justify="right")
    table.add_column("for example")
    for reason, nodes in sorted(reasons.items(), key=lambda pair: -len(pair[1]))[:SHOWN_REASONS]:
        values = [node.max_abs for node in nodes if node.max_abs is not None]
        table.add_row(reason, str(len(nodes)), f"{max(values):.3g}" if values else "-", nodes[0].name)
    console().print(table)


def kind_of(reason: str) -> str:
    """A reason without its figures: `role: softmax` as it is, `overflow: output up to 1e+05` as `overflow`."""
    first = reason.split(";")[0]
    return first if first.startswith(("role", "layers_precision", "between")) else first.split(":")[0]


# Score


def score_variants(variants: list[Variant], source: Source, limit: int) -> None:
    """mAP and speed of each precision in onnxruntime on (a part of) the validation set, where there is one."""
    spec = source.spec
    if limit == 0 or not spec.dataset.val_data_sources:
        logger.warning("No score: %s", "score_images is 0" if limit == 0 else "dataset.val_data_sources is not set")
        return
    dataset = build_eval_dataset(spec.dataset, "val", source.class_map)
    if 0 < limit < len(dataset):
        dataset = dataset.sample_of(limit, seed=0)
    log_scoring("val", dataset, scoring_of(spec))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for variant in variants:
        evaluator = build_evaluator(dataset, spec)
        options = scoring_options() if device == "cpu" else None
        runtime = OnnxRuntime(variant.file, source.interface, dataset.class_map, device, options=options)
        loader = build_loader(dataset, spec.dataset, training=False)
        try:
            times = score(runtime, loader, evaluator, spec.model.num_select, title=f"Scoring {variant.precision}")
        except CheckpointError as error:
            if variant is variants[0]:
                raise
            raise RtdetrError(
                f"{variant.file} does not run on the validation images: {error}. No engine was built. Keep more layers "
                "in a higher precision (tensorrt.layers_precision), or calibrate on more images"
            ) from error
        result = evaluator.compute()
        variant.scores = {
            "mAP": result.map,
            "mAP50": result.map50,
            "images": times.images,
            "model_ms_per_image": 1000 * times.model / max(1, times.images),
        }
        variant.scores["bytes"] = bytes_of(variant.file)


def show_scores(variants: list[Variant]) -> None:
    if variants[0].scores is None:
        return
    table = Table("precision", title="Score in onnxruntime on dataset.val_data_sources")
    for name in ("mAP", "points lost", "mAP50", "MB"):
        table.add_column(name, justify="right")
    base = variants[0].scores["mAP"]
    for variant in variants:
        scores = variant.scores
        lost = "-" if base is None or scores["mAP"] is None else f"{100 * (base - scores['mAP']):.2f}"
        table.add_row(
            variant.precision, score_text(scores["mAP"]), lost, score_text(scores["mAP50"]),
            f"{scores['bytes'] / 1e6:.1f}",
        )  # fmt: skip
    console().print(table)
    kpi = {f"mAP_{variant.precision}": variant.scores["mAP"] for variant in variants}
    current_status().running("Precision scored.", kpi=kpi)


def check_drop(variants: list[Variant], allowed: float) -> None:
    """Fail where the wanted precision loses more than `allowed` mAP against FP32."""
    first, last = variants[0].scores, variants[-1].scores
    if first is None or last is None:
        return
    if first["mAP"] is None or last["mAP"] is None:
        logger.warning(
            "gen_trt_engine.max_score_drop is not checked: the %d scored images have no object that counts, so mAP is "
            "undefined. Score more images (gen_trt_engine.score_images) or others (dataset.val_data_sources).",
            last["images"],
        )
        return
    drop = first["mAP"] - last["mAP"]
    if drop > allowed:
        raise RtdetrError(
            f"{variants[-1].precision} loses {100 * drop:.2f} points of mAP ({first['mAP']:.4f} to {last['mAP']:.4f}); "
            f"gen_trt_engine.max_score_drop allows {100 * allowed:.2f}. No engine was built. Keep more layers in a "
            "higher precision (tensorrt.layers_precision), calibrate on more pictures, or allow more."
        )
