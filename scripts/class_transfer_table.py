"""Measure the score that remains if a run starts from a detector's weights and the data orders classes differently.

    python scripts/class_transfer_table.py /tmp/transfer

draws a few images, overfits an RT-DETR and an RF-DETR to them, and starts runs of one epoch at a learning rate of 1e-9
from their files: every path that copies weights, every format, every order of classes. It prints a Markdown table of
the mean AP over the classes that file and data share, before and after. It takes about five minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from convert_dataset import write_format
from make_sample_dataset import CLASSES, write_split

from rtdetr_tool.api import Detector
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_from_dict
from rtdetr_tool.training.distill import DistillModule
from rtdetr_tool.training.fit import fit

FORMATS = ("coco", "yolo", "voc")
ORDERS: dict[str, Sequence[str]] = {
    "same": CLASSES,
    "reversed": CLASSES[::-1],
    "one more": ("cross", *CLASSES),
    "one fewer": CLASSES[1:],
    "no names": CLASSES,
    "no names, reversed": CLASSES[::-1],
    "no names, one more": ("cross", *CLASSES),
}
SIDE = 64
MODELS: dict[str, dict[str, Any]] = {
    "RT-DETR": {
        "backbone": "timm/test_resnet", "hidden_dim": 64, "nheads": 4, "dim_feedforward": 64,
        "feat_channels": [64, 64, 64], "dec_layers": 2, "num_queries": 30, "num_select": 30, "dn_number": 20,
    },
    "RF-DETR": {
        "arch": "rfdetr", "num_select": 30,
        "rfdetr": {
            "resolution": SIDE, "patch_size": 8, "num_windows": 1, "num_queries": 30, "group_detr": 2,
            "dim_feedforward": 64, "dec_layers": 2, "hidden_dim": 64, "sa_nheads": 4, "ca_nheads": 4,
            "out_feature_indexes": [1, 2, 3, 4],
        },
    },
}  # fmt: skip
EPOCHS = {"RT-DETR": 200, "RF-DETR": 300}  # of the first training
_LEARNING_RATE = {"RT-DETR": 1e-3, "RF-DETR": 3e-4}


def settings(family: str, data: Path, out: Path, epochs: int, rate: float) -> dict[str, Any]:
    """A spec for training and validation on the same images."""
    sources = {"dataset_dir": str(data), "split": "train"}
    augmentation = {
        "train_spatial_size": [SIDE, SIDE], "eval_spatial_size": [SIDE, SIDE], "multi_scales": [],
        "distortion_prob": 0.0, "iou_crop_prob": 0.0,
    }  # fmt: skip
    return {
        "model": MODELS[family],
        "dataset": {
            "train_data_sources": [sources], "val_data_sources": sources, "num_classes": None, "batch_size": 4,
            "workers": 0, "class_ids": "contiguous", "augmentation": augmentation,
        },
        "train": {
            "num_epochs": epochs, "validation_interval": epochs, "checkpoint_interval": epochs, "seed": 1,
            "accelerator": "cpu", "results_dir": str(out), "log_per_class_metrics": True, "tensorboard": False,
            "activation_checkpoint": False, "precision": "fp32",
            "optim": {"lr": rate, "lr_backbone": rate, "lr_steps": [epochs * 3 // 4]},
        },
        "wandb": {"enable": False},
    }  # fmt: skip


def write_orders(root: Path, images: int) -> dict[tuple[str, str], Path]:
    """(format, order) -> folder with the same generated images and classes in that order."""
    drawn = root / "drawn"
    write_split(drawn, "train", images, 2 * SIDE, 7)
    content = json.loads((drawn / "annotations" / "instances_train.json").read_text())
    folders = {}
    for order, names in ORDERS.items():
        for kind in FORMATS:
            folder = root / f"{kind}_{order.replace(' ', '_').replace(',', '')}"
            folders[kind, order] = write_format(
                kind, folder, {"train": numbered(content, names)}, {"train": drawn / "train"}
            )
    return folders


def numbered(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A COCO dict with only these categories, numbered from 1 in this order, and their objects."""
    old = {category["id"]: category["name"] for category in content["categories"]}
    new = {name: index for index, name in enumerate(names, 1)}
    kept = [{**a, "category_id": new[old[a["category_id"]]]} for a in content["annotations"]
            if old[a["category_id"]] in new]  # fmt: skip
    return {**content, "annotations": kept, "categories": [{"id": i, "name": name} for name, i in new.items()]}


