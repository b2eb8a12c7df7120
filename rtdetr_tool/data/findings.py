"""Findings of dataset checks, counted by kind and split, with the first locations of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import KINDS as REPAIRS
from rtdetr_tool.data.repairs import Corners, Repairs

# A run would stop; scores may suffer or annotations were repaired; good to know.
ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")

# Kind -> (level, description); in the order of the report within each level.
KINDS: dict[str, tuple[str, str]] = {
    "unusable": (ERROR, "the split cannot be loaded"),
    "no_objects": (ERROR, "the split has no objects (crowd regions do not count)"),
    "no_scored_objects": (ERROR, "no objects of the scored classes: all scores would be undefined"),
    "no_scored_masks": (ERROR, "none of the scored objects has a mask: all mask scores would be undefined"),
    "no_scored_keypoints": (ERROR, "none of the scored objects has keypoints: all keypoint scores would be undefined"),
    "unknown_eval_class": (ERROR, "dataset.eval_class_ids has ids that are not category ids of the dataset"),
    "image_unreadable": (ERROR, "images that cannot be read"),
    "too_many_replaced": (ERROR, "missing or unreadable images, more than dataset.max_bad_share allows"),
    "image_size_differs": (ERROR, "images with a different size than in their annotations"),
    "image_replaced": (WARNING, "unreadable images that training replaces with another image (on_bad_image: skip)"),
    "image_in_train": (WARNING, "images that are also in the training data: scores on them are meaningless"),
    "image_twice": (WARNING, "duplicate images in the split"),
    "object_twice": (WARNING, "objects labeled twice (same class, nearly identical box)"),
    "box_tiny": (WARNING, "boxes smaller than one pixel of the network's input"),
    "too_many_objects": (WARNING, "images with more objects than the model has queries: the rest cannot be detected"),
    "beyond_num_select": (WARNING, "images with more objects than model.num_select, the maximum number of detections"),
    "beyond_max_dets": (
        WARNING,
        "images with more objects of one class than evaluate.max_dets: COCO metrics count no more detections per class "
        "and image, so even perfect detections score below 1",
    ),
    "max_dets_not_reached": (WARNING, "evaluate.max_dets is larger than the number of detections per image"),
    "test_without_objects": (
        WARNING,
        "no scored objects (crowd regions and classes outside dataset.eval_class_ids do not count): evaluate writes "
        "predictions, and all scores are undefined",
    ),
    "class_absent": (WARNING, "classes without objects"),
    "class_not_trained": (WARNING, "classes with objects in this split but not in the training data"),
    "class_imbalance": (WARNING, "classes that are much rarer than the most frequent one"),
    **{kind: (WARNING, text) for kind, text in REPAIRS.items()},
    "exif_unclear": (
        NOTE,
        "images rotated by EXIF whose size does not show whether the labels are rotated too: assumed rotated",
    ),
    "exif_not_applied": (NOTE, "images with EXIF rotation that were labeled as stored: used without rotation"),
    "no_test_split": (NOTE, "the dataset has no test split, which only evaluate requires"),
    "empty_images": (NOTE, "images without objects"),
}
EXAMPLES = 5
# At most once per split, so shown without a count.
_UNCOUNTED = (
    "unusable", "no_objects", "no_scored_objects", "no_scored_masks", "no_scored_keypoints", "unknown_eval_class",
    "max_dets_not_reached", "test_without_objects", "no_test_split",
)  # fmt: skip


@dataclass
class Finding:
    """One kind of finding in one split: its count and first locations."""

    kind: str
    split: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def level(self) -> str:
        return KINDS[self.kind][0]

    @property
    def text(self) -> str:
        return KINDS[self.kind][1]

    def line(self) -> str:
        """`train: 3 images that cannot be read (a.png, b.png, ...)`."""
        more = ", ..." if self.count > len(self.examples) else ""
        count = "" if self.kind in _UNCOUNTED else f"{self.count} "
        locations = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.split}: {count}{self.text}{locations}"

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "split": self.split, "kind": self.kind, "text": self.text, "count": self.count,
                "examples": self.examples}  # fmt: skip


@dataclass(frozen=True)
class Suspect:
    """An image to review: the reason, its labels, and the original box if it was repaired."""

    kind: str
    split: str
    where: str
    record: ImageRecord
    original: Corners | None = None  # xyxy pixels


class Findings:
    """Collects findings, and the first `suspects_per_kind` images of each kind for drawing."""

    def __init__(self, suspects_per_kind: int = 0) -> None:
        self.suspects_per_kind = suspects_per_kind
        self.suspects: list[Suspect] = []
        self._findings: dict[tuple[str, str], Finding] = {}
        self._drawn: dict[str, int] = {}

    def add(self, kind: str, split: str, where: str = "", count: int = 1, record: ImageRecord | None = None) -> None:
        if kind not in KINDS:
            raise KeyError(kind)
        finding = self._findings.setdefault((kind, split), Finding(kind, split))
        finding.count += count
        if where and len(finding.examples) < EXAMPLES:
            finding.examples.append(where)
        if record is not None:
            self._add_suspect(Suspect(kind, split, where, record))

    def _add_suspect(self, suspect: Suspect) -> None:
        if self._drawn.get(suspect.kind, 0) < self.suspects_per_kind:
            self._drawn[suspect.kind] = self._drawn.get(suspect.kind, 0) + 1
            self.suspects.append(suspect)

    def include(self, split: str, repairs: Repairs, records: Iterable[ImageRecord] = ()) -> None:
        """Add the repairs of a split's annotations; `records` are its images."""
        paths = {box.path for box in repairs.boxes} if self.suspects_per_kind else set()
        known = {record.path: record for record in records if record.path in paths} if paths else {}
        for box in repairs.boxes:
            if box.path in known:
                self._add_suspect(Suspect(box.kind, split, f"{box.path}, {box.where}", known[box.path], box.corners))
        for kind, count in repairs.counts.items():
            if count:
                self._findings[kind, split] = Finding(kind, split, count, list(repairs.examples[kind]))

    def __iter__(self) -> Iterator[Finding]:
        """Iterate over the findings, most severe first."""
        order = list(KINDS)
        return iter(sorted(self._findings.values(), key=lambda f: (LEVELS.index(f.level), order.index(f.kind))))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self if finding.level == ERROR]
