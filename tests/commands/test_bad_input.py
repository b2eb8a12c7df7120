"""Invalid input gives one clear message and the documented exit code in every command."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.cli import main
from rtdetr_tool.data.repairs import KINDS as REPAIRS

SIDE = 64


def failed_with(capsys, *words: str) -> str:
    """The console output, which must contain the words and no traceback."""
    text = capsys.readouterr().err
    flat = " ".join(text.split())
    assert "Traceback" not in text
    for word in words:
        assert word in flat, f"{word!r} is not in: {text}"
    return text


def test_the_project_of_these_tests_is_valid(project):
    assert project.run("train") == 0
    assert project.status("train")[-1]["status"] == "SUCCESS"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [unclosed", ["not valid YAML", "line"]),
        ("- a\n- b\n", ["mapping"]),
        ("", ["empty"]),
        ("model:\n  hidden_dim: 64\n  hidden_dim: 32\n", ["hidden_dim", "duplicate"]),
    ],
)
def test_a_spec_that_is_not_yaml_is_refused(text, words, tmp_path, capsys):
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    assert main(["train", "-e", str(file), "-r", str(tmp_path / "results")]) == 2
    failed_with(capsys, str(file), *words)
    assert not (tmp_path / "results").exists()


def test_unknown_keys_are_all_named_with_a_suggestion(project, capsys):
    assert project.run("train", "model.num_querys=5", "train.optim.lr_bakbone=1") == 2
    failed_with(capsys, "model.num_querys", "model.num_queries", "train.optim.lr_bakbone", "train.optim.lr_backbone")


@pytest.mark.parametrize("key", ["image_dir", "json_file"])
def test_a_missing_folder_or_annotation_file(key, project, capsys):
    project.spec["dataset"]["train_data_sources"][0][key] = str(project.folder / "nowhere")
    project.write()
    assert project.run("train") == 2
    failed_with(capsys, "nowhere")
    assert project.status("train")[-1]["status"] == "FAILURE"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', ["labels.json"]),
        ("[]", ["labels.json"]),
        ('{"annotations": [], "categories": [{"id": 1, "name": "cat"}]}', ["labels.json", "images"]),
    ],
)
def test_a_broken_annotation_file(content, words, project, capsys):
    project.labels.write_text(content)
    assert project.run("train") == 2
    failed_with(capsys, *words)


def test_an_annotation_file_with_a_byte_order_mark_loads(project):
    project.labels.write_bytes(b"\xef\xbb\xbf" + project.labels.read_bytes())
    assert project.run("train") == 0


def test_more_categories_than_classes(project, capsys):
    project.coco["categories"] = [{"id": i, "name": f"c{i}"} for i in (1, 5, 9)]
    project.write()
    assert project.run("train") == 2
    failed_with(capsys, "3 categories", "dataset.num_classes")


def test_raw_ids_outside_num_classes(project, capsys):
    project.coco["categories"] = [{"id": 7, "name": "cat"}]
    for annotation in project.coco["annotations"]:
        annotation["category_id"] = 7
    project.spec["dataset"]["class_ids"] = "raw"
    project.write()
    assert project.run("train") == 2
    failed_with(capsys, "7", "dataset.num_classes")


def test_bad_boxes_are_counted_and_reported(project, capsys):
    boxes = [[float("nan"), 1, 5, 5], [5, 5, -3, 4], [5, 5, 0, 4], [60, 40, 30, 30], [200, 200, 5, 5]]
    for annotation, box in zip(project.coco["annotations"], boxes, strict=False):
        annotation["bbox"] = box
    project.write()
    assert project.run("train") == 0
    text = capsys.readouterr().err
    assert "labels.json" in text
    assert "dropped" in text
    assert "clipped" in text
    noted = [line["message"] for line in project.status("train") if line["verbosity"] == "WARNING"]
    for kind in ("box_not_finite", "box_empty", "box_clipped", "box_outside"):
        for split in ("train", "val"):
            count = 2 if kind == "box_empty" else 1
            assert any(f"{split}: {count} {REPAIRS[kind]} (annotations[" in line for line in noted), kind


def test_training_reports_findings_of_cheap_checks(project, capsys):
    project.coco["categories"].append({"id": 0, "name": "dog"})
    project.coco["annotations"] = project.coco["annotations"][:4]
    project.write()
    assert project.run("train") == 0
    text = capsys.readouterr().err
    assert "train: 1 classes without objects (dog)" in text
    assert "val: 6 images that are also in the training data" in text
    assert "train: 2 images without objects" in text


def test_training_data_without_an_object_is_refused(project, capsys):
    for annotation in project.coco["annotations"]:
        annotation["iscrowd"] = 1
    project.write()
    assert project.run("train") == 2
    failed_with(capsys, "the split has no objects", "cannot be used for training")


def test_duplicate_ids_are_reported(project, capsys):
    project.coco["images"].append(dict(project.coco["images"][0]))
    project.coco["annotations"].append({**project.coco["annotations"][1], "id": 1})
    project.write()
    assert project.run("train") == 0
    text = capsys.readouterr().err
    for split in ("train", "val"):
        assert f"labels.json ({split}): 1 duplicate images: used once (id 1)" in text
        assert f"({split}): 1 annotations with duplicate ids: kept (ids are not used) (id 1)" in text


def break_image(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else path.read_bytes()[:200])


@pytest.mark.parametrize("how", ["missing", "empty", "truncated"])
def test_training_reports_a_bad_image_and_continues_or_stops(how, project, capsys):
    spare = project.folder / "good"
    spare.mkdir()
    for number in range(1, 7):
        (spare / f"{number}.png").write_bytes(project.image(number).read_bytes())
    project.spec["dataset"]["val_data_sources"] = {"image_dir": str(spare), "json_file": str(project.labels)}
    for number in (1, 2, 3, 4):
        break_image(project.image(number), how)
    project.write()
    assert project.run("train") == 0
    assert ".png" in capsys.readouterr().err
    assert project.run("train", "dataset.on_bad_image=error") == 2
    failed_with(capsys, ".png")


@pytest.mark.parametrize("how", ["empty", "truncated"])
def test_inference_reports_a_bad_image_and_processes_the_others(how, project, capsys):
    break_image(project.image(3), how)
    weights = project.checkpoint()
    assert project.run("inference", f"inference.checkpoint={weights}") == 2
    failed_with(capsys, "3.png")
    assert len(list((project.folder / "results/inference/labels").iterdir())) == 5


def test_unusual_images_load_correctly(project):
    """16-bit, CMYK, palette, gray and EXIF-rotated images are readable and have the right size."""
    from rtdetr_tool.data.decoding import decode_image

    ramp = np.tile(np.linspace(0, 65535, SIDE, dtype=np.uint16), (48, 1))
    gray = Image.fromarray((ramp // 257).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "16.png": (Image.fromarray(ramp), {}),
        "gray.png": (gray, {}),
        "palette.png": (gray.convert("P"), {}),
        "cmyk.tif": (gray.convert("RGB").convert("CMYK"), {}),
        "exif.png": (gray.convert("RGB").transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
    }
    want = np.asarray(gray.convert("RGB")).astype(int)
    for name, (image, options) in files.items():
        path = project.folder / name
        image.save(path, **options)
        result = decode_image(path).permute(1, 2, 0).numpy().astype(int)
        assert result.shape == want.shape, name
        assert np.abs(result - want).max() <= 4, name


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(EVIL_FILE),))


EVIL_FILE = ""


def test_a_pickle_that_would_run_code_is_refused_and_not_run(project, capsys):
    global EVIL_FILE
    EVIL_FILE = str(project.folder / "ran")
    weights = project.folder / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Evil()}, weights)
    plain = project.folder / "plain.pth"
    plain.write_bytes(pickle.dumps(Evil()))
    for file in (weights, plain):
        assert project.run("evaluate", f"evaluate.checkpoint={file}") == 2
        failed_with(capsys, file.name)
        assert not Path(EVIL_FILE).exists()


def test_a_truncated_checkpoint(project, capsys):
    weights = project.checkpoint()
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert project.run("evaluate", f"evaluate.checkpoint={weights}") == 2
    failed_with(capsys, weights.name)


def test_another_programs_checkpoint(project, capsys):
    weights = project.folder / "other.pth"
    torch.save({"layer.weight": torch.zeros(3, 3)}, weights)
    assert project.run("evaluate", f"evaluate.checkpoint={weights}") == 2
    failed_with(capsys, "other.pth", "layer.weight")


def test_a_spec_that_contradicts_the_checkpoint(project, capsys):
    weights = project.checkpoint()
    assert project.run("evaluate", f"evaluate.checkpoint={weights}", "model.dec_layers=2") == 2
    failed_with(capsys, "model.dec_layers", "2", "1")


def test_a_classmap_that_contradicts_the_checkpoint(project, capsys):
    weights = project.checkpoint()
    classmap = project.folder / "classes.txt"
    classmap.write_text("dog\n")
    override = f"dataset.infer_data_sources.classmap={classmap}"
    assert project.run("inference", f"inference.checkpoint={weights}", f"+{override}") == 2
    failed_with(capsys, "dog", "cat")


def test_a_results_folder_that_cannot_be_created(project, capsys):
    (project.folder / "file").write_text("")
    assert project.run("train", "-r", str(project.folder / "file" / "below")) == 2
    failed_with(capsys, "results folder")


def test_fp16_without_a_gpu_names_what_to_use(project, capsys):
    assert project.run("train", "train.precision=fp16") == 2
    failed_with(capsys, "fp16", "bf16")
