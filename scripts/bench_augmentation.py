"""CPU time per image of each augmentation step, compared with decoding and resizing alone.

    python scripts/bench_augmentation.py IMAGES ANNOTATIONS.json [--count 32] [--turns 5] [--cache ram]

Each row uses one step with probability 1 and no other, in one process with one thread, alternately. Ratios are medians
of the ratios within a turn, because machines are shared. For copy-paste, every object gets an ellipse as its mask.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.data.build import build_train_dataset
from rtdetr_tool.data.collate import collate
from rtdetr_tool.data.dataset import TrainDataset
from rtdetr_tool.spec import spec_from_dict

NONE = "decoding and resizing only"
BATCH = 16
ROWS: dict[str, dict[str, Any]] = {
    NONE: {},
    **{
        name: {f"{name}_prob": 1.0}
        for name in (
            "flip", "vertical_flip", "rotate90", "rotation", "distortion", "zoom_out", "iou_crop", "scale_jitter",
            "mosaic", "mixup", "copy_paste",
        )
    },
    **{f"policy {name}": {"policy": name} for name in ("light", "rfdetr", "rtdetr", "aerial", "strong", "deim")},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", help="folder of images")
    parser.add_argument("annotations", help="COCO file of the images")
    parser.add_argument("--count", type=int, default=32, help="images per turn (default 32)")
    parser.add_argument("--turns", type=int, default=5, help="alternations (default 5)")
    parser.add_argument("--cache", choices=("none", "ram"), default="none", help="dataset.cache (default none)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = {"image_dir": options.images, "json_file": with_masks(options.annotations, Path(folder))}
        datasets = {name: build(source, options.cache, changes) for name, changes in ROWS.items()}
    count = min(options.count, len(datasets[NONE]))
    seconds: dict[str, list[float]] = {name: [] for name in datasets}
    if options.cache != "none":
        for dataset in datasets.values():
            for index, record in enumerate(dataset.records):
                dataset._decode(record, index)
    for _ in range(options.turns):
        for name, dataset in datasets.items():
            seconds[name].append(seconds_per_image(dataset, count))
    for name, measured in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(measured, seconds[NONE], strict=True))
        print(f"{name:28s} {statistics.median(measured) * 1e3:6.2f} ms {ratio:6.2f} x")


def build(source: dict[str, str], cache: str, changes: dict[str, Any]) -> TrainDataset:
    """The epoch of the first samples uses every step of a policy."""
    augmentation = {"policy": "none", "multi_scales": [], **changes, "start_epoch": 0}
    dataset = {"train_data_sources": [source], "cache": cache, "augmentation": augmentation}
    return build_train_dataset(spec_from_dict({"results_dir": "unused", "dataset": dataset}).dataset, seed=0)


def with_masks(annotations: str, folder: Path) -> str:
    """A copy of a COCO file in which every object has the ellipse in its box as its segmentation."""
    content = json.loads(Path(annotations).read_text())
    angles = [2 * math.pi * step / 24 for step in range(24)]
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        points = [(width / 2 * (1 + math.cos(a)), height / 2 * (1 + math.sin(a))) for a in angles]
        entry["segmentation"] = [[value for dx, dy in points for value in (x + dx, y + dy)]]
    file = folder / "with_masks.json"
    file.write_text(json.dumps(content))
    return str(file)


def seconds_per_image(dataset: TrainDataset, count: int) -> float:
    start = time.process_time()
    for first in range(0, count, BATCH):
        collate([dataset.sample((0, index)) for index in range(first, min(first + BATCH, count))])
    return (time.process_time() - start) / count


if __name__ == "__main__":
    main()
