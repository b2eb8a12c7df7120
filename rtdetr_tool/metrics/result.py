"""What an evaluation found: the numbers of COCO, those of each class, and the best threshold. None is undefined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rtdetr_tool.metrics.operating_point import NOTHING_TO_FIND, OperatingPoint

Stats = dict[str, float | None]  # the names of `stat_names`, fractions; None without any ground truth to score against

ALIASES = {"mAP": "AP", "mAP50": "AP50"}
MAX_DETS = 100  # detections of each class and image that COCO counts


def detection_limits(max_dets: int) -> list[int]:
    """COCO's `maxDets`: numbers of detections with a recall each; the last one holds for all other scores."""
    return [*(count for count in (1, 10) if count < max_dets), max_dets]


def stat_names(max_dets: int = MAX_DETS) -> tuple[str, ...]:
    """The names of COCO's numbers, in COCO's order."""
    recalls = [f"ARmax{count}" for count in detection_limits(max_dets)]
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", *recalls, "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassResult:
    """One category: AP over all IoUs, AP50 and AR at `max_dets` detections; None where it has no ground truth."""

    index: int | None
    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    ar: float | None
    objects: int  # ground truth without crowd regions


@dataclass(frozen=True)
class CocoResult:
    """What an evaluation found. A score without any ground truth is undefined: None, null in JSON."""

    stats: Stats
    per_class: list[ClassResult] = field(default_factory=list)
    images: int = 0
    detections: int = 0
    best: OperatingPoint = NOTHING_TO_FIND  # of the classes together, at IoU 0.5
    masks: Stats | None = None  # for masks instead of boxes, where the model has masks
    max_dets: int = MAX_DETS  # detections of each class and image that counted

    @property
    def map(self) -> float | None:
        return self.stats["AP"]

    @property
    def map50(self) -> float | None:
        return self.stats["AP50"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: COCO's numbers, `mAP` and `mAP50`, `max_dets`, `per_class`, `best`, and the same numbers
        of `masks` (null where the model has none)."""
        names = {"category_id": "id", "ap": "AP", "ap50": "AP50", "ar": "AR"}
        rows = [{names.get(key, key): value for key, value in asdict(entry).items()} for entry in self.per_class]
        masks = None if self.masks is None else _with_aliases(self.masks)
        return {**_with_aliases(self.stats), "max_dets": self.max_dets, "per_class": rows, "images": self.images,
                "detections": self.detections, "best": asdict(self.best), "masks": masks}  # fmt: skip


def score_text(value: float | None) -> str:
    """Four decimals, or `-` for a score that is undefined."""
    return "-" if value is None else f"{value:.4f}"


def _with_aliases(stats: Mapping[str, float | None]) -> Stats:
    return {**stats, **{alias: stats[name] for alias, name in ALIASES.items()}}
