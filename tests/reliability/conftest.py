"""A run that is small enough to be killed many times: `rtdetr train` in a separate process, on a few images."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SIDE, TRAIN, VAL = 32, 8, 2

# Starts the program like `rtdetr`, with patches in that process that inject faults. FAULT_SLOW: seconds before a file
# is renamed, so that kills happen during saves. FAULT_HOLD: points at which the process waits for `Trial.release`, such
# as "saved 1, linking 2" (after the first written file, before the second link). FAULT_DISK: the number of files after
# which the disk is full. FAULT_LATE: signals that the process receives after its run, right after the last status line
# and again at the end of the program. FAULT_NOHUP: as with `nohup`. `--serve` imports everything once and forks a
# process per run, because importing takes longer than training here.
RUNNER = """
import collections, json, os, resource, signal, sys, tempfile, time

passed, holds = collections.Counter(), 0

def build_faults_in():
    import torch
    original, slow, disk = torch.save, float(os.environ.get("FAULT_SLOW", 0)), os.environ.get("FAULT_DISK")
    saves = 0
    def save(payload, file, *arguments, **settings):
        nonlocal saves
        saves += 1
        if disk and saves > int(disk):
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        note("saving")
        original(payload, file, *arguments, **settings)
        file.flush()
        time.sleep(slow)
        note("saved")
    torch.save = save
    note_before(tempfile, "mkstemp", "opening", lambda **names: names["prefix"].startswith(".model_epoch"))
    note_before(os, "symlink", "linking", lambda *paths: True)
    from rtdetr_tool.status import StatusLogger
    success = StatusLogger.success
    def success_and_signals(*arguments):
        success(*arguments)
        send_late_signals()
    StatusLogger.success = success_and_signals

def send_late_signals():
    for name in os.environ.get("FAULT_LATE", "").split():
        os.kill(os.getpid(), getattr(signal, name))

def note_before(module, name, text, concerned):
    original = getattr(module, name)
    def noted(*arguments, **named):
        if concerned(*arguments, **named):
            note(text)
        return original(*arguments, **named)
    setattr(module, name, noted)

def note(text):
    global holds
    passed[text] += 1
    held = f"{text} {passed[text]}" in os.environ.get("FAULT_HOLD", "").split(", ")
    log(text)
    if held:
        holds += 1
        log(f"held_{holds}")
        deadline = time.monotonic() + 120
        while not os.path.exists(os.environ["FAULT_LOG"] + f".release_{holds}"):
            if time.monotonic() > deadline:
                os._exit(98)
            time.sleep(0.01)

def log(text):
    with open(os.environ["FAULT_LOG"], "a") as file:
        file.write(text + "\\n")

def run(arguments):
    from rtdetr_tool.cli import main
    build_faults_in()
    sys.argv[1:] = arguments
    code = main()
    send_late_signals()
    return code

