"""A full disk, a dead data worker, too little memory: the run ends with our message and no file is incomplete."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading

import pytest
import torch
from PIL import Image

from rtdetr_tool import status as status_module
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.data.file_check import read_files
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.status import StatusLogger
from rtdetr_tool.training.out_of_memory import explain_out_of_memory


def test_a_full_disk_leaves_earlier_checkpoints_intact_and_the_run_resumes_when_there_is_room(trial):
    assert trial.run("full", disk=3) == 1  # step 2 and its averages; of step 4 the averages find no room
    folder, last = trial.results("full"), trial.status("full")[-1]
    assert last["status"] == "FAILURE" and "model_epoch_000_step_00004-EMA.pth could not be written" in last["message"]
    assert "File too large" in last["message"] and "Traceback" not in trial.output("full")
    names = sorted(file.name for file in folder.glob("model_*.pth"))
    assert names == ["model_epoch_000_step_00002-EMA.pth", "model_epoch_000_step_00002.pth",
                     "model_epoch_000_step_00004.pth"]  # fmt: skip
    assert os.readlink(folder / "rtdetr_model_latest.pth") == names[0]
    assert [load_checkpoint(folder / name)["global_step"] for name in names] == [2, 2, 4]
    assert not list(folder.glob(".*"))
    assert trial.run("full") == 0, trial.output("full")


def test_a_data_worker_that_is_killed_ends_the_run_with_what_to_lower(trial):
    run = trial.hold("worker", "saving 1", "dataset.workers=1")
    children = _children(run.pid)
    assert children
    for child in children:
        os.kill(child, signal.SIGKILL)
    trial.release("worker")
    assert run.wait() == 1, trial.output("worker")
    message = trial.status("worker")[-1]["message"]
    assert "A data worker process died (DataLoader worker (pid" in message and "dataset.workers (now 1)" in message
    assert "Traceback" not in trial.output("worker")


def test_a_killed_worker_of_validate_data_is_told_in_the_same_words(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    facts = read_files([ImageRecord(str(tmp_path / "a.png"), number, 8, 8) for number in range(500)], workers=1)
    assert next(facts).error is None
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(RtdetrError) as raised:
        list(facts)
    assert re.match(
        r"A data worker process died \(DataLoader worker \(pid.*\)\. If .* lower dataset\.workers \(now 1\)\. If",
        str(raised.value),
    )
    assert raised.value.exit_code == 1


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _spec(**changes):
    source = {"image_dir": "/a", "json_file": "/a.json"}
    data = {
        "model": {"backbone": "resnet_18"},
        "dataset": {
            "train_data_sources": [source], "val_data_sources": source, "batch_size": 8,
            "augmentation": {"multi_scales": [480, [512, 640]], "train_spatial_size": [640, 608]},
        },
        "train": {"activation_checkpoint": False, "enable_ema": True, **changes},
    }  # fmt: skip
    return spec_from_dict(data, "train")


def test_a_gpu_out_of_memory_is_answered_with_what_to_lower_and_its_present_value():
    spec = _spec()
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 7 GiB")
    with pytest.raises(UserError) as raised, explain_out_of_memory(spec):
        raise error
    assert str(raised.value) == (
        "The GPU ran out of memory (CUDA out of memory). Try, cheapest first: "
        "set train.recompute_norms to true (now false); set train.activation_checkpoint to true (now false); "
        "set train.precision to bf16 (now fp32); "
        "set train.ema.cpu_offload to true (now false); lower dataset.batch_size (now 8 per process); "
        "lower dataset.augmentation.train_spatial_size (now 640 x 608) and the largest of "
        "dataset.augmentation.multi_scales (now 640)."
    )
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (RuntimeError("CUDA error: out of memory\nCompile with"), "The GPU ran out of memory (CUDA "),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "The GPU ran out of memory (CUDA "),
        (MemoryError("Unable to allocate 3 GiB"), "The machine ran out of memory (Unable to allocate 3 GiB). "),
        (MemoryError(), "The machine ran out of memory (MemoryError). "),
    ],
)
def test_memory_that_other_libraries_lack_is_answered_alike(error, start):
    with pytest.raises(UserError) as raised, explain_out_of_memory(_spec()):
        raise error
    assert str(raised.value).startswith(start) and "lower dataset.batch_size (now 8 per process)" in str(raised.value)


def test_a_machine_out_of_memory_is_answered_too_and_other_errors_are_not():
    message = r"The machine ran out of memory .*dataset\.batch_size"
    with pytest.raises(UserError, match=message), explain_out_of_memory(_spec()):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory(_spec()):
        raise RuntimeError("something else")


class TestStatusFile:
    def test_a_reader_never_sees_half_a_line(self, tmp_path):
        """Read continuously while lines are written, most of them longer than a memory page."""
        path, over, seen = tmp_path / "status.json", threading.Event(), []
        status = StatusLogger(path, replace=write_atomically)
        status.started("x")

        def read():
            while not over.is_set():
                content = path.read_bytes()
                assert content.endswith(b"\n"), content[-80:]
                seen.append(content.count(b"\n"))

        errors = []
        reader = threading.Thread(target=lambda: _caught(read, errors))
        reader.start()
        number = 0
        while not errors and (number < 80 or len(set(seen)) <= 5):
            status.running("y" * (number * 137 % 6000))
            number += 1
        over.set()
        reader.join()
        assert not errors
        assert all(json.loads(line) for line in path.read_text().splitlines())

    def test_the_last_line_finds_room_on_a_full_disk_and_half_lines_are_taken_back(self, tmp_path, monkeypatch, caplog):
        path, original = tmp_path / "status.json", os.write
        status = StatusLogger(path, replace=write_atomically)
        status.started("x")
        monkeypatch.setattr(status, "_replace", lambda *_: os.read(-1, 1))  # an OSError: no room for a second file

        def write(descriptor, data):  # room for 20 bytes, more when the reserve is released
            return original(descriptor, data[:20] if (tmp_path / ".status.json.reserve").exists() else data)

        monkeypatch.setattr(status_module.os, "write", write)
        status.running("lost")
        assert "No space left on device" in caplog.text
        status.failure("File system error: No space left on device")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["status"] for line in lines] == ["STARTED", "FAILURE"]
        assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def _caught(work, errors):
    try:
        work()
    except BaseException as error:
        errors.append(error)
