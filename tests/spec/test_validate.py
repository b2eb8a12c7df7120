"""Checks between fields."""

from __future__ import annotations

import pytest
import yaml

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import spec_from_dict

WIDE = "model.feat_channels=[252,252,252]"


def nested(assignments: list[str]) -> dict:
    """`["train.seed=1"]` as `{"train": {"seed": 1}}`."""
    data: dict = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        *path, leaf = name.split(".")
        place = data
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = yaml.safe_load(value)
    return data


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["train.recompute_norms=true", "train.compile=true"],
            "train.recompute_norms: not supported with train.compile=true, whose compiler decides what to recompute; "
            "set one of them to false",
        ),
        (
            ["model.return_interm_indices=[1,2]"],
            "model.return_interm_indices: [1, 2] has 2 items; expected as many as model.num_feature_levels, which is 3",
        ),
        (
            ["model.feat_strides=[8,16]"],
            "model.feat_strides: [8, 16] has 2 items; expected as many as model.num_feature_levels, which is 3",
        ),
        (
            ["model.feat_channels=[256]"],
            "model.feat_channels: [256] has 1 items; expected as many as model.num_feature_levels, which is 3",
        ),
        (
            ["model.feat_channels=[128,256,256]"],
            "model.feat_channels: [128, 256, 256] is invalid; expected model.hidden_dim (256) for every level, "
            "the number of channels of the encoder's output",
        ),
        (
            ["model.return_interm_indices=[0,2,3]", "model.feat_strides=[4,16,32]"],
            "model.return_interm_indices: [0, 2, 3] is invalid; expected neighboring stages, ascending",
        ),
        (
            ["model.feat_strides=[4,8,16]"],
            "model.feat_strides: [4, 8, 16] is invalid; expected [8, 16, 32], the strides of stages [1, 2, 3] of "
            "resnet_50",
        ),
        (
            ["model.use_encoder_idx=[3]"],
            "model.use_encoder_idx: 3 is invalid; expected 0 to 2, one of the levels",
        ),
        (
            ["model.use_encoder_idx=[1,1]"],
            "model.use_encoder_idx: [1, 1] has a level twice; expected each at most once",
        ),
        (
            ["model.hidden_dim=254", "model.feat_channels=[254,254,254]", "model.nheads=2"],
            "model.hidden_dim: 254 is invalid; expected a multiple of 4",
        ),
        (
            ["model.hidden_dim=252", WIDE],
            "model.nheads: 8 is invalid; expected a divisor of model.hidden_dim, which is 252",
        ),
        (["model.eval_idx=6"], "model.eval_idx: 6 is invalid; expected -1 to 5 (model.dec_layers is 6)"),
        (["model.expansion=0"], "model.expansion: 0.0 is invalid; expected at least 1 / model.hidden_dim"),
        (
            ["dataset.infer_data_sources={image_dir: [/a, 5]}"],
            "dataset.infer_data_sources.image_dir: ['/a', 5] is invalid; expected a path or a list of paths",
        ),
        (
            ["dataset.infer_data_sources={image_dir: /a, classmap: [b]}"],
            "dataset.infer_data_sources.classmap: ['b'] is invalid; expected a path",
        ),
        (
            ["dataset.quant_calibration_data_sources={json_file: b}"],
            "dataset.quant_calibration_data_sources.image_dir: required, but not set",
        ),
        (["model.loss_types=[]"], "model.loss_types: [] is invalid; expected boxes, or one of vfl, mal, or both"),
        (
            ["model.loss_types=[vfl,mal,boxes]"],
            "model.loss_types: ['vfl', 'mal', 'boxes'] has two class losses; expected only one of vfl, mal",
        ),
        (
            ["train.optim.lr_scheduler=FlatCosine", "train.num_epochs=3", "train.optim.lr_flat_epochs=2",
             "train.optim.lr_final_epochs=1.5"],
            "train.optim.lr_flat_epochs, train.optim.lr_final_epochs: together 3.5 epochs; expected at most "
            "train.num_epochs (3)",
        ),
        (
            ["dataset.remap_mscoco_category=true", "dataset.num_classes=79"],
            "dataset.num_classes: 79 is invalid; expected at least 80 with dataset.remap_mscoco_category",
        ),
        (
            ["dataset.augmentation.train_spatial_size=[640]"],
            "dataset.augmentation.train_spatial_size: [640] is invalid; expected [height, width], each a multiple "
            "of 32",
        ),
        (
            ["dataset.augmentation.eval_spatial_size=[640,650]"],
            "dataset.augmentation.eval_spatial_size: [640, 650] is invalid; expected [height, width], each a "
            "multiple of 32, nearest: 640 x 640 or 672",
        ),
        *(
            (
                [f"dataset.augmentation.multi_scales=[320,{item}]"],
                f"dataset.augmentation.multi_scales[1]: {shown} is invalid; expected a side or [height, width], "
                f"multiples of 32{nearest}",
            )
            for item, shown, nearest in [
                ("330", "330", ", nearest: 320 or 352"), ("0", "0", ""), ("-32", "-32", ""), ("32.0", "32.0", ""),
                ("wide", "'wide'", ""), ("true", "true", ""), ("null", "null", ""), ("[320]", "[320]", ""),
                ("[320,330]", "[320, 330]", ", nearest: 320 x 320 or 352"),
                ("[320,320,320]", "[320, 320, 320]", ""),
            ]
        ),
        (
            ["train.checkpoint_interval=11"],
            "train.checkpoint_interval: 11 is invalid; expected at most train.num_epochs (10)",
        ),
        (
            ["train.validation_interval=3", "train.num_epochs=2"],
            "train.validation_interval: 3 is invalid; expected at most train.num_epochs (2)",
        ),
        (["train.optim.lr_steps=[9,3]"], "train.optim.lr_steps: [9, 3] is invalid; expected ascending epochs"),
        (["inference.gpu_ids=[1,1]"], "inference.gpu_ids: [1, 1] contains a GPU twice"),
        (
            ["evaluate.batch_size=0"],
            "evaluate.batch_size: 0 is invalid; expected -1 (dataset.batch_size) or at least 1",
        ),
        (["export.batch_size=0"], "export.batch_size: 0 is invalid; expected -1 (dynamic) or at least 1"),
        (
            ["gen_trt_engine.tensorrt.opt_batch_size=8"],
            "gen_trt_engine.tensorrt: min_batch_size, opt_batch_size, max_batch_size are 1, 8, 4; expected ascending",
        ),
        (
            ["distill.teacher.eval_idx=9"],
            "distill.teacher.eval_idx: 9 is invalid; expected -1 to 5 (distill.teacher.dec_layers is 6)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_disagreement_is_one_problem_that_names_both_sides(overrides, problem):
    with pytest.raises(SpecError) as caught:
        spec_from_dict(nested(overrides))
    assert caught.value.problems == [problem]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.num_feature_levels=1", "model.return_interm_indices=[3]", "model.feat_strides=[32]",
         "model.feat_channels=[256]", "model.use_encoder_idx=[0]"],
        ["model.num_feature_levels=4", "model.return_interm_indices=[0,1,2,3]", "model.feat_strides=[4,8,16,32]",
         "model.feat_channels=[256,256,256,256]", "model.use_encoder_idx=[3]"],
        ["model.use_encoder_idx=[]"],
        ["model.eval_idx=5"],
        ["model.num_select=5000"],
        ["model.backbone=efficientvit_l2"],
        ["dataset.augmentation.multi_scales=[]"],
        ["dataset.augmentation.multi_scales=[[544,960],[480,832]]"],
        ["dataset.augmentation.train_spatial_size=[544,960]"],
        ["train.num_epochs=1"],
        ["train.checkpoint_interval=500", "train.checkpoint_interval_unit=step"],
        ["train.clip_grad_norm=0", "train.optim.weight_decay=0"],
        ["train.optim.lr_steps=[]"],
        ["train.freeze=null"],
        ["evaluate.input_width=960", "evaluate.input_height=544"],
        ["evaluate.input_width=960"],
        ["export.input_height=544"],
        ["distill.teacher.backbone=convnext_large"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_belongs_together_is_accepted(overrides):
    data = nested(overrides)
    spec = spec_from_dict(data)
    for assignment in overrides:
        value: object = spec
        for part in assignment.partition("=")[0].split("."):
            value = getattr(value, part)
        assert value == yaml.safe_load(assignment.partition("=")[2])