def serve():
    import rtdetr_tool.commands.train, rtdetr_tool.training.fit, timm, tensorboard
    import rtdetr_tool.metrics.coco, torch.utils.tensorboard, PIL.Image
    from rtdetr_tool.spec import read_spec
    PIL.Image.init()
    read_spec(None, ["train.seed=1"])  # imports Hydra
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ.update(request["environment"])
            # Whatever the tests themselves run under, nohup included.
            ignored = "FAULT_NOHUP" in os.environ
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            try:
                code = run(request["arguments"])
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                code = 99
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else sys.exit(run(sys.argv[1:]))
"""


class Trial:
    """A dataset and a spec; `start` starts a run in a results folder, `run` waits for its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(5)
        sources = {
            split: self.draw_source(folder / split, count, rng) for split, count in (("train", TRAIN), ("val", VAL))
        }
        self.spec: dict[str, Any] = {
            "wandb": {"enable": False},
            "model": {
                "backbone": "timm/test_resnet", "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16],
                "dim_feedforward": 16, "num_queries": 6, "num_select": 6, "dec_layers": 1, "dn_number": 2,
            },
            "dataset": {
                "train_data_sources": [sources["train"]], "val_data_sources": sources["val"], "num_classes": 2,
                "batch_size": 2, "workers": 0,
                "augmentation": {
                    "multi_scales": [[32, 32], [64, 64]], "train_spatial_size": [SIDE, SIDE],
                    "eval_spatial_size": [SIDE, SIDE],
                },
            },
            "train": {
                "num_epochs": 2, "accelerator": "cpu", "enable_ema": True, "checkpoint_interval": 2,
                "checkpoint_interval_unit": "step", "optim": {"lr": 1e-3, "warmup_steps": 5},
            },
        }  # fmt: skip
        self.spec_file, self.runner = folder / "spec.json", folder / "faulty.py"
        self.runner.write_text(RUNNER)
        self.spec_file.write_text(json.dumps(self.spec))
        self._server: subprocess.Popen | None = None
        self._last: Forked | None = None

    def draw_source(self, folder: Path, count: int, rng: np.random.Generator) -> dict[str, str]:
        """Write images with a cat each; returns the data source."""
        folder.mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
            box = [4, 4, 12 + number % 5, 16]
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "area": box[2] * 16})
        file = folder.with_suffix(".json")
        categories = [{"id": 1, "name": "cat"}]
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return {"image_dir": str(folder), "json_file": str(file)}

    def results(self, name: str) -> Path:
        return self.folder / name / "train"

    def _request(self, name: str, overrides: tuple[str, ...], faults: dict[str, Any]) -> dict[str, Any]:
        arguments = ["train", "-e", str(self.spec_file), "-r", str(self.folder / name), *overrides]
        output = str(faults.pop("output", self.folder / f"{name}.output"))
        for earlier in self.folder.glob(f"{name}.faults*"):
            earlier.unlink()
        environment = {"FAULT_LOG": str(self._log(name))}
        environment |= {f"FAULT_{fault.upper()}": str(value) for fault, value in faults.items()}
        return {"arguments": arguments, "environment": environment, "output": output}

    def start(self, name: str, *overrides: str, **faults: Any) -> subprocess.Popen:
        """Start a run in a new process, which imports everything."""
        request = self._request(name, overrides, faults)
        with open(request["output"], "w") as output:
            return subprocess.Popen(
                [sys.executable, str(self.runner), *request["arguments"]],
                env=_environment() | request["environment"], stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def run(self, name: str, *overrides: str, **faults: Any) -> int:
        """Wait for a forked run; returns the exit code."""
        return self.fork(name, *overrides, **faults).wait()

    def fork(self, name: str, *overrides: str, **faults: Any) -> Forked:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(self.runner), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=_environment(),
            )  # fmt: skip
        if self._last is not None and self._last.code is None:  # of a test that has failed
            self._last.kill()
            self._last.wait()
        self._server.stdin.write(json.dumps(self._request(name, overrides, faults)) + "\n")
        self._server.stdin.flush()
        self._last = Forked(int(self._server.stdout.readline()), self._server.stdout)
        return self._last

    def hold(self, name: str, point: str, *overrides: str, **faults: Any) -> Forked:
        """Start a forked run that waits at a point (or the first of several, "saved 1, saved 5")."""
        run = self.fork(name, *overrides, hold=point, **faults)
        self.wait_until_held(name, run)
        return run

    def wait_until_held(self, name: str, run: Forked | subprocess.Popen) -> None:
        held, deadline = f"held_{self._releases(name) + 1}", time.monotonic() + 120
        while held not in self.faults(name):
            ended = not run.is_alive() if isinstance(run, Forked) else run.poll() is not None
            assert not ended and time.monotonic() < deadline, self.output(name)
            time.sleep(0.01)

    def release(self, name: str) -> None:
        """Let the run continue to its next point or its end."""
        Path(f"{self._log(name)}.release_{self._releases(name) + 1}").touch()

    def _releases(self, name: str) -> int:
        return len(list(self.folder.glob(f"{name}.faults.release_*")))

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.faults"

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.output").read_text()

    def faults(self, name: str) -> list[str]:
        """The points that the last run with this name has passed: opening, saving, saved, linking, held_1."""
        file = self._log(name)
        return file.read_text().split() if file.exists() else []

    def status(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.results(name) / "status.json").read_text().splitlines()]


class Forked:
    """A run forked by the server: `pid`, and the exit code after its end."""

    def __init__(self, pid: int, answers: TextIO) -> None:
        self.pid, self._answers, self.code = pid, answers, None

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, number)

    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait(self) -> int:
        self.code = int(self._answers.readline())
        return self.code


def _environment() -> dict[str, str]:
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    return environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def trial(tmp_path_factory):
    trial = Trial(tmp_path_factory.mktemp("trial"))
    yield trial
    trial.close()
