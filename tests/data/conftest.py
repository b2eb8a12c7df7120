"""Small generated datasets and images."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.spec import AugmentationSpec, DatasetSpec

_CONVERTER = Path(__file__).parents[2] / "scripts" / "convert_dataset.py"


def _converter():
    spec = importlib.util.spec_from_file_location("convert_dataset", _CONVERTER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


converter = _converter()

BCCD = Path(__file__).parents[2].parent / "shared" / "data" / "bccd"


def draw_image(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def coco(images: int = 4, width: int = 64, height: int = 48, ids: tuple[int, ...] = (1, 2)) -> dict:
    """`images` images named 0.png, ... (ids from 1) with two boxes each, one of them a crowd in every third image."""
    annotations = []
    for number in range(images):
        for k in range(2):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": ids[(number + k) % len(ids)],
                    "bbox": [4.0 + 10 * k, 6.0, 20.0, 16.0],
                    "area": 320.0,
                    "iscrowd": int(number % 3 == 2 and k == 1),
                }
            )
    return {
        "images": [{"id": n + 1, "file_name": f"{n}.png", "width": width, "height": height} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"name{i}"} for i in ids],
    }


@pytest.fixture
def make_source(tmp_path):
    """Write a COCO source and return its {image_dir, json_file}; `content` is text or JSON data."""

    def make(content=None, images: int = 4, name: str = "set", draw: bool = True) -> dict[str, str]:
        content = coco(images) if content is None else content
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in range(images if draw else 0):
            draw_image(folder / f"{number}.png", seed=number)
        json_file = tmp_path / f"{name}.json"
        json_file.write_text(content if isinstance(content, str) else json.dumps(content))
        return {"image_dir": str(folder), "json_file": str(json_file)}

    return make


@pytest.fixture
def make_spec():
    """A DatasetSpec for tiny images in this process, with changes."""

    def make(augmentation: dict | None = None, **changes) -> DatasetSpec:
        sizes = {"train_spatial_size": [64, 96], "eval_spatial_size": [64, 96], **(augmentation or {})}
        fields = {"num_classes": 2, "workers": 0, "batch_size": 2, **changes}
        return DatasetSpec(augmentation=AugmentationSpec(**sizes), **fields)

    return make


@pytest.fixture
def bccd() -> Path:
    if not BCCD.is_dir():
        pytest.skip("the BCCD dataset is not next to this repository")
    return BCCD
