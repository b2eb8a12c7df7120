"""`rtdetr quantize`: number formats, patterns, calibration, scores, and what the file can be used for."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetr_tool.formats.onnx.session import new_session
from rtdetr_tool.formats.precision.modules import matches, module_path

FP8 = "weights: {dtype: fp8_e4m3fn}, activations: {dtype: fp8_e4m3fn}"
INT8 = "weights: {dtype: int8}, activations: {dtype: int8}"
STATIC = "mode=static_ptq"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_project):
    """A project whose labels are what its detector finds, and the ONNX file of that detector."""
    project = make_project(tmp_path_factory.mktemp("quantize"))
    project.weights, project.file = project.checkpoint(lively=True), project.folder / "model.onnx"
    assert project.run("export", f"export.checkpoint={project.weights}", f"export.onnx_file={project.file}") == 0
    assert project.run("evaluate", f"evaluate.checkpoint={project.weights}") == 0
    project.label_best_detections()
    return project


@pytest.fixture
def quantize(trained, project):
    """Runs the command on the shared ONNX file; returns the exit code. The scores may drop as they like."""
    project.coco = trained.coco
    project.write()
    project.result = project.folder / "results" / "quantize" / "quantized_model.onnx"

    def run(*overrides: str, model=trained.file) -> int:
        fields = [f"model_path={model}", "max_score_drop=1.0", *overrides]
        return project.run("quantize", *(f if f.startswith("dataset.") else f"quantize.{f}" for f in fields))

    return run


def report(project) -> dict:
    return json.loads((project.result.parent / "quantize.json").read_text())


def formats(project) -> set[tuple[str, str | None]]:
    return {(row["weights"], row["activations"]) for row in report(project)["layers"].values()}


def types_of(file) -> dict[str, int]:
    """Number of weights and zero points in each 8-bit format."""
    kinds = [tensor.data_type for tensor in onnx.load(file).graph.initializer]
    return {"int8": kinds.count(TensorProto.INT8), "fp8": kinds.count(TensorProto.FLOAT8E4M3FN)}


class TestResults:
    def test_weights_only_needs_no_images_and_keeps_the_score(self, quantize, project, trained, capsys):
        assert quantize("max_score_drop=0.1") == 0
        found = report(project)
        assert formats(project) == {("int8", None)} and found["calibration"]["images"] == 0
        assert found["scores"]["FP32"]["mAP"] > 0.5
        assert found["scores"]["INT8 weights"]["mAP"] == pytest.approx(found["scores"]["FP32"]["mAP"], abs=0.1)
        graph = onnx.load(project.result).graph
        operators = [node.op_type for node in graph.node]
        weights = {node.input[1] for node in graph.node if node.name in found["layers"]}  # some layers share theirs
        assert "QuantizeLinear" not in operators and operators.count("DequantizeLinear") == len(weights) > 50
        assert "points lost" in capsys.readouterr().err
        assert project.status("quantize")[-1]["status"] == "SUCCESS"

    def test_weights_come_back_within_half_a_step(self, quantize, project, trained):
        assert quantize("score_images=0") == 0
        before = {t.name: numpy_helper.to_array(t) for t in onnx.load(trained.file).graph.initializer}
        after = {t.name: numpy_helper.to_array(t) for t in onnx.load(project.result).graph.initializer}
        names = [name.removesuffix("/int8") for name in after if name.endswith("/int8")]
        assert len(names) > 50
        for node in onnx.load(project.result).graph.node:
            if node.op_type != "DequantizeLinear":
                continue
            whole, scale = after[node.input[0]].astype(np.float32), after[node.input[1]]
            axis = next(a.i for a in node.attribute if a.name == "axis")
            shape = [-1 if i == axis else 1 for i in range(whole.ndim)]
            original = before[node.input[0].removesuffix("/int8")]
            assert (np.abs(whole * scale.reshape(shape) - original) <= 0.5001 * scale.reshape(shape) + 1e-7).all()

    @pytest.mark.parametrize(("name", "row"), [("INT8", INT8), pytest.param("FP8", FP8, marks=pytest.mark.slow)])
    def test_a_checkpoint_is_exported_quantized_and_scored(self, name, row, quantize, project, trained):
        layers = f"layers=[{{module_name: '*', {row}}}]"
        assert quantize(STATIC, layers, model=trained.weights) == 0
        found = report(project)
        assert found["calibration"]["images"] == 6
        assert (
            found["scores"][name]["mAP"] > 0.3 and found["scores"][name]["bytes"] < found["scores"]["FP32"]["bytes"] / 2
        )
        counts = types_of(project.result)
        assert counts["int8" if name == "INT8" else "fp8"] > 100 and min(counts.values()) == 0
        onnx.checker.check_model(onnx.load(project.result), full_check=True)
        assert project.run("evaluate", f"evaluate.checkpoint={project.result}") == 0

    def test_evaluate_and_inference_take_the_file(self, quantize, project):
        assert quantize() == 0
        scores = report(project)["scores"]["INT8 weights"]
        assert project.run("evaluate", f"evaluate.checkpoint={project.result}", "evaluate.is_quantized=true") == 0
        results = json.loads((project.folder / "results/evaluate/results.json").read_text())
        assert results["mAP"] == pytest.approx(scores["mAP"], abs=1e-6)
        assert project.run("inference", f"inference.checkpoint={project.result}", "inference.is_quantized=true") == 0

    @pytest.mark.parametrize("command", ["evaluate", "inference"])
    def test_is_quantized_refuses_a_file_that_is_not(self, command, project, trained, capsys):
        for file in (trained.file, trained.weights):
            assert project.run(command, f"{command}.checkpoint={file}", f"{command}.is_quantized=true") == 2
            assert f"{command}.is_quantized: {file} is not quantized" in capsys.readouterr().err

    @pytest.mark.slow
    def test_an_engine_can_be_built_from_the_file_but_not_quantized_again(self, quantize, project, capsys):
        assert quantize(STATIC, "score_images=0") == 0
        engine = [
            f"gen_trt_engine.onnx_file={project.result}", "gen_trt_engine.backend=none",
            "gen_trt_engine.max_score_drop=1.0",
        ]  # fmt: skip
        assert project.run("gen_trt_engine", *engine, "gen_trt_engine.tensorrt.data_type=FP16") == 0
        scores = json.loads((project.folder / "results/gen_trt_engine/precision.json").read_text())["scores"]
        assert list(scores) == ["INT8", "INT8 and FP16"] and None not in scores.values()
        assert "INT8 and FP16" in capsys.readouterr().err
        assert project.run("gen_trt_engine", *engine, "gen_trt_engine.tensorrt.data_type=INT8") == 2
        assert "is already quantized; expected FP32 or FP16" in capsys.readouterr().err
        assert quantize(model=project.result) == 2
        assert "is already quantized; expected a checkpoint or an FP32 ONNX file" in capsys.readouterr().err


class TestFields:
    def test_skipped_modules_stay_in_fp32(self, quantize, project):
        assert quantize("skip_names=['decoder.*', '*layer1*']", "score_images=0") == 0
        rows = report(project)
        assert {row["module"].split(".")[0] for row in rows["layers"].values()} == {"backbone", "encoder"}
        assert not any("layer1" in row["module"] for row in rows["layers"].values())
        assert set(rows["skipped"].values()) == {"quantize.skip_names: decoder.*", "quantize.skip_names: *layer1*"}

    def test_of_the_layers_that_match_the_last_one_applies(self, quantize, project):
        linear = "{module_name: Linear, weights: {dtype: int8}}"
        score = "{module_name: '*score_head*', weights: {dtype: native}}"
        assert quantize(f"layers=[{{module_name: Conv2d, {INT8}}}, {linear}, {score}]", STATIC, "score_images=0") == 0
        rows = report(project)
        assert formats(project) == {("int8", "int8"), ("int8", None)}
        for name, row in rows["layers"].items():
            is_convolution = "/Conv" in name and "/value_proj" not in name  # that one is a linear layer of the maps
            assert is_convolution == (row["activations"] == "int8"), name
        assert rows["skipped"] and all("score_head" in name for name in rows["skipped"])

    def test_formats_may_be_mixed(self, quantize, project):
        assert (
            quantize(STATIC, f"layers=[{{module_name: 'backbone.*', {INT8}}}, {{module_name: 'encoder.*', {FP8}}}]")
            == 0
        )
        assert formats(project) == {("int8", "int8"), ("fp8_e4m3fn", "fp8_e4m3fn")}
        assert min(types_of(project.result).values()) > 10

    @pytest.mark.parametrize(
        ("algorithm", "methods"),
        [
            (None, 6),
            pytest.param("minmax", {"minmax"}, marks=pytest.mark.slow),
            pytest.param("max", {"minmax"}, marks=pytest.mark.slow),
            ("entropy", {"entropy"}),
        ],
    )
    def test_the_algorithm_is_searched_unless_it_is_set(self, algorithm, methods, quantize, project):
        assert quantize(STATIC, "score_images=0", *([f"algorithm={algorithm}"] if algorithm else [])) == 0
        costs = report(project)["calibration"]["costs"]
        assert len(costs) == 6 if methods == 6 else set(costs) == methods

    def test_an_observer_decides_the_range_of_its_layers(self, quantize, project):
        def scales(observer):
            row = INT8.replace("activations: {dtype: int8}", f"activations: {{dtype: int8{observer}}}")
            layers = f"layers=[{{module_name: 'backbone.*', {row}}}, {{module_name: 'encoder.*', {INT8}}}]"
            assert quantize(STATIC, "algorithm=minmax", "score_images=0", layers) == 0
            tensors = {t.name: t for t in onnx.load(project.result).graph.initializer if t.name.endswith("/scale")}
            return {name: numpy_helper.to_array(t) for name, t in tensors.items() if not t.dims}

        plain, other = scales(""), scales(", observer_or_fake_quant: percentile")
        changed = {name for name in plain if plain[name] != other[name]}
        assert changed and all("backbone" in name or name.startswith("inputs") for name in changed)
        assert all(other[name] < plain[name] for name in changed)

    @pytest.mark.slow
    def test_the_calibration_folder_and_the_number_of_images(self, quantize, project, capsys):
        folder = f"dataset.quant_calibration_data_sources={{image_dir: {project.folder / 'images'}}}"
        assert quantize(STATIC, "calibration_images=2", "score_images=0", folder) == 0
        assert report(project)["calibration"]["images"] == 2
        assert f"Calibration: 2 images of {project.folder / 'images'}" in capsys.readouterr().err

    def test_fewer_images_are_scored_on_request(self, quantize, project):
        assert quantize("score_images=2") == 0
        assert report(project)["scores"]["FP32"]["images"] == 2

    def test_the_results_folder(self, quantize, project, tmp_path):
        assert quantize(f"results_dir={tmp_path / 'elsewhere'}", "score_images=0") == 0
        assert (tmp_path / "elsewhere" / "quantized_model.onnx").exists()

    def test_a_loss_above_the_limit_writes_nothing(self, quantize, project, capsys):
        """With random labels, any change of a detection changes the score; all layers are requested, so none stays."""
        assert quantize(STATIC, "max_score_drop=0.0", f"layers=[{{module_name: '**', {FP8}}}]") == 1
        shown = capsys.readouterr().err
        assert "FP8 loses " in shown and "quantize.max_score_drop" in shown and "Nothing was written" in shown
        assert "points lost" in shown, "the scores are shown all the same"
        assert not project.result.exists() and not list(project.result.parent.glob(".*"))


BAD = {
    "model_path=/no/such.onnx": "quantize.model_path: /no/such.onnx does not exist",
    "model_path=model.tflite": "expected a checkpoint or an ONNX file",
    "skip_names=[encodr.*]": "'encodr.*' matches no convolution or linear layer; similar: encoder",
    "layers=[{module_name: LSTM, weights: {dtype: int8}}]": "'LSTM' matches no convolution or linear layer",
    "skip_names=['*']": "no layer is left to quantize",
    "algorithm=awq_lite": "quantize.algorithm: awq_lite is not supported",
    "layers=[{module_name: '*', weights: {dtype: fp8_e5m2}}]": "fp8_e5m2 is not supported",
    "layers=[{module_name: '*', weights: {dtype: int8}, activations: {dtype: int8}}]": "quantize.mode=static_ptq",
    "layers=[{module_name: '*', weights: {dtype: int8, quant_axis: 1}}]": "quant_axis: 1 is invalid",
    "layers=[{module_name: '*', weights: {dtype: int8, observer_or_fake_quant: entropy}}]": "entropy is invalid",
    "layers=[{module_name: '*', weights: {dtype: int8, observer_or_fake_quant_kwargs: {a: 1}}}]": "no arguments",
}
BAD_STATIC = {
    "algorithm=rtn_dq": "rtn_dq only rounds weights",
    "layers=[{module_name: '*', activations: {dtype: int8}}]": "weights: required with activations",
    "layers=[{module_name: '*', weights: {dtype: int8}, activations: {dtype: fp8_e4m3fn}}]": "the same for both",
    "dataset.quant_calibration_data_sources={image_dir: /no/such}": "/no/such",
}


class TestBadInput:
    @pytest.mark.parametrize("override", BAD)
    def test_ends_with_one_message(self, override, quantize, project, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.tflite").touch()
        assert quantize(override) == 2
        assert BAD[override] in capsys.readouterr().err
        assert not project.result.exists()

    @pytest.mark.parametrize("override", BAD_STATIC)
    def test_ends_with_one_message_in_static_mode(self, override, quantize, project, capsys):
        assert quantize(STATIC, override) == 2
        assert BAD_STATIC[override] in capsys.readouterr().err

    def test_without_any_images(self, quantize, project, capsys):
        project.spec["dataset"] = {"num_classes": 2}
        project.write()
        assert quantize(STATIC) == 2
        assert "dataset.quant_calibration_data_sources: required by quantize.mode=static_ptq" in capsys.readouterr().err


def test_unused_fields_say_why(quantize, capsys):
    assert quantize("backend=modelopt.onnx", "backend_kwargs={a: 1}", "device=cpu", "score_images=0") == 0
    shown = capsys.readouterr().err
    assert all(f"quantize.{name} has no effect" in shown for name in ("backend", "backend_kwargs", "device"))
    assert "Skipping scores and the check of quantize.max_score_drop: quantize.score_images is 0" in shown


@pytest.mark.slow
def test_fields_about_activations_say_that_they_have_no_effect_on_weights(quantize, project, capsys):
    images = f"dataset.quant_calibration_data_sources={{image_dir: {project.folder / 'images'}}}"
    fields = ("algorithm=entropy", "calibration_images=3", images, "score_images=0")
    assert quantize(*fields) == 0
    shown = " ".join(capsys.readouterr().err.split())
    for name in ("quantize.algorithm", "quantize.calibration_images", "dataset.quant_calibration_data_sources"):
        assert f"{name} has no effect: quantize.mode is weight_only_ptq" in shown
    assert quantize(STATIC, *fields) == 0
    assert "has no effect" not in capsys.readouterr().err
    assert quantize(STATIC, *fields, "layers=[{module_name: '*', weights: {dtype: int8}}]") == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "quantize.algorithm has no effect: quantize.layers has no activations" in shown


@pytest.mark.parametrize("algorithm", ["minmax", "max", "rtn_dq"])
def test_algorithms_that_describe_what_happens_to_weights_are_accepted_silently(algorithm, quantize, capsys):
    assert quantize(f"algorithm={algorithm}", "score_images=0") == 0
    assert "has no effect" not in capsys.readouterr().err


def test_layers_that_decide_nothing_say_so(quantize, capsys):
    first = "{module_name: Linear, weights: {dtype: native, observer_or_fake_quant: minmax}}"
    assert quantize(f"layers=[{first}, {{module_name: '*', weights: {{dtype: int8}}}}]", "score_images=0") == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "quantize.layers[0] has no effect: later layers or quantize.skip_names match the same modules" in shown
    assert "quantize.layers[0].weights has no effect: its dtype is native" in shown
    assert "quantize.layers[1]" not in shown


def test_a_node_belongs_to_the_module_that_the_exporter_names():
    name = "/detector/encoder/fpn_blocks.0/bottlenecks/bottlenecks.1/conv/Conv"
    assert module_path(name) == "encoder.fpn_blocks.0.bottlenecks.1.conv"
    assert module_path("/detector/encoder/input_proj.0/input_proj.0.0/Conv") == "encoder.input_proj.0.0"
    node = helper.make_node("Conv", [], [], name=name)
    for pattern in ("encoder.*", "model.encoder.*", "model.model.encoder.fpn_blocks.*", "Conv2d", "*.conv", name):
        assert matches(pattern, node)
    assert not matches("Linear", node) and not matches("fpn_blocks.*", node)


def test_fp8_after_a_relu_stays_positive_in_our_sessions():
    """onnxruntime drops the Relu, because it takes FP8's zero for the lowest value of the type."""
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))
    tensors = [numpy_helper.from_array(np.float32(0.01), "scale"), numpy_helper.from_array(zero, "zero")]
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "scale", "zero"], ["short"]),
        helper.make_node("DequantizeLinear", ["short", "scale", "zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "relu", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    model.ir_version = 9
    session = new_session(model.SerializeToString(), onnxruntime.SessionOptions(), ["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.array([-1.0, 1.0], np.float32)})
    assert result[0] == 0.0 and result[1] == pytest.approx(1.0, rel=0.07)
