"""Results of an evaluation: COCO metrics, metrics per class and the best threshold. None means undefined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.metrics.operating_point import UNDEFINED, OperatingPoint

Stats = dict[str, float | None]  # by the names of `stat_names`, 0..1; None without ground truth

ALIASES = {"mAP": "AP", "mAP50": "AP50"}
MAX_DETS = 100  # detections per class and image that COCO counts


def detection_limits(max_dets: int) -> list[int]:
    """COCO's `maxDets`: recall is computed at each limit, all other metrics at the last one."""
    return [*(count for count in (1, 10) if count < max_dets), max_dets]


def stat_names(max_dets: int = MAX_DETS) -> tuple[str, ...]:
    """Names of COCO's metrics, in COCO's order."""
    recalls = [f"ARmax{count}" for count in detection_limits(max_dets)]
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", *recalls, "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassResult:
    """One category: AP over all IoUs, AP50 and AR at `max_dets` detections; None without ground truth."""

    index: int | None
    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    ar: float | None
    objects: int  # ground truth without crowd regions
    best: OperatingPoint = UNDEFINED  # of this class alone, at IoU 0.5


@dataclass(frozen=True)
class CocoResult:
    """Result of an evaluation. A metric without ground truth is undefined: None, null in JSON."""

    stats: Stats
    per_class: list[ClassResult] = field(default_factory=list)
    images: int = 0
    detections: int = 0
    best: OperatingPoint = UNDEFINED  # over all classes, at IoU 0.5
    masks: Stats | None = None  # for masks instead of boxes, if the model predicts masks
    max_dets: int = MAX_DETS  # counted detections per class and image
    keypoints: Stats | None = None  # COCO's ten keypoint metrics, if the model predicts keypoints

    @property
    def map(self) -> float | None:
        return self.stats["AP"]

    @property
    def by_kind(self) -> dict[str, Stats]:
        """The metrics of boxes and of what else the model predicts, by `catalog.PREDICTS`."""
        kinds = {BOXES: self.stats, MASKS: self.masks, KEYPOINTS: self.keypoints}
        return {kind: stats for kind, stats in kinds.items() if stats is not None}

    def recall(self, kind: str) -> float | None:
        """The mean recall at the largest number of detections."""
        return self.by_kind[kind]["AR" if kind == KEYPOINTS else f"ARmax{self.max_dets}"]

    @property
    def map50(self) -> float | None:
        return self.stats["AP50"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: COCO's metrics, the aliases `mAP` and `mAP50`, `max_dets`, `per_class`, `best`, and the
        metrics of `masks` and `keypoints` (null if the model does not predict them)."""
        names = {"category_id": "id", "ap": "AP", "ap50": "AP50", "ar": "AR"}
        rows = [{names.get(key, key): value for key, value in asdict(entry).items()} for entry in self.per_class]
        by_head = {kind: None if stats is None else _with_aliases(stats)
                  for kind, stats in ((MASKS, self.masks), (KEYPOINTS, self.keypoints))}  # fmt: skip
        return {**_with_aliases(self.stats), "max_dets": self.max_dets, "per_class": rows, "images": self.images,
                "detections": self.detections, "best": asdict(self.best), **by_head}  # fmt: skip


def score_rows(kinds: Mapping[str, Stats]) -> list[list[str]]:
    """Rows of a table of metrics: the name, and the score of each kind; empty where a kind has no such metric."""
    names = dict.fromkeys(name for stats in kinds.values() for name in stats)
    return [[name, *(score_text(stats[name]) if name in stats else "" for stats in kinds.values())] for name in names]


def score_text(value: float | None) -> str:
    """Four decimals, or `-` if undefined."""
    return "-" if value is None else f"{value:.4f}"


def _with_aliases(stats: Mapping[str, float | None]) -> Stats:
    return {**stats, **{alias: stats[name] for alias, name in ALIASES.items()}}
