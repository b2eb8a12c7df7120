"""Sliced inference on drawn images of 4000 pixels with small and large shapes: scores with and without tiles.

    python scripts/tiles_demo.py /tmp/tiles

trains a small RT-DETR on images of 200 pixels for a few minutes, evaluates it on the large images with the command
`rtdetr evaluate`, and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from rtdetr_tool.cli import main as rtdetr

CLASSES = ("disc", "square", "triangle")
SMALL, LARGE = (20, 31), (450, 700)  # sides of shapes in pixels; COCO's small objects have less than 32^2
TRAINED = (20, 36)  # in images of TRAIN_SIDE
TRAIN_SIDE, TEST_SIDE, INPUT = 200, 4000, 128

MODES: dict[str, tuple[str, ...]] = {
    "whole image": (),
    "tiles, NMS": ("evaluate.tiles.enabled=true",),
    "tiles, NMM": ("evaluate.tiles.enabled=true", "evaluate.tiles.merge=nmm"),
    "tiles without the whole image, NMS": ("evaluate.tiles.enabled=true", "evaluate.tiles.whole_image=false"),
    "tiles without overlap, NMS": ("evaluate.tiles.enabled=true", "evaluate.tiles.overlap=0"),
    "tiles without overlap, NMM": (
        "evaluate.tiles.enabled=true", "evaluate.tiles.overlap=0", "evaluate.tiles.merge=nmm",
    ),
}  # fmt: skip


def draw(rng: np.random.Generator, side: int, ranges: Sequence[tuple[int, int]]) -> tuple[Image.Image, list[dict]]:
    """An image with one shape for each range of sides, and its COCO annotations without ids."""
    noise = rng.integers(60, 200, (max(2, side // 25), max(2, side // 25), 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    canvas, taken, rows = ImageDraw.Draw(image), [], []
    for low, high in ranges:
        for _ in range(100):
            length = int(rng.integers(low, high + 1))
            x, y = (int(value) for value in rng.integers(0, side - length, 2))
            box = (x - 4, y - 4, x + length + 4, y + length + 4)
            if all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for b in taken):
                break
        else:
            continue
        taken.append(box)
        label, color = int(rng.integers(3)), tuple(int(value) for value in rng.choice([10, 245], 3))
        corners = (x, y, x + length - 1, y + length - 1)
        if label == 0:
            canvas.ellipse(corners, fill=color, outline="black")
        elif label == 1:
            canvas.rectangle(corners, fill=color, outline="black")
        else:
            points = [(x, y + length - 1), (x + length - 1, y + length - 1), (x + length // 2, y)]
            canvas.polygon(points, fill=color, outline="black")
        box = [x, y, length, length]
        rows.append({"category_id": label + 1, "bbox": box, "area": length * length, "iscrowd": 0})
    return image, rows


def write_split(folder: Path, count: int, side: int, seed: int, large: bool) -> dict[str, str]:
    """Draw a split; returns its source."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        rng = np.random.default_rng([seed, number])
        ranges = [LARGE] * 6 + [SMALL] * 60 if large else [TRAINED] * int(rng.integers(1, 5))
        image, rows = draw(rng, side, ranges)
        image.save(folder / "images" / f"{number}.jpg", quality=92)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": side, "height": side})
        annotations += [{"id": len(annotations) + n, "image_id": number, **row} for n, row in enumerate(rows, 1)]
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(labels))
    return {"image_dir": str(folder / "images"), "json_file": str(folder / "labels.json")}


def spec_of(folder: Path, epochs: int, train: int, test: int) -> dict:
    sources = {
        "train_data_sources": [write_split(folder / "train", train, TRAIN_SIDE, 1, False)],
        "val_data_sources": write_split(folder / "val", 40, TRAIN_SIDE, 2, False),
        "test_data_sources": write_split(folder / "test", test, TEST_SIDE, 3, True),
    }
    size = [INPUT, INPUT]
    return {
        "results_dir": str(folder / "results"),
        "model": {
            "backbone": "resnet_18", "hidden_dim": 64, "nheads": 4, "feat_channels": [64, 64, 64],
            "dim_feedforward": 128, "num_queries": 30, "num_select": 30, "dec_layers": 2, "dn_number": 20,
        },
        "dataset": {
            **sources, "batch_size": 8, "workers": 0, "num_classes": None,
            "augmentation": {
                "multi_scales": [], "train_spatial_size": size, "eval_spatial_size": size,
                "iou_crop_prob": 0.0, "zoom_out_prob": 0.0,
            },
        },
        "train": {
            "num_epochs": epochs, "validation_interval": epochs, "checkpoint_interval": epochs, "enable_ema": False,
            "optim": {"lr": 4e-4, "lr_backbone": 4e-4, "warmup_steps": 50},
        },
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--train", type=int, default=300, help="training images")
    parser.add_argument("--test", type=int, default=2, help="test images")
    options = parser.parse_args()
    path = options.folder / "spec.yaml"
    checkpoint = options.folder / "results" / "train" / "rtdetr_model_latest.pth"
    if not checkpoint.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(spec_of(options.folder, options.epochs, options.train, options.test)))
        begin = time.perf_counter()
        if code := rtdetr(["train", "-e", str(path)]):
            return code
        print(f"trained for {time.perf_counter() - begin:.0f} s")
    lines = ["| mode | mAP | AP_small | AP_large | s per image |", "|---|---|---|---|---|"]
    for name, overrides in MODES.items():
        begin = time.perf_counter()
        arguments = ["evaluate", "-e", str(path), f"evaluate.checkpoint={checkpoint}", "evaluate.report=false"]
        tile = f"[{TRAIN_SIDE},{TRAIN_SIDE}]"
        if code := rtdetr([*arguments, f"evaluate.tiles.size={tile}", *overrides]):
            return code
        seconds = (time.perf_counter() - begin) / options.test
        scores = json.loads((options.folder / "results" / "evaluate" / "results.json").read_text())
        shown = " | ".join(f"{scores[key]:.3f}" for key in ("AP", "APs", "APl"))
        lines.append(f"| {name} | {shown} | {seconds:.1f} |")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
