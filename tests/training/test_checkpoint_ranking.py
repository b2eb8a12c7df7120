"""The best checkpoints by a metric (`train.checkpointer`), in whole runs with given scores."""

from __future__ import annotations

import logging

import pytest
import torch
from pytorch_lightning import Callback

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import read_spec
from rtdetr_tool.spec.checkpointer import CheckpointerSpec
from rtdetr_tool.training.checkpoint_ranking import CheckpointRanking
from rtdetr_tool.training.fit import fit


class GivenScores(Callback):
    """Logs `val_given`: a score for each epoch, None where there is none."""

    def __init__(self, scores: list[float | None]) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module):
        score = self.scores[trainer.current_epoch]
        if score is not None:
            pl_module.log("val_given", score)


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.glob("*.pth"))


@pytest.fixture
def run(make_spec, tmp_path):
    """`run(scores, save_top_k=2)`: the results folder of a run with one epoch per score."""

    def run(scores, train=(), **checkpointer):
        section = CheckpointerSpec(enable_topk=True, **{"monitor": "val_given", **checkpointer})
        changes = {f"train__{name}": value for name, value in dict(train).items()}
        spec = make_spec(train__num_epochs=len(scores), train__checkpointer=section, train__report=False, **changes)
        fit(spec, callbacks=[GivenScores(scores)], logger=False)
        return tmp_path / "train"

    return run


def test_the_best_two_of_four_epochs_are_kept_next_to_the_periodic_ones(run):
    folder = run([0.2, 0.4, 0.1, 0.3], save_top_k=2, filename="best_{epoch:02d}_{val_given:.1f}")
    ranked = [name for name in names(folder) if name.startswith("best_")]
    assert ranked == ["best_01_0.4.pth", "best_03_0.3.pth"]
    assert [name for name in names(folder) if "epoch" in name] == [f"model_epoch_00{n}.pth" for n in range(4)]
    kept, periodic = load_checkpoint(folder / "best_01_0.4.pth"), load_checkpoint(folder / "model_epoch_001.pth")
    assert kept["epoch"] == 1
    assert all(torch.equal(tensor, periodic["state_dict"][name]) for name, tensor in kept["state_dict"].items())


def test_a_loss_is_ranked_by_its_minimum_unless_mode_says_otherwise(run):
    assert "model_best_000.pth" in names(run([0.1], monitor="train_loss"))
    ranking = CheckpointRanking("x", CheckpointerSpec(monitor="train_loss"), "val_mAP")
    assert [ranking.admit({"train_loss": loss}, n, n, True) for n, loss in enumerate((3.0, 4.0, 2.0))] == [
        "model_best_000", None, "model_best_002",
    ]  # fmt: skip
    ranking = CheckpointRanking("x", CheckpointerSpec(monitor="train_loss", mode="max"), "val_mAP")
    assert [ranking.admit({"train_loss": loss}, n, n, True) for n, loss in enumerate((3.0, 4.0, 2.0))] == [
        "model_best_000", "model_best_001", None,
    ]  # fmt: skip


def test_ranked_checkpoints_replace_periodic_ones_and_the_run_resumes_from_the_best(run, make_spec):
    folder = run([0.2, 0.4, 0.1], replace_periodic=True)
    assert names(folder) == ["model_best_001.pth", "rtdetr_model_best.pth", "rtdetr_model_latest.pth"]
    assert (folder / "rtdetr_model_latest.pth").resolve() == folder / "model_best_001.pth"
    folder = run([None, None, 0.3, 0.5], replace_periodic=True)  # the run goes on after epoch 1 and ranks as before
    assert "model_best_003.pth" in names(folder)
    assert "model_best_001.pth" not in names(folder)
    assert load_checkpoint(folder / "rtdetr_model_latest.pth")["epoch"] == 3


def test_without_the_metric_the_periodic_checkpoints_stay(run, caplog):
    caplog.set_level(logging.WARNING)
    folder = run([None, None], replace_periodic=True)
    assert names(folder)[:2] == ["model_epoch_000.pth", "model_epoch_001.pth"]
    assert caplog.text.count("train.checkpointer.monitor: val_given is not logged") == 1
    assert "val/mAP_50_95" in caplog.text


