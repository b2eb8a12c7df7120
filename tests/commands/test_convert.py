"""`rtdetr convert`: any supported file to ours, ours to transformers and back; such files in the other commands."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

from rtdetr_tool.cli import main
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rtdetr.transformers_config import freezes_norms
from rtdetr_tool.formats.onnx.file import description_of, read_onnx
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.spec import read_spec
from rtdetr_tool.workflows.convert import named_classes

transformers = pytest.importorskip("transformers")

NAMES = ("cow", "cat", "dog")
SMALL_RFDETR = {"resolution": 64, "dec_layers": 1, "num_queries": 8, "group_detr": 2, "dim_feedforward": 24}
VERSIONS = {
    1: (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
    2: (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
}


def lively(model):
    """Randomize norms and heads, so that every tensor has an effect and scores differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):  # norms
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point() and "n_points_scale" not in name:
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    return model.eval()


@pytest.fixture(scope="module", params=[1, 2])
def saved(request, tmp_path_factory):
    """A random model of transformers and the directory with it and its image processor."""
    config_class, model_class = VERSIONS[request.param]
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_indices=[2, 3, 4]
    )
    config = config_class(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=32, encoder_in_channels=[128, 256, 512],
        encoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=40, decoder_layers=2, num_queries=12, id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = lively(model_class(config))
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return model, folder


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def content(path):
    opened = open_detector(str(path), read_spec(None))
    return opened.detector.state_dict(), opened.spec.model, opened.class_map.to_list()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_transformers_to_ours_and_back_loses_nothing(saved, tmp_path, suffix):
    model, folder = saved
    ours, back = tmp_path / f"ours{suffix}", tmp_path / "back"
    assert convert(folder, ours) == 0
    assert convert(ours, back) == 0
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    loaded = type(model).from_pretrained(back).eval()
    old, new = model.config.to_dict(), loaded.config.to_dict()
    assert {name for name in old if old[name] != new[name]} <= {"backbone_config", "_name_or_path", "dtype"}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = model(images), loaded(images)
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.pred_boxes, other.pred_boxes)
    processor = transformers.AutoImageProcessor.from_pretrained(back)
    assert processor.size == {"height": 64, "width": 64} and not processor.do_normalize


@pytest.mark.parametrize("backbone", ["resnet_18d", "resnet_18"])
def test_ours_to_transformers_and_back_loses_nothing(project, tmp_path, backbone):
    project.spec["model"]["backbone"] = backbone
    checkpoint = project.checkpoint(lively=True)
    folder, back = tmp_path / "there", tmp_path / "back.pth"
    assert convert(checkpoint, folder, "--to", "transformers") == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    assert convert(folder, back, "--to", "rtdetr") == 0
    (weights, model, _), (returned, again, classes) = content(checkpoint), content(back)
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert all(torch.equal(weights[name], returned[name]) for name in weights if name not in counters)
    assert (again.nheads, again.num_queries, again.dn_number) == (model.nheads, model.num_queries, model.dn_number)
    assert [entry["name"] for entry in classes] == ["class_0", "cat"]

    reference = transformers.RTDetrForObjectDetection.from_pretrained(folder).eval()
    detector, images = open_detector(str(checkpoint), read_spec(None)).detector.eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = detector(images), reference(images)
    rows = [torch.cat(pair, -1) for pair in ((one.logits, one.boxes), (other.logits, other.pred_boxes))]
    for ours, expected in zip(*rows, strict=True):  # in any order
        first, second = linear_sum_assignment(torch.cdist(ours, expected))
        torch.testing.assert_close(ours[first], expected[second], atol=1e-4, rtol=1e-4)


