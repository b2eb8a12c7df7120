"""Malicious files that try to run code or to access other files, in the commands that read them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from rtdetr_tool.api import Detector
from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.checkpoints.metadata import check_sizes, checked_metadata
from rtdetr_tool.cli import main
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.onnx.file import read_onnx
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.formats.precision.cache import read_cache
from rtdetr_tool.formats.tensorrt.plan import read_description
from rtdetr_tool.spec import read_spec

BINDING = "{teacher_module_name: srcs, student_module_name: srcs, criterion: L2}"
FORMS = ("zip", "legacy", "pickle", "nested", "persistent")


class Evil:
    """Creates a folder when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


class EvilGlobal:
    """Unpickling resolves a harmless name and calls it: `pathlib.Path(...).touch` through getattr."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return getattr, (Evil(self.witness), "x")


def write_evil(path: Path, form: str, witness: Path) -> Path:
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Evil(witness)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(witness)))
    elif form == "nested":
        torch.save({"state_dict": {"a": torch.zeros(1), "b": [{"c": EvilGlobal(witness)}]}}, path)
    elif form == "persistent":  # the name of a tensor's storage is a separate object
        torch.save({"state_dict": {Evil(witness): torch.zeros(1)}}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def refused(capsys, name: str) -> None:
    text = capsys.readouterr().err
    assert "Traceback" not in text and name in text


@pytest.fixture
def witness(tmp_path):
    """The file that the code in a malicious file would create."""
    path = tmp_path / "the code ran"
    yield path
    assert not path.exists()


def test_the_hostile_files_of_these_tests_do_run_code_where_they_may(tmp_path):
    for form in FORMS:
        mark = tmp_path / form
        file = write_evil(tmp_path / "evil.pth", form, mark)
        try:
            torch.load(file, weights_only=False) if form != "pickle" else pickle.loads(file.read_bytes())
        except (AttributeError, TypeError, RuntimeError):
            assert form in ("nested", "persistent")  # after it ran
        assert mark.is_dir()


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_no_pickle_runs_whatever_its_form_and_name(form, suffix, tmp_path, witness):
    with pytest.raises(CheckpointError, match="evil"):
        load_checkpoint(write_evil(tmp_path / f"evil{suffix}", form, witness))


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("evaluate", ["evaluate.checkpoint={}"]),
        ("inference", ["inference.checkpoint={}"]),
        ("export", ["export.checkpoint={}", "export.onnx_file={}.out.onnx", "export.on_cpu=true"]),
        ("train", ["train.pretrained_model_path={}"]),
        ("train", ["model.pretrained_backbone_path={}"]),
        ("train", ["train.resume_training_checkpoint_path={}", "train.is_dry_run=false", "train.num_epochs=1"]),
        ("train", ["model.frozen_fm={enabled: true, backbone: radio_v2-b, checkpoint: '{}'}"]),
        ("distill", ["distill.pretrained_teacher_model_path={}", f"distill.bindings=[{BINDING}]"]),
    ],
)
def test_no_command_runs_a_pickle(command, overrides, project, capsys, witness):
    file = write_evil(project.folder / "evil.pth", "zip", witness)
    assert project.run(command, *(override.replace("{}", str(file)) for override in overrides)) == 2
    refused(capsys, "evil.pth")


@pytest.mark.parametrize("form", FORMS)
def test_convert_runs_no_pickle_and_writes_nothing(form, tmp_path, capsys, witness):
    file = write_evil(tmp_path / "evil.pth", form, witness)
    assert main(["convert", str(file), str(tmp_path / "copy.pth")]) == 2
    refused(capsys, "evil.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_a_planted_checkpoint_in_the_results_folder_runs_nothing_when_training_resumes(project, capsys, witness):
    folder = project.folder / "results" / "train"
    folder.mkdir(parents=True)
    write_evil(folder / "model_epoch_000.pth", "zip", witness)
    (folder / "rtdetr_model_latest.pth").symlink_to("model_epoch_000.pth")
    assert project.run("train", "train.is_dry_run=false", "train.num_epochs=1") == 2
    refused(capsys, "which can run code")


@pytest.mark.parametrize("suffix", [".onnx", ".engine"])
def test_a_pickle_under_the_name_of_a_graph_or_engine_runs_nothing(suffix, project, capsys, witness):
    file = write_evil(project.folder / f"evil{suffix}", "zip", witness)
    assert project.run("evaluate", f"evaluate.checkpoint={file}") == 2
    refused(capsys, file.name)


@pytest.mark.parametrize("content", [b"\x80\x04cos\nsystem\n.", b"[" * 100_000, b"[]", b'{"ranges": 3}', b"\xff", b""])
def test_a_calibration_cache_is_readable_text_or_refused(content, tmp_path):
    path = tmp_path / "cal.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a calibration cache"):
        read_cache(path, "0" * 64, [])


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{", b"\xff", b"9" * 5_000])
def test_the_description_beside_an_engine_is_an_object_of_json_or_refused(content, tmp_path):
    (tmp_path / "m.engine.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.engine\.json"):
        read_description(tmp_path / "m.engine")


def graph_with_weights_in(place: str, inside: bool = False) -> onnx.ModelProto:
    """A graph of the detector's interface with one tensor in another file; `inside` a branch of an If node."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=place)
    nodes = [helper.make_node("Identity", ["w"], ["y"])]
    if inside:
        out = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])]
        branch = helper.make_graph([], "branch", [], out, [weights])
        constant = helper.make_tensor("c", TensorProto.BOOL, [], [True])
        nodes = [helper.make_node("Constant", [], ["c"], value=constant),
                 helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]  # fmt: skip
    values = {"inputs": [1, 3, 64, 64], "pred_logits": [1, 8, 2], "pred_boxes": [1, 8, 4]}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()}
    tensors = [] if inside else [weights]
    graph = helper.make_graph(nodes, "g", [info["inputs"]], [info["pred_logits"], info["pred_boxes"]], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "a/../../x", "..\\..\\x", "C:\\secret"])
