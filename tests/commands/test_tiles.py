"""`tiles` of evaluate and inference: the whole command, and the effect of every field."""

from __future__ import annotations

import json

import pytest
from PIL import Image

TILES = ("tiles.enabled=true", "tiles.size=[32,32]")


@pytest.fixture
def weights(project):
    project.spec["model"]["num_select"] = 16
    project.spec["dataset"]["batch_size"] = 1  # so that equal means equal in every bit
    project.write()
    return project.checkpoint(lively=True)


def predictions(project, command: str, weights, *overrides: str) -> list[dict]:
    report = ("report=false",) if command == "evaluate" else ()
    fields = (f"checkpoint={weights}", "conf_threshold=0.0", *report, *overrides)
    assert project.run(command, *(f"{command}.{field}" for field in fields)) == 0
    return json.loads((project.folder / "results" / command / "predictions.json").read_text())


def one_image(project) -> None:
    for number in range(2, 7):
        project.image(number).unlink()
    project.coco["images"], project.coco["annotations"] = project.coco["images"][:1], project.coco["annotations"][:1]
    project.write()


@pytest.mark.parametrize("command", [pytest.param("evaluate", marks=pytest.mark.slow), "inference"])
def test_every_field_has_an_effect(project, weights, command):
    one_image(project)
    base = predictions(project, command, weights)
    assert predictions(project, command, weights, "tiles.enabled=true") == base  # an image fits into a tile of 64 px
    seen = [base, predictions(project, command, weights, *TILES)]
    for change in ("tiles.size=[48,32]", "tiles.overlap=0.6", "tiles.whole_image=false", "tiles.merge=nmm",
                   "tiles.threshold=0.9"):  # fmt: skip
        seen.append(predictions(project, command, weights, *TILES, change))
    assert all(rows for rows in seen) and len({json.dumps(rows) for rows in seen}) == len(seen)


def test_the_batch_size_does_not_change_the_result(project, weights):
    one_image(project)
    one = predictions(project, "inference", weights, *TILES, "batch_size=1")
    many = predictions(project, "inference", weights, *TILES, "batch_size=16")
    assert [row["image_id"] for row in one] == [row["image_id"] for row in many]
    for first, second in zip(one, many, strict=True):
        assert first["bbox"] == pytest.approx(second["bbox"], abs=0.02)


def test_evaluate_and_inference_detect_the_same_with_every_runtime(project, weights):
    graph = project.folder / "model.onnx"
    assert project.run("export", f"export.checkpoint={weights}", f"export.onnx_file={graph}") == 0
    scored = predictions(project, "evaluate", weights, *TILES)
    found = predictions(project, "inference", weights, *TILES)
    assert len(scored) == len(found) > 0
    deployed = predictions(project, "evaluate", graph, *TILES)
    assert abs(len(deployed) - len(scored)) <= 2
    best = [max(row["score"] for row in rows) for rows in (scored, found, deployed)]
    assert best == pytest.approx([best[0]] * 3, abs=1e-4)


def test_the_limit_of_a_tile_is_not_that_of_an_image(project, weights, capsys):
    first = project.coco["annotations"][0]
    project.coco["annotations"] += [{**first, "id": number} for number in range(100, 120)]
    project.write()
    predictions(project, "evaluate", weights)
    assert "with more objects than model.num_select" in capsys.readouterr().err
    predictions(project, "evaluate", weights, *TILES)
    assert "with more objects than model.num_select" not in capsys.readouterr().err


def test_an_unreadable_image_is_skipped_in_inference_only(project, weights):
    project.image(2).write_bytes(b"damaged")
    arguments = [f"inference.{one}" for one in (f"checkpoint={weights}", *TILES)]
    assert project.run("inference", *arguments) == 2
    assert len(list((project.folder / "results/inference/images_annotated").iterdir())) == 5
    assert project.run("evaluate", *[one.replace("inference", "evaluate") for one in arguments]) == 2


def test_a_size_of_another_length_is_refused(project, weights, capsys):
    assert project.run("evaluate", f"evaluate.checkpoint={weights}", "evaluate.tiles.size=[64]") == 2
    assert "evaluate.tiles.size: expected 2 items, height and width, but got 1" in capsys.readouterr().err


def test_worker_processes_give_the_same_tiles(project, weights):
    one_image(project)
    here = predictions(project, "inference", weights, *TILES)
    project.spec["dataset"]["workers"] = 1
    project.write()
    assert predictions(project, "inference", weights, *TILES) == here


def test_frames_of_a_video_are_tiled(project, weights):
    pytest.importorskip("av")
    from video_files import write_video

    Image.new("RGB", (8, 8)).save(project.image(1))
    video = write_video(project.folder / "a.mp4", 3)
    source = f"dataset.infer_data_sources={{image_dir: null, video: '{video}'}}"
    lines = []
    for overrides in ((), TILES):
        arguments = [f"inference.{one}" for one in (f"checkpoint={weights}", "conf_threshold=0.0", *overrides)]
        assert project.run("inference", *arguments, source) == 0
        text = (project.folder / "results/inference/video_detections/a.jsonl").read_text()
        lines.append([json.loads(line)["detections"] for line in text.splitlines()])
    assert len(lines[1]) == 3 and all(len(tiled) > len(whole) for whole, tiled in zip(*lines, strict=True))
