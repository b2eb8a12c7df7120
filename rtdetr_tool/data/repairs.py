"""Problems in annotation files that were repaired, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# Kind -> the problem and what was done about it; in the order of the report.
KINDS = {
    "image_repeated": "duplicate images: used once",
    "image_without_size": "images without width and height: size read from the file",
    "image_missing": "missing image files: skipped",
    "file_not_an_image": "files in image folders that are not images: skipped",
    "image_of_same_name": "images with the same name as another one except for the extension: skipped",
    "image_without_label": "images without a label file: used as images without objects",
    "category_repeated": "duplicate categories: used once",
    "category_placeholder": "categories that only group others and have no objects in any split: skipped",
    "category_unnamed": "categories without a name: named by their id",
    "category_name_repeated": "categories with the same name as another one: kept separate, id appended to the name",
    "category_confusable": (
        "groups of categories whose names differ only in case, spaces, hyphens or underscores: kept as separate "
        "classes; if they are one class, give them the same name in the annotations"
    ),
    "category_renumbered": "categories with a different id in an earlier source: joined by name, earlier id used",
    "category_id_taken": "categories whose id has a different name in an earlier source: separate class with a new id",
    "category_unused": "categories without objects that are not in the training data or checkpoint: skipped",
    "annotation_id_repeated": "annotations with duplicate ids: kept (ids are not used)",
    "annotation_of_unknown_image": "annotations with an unknown image id: dropped",
    "id_as_text": "ids written as text: read as integers",
    "unit_doubtful": "files with boxes that may be in a different unit or format: kept unchanged",
    "box_malformed": "boxes that are not four numbers: dropped",
    "box_not_finite": "boxes with NaN or infinity: dropped",
    "box_empty": "boxes with zero or negative width or height: dropped",
    "box_outside": "boxes completely outside their image: dropped",
    "box_clipped": "boxes that extended beyond their image: clipped to it",
    "outline_boxed": "polygons: bounding boxes used",
    "mask_missing": "objects without a mask: no mask loss, not scored by mask",
    "mask_malformed": "masks that are not valid polygons or run lengths for their image: treated as missing",
    "keypoints_missing": "objects without keypoints: no keypoint loss, not scored by keypoints",
    "keypoints_malformed": "keypoints that are not x, y and a visibility of 0, 1 or 2 for each keypoint of their "
    "category: treated as missing",
    "keypoint_outside": "keypoints outside their image: treated as not labeled",
    "skeleton_malformed": "skeletons that are not pairs of keypoints of their category: lines not drawn",
    "keypoints_left_out": "poses: boxes used, keypoints ignored",
    "object_difficult": "objects marked difficult: treated as crowd regions, not trained on and not scored",
    "iscrowd_assumed": "annotations with a missing or invalid iscrowd (expected 0 or 1): treated as single objects",
    "area_computed": "annotations without a valid area: width x height used",
}


Corners = tuple[float, float, float, float]  # xyxy, pixels

BOXES_PER_KIND = 20  # original boxes that are kept for drawing


@dataclass(frozen=True)
class RepairedBox:
    """A box as labeled, before it was clipped or dropped."""

    kind: str
    where: str
    path: str  # of the image
    corners: Corners


@dataclass
class Repairs:
    """Counts by kind (`KINDS`) and the first few locations of each; empty if nothing was repaired."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    boxes: list[RepairedBox] = field(default_factory=list)

    def add(self, kind: str, where: str, count: int = 1) -> None:
        if kind not in KINDS:
            raise KeyError(kind)
        self.counts[kind] += count
        locations = self.examples.setdefault(kind, [])
        if len(locations) < 3:
            locations.append(where)

    def add_box(self, kind: str, where: str, path: str, corners: Corners) -> None:
        """Count a box that was clipped or dropped, and keep the original for drawing."""
        if self.counts[kind] < BOXES_PER_KIND:
            self.boxes.append(RepairedBox(kind, where, path, corners))
        self.add(kind, where)

    def include(self, other: Repairs) -> None:
        """Add the repairs of another file."""
        self.counts.update(other.counts)
        self.boxes += other.boxes
        for kind, locations in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + locations)[:3]

    def lines(self) -> list[str]:
        """One line per kind: the count, the problem, what was done, and the first locations."""
        return [
            f"{self.counts[kind]} {KINDS[kind]} ({', '.join(self.examples[kind])}"
            + (", ...)" if self.counts[kind] > len(self.examples[kind]) else ")")
            for kind in KINDS
            if self.counts[kind]
        ]

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def __str__(self) -> str:
        return "\n".join(self.lines())
