"""Indices, sizes and conditions stay in FP32, whatever reads them; nodes that fail in FP16 are reported."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.images import synthetic_images
from rtdetr_tool.formats.onnx.export import export_graph, simplify, trace
from rtdetr_tool.formats.precision import audit_precision, emulate_half, parse_layers_precision, to_int8, to_mixed_fp16
from rtdetr_tool.formats.precision.cost import CostMeter
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.observe import RunFailed, open_session, run_session
from rtdetr_tool.formats.precision.roles import find_roles
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.deformable import deformable_sample
from rtdetr_tool.spec import spec_from_dict

SIDE = 48  # 2304 pixels; FP16 rounds the last index, 2303, to 2304, which does not exist
IMAGES = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).numpy()


class Sampler(nn.Module):
    """Deformable sampling of one map between linear layers, with points up to the last pixel."""

    input_name, output_names = "inputs", ["result"]

    def __init__(self, discrete: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.discrete = discrete
        self.value, self.place, self.output = nn.Conv2d(3, 8, 1), nn.Linear(3, 4 * 2), nn.Linear(8, 4)
        with torch.no_grad():
            self.place.bias.copy_(torch.tensor([0.2, 0.3, 0.61, 0.4, 0.99, 0.985, 8.0, 8.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = self.value(images).flatten(2).transpose(1, 2)[:, :, None]  # [B, S, 1, 8]
        locations = self.place(images.mean((2, 3)) * 0.1).reshape(-1, 1, 1, 4, 2)
        weights = torch.full_like(locations[..., 0], 0.25)
        return self.output(deformable_sample(value, [(SIDE, SIDE)], locations, weights, [4], self.discrete))


@pytest.fixture(params=[(12, False), (15, False), (12, True), (17, True)], ids=str)
def sampler(request):
    opset, discrete = request.param
    return simplify(trace(Sampler(discrete).eval(), torch.from_numpy(IMAGES), opset, dynamic=True, verbose=False))


def run(model):
    return run_session(open_session(model), None, {"inputs": IMAGES})[0]


def test_indices_above_2048_stay_exact(sampler):
    """Otherwise FP16 fails at an index that does not exist, or uses another pixel."""
    audit = audit_precision(sampler, [IMAGES], images_for_cost=2)
    roles = {row.role for row in audit.kept}
    assert {"index", "sampling"} <= roles
    assert audit.cost_kept < 0.01
    for graph in (to_mixed_fp16(sampler, audit), to_mixed_fp16(sampler)):  # measured, and by role alone
        result = run(emulate_half(graph.model))
        np.testing.assert_allclose(result, run(sampler), atol=2e-3)
        onnx.checker.check_model(graph.model, full_check=True)
        assert any(t.data_type == TensorProto.FLOAT16 for t in graph.model.graph.initializer)


def test_a_group_that_does_not_run_in_fp16_is_reported_with_its_node(sampler):
    audit = audit_precision(sampler, [IMAGES], images_for_cost=2)
    assert audit.cost_all_half is None
    assert audit.failure_all_half.startswith("GatherElements node /GatherElements")
    index = next(group for group in audit.groups if group.group == "role: index")
    assert index.kept and index.cost is None and "out of range" in index.failure.lower()
    report = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert report["failure_all_fp16"] == audit.failure_all_half


def test_rules_that_put_indices_into_fp16_are_warned_about(sampler):
    graph = to_mixed_fp16(sampler, None, parse_layers_precision(["*:fp16"]))
    assert any("that compute indices, which are exact in FP16 only up to 2048" in note for note in graph.notes)


# All operators that read an index


def graph_of(nodes, weights, opset=17, outputs=("result",)):
    ends = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "indices", ends, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


POSITION = [
    helper.make_node("Conv", ["inputs", "kernel"], ["features"], name="layer"),
    helper.make_node("Relu", ["features"], ["positive"], name="after the layer"),
    helper.make_node("Mul", ["positive", "width"], ["scaled"], name="scale"),
    helper.make_node("Floor", ["scaled"], ["whole"], name="floor"),
    helper.make_node("Add", ["whole", "first"], ["position"], name="shift"),
    helper.make_node("Cast", ["position"], ["index"], to=TensorProto.INT64, name="to integer"),
]
CONSTANTS = {
    "kernel": np.full((1, 3, 1, 1), 0.3, np.float32), "width": np.float32(48), "first": np.float32(2100),
    "table": np.arange(4096, dtype=np.float32),
}  # fmt: skip
READERS = {
    "Gather": ([helper.make_node("Gather", ["table", "index"], ["result"])], {}),
    "GatherND": (
        [
            helper.make_node("Unsqueeze", ["index", "last"], ["column"]),
            helper.make_node("GatherND", ["table", "column"], ["result"]),
        ],
        {"last": np.array([4])},
    ),
    "ScatterND": (
        [
            helper.make_node("Reshape", ["index", "column shape"], ["column"]),
            helper.make_node("Reshape", ["features", "row shape"], ["updates"]),
            helper.make_node("ScatterND", ["table", "column", "updates"], ["result"]),
        ],
        {"column shape": np.array([-1, 1]), "row shape": np.array([-1])},
    ),
    "Slice": (
        [
            helper.make_node("Reshape", ["index", "row shape"], ["row"]),
            helper.make_node("ReduceMin", ["row"], ["start"], keepdims=1),
            helper.make_node("Slice", ["table", "start", "end"], ["result"]),
        ],
        {"row shape": np.array([-1]), "end": np.array([4096])},
    ),
    "OneHot": (
        [
            helper.make_node("OneHot", ["position", "depth", "values"], ["result"]),
        ],
        {"depth": np.array([4096]), "values": np.array([0, 1], np.float32)},
    ),
    "Where": (
        [
            helper.make_node("Greater", ["position", "limit"], ["above"], name="compare"),
            helper.make_node("Where", ["above", "features", "first"], ["result"]),
        ],
        {"limit": np.float32(2120)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_an_index_is_found_whatever_reads_it(reader):
    nodes, constants = READERS[reader]
    roles = find_roles(Graph(graph_of([*POSITION, *nodes], CONSTANTS | constants)))
    assert {name for name, role in roles.items() if role == "index"} >= {"scale", "floor", "shift"}
    assert "layer" not in roles


def test_whole_numbers_that_stay_in_floating_point_are_kept_and_shares_of_them():
    nodes = [
        helper.make_node("Shape", ["inputs"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["height"]),
        helper.make_node("Cast", ["height"], ["whole"], to=TensorProto.FLOAT, name="to float"),
        helper.make_node("Mul", ["whole", "hundred"], ["many"], name="product"),
        helper.make_node("Mul", ["many", "inputs"], ["scaled"], name="reader"),
        helper.make_node("Mul", ["scaled", "inputs"], ["result"], name="far"),
    ]
    roles = find_roles(Graph(graph_of(nodes, {"two": np.int64(2), "hundred": np.float32(100)})))
    assert {name for name, role in roles.items() if role == "index"} == {"to float", "product", "reader"}


def test_quantisation_shapes_and_masks_are_no_indices():
    nodes = [
        helper.make_node("QuantizeLinear", ["inputs", "step", "zero"], ["eight"], name="quantise"),
        helper.make_node("DequantizeLinear", ["eight", "step", "zero"], ["back"], name="dequantise"),
        helper.make_node("Shape", ["back"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["back", "shape"], ["result"], name="reshape"),
    ]
    assert find_roles(Graph(graph_of(nodes, {"step": np.float32(0.1), "zero": np.int8(0)}))) == {}


# Variants that do not run


@pytest.fixture(scope="module")
def hidden_index():
    """An index from a matrix product, which has no role: 2303 in FP32, 2304 in FP16."""
    nodes = [
        helper.make_node("MatMul", ["inputs", "weights"], ["position"], name="product"),
        helper.make_node("Cast", ["position"], ["index"], to=TensorProto.INT64, name="to integer"),
        helper.make_node("Gather", ["table", "index"], ["result"], name="look-up"),
    ]
    weights = np.full((8, 1), 2303.25 / 8, np.float32)
    return graph_of(nodes, {"weights": weights, "table": np.linspace(0, 1, 2304, dtype=np.float32)})


def test_a_stretch_that_does_not_run_in_fp16_stays_in_fp32(hidden_index):
    ones = np.ones((1, 3, 8, 8), np.float32)
    audit = audit_precision(hidden_index, [ones])
    reasons = audit.nodes["product"].reasons
    assert len(reasons) == 1 and reasons[0].startswith("does not run: product to ")
    assert "Gather node look-up: indices element out of data bounds, idx=2304" in reasons[0]
    assert audit.cost_kept == 0.0
    graph = to_mixed_fp16(hidden_index, audit)
    assert run_session(open_session(graph.model), None, {"inputs": ones})[0].max() == 1.0
    forced = to_mixed_fp16(hidden_index, audit, parse_layers_precision(["MatMul:fp16"]))
    assert any("with values out of range: product" in note for note in forced.notes)


def test_a_graph_that_does_not_run_in_fp32_names_its_node(hidden_index):
    with pytest.raises(RunFailed, match=r"^Gather node look-up: indices element out of data bounds, idx=4606"):
        audit_precision(hidden_index, [np.full((1, 3, 8, 8), 2, np.float32)])


def test_onnxruntime_prints_nothing_of_its_own(hidden_index, capfd):
    with pytest.raises(RunFailed):
        audit_precision(hidden_index, [np.full((1, 3, 8, 8), 2, np.float32)])
    assert capfd.readouterr() == ("", "")


# Real sizes


def detector_of(kind: str):
    small = {"num_queries": 20, "num_select": 15}
    if kind == "rfdetr masks":
        own = {
            "variant": "seg_nano", "out_feature_indexes": [1, 2], "hidden_dim": 16, "sa_nheads": 2, "ca_nheads": 2,
            "dec_layers": 2, "dim_feedforward": 16, "num_queries": 20, "group_detr": 1,
        }  # fmt: skip
        model = {"arch": "rfdetr", "num_select": 15, "rfdetr": own}
    else:
        model = small | {
            "backbone": "timm/test_resnet", "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16],
            "dim_feedforward": 16, "dec_layers": 2, "dn_number": 0,
            "cross_attn_method": "discrete" if "discrete" in kind else "default",
        }  # fmt: skip
    torch.manual_seed(0)
    spec = spec_from_dict({"model": model, "dataset": {"num_classes": 3}})
    built = build_detector(spec.model, num_classes=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "bbox_" in name or "score_head" in name or "class_embed" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif "sampling_offsets.bias" in name:
                parameter[: len(parameter) // 2] = 8.0  # to the last pixel
    return built


def assert_every_precision_runs(kind: str, side: int, opset: int, calibrate: bool = True) -> None:
    images = synthetic_images(2, (side, side)).numpy()
    graph = export_graph(ExportModel(detector_of(kind)).eval(), (side, side), None, opset)
    audit = audit_precision(graph, [images], images_for_cost=2)
    meter = CostMeter(graph, list(images[:, None]))
    # A random network has near ties in its queries, so that rounding changes the selection.
    assert meter.cost(to_mixed_fp16(graph, audit).model) < 0.15
    if opset < 16 or "discrete" in kind:
        assert "index" in {row.role for row in audit.kept}
    if calibrate:
        assert meter.cost(to_int8(graph, [images], audit=audit).model) < 0.3


@pytest.mark.slow
def test_a_detector_of_384_pixels_at_operator_set_12():
    assert_every_precision_runs("rtdetr discrete", 384, 12, calibrate=False)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(12, 21))
@pytest.mark.parametrize("side", [640, 800])
@pytest.mark.parametrize("kind", ["rtdetr", "rtdetr discrete"])
def test_rt_detr_in_every_precision(kind, side, opset):
    assert_every_precision_runs(kind, side, opset)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(12, 21))
@pytest.mark.parametrize("side", [648, 792])  # multiples of 24
def test_rf_detr_with_masks_in_every_precision(side, opset):
    assert_every_precision_runs("rfdetr masks", side, opset)
