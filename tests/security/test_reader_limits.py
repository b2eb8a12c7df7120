"""Readers of untrusted files have limits on size and time, never wait for pipes, and never quote the files."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from rtdetr_tool.data import coco, coco_json, yolo_yaml
from rtdetr_tool.data.dataset_folder import read_dataset_folder
from rtdetr_tool.data.folder import read_classmap
from rtdetr_tool.errors import CheckpointError, DataError, UserError
from rtdetr_tool.formats.onnx.file import read_onnx
from rtdetr_tool.formats.precision.cache import read_cache
from rtdetr_tool.formats.tensorrt.file import library_for, origin, refusal
from rtdetr_tool.formats.tensorrt.library import LIBRARIES, Messages
from rtdetr_tool.formats.tensorrt.plan import read_description, read_engine_file
from tests.security.test_hostile_files import graph_with_weights_in

SECRET = "root:x:0:0:s3cr3t"


@pytest.fixture(autouse=True)
def little_time():
    start = time.process_time()
    yield
    assert time.process_time() - start < 30


def yolo_folder(tmp_path, names=("cat",)):
    for part in ("images/train", "labels/train"):
        (tmp_path / part).mkdir(parents=True)
    listed = "\n".join(f"  - {name}" for name in names)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames:\n{listed}\n")
    Image.new("RGB", (32, 32)).save(tmp_path / "images/train/1.png")
    (tmp_path / "labels/train/1.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return tmp_path


# Size and time


def test_very_many_names_in_a_data_yaml_are_read_or_refused_in_seconds(tmp_path):
    start = time.process_time()
    names = yolo_yaml._names({"names": [f"class{n}" for n in range(300_000)]}, "data.yaml")
    assert len(names) == 300_000
    assert time.process_time() - start < 5
    folder = yolo_folder(tmp_path, [f"class{n}" for n in range(300_000)])
    with pytest.raises(DataError, match=r"data\.yaml is larger than the limit of 2 MB"):
        read_dataset_folder(str(folder), "train")


def sparse_file(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_files_beyond_their_limits_are_refused_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_json, "LARGEST_FILE", 1 << 20)
    with pytest.raises(DataError, match="larger than the limit of 1048576 bytes"):
        coco_json.load_json(str(sparse_file(tmp_path / "a.json", 1 << 21)))
    with pytest.raises(DataError, match="than"):
        read_classmap(str(sparse_file(tmp_path / "names.txt", 1 << 30)))
    sparse_file(tmp_path / "m.engine.json", 1 << 30)
    with pytest.raises(CheckpointError, match="than"):
        read_description(tmp_path / "m.engine")
    with pytest.raises(UserError, match="not a calibration cache"):
        read_cache(sparse_file(tmp_path / "cal.json", 1 << 30), "0", [])
    with pytest.raises(CheckpointError, match="larger than 2 GiB"):
        read_onnx(sparse_file(tmp_path / "m.onnx", 1 << 33))


# Graphs


def looping(graph_of="main"):
    model = graph_with_weights_in("w.bin")
    body = helper.make_graph([], "body", [], [])
    loop = helper.make_node("Loop", ["n", "c"], ["z"], name="forever", body=body)
    if graph_of == "main":
        model.graph.node.append(loop)
    elif graph_of == "function":
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("own", "f", ["n", "c"], ["z"], [loop], opset))
    else:
        inner = helper.make_graph([loop], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    return model


@pytest.mark.parametrize("place", ["main", "function", "branch"])
def test_a_graph_with_a_loop_is_refused(place, tmp_path):
    (tmp_path / "m.onnx").write_bytes(looping(place).SerializeToString())
    with pytest.raises(CheckpointError, match="'forever' is a Loop, which may never end"):
        read_onnx(tmp_path / "m.onnx", weights=False)


def test_a_loop_ends_evaluate_with_2(project, capsys):
    (project.folder / "m.onnx").write_bytes(looping().SerializeToString())
    assert project.run("evaluate", f"evaluate.checkpoint={project.folder / 'm.onnx'}") == 2
    assert "do not need loops" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("where", ["node", "default", "branch"])
def test_weights_of_functions_in_a_graph_cannot_lie_elsewhere_either(where, tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    node = helper.make_node("Constant", [], ["z"], value=tensor)
    if where == "branch":
        branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("z", 1, [4])])
        node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model = graph_with_weights_in("w.bin")
    function = helper.make_function("own", "f", ["c"], ["z"], [node], [helper.make_opsetid("", 17)])
    if where == "default":
        del function.node[:]
        function.attribute_proto.append(helper.make_attribute("value", tensor))
    model.functions.append(function)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="expected a file in the folder of the graph or below"):
        read_onnx(tmp_path / "m.onnx", weights=False)


def test_constants_that_claim_to_be_huge_are_refused(tmp_path):
    for sparse in (False, True):
        model = graph_with_weights_in("w.bin")
        if sparse:
            values, indices = TensorProto(name="v", data_type=1, dims=[0]), TensorProto(data_type=7, dims=[0])
            model.graph.sparse_initializer.append(
                onnx.SparseTensorProto(values=values, indices=indices, dims=[2**20, 2**20])
            )
        else:
            model.graph.initializer[0].dims[:] = [2**20, 2**20]
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match=f"claims {2**40} numbers"):
            read_onnx(tmp_path / "m.onnx", weights=False)


# Pipes


@pytest.mark.parametrize("name", ["log.txt", "status.json", "experiment.yaml", "results.json"])
def test_a_pipe_in_the_results_folder_is_not_waited_for(name, project, capsys):
    folder = project.folder / "results" / "evaluate"
    folder.mkdir(parents=True)
    os.mkfifo(folder / name)
    assert project.run("evaluate", f"evaluate.checkpoint={project.checkpoint()}") in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(project, capsys):
    (project.folder / "results" / "train").mkdir(parents=True)
    os.mkfifo(project.folder / "results" / "train" / ".run.lock")
    assert project.run("train") == 2
    assert "is a pipe, socket or device" in " ".join(capsys.readouterr().err.split())


def test_no_reader_waits_for_a_pipe(tmp_path):
    for name in ("m.engine", "n.engine.json", "names.txt", "cal.json", "a.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "n.engine").write_bytes(b"x")
    for read, name, error in (
        (read_engine_file, "m.engine", CheckpointError),
        (read_engine_file, "n.engine", CheckpointError),
        (read_classmap, "names.txt", DataError),
        (coco_json.load_json, "a.json", DataError),
    ):
        with pytest.raises(error):
            read(str(tmp_path / name))
    with pytest.raises(UserError):
        read_cache(tmp_path / "cal.json", "0", [])


# Texts of files


def labeled_by_link(tmp_path, text):
    folder = yolo_folder(tmp_path / "data")
    (tmp_path / "private").write_text(text)
    (folder / "labels/train/1.txt").unlink()
    (folder / "labels/train/1.txt").symlink_to(tmp_path / "private")
    return folder


@pytest.mark.parametrize("text", [SECRET, f"0 0.5 0.5 0.5 {SECRET}", f"{SECRET} 1 2 3 4", "0 0.1 0.2 0.3777"])
def test_no_text_of_a_label_file_is_repeated(text, tmp_path):
    with pytest.raises(DataError, match=r"1\.txt, line 1: ") as caught:
        read_dataset_folder(str(labeled_by_link(tmp_path, text)), "train")
    assert not any(word in str(caught.value) for word in (SECRET, "s3cr3t", "0.3777"))


def test_training_on_a_linked_private_file_writes_nothing_of_it(project, capsys):
    folder = labeled_by_link(project.folder / "yolo", SECRET)
    project.spec["dataset"]["train_data_sources"] = [{"dataset_dir": str(folder), "split": "train"}]
    project.write()
    assert project.run("train") == 2
    assert "s3cr3t" not in capsys.readouterr().err
    written = [path for path in (project.folder / "results").rglob("*") if path.is_file()]
    assert written and not any(b"s3cr3t" in path.read_bytes() for path in written)


def test_a_list_of_names_that_is_a_link_to_a_file_elsewhere_is_refused(tmp_path):
    folder = yolo_folder(tmp_path / "data")
    (tmp_path / "private.yaml").write_text((folder / "data.yaml").read_text().replace("cat", "s3cr3t"))
    (folder / "data.yaml").unlink()
    (folder / "data.yaml").symlink_to(tmp_path / "private.yaml")
    with pytest.raises(DataError, match="points outside the dataset") as caught:
        read_dataset_folder(str(folder), "train")
    assert "s3cr3t" not in str(caught.value)
    (tmp_path / "voc" / "train").mkdir(parents=True)
    (tmp_path / "voc/train/1.xml").write_text("<annotation></annotation>")
    (tmp_path / "private").write_text(SECRET)
    (tmp_path / "voc/labels.txt").symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match=r"labels\.txt is a link that points outside") as caught:
        read_dataset_folder(str(tmp_path / "voc"), "train")
    assert "s3cr3t" not in str(caught.value)


def test_the_keys_of_another_json_file_are_not_repeated(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"s3cr3t": 1}))
    with pytest.raises(DataError, match="has no 'images'") as caught:
        coco.read_source(str(tmp_path), str(tmp_path / "a.json"))
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("linked", ["dataset", "folders", "images", "images and labels", "yaml inside"])
def test_links_that_people_use_are_followed(linked, tmp_path):
    store, folder = yolo_folder(tmp_path / "store"), tmp_path / "data"
    if linked == "dataset":
        folder.symlink_to(store)
    else:
        folder = yolo_folder(folder)
        if linked == "folders":
            for name in ("images", "labels"):
                for file in (folder / name / "train").iterdir():
                    file.unlink()
                (folder / name / "train").rmdir()
                (folder / name / "train").symlink_to(store / name / "train")
        elif linked == "yaml inside":
            (folder / "data.yaml").rename(folder / "v1.yaml")
            (folder / "data.yaml").symlink_to("v1.yaml")
        else:
            for file in ("images/train/1.png", "labels/train/1.txt")[: 1 + linked.endswith("labels")]:
                (folder / file).unlink()
                (folder / file).symlink_to(store / file)
    source = read_dataset_folder(str(folder), "train")
    assert [len(image.rows) for image in source.images.values()] == [1]


# Descriptions of engines

ODD = [3, "x", 1.5, True, None, [], [1], [[]], {}, {"a": 1}, float("inf")]


@pytest.mark.parametrize("name", ["build", "engine", "build.backend", "build.version", "build.compute_capabilities",
                                  "engine.bytes", "engine.sha256", "engine.file"])  # fmt: skip
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_description_that_lies_about_an_engine_is_an_error_of_the_input(name, value, tmp_path):
    section, _, field = name.partition(".")
    (tmp_path / "m.engine.json").write_text(json.dumps({section: {field: value} if field else value}))
    (tmp_path / "m.engine").write_bytes(b"ftrtx")
    try:
        plan, description = read_engine_file(tmp_path / "m.engine")
        assert origin(plan, description)
        library = SimpleNamespace(version="10", name="x", library=LIBRARIES["tensorrt"], module=None)
        assert refusal(library, None, tmp_path / "m.engine", plan, description, Messages())
        library_for(tmp_path / "m.engine", plan, description)
    except UserError as error:
        assert "m.engine" in str(error)
