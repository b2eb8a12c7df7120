"""`rtdetr inference`: detect objects in folders of images."""

from __future__ import annotations

import logging

from rich.progress import track

from rtdetr_tool.commands.session import record_spec
from rtdetr_tool.data.build import build_inference_dataset
from rtdetr_tool.formats.detection_loop import LoopTimes, detect
from rtdetr_tool.log import console
from rtdetr_tool.messages import first_of
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import gather_objects, rank
from rtdetr_tool.visualize import parse_color_map
from rtdetr_tool.workflows.detection import as_run, open_for
from rtdetr_tool.workflows.inference import Writer, finish, resolve_classes
from rtdetr_tool.workflows.thresholds import score_thresholds

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.inference
    colors = parse_color_map(section.color_map)
    current_status().running(f"Loading checkpoint: {section.trt_engine or section.checkpoint}")
    detecting = open_for(loaded, section)
    runtime, spec = detecting.model.runtime, detecting.spec
    record_spec(as_run(spec, "inference"), "inference")
    class_map = resolve_classes(runtime.class_map, spec.dataset)
    unknown = sorted(set(colors) - set(class_map.categories.values()))
    if unknown:
        logger.warning("Ignoring inference.color_map of %s, which are not among the classes", first_of(unknown))
    thresholds = score_thresholds(section, class_map)
    dataset = build_inference_dataset(spec.dataset)
    writer = Writer(results_folder(section, "inference"), section, class_map, colors, dataset)
    loader, times = detecting.loader(dataset), LoopTimes()
    for batch, detections in track(
        detect(runtime, loader, spec.model.num_select, times), "Detecting", len(loader), console=console()
    ):
        for failure in batch.failures:
            writer.fail(failure.path, failure.message)
        for target, image_detections in zip(batch.targets, detections, strict=True):
            writer.write(target, image_detections.above(thresholds))
    writer.wait()

    results = gather_objects([(writer.results, writer.failures)])
    if rank() == 0:
        finish(writer, results, times, runtime.name)
