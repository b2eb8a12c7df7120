"""Detect objects in videos, streams and cameras: an annotated video and JSON lines for each, and `videos.json`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.data.read_ahead import ReadAhead
from rtdetr_tool.data.tiles import Tiling
from rtdetr_tool.data.video import VideoFrame, VideoReader
from rtdetr_tool.data.video_formats import VideoSource
from rtdetr_tool.errors import DataError, Preempted, UserError
from rtdetr_tool.files import make_folder_below, write_atomically
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.decoded_images import detect_decoded
from rtdetr_tool.formats.detection_loop import LoopTimes
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.progress import Task
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import gather_objects, rank, world_size
from rtdetr_tool.visualize import Color
from rtdetr_tool.workflows.kitti import output_stems, with_category
from rtdetr_tool.workflows.tracking import LOWEST_SCORE, build_tracker
from rtdetr_tool.workflows.video_writer import VideoWriter

logger = logging.getLogger(__name__)


@dataclass
class VideoResult:
    """A row of `videos.json`; paths are relative to the results folder."""

    source: str
    frames: int = 0
    detections: int = 0
    seconds: float = 0.0  # time of the last frame
    fps: float | None = None  # of the source
    frames_per_second: float = 0.0  # of the detection
    dropped: int = 0  # frames of a live source for which there was no time
    annotated_video: str | None = None
    detections_file: str | None = None
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class VideoDetector:
    """A model with everything that is the same for all videos of a run."""

    runtime: Runtime
    spec: ExperimentSpec
    class_map: ClassMap
    thresholds: Tensor  # [C] by class index
    colors: dict[str, Color]
    folder: Path
    tiling: Tiling | None = None
    results: list[VideoResult] = field(default_factory=list)

    def run(self, source: VideoSource, stem: str) -> None:
        """Write the results of one video and add its row to `results`, also if it is interrupted or damaged."""
        result = VideoResult(source.shown)
        self.results.append(result)
        section = self.spec.inference
        try:
            reader = VideoReader(source, section.stream_attempts)
        except DataError as error:
            self._fail(result, str(error))
            return
        with reader:
            result.fps = float(reader.fps) if reader.fps else None
            count = self.spec.dataset.batch_size
            begin = time.perf_counter()
            with ReadAhead(reader, 2 * count, drop=source.live) as ahead:
                frames = self._detect(ahead.lists(count, wait=not source.live), source)
                try:
                    self._write(frames, reader, result, stem)
                except DataError as error:  # of a frame
                    reader.problems.append(str(error))
                result.dropped = ahead.dropped
            for problem in reader.problems:
                self._fail(result, problem)
        spent = time.perf_counter() - begin
        result.frames_per_second = round(result.frames / spent, 2)
        logger.info(
            "%s: %d frames%s, %d detections, %.1f frames/s%s", source.shown, result.frames,
            f" ({result.dropped} dropped)" if result.dropped else "", result.detections, result.frames / spent,
            f"; wrote {self.folder / result.annotated_video}" if result.annotated_video else "",
        )  # fmt: skip

    def _fail(self, result: VideoResult, problem: str) -> None:
        logger.error("%s", problem)
        result.problems.append(problem)

    def _detect(
        self, lists: Iterable[list[VideoFrame]], source: VideoSource
    ) -> Iterator[tuple[VideoFrame, Detections]]:
        augmentation, times = self.spec.dataset.augmentation, LoopTimes()
        yield from detect_decoded(
            self.runtime, lists, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio,
            self.spec.model.num_select, times,
            lambda frame: f"{source.shown}, frame {frame.index}", tiling=self.tiling,
        )  # fmt: skip

    def _write(
        self, frames: Iterable[tuple[VideoFrame, Detections]], reader: VideoReader, result: VideoResult, stem: str
    ) -> None:
        """Write frames until they end; on an interruption, finish the files first."""
        section, writer = self.spec.inference, None
        tracker = build_tracker(section.tracker, section.conf_threshold, reader.fps)
        try:
            with Task(result.source, reader.total_frames, "frames") as task:
                for frame, raw in frames:
                    if writer is None:
                        writer = self._writer(reader, stem, result)
                    detections = with_category(raw, self.class_map)
                    kept = detections.scores >= self.thresholds[detections.labels]
                    tracks = None
                    if tracker is not None:
                        candidates = kept | (detections.scores >= LOWEST_SCORE)
                        detections, kept = detections.select(candidates), kept[candidates]
                        numbers = tracker.update(detections, frame.time)
                        tracks = [number for number, keep in zip(numbers, kept.tolist(), strict=True) if keep]
                    detections = detections.select(kept)
                    writer.write(frame, detections, tracks)
                    result.frames += 1
                    result.detections += len(detections)
                    result.seconds = round(frame.time, 6)
                    task.advance()
        except (KeyboardInterrupt, Preempted):
            logger.warning("Interrupted after %d frames of %s", result.frames, result.source)
            raise
        finally:
            if writer is not None:
                writer.finish()

    def _writer(self, reader: VideoReader, stem: str, result: VideoResult) -> VideoWriter:
        video, lines = Path("videos_annotated") / f"{stem}.mp4", Path("video_detections") / f"{stem}.jsonl"
        result.annotated_video, result.detections_file = str(video), str(lines)
        for path in (self.folder / video, self.folder / lines):
            try:
                make_folder_below(self.folder, path.parent)
            except OSError as error:
                raise UserError(f"{path.parent} cannot be written: {error.strerror or error}") from None
        section = self.spec.inference
        return VideoWriter(
            self.folder / video, self.folder / lines, self.class_map, reader.fps, reader.time_base,
            1 / reader.aspect_ratio if reader.turned else reader.aspect_ratio,
            self.colors, section.outline_width, not section.is_internal,
        )  # fmt: skip


def detect_videos(detector: VideoDetector, videos: list[VideoSource]) -> list[str]:
    """Write the results of all videos; returns what was wrong with them. Each process takes every n-th video."""
    stems = video_stems(videos)
    mine = list(zip(videos, stems, strict=True))[rank() :: world_size()]
    try:
        for source, stem in mine:
            detector.run(source, stem)
    except (KeyboardInterrupt, Preempted):
        if world_size() == 1:
            _write_results(detector.folder, detector.results)
        raise
    rows = gather_objects([detector.results])
    return _write_results(detector.folder, [row for part in rows for row in part]) if rank() == 0 else []


def _write_results(folder: Path, rows: Sequence[VideoResult]) -> list[str]:
    """Write `videos.json` with the results of all processes; returns the problems of all videos."""
    content = [row.to_dict() for row in rows]
    write_atomically(folder / "videos.json", json.dumps({"videos": content}, indent=1) + "\n")
    kpi = {"videos": len(rows), "frames": sum(row.frames for row in rows)}
    current_status().running("Inference on videos finished.", kpi=kpi)
    return [problem for row in rows for problem in row.problems]


def video_stems(sources: list[VideoSource]) -> list[str]:
    """A distinct relative output name for each source."""
    names = {source: source.file_name for source in sources}
    taken: dict[str, VideoSource] = {}
    for source, name in names.items():
        while name in taken:
            name += "_2"
        names[source], taken[name] = name, source
    stems = output_stems([name if source.kind == "file" else f"{name}.x" for source, name in names.items()])
    return list(stems.values())
