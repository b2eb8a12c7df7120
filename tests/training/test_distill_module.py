"""Distillation: the losses of a step, whole runs and their checkpoints, and invalid bindings."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint, read_weights
from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.spec import BindingSpec, DistillSpec, ExperimentSpec
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.distill import DistillModule, weight_factor
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.teacher import Teacher

CLASSES = ClassMap([ClassEntry(1, 1, "red"), ClassEntry(2, 2, "green")], 3)
WIDE = {"hidden_dim": 48, "feat_channels": [48, 48, 48]}


def bind(name: str, criterion: str, weight: float = 1.0, teacher: str | None = None) -> BindingSpec:
    return BindingSpec(teacher or name, name, criterion, weight)


SRCS = bind("srcs", "IOU", 20.0)


@pytest.fixture
def make_distill(make_spec):
    """`make_distill([bindings], teacher={...}, train__num_epochs=2)`: a tiny spec with a distill section."""

    def make(bindings=(SRCS,), teacher=None, distill=None, **changes) -> ExperimentSpec:
        spec = make_spec(**changes)
        model = dataclasses.replace(spec.model, **{**WIDE, **(teacher or {})})
        section = DistillSpec(
            teacher=model, pretrained_teacher_model_path="teacher.pth", bindings=list(bindings), **(distill or {})
        )
        return dataclasses.replace(spec, distill=section)

    return make


def teacher_of(spec: ExperimentSpec, num_classes: int = 3) -> torch.nn.Module:
    """A detector whose scores and boxes differ between positions."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        detector = build_detector(spec.distill.teacher, num_classes)
        for name, parameter in detector.named_parameters():
            if "score_head" in name or "bbox_head" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return detector


def module_of(spec: ExperimentSpec, classes: ClassMap | None = CLASSES, **keywords) -> DistillModule:
    torch.manual_seed(5)
    return DistillModule(spec, CLASSES, teacher_of(spec, **keywords), classes)


def batch_of(spec: ExperimentSpec):
    return next(iter(DetectionDataModule(spec).train_dataloader()))


def run(spec: ExperimentSpec, **keywords):
    return fit(spec, build_module=partial(DistillModule, teacher=teacher_of(spec), teacher_classes=CLASSES), **keywords)


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# One step


def test_the_total_is_detection_loss_plus_coefficient_times_bindings(make_distill):
    bindings = [SRCS, bind("dsrcs", "L2", 3.0), bind("pred_logits", "KL", 0.5), bind("pred_boxes", "L1")]
    spec = make_distill(bindings, model__distillation_loss_coef=0.25)
    batch = batch_of(spec)
    module = module_of(spec)
    torch.manual_seed(1)
    losses = module.compute_losses(batch)
    plain = DetectorModule(spec, CLASSES)
    plain.detector.load_state_dict(module_of(spec).detector.state_dict())
    torch.manual_seed(1)
    detection = plain.compute_losses(batch)["loss"]
    terms = [losses[f"loss_distillation_{name}"] for name in
             ("srcs_IOU", "dsrcs_L2", "pred_logits_KL", "pred_boxes_L1")]  # fmt: skip
    assert terms[0] > 0 and terms[1] > 0  # an untrained teacher detects no object, so the others may be 0
    torch.testing.assert_close(losses["loss_distillation"], sum(terms))
    torch.testing.assert_close(losses["loss"], detection + 0.25 * sum(terms))


def test_a_coefficient_of_zero_gives_plain_training(make_distill):
    spec = make_distill(model__distillation_loss_coef=0.0)
    batch, module = batch_of(spec), module_of(spec)
    assert "loss_distillation" not in module.compute_losses(batch)


def test_capturing_queries_does_not_disturb_a_binding_to_the_score_head(make_distill):
    head = bind("decoder.enc_score_head", "L2")
    alone, together = module_of(make_distill([head])), module_of(make_distill([head, SRCS]))
    batch = batch_of(alone.spec)
    name = "loss_distillation_decoder.enc_score_head_L2"
    losses = []
    for module in (alone, together):
        torch.manual_seed(1)
        losses.append(module.compute_losses(batch)[name])
    torch.testing.assert_close(*losses)


