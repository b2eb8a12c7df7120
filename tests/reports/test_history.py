"""Curves of a run from the CSV files of all its starts."""

from __future__ import annotations

from rtdetr_tool.reports.history import read_history


def write(folder, version: int, text: str) -> None:
    (folder / "csv_logs" / f"version_{version}").mkdir(parents=True)
    (folder / "csv_logs" / f"version_{version}" / "metrics.csv").write_text(text)


def test_a_resumed_run_continues_the_curve_and_replaces_what_it_repeats(tmp_path):
    write(tmp_path, 9, "epoch,step,train_loss\n0,9,3.0\n0,19,2.0\n1,29,1.5\n")
    write(tmp_path, 10, "epoch,step,train_loss,val_mAP\n0,19,2.5,\n1,29,1.0,\n1,29,,0.25\n")
    curves = read_history(tmp_path)
    assert curves["train/loss"].steps == [9, 19, 29] and curves["train/loss"].values == [3.0, 2.5, 1.0]
    assert curves["val/mAP_50_95"].epochs == [1] and curves["val/mAP_50_95"].values == [0.25]


def test_damaged_rows_and_values_are_skipped(tmp_path):
    write(tmp_path, 0, "epoch,step,loss,note\n0,1,nan,x\n0,two,1.0,\n0,3,inf,\n0,4,0.5\n,,\n0,5")
    assert read_history(tmp_path)["loss"].values == [0.5]
    assert "note" not in read_history(tmp_path)


def test_a_folder_without_logs_has_no_curves(tmp_path):
    assert read_history(tmp_path) == {}
