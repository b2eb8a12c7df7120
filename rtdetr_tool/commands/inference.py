"""`rtdetr inference`: detect objects in images and videos."""

from __future__ import annotations

import logging

from rtdetr_tool.commands.session import record_spec
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.inference_sources import read_inference_sources
from rtdetr_tool.json_output import command_output
from rtdetr_tool.messages import first_of
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import rank
from rtdetr_tool.visualize import parse_color_map
from rtdetr_tool.workflows.detection import as_run, open_for, tiling_for
from rtdetr_tool.workflows.inference import Writer, detect_images, raise_for_problems, resolve_classes
from rtdetr_tool.workflows.thresholds import score_thresholds
from rtdetr_tool.workflows.tracking import require_tracker
from rtdetr_tool.workflows.video import VideoDetector, detect_videos

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.inference
    colors = parse_color_map(section.color_map)
    current_status().running(f"Loading checkpoint: {section.trt_engine or section.checkpoint}")
    detecting = open_for(loaded, section)
    runtime, spec = detecting.model.runtime, detecting.spec
    record_spec(as_run(spec, "inference"), "inference")
    classmap = (spec.dataset.infer_data_sources or {}).get("classmap")
    class_map = resolve_classes(runtime.class_map, classmap, spec.dataset.num_classes)
    unknown = sorted(set(colors) - set(class_map.categories.values()))
    if unknown:
        logger.warning("Ignoring inference.color_map of %s, which are not among the classes", first_of(unknown))
    thresholds = score_thresholds(section, class_map)
    require_tracker(section.tracker)
    tiling = tiling_for(section.tiles, spec)
    augmentation, folder = spec.dataset.augmentation, results_folder(section, "inference")
    entry, size = spec.dataset.infer_data_sources or {}, augmentation.eval_spatial_size
    sources = read_inference_sources(entry, size, augmentation.preserve_aspect_ratio, tiling, pixel_format_of(spec))
    writer = Writer(folder, section, class_map, colors, sources.images)
    unreadable = detect_images(detecting, writer, sources.images, thresholds)
    problems: list[str] = []
    videos = VideoDetector(runtime, spec, class_map, thresholds, colors, folder, tiling)
    if sources.videos:
        problems = detect_videos(videos, sources.videos)
    if rank() == 0:
        command_output().results = {
            "images": len(sources.images) - len(unreadable),
            "unreadable": unreadable,
            "skipped": sources.images.skipped,
            "videos": [row.to_dict() for row in videos.results],
        }
        raise_for_problems(folder, len(sources.images), unreadable, problems)
