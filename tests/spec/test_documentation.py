"""Our schema against the tables of TAO's RT-DETR page, which take precedence over the package."""

from __future__ import annotations

import pytest

from rtdetr_tool.spec import load_spec
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.schema import walk_fields
from rtdetr_tool.spec.tables import DOCUMENTATION_DIFFERENCES, FIELD_ALIASES

INF = float("inf")

_RESNETS = ("resnet_18", "resnet_34", "resnet_50", "resnet_101")
_CONVNEXTS = tuple(f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge"))
_CONVNEXTS_V2 = tuple(f"convnextv2_{size}" for size in ("nano", "tiny", "base", "large", "huge"))
_FANS = tuple(f"fan_{size}" for size in ("tiny", "small", "base", "large"))
_SOURCE = {"image_dir": "", "json_file": ""}


def row(default=..., min=..., max=..., options=..., automl=False):
    """One row of a table; `...` for a blank cell."""
    return {"default": default, "min": min, "max": max, "options": options, "automl": automl}


DOCUMENTED = {
    "encryption_key": row(),
    "results_dir": row("/results"),
    "model.pretrained_backbone_path": row(),
    "model.backbone": row("resnet_50", options=(*_RESNETS, *_CONVNEXTS, *_FANS, *_CONVNEXTS_V2)),
    "model.train_backbone": row(True),
    "model.num_queries": row(300, 1, INF, automl=True),
    "model.num_select": row(300, 1, None, automl=True),  # blank, with 1000 in the package: no maximum
    "model.num_feature_levels": row(3, 1, 4),
    "model.return_interm_indices": row([1, 2, 3]),
    "model.feat_strides": row([8, 16, 32]),
    "model.feat_channels": row([256, 256, 256]),
    "model.use_encoder_idx": row([2]),
    "model.hidden_dim": row(256),
    "model.nheads": row(8),
    "model.dropout_ratio": row(0.0, 0.0, 1.0),
    "model.enc_layers": row(1, 1, automl=True),
    "model.dim_feedforward": row(1024, 1),
    "model.pe_temperature": row(10000, 1, INF),
    "model.expansion": row(1.0, 0.0, INF),
    "model.depth_mult": row(1, 1, INF),
    "model.enc_act": row("gelu"),
    "model.act": row("silu"),
    "model.dec_layers": row(6, 1, automl=True),
    "model.dn_number": row(100, 0, INF),
    "model.eval_idx": row(-1, -1, INF),
    "model.vfl_loss_coef": row(1.0, 0.0, INF),
    "model.bbox_loss_coef": row(5.0, 0.0, INF),
    "model.giou_loss_coef": row(2.0, 0.0, INF),
    "model.alpha": row(0.75),
    "model.gamma": row(2.0),
    "model.aux_loss": row(True),
    "model.loss_types": row(["vfl", "boxes"]),
    "model.backbone_names": row(["backbone.0"]),
    "model.linear_proj_names": row(["reference_points", "sampling_offsets"]),
    "model.distillation_loss_coef": row(1.0),
    "model.frozen_fm.enabled": row(True),
    "model.frozen_fm.backbone": row("radio_v2-l", options=("radio_v2-b", "radio_v2-l", "radio_v2-h")),
    "model.frozen_fm.checkpoint": row(),
    "train.num_gpus": row(1, 1),
    "train.gpu_ids": row([0]),
    "train.num_nodes": row(1),
    "train.seed": row(1234, -1, INF),
    "train.num_epochs": row(10, 1, INF, automl=True),
    "train.checkpoint_interval": row(1, 1),
    "train.validation_interval": row(1, 1),
    "train.resume_training_checkpoint_path": row(),
    "train.results_dir": row(),
    "train.freeze": row([]),
    "train.pretrained_model_path": row(),
    "train.clip_grad_norm": row(0.1),
    "train.is_dry_run": row(False),
    "train.enable_ema": row(False),
    "train.precision": row("fp32", options=("bf16", "fp32", "fp16")),
    "train.distributed_strategy": row("ddp", options=("ddp", "fsdp")),
    "train.activation_checkpoint": row(True),
    "train.verbose": row(False),
    "train.optim.optimizer": row("AdamW", options=("AdamW", "SGD")),
    "train.optim.monitor_name": row("val_loss", options=("val_loss", "train_loss")),
    "train.optim.lr": row(1e-4, automl=True),
    "train.optim.lr_backbone": row(1e-5, automl=True),
    "train.optim.momentum": row(0.9, automl=True),
    "train.optim.weight_decay": row(1e-4, automl=True),
    "train.optim.lr_scheduler": row("MultiStep", options=("MultiStep", "StepLR")),
    "train.optim.lr_steps": row([1000]),
    "train.optim.lr_step_size": row(1000, automl=True),
    "train.optim.lr_decay": row(0.1, automl=True),
    "train.optim.warmup_steps": row(0, 0, INF),
    "train.optim.lr_linear_proj_mult": row(),  # in the example only
    "dataset.train_data_sources": row([_SOURCE]),
    "dataset.val_data_sources": row(_SOURCE),
    "dataset.test_data_sources": row(_SOURCE),
    "dataset.infer_data_sources": row({"image_dir": [""], "classmap": ""}),
    "dataset.batch_size": row(4, 1, INF, automl=True),
    "dataset.workers": row(8, 1, INF, automl=True),
    "dataset.remap_mscoco_category": row(False),
    "dataset.pin_memory": row(True),
    "dataset.dataset_type": row("serialized", options=("serialized", "default")),
    "dataset.num_classes": row(80, 1, INF),
    "dataset.eval_class_ids": row([1]),
    "dataset.augmentation.multi_scales": row([480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]),
    "dataset.augmentation.train_spatial_size": row([640, 640]),
    "dataset.augmentation.eval_spatial_size": row([640, 640]),
    "dataset.augmentation.distortion_prob": row(0.8, 0.0, 1.0, automl=True),
    "dataset.augmentation.iou_crop_prob": row(0.8, 0.0, 1.0, automl=True),
    "dataset.augmentation.preserve_aspect_ratio": row(False),
    "evaluate.checkpoint": row("???"),
    "evaluate.results_dir": row(),
    "evaluate.nput_width": row(min=1),
    "evaluate.input_height": row(min=1),
    "evaluate.trt_engine": row(),
    "evaluate.conf_threshold": row(0.0),
    "inference.checkpoint": row("???"),
    "inference.results_dir": row(),
    "inference.trt_engine": row(),
    "inference.color_map": row(),
    "inference.conf_threshold": row(0.5),
    "inference.is_internal": row(False),
    "inference.input_width": row(960, 32),
    "inference.input_height": row(544, 32),
    "inference.outline_width": row(3, 1),
    "distill.pretrained_teacher_model_path": row(),
    "distill.bindings": row(),
    "distill.bindings[].criterion": row(options=("L1", "L2", "KL", "IOU")),
    "distill.bindings[].weight": row(1.0),
    "export.checkpoint": row("???"),
    "export.onnx_file": row("???"),
    "export.on_cpu": row(False),
    "export.input_channel": row(3, 3),
    "export.input_width": row(960, 32),
    "export.input_height": row(544, 32),
    "export.opset_version": row(17, 1),
    "export.batch_size": row(-1, -1),
    "export.verbose": row(False),
}


def differences() -> dict[str, set[str]]:
    ours = {name: {"default": default_of(entry), **entry.metadata} for name, entry, _ in walk_fields()}
    result: dict[str, set[str]] = {}
    for name, rules in DOCUMENTED.items():
        mine = ours[FIELD_ALIASES.get(name, name)]
        for aspect, value in rules.items():
            same = (
                set(value) == set(mine[aspect]) if aspect == "options" and value is not ... else mine[aspect] == value
            )
            if value is not ... and not same:
                result.setdefault(name, set()).add(aspect)
    return result


def test_what_the_documentation_states_holds_but_for_the_table():
    assert differences() == {name: set(aspects.split()) for name, (aspects, _) in DOCUMENTATION_DIFFERENCES.items()}


def test_every_documented_model_field_exists_for_the_teacher_too():
    names = {name for name, _, _ in walk_fields()}
    assert not {f"distill.teacher.{name[6:]}" for name in DOCUMENTED if name.startswith("model.")} - names


EXAMPLE = """
model:
  backbone: resnet_50
  pretrained_backbone_path: /path/to/pretrained/backbone.pth
  return_interm_indices: [1, 2, 3]
  feat_channels: [256, 256, 256]
  loss_types: [vfl, boxes]
  backbone_names: [backbone.0]
  frozen_fm: {enabled: false, backbone: radio_v2-l, checkpoint: /path/to/pretrained/radio_v2-l.pth}
train:
  optim: {lr: 0.0002, lr_backbone: 0.00002, lr_linear_proj_mult: 0.1, momentum: 0.9, lr_steps: [40]}
  num_epochs: 10
  checkpoint_interval: 5
  validation_interval: 5
  activation_checkpoint: True
  num_gpus: 1
  gpu_ids: [0]
dataset:
  train_data_sources:
    - {image_dir: /coco/train2017/, json_file: /coco/instances_train2017.json}
  val_data_sources: {image_dir: /coco/val2017/, json_file: /coco/instances_val2017.json}
  test_data_sources: {image_dir: /coco/val2017/, json_file: /coco/instances_val2017.json}
  infer_data_sources: {image_dir: /coco/val2017/, classmap: /coco/coco_classmap.txt}
evaluate: {checkpoint: /path/to/model.pth, conf_threshold: 0.0}
inference: {checkpoint: /path/to/model.pth, conf_threshold: 0.5, color_map: {person: red, car: blue}}
export: {checkpoint: /path/to/model.pth, onnx_file: /path/to/model.onnx, opset_version: 12, batch_size: -1}
distill:
  teacher: {backbone: convnext_large, train_backbone: False, clip_max_norm: 0.1}
  pretrained_teacher_model_path: /path/to/teacher/model_epoch_070.pth
  bindings:
    - {teacher_module_name: srcs, student_module_name: srcs, criterion: IOU, weight: 20}
"""

RECTANGULAR = """
model: {backbone: fan_small_12_p4_hybrid, num_select: 300}
train: {num_epochs: 72, precision: bf16, enable_ema: True, ema: {decay: 0.999}, num_gpus: 8, seed: -1}
dataset:
  remap_mscoco_category: True
  augmentation:
    train_spatial_size: [544, 960]
    eval_spatial_size: [544, 960]
    multi_scales: [[480, 832], [512, 896], [544, 960]]
gen_trt_engine: {onnx_file: a.onnx, trt_engine: a.engine, input_channel: 3, input_width: 960, input_height: 544}
"""


@pytest.mark.parametrize("command", WITH_SPEC)
def test_the_examples_of_the_documentation_serve_every_command_unchanged(command, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(EXAMPLE)
    given = ["gen_trt_engine.onnx_file=a.onnx", "gen_trt_engine.trt_engine=a.engine", "quantize.model_path=a.pth"]
    given += ["benchmark.checkpoint=a.pth", "serve.checkpoint=a.pth"]  # not in TAO's documents
    spec = load_spec(path, given, command)
    assert spec.train.optim.lr_linear_proj_mult == 0.1
    assert spec.distill.bindings[0].weight == 20.0


def test_a_rectangular_spec_with_names_of_taos_code_loads(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(RECTANGULAR)
    spec = load_spec(path)
    assert spec.model.backbone == "fan_small"
    assert spec.dataset.augmentation.multi_scales[2] == [544, 960]
    assert spec.train.gpu_ids == list(range(8))