def test_ranked_checkpoints_have_their_average_and_a_folder_of_their_own(run, tmp_path):
    folder = run([0.1, 0.2], train={"enable_ema": True}, dirpath=str(tmp_path / "elsewhere"), replace_periodic=True)
    assert names(tmp_path / "elsewhere") == ["model_best_001-EMA.pth", "model_best_001.pth"]
    assert (folder / "rtdetr_model_latest.pth").resolve() == tmp_path / "elsewhere" / "model_best_001-EMA.pth"


def test_the_ranking_survives_a_resume(run):
    run([0.4, 0.2], save_top_k=2)
    folder = run([None, None, 0.3], save_top_k=2)
    assert names(folder)[:2] == ["model_best_000.pth", "model_best_002.pth"]


def test_equal_names_get_a_version_and_a_single_one_is_overwritten():
    ranking = CheckpointRanking("x", CheckpointerSpec(filename="best", save_top_k=2), "val_mAP")
    result = [ranking.admit({"val_mAP": score}, n, n, True) for n, score in enumerate((0.1, 0.2, 0.3))]
    assert result == ["best", "best-v1", "best"]
    ranking = CheckpointRanking("x", CheckpointerSpec(filename="best"), "val_mAP")
    assert [ranking.admit({"val_mAP": score}, 0, 0, True) for score in (0.1, 0.1, 0.2)] == ["best", None, "best"]
    assert ranking._dropped == []


def test_undefined_and_unvalidated_scores_are_not_ranked():
    ranking = CheckpointRanking("x", CheckpointerSpec(), "val_mAP")
    assert ranking.admit({"val_mAP": float("nan")}, 0, 0, validated=True) is None
    assert ranking.admit({"val_mAP": 0.5}, 0, 0, validated=False) is None
    assert ranking.admit({"val_mAP": 0.0}, 0, 0, validated=True) == "model_best_000"


@pytest.mark.parametrize("monitor", ["val_mAP", "val/mAP_50_95"])
def test_a_metric_has_its_name_in_the_logs_or_that_of_tao(monitor):
    ranking = CheckpointRanking("x", CheckpointerSpec(monitor=monitor, filename="{val_mAP:.1f}"), "val/mAP_50")
    assert ranking.admit({"val/mAP_50_95": 0.25, "val/mAP_50": 0.5}, 0, 0, True) == "0.2"


@pytest.mark.parametrize(
    ("pattern", "insert", "name"),
    [
        ("model_best_{epoch:03d}", False, "model_best_007"),
        ("{epoch}-{val/mAP:.2f}", True, "epoch=7-val_mAP=0.25"),
        ("{step:05d}", False, "00042"),
    ],
)
def test_names_follow_the_pattern(pattern, insert, name):
    ranking = CheckpointRanking("x", CheckpointerSpec(filename=pattern, auto_insert_metric_name=insert), "val/mAP")
    assert ranking.admit({"val/mAP": 0.25}, 7, 42, True) == name


@pytest.mark.parametrize(
    "pattern", ["", "a/b", ".hidden", "{epoch:03z}", "{val_mAP:d}", "model_epoch_{epoch}", "{}", "x{epoch", "a" * 300]
)
def test_an_invalid_pattern_is_named(pattern, tmp_path):
    (tmp_path / "spec.json").write_text(f'{{"train": {{"checkpointer": {{"filename": "{pattern}"}}}}}}')
    with pytest.raises(SpecError, match=r"train\.checkpointer\.filename: .* is invalid"):
        read_spec(tmp_path / "spec.json")


def test_a_folder_that_cannot_be_written_is_named_before_training(make_spec, tmp_path):
    (tmp_path / "file").touch()
    section = CheckpointerSpec(enable_topk=True, dirpath=str(tmp_path / "file" / "best"))
    with pytest.raises(SpecError, match=r"train\.checkpointer\.dirpath: .*file is a file"):
        fit(make_spec(train__checkpointer=section, train__is_dry_run=True))


def test_fields_without_enable_topk_are_reported():
    notes = read_spec(None, ["train.checkpointer.save_top_k=3"]).notes
    assert notes == ["train.checkpointer.save_top_k has no effect: train.checkpointer.enable_topk is false"]
