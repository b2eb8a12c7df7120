"""Small checkpoints that expand to large content are refused within seconds and without much memory."""

from __future__ import annotations

import collections
import io
import os
import pickle
import resource
import time
import warnings
import zipfile

import pytest
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.checkpoints.limits import DEEPEST, EXPANSION, MOST_METADATA, MOST_VALUES
from rtdetr_tool.checkpoints.metadata import LARGEST_NUMBER, LARGEST_SIDE, check_sizes
from rtdetr_tool.cli import main
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.spec import read_spec


@pytest.fixture(autouse=True)
def little_time_and_memory():
    """Limit seconds and additional bytes; without protection, these files would take hours and terabytes."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def shared(levels: int, width: int = 8):
    value: list = ["x"]
    for _ in range(levels):
        value = [value] * width
    return value


def holding_itself():
    value: list = []
    value.append(value)
    return value


def nested(levels: int):
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch no longer supports such tensors, but old files have them
        return torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (shared(31), f"more than {MOST_VALUES} values"),
        ({"a": ["x" * 1_000_000] * 100_000}, f"more than {MOST_VALUES} values"),
        (holding_itself(), "contains itself"),
        (nested(DEEPEST + 10), f"nested more than {DEEPEST} levels deep"),
        ({"w": torch.zeros(1).expand(10**12)}, f"more than {EXPANSION} times"),
        ({"w": torch.zeros(1, 1).expand(10**6, 10**6)}, f"more than {EXPANSION} times"),
        ({f"w{n}": torch.zeros(1).expand(10**7) for n in range(100)}, f"more than {EXPANSION} times"),
        ({"w": torch.zeros(10, 10).to_sparse()}, "'w' is sparse"),
        ({"w": torch.zeros(10, device="meta")}, "'w' is strided on meta"),
        ({"w": quantized()}, "'w' is quantized"),
    ],
    ids=["shared", "shared text", "itself", "deep", "stride 0", "strides 0", "many", "sparse", "meta", "quantized"],
)
def test_a_checkpoint_that_stands_for_more_than_it_holds_is_refused(content, words, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": content}, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert "evil.pth" in str(caught.value)


def compress(source, target) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def test_an_archive_that_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path):
    sound, path = io.BytesIO(), tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(2**26)}}, sound)
    compress(sound, path)
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match=f"unpacks to 26.*more than {EXPANSION} times"):
        load_checkpoint(path)


def test_an_archive_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rtdetr_tool.checkpoints.limits.MOST_ENTRIES", 3)
    torch.save({f"w{n}": torch.zeros(1) for n in range(5)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"archive has \d+ files"):
        load_checkpoint(tmp_path / "evil.pth")


def test_tied_weights_expanded_buffers_and_compressed_files_of_usual_kind_are_read(tmp_path):
    weight = torch.randn(100, 100)
    torch.save({"a": weight, "b": weight, "c": weight.t(), "ones": torch.ones(1).expand(1000)}, tmp_path / "tied.pth")
    read = load_checkpoint(tmp_path / "tied.pth")
    assert torch.equal(read["b"], weight) and read["ones"].sum() == 1000
    compress(tmp_path / "tied.pth", tmp_path / "z.pth")
    assert torch.equal(load_checkpoint(tmp_path / "z.pth")["a"], weight)


def metadata_with(value):
    return {"notes": value}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (shared(7), f"more than {MOST_METADATA} values"),
        (nested(DEEPEST + 10), "nested more than"),
        (10**30, "more than 64 bits"),
        (torch.zeros(1), "is a Tensor, not plain data"),
        (collections.OrderedDict(a=[{1, 2}]), "is a set, not plain data"),
    ],
    ids=["shared", "deep", "integer", "tensor", "set"],
)
@pytest.mark.parametrize("command", ["evaluate", "convert"])
def test_metadata_that_is_odd_or_stands_for_much_ends_with_2(value, words, command, project, capsys):
    file = project.checkpoint()
    payload = torch.load(file, weights_only=True)
    payload["rtdetr_tool"]["spec"]["model"]["notes"] = value
    save_checkpoint(payload, file)
    if command == "convert":
        assert main(["convert", str(file), str(project.folder / "out.pth")]) == 2
    else:
        assert project.run("evaluate", f"evaluate.checkpoint={file}") == 2
    text = " ".join(capsys.readouterr().err.split())
    assert words in text and "Traceback" not in text


NUMBERS = [
    "model.num_points", "model.num_queries", "model.num_select", "model.num_feature_levels", "model.nheads",
    "model.dn_number", "model.eval_idx", "model.return_interm_indices", "model.feat_strides", "model.use_encoder_idx",
    "model.rfdetr.num_queries", "model.rfdetr.resolution", "model.rfdetr.patch_size", "model.rfdetr.dec_n_points",
    "model.rfdetr.positional_encoding_size", "dataset.augmentation.eval_spatial_size",
]  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_metadata_are_bounded(name, project):
    file = project.checkpoint()
    payload = torch.load(file, weights_only=True)
    meta = payload["rtdetr_tool"]
    check_sizes(meta, payload["state_dict"], "m.pth")
    *sections, field = name.split(".")
    section = meta["spec"]
    for part in sections:
        section = section[part]
    limit = LARGEST_SIDE if field in ("eval_spatial_size", "resolution") else LARGEST_NUMBER
    for number in (limit + 1, 10**18, float("inf"), float("nan"), -(10**9)):
        section[field] = [number, number] if isinstance(section[field], list) else number
        with pytest.raises(CheckpointError, match="corrupted or forged"):
            check_sizes(meta, payload["state_dict"], "m.pth")
    save_checkpoint(payload, file)
    with pytest.raises(CheckpointError, match="corrupted or forged"):
        open_detector(str(file), read_spec(None))


def test_a_tensor_of_stride_0_gives_a_file_no_larger_network(project):
    file = project.checkpoint()
    payload = torch.load(file, weights_only=True)
    payload["state_dict"]["model.model.decoder.x"] = torch.zeros(1).expand(10**6)
    payload["rtdetr_tool"]["spec"]["model"]["hidden_dim"] = 900
    with pytest.raises(CheckpointError, match="describes a network"):
        check_sizes(payload["rtdetr_tool"], payload["state_dict"], "m.pth")


def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
        load_checkpoint(tmp_path / "pipe.pth")


def test_these_files_do_ask_for_much():
    """The files expand as claimed: the shared list has 8^31 values in a few hundred bytes."""
    assert len(pickle.dumps(shared(31))) < 2_000
