"""What checking data sets has found: named kinds, counted per split, with the first places of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import KINDS as REPAIRS
from rtdetr_tool.data.repairs import Corners, Repairs

# A run would stop; the score will suffer, or something was mended; worth knowing.
ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")

# Kind -> (level, what it is); the order is that of the report, after the level.
KINDS: dict[str, tuple[str, str]] = {
    "unusable": (ERROR, "the split cannot be loaded"),
    "no_objects": (ERROR, "no object in the whole split (crowd regions do not count)"),
    "no_scored_objects": (ERROR, "no object of the classes that are scored: every score would be undefined"),
    "no_scored_masks": (ERROR, "no mask among the objects that are scored: every score of masks would be undefined"),
    "unknown_eval_class": (ERROR, "dataset.eval_class_ids has ids that are no category of the data"),
    "image_unreadable": (ERROR, "images that cannot be read"),
    "too_many_replaced": (ERROR, "missing and unreadable images, more than training replaces (dataset.max_bad_share)"),
    "image_size_differs": (ERROR, "images whose size is not that of their annotations"),
    "image_replaced": (WARNING, "unreadable images in place of which training takes another one (on_bad_image: skip)"),
    "image_in_train": (WARNING, "images that are in the training data too: scores on them say nothing"),
    "image_twice": (WARNING, "images that the split has twice"),
    "object_twice": (WARNING, "objects labelled twice (same class, nearly the same box)"),
    "box_tiny": (WARNING, "boxes narrower than one pixel of the network's input"),
    "too_many_objects": (WARNING, "images with more objects than the model has queries: the rest cannot be found"),
    "beyond_num_select": (WARNING, "images with more objects than model.num_select: no more detections are returned"),
    "beyond_max_dets": (
        WARNING,
        "images with more objects of one class than evaluate.max_dets: COCO's score counts no more detections of a "
        "class and image, so that even perfect ones score below 1",
    ),
    "max_dets_not_reached": (WARNING, "evaluate.max_dets is more than the detector returns for an image"),
    "test_without_objects": (
        WARNING,
        "no object that counts (crowd regions do not, nor classes outside dataset.eval_class_ids): evaluate writes "
        "predictions, and every score is undefined",
    ),
    "class_absent": (WARNING, "classes without an object"),
    "class_not_trained": (WARNING, "classes with objects here but none in the training data"),
    "class_imbalance": (WARNING, "classes far rarer than the most frequent one"),
    **{kind: (WARNING, text) for kind, text in REPAIRS.items()},
    "exif_unclear": (NOTE, "images turned by EXIF whose size does not tell if their labels were: taken as turned"),
    "exif_not_applied": (NOTE, "images that EXIF turns, labelled as they are stored: left as stored"),
    "no_test_split": (NOTE, "the folder has none, which only evaluate needs"),
    "empty_images": (NOTE, "images without an object"),
}
EXAMPLES = 5
# Found once in a split, so that a number would say nothing.
_UNCOUNTED = (
    "unusable", "no_objects", "no_scored_objects", "no_scored_masks", "unknown_eval_class", "max_dets_not_reached",
    "test_without_objects", "no_test_split",
)  # fmt: skip


@dataclass
class Finding:
    """One kind of thing in one split: how often, and the first places."""

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
        places = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.split}: {count}{self.text}{places}"

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "split": self.split, "kind": self.kind, "text": self.text, "count": self.count,
                "examples": self.examples}  # fmt: skip


@dataclass(frozen=True)
class Suspect:
    """An image to look at: why, its labels, and the box as it was labelled where that was mended."""

    kind: str
    split: str
    where: str
    record: ImageRecord
    mended: Corners | None = None  # xyxy, pixels


class Findings:
    """Collects findings; of the images behind them the first `suspects_per_kind` of each kind are kept to be drawn."""

    def __init__(self, suspects_per_kind: int = 0) -> None:
        self.suspects_per_kind = suspects_per_kind
        self.suspects: list[Suspect] = []
        self._found: dict[tuple[str, str], Finding] = {}
        self._drawn: dict[str, int] = {}

    def add(self, kind: str, split: str, where: str = "", count: int = 1, record: ImageRecord | None = None) -> None:
        if kind not in KINDS:
            raise KeyError(kind)
        found = self._found.setdefault((kind, split), Finding(kind, split))
        found.count += count
        if where and len(found.examples) < EXAMPLES:
            found.examples.append(where)
        if record is not None:
            self._suspect(Suspect(kind, split, where, record))

    def _suspect(self, suspect: Suspect) -> None:
        if self._drawn.get(suspect.kind, 0) < self.suspects_per_kind:
            self._drawn[suspect.kind] = self._drawn.get(suspect.kind, 0) + 1
            self.suspects.append(suspect)

    def include(self, split: str, repairs: Repairs, records: Iterable[ImageRecord] = ()) -> None:
        """Everything that was mended when the annotations of a split were read; images are found in `records`."""
        paths = {box.path for box in repairs.boxes} if self.suspects_per_kind else set()
        known = {record.path: record for record in records if record.path in paths} if paths else {}
        for box in repairs.boxes:
            if box.path in known:
                self._suspect(Suspect(box.kind, split, f"{box.path}, {box.where}", known[box.path], box.corners))
        for kind, count in repairs.counts.items():
            if count:
                self._found[kind, split] = Finding(kind, split, count, list(repairs.examples[kind]))

    def __iter__(self) -> Iterator[Finding]:
        """The worst first."""
        order = list(KINDS)
        return iter(sorted(self._found.values(), key=lambda f: (LEVELS.index(f.level), order.index(f.kind))))

    @property
    def errors(self) -> list[Finding]:
        return [found for found in self if found.level == ERROR]
