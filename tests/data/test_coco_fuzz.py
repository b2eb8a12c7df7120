"""Any annotation file is either loaded or refused with a `DataError` that names the file."""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.cli import main
from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.errors import DataError
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec

from .conftest import coco, draw_image

NUMBERS = st.one_of(
    st.integers(-3, 100),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63), 10**30, 10**400, 1e-300, 1e308, -1e308, math.nan, math.inf, -0.0]),
    st.floats(),
)
SCALARS = st.one_of(
    NUMBERS, st.booleans(), st.none(), st.text(max_size=6), st.sampled_from(["1", "0.png", "../0.png", "\ud800", "nan"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
TOKENS = [b"", b"{", b"]", b'"', b",", b"NaN", b"-", b"1e999", b"\0"]
KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name", "supercategory"),
}


@st.composite
def coco_files(draw) -> dict:
    """A small valid file with up to six changes: replaced values, missing keys, repeated entries, replaced lists."""
    content = copy.deepcopy(coco(3))
    for _ in range(draw(st.integers(1, 6))):
        part = draw(st.sampled_from(sorted(KEYS)))
        entries = content.get(part)
        change = draw(st.sampled_from(["value", "value", "value", "box", "lose", "double", "entry", "part"]))
        if change == "part":
            content[part] = draw(ANYTHING)
        elif isinstance(entries, list) and entries:
            at = draw(st.integers(0, len(entries) - 1))
            if change == "entry":
                entries[at] = draw(ANYTHING)
            elif change == "double":
                entries.append(copy.deepcopy(entries[at]))
            elif isinstance(entries[at], dict):
                key = draw(st.sampled_from(KEYS[part]))
                if change == "lose":
                    entries[at].pop(key, None)
                elif change == "box" and part == "annotations":
                    entries[at]["bbox"] = draw(st.lists(NUMBERS, min_size=4, max_size=4))
                else:
                    entries[at][key] = draw(ANYTHING)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The three images of the files."""
    root = tmp_path_factory.mktemp("fuzz")
    for number in range(3):
        draw_image(root / "images" / f"{number}.png", seed=number)
    return root


def load_everything(folder) -> None:
    """Load a file as in training, evaluation and scoring; errors other than `DataError` are raised."""
    file = str(folder / "labels.json")
    source = {"image_dir": str(folder / "images"), "json_file": file}
    spec = DatasetSpec(
        train_data_sources=[source],
        val_data_sources=source,
        num_classes=2,
        workers=0,
        augmentation=AugmentationSpec(train_spatial_size=[32, 32], eval_spatial_size=[32, 32]),
    )
    for build in (build_train_dataset, build_eval_dataset):
        try:
            dataset = build(spec)
        except DataError as error:
            message = str(error)
            assert message.strip() and "\n" not in message
            continue
        assert all(line for line in dataset.repairs.lines())
        for record in dataset.records:
            assert record.boxes.shape == (len(record), 4) and (record.boxes[:, 2:] > record.boxes[:, :2]).all()
            if record.width:
                assert record.boxes.min(initial=0) >= -0.5 and record.area.min(initial=1) > 0
        json.dumps(dataset.coco_ground_truth(), allow_nan=False).encode()
        CocoEvaluator(dataset.coco_ground_truth(), dataset.class_map).compute()
        for index in range(len(dataset)):
            try:
                image, target = dataset[index]
            except DataError as error:
                assert str(folder) in str(error)
            else:
                assert image.shape == (3, 32, 32) and bool(target.boxes.isfinite().all())


def validate(folder) -> None:
    """Run the command on the file: it exits with 0 or 2 and a reason, and writes its report."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    source = f"{{image_dir: '{folder / 'images'}', json_file: '{folder / 'labels.json'}'}}"
    sources = [f"dataset.train_data_sources=[{source}]", f"dataset.val_data_sources={source}"]
    spec = folder / "spec.yaml"
    spec.write_text("dataset: {workers: 0, num_classes: 2}\n")
    code = main(["validate_data", "-e", str(spec), "-r", str(results), *sources])
    report = json.loads((results / "validate_data" / "report.json").read_text())
    status = [json.loads(line) for line in (results / "validate_data" / "status.json").read_text().splitlines()]
    assert (code, status[-1]["status"]) == ((0, "SUCCESS") if report["usable"] else (2, "FAILURE"))
    assert report["usable"] or any(finding["level"] == "error" for finding in report["findings"])
    assert (results / "validate_data" / "report.html").stat().st_size > 500


def check_structure(folder, content) -> None:
    (folder / "labels.json").write_text(json.dumps(content))
    load_everything(folder)


def check_damage(folder, data) -> None:
    """A valid file with changed, missing, repeated or inserted bytes."""
    content = bytearray(json.dumps(coco(3)).encode(data.draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-32"]))))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content)))
        end = at + data.draw(st.integers(0, 20))
        content[at:end] = data.draw(st.binary(max_size=4) | st.sampled_from(TOKENS))
    (folder / "labels.json").write_bytes(content)
    load_everything(folder)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=coco_files())
def test_any_structure_loads_or_is_refused(folder, content) -> None:
    check_structure(folder, content)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damage_to_the_text_loads_or_is_refused(folder, data) -> None:
    check_damage(folder, data)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(content=coco_files())
def test_the_command_that_checks_data_takes_any_structure(folder, content) -> None:
    (folder / "labels.json").write_text(json.dumps(content))
    validate(folder)


@pytest.mark.slow
@settings(max_examples=1_000, deadline=None)
@given(content=coco_files())
def test_the_command_that_checks_data_takes_any_structure_many_times(folder, content) -> None:
    (folder / "labels.json").write_text(json.dumps(content))
    validate(folder)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(content=coco_files())
def test_any_structure_loads_or_is_refused_many_times(folder, content) -> None:
    check_structure(folder, content)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_text_loads_or_is_refused_many_times(folder, data) -> None:
    check_damage(folder, data)
