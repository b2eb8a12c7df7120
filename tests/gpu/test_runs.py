"""Ten training steps in every precision, and the commands after training, on a GPU."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from tests.gpu.conftest import ACCELERATOR, TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ACCELERATOR == "gpu" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PRECISIONS = ("fp32", "bf16", "fp16") if ACCELERATOR == "gpu" else ("fp32", "bf16")
DEVICE = "cuda" if ACCELERATOR == "gpu" else "cpu"


@pytest.fixture
def checkpoint(run, tmp_path, family):
    assert run("train", family) == 0
    return str(tmp_path / "train" / "rtdetr_model_best.pth")


# `make gpu-check` has 9 minutes, so each precision and each kind of average is tried, but not every combination.
RUNS = [(family, precision, False) for family in TINY for precision in PRECISIONS]
RUNS += [("rtdetr", "bf16", None), ("rtdetr", "bf16", True)]


@pytest.mark.parametrize(("family", "precision", "ema"), RUNS)  # EMA: none, on the device (False), on the host (True)
def test_ten_steps_train_validate_and_resume(run, tmp_path, family, precision, ema):
    train = {"precision": precision, "enable_ema": ema is not None, "ema": {"cpu_offload": bool(ema)}}
    assert run("train", family, train=train) == 0
    assert run("train", family, train={**train, "num_epochs": 2}) == 0  # resumes
    status = [json.loads(line) for line in (tmp_path / "train" / "status.json").read_text().splitlines()]
    assert status[-1]["status"] == "SUCCESS"
    weights = torch.load(tmp_path / "train" / "rtdetr_model_latest.pth", map_location="cpu", weights_only=False)
    assert weights["global_step"] == 20
    assert all(tensor.isfinite().all() for tensor in weights["state_dict"].values())


@pytest.mark.parametrize("family", TINY)
def test_the_batch_size_can_be_found(run, family):
    assert run("train", family, dataset={"batch_size": "auto"}, train={"effective_batch_size": 4}) == 0


@pytest.mark.parametrize("family", ["rtdetr"])
def test_steps_with_a_loss_that_is_not_finite_leave_the_weights_alone(run, family, monkeypatch, tmp_path):
    from rtdetr_tool.training.module import DetectorModule

    losses = DetectorModule.compute_losses

    def poisoned(self, batch):
        terms = losses(self, batch)
        return {**terms, "loss": terms["loss"] * float("nan")} if self.global_step == 3 else terms

    monkeypatch.setattr(DetectorModule, "compute_losses", poisoned)
    assert run("train", family, train={"non_finite_loss": "skip"}) == 0
    weights = torch.load(tmp_path / "train" / "rtdetr_model_latest.pth", map_location="cpu", weights_only=False)
    assert all(tensor.isfinite().all() for tensor in weights["state_dict"].values())


@pytest.mark.parametrize("family", TINY)
def test_a_checkpoint_is_evaluated_and_used_in_every_precision(run, family, checkpoint, tmp_path):
    scores = {}
    variants = [(precision, False) for precision in PRECISIONS] + [("bf16", True)] * (ACCELERATOR == "gpu")
    for precision, compiled in variants:  # compiling takes half a minute
        section = {"checkpoint": checkpoint, "precision": precision, "compile": compiled}
        assert run("evaluate", family, evaluate=section) == 0
        scores[precision, compiled] = json.loads((tmp_path / "evaluate" / "results.json").read_text())["mAP"]
        assert run("inference", family, inference=section) == 0
    assert max(scores.values()) - min(scores.values()) < 0.1, scores


@pytest.mark.parametrize("family", TINY)
def test_a_checkpoint_is_exported_and_its_graph_evaluated(run, family, checkpoint, tmp_path):
    graph = str(tmp_path / "model.onnx")
    assert run("export", family, export={"checkpoint": checkpoint, "onnx_file": graph}) == 0
    assert run("evaluate", family, evaluate={"checkpoint": graph}) == 0


def test_a_student_is_distilled(run, tmp_path):
    assert run("train", "rtdetr") == 0
    teacher = str(tmp_path / "train" / "rtdetr_model_best.pth")
    bindings = [
        {"teacher_module_name": name, "student_module_name": name, "criterion": criterion, "weight": 1.0}
        for name, criterion in (("dsrcs", "IOU"), ("pred_logits", "KL"))
    ]
    section = {"pretrained_teacher_model_path": teacher, "teacher": TINY["rtdetr"], "bindings": bindings}
    assert run("distill", "rtdetr", distill=section) == 0


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("discrete", [False, True])
def test_the_fused_kernels_agree_with_the_reference(discrete):
    from rtdetr_tool.ops import deformable_fused

    assert deformable_fused._difference(torch.device("cuda", 0), discrete) < 1e-4
    assert deformable_fused.is_usable(torch.device("cuda", 0))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["R18", "RF-DETR Nano"])
def test_a_forward_and_backward_pass_waits_for_the_device_only_where_it_matches(name, monkeypatch, caplog):
    """CUDA's own count of what `gpu_budget` counts on the pretended device."""
    from rtdetr_tool.losses import assignment
    from tests.gpu_budget.scenarios import build_batch, build_module

    caplog.set_level(logging.INFO)
    module, to_host = build_module(name).cuda(), assignment._to_host

    def allowed(parts):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return to_host(parts)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    batch = build_batch()
    module.criterion(module.detector(module.prepare_images(batch.to("cuda"), False), batch.to("cuda").targets),
                     batch.to("cuda").targets)["loss"].backward()  # fmt: skip
    monkeypatch.setattr(assignment, "_to_host", allowed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to("cuda", non_blocking=True)
        predictions = module.detector(module.prepare_images(moved, False), moved.targets)
        module.criterion(predictions, moved.targets)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_together(run):
    assert run("train", "rtdetr", train={"num_gpus": 2, "gpu_ids": [0, 1]}) == 0
