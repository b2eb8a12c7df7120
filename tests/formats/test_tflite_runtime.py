"""TFLite files in the interpreter, without the converter: tiny.tflite, which tiny_tflite.py wrote with litert-torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tflite import CHANNELS, FILE, SIZE, Tiny

from rtdetr_tool import Detector
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.tflite.file import read, read_description
from rtdetr_tool.formats.tflite.runtime import LiteRtRuntime, run_once

pytest.importorskip("ai_edge_litert", reason="the interpreter is a package for tests and an extra: tflite")


def images(count: int) -> torch.Tensor:
    return torch.rand(count, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(0))


def test_the_interface_and_the_description_are_read():
    file = read(FILE)
    interface = file.interface
    assert (interface.batch, interface.channels, interface.size) == (2, CHANNELS, SIZE)
    assert (interface.queries, interface.classes, set(interface.outputs)) == (6, 3, set(Tiny.output_names))
    assert file.description["names"] == {"0": "cat", "1": "dog", "2": "cow"} and file.description["notes"] == "tiny"
    assert file.recorded.meta["spec"]["model"]["num_channels"] == CHANNELS


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_of_any_size_have_the_predictions_of_pytorch(count):
    predictions = LiteRtRuntime(read(FILE)).predict(images(count))
    logits, boxes = Tiny()(images(count))
    torch.testing.assert_close(predictions.logits, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(predictions.boxes, boxes, atol=1e-6, rtol=0)


def test_inputs_are_passed_unchanged_to_a_single_run():
    outputs = run_once(FILE, images(2))
    torch.testing.assert_close(outputs["pred_boxes"], Tiny()(images(2))[1], atol=1e-6, rtol=0)


def test_the_python_api_returns_detections_of_an_image(tmp_path):
    pixels = np.zeros((128, 192, CHANNELS), np.uint8)
    pixels[:64, :64] = (255, 128, 64, 64)  # one query, relative box (1, 0.5, 0.25, 0.25), class 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "image.png")
    detections = Detector.from_checkpoint(FILE).predict(str(tmp_path / "image.png"), threshold=0.6)
    assert list(detections["class_name"]) == ["cat"]
    np.testing.assert_allclose(detections.confidence, 1 / (1 + np.exp(-2)), atol=0.01)
    np.testing.assert_allclose(detections.xyxy, [[168, 48, 192, 80]], atol=2)  # edges are interpolated


class TestBadFiles:
    @pytest.fixture
    def changed(self, tmp_path):
        def write(content: bytes):
            (tmp_path / "bad.tflite").write_bytes(content)
            return tmp_path / "bad.tflite"

        return write

    def test_a_truncated_file(self, changed):
        with pytest.raises(CheckpointError, match=r"cannot run .*bad.tflite"):
            read(changed(FILE.read_bytes()[:1500]))

    def test_another_format(self, changed):
        with pytest.raises(CheckpointError, match="is not a TFLite file"):
            read(changed(b"<html></html>"))

    def test_a_file_without_description_is_of_another_program(self, changed):
        file = read(changed(FILE.read_bytes().replace(b"metadata.json", b"metadata.nosj")))
        assert file.description == {} and file.recorded.meta == {}
        assert file.interface.classes == 3

    def test_a_file_that_is_no_detector(self, changed):
        with pytest.raises(CheckpointError, match="other_boxe"):
            read(changed(FILE.read_bytes().replace(b"pred_boxes", b"other_boxe")))


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="There is no TFLite file"):
        read_description(tmp_path / "no.tflite")
