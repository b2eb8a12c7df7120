"""The detection loop: boxes in pixels of the original, order, empty batches, times."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.data.build import build_inference_dataset, build_loader
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.detection_loop import LoopTimes, detect
from rtdetr_tool.ops.structures import Batch, Predictions, Target
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec


class FindsRed:
    """A runtime with an exact result: query 0 is the box around the red pixels, query 1 a corner with a low score."""

    name, class_map, input_size, device = "red", None, None, torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[tuple[torch.dtype, tuple[int, ...], float, float]] = []

    def predict(self, images: torch.Tensor) -> Predictions:
        self.seen.append((images.dtype, tuple(images.shape), float(images.min()), float(images.max())))
        height, width = images.shape[-2:]
        boxes = torch.full((len(images), 2, 4), 0.05)
        for index, image in enumerate(images):
            red = (image[0] > 0.5) & (image[1] < 0.5)
            rows, columns = red.any(1).nonzero()[:, 0], red.any(0).nonzero()[:, 0]
            if len(rows):
                x1, x2 = columns[0] / width, (columns[-1] + 1) / width
                y1, y2 = rows[0] / height, (rows[-1] + 1) / height
                boxes[index, 0] = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        logits = torch.tensor([[-9.0, 4.0, -9.0], [-3.0, -9.0, -9.0]]).expand(len(images), 2, 3)
        return Predictions(logits, boxes)


BOXES = {"wide": ((400, 200), (100, 40, 260, 120)), "tall": ((120, 360), (30, 90, 90, 300))}


@pytest.fixture
def folder(tmp_path):
    for name, (size, box) in BOXES.items():
        image = Image.new("RGB", size, "white")
        image.paste("red", box)
        image.save(tmp_path / f"{name}.png")
    return tmp_path


def load(folder, keep: bool, batch_size: int = 2):
    spec = DatasetSpec(
        infer_data_sources={"image_dir": str(folder)},
        batch_size=batch_size,
        workers=0,
        augmentation=AugmentationSpec(eval_spatial_size=[96, 128], preserve_aspect_ratio=keep),
    )
    return build_loader(build_inference_dataset(spec), spec, training=False)


@pytest.mark.parametrize("keep", [False, True])
def test_boxes_come_back_in_pixels_of_the_original_with_and_without_padding(folder, keep):
    runtime, result = FindsRed(), {}
    for batch, detections in detect(runtime, load(folder, keep), num_select=2):
        for target, one in zip(batch.targets, detections, strict=True):
            result[target.path.rsplit("/", 1)[-1].split(".")[0]] = one
    assert set(result) == set(BOXES)
    for name, (size, box) in BOXES.items():
        pixel = max(size) / 96  # one pixel of the network's input
        best = result[name]
        assert best.labels[0] == 1 and best.scores[0] == pytest.approx(torch.tensor(4.0).sigmoid().item())
        np.testing.assert_allclose(best.boxes[0], box, atol=2 * pixel)
        assert best.scores.tolist() == sorted(best.scores.tolist(), reverse=True)
    shape = (2, 3, 128, 128) if keep else (2, 3, 96, 128)
    assert runtime.seen == [(torch.float32, shape, runtime.seen[0][2], 1.0)]
    assert runtime.seen[0][2] == (0.0 if keep else pytest.approx(0.0, abs=0.05))


def test_num_select_limits_what_is_found_and_may_exceed_what_there_is(folder):
    for number, expected in ((1, 1), (5, 5), (1000, 6)):
        _, detections = next(iter(detect(FindsRed(), load(folder, False), number)))
        assert [len(actual) for actual in detections] == [expected, expected]


def test_every_image_comes_once_in_the_order_of_the_loader_also_in_a_partial_batch(folder):
    for copy in range(3):
        Image.open(folder / "wide.png").save(folder / f"zz{copy}.png")
    ids = [t.image_id for batch, _ in detect(FindsRed(), load(folder, False, 2), 5) for t in batch.targets]
    assert ids == [0, 1, 2, 3, 4]


def test_a_batch_of_unreadable_images_passes_through_with_its_failures(folder):
    (folder / "aa.jpg").write_bytes(b"")
    runtime, times = FindsRed(), LoopTimes()
    batches = list(detect(runtime, load(folder, False, batch_size=1), 5, times))
    assert [(len(batch), len(result), len(batch.failures)) for batch, result in batches] == [
        (0, 0, 1),
        (1, 1, 0),
        (1, 1, 0),
    ]
    assert "aa.jpg" in batches[0][0].failures[0].message
    assert len(runtime.seen) == times.images == 2


def test_times_are_of_the_parts_and_leave_out_what_the_caller_does():
    class Slow(FindsRed):
        def predict(self, images):
            time.sleep(0.05)
            return super().predict(images)

    def loader():
        for number in range(3):
            time.sleep(0.02)
            target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), number, (8, 8), (8.0, 8.0))
            yield Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [target])

    times = LoopTimes()
    start = time.perf_counter()
    for _ in detect(Slow(), loader(), 5, times):
        time.sleep(0.1)
    whole = time.perf_counter() - start
    measured = times.load + times.preprocess + times.model + times.postprocess
    assert times.images == 3
    assert times.model >= 0.15 and times.load >= 0.06
    assert 0.2 < measured <= whole - 0.3
    assert measured <= times.elapsed <= whole - 0.3
    assert times.images_per_second == 3 / times.elapsed
    assert times.summary().startswith("3 images, ")


def test_times_of_nothing_are_zero():
    times = LoopTimes()
    assert list(detect(FindsRed(), [], 5, times)) == []
    assert times.images_per_second == 0.0 and "0 images" in times.summary()


def test_detections_are_on_the_cpu_without_gradients(folder):
    for _, detections in detect(FindsRed(), load(folder, False), 5):
        for result in detections:
            assert result.boxes.device.type == "cpu" and not result.boxes.requires_grad


@pytest.mark.parametrize("part", ["logits", "boxes"])
def test_nan_from_a_model_is_an_error_that_names_the_image(part, folder):
    class Broken(FindsRed):
        def predict(self, images):
            result = super().predict(images)
            setattr(result, part, getattr(result, part).clone())
            getattr(result, part)[1, 0, 0] = torch.nan
            return result

    with pytest.raises(RtdetrError, match=r"red returns NaN or infinite values, for example on .*wide\.png.*overflow"):
        list(detect(Broken(), load(folder, False), num_select=2))


class KillsItsWorker(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_data_worker_that_dies_is_told_with_what_to_lower():
    loader = torch.utils.data.DataLoader(KillsItsWorker(), num_workers=1)
    with pytest.raises(RtdetrError, match=r"A data worker process died .*lower dataset.workers \(now 1\)"):
        list(detect(FindsRed(), loader, 2))
