"""A graph that computes a huge tensor ends the command instead of exhausting the memory."""

from __future__ import annotations

import resource

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rtdetr_tool.formats.onnx import session as onnx_session
from rtdetr_tool.formats.onnx.session import explain_memory, memory_limit, new_session

ELEMENTS = 10**11  # 400 GB


def with_a_large_tensor(model: onnx.ModelProto, depends_on_image: bool) -> onnx.ModelProto:
    """The graph with an Expand to `ELEMENTS` values, whose maximum is added to the logits."""
    graph = model.graph
    scale = np.array(float(ELEMENTS), np.float64)
    constants = {"own_one": np.ones(1, np.float32), "own_scale": scale, "own_length": np.ones(1, np.int64)}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    logits = next(output.name for output in graph.output if "logits" in output.name)
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == logits:
                node.output[index] = "own_logits"
    nodes = [
        helper.make_node("ReduceMax", ["inputs"], ["own_brightest"], keepdims=0),
        helper.make_node("Cast", ["own_brightest"], ["own_double"], to=onnx.TensorProto.DOUBLE),
        helper.make_node("Ceil", ["own_double"], ["own_whole"]),  # 1 for all images that are not black
        helper.make_node("Mul", ["own_whole", "own_scale"], ["own_number"]),
    ]
    number = "own_number" if depends_on_image else "own_scale"
    nodes += [
        helper.make_node("Cast", [number], ["own_count"], to=onnx.TensorProto.INT64),
        helper.make_node("Reshape", ["own_count", "own_length"], ["own_shape"]),
        helper.make_node("Expand", ["own_one", "own_shape"], ["own_large"], name="large"),
        helper.make_node("ReduceMax", ["own_large"], ["own_largest"], keepdims=0),
        helper.make_node("Add", ["own_logits", "own_largest"], [logits]),
    ]
    graph.node.extend(nodes if depends_on_image else nodes[4:])
    return model


@pytest.fixture
def exported(project):
    path = project.folder / "m.onnx"
    assert project.run("export", f"export.checkpoint={project.checkpoint()}", f"export.onnx_file={path}") == 0
    return path


@pytest.mark.parametrize("depends_on_image", [True, False])
def test_a_graph_that_needs_too_much_memory_is_refused(depends_on_image, exported, project, capfd):
    onnx.save(with_a_large_tensor(onnx.load(exported), depends_on_image), exported)
    capfd.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert project.run("evaluate", f"evaluate.checkpoint={exported}") == 2
    text = " ".join(capfd.readouterr().err.split())
    assert "the graph needs 400.0 GB for one tensor" in text and "Use a smaller batch size" in text
    assert "Traceback" not in text and "onnxruntime_src" not in text
    arguments = [f"gen_trt_engine.onnx_file={exported}", f"gen_trt_engine.trt_engine={project.folder / 'm.engine'}"]
    arguments += ["gen_trt_engine.tensorrt.data_type=FP16", "gen_trt_engine.backend=none"]
    assert project.run("gen_trt_engine", *arguments) == 2
    assert "the graph needs 400.0 GB for one tensor" in " ".join(capfd.readouterr().err.split())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # KiB


def test_the_limit_is_that_of_the_container(tmp_path, monkeypatch):
    whole = memory_limit()
    (tmp_path / "memory.max").write_text(f"{4 << 30}\n")
    monkeypatch.setattr(onnx_session, "_GROUP_LIMITS", (str(tmp_path / "memory.max"),))
    assert memory_limit() == min(whole, 3 << 30)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit() >= whole


def test_other_errors_are_not_explained():
    assert explain_memory(ValueError("something else")) is None


def test_a_version_without_limits_works(monkeypatch, exported):
    import onnxruntime

    def refuse(*_):
        raise RuntimeError("registered already")

    monkeypatch.setattr(onnx_session, "_limit_memory", onnx_session._limit_memory.__wrapped__)
    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", refuse)
    session = new_session(str(exported), onnxruntime.SessionOptions(), ["CPUExecutionProvider"])
    assert session.run(None, {"inputs": np.ones((1, 3, 64, 64), np.float32)})
