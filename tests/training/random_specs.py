"""Random valid specs from the schema: training and distillation fields of both families, at tiny sizes."""

from __future__ import annotations

import copy
import random
import typing
from typing import Any

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.fields import INF, default_of
from rtdetr_tool.spec.schema import section_type, walk_fields

SECTIONS = ("model.", "dataset.", "train.")
# Fields that cannot be tested here (paths, devices, downloads), or would only make a test slow.
FIXED = (
    "model.backbone",
    "model.pretrained_backbone_path",
    "model.frozen_fm",
    "model.num_feature_levels",
    "model.return_interm_indices",
    "model.feat_strides",
    "model.feat_channels",
    "model.hidden_dim",
    "model.nheads",
    "model.arch",
    "model.rfdetr",
    "model.dim_feedforward",
    "model.dec_layers",
    "model.linear_proj_names",
    "dataset.train_data_sources",
    "dataset.val_data_sources",
    "dataset.test_data_sources",
    "dataset.infer_data_sources",
    "dataset.quant_calibration_data_sources",
    "dataset.dataset_dir",
    "dataset.workers",
    "dataset.num_classes",
    "dataset.class_ids",
    "dataset.augmentation.train_spatial_size",
    "dataset.augmentation.eval_spatial_size",
    "dataset.augmentation.multi_scales",
    "dataset.dataset_format",
    "train.num_gpus",
    "train.gpu_ids",
    "train.num_nodes",
    "train.results_dir",
    "train.resume_training_checkpoint_path",
    "train.pretrained_model_path",
    "train.accelerator",
    "train.is_dry_run",
    "train.encryption_key",
)
RFDETR_SHARE = 0.25
# What a small RF-DETR keeps; the other fields of its section are varied.
RFDETR = {
    "resolution": 64,
    "patch_size": 8,
    "num_windows": 1,
    "num_queries": 12,
    "group_detr": 2,
    "dec_layers": 2,
    "dim_feedforward": 32,
    "hidden_dim": 32,
    "sa_nheads": 4,
    "ca_nheads": 4,
    "out_feature_indexes": [2, 4],
}
RFDETR_FIXED = (*RFDETR, "variant", "encoder", "positional_encoding_size", "segmentation_head")  # fmt: skip
# Of RT-DETR; the first is the fastest, so the others are rarer.
BACKBONES = (
    *(["timm/test_resnet"] * 8),
    "timm/test_byobnet", "timm/test_convnext", "timm/test_efficientnet", "timm/test_nfnet", "timm/test_mambaout",
    "timm/test_vit", "resnet_18", "resnet_18d", "efficientvit_b0", "edgenext_x_small", "fan_tiny",
)  # fmt: skip
DISTILL_SHARE = 0.2
FORMATS = ("coco files", "coco", "roboflow", "yolo", "voc")
CRITERIA = {
    "srcs": ("L1", "L2", "KL", "IOU"), "dsrcs": ("L1", "L2"), "bb_feats": ("L1", "L2"), "pred_logits": ("KL", "L2"),
    "pred_boxes": ("L1", "L2"), "encoder": ("L2",), "backbone.layer4": ("L1",), "nothing": ("L1",),
}  # fmt: skip
LARGEST = 12  # upper limit of integers without a maximum, or with a higher one


def random_spec(seed: int, changed: int = 12) -> dict[str, Any]:
    """A valid spec as a dictionary: a tiny model, and up to `changed` other fields drawn at random.

    A drawn value that contradicts the fields before it is dropped, so that every spec passes validation.
    """
    draw = random.Random(seed)
    rfdetr = draw.random() < RFDETR_SHARE
    data = _base(draw)
    if rfdetr:
        data["model"] = {"arch": "rfdetr", "num_select": 12, "rfdetr": dict(RFDETR)}
        data["dataset"]["augmentation"] = {"multi_scales": draw.choice([[], [64], [64, 72]])}
    fields = [(name, entry, hint) for name, entry, hint in walk_fields() if _varied(name, hint, rfdetr)]
    for name, entry, hint in draw.sample(fields, changed):
        value = _value(draw, entry, hint)
        if value is None:
            continue
        trial = copy.deepcopy(data)
        _put(trial, name, value)
        if _is_valid(trial):
            data = trial
    return data


def random_format(seed: int) -> str:
    """The format of the data of a spec."""
    return random.Random(f"format {seed}").choice(FORMATS)


def with_random_backbone(data: dict[str, Any], seed: int) -> dict[str, Any]:
    """The spec with a random backbone if it is an RT-DETR, and if that is valid."""
    backbone = random.Random(f"backbone {seed}").choice(BACKBONES)
    trial = copy.deepcopy(data)
    if trial["model"].get("arch", "rtdetr") == "rtdetr":
        trial["model"]["backbone"] = backbone
    return trial if _is_valid(trial) else data


