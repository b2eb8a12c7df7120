"""Graphs in every operator set, static and dynamic, against the detector in PyTorch."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.comparison import compare_predictions
from rtdetr_tool.formats.export_model import ExportModel, pixel_detections
from rtdetr_tool.formats.onnx.export import export_graph, opset_of
from rtdetr_tool.formats.precision.modules import matches
from rtdetr_tool.ops.structures import Predictions

SIZE = (64, 96)


def run(graph: onnx.ModelProto, images: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {"inputs": images.numpy()})]


def assert_same(graph: onnx.ModelProto, model: ExportModel, images: torch.Tensor) -> None:
    actual = run(graph, images)
    with torch.no_grad():
        expected = model(images)
    difference = compare_predictions(Predictions(*expected[:2]), Predictions(*actual[:2]))
    assert difference.within(1e-4), difference


@pytest.mark.parametrize("opset", [17, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (12, 16, 22))])
def test_the_graph_has_the_operator_set_asked_for_and_finds_what_torch_finds(opset, export_model):
    graph = export_graph(export_model, SIZE, batch=None, opset=opset)
    assert opset_of(graph) == opset
    kinds = {node.op_type for node in graph.graph.node}
    assert ("GridSample" in kinds) == (opset >= 16)
    assert {node.domain for node in graph.graph.node} == {""}, "standard operators only"
    for batch in (1, 3):
        assert_same(graph, export_model, torch.rand(batch, 3, *SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [13, 14, 15, 18, 19, 20, 21, 23, 24, 25, 26])
def test_so_do_all_other_operator_sets(opset, export_model):
    graph = export_graph(export_model, SIZE, batch=None, opset=opset)
    assert opset_of(graph) == opset
    assert_same(graph, export_model, torch.rand(3, 3, *SIZE))


@pytest.mark.slow
def test_a_static_graph_has_its_batch_in_every_shape(export_model):
    graph = export_graph(export_model, SIZE, batch=2, opset=17)
    for value in (*graph.graph.input, *graph.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value == 2
    assert_same(graph, export_model, torch.rand(2, 3, *SIZE))


def test_a_dynamic_axis_is_called_batch_everywhere(export_model):
    graph = export_graph(export_model, SIZE, batch=None, opset=17)
    values = {value.name: value.type.tensor_type.shape.dim for value in (*graph.graph.input, *graph.graph.output)}
    assert set(values) == {"inputs", "pred_logits", "pred_boxes"}
    assert {dims[0].dim_param for dims in values.values()} == {"batch"}
    assert [axis.dim_value for axis in values["inputs"]][1:] == [3, *SIZE]
    assert [axis.dim_value for axis in values["pred_logits"]][1:] == [20, 3]


def test_values_of_deformable_attention_are_convolutions_of_the_maps(export_model):
    """As linear layers of tokens, each decoder layer would copy all tokens to maps for GridSample."""
    graph = export_graph(export_model, SIZE, batch=1, opset=17).graph
    producer = {name: node for node in graph.node for name in node.output}
    sampled = [node for node in graph.node if node.op_type == "GridSample"]
    assert sampled
    for node in sampled:
        reshape = producer[node.input[0]]
        assert reshape.op_type == "Reshape" and producer[reshape.input[0]].op_type == "Conv"
    projections = [producer[producer[node.input[0]].input[0]] for node in sampled]
    layers = {node.name.split("/cross_attn")[0] for node in sampled}
    assert len({node.input[1] for node in projections}) == len(layers) > 1, "the levels of a layer share its weights"
    assert len(projections) > len(layers)
    for node in projections:  # as rules of precision name them
        module = node.name.split("/cross_attn")[0].rsplit("/", 1)[1]
        assert matches(f"decoder.decoder.{module}.cross_attn.value_proj", node) and matches("Linear", node)
        assert not matches("Conv2d", node)


def test_training_branches_and_repvgg_branches_are_gone(detector, export_model):
    graph = export_graph(export_model, SIZE, batch=1, opset=17)
    assert not any(node.op_type == "BatchNormalization" for node in graph.graph.node)
    deployed = detector.deploy()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in deployed.modules())
    convolutions += len(deployed.decoder.input_proj) * len(deployed.decoder.decoder.layers)  # projections of values
    assert sum(node.op_type == "Conv" for node in graph.graph.node) == convolutions


def test_post_processing_in_the_graph_is_the_packages_own(detector):
    model = ExportModel(detector, num_select=15).eval()
    graph = export_graph(model, SIZE, batch=None, opset=17)
    images = torch.rand(2, 3, *SIZE)
    logits, boxes, pixels, scores, labels = run(graph, images)
    assert labels.dtype == torch.int32
    assert pixels.shape == (2, 15, 4)
    expected = pixel_detections(Predictions(logits, boxes), 15, SIZE)
    torch.testing.assert_close(pixels, expected[0], atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(scores, expected[1], atol=1e-6, rtol=1e-5)
    assert torch.equal(labels, expected[2])
    assert (scores.diff(dim=1) <= 0).all()
    assert pixels[..., 0::2].max() <= SIZE[1] and pixels[..., 1::2].max() <= SIZE[0] and pixels.min() >= 0


def test_pixel_boxes_by_hand():
    """One query, two classes; logit 0 is a score of 0.5; a box that extends beyond the left side is clipped."""
    result = Predictions(torch.tensor([[[-20.0, 0.0]]]), torch.tensor([[[0.1, 0.5, 0.4, 0.5]]]))
    boxes, scores, labels = pixel_detections(result, 1, (100, 200))
    assert boxes.tolist() == [[[0.0, 25.0, pytest.approx(60.0), 75.0]]]
    assert (scores.tolist(), labels.tolist()) == ([[0.5]], [[1]])


def test_an_operator_that_cannot_be_exported_is_an_error_of_one_line(export_model, capfd):
    class Odd(nn.Module):
        input_name, output_names = "inputs", ("pred_logits", "pred_boxes")
        detector = SimpleNamespace(num_channels=3)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images):
            result = torch.linalg.svdvals(images * self.weight)
            return result, result

    with pytest.raises(UserError, match="cannot be exported with operator set 17") as caught:
        export_graph(Odd(), SIZE, batch=1, opset=17)
    assert "\n" not in str(caught.value)
    assert "graph(" not in capfd.readouterr().err


@pytest.mark.parametrize("opset", [17, pytest.param(22, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_model_with_more_weights_than_protobuf_takes_is_simplified_without_them(export_model, monkeypatch, opset):
    usual = export_graph(export_model, SIZE, batch=None, opset=opset)
    monkeypatch.setattr("rtdetr_tool.formats.onnx.file.LARGEST_FILE", 100_000)
    monkeypatch.setattr("rtdetr_tool.formats.onnx.export.LARGE_TENSOR", 5_000)
    graph = export_graph(export_model, SIZE, batch=None, opset=opset)
    assert opset_of(graph) == opset
    assert [value.name for value in graph.graph.input] == ["inputs"]
    assert any(len(tensor.raw_data) > 5_000 for tensor in graph.graph.initializer)
    assert len(graph.graph.node) < 1.2 * len(usual.graph.node)
    assert_same(graph, export_model, torch.rand(3, 3, *SIZE))


def test_a_too_old_operator_set_is_refused(export_model):
    with pytest.raises(UserError, match="12 or newer"):
        export_graph(export_model, SIZE, batch=1, opset=11)