def test_bindings_can_refer_to_any_module_by_name(make_distill):
    bindings = [
        bind("bb_feats", "L2"),
        bind("backbone.layer3", "KL"),
        bind("encoder.encoder.0.layers.0", "L1"),
        bind("encoder.fpn_blocks.0", "L2", teacher="encoder.pan_blocks.0"),
        bind("decoder.decoder.layers.1.norm3", "L2"),
    ]
    spec = make_distill(bindings, model__dn_number=0)
    losses = module_of(spec).compute_losses(batch_of(spec))
    assert [name for name in losses if name.startswith("loss_distillation_")] == [
        "loss_distillation_bb_feats_L2",
        "loss_distillation_backbone.layer3_KL",
        "loss_distillation_encoder.encoder.0.layers.0_L1",
        "loss_distillation_encoder.fpn_blocks.0_L2",
        "loss_distillation_decoder.decoder.layers.1.norm3_L2",
    ]
    losses["loss"].backward()


def test_teacher_and_student_see_the_same_images_in_multi_scale_training(make_distill):
    spec = make_distill([bind("srcs", "L2")], dataset__augmentation__multi_scales=[96])
    module, seen = module_of(spec), []
    for detector in (module.detector, module.teacher.detector):
        detector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    module.compute_losses(batch_of(spec))
    assert seen[0].shape == (4, 3, 96, 96) and torch.equal(*seen)


