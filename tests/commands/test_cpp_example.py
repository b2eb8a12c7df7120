"""The C++ example detects the same as Python; it is compiled here if a compiler and onnxruntime's headers exist."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
HEADERS = [
    os.environ.get("ONNXRUNTIME_INCLUDE_DIR", ""),
    f"{sys.prefix}/include/onnxruntime",  # of `make cpp-headers`
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The compiled example, linked with the library of Python's onnxruntime."""
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    headers = [folder for folder in HEADERS if folder and Path(folder, "onnxruntime_cxx_api.h").exists()]
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    missing += [] if headers else ["onnxruntime_cxx_api.h (run `make cpp-headers`)"]
    missing += [] if libraries else ["libonnxruntime.so in Python's onnxruntime"]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found")
    build = tmp_path_factory.mktemp("cpp")
    options = [f"-DONNXRUNTIME_INCLUDE_DIR={headers[0]}", f"-DONNXRUNTIME_LIBRARY={libraries[0]}"]
    for command in (["cmake", "-B", str(build), "-S", str(EXAMPLE), *options], ["cmake", "--build", str(build)]):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "warning" not in run.stderr
    return build / "detect"


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_project):
    """A project with images of several sizes as PPM, of the input's size too, and exported files."""
    project = make_project(tmp_path_factory.mktemp("example"))
    project.weights = project.checkpoint(lively=True)
    images = project.folder / "ppm"
    images.mkdir()
    rng = np.random.default_rng(1)
    for number, (width, height) in enumerate([(64, 64), (200, 131), (31, 45), (64, 97)]):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 11, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(images / f"{number}.ppm")
    project.images = sorted(images.iterdir())

    def export(name: str, *overrides: str) -> Path:
        file = project.folder / name
        options = [f"export.checkpoint={project.weights}", f"export.onnx_file={file}", *overrides]
        assert project.run("export", *options) == 0
        return file

    project.export = export
    project.raw = export("raw.onnx")
    return project


def detections(program: Path, model: Path, image: Path, threshold: float = 0.0) -> list[dict]:
    run = subprocess.run([program, model, image, str(threshold)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    content = json.loads(run.stdout)
    with Image.open(image) as file:
        assert (content["width"], content["height"]) == file.size
    return content["detections"]


def python(model: Path, image: Path, letterbox: bool = False) -> list[tuple[int, float, list[float]]]:
    """Label, score and box of all detections by onnxruntime, Pillow and numpy, best first."""
    session = onnxruntime.InferenceSession(model)
    height, width = session.get_inputs()[0].shape[2:]
    opened = Image.open(image).convert("RGB")
    inner = width, height
    if letterbox:
        inner = tuple(max(1, round(side * width / max(opened.size))) for side in opened.size)
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    pixels[: inner[1], : inner[0]] = np.asarray(opened.resize(inner, Image.Resampling.BILINEAR))
    inputs = {"inputs": pixels.transpose(2, 0, 1)[None] / 255}
    logits, boxes = (values[0] for values in session.run(["pred_logits", "pred_boxes"], inputs))
    scores = 1 / (1 + np.exp(-logits[:, 1]))  # the only class has index 1
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    scale = np.array([width * opened.width / inner[0], height * opened.height / inner[1]] * 2)
    corners = np.clip(corners * scale, 0, opened.size * 2)
    return [(1, float(scores[query]), corners[query].tolist()) for query in np.argsort(-scores, kind="stable")]


def with_metadata(model: Path, target: Path, **values: str) -> Path:
    """A copy of a file with other values in its metadata."""
    content = onnx.load(model)
    for entry in content.metadata_props:
        entry.value = values.get(entry.key, entry.value)
    onnx.save(content, target)
    return target


def assert_equal(found: list[dict], expected: list[tuple[int, float, list[float]]]) -> None:
    assert len(found) == len(expected) > 0
    for row, (label, score, box) in zip(found, expected, strict=True):
        assert (row["label"], row["name"]) == (label, "cat")
        assert row["score"] == pytest.approx(score, abs=1e-5)
        assert row["box"] == pytest.approx(box, abs=1e-3)


def test_detections_equal_those_of_python(program, project):
    for image in project.images:
        assert_equal(detections(program, project.raw, image), python(project.raw, image))


def test_detections_equal_those_of_inference(program, project):
    options = [f"inference.checkpoint={project.raw}", "inference.conf_threshold=0"]
    source = f"dataset.infer_data_sources={{image_dir: {project.images[0].parent}}}"
    assert project.run("inference", *options, source) == 0
    rows = json.loads((project.folder / "results/inference/predictions.json").read_text())
    for number, image in enumerate(project.images):
        expected = [
            (1, row["score"], [x, y, x + width, y + height])
            for row in rows
            if row["image_id"] == number
            for x, y, width, height in [row["bbox"]]
        ]
        found = detections(program, project.raw, image)
        if number == 0:  # not resized
            assert_equal(found, expected)
        else:  # PyTorch rounds some resized pixels differently from Pillow
            assert [row["score"] for row in found] == pytest.approx([score for _, score, _ in expected], abs=0.01)


def test_a_file_with_post_processing_and_one_that_pads_images(program, project):
    processed = project.export("processed.onnx", "export.include_postprocess=true")
    image = project.images[1]
    expected = python(project.raw, image)
    assert_equal(detections(program, processed, image), expected)
    score = expected[2][1] - 1e-6
    assert_equal(detections(program, processed, image, score), expected[:3])
    padded = with_metadata(project.raw, project.folder / "padded.onnx", preserve_aspect_ratio="true")
    for image in project.images:
        assert_equal(detections(program, padded, image), python(padded, image, letterbox=True))


def test_class_names_of_any_characters(program, project, tmp_path):
    name = 'a "quoted" \\ ñ 😀\n'
    names = json.dumps({"0": "b", "1": name})
    found = detections(program, with_metadata(project.raw, tmp_path / "named.onnx", names=names), project.images[0])
    assert {row["name"] for row in found if row["label"] == 1} == {name}


@pytest.mark.parametrize("fault", ["truncated", "no PPM", "missing", "layout"])
def test_bad_input_ends_with_one_message(fault, program, project, tmp_path):
    image, model = tmp_path / "image.ppm", project.raw
    content = project.images[0].read_bytes()
    contents = {"truncated": content[:-100], "no PPM": project.image(1).read_bytes(), "layout": content}
    if fault in contents:
        image.write_bytes(contents[fault])
    if fault == "layout":
        model = project.export("other.onnx", "export.layout=rfdetr")
    run = subprocess.run([program, model, image], capture_output=True, text=True, timeout=120)
    parts = {"truncated": "is truncated", "no PPM": "P6", "missing": "cannot be opened", "layout": "export.layout=tao"}
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("Error: ") and parts[fault] in run.stderr and run.stderr.count("\n") == 1
