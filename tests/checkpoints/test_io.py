"""Tests of rtdetr_tool.checkpoints.io."""

from __future__ import annotations

import os
import pickle
import signal
import zipfile

import pytest
import torch

from rtdetr_tool.checkpoints import io
from rtdetr_tool.checkpoints.io import load_checkpoint, read_weights, save_checkpoint
from rtdetr_tool.errors import CheckpointError

DETECTOR = {
    "backbone.conv1.weight": torch.ones(2, 3),
    "encoder.input_proj.0.0.weight": torch.zeros(2),
    "decoder.enc_score_head.bias": torch.arange(3.0),
}


class _RunsCode:
    """Pickles to a call that creates a folder, which shows whether any code ran."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_saved_payload_is_loaded_unchanged(tmp_path):
    path = save_checkpoint({"state_dict": DETECTOR, "epoch": 3, "note": ["a", 1.5, None]}, tmp_path / "new" / "a.pth")
    payload = load_checkpoint(path)
    assert payload["epoch"] == 3 and payload["note"] == ["a", 1.5, None]
    assert all(torch.equal(payload["state_dict"][name], tensor) for name, tensor in DETECTOR.items())


@pytest.mark.parametrize("failing", ["save", "replace", "fsync"])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, failing):
    path = save_checkpoint({"epoch": 1}, tmp_path / "a.pth")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    real_save = torch.save
    if failing == "save":
        monkeypatch.setattr(io.torch, "save", lambda payload, file: (file.write(b"half"), full_disk()))
    else:
        monkeypatch.setattr(io.os, failing, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert torch.save is real_save
    assert os.listdir(tmp_path) == ["a.pth"]
    assert load_checkpoint(path)["epoch"] == 1


def test_an_interrupt_while_saving_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(io.torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"epoch": 2}, tmp_path / "a.pth")
    assert os.listdir(tmp_path) == []


def test_a_saved_file_respects_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        path = save_checkpoint({"epoch": 1}, tmp_path / "a.pth")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    witness, path = tmp_path / "ran", tmp_path / "bad.pth"
    torch.save({"state_dict": DETECTOR, "extra": _RunsCode(witness)}, path)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir.*Nothing was executed"):
        load_checkpoint(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the file is dangerous: plain loading runs its code
    assert witness.is_dir()


def test_a_bare_pickle_that_would_run_code_is_refused_too(tmp_path):
    witness, path = tmp_path / "ran", tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps(_RunsCode(witness), protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not witness.exists()


def test_a_missing_file_is_named_with_the_files_nearby(tmp_path):
    save_checkpoint({"epoch": 1}, tmp_path / "model_epoch_000.pth")
    with pytest.raises(CheckpointError, match=r"nope\.pth does not exist.*model_epoch_000\.pth"):
        load_checkpoint(tmp_path / "nope.pth")


def test_a_dangling_link_is_reported_with_its_target(tmp_path):
    (tmp_path / "latest.pth").symlink_to("gone.pth")
    with pytest.raises(CheckpointError, match=r"link to gone\.pth, which does not exist"):
        load_checkpoint(tmp_path / "latest.pth")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a directory"):
        load_checkpoint(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.pth").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_reported_as_such(tmp_path, share):
    path = save_checkpoint({"state_dict": {"a": torch.rand(1000)}}, tmp_path / "a.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"results_dir: x\n", b"{}", b"\x89PNG\r\n", os.urandom(400), b"\x80\x02K\x01"])
def test_other_content_is_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_another_zip_file_is_not_a_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_file_without_a_dictionary_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="contains a list"):
        load_checkpoint(tmp_path / "a.pth")


def test_safetensors_files_load_with_our_header(tmp_path):
    from safetensors.torch import save_file

    save_file(DETECTOR, tmp_path / "a.safetensors", metadata={"rtdetr_tool": '{"version": "1"}'})
    weights, meta = read_weights(tmp_path / "a.safetensors")
    assert set(weights) == set(DETECTOR) and meta == {"version": "1"}


def test_a_corrupted_safetensors_file_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", ["model.model.", "model.", "module.", "module.model.", ""])
@pytest.mark.parametrize("container", ["state_dict", "model", None])
def test_weights_of_all_wrappers_are_read_with_our_names(tmp_path, prefix, container):
    named = {prefix + name: tensor for name, tensor in DETECTOR.items()}
    save_checkpoint({container: named} if container else named, tmp_path / "a.pth")
    weights, meta = read_weights(tmp_path / "a.pth")
    assert set(weights) == set(DETECTOR) and meta is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "ResNet"),
        (["model.backbone.model.x", "model.encoder.y", "model.decoder.z"], "transformers"),
        (["foo.bar", "foo.baz"], "not a supported detector.*foo.bar"),
    ],
)
def test_another_programs_checkpoint_is_named(tmp_path, names, found):
    save_checkpoint({"state_dict": {name: torch.ones(1) for name in names}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=found):
        read_weights(tmp_path / "a.pth")


def test_a_file_without_weights_is_refused_with_its_keys(tmp_path):
    save_checkpoint({"epoch": 3, "lr": 0.1}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no weights.*'epoch', 'lr'"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_save_takes_effect_when_the_file_is_complete(tmp_path, number):
    """Raised by a handler while `torch.save` writes, it would become a RuntimeError or end the process."""
    payload = {str(index): torch.rand(20_000) for index in range(100)}

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (number, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    try:
        for round_number in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (round_number + 1))
            with pytest.raises(KeyboardInterrupt):
                for _ in range(1000):
                    save_checkpoint(payload, tmp_path / "model.pth")
            assert load_checkpoint(tmp_path / "model.pth").keys() == payload.keys()
            assert signal.getsignal(number) is interrupt
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also in a process that was started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_a_save_at_once(tmp_path, monkeypatch, interruptible):
    def save(*_) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was deferred")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({}, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())