def test_the_teacher_is_frozen_and_not_a_submodule(make_distill):
    spec = make_distill()
    module = module_of(spec).train()
    before = {name: tensor.clone() for name, tensor in module.teacher.detector.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.compute_losses(batch_of(spec))["loss"].backward()
    optimizer.step()
    teacher = module.teacher.detector
    assert _same(before, teacher.state_dict())
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    tensors = [*module.parameters(), *module.state_dict().values()]
    assert not {id(tensor) for tensor in tensors} & {id(tensor) for tensor in teacher.parameters()}
    outputs = module.teacher(torch.rand(1, 3, 64, 64))
    assert not outputs.predictions.logits.requires_grad and not outputs.features["srcs"][0].requires_grad


def test_projections_are_trained_with_the_student(make_distill):
    module = module_of(make_distill())
    groups = {group["name"]: group for group in module.configure_optimizers()["optimizer"].param_groups}
    assert sum(p.numel() for p in groups["projections"]["params"]) == 3 * (32 * 48 + 48)
    assert groups["projections"]["weight_decay"] == 0.0
    same = module_of(make_distill(teacher={"hidden_dim": 32, "feat_channels": [32, 32, 32]}))
    assert "projections" not in {group["name"] for group in same.configure_optimizers()["optimizer"].param_groups}


def test_probing_shapes_does_not_change_the_student(make_distill):
    spec = make_distill()
    module, plain = module_of(spec), None
    torch.manual_seed(5)
    plain = DetectorModule(spec, CLASSES)
    assert _same(module.detector.state_dict(), plain.detector.state_dict())
    assert module.detector.training


def test_a_teacher_in_half_precision_agrees_with_autocast(make_distill):
    spec = make_distill()
    images = torch.rand(2, 3, 64, 64)
    half = Teacher(teacher_of(spec), ["srcs"], True, "bf16")(images)
    whole = Teacher(teacher_of(spec), ["srcs"], True)
    exact = whole(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = whole.run(images)
    assert half.features["srcs"][0].dtype == torch.bfloat16
    for a, b, c in zip(half.features["srcs"], cast.features["srcs"], exact.features["srcs"], strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0.05, atol=0.05)
        torch.testing.assert_close(a.float(), c, rtol=0.1, atol=0.1)


def test_a_folded_teacher_agrees_with_an_unfolded_one(make_distill):
    spec = make_distill()
    images = torch.rand(2, 3, 64, 64)
    folded = Teacher(teacher_of(spec), ["srcs", "dsrcs", "bb_feats"], True)
    whole = Teacher(teacher_of(spec), ["srcs", "dsrcs", "bb_feats", "backbone.conv1"], True)
    assert len(list(folded.detector.modules())) < len(list(whole.detector.modules()))
    a, b = folded(images), whole(images)
    for name in ("srcs", "dsrcs", "bb_feats"):
        torch.testing.assert_close(a.features[name], b.features[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.queries.scores, b.queries.scores, rtol=1e-3, atol=1e-3)
    assert a.queries.content.shape == (2, 10, 48) and a.queries.boxes.shape == (2, 10, 4)


def test_captured_queries_are_those_the_decoder_selects(make_distill):
    """Compared with the decoder's selection in training mode, which returns logits and boxes."""
    spec = make_distill(teacher={"dropout_ratio": 0.0})
    detector = teacher_of(spec)
    images = torch.rand(2, 3, 64, 64)
    queries = Teacher(detector, ["srcs", "backbone.conv1"], True)(images).queries
    detector.decoder.training = detector.decoder.decoder.training = True  # its batch norms stay in eval mode
    with torch.no_grad():
        expected = detector(images)
    torch.testing.assert_close(queries.boxes, expected.encoder_boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(queries.scores, expected.encoder_logits.sigmoid().amax(-1), rtol=1e-4, atol=1e-4)


def test_a_narrow_teacher_decoder_computes_the_mask_after_its_projections(make_distill):
    spec = make_distill(teacher={"dec_hidden_dim": 24})
    outputs = module_of(spec).teacher(torch.rand(1, 3, 64, 64))
    assert outputs.features["srcs"][0].shape[1] == 48
    assert [level.shape[1] for level in outputs.in_query_space["srcs"]] == [24, 24, 24]
    assert module_of(spec).compute_losses(batch_of(spec))["loss_distillation"] > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_epochs": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"decay_from_epoch": 3}, [1, 1, 1, 2 / 3, 1 / 3, 0]),
        ({"decay_from_epoch": 4, "final_factor": 0.5}, [1, 1, 1, 1, 0.75, 0.5]),
        ({"warmup_epochs": 2, "decay_from_epoch": 0}, [0.5 * 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    ],
)
def test_the_weight_follows_warmup_and_decay(settings, expected):
    distill = DistillSpec(**settings)
    assert [weight_factor(distill, epoch, 6) for epoch in range(6)] == pytest.approx(expected)


# Whole runs


class TeacherEpochs(pl.Callback):
    """The epochs in which the teacher ran."""

    def __init__(self):
        self.epochs: list[int] = []

    def on_train_start(self, trainer, pl_module):
        pl_module.teacher.detector.register_forward_hook(lambda *_: self.epochs.append(trainer.current_epoch))


def test_each_binding_is_logged_and_the_teacher_runs_only_with_a_weight(make_distill):
    bindings = [SRCS, bind("pred_logits", "KL")]
    spec = make_distill(bindings, distill={"decay_from_epoch": 1}, train__num_epochs=3)
    watch = TeacherEpochs()
    run(spec, callbacks=[watch])
    assert sorted(set(watch.epochs)) == [0, 1]
    csv = next(Path(spec.train.results_dir).glob("csv_logs/version_0/metrics.csv")).read_text().splitlines()[0]
    for name in ("train/loss_distillation", "train/loss_distillation_srcs_IOU",
                 "train/loss_distillation_pred_logits_KL", "train/loss_vfl", "val/mAP_50_95"):  # fmt: skip
        assert name in csv.split(",")


def test_checkpoints_keep_projections_separate_from_the_student(make_distill):
    spec = make_distill(train__enable_ema=True)
    result = run(spec)
    for name in ("model_epoch_000.pth", "model_epoch_000-EMA.pth", "rtdetr_model_best.pth"):
        payload = load_checkpoint(Path(spec.train.results_dir) / name)
        assert all(key.startswith("model.model.") for key in payload["state_dict"])
        shapes = {key: tuple(tensor.shape) for key, tensor in payload["distillation"]["state_dict"].items()}
        assert len(shapes) == 6 and set(shapes.values()) == {(48, 32, 1, 1), (48,)}
    weights, _ = read_weights(result.latest_path)
    plain = build_detector(spec.model, 3).state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {name: t.shape for name, t in plain.items()}
    fit(dataclasses.replace(spec, train=dataclasses.replace(  # other runs can start from the checkpoint
        spec.train, pretrained_model_path=str(result.latest_path), is_dry_run=True)))  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(make_distill, tmp_path):
    changes = {
        "train__num_epochs": 3, "train__checkpoint_interval": 2, "train__enable_ema": True,
        "train__validation_interval": 3, "train__optim__lr": 1e-3, "train__optim__warmup_steps": 3,
        "dataset__augmentation__multi_scales": [32, 64], "model__dropout_ratio": 0.1, "distill": {"warmup_epochs": 3},
        "bindings": [SRCS, bind("pred_boxes", "IOU"), bind("bb_feats", "KL")],
    }  # fmt: skip
    uninterrupted = make_distill(**changes, train__results_dir=str(tmp_path / "whole"))
    run(uninterrupted)

    class Kill(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    interrupted = make_distill(**changes, train__results_dir=str(tmp_path / "interrupted"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(interrupted, callbacks=[Kill()])
    torch.manual_seed(99)
    result = run(interrupted)
    assert result.resumed_from is not None and result.epochs == 3
    for name in ("model_epoch_002.pth", "model_epoch_002-EMA.pth"):
        a, b = (load_checkpoint(Path(spec.train.results_dir) / name) for spec in (uninterrupted, interrupted))
        assert _same(a["state_dict"], b["state_dict"])
        assert a["distillation"].keys() == b["distillation"].keys()
        assert all(_same(a["distillation"][key], b["distillation"][key]) for key in a["distillation"])
        assert a["rtdetr_tool"]["metrics"] == b["rtdetr_tool"]["metrics"]


def test_encoder_and_decoder_can_start_from_the_teacher(make_distill, caplog):
    caplog.set_level(logging.INFO)
    same = {"hidden_dim": 32, "feat_channels": [32, 32, 32], "backbone": "resnet_34", "dec_layers": 1}
    spec = make_distill([SRCS], same, model__backbone="resnet_18", model__load_teacher_enc_dec=True)
    module = module_of(spec)
    module.load_initial_weights()
    teacher, student = teacher_of(spec).state_dict(), module.detector.state_dict()
    for name in ("encoder.fpn_blocks.0.conv1.conv.weight", "decoder.decoder.layers.0.linear1.weight"):
        assert torch.equal(student[name], teacher[name])
    assert not torch.equal(student["backbone.conv1.weight"], teacher["backbone.conv1.weight"])
    assert "of encoder and decoder from the teacher." in caplog.text
    assert "Not in the teacher: decoder.decoder.layers.1." in caplog.text
    module.detector.encoder.input_proj[0][0].weight.data.zero_()
    module.load_initial_weights()  # only once
    assert module.detector.encoder.input_proj[0][0].weight.abs().sum() == 0


def test_a_dry_run_runs_teacher_and_student(make_distill):
    result = run(make_distill(train__is_dry_run=True))
    assert result.dry_run and result.metrics["train/loss"] > 0


def test_distillation_works_with_bf16(make_distill):
    result = run(make_distill([SRCS, bind("pred_logits", "KL")], train__precision="bf16"))
    assert result.metrics["train/loss_distillation"] > 0


def test_the_distillation_loss_falls_with_training(make_distill):
    spec = make_distill([bind("srcs", "L2")], train__optim__lr=2e-3, train__optim__lr_backbone=2e-3, model__dn_number=0)
    module = module_of(spec)
    batch, optimizer = batch_of(spec), module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(12):
        terms = module.compute_losses(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(terms["loss_distillation"].item())
    assert losses[-1] < 0.75 * losses[0]


# Invalid bindings


def test_all_unknown_names_are_reported_with_the_nearest_ones(make_distill):
    bindings = [bind("encoder.fpn_block.0", "L2"), bind("src", "L2", teacher="dsrcs")]
    with pytest.raises(SpecError) as caught:
        module_of(make_distill(bindings))
    assert len(caught.value.problems) == 3
    text = str(caught.value)
    assert "distill.bindings[0].teacher_module_name: the teacher has no module 'encoder.fpn_block.0'" in text
    assert "did you mean encoder.fpn_blocks.0" in text
    assert "distill.bindings[1].student_module_name: the student has no module 'src' (did you mean srcs" in text
    assert "or one of srcs, dsrcs, bb_feats, pred_logits, pred_boxes" in text


def test_modules_without_tensor_outputs_are_refused(make_distill):
    with pytest.raises(SpecError, match=r"'decoder\.denoising_class_embed' of the student returns no tensors"):
        module_of(make_distill([bind("decoder.denoising_class_embed", "L2")]))
    with pytest.raises(SpecError, match="the module 'decoder' of the student returns no tensors"):
        module_of(make_distill([bind("decoder", "L2")]))
    with pytest.raises(SpecError, match=r"'decoder.dec_score_head.1' of the teacher returns no tensors"):
        module_of(make_distill([bind("decoder.dec_score_head.1", "L2")], teacher={"eval_idx": 0}))


def test_incompatible_shapes_are_refused(make_distill):
    with pytest.raises(SpecError, match=r"bindings\[0\].*distill\.align is error"):
        module_of(make_distill(distill={"align": "error"}))
    with pytest.raises(SpecError, match="the numbers of tokens differ"):
        module_of(make_distill([bind("decoder.decoder.layers.1", "L2")], teacher={"num_queries": 12}))


class TestOtherFamily:
    """An RF-DETR teaches an RT-DETR and vice versa, with predictions and feature maps, in any order of classes."""

    RFDETR = {  # noqa: RUF012
        "arch": "rfdetr",
        "rfdetr": RfdetrSpec(
            encoder="dinov2_windowed_small", out_feature_indexes=[1, 2], resolution=64, hidden_dim=32, sa_nheads=2,
            ca_nheads=4, dim_feedforward=32, num_queries=12, group_detr=2, dec_layers=2,
        ),
    }  # fmt: skip
    reordered = ClassMap([ClassEntry(0, 1, "green"), ClassEntry(1, 2, "red")], 3)  # as in files of RF-DETR
    one_level = {  # noqa: RUF012
        "return_interm_indices": [2], "feat_strides": [16], "feat_channels": [32], "num_feature_levels": 1,
        "use_encoder_idx": [0], "hidden_dim": 32,
    }  # fmt: skip
    bindings = (bind("pred_logits", "KL", 2.0), bind("pred_boxes", "L1"))

    def check_loss_falls(self, spec, teacher_classes):
        batch, module = batch_of(spec), module_of(spec, classes=teacher_classes)
        teacher = module.teacher.detector
        before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
        optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
        totals = []
        for _ in range(12):
            torch.manual_seed(2)
            losses = module.compute_losses(batch)
            optimizer.zero_grad()
            losses["loss_distillation"].backward()
            optimizer.step()
            totals.append(losses["loss_distillation"].item())
        assert totals[-1] < 0.8 * totals[0]
        assert _same(before, dict(teacher.named_parameters()))
        return losses

    def test_rfdetr_teaches_rtdetr(self, make_distill):
        student = {f"model__{name}": value for name, value in self.one_level.items()}
        maps = bind("srcs", "L2", teacher="encoder.stages.0")
        losses = self.check_loss_falls(make_distill([*self.bindings, maps], self.RFDETR, **student), self.reordered)
        assert losses["loss_distillation_pred_boxes_L1"] > 0

    def test_rtdetr_teaches_rfdetr(self, make_distill):
        maps = bind("encoder.stages.0", "L2", teacher="srcs")
        student = {f"model__{name}": value for name, value in self.RFDETR.items()}
        spec = make_distill([*self.bindings, maps], {"arch": "rtdetr", **self.one_level}, **student)
        self.check_loss_falls(spec, CLASSES)

    def test_images_are_resized_to_a_multiple_that_the_teacher_accepts(self, make_distill):
        spec = make_distill([bind("pred_boxes", "L1")], self.RFDETR)  # multiples of 32
        seen = []
        module = module_of(spec, classes=self.reordered)
        module.teacher.detector.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
        module.teacher(torch.rand(1, 3, 80, 150))
        assert tuple(seen[0]) == (1, 3, 64, 160)

    def test_classes_are_matched_by_name(self, make_distill):
        spec = make_distill([bind("pred_logits", "L1")], self.RFDETR)
        assert module_of(spec, classes=self.reordered).distillation.classes == [(1, 1), (2, 0)]
        assert module_of(spec, classes=CLASSES).distillation.classes is None


class TestOtherClasses:
    other = ClassMap([ClassEntry(1, 1, "red"), ClassEntry(2, 2, "blue")], 3)

    @pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
    def test_comparing_predictions_of_other_classes_is_refused(self, make_distill, name):
        difference = r"the teacher has 3 classes \(1: red, 2: blue\), the data 3 \(1: red, 2: green\)"
        with pytest.raises(UserError, match=rf"compares {name}, but {difference}"):
            module_of(make_distill([bind(name, "L1")]), classes=self.other)
        with pytest.raises(UserError, match=r"the teacher has 7 classes \(without names\), the data 3 "):
            module_of(make_distill([bind(name, "L1")]), classes=None, num_classes=7)

    def test_features_of_a_teacher_with_other_classes_are_used_with_a_warning(self, make_distill, caplog):
        spec = make_distill()
        module = module_of(spec, classes=None, num_classes=7)
        assert "not its classes: the teacher has 7 classes" in caplog.text
        assert module.compute_losses(batch_of(spec))["loss_distillation"] > 0

    def test_a_teacher_without_class_names_needs_the_same_number_of_classes(self, make_distill, caplog):
        module_of(make_distill([bind("pred_logits", "L1")]), classes=None)
        assert "Using only the features" not in caplog.text


def test_class_rows_of_the_student_are_copied_from_the_teacher_by_name(make_distill, caplog):
    spec = make_distill([SRCS], {"hidden_dim": 32, "feat_channels": [32] * 3}, model__load_teacher_enc_dec=True)
    named = ClassMap([ClassEntry(0, 0, "green"), ClassEntry(1, 1, "blue"), ClassEntry(2, 2, "red")], 3)
    module = module_of(spec, named)
    before = module.detector.state_dict()["decoder.enc_score_head.weight"].clone()
    module.load_initial_weights()
    teacher, student = teacher_of(spec).state_dict(), module.detector.state_dict()
    for name in ("enc_score_head.weight", "dec_score_head.1.bias", "denoising_class_embed.weight"):
        name = f"decoder.{name}"
        assert torch.equal(student[name][[1, 2]], teacher[name][[2, 0]])  # red, green
    assert torch.equal(student["decoder.enc_score_head.weight"][0], before[0])  # no class has index 0
    assert "Dropped classes of the teacher that the dataset does not have: blue." in caplog.text


def test_classes_of_a_teacher_without_names_are_compared_by_position_with_a_warning(make_distill, caplog):
    same = {"hidden_dim": 32, "feat_channels": [32] * 3}
    spec = make_distill([bind("pred_logits", "KL")], same, model__load_teacher_enc_dec=True)
    module = module_of(spec, None)
    assert "no class names; comparing its class logits with the student's by position" in caplog.text
    module.load_initial_weights()
    name = "decoder.enc_score_head.weight"
    assert torch.equal(module.detector.state_dict()[name], teacher_of(spec).state_dict()[name])
    assert "Copied class rows by position, because the teacher has no class names" in caplog.text