def test_settings_of_training_survive_both_ways(saved, tmp_path):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    config |= {"label_noise_ratio": 0.3, "box_noise_scale": 0.7, "freeze_backbone_batch_norms": False}
    changed, ours, back = tmp_path / "changed", tmp_path / "ours.pth", tmp_path / "back"
    shutil.copytree(folder, changed)
    (changed / "config.json").write_text(json.dumps(config))
    assert convert(changed, ours) == 0
    model = open_detector(str(ours), read_spec(None)).spec.model
    assert (model.label_noise_ratio, model.box_noise_scale, model.freeze_norm) == (0.3, 0.7, False)
    assert convert(ours, back) == 0
    written = json.loads((back / "config.json").read_text())
    assert all(written[name] == config[name] for name in (
        "label_noise_ratio", "box_noise_scale", "freeze_backbone_batch_norms"
    ))  # fmt: skip
    loaded, info = transformers.AutoModelForObjectDetection.from_pretrained(back, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.model.backbone.modules())


@pytest.mark.parametrize("backbone, frozen", [("resnet_18d", False), ("resnet_50d", True), ("resnet_50", False)])
def test_unset_freeze_norm_follows_the_recipe_of_the_backbone(backbone, frozen):
    assert freezes_norms({"backbone": backbone, "freeze_norm": None}) is frozen
    assert freezes_norms({"backbone": backbone, "freeze_norm": not frozen}) is not frozen


@pytest.mark.parametrize("size", [(64, 128), (160, 96)])
@pytest.mark.slow
def test_a_transformers_detector_predicts_the_same_on_non_square_inputs(saved, tmp_path, size):
    model, folder = saved
    ours, back = tmp_path / "ours.pth", tmp_path / "back"
    assert convert(folder, ours, f"dataset.augmentation.eval_spatial_size=[{size[0]},{size[1]}]") == 0
    assert convert(ours, back) == 0
    detector = open_detector(str(ours), read_spec(None)).detector.eval()
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        one, other, again = detector(images), model(images), type(model).from_pretrained(back).eval()(images)
    rows = [torch.cat(pair, -1) for pair in ((one.logits, one.boxes), (other.logits, other.pred_boxes))]
    for actual, expected in zip(*rows, strict=True):
        first, second = linear_sum_assignment(torch.cdist(actual, expected))
        torch.testing.assert_close(actual[first], expected[second], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.logits, other.logits)


def test_the_position_order_can_be_set_for_old_transformers_weights(saved, tmp_path):
    _, folder = saved
    assert convert(folder, tmp_path / "ours.pth", "model.pe_order=columns") == 0
    assert open_detector(str(tmp_path / "ours.pth"), read_spec(None)).detector.encoder.pe_order == "columns"


def test_inputs_on_which_transformers_would_differ_are_refused(project, tmp_path, capsys):
    project.spec["model"]["backbone"] = "resnet_18d"
    checkpoint = project.checkpoint()
    assert convert(checkpoint, tmp_path / "wide", "dataset.augmentation.eval_spatial_size=[64,96]") == 2
    assert "model.pe_order is columns and the input size is 64 x 96" in capsys.readouterr().err
    assert not (tmp_path / "wide").exists()
    assert convert(checkpoint, tmp_path / "square") == 0
    assert "only the same on square inputs" in capsys.readouterr().err


def test_unused_layers_are_skipped_for_transformers_with_a_message(project, tmp_path, capsys):
    project.spec["model"] |= {"backbone": "resnet_18d", "dec_layers": 3, "eval_idx": 0}
    assert convert(project.checkpoint(), tmp_path / "there") == 0
    assert "skipped decoder layers 1 to 2" in capsys.readouterr().err
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert config["decoder_layers"] == 1
    transformers.RTDetrForObjectDetection.from_pretrained(tmp_path / "there")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "efficientvit_b0"}, "model.backbone: efficientvit_b0; expected resnet_18,"),
        ({"arch": "rfdetr", "rfdetr": SMALL_RFDETR}, "model.arch rfdetr cannot be written for transformers"),
        ({"backbone": "resnet_18d", "depth_mult": 2}, "model.depth_mult: 2"),
        ({"backbone": "resnet_18d", "act": "selu"}, "model.act: selu"),
        ({"backbone": "resnet_18d", "num_points": [4, 2, 2]}, "model.num_points"),
    ],
)
def test_fields_unsupported_by_transformers_are_named_and_nothing_is_written(project, tmp_path, capsys, fields, words):
    project.spec["model"] |= fields
    assert convert(project.checkpoint(), tmp_path / "there") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "there").exists()