def random_distillation(data: dict[str, Any], seed: int, teacher_file: str) -> dict[str, Any] | None:
    """The spec with a random `distill` section, for some of the seeds."""
    draw = random.Random(f"distill {seed}")
    if draw.random() >= DISTILL_SHARE:
        return None
    bindings = []
    for name in draw.sample(list(CRITERIA), draw.randint(1, 3)):
        teacher = name if draw.random() < 0.8 else draw.choice(list(CRITERIA))
        binding = {"teacher_module_name": teacher, "student_module_name": name}
        bindings.append(binding | {"criterion": draw.choice(CRITERIA[name]), "weight": draw.choice([0.0, 0.5, 20.0])})
    data = {**data, "distill": {"pretrained_teacher_model_path": teacher_file, "bindings": []}}
    own = [row for row in walk_fields() if row[0].startswith("distill.") and row[0].count(".") == 1]
    for name, entry, hint in own:
        value = None if section_type(hint) or entry.metadata["path"] else _value(draw, entry, hint)
        _put_if_valid(data, name, value)
    for binding in bindings:
        _put_if_valid(data, "distill.bindings", [*data["distill"]["bindings"], binding])
    return data


def _put_if_valid(data: dict[str, Any], name: str, value: Any) -> None:
    trial = copy.deepcopy(data)
    _put(trial, name, value)
    if value is not None and _is_valid(trial):
        _put(data, name, value)


def _is_valid(data: dict[str, Any]) -> bool:
    try:
        spec_from_dict(data)
    except SpecError:
        return False
    return True


def _base(draw: random.Random) -> dict[str, Any]:
    """A tiny RT-DETR that is valid."""
    levels = draw.choice([1, 2, 3, 3])
    first = draw.randint(0 if levels < 3 else 1, 4 - levels)
    indices = list(range(first, first + levels))
    width = draw.choice([8, 16, 24])
    sizes = [32, 64]
    epochs = draw.randint(1, 12)
    return {
        "model": {
            "backbone": "timm/test_resnet", "hidden_dim": width, "nheads": draw.choice([1, 2, 4]),
            "num_feature_levels": levels, "return_interm_indices": indices,
            "feat_strides": [4 * 2**index for index in indices], "feat_channels": [width] * levels,
            "use_encoder_idx": [levels - 1], "dim_feedforward": 16, "dec_layers": draw.choice([1, 2]),
            "num_queries": draw.randint(1, 12), "num_select": draw.randint(1, 12), "dn_number": draw.randint(0, 6),
        },
        "dataset": {
            "batch_size": draw.randint(1, 4), "workers": 0,
            "augmentation": {
                "train_spatial_size": [draw.choice(sizes), draw.choice(sizes)],
                "eval_spatial_size": [draw.choice(sizes), draw.choice(sizes)],
                "multi_scales": draw.choice([[], [32], [32, 64], [[32, 64]], [64]]),
            },
        },
        "train": {"num_epochs": epochs, "accelerator": "cpu", "is_dry_run": True},
    }  # fmt: skip


def _varied(name: str, hint: Any, rfdetr: bool) -> bool:
    if rfdetr and name.startswith("model.rfdetr."):
        return name.removeprefix("model.rfdetr.") not in RFDETR_FIXED and not section_type(hint)
    fixed = any(name == other or name.startswith(f"{other}.") for other in FIXED)
    return name.startswith(SECTIONS) and not fixed and "[]" not in name and not section_type(hint)


def _value(draw: random.Random, entry: Any, hint: Any) -> Any:
    """A value of the field's type within its bounds, or None if none can be drawn."""
    rules, default = entry.metadata, default_of(entry)
    kinds = {hint, *typing.get_args(hint)}
    listed = next((kind for kind in kinds if typing.get_origin(kind) is list), None)
    if listed is not None:
        kinds = set(typing.get_args(listed))
    if rules["options"]:
        one = lambda: draw.choice(rules["options"])  # noqa: E731
    elif bool in kinds:
        one = lambda: draw.random() < 0.5  # noqa: E731
    elif int in kinds or float in kinds:
        low = rules["min"] if rules["min"] is not None else rules["above"] if rules["above"] is not None else 0
        high = min(x for x in (rules["max"], low + LARGEST) if x is not None and x < INF)
        if int in kinds:
            one = lambda: draw.randint(int(low) + (rules["min"] is None), max(int(high), int(low) + 1))  # noqa: E731
        else:
            one = lambda: draw.choice([1e-6 + low, (low + high) / 2, high, draw.uniform(low + 1e-6, high)])  # noqa: E731
    else:
        return None
    if listed is not None:
        return [one() for _ in range(len(default) if default and draw.random() < 0.5 else draw.randint(0, 3))]
    return one()


def _put(data: dict[str, Any], name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    data[leaf] = value
