"""Write the detections of images and videos.

The results folder contains `images_annotated/` (images with boxes), `labels/` (KITTI), `predictions.json` (COCO
results) and `images.json`, the list of images, which also lists files that are not images and images that could not be
read. Masks are drawn, and written as run lengths. For videos see `workflows.video`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.folder import ImageFolder, read_classmap
from rtdetr_tool.errors import DataError, UserError
from rtdetr_tool.files import make_folder_below, replacing, write_atomically
from rtdetr_tool.formats.detection_loop import LoopTimes, detect
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.pixels import as_rgb
from rtdetr_tool.ops.structures import Detections, Target
from rtdetr_tool.progress import Task
from rtdetr_tool.spec import InferenceSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import gather_objects, rank
from rtdetr_tool.visualize import Color, draw_detections, skeletons_of
from rtdetr_tool.workflows.detection import Detecting
from rtdetr_tool.workflows.kitti import CocoRow, coco_rows, kitti_lines, kitti_names, output_stems, with_category

logger = logging.getLogger(__name__)

_THREADS = min(4, os.cpu_count() or 1)  # that write files
NAMED = 20  # maximum number of unreadable images in the final message


def resolve_classes(
    class_map: ClassMap | None,
    path: str | None,
    num_classes: int | None,
    field: str = "dataset.infer_data_sources.classmap",
) -> ClassMap:
    """The checkpoint's classes, with which a classmap must agree, or those of the classmap if the checkpoint has none.

    `field` names the classmap, the file `path`, in messages.
    Line i of a classmap is the name of class index i. If the classes do not start at index 0 (ids 1..N used as
    indices), a classmap without a line for the unused index 0, or in the order of the category ids, is also accepted.
    """
    names = read_classmap(path) if path else None
    if class_map is None:
        if names is None:
            raise UserError(
                f"{field}: required, but not set, because the checkpoint has no class names; expected a text file with "
                "one name per line"
            )
        if num_classes and len(names) > num_classes:
            raise UserError(f"{path} has {len(names)} names; expected at most {num_classes} (dataset.num_classes)")
        return ClassMap([ClassEntry(i, i, name) for i, name in enumerate(names)], num_classes)
    if names is None:
        return class_map
    by_index = [name if name is not None else "" for name in class_map.names[: class_map.entries[-1].index + 1]]
    in_order = [entry.name for entry in class_map.entries]
    as_indices = len(names) == len(by_index) and all(a == b for a, b in zip(names, by_index, strict=True) if b)
    if not as_indices and names != in_order:
        raise UserError(
            f"{path} and the checkpoint have different class names:\n"
            f"  classmap:   {', '.join(names)}\n  checkpoint: {', '.join(in_order)}"
        )
    return class_map


class ResultRow(CocoRow):
    """A detection in `predictions.json`."""

    image_id: int


Failure = tuple[str, str]  # path and message of an image that could not be read


class Writer:
    """Writes the detections of each image and collects the COCO results."""

    def __init__(
        self,
        folder: Path,
        section: InferenceSpec,
        class_map: ClassMap,
        colors: Mapping[str, Color],
        images: ImageFolder,
    ) -> None:
        self.folder, self.section, self.class_map, self.colors = folder, section, class_map, colors
        self.paths, self.skipped, self.pixels = images.paths, images.skipped, images.pixels
        self.stems, self.label_names = self._stems(self.paths), kitti_names(class_map)
        self.results: list[ResultRow] = []
        self.created: set[Path] = set()  # folders
        self.failures: list[Failure] = []
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="writer")  # decoding and encoding free the GIL
        self._running: deque[Future[None]] = deque()

    def _stems(self, paths: Sequence[str]) -> dict[str, str]:
        """A unique output name per image (with `is_internal`: unique within its sequence)."""
        if not self.section.is_internal:
            return output_stems(paths)
        sequences: dict[str, list[str]] = {}
        for path in paths:
            sequences.setdefault(sequence_of(path), []).append(path)
        return {path: stem for group in sequences.values() for path, stem in output_stems(group).items()}

    def output_paths(self, path: str) -> tuple[Path, Path]:
        """The paths of the label file and the annotated image; with `is_internal` in a folder per sequence."""
        stem, root = self.stems[path], self.folder
        if self.section.is_internal:
            root = root / sequence_of(path)
        suffix = Path(path).suffix if Path(path).suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp") else ".png"
        return root / "labels" / f"{stem}.txt", root / "images_annotated" / f"{stem}{suffix}"

    def _make_folders(self, *folders: Path) -> None:
        for folder in folders:
            if folder not in self.created:
                try:
                    make_folder_below(self.folder, folder)
                except OSError as error:
                    raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
                self.created.add(folder)

    def write(self, target: Target, detections: Detections) -> None:
        """Keep the results of an image; its files are written by another thread (see `wait`)."""
        detections = with_category(detections, self.class_map)
        label_file, image_file = self.output_paths(target.path)
        self._make_folders(label_file.parent, image_file.parent)
        while len(self._running) >= 4 * _THREADS:
            self._running.popleft().result()
        self._running.append(self._threads.submit(self._write_files, target, detections, label_file, image_file))
        rows = coco_rows(detections, self.class_map)
        self.results += [{"image_id": target.image_id, **row} for row in rows]

    def _write_files(self, target: Target, detections: Detections, label_file: Path, image_file: Path) -> None:
        lines = kitti_lines(detections, self.label_names.__getitem__)
        write_atomically(label_file, "".join(f"{line}\n" for line in lines))
        image = Image.fromarray(as_rgb(decode_image(target.path, pixels=self.pixels)).permute(1, 2, 0).numpy())
        drawn = draw_detections(
            image,
            detections,
            self.class_map.name_of,
            self.colors,
            self.section.outline_width,
            labels=not self.section.is_internal,
            skeletons=skeletons_of(self.class_map),
        )
        save_image(drawn, image_file)

    def wait(self) -> None:
        """Wait until all files are written. Raises the first error."""
        while self._running:
            self._running.popleft().result()
        self._threads.shutdown()

    def fail(self, path: str, message: str) -> None:
        logger.error("%s", message)
        self.failures.append((path, message))


def sequence_of(path: str) -> str:
    """The parent of the image's folder, as in TAO's sequences: `<sequence>/images/x.jpg`."""
    parents = Path(path).resolve().parents
    return parents[min(1, len(parents) - 1)].name


def save_image(image: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        image.save(temporary, quality=92)


def detect_images(detecting: Detecting, writer: Writer, dataset: ImageFolder, thresholds: Tensor) -> list[str]:
    """Write the results of all images; returns why some could not be read."""
    runtime, spec, times = detecting.model.runtime, detecting.spec, LoopTimes()
    if len(dataset):
        loader = detecting.loader(dataset)
        with Task("Detecting", len(loader), "batches") as task:
            for batch, detections in detect(runtime, loader, spec.model.num_select, times):
                for failure in batch.failures:
                    writer.fail(failure.path, failure.message)
                for target, image_detections in zip(batch.targets, detections, strict=True):
                    writer.write(target, image_detections.above(thresholds))
                task.advance()
    writer.wait()
    results = gather_objects([(writer.results, writer.failures)])
    return _write_results(writer, results, times, runtime.name) if rank() == 0 else []


def _write_results(
    writer: Writer, parts: Sequence[tuple[list[ResultRow], list[Failure]]], times: LoopTimes, runtime: str
) -> list[str]:
    """Write the results of all processes; returns why images could not be read."""
    results = sorted((row for part, _ in parts for row in part), key=lambda row: row["image_id"])
    failures = sorted(row for _, part in parts for row in part)
    write_atomically(writer.folder / "predictions.json", json.dumps(results) + "\n")
    write_atomically(writer.folder / "images.json", json.dumps(image_list(writer, failures), indent=1) + "\n")
    done = len(writer.paths) - len(failures)
    kpi = {"images": done, "detections": len(results)}
    if failures or writer.skipped:
        kpi |= {"images_unreadable": len(failures), "files_skipped": len(writer.skipped)}
    current_status().running("Inference on images finished.", kpi=kpi)
    if writer.paths:
        logger.info("Runtime %s: %s", runtime, times.summary())
        logger.info(
            "%d detections in %d images; wrote annotated images to %s",
            len(results),
            done,
            writer.folder / "images_annotated",
        )
    return [message for _, message in failures]


def raise_for_problems(folder: Path, images: int, unreadable: Sequence[str], problems: Sequence[str]) -> None:
    """`DataError` if images could not be read, or videos not completely; everything else is written by then."""
    heads = []
    if unreadable:
        heads.append(f"{len(unreadable)} of {images} images could not be read")
    if problems:
        heads.append("videos could not be read completely")
    if not heads:
        return
    lines = [*unreadable[:NAMED], *problems[:NAMED]]
    more = len(unreadable) + len(problems) - len(lines)
    text = "".join(f"\n  - {line}" for line in lines)
    rest = f"\n  - ... and {more} more (see images.json and videos.json)" if more else ""
    raise DataError(f"{' and '.join(heads)}; wrote all other results to {folder}:{text}{rest}")


def image_list(writer: Writer, failures: Sequence[Failure]) -> dict[str, Sequence[Any]]:
    """The content of `images.json`: COCO's images and categories, and the files that could not be read.

    `unreadable` has image files with the reason, `skipped` the files in the image folders that are not images.
    """
    return {
        "images": [{"id": number, "file_name": path} for number, path in enumerate(writer.paths)],
        "categories": [{"id": id, "name": name} for id, name in writer.class_map.categories.items()],
        "unreadable": [{"file_name": path, "reason": message} for path, message in failures],
        "skipped": writer.skipped,
    }
