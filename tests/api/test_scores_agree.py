"""Validation, `evaluate` and `predict` have the same score on the same files, because they resize in the same way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rtdetr_tool.api import RTDETR, Detector, PlainDetections, RFDETRNano
from rtdetr_tool.api import results as result_forms
from rtdetr_tool.checkpoints.io import save_detector
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.spec import spec_to_dict
from rtdetr_tool.training import DetectionDataModule, DetectorModule
from tests.api.small import SMALL_RFDETR, SMALL_RTDETR, lively

SIZES = [(63, 47), (37, 101), (80, 33), (61, 61), (131, 240), (90, 55)]  # width, height
CLASSES = [{"index": 0, "id": 3, "name": "cat"}, {"index": 1, "id": 7, "name": "dog"}]
# Every token becomes a query, so that rounding does not affect their selection.
MADE = {
    "rtdetr": lambda: RTDETR("resnet_18", num_classes=2, device="cpu", **{**SMALL_RTDETR, "num_queries": 84}),
    "rfdetr": lambda: RFDETRNano(
        pretrain_weights=None, num_classes=2, device="cpu", **{**SMALL_RFDETR, "num_queries": 16}
    ),
}


@pytest.fixture(autouse=True)
def without_supervision(monkeypatch):
    monkeypatch.setattr(result_forms, "detections_class", lambda: PlainDetections)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """JPEG files of odd sizes, one of them stored rotated by 90 degrees."""
    folder, rng = tmp_path_factory.mktemp("image_folder"), np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        coarse.resize((width, height)).save(folder / f"{number}.jpg", quality=90, exif=exif)
    return folder


@pytest.fixture(params=MADE)
def detector(request, tmp_path):
    """A detector opened from a checkpoint."""
    torch.manual_seed(0)
    made = lively(MADE[request.param]())
    meta = build_metadata("test", spec_to_dict(made.spec), CLASSES)
    return Detector.from_checkpoint(save_detector(made.network.state_dict(), meta, tmp_path / "m.pth"), device="cpu")


def truth_from(found) -> dict:
    """Every other detection as ground truth, narrower, so that the score is neither 0 nor 1."""
    images, annotations = [], []
    for number, one in enumerate(found):
        height, width = one.metadata["source_image"].shape[:2]
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(one.xyxy[::2].tolist(), one.class_id[::2].tolist(), strict=True):
            box = [x1, y1, 0.87 * (x2 - x1), y2 - y1]  # not near any IoU threshold
            if min(box[2:]) >= 3:  # the annotation reader would repair it
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": CLASSES[label]["id"],
                                    "bbox": box, "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": [{**c, "index": None} for c in CLASSES]}


def score_by_pycocotools(truth: dict, found) -> float:
    """COCO's AP of the results of `predict`."""
    reference = COCO()
    reference.dataset = truth
    reference.createIndex()
    rows = [
        {"image_id": number, "category_id": CLASSES[label]["id"], "score": float(score),
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for number, one in enumerate(found)
        for (x1, y1, x2, y2), _, score, label, *_ in one
    ]  # fmt: skip
    scored = COCOeval(reference, reference.loadRes(rows), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return float(scored.stats[0])


@pytest.mark.parametrize("letterbox", [False, True])
def test_predictions_of_files_score_like_validation_and_evaluate(detector, image_folder, tmp_path, letterbox):
    augmentation = replace(detector.spec.dataset.augmentation, preserve_aspect_ratio=letterbox)
    detector._opened.spec = replace(detector.spec, dataset=replace(detector.spec.dataset, augmentation=augmentation))
    actual = detector.predict([image_folder / f"{number}.jpg" for number in range(len(SIZES))], threshold=0.0)
    truth = truth_from(actual)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    source = {"image_dir": str(image_folder), "json_file": str(tmp_path / "truth.json")}
    expected = score_by_pycocotools(truth, actual)
    assert 0.05 < expected < 0.95

    assert detector.evaluate("val", val_data_sources=source, num_workers=0).map == pytest.approx(expected, abs=1e-9)

    spec = replace(detector.spec, dataset=replace(detector.spec.dataset, val_data_sources=source, workers=0))
    module = DetectorModule(spec, detector.class_map)
    module.start_from(detector.network.state_dict(), "test", detector.class_map.to_list())
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(module, DetectionDataModule(spec), verbose=False)
    assert module.metrics["val/mAP_50_95"] == pytest.approx(expected, abs=1e-6)