def test_existing_files_are_only_overwritten_on_request(project, tmp_path, capsys):
    checkpoint, target = project.checkpoint(), tmp_path / "a.safetensors"
    target.write_bytes(b"precious")
    assert convert(checkpoint, target) == 2
    assert "use --force" in capsys.readouterr().err and target.read_bytes() == b"precious"
    assert convert(checkpoint, target, "--force") == 0
    assert content(target)[2] == [{"index": 1, "id": 1, "name": "cat"}]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert convert(checkpoint, tmp_path / "full") == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "to", "words"),
    [
        ("model.bin", "rtdetr", "expected a file that ends in .pth"),
        ("model.pth", "transformers", "expected a directory"),
        (".", "rtdetr", "expected a file"),
    ],
)
def test_a_target_that_does_not_match_the_format_is_refused(tmp_path, capsys, target, to, words):
    assert convert("a.pth", tmp_path / target, "--to", to) == 2
    assert words in capsys.readouterr().err


def test_class_names_come_from_a_file(saved, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("Kuh\nKatze\nHund\n")
    assert convert(saved[1], tmp_path / "a.pth", "--classes", names) == 0
    assert [entry["name"] for entry in content(tmp_path / "a.pth")[2]] == ["Kuh", "Katze", "Hund"]
    names.write_text("Kuh\nKatze\n")
    assert convert(saved[1], tmp_path / "b.pth", "--classes", names) == 2
    assert "2 names; expected one per class, but the detector has 3 classes" in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()


def test_an_rfdetrs_last_row_needs_no_name(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("cow\ncat\n")
    expected = [{"index": 0, "id": None, "name": "cow"}, {"index": 1, "id": None, "name": "cat"}]
    assert named_classes(str(names), [], rows=3, free_rows=1) == expected
    known = [{"index": 1, "id": 1, "name": "a"}, {"index": 2, "id": 2, "name": "b"}]
    renamed = named_classes(str(names), known, rows=3, free_rows=1)
    assert renamed == [{"index": 1, "id": 1, "name": "cow"}, {"index": 2, "id": 2, "name": "cat"}]
    names.write_text("cow\n")
    with pytest.raises(UserError, match=r"has 1 names; expected .* 3 class rows, the last"):
        named_classes(str(names), [], rows=3, free_rows=1)


def test_fields_missing_in_a_file_are_taken_from_a_spec(project, tmp_path, capsys):
    project.spec["model"]["backbone"] = "resnet_18"
    project.write()
    weights = torch.load(project.checkpoint(), weights_only=True)["state_dict"]
    torch.save(weights, tmp_path / "bare.pth")
    assert convert(tmp_path / "bare.pth", tmp_path / "a.pth") == 2
    assert "Set model.nheads and model.num_points in a spec (-e)" in capsys.readouterr().err
    assert convert(tmp_path / "bare.pth", tmp_path / "a.pth", "-e", project.spec_file) == 0
    assert convert(tmp_path / "bare.pth", tmp_path / "b.pth", "model.nheads=2", "model.num_queries=8") == 0
    for name in ("a.pth", "b.pth"):
        opened = open_detector(str(tmp_path / name), read_spec(None))
        assert (opened.spec.model.nheads, opened.spec.model.num_queries) == (2, 8)
        assert opened.class_map is None


class RunsCode:
    """Pickles to a call that creates a folder."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def bad_file(kind: str, folder):
    """A file that must be refused."""
    path = folder / f"bad.{'safetensors' if kind == 'wrong header' else 'pth'}"
    if kind == "malicious":
        torch.save({"model": {"a": torch.ones(1)}, "args": RunsCode(folder / "ran")}, path)
    elif kind == "cut short":
        torch.save({"model": {"a": torch.rand(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "wrong header":
        path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    else:
        torch.save({"features.0.weight": torch.ones(1), "classifier.bias": torch.ones(1)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("malicious", "posix.mkdir"),
        ("cut short", "truncated"),
        ("wrong header", "not a valid safetensors file"),
        ("unrelated", "not a supported detector"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason_and_nothing_runs(project, tmp_path, capsys, kind, words):
    path = bad_file(kind, tmp_path)
    assert convert(path, tmp_path / "a.pth") == 2
    assert words in capsys.readouterr().err and not (tmp_path / "a.pth").exists()
    assert project.run("evaluate", f"evaluate.checkpoint={path}") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def found_by_transformers(model, folder, images) -> list[np.ndarray]:
    """Rows (class, score, x1, y1, x2, y2) per image from transformers' own processor, clipped to the image."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    rows = []
    for path in images:
        image = Image.open(path).convert("RGB")
        with torch.no_grad():
            output = model(**processor(images=image, return_tensors="pt"))
        result = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[image.size[::-1]])[0]
        boxes = result["boxes"]
        boxes[:, 0::2].clamp_(0, image.width)
        boxes[:, 1::2].clamp_(0, image.height)
        rows.append(torch.cat([result["labels"][:, None], result["scores"][:, None], boxes], 1).numpy())
    return rows


def test_evaluate_predicts_like_transformers(saved, project):
    """Categories are matched by name, because the annotation file numbers them differently."""
    model, folder = saved
    ids = {"cat": 4, "dog": 9, "cow": 2}
    project.coco["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
    for annotation in project.coco["annotations"]:
        annotation["category_id"] = 9
    del project.spec["model"], project.spec["dataset"]["num_classes"], project.spec["dataset"]["augmentation"]
    project.write()
    assert project.run("evaluate", f"evaluate.checkpoint={folder}") == 0
    predictions = json.loads((project.folder / "results/evaluate/predictions.json").read_text())
    index_of = {ids[name]: index for index, name in enumerate(NAMES)}
    reference = found_by_transformers(model, folder, [project.image(number) for number in range(1, 7)])
    for number, rows in enumerate(reference, 1):
        ours = [row for row in predictions if row["image_id"] == number]
        assert len(ours) == len(rows) == 12
        a = np.array([[index_of[row["category_id"]], row["score"], *row["bbox"]] for row in ours])
        a[:, 4:] += a[:, 2:4]
        distance = np.abs(a[:, None] - rows[None]).sum(-1)
        first, second = linear_sum_assignment(distance)
        np.testing.assert_allclose(a[first], rows[second], atol=2e-3)


def test_a_category_that_the_weights_do_not_know_is_an_error(saved, project, capsys):
    project.coco["categories"] = [{"id": 1, "name": "zebra"}]
    del project.spec["model"], project.spec["dataset"]["num_classes"]
    project.write()
    assert project.run("evaluate", f"evaluate.checkpoint={saved[1]}") == 2
    said = capsys.readouterr().err
    assert "'zebra'" in said and "'cow'" in said


def test_inference_accepts_a_directory_of_transformers(saved, project):
    del project.spec["model"], project.spec["dataset"]["num_classes"], project.spec["dataset"]["augmentation"]
    project.write()
    assert project.run("inference", f"inference.checkpoint={saved[1]}", "inference.conf_threshold=0") == 0
    labels = (project.folder / "results/inference/labels/1.txt").read_text()
    assert any(name in labels for name in NAMES)


@pytest.mark.parametrize("saved", [2], indirect=True)
@pytest.mark.slow
def test_export_accepts_a_directory_of_transformers(saved, project):
    del project.spec["model"], project.spec["dataset"]["num_classes"], project.spec["dataset"]["augmentation"]
    project.write()
    target = project.folder / "a.onnx"
    assert project.run("export", f"export.checkpoint={saved[1]}", f"export.onnx_file={target}") == 0
    description = description_of(read_onnx(target))
    assert description["names"] == {str(index): name for index, name in enumerate(NAMES)}
    assert description["input_size"] == [64, 64]


def test_a_contradiction_between_spec_and_file_is_an_error(saved, project, capsys):
    assert project.run("evaluate", f"evaluate.checkpoint={saved[1]}") == 2
    said = capsys.readouterr().err
    assert "model.hidden_dim is 16 in the spec, but 32 in the checkpoint" in said and "model.backbone" in said