@pytest.mark.parametrize("weights", [False, True])
def test_a_graph_cannot_name_files_outside_of_its_folder(place, weights, inside, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(graph_with_weights_in(place, inside).SerializeToString())
    with pytest.raises(CheckpointError, match="expected a file in the folder of the graph or below"):
        read_onnx(path, weights=weights)


@pytest.mark.parametrize("command", ["evaluate", "gen_trt_engine"])
def test_commands_refuse_a_graph_that_names_files_elsewhere(command, project, capsys):
    path = project.folder / "m.onnx"
    path.write_bytes(graph_with_weights_in("../../../../../etc/passwd").SerializeToString())
    overrides = {
        "evaluate": [f"evaluate.checkpoint={path}"],
        "gen_trt_engine": [
            f"gen_trt_engine.onnx_file={path}", f"gen_trt_engine.trt_engine={path}.engine",
            "gen_trt_engine.backend=none",
        ],
    }  # fmt: skip
    assert project.run(command, *overrides[command]) == 2
    refused(capsys, "expected a file in the folder of the graph or below")


@pytest.mark.parametrize(
    "change",
    [
        {"spec": 5},
        {"spec": {"model": [1]}},
        {"spec": {"model": {"frozen_fm": 5}}},
        {"spec": {"model": {"rfdetr": "x"}}},
        {"spec": {"dataset": "x"}},
        {"spec": {"dataset": {"augmentation": 3}}},
        {"classes": 5},
        {"classes": ["cat"]},
    ],
    ids=str,
)
def test_metadata_of_another_form_is_refused(change):
    sound = {"spec": {"model": {}, "dataset": {"augmentation": {}}}, "classes": [{"index": 0, "id": 1, "name": "cat"}]}
    assert checked_metadata(sound, "m.pth") == sound
    with pytest.raises(CheckpointError, match=r"m\.pth has malformed"):
        checked_metadata({**sound, **change}, "m.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"spec": 5},
        {"spec": {"model": {"backbone": "resnet_18", "hidden_dim": "${oc.env:HOME}"}}},
        {"classes": [{"index": "x", "id": None, "name": 3}]},
        {"classes": [{"index": 2**80, "id": 1, "name": "cat"}]},
    ],
    ids=str,
)
def test_metadata_of_a_checkpoint_is_not_trusted(change, project, capsys):
    file = project.checkpoint()
    payload = torch.load(file, weights_only=True)
    payload["rtdetr_tool"] = {**payload["rtdetr_tool"], **change}
    save_checkpoint(payload, file)
    assert project.run("evaluate", f"evaluate.checkpoint={file}") == 2
    assert "Traceback" not in capsys.readouterr().err


SIZES = [
    "model.enc_layers", "model.dec_layers", "model.depth_mult", "model.hidden_dim", "model.dec_hidden_dim",
    "model.dim_feedforward", "model.dec_dim_feedforward", "model.expansion", "dataset.num_classes",
]  # fmt: skip


def test_a_file_cannot_have_a_network_built_that_is_far_larger_than_its_tensors(project):
    file = project.checkpoint()
    payload = torch.load(file, weights_only=True)
    meta, message = (
        payload["rtdetr_tool"],
        r"\.pth (describes a network with|has [a-z]+\.[a-z_]+ ).* corrupted or forged",
    )
    check_sizes(meta, payload["state_dict"], "m.pth")
    for name in SIZES:
        section, _, field = name.partition(".")
        for number in (100_000, 10**30, 1e308):
            changed = {**meta["spec"], section: {**meta["spec"][section], field: number}}
            with pytest.raises(CheckpointError, match=message):
                check_sizes({**meta, "spec": changed}, payload["state_dict"], "m.pth")
    meta["spec"]["model"]["enc_layers"] = 10**18
    save_checkpoint(payload, file)
    with pytest.raises(CheckpointError, match=message):
        open_detector(str(file), read_spec(None))


@pytest.mark.parametrize("section", ["spec", "model", "dataset"])
def test_a_checkpoint_that_says_nothing_of_itself_is_refused(section, project):
    file = project.checkpoint()
    payload = torch.load(file, weights_only=True)
    place = payload["rtdetr_tool"] if section == "spec" else payload["rtdetr_tool"]["spec"]
    del place[section]
    save_checkpoint(payload, file)
    with pytest.raises(CheckpointError):
        open_detector(str(file), read_spec(None))
    with pytest.raises(CheckpointError):
        Detector.from_checkpoint(file)


def test_an_array_of_objects_beside_the_data_is_never_read(project, capsys, witness):
    """numpy files may contain pickles; they are never read, wherever they are."""
    array = np.empty(1, dtype=object)
    array[0] = Evil(witness)
    np.save(project.folder / "images" / "1.npy", array, allow_pickle=True)
    shutil.copy(project.folder / "images" / "1.npy", project.folder / "images" / "7.png")
    assert project.run("inference", f"inference.checkpoint={project.checkpoint()}") == 2
    refused(capsys, "7.png")
