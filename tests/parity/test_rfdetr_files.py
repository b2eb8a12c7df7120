"""Files with `export.layout: rfdetr` can replace those of Roboflow's export: names, order, pixels and values."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from tests.parity.rfdetr_pair import CLASSES, build_pair, normalized

decode = pytest.importorskip("rfdetr.export._runtime.decode")
preprocess = pytest.importorskip("rfdetr.export._runtime.preprocess")
prepare = pytest.importorskip("rfdetr.export.prepare")

SIDE = 128
CHANGES = {"num_queries": 30, "resolution": SIDE, "positional_encoding_size": SIDE // 16}


@pytest.fixture(scope="module")
def pair():
    reference, ours = build_pair("nano", **CHANGES)
    return reference.eval(), ours.eval()


def session_of(model: torch.nn.Module) -> onnxruntime.InferenceSession:
    graph = export_graph(model.eval(), (SIDE, SIDE), None, 17)
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def random_images(count: int) -> torch.Tensor:
    return normalized(torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def session(pair):
    return session_of(ExportModel(pair[1], layout=LAYOUTS["rfdetr"]))


def test_names_order_shapes_and_numbers_are_those_of_the_package(pair, session):
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("input", ["batch", 3, SIDE, SIDE])]
    outputs = [(value.name, value.shape) for value in session.get_outputs()]
    assert outputs == [("dets", ["batch", 30, 4]), ("labels", ["batch", 30, CLASSES + 1])]
    images = random_images(2)
    with torch.no_grad():
        expected = pair[0](images)
    dets, labels = session.run(None, {"input": images.numpy()})
    np.testing.assert_allclose(dets, expected["pred_boxes"].numpy(), atol=1e-4)
    np.testing.assert_allclose(labels, expected["pred_logits"].numpy(), atol=1e-3)


def test_code_written_for_the_package_s_files_finds_the_same_objects(pair, session):
    """The package's preprocessing and decoding with our file, against its own model."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (90, 150, 3), dtype=np.uint8))
    images = preprocess.preprocess_to_nchw(image, SIDE, SIDE)
    with torch.no_grad():
        expected = pair[0](torch.from_numpy(images))
    dets, labels = session.run(["dets", "labels"], {"input": images})
    options = {"threshold": 0.0, "background_class_id": None}
    actual = decode.decode_detections(dets[0], labels[0], image.size, **options)
    requested = decode.decode_detections(
        expected["pred_boxes"][0].numpy(), expected["pred_logits"][0].numpy(), image.size, **options
    )
    assert len(actual.class_id) == 30
    np.testing.assert_array_equal(actual.class_id, requested.class_id)
    np.testing.assert_allclose(actual.confidence, requested.confidence, atol=1e-4)
    np.testing.assert_allclose(actual.xyxy, requested.xyxy, atol=2e-2)


@pytest.mark.slow
def test_a_file_without_decoder_gives_the_features_of_the_package_s(pair):
    reference, ours = pair
    session = session_of(ExportFeatures(ours, LAYOUTS["rfdetr"], (SIDE, SIDE)))
    names = prepare.resolve_output_names(
        type("Config", (), {"projector_scale": ["P4"]}), backbone_only=True, backbone=reference.backbone[0]
    )
    assert [output.name for output in session.get_outputs()] == names == ["features"]
    images = random_images(1)
    with torch.no_grad():
        expected = reference.backbone[0].forward_export(images)[0][0]
    (features,) = session.run(None, {"input": images.numpy()})
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-4)


@pytest.mark.slow
def test_only_the_first_group_of_queries_is_in_a_file(pair):
    """A checkpoint has 13 groups."""
    ours = pair[1]
    graph = export_graph(ExportModel(ours).eval(), (SIDE, SIDE), None, 17)
    in_file = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if tensor.data_type == 1)
    lean = sum(parameter.numel() for parameter in ours.deploy().parameters())
    surplus = sum(
        parameter.numel()
        for name, parameter in ours.named_parameters()
        if name.startswith("decoder.enc_out") and int(name.split(".")[2]) > 0
    ) + sum(table.weight.numel() * 12 // 13 for table in (ours.decoder.refpoint_embed, ours.decoder.query_feat))
    assert surplus > 2_700_000
    whole = sum(parameter.numel() for parameter in ours.parameters())
    assert lean < whole - surplus  # embeddings of unused blocks and scales are dropped as well
    assert in_file < whole - surplus + 50_000, "positions and constants in addition to the weights"
