"""What was wrong in annotation files and what was done about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# kind -> what it is and what was done; the order is that of the report.
KINDS = {
    "image_repeated": "images listed twice: listed once",
    "image_without_size": "images without width and height: taken from the file",
    "image_missing": "image files missing: left out",
    "file_not_an_image": "files between the images that are not images: skipped",
    "image_of_same_name": "images named like another one but for their extension: skipped",
    "image_without_label": "images without a label file: taken as images without objects",
    "category_repeated": "categories listed twice: listed once",
    "category_placeholder": "categories that only group others and that no object of any split has: skipped",
    "category_unnamed": "categories without a name: called by their id",
    "category_name_repeated": "categories with the name of another one: kept apart, with their id behind the name",
    "category_renumbered": "categories with another id in an earlier source: joined by name, with the earlier id",
    "category_id_taken": "categories whose id has another name in an earlier source: a class of its own, with a new id",
    "category_unused": "categories without an object that the training data or checkpoint does not have: skipped",
    "annotation_id_repeated": "annotations with an id that another one has: kept (ids are not used)",
    "annotation_of_unknown_image": "annotations of an image id that is not listed: dropped",
    "id_as_text": "ids written as text: read as integers",
    "unit_doubtful": "files whose boxes may be in another unit or form: kept as they are",
    "box_malformed": "boxes that are not four numbers: dropped",
    "box_not_finite": "boxes with NaN or infinity: dropped",
    "box_empty": "boxes of zero or negative width or height: dropped",
    "box_outside": "boxes wholly outside of their image: dropped",
    "box_clipped": "boxes that reached out of their image: clipped to it",
    "outline_boxed": "outlines (polygons): the boxes around them taken",
    "mask_missing": "objects without a mask: their masks are neither learned nor scored",
    "mask_malformed": "masks that are no outlines or run lengths of their image: taken as missing",
    "keypoints_left_out": "poses: their boxes taken, the keypoints left out",
    "object_difficult": "objects marked difficult: taken as crowd regions, neither learned nor counted",
    "iscrowd_assumed": "annotations whose iscrowd is missing or neither 0 nor 1: taken as single objects",
    "area_computed": "annotations without a usable area: width x height taken",
}


Corners = tuple[float, float, float, float]  # xyxy, pixels

BOXES_PER_KIND = 20  # are kept as they were, to be drawn


@dataclass(frozen=True)
class MendedBox:
    """A box as it was labelled, before it was clipped or dropped."""

    kind: str
    where: str
    path: str  # of its image
    corners: Corners


@dataclass
class Repairs:
    """Counts by kind (`KINDS`) and the first few places of each; empty when the file was clean."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    boxes: list[MendedBox] = field(default_factory=list)

    def add(self, kind: str, where: str, count: int = 1) -> None:
        if kind not in KINDS:
            raise KeyError(kind)
        self.counts[kind] += count
        places = self.examples.setdefault(kind, [])
        if len(places) < 3:
            places.append(where)

    def add_box(self, kind: str, where: str, path: str, corners: Corners) -> None:
        """Note a box of an image that cannot stay as it is."""
        if self.counts[kind] < BOXES_PER_KIND:
            self.boxes.append(MendedBox(kind, where, path, corners))
        self.add(kind, where)

    def include(self, other: Repairs) -> None:
        """Add what another file needed."""
        self.counts.update(other.counts)
        self.boxes += other.boxes
        for kind, places in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + places)[:3]

    def lines(self) -> list[str]:
        """One line per kind: how many, what, what was done, and where for the first of them."""
        found = [kind for kind in KINDS if self.counts[kind]]
        return [
            f"{self.counts[kind]} {KINDS[kind]} ({', '.join(self.examples[kind])}"
            + (", ...)" if self.counts[kind] > len(self.examples[kind]) else ")")
            for kind in found
        ]

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def __str__(self) -> str:
        return "\n".join(self.lines())
