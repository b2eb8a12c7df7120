"""`rtdetr gen_trt_engine`: build a TensorRT engine from an ONNX file, after scoring its precision."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from rtdetr_tool.commands.tables import show_kept, show_scores
from rtdetr_tool.files import sha256_of, write_atomically
from rtdetr_tool.formats.precision import parse_layers_precision
from rtdetr_tool.formats.tensorrt.export import choose_backend, write_engine
from rtdetr_tool.formats.tensorrt.report import summary
from rtdetr_tool.json_output import command_output
from rtdetr_tool.progress import Steps
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import required, results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.engine import build_settings, open_source
from rtdetr_tool.workflows.engine_precision import build_variants
from rtdetr_tool.workflows.engine_scores import ENGINE_GATE, score_variants

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.gen_trt_engine
    rules = parse_layers_precision(section.tensorrt.layers_precision)
    source = open_source(loaded)
    settings = build_settings(loaded, source.file.interface)
    backend = None
    if section.backend != "none":
        backend = choose_backend(section.backend, torch.cuda.is_available(), section.compute_capability)
        backend.check(source.file.path, settings)
    folder = results_folder(section, "gen_trt_engine")

    with Steps("Choosing precisions", {"measuring nodes": 6, "scoring": 4}) as steps:
        steps.begin("measuring nodes")
        variants, report = build_variants(source, rules, loaded, folder)
        steps.begin("scoring")
        score_variants(variants, source, section.score_images)
    for variant in variants:
        if variant.graph is not None:
            show_kept(variant.precision, variant.graph)
    report["scores"] = {variant.precision: variant.scores for variant in variants}
    command_output().results = report
    write_atomically(folder / "precision.json", json.dumps(report, indent=2) + "\n")
    show_scores(variants)
    ENGINE_GATE.check(variants, section.max_score_drop)

    requested = variants[-1]
    if backend is None:
        logger.info("Wrote %s; skipping the engine build (gen_trt_engine.backend is none)", requested.file)
        return
    current_status().running(f"Building the engine with {backend.name} {backend.version}.")
    built = backend.build(requested.file, settings)
    description = {
        **source.file.description,
        "precision": requested.precision,
        "onnx": {"file": requested.file.name, "sha256": sha256_of(requested.file)},
        "scores": report["scores"],
    }
    engine = Path(required(section.trt_engine, "gen_trt_engine.trt_engine"))
    write_engine(engine, built, description)
    logger.info("%s", summary(built.report))
    logger.info("Wrote %s (description in %s.json)", engine, engine)
