"""The session around every command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rtdetr_tool.commands.session import run_session
from rtdetr_tool.errors import CheckpointError, DataError, RtdetrError, SpecError, UserError
from rtdetr_tool.spec import LoadedSpec, load_spec, read_spec
from rtdetr_tool.status import current_status

ROOT = Path(__file__).parents[2]
SPEC = """
model: {{backbone: resnet_18, backbone_names: [x]}}
dataset:
  train_data_sources: {{image_dir: /data, json_file: /data.json}}
  val_data_sources: {{image_dir: /data, json_file: /data.json}}
results_dir: {results}
"""


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def loaded(tmp_path) -> LoadedSpec:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(results=tmp_path / "results"))
    return read_spec(path, command="train")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "results" / "train"


def status_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]


def failing(error: BaseException):
    def run(_):
        raise error

    return run


class TestARunThatWorks:
    def test_success_is_exit_code_0_and_a_success_line(self, loaded, folder):
        assert run_session(loaded, "train", lambda _: None) == 0
        lines = status_of(folder)
        assert [line["status"] for line in lines] == ["STARTED", "SUCCESS"]
        assert lines[0]["message"] == "Starting RT-DETR train."

    def test_the_command_gets_the_spec_and_writes_status_lines_in_between(self, loaded, folder):
        seen = []

        def run(given):
            seen.append(given)
            current_status().running("Training loop in progress", epoch=0)

        run_session(loaded, "train", run)
        assert seen == [loaded]
        assert [line["status"] for line in status_of(folder)] == ["STARTED", "RUNNING", "SUCCESS"]

    def test_the_resolved_spec_is_written_and_loads_again_to_the_same(self, loaded, folder):
        run_session(loaded, "train", lambda _: None)
        again = load_spec(folder / "experiment.yaml", command="train")
        assert again == loaded.spec
        assert again.train.results_dir == str(folder)

    def test_unused_fields_are_reported_on_the_console_and_in_the_log(self, loaded, folder, capsys):
        run_session(loaded, "train", lambda _: None)
        note = "model.backbone_names has no effect"
        assert note in capsys.readouterr().err
        assert note in (folder / "log.txt").read_text()

    def test_the_folder_has_no_other_files(self, loaded, folder):
        run_session(loaded, "train", lambda _: None)
        assert sorted(p.name for p in folder.iterdir()) == ["experiment.yaml", "log.txt", "status.json"]

    def test_a_second_run_appends_its_lines(self, loaded, folder):
        for _ in range(2):
            run_session(loaded, "train", lambda _: None)
        assert [line["status"] for line in status_of(folder)] == ["STARTED", "SUCCESS"] * 2

    def test_nothing_is_written_after_the_end(self, loaded, folder):
        run_session(loaded, "train", lambda _: None)
        current_status().running("late")
        assert len(status_of(folder)) == 2

    def test_an_exit_code_of_the_command_is_kept(self, loaded, folder):
        assert run_session(loaded, "train", lambda _: 1) == 1
        assert status_of(folder)[-1]["status"] == "FAILURE"


class TestARunThatFails:
    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (UserError("no such class"), 2, "Configuration error: no such class"),
            (DataError("a.json: broken"), 2, "Configuration error: a.json: broken"),
            (CheckpointError("x.pth: foreign"), 2, "Configuration error: x.pth: foreign"),
            (SpecError(["a: wrong"]), 2, "Schema validation error: 1 problem:\n  - a: wrong"),
            (RtdetrError("we failed"), 1, "Run time error: we failed"),
            (NotImplementedError("later"), 1, "Feature not implemented: later"),
            (ValueError("bad"), 1, "Parameter validation error: bad"),
            (TypeError("bad"), 1, "Parameter validation error: bad"),
            (FileNotFoundError("gone"), 1, "File system error: gone"),
            (RuntimeError("CUDA out of memory"), 1, "Run time error: CUDA out of memory"),
            (AssertionError(), 1, "Run time error: AssertionError"),
            (MemoryError(), 1, "Run time error: MemoryError"),
            (SystemExit(0), 1, "User/System interruption: 0"),
            (KeyboardInterrupt(), 130, "User/System interruption: the run was interrupted."),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_exit_code_and_last_status_line_match_the_result(self, loaded, folder, error, code, message):
        assert run_session(loaded, "train", failing(error)) == code
        last = status_of(folder)[-1]
        assert (last["status"], last["verbosity"], last["message"]) == ("FAILURE", "ERROR", message)

    def test_a_user_error_is_one_message_without_a_traceback(self, loaded, folder, capsys):
        run_session(dataclasses.replace(loaded, notes=[]), "train", failing(UserError("mend this")))
        assert capsys.readouterr().err == "Error: mend this\n"
        assert "Traceback" not in (folder / "log.txt").read_text()

    def test_a_failure_is_short_on_the_console_and_complete_in_the_log(self, loaded, folder, capsys):
        run_session(loaded, "train", failing(RuntimeError("something broke")))
        shown = capsys.readouterr().err
        assert f"Failed: RuntimeError: something broke. The traceback is in {folder / 'log.txt'}." in shown
        assert "Traceback" not in shown
        text = (folder / "log.txt").read_text()
        assert "Traceback (most recent call last)" in text
        assert "in run" in text

    def test_secrets_in_an_error_reach_neither_console_nor_files(self, loaded, folder, capsys):
        run_session(loaded, "train", failing(RuntimeError("login with api_key=abcdef123456 failed")))
        everything = capsys.readouterr().err + "".join(p.read_text() for p in folder.iterdir())
        assert "abcdef123456" not in everything

    def test_an_interrupt_that_lightning_turned_into_an_exit_is_an_interrupt(self, loaded, folder):
        def run(_):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sys.exit(1)

        assert run_session(loaded, "train", run) == 130
        assert "interruption" in status_of(folder)[-1]["message"]

    def test_an_interrupt_inside_a_real_lightning_run_is_an_interrupt(self, loaded, folder, tmp_path):
        import pytorch_lightning as pl
        import torch

        class Interrupted(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)

            def training_step(self, batch, index):
                raise KeyboardInterrupt

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        def run(_):
            settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **settings)
            trainer.fit(Interrupted(), torch.utils.data.DataLoader(torch.zeros(2, 1)))

        before = signal.getsignal(signal.SIGINT)
        try:
            assert run_session(loaded, "train", run) == 130
        finally:
            signal.signal(signal.SIGINT, before)  # Lightning ignores it afterwards
        assert status_of(folder)[-1]["message"] == "User/System interruption: the run was interrupted."


class TestFolders:
    def test_a_folder_that_cannot_be_created_is_a_user_error(self, loaded, tmp_path, capsys):
        (tmp_path / "results").write_text("a file is in the way")
        assert run_session(loaded, "train", failing(AssertionError("must not run"))) == 2
        shown = capsys.readouterr().err
        assert "cannot be written" in shown
        assert "-r" in shown

    def test_a_log_file_that_cannot_be_opened_is_a_user_error(self, loaded, folder, capsys):
        (folder / "log.txt").mkdir(parents=True)
        assert run_session(loaded, "train", failing(AssertionError("must not run"))) == 2
        assert "log.txt cannot be written" in capsys.readouterr().err

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
    def test_a_folder_without_permission_is_a_user_error(self, loaded, tmp_path):
        (tmp_path / "results").mkdir(mode=0o500)
        assert run_session(loaded, "train", lambda _: None) == 2


class TestProcesses:
    def test_processes_other_than_the_first_write_nothing(self, loaded, folder, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert run_session(loaded, "train", lambda _: None) == 0
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize(
        ("signum", "exit_code", "says"),
        [
            (signal.SIGINT, 130, "Interrupted."),
            (signal.SIGTERM, 75, "Ended by SIGTERM; run the same command again to resume."),
            (signal.SIGUSR1, 75, "Ended by SIGUSR1; run the same command again to resume."),
        ],
    )
    def test_a_signal_ends_the_run_with_its_code_and_a_failure_line(self, tmp_path, signum, exit_code, says):
        spec = tmp_path / "spec.yaml"
        spec.write_text(SPEC.format(results=tmp_path / "results"))
        code = (
            "import sys, time\n"
            "from rtdetr_tool.commands.session import run_session\n"
            "from rtdetr_tool.spec import read_spec\n"
            f"loaded = read_spec({str(spec)!r}, command='train')\n"
            "def run(_):\n"
            "    print('ready', flush=True)\n"
            "    time.sleep(900)\n"
            "sys.exit(run_session(loaded, 'train', run))\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by a shell's background jobs
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        _, shown = process.communicate(timeout=600)
        assert process.returncode == exit_code
        assert says in shown
        assert "Traceback" not in shown
        assert status_of(tmp_path / "results" / "train")[-1]["status"] == "FAILURE"

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
    def test_signal_handlers_are_restored(self, loaded, signum):
        before = signal.getsignal(signum)
        run_session(loaded, "train", lambda _: None)
        assert signal.getsignal(signum) is before
