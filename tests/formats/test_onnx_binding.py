"""onnxruntime reads and writes PyTorch's tensors, and keeps TensorRT's engines per content of a file."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.onnx.file import parsed
from rtdetr_tool.formats.onnx.runtime import OnnxRuntime, engine_cache
from tests.formats.conftest import SIZE

CPU = torch.device("cpu")


@pytest.fixture
def file(steady_graph, tmp_path):
    onnx.save(steady_graph, tmp_path / "model.onnx")
    return parsed(tmp_path / "model.onnx", steady_graph)


@pytest.fixture
def runtime(file):
    return OnnxRuntime(file)


def numpy_outputs(runtime: OnnxRuntime, images: torch.Tensor) -> dict[str, torch.Tensor]:
    arrays = runtime.session.run(runtime.outputs, {runtime.interface.layout.input: images.contiguous().numpy()})
    return dict(zip(runtime.outputs, map(torch.from_numpy, arrays), strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_graph_runs_with_as_many_threads_as_pytorch(file, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert OnnxRuntime(file).session.get_session_options().intra_op_num_threads == threads
        assert OnnxRuntime(file, threads=2).session.get_session_options().intra_op_num_threads == 2
    finally:
        torch.set_num_threads(before)


def test_bound_outputs_are_those_of_an_ordinary_run_for_every_batch_size(runtime):
    generator = torch.Generator().manual_seed(0)
    for count in (2, 2, 1, 2):
        images = torch.rand(count, 3, *SIZE, generator=generator).contiguous(memory_format=torch.channels_last)
        outputs, expected = runtime._bound.run(images), numpy_outputs(runtime, images)
        assert outputs.keys() == expected.keys()
        for name, output in outputs.items():
            assert len(output) == count
            torch.testing.assert_close(output, expected[name], rtol=0, atol=0)


def test_images_and_outputs_are_not_copied(runtime, monkeypatch):
    """The session gets the addresses of the images and of the tensors that are returned."""
    images, bound = torch.rand(2, 3, *SIZE), {}
    session, create = runtime.session, runtime.session.io_binding
    runtime.predict(images)

    class Recorded:
        def __init__(self) -> None:
            self.binding = create()

        def bind_input(self, name, *arguments):
            bound[name] = arguments[-1]
            self.binding.bind_input(name, *arguments)

        def bind_output(self, name, *arguments):
            bound[name] = arguments[-1]
            self.binding.bind_output(name, *arguments)

    monkeypatch.setattr(session, "io_binding", Recorded)
    run = session.run_with_iobinding
    monkeypatch.setattr(session, "run_with_iobinding", lambda recorded: run(recorded.binding))
    outputs = runtime._bound.run(images)
    addresses = {name: output.data_ptr() for name, output in outputs.items()}
    assert bound == {runtime.interface.layout.input: images.data_ptr(), **addresses}


def test_results_stay_valid_after_the_next_batch(runtime):
    first = runtime.predict(torch.zeros(1, 3, *SIZE))
    kept = first.boxes.clone()
    second = runtime.predict(torch.ones(1, 3, *SIZE))
    assert torch.equal(first.boxes, kept) and not torch.equal(second.boxes, kept)


def test_a_batch_that_does_not_fit_the_graph_is_an_error(runtime):
    with pytest.raises(CheckpointError, match=r"onnxruntime failed on a batch of \[1, 3, 32, 32\]"):
        runtime.predict(torch.rand(1, 3, 32, 32))


def test_engines_are_kept_apart_for_files_with_other_weights(file, tmp_path, monkeypatch):
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    folder = engine_cache(file, CPU)
    assert folder is not None and folder.is_dir() and folder.is_relative_to(tmp_path / "cache")
    assert folder.stat().st_mode & 0o077 == 0
    assert engine_cache(file, CPU) == folder
    trained = onnx.load(file.path)
    weights = max(trained.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(trained, tmp_path / "trained.onnx")
    assert engine_cache(replace(file, path=tmp_path / "trained.onnx"), CPU) != folder


def test_engines_are_kept_apart_for_other_weights_in_a_second_file(file, tmp_path, monkeypatch):
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    model, path = onnx.load(file.path), tmp_path / "large.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    large = parsed(path, onnx.load(path, load_external_data=False))
    folder = engine_cache(large, CPU)
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    assert folder != engine_cache(large, CPU)


def test_without_a_writable_folder_no_engines_are_kept(file, tmp_path, monkeypatch, caplog):
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("RF_HOME", str(tmp_path / "occupied"))
    assert engine_cache(file, CPU) is None and "Not keeping TensorRT engines" in caplog.text