def without_names(path: Path) -> Path:
    """The same file without its list of classes."""
    payload = load_checkpoint(path)
    payload["rtdetr_tool"]["classes"] = []
    target = path.with_name("without_names.pth")
    torch.save(payload, target)
    return target


def aps(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("val/AP/"): value for name, value in metrics.items() if name.startswith("val/AP/")}


def from_file(spec: ExperimentSpec, start: Path) -> dict[str, float]:
    """`train.pretrained_model_path`."""
    return aps(fit(replace(spec, train=replace(spec.train, pretrained_model_path=str(start)))).metrics)


def from_detector(spec: ExperimentSpec, start: Path) -> dict[str, float]:
    """`Detector.train`."""
    data = spec.dataset.train_data_sources[0]
    detector = Detector.from_checkpoint(start, device="cpu")
    augmentation = {f"dataset.augmentation.{name}": 0.0 for name in ("distortion_prob", "iou_crop_prob")}
    result = detector.train(
        train_data_sources=[data], val_data_sources=data, epochs=1, lr=1e-9, lr_encoder=1e-9, device="cpu",
        wandb=False, output_dir=spec.train.results_dir, num_workers=0, batch_size=4, multi_scale=False,
        log_per_class_metrics=True, **augmentation,
    )  # fmt: skip
    return aps(result.metrics)


def from_teacher(spec: ExperimentSpec, start: Path) -> dict[str, float]:
    """`model.load_teacher_enc_dec`; the backbone, which it does not copy, comes from the same file."""
    from rtdetr_tool.formats.opening import open_detector

    teacher = open_detector(str(start), LoadedSpec(ExperimentSpec(), {}))
    binding = {"teacher_module_name": "srcs", "student_module_name": "srcs", "criterion": "L2", "weight": 1.0}
    data = {"teacher": MODELS["RT-DETR"], "pretrained_teacher_model_path": str(start), "bindings": [binding]}
    distill = spec_from_dict({"distill": data}).distill
    spec = replace(spec, distill=distill, model=replace(spec.model, load_teacher_enc_dec=True))
    spec = replace(spec, train=replace(spec.train, pretrained_model_path=str(start)))
    build = partial(DistillModule, teacher=teacher.detector, teacher_classes=teacher.class_map)
    return aps(fit(spec, build_module=build).metrics)


PATHS: dict[str, tuple[str, Callable[[ExperimentSpec, Path], dict[str, float]]]] = {
    "`train.pretrained_model_path`, RT-DETR": ("RT-DETR", from_file),
    "`train.pretrained_model_path`, RF-DETR": ("RF-DETR", from_file),
    "`Detector.train`, RT-DETR": ("RT-DETR", from_detector),
    "`Detector.train`, RF-DETR": ("RF-DETR", from_detector),
    "`model.load_teacher_enc_dec`": ("RT-DETR", from_teacher),
}


def mean(scores: Mapping[str, float], names: Sequence[str]) -> float:
    shared = [scores[name] for name in names if name in CLASSES]
    return sum(shared) / len(shared)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Scores of runs that start from weights with other class orders.")
    parser.add_argument("out", type=Path, help="new working folder")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the epochs of the first training")
    options = parser.parse_args(arguments)
    logging.getLogger("rtdetr_tool").setLevel(logging.ERROR)
    folders = write_orders(options.out, options.images)
    before, files = {}, {}
    for family in MODELS:
        epochs = max(int(EPOCHS[family] * options.scale), 1)
        out = options.out / f"trained_{family}"
        spec = spec_from_dict(settings(family, folders["coco", "same"], out, epochs, _LEARNING_RATE[family]), "train")
        result = fit(spec)
        before[family], files[family] = aps(result.metrics), result.latest_path.resolve()
        print(family, {name: round(value, 3) for name, value in before[family].items()}, file=sys.stderr, flush=True)
    print("| path | order of classes | before | COCO | YOLO | VOC |\n|---|---|---|---|---|---|")
    for path, (family, run) in PATHS.items():
        for order, names in ORDERS.items():
            start = without_names(files[family]) if order.startswith("no names") else files[family]
            after = []
            for kind in FORMATS:
                out = options.out / "runs" / f"{len(list((options.out / 'runs').glob('*')))}"
                spec = spec_from_dict(settings(family, folders[kind, order], out, 1, 1e-9), "train")
                after.append(mean(run(spec, start), names))
            cells = " | ".join(f"{score:.3f}" for score in after)
            print(f"| {path} | {order} | {mean(before[family], names):.3f} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
