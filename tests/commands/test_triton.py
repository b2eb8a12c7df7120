"""`rtdetr triton`: model repositories, checked with the schema of Triton's own client and with onnxruntime."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json

import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

from rtdetr_tool.cli import main
from rtdetr_tool.formats.onnx.file import description_of
from rtdetr_tool.formats.tensorrt.plan import write_engine_file

KINDS = {"tensor(float)": "TYPE_FP32", "tensor(int32)": "TYPE_INT32", "tensor(int64)": "TYPE_INT64"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, make_project):
    """A project with the files `dynamic.onnx` and `fixed.onnx` (batch 2), with post-processing."""
    project = make_project(tmp_path_factory.mktemp("triton"))
    weights = project.checkpoint(lively=True)
    for name, batch in (("dynamic", -1), ("fixed", 2)):
        file = project.folder / f"{name}.onnx"
        assert project.run(
            "export", f"export.checkpoint={weights}", f"export.onnx_file={file}", f"export.batch_size={batch}",
            "export.include_postprocess=true",
        ) == 0  # fmt: skip
    return project


@pytest.fixture(scope="module")
def schema():
    """The schema that Triton publishes with its client, without the client's other imports."""
    try:
        files = importlib.metadata.files("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tritonclient is not installed")
    (path,) = (file.locate() for file in files if file.match("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(folder, schema):
    """`config.pbtxt` by Triton's schema."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="ascii"), schema.ModelConfig())


def engine(path, exported, backend="tensorrt", **build):
    """A file with the description of an engine of `dynamic.onnx`; the plan itself is not one."""
    described = {"name": "inputs", "shape": [-1, 3, 64, 64], "type": "float32"}
    boxes = {"name": "pred_boxes", "shape": [-1, 20, 4], "type": "float32"}
    report = {
        "backend": backend, "version": "10.9", "compute_capabilities": [], "inputs": [described], "outputs": [boxes],
        "profile": {"inputs": {"min": [1, 3, 64, 64], "opt": [2, 3, 64, 64], "max": [4, 3, 64, 64]}}, **build,
    }  # fmt: skip
    description = description_of(onnx.load(exported.folder / "dynamic.onnx"))
    write_engine_file(path, b"ftrt" + bytes(100), {**description, "build": report})
    return path


def test_inputs_and_outputs_are_those_of_the_file(exported, tmp_path, schema):
    file = exported.folder / "dynamic.onnx"
    assert main(["triton", str(file), str(tmp_path / "models"), "--name", "detector", "--max-batch", "16"]) == 0
    folder = tmp_path / "models" / "detector"
    model = parsed(folder, schema)
    assert (model.name, model.backend, model.max_batch_size) == ("detector", "onnxruntime", 16)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    for ours, theirs in ((model.input, session.get_inputs()), (model.output, session.get_outputs())):
        assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
        for tensor, expected in zip(ours, theirs, strict=True):
            assert schema.DataType.Name(tensor.data_type) == KINDS[expected.type]
            assert list(tensor.dims) == expected.shape[1:]
    assert model.dynamic_batching.max_queue_delay_microseconds == 1000
    assert (folder / "1" / "model.onnx").read_bytes() == file.read_bytes()
    assert json.loads(model.parameters["names"].string_value) == {"1": "cat"}
    assert json.loads(model.parameters["input_size"].string_value) == [64, 64]
    assert "pixel / 255" in model.parameters["normalisation"].string_value


def test_a_fixed_batch_is_part_of_the_shapes(exported, tmp_path, schema, capsys):
    file = exported.folder / "fixed.onnx"
    assert main(["triton", str(file), str(tmp_path / "models"), "--cpu"]) == 0
    model = parsed(tmp_path / "models" / "fixed", schema)
    assert model.max_batch_size == 0 and list(model.input[0].dims) == [2, 3, 64, 64]
    assert not model.HasField("dynamic_batching")
    assert model.instance_group[0].kind == model.instance_group[0].KIND_CPU
    assert main(["triton", str(file), str(tmp_path / "other"), "--max-batch", "4"]) == 2
    assert "has the fixed batch size 2" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_engine_has_the_limit_of_its_profile(exported, tmp_path, schema, capsys):
    file = engine(tmp_path / "model.engine", exported)
    assert main(["triton", str(file), str(tmp_path / "models"), "--name", "rtdetr"]) == 0
    model = parsed(tmp_path / "models" / "rtdetr", schema)
    assert (model.backend, model.max_batch_size, list(model.output[0].dims)) == ("tensorrt", 4, [20, 4])
    assert (tmp_path / "models" / "rtdetr" / "1" / "model.plan").read_bytes() == file.read_bytes()
    assert main(["triton", str(file), str(tmp_path / "other"), "--max-batch", "5"]) == 2
    assert "was built for batches up to 4" in capsys.readouterr().err


def test_a_name_that_is_taken_is_kept_without_force(exported, tmp_path, schema, capsys):
    command = ["triton", str(exported.folder / "dynamic.onnx"), str(tmp_path), "--name", "detector"]
    assert main(command) == 0
    before = (tmp_path / "detector" / "config.pbtxt").read_bytes()
    assert main([*command, "--max-batch", "2"]) == 2
    assert "use --force to overwrite it" in capsys.readouterr().err
    assert (tmp_path / "detector" / "config.pbtxt").read_bytes() == before
    assert main([*command, "--max-batch", "2", "--force"]) == 0
    assert parsed(tmp_path / "detector", schema).max_batch_size == 2


def test_names_in_any_language_survive_the_text_format(exported, tmp_path, schema):
    model = onnx.load(exported.folder / "dynamic.onnx")
    names = {"1": 'Katze "quoted" \\ größer 猫\n'}
    next(entry for entry in model.metadata_props if entry.key == "names").value = json.dumps(names, ensure_ascii=False)
    onnx.save(model, tmp_path / "named.onnx")
    assert main(["triton", str(tmp_path / "named.onnx"), str(tmp_path / "models")]) == 0
    assert json.loads(parsed(tmp_path / "models" / "named", schema).parameters["names"].string_value) == names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda exported, folder: folder / "missing.onnx", "does not exist"),
        (lambda exported, folder: exported.checkpoint(), "is a PyTorch weights file; expected an ONNX file"),
        (lambda exported, folder: engine(folder / "a.engine", exported, "tensorrt_rtx"), "which Triton does not have"),
        (lambda exported, folder: engine(folder / "a.engine", exported, inputs=[]), "does not name the inputs"),
    ],
)
def test_files_that_triton_cannot_load_are_refused(exported, tmp_path, capsys, make, message):
    assert main(["triton", str(make(exported, tmp_path)), str(tmp_path / "models")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "a b"])
def test_a_name_is_one_folder(exported, tmp_path, capsys, name):
    assert main(["triton", str(exported.folder / "dynamic.onnx"), str(tmp_path / "models"), "--name", name]) == 2
    assert "--name" in capsys.readouterr().err


def test_weights_in_a_second_file_come_along(exported, tmp_path, schema):
    model = onnx.load(exported.folder / "dynamic.onnx")
    onnx.save(
        model, tmp_path / "large.onnx", save_as_external_data=True, location="large.onnx.data", size_threshold=1024
    )
    assert main(["triton", str(tmp_path / "large.onnx"), str(tmp_path / "models")]) == 0
    onnxruntime.InferenceSession(tmp_path / "models" / "large" / "1" / "model.onnx")
