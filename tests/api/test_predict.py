"""`predict` accepts images in any form and returns the same detections for all of them."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool import api
from rtdetr_tool.api import Detector, PlainDetections
from rtdetr_tool.api import results as result_forms
from rtdetr_tool.api.images import to_pixels
from rtdetr_tool.errors import DataError, DownloadError, UserError
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from tests.api.small import SMALL_RFDETR, SMALL_RTDETR


@pytest.fixture(autouse=True)
def without_supervision(monkeypatch):
    """Test `PlainDetections`; `supervision` has a separate test."""
    monkeypatch.setattr(result_forms, "detections_class", lambda: PlainDetections)


def same(one, other) -> bool:
    return np.array_equal(one.xyxy, other.xyxy) and np.array_equal(one.confidence, other.confidence)


def test_every_form_of_an_image_has_the_same_predictions(detector, sample, serve):
    path = sample.image(1)
    pixels = np.array(Image.open(path))
    channels = torch.from_numpy(pixels).permute(2, 0, 1)
    address = f"{serve(sample.images)}/1.png"
    expected = detector.predict(str(path), threshold=0.0)
    assert len(expected) >= 8
    forms = [path, address, Image.open(path), pixels, pixels / 255, channels, channels / 255, channels.half() / 255]
    for form in forms:
        assert same(detector.predict(form, threshold=0.0), expected), type(form)


def test_a_read_only_array_is_accepted_without_a_warning():
    array = np.asarray(Image.new("RGB", (6, 4), (1, 2, 3)))
    assert not array.flags.writeable
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = to_pixels(array)
            assert torch.equal(to_pixels(array[:, ::-1]), pixels)
    finally:
        torch.set_warn_always(always)
    assert pixels.shape == (3, 4, 6) and pixels[:, 0, 0].tolist() == [1, 2, 3]


def test_a_list_returns_a_list_even_if_it_has_one_or_no_image(rtdetr, sample):
    single = rtdetr.predict(sample.image(1), threshold=0.0)
    assert isinstance(single, PlainDetections)
    assert len(rtdetr.predict([sample.image(1)])) == 1 and rtdetr.predict([]) == []
    several = rtdetr.predict([sample.image(number) for number in (3, 1, 2, 4, 5, 6)], threshold=0.0)
    assert len(several) == 6 and np.allclose(several[1].xyxy, single.xyxy, atol=1e-3)


def test_results_carry_names_sizes_and_the_image(detector, sample):
    result = detector.predict(sample.image(1), threshold=0.0)
    assert result.xyxy.shape == (len(result), 4) and result.xyxy.dtype == np.float32
    assert result.xyxy[:, 0::2].max() <= 64 and result.xyxy[:, 1::2].max() <= 48 and result.xyxy.min() >= 0
    assert (np.diff(result.confidence) <= 0).all()
    assert result.data["source_shape"].tolist() == [[48, 64]] * len(result)
    assert result["class_name"].tolist() == [f"class_{index}" for index in result.class_id]
    assert np.array_equal(result.metadata["source_image"], np.array(Image.open(sample.image(1))))
    assert detector.predict(sample.image(1), include_source_image=False).metadata == {}


def test_an_index_without_a_class_is_not_a_detection(rfdetr, sample, monkeypatch):
    everything = rfdetr.predict(sample.image(1), threshold=0.0)
    assert set(everything.class_id) == {0, 1, 2}  # two classes and the background
    monkeypatch.setattr(rfdetr._opened, "class_map", ClassMap([ClassEntry(0, 5, "cat"), ClassEntry(1, 7, "dog")], 3))
    named = rfdetr.predict(sample.image(1), threshold=0.0)
    assert set(named.class_id) == {0, 1} and set(named["class_name"]) == {"cat", "dog"}
    assert rfdetr.class_names == ["cat", "dog"]


def test_the_threshold_is_the_minimum_score(rtdetr, sample):
    every = rtdetr.predict(sample.image(1), threshold=0.0)
    middle = float(every.confidence[3])
    kept = rtdetr.predict(sample.image(1), threshold=middle)
    assert len(kept) == 4 and same(kept, every[:4])
    for wrong in (50, "half", None):
        with pytest.raises(UserError, match=f"threshold {wrong!r} is invalid; expected 0 to 1"):
            rtdetr.predict(sample.image(1), threshold=wrong)


def test_other_valid_input_sizes_are_accepted(rtdetr, rfdetr, sample):
    for detector in (rtdetr, rfdetr):
        assert len(detector.predict(sample.image(1), threshold=0.0, shape=(96, 128))) > 0
    with pytest.raises(UserError, match="shape: 100 is invalid; expected a multiple of 32, nearest: 96 or 128"):
        rtdetr.predict(sample.image(1), shape=(96, 100))
    for wrong in ((96,), 96):
        with pytest.raises(UserError, match=r"shape: .* is invalid; expected \(height, width\)"):
            rtdetr.predict(sample.image(1), shape=wrong)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("no/such/image.jpg", "Image file not found: no/such/image.jpg"),
        (np.zeros((4, 4), np.uint8), r"array of shape \[4, 4\] is not an image; expected a path"),
        (np.zeros((4, 4, 4), np.uint8), r"array of shape \[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.int32), "Pixels of type torch.int32"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (torch.zeros(1, 3, 4, 4), r"tensor of shape \[1, 3, 4, 4\]"),
        (torch.full((3, 4, 4), 255.0), r"Pixels from 255 to 255 are invalid; expected floats 0..1"),
        (torch.full((3, 4, 4), -0.1), "Pixels from -0.1"),
        (torch.full((3, 4, 4), float("nan")), "Pixels from nan"),
        (7, "int is not an image"),
        (None, "NoneType is not an image"),
    ],
)
def test_invalid_images_are_reported(rtdetr, image, message):
    with pytest.raises(DataError, match=message):
        rtdetr.predict(image)
    with pytest.raises(DataError, match=f"Image 1 of 2: .*{message}"):
        rtdetr.predict([np.zeros((4, 4, 3), np.uint8), image])


def test_a_url_without_an_image_is_one_message(rtdetr, sample, serve):
    (sample.folder / "page.html").write_text("<html>not an image</html>")
    address = serve(sample.folder)
    with pytest.raises(DataError, match=f"Cannot read image {address}/page.html: it is not an image"):
        rtdetr.predict(f"{address}/page.html?token=1")
    with pytest.raises(DataError, match="404"):
        rtdetr.predict(f"{address}/missing.png")
    with pytest.raises(DataError, match="use http or https"):
        rtdetr.predict("file:///etc/passwd")
    try:
        rtdetr.predict(f"{address}/missing.png")
    except DataError as error:
        assert isinstance(error.__cause__, DownloadError)


def test_the_image_of_the_caller_is_not_rotated(rtdetr):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    image.getexif()[0x0112] = 6
    assert rtdetr.predict(image).metadata["source_image"].shape == (48, 64, 3)


def test_an_image_that_can_no_longer_be_read_is_reported(rtdetr, sample, tmp_path):
    closed = Image.open(sample.image(1))
    closed.close()
    with pytest.raises(DataError, match=r"Cannot read the image '.*1.png': .*closed"):
        rtdetr.predict(closed)
    (tmp_path / "cut.png").write_bytes(sample.image(1).read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(DataError, match=r"Cannot read the image '.*cut.png'"):
        rtdetr.predict([cut])


@pytest.mark.slow
def test_prediction_does_not_import_lightning():
    code = "import sys, rtdetr_tool; rtdetr_tool.Detector; print('pytorch_lightning' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Optimized


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_an_optimized_detector_predicts_the_same_for_other_sizes_and_batches(detector, sample, dtype, tolerance):
    images = [sample.image(number) for number in range(1, 6)]
    plain = detector.predict(images, threshold=0.0)
    small = detector.predict(images[0], threshold=0.0, shape=(64, 96))
    detector.optimize_for_inference(batch_size=2, dtype=dtype)
    assert detector.runtime.dtype == getattr(torch, dtype) and not detector.runtime.compiled  # compiled on GPUs only
    try:
        for one, other in zip(
            detector.predict(images, threshold=0.0), plain, strict=True
        ):  # batches of two, two and one
            assert np.abs(one.confidence - other.confidence).mean() < tolerance
        result = detector.predict(images[0], 0.0, (64, 96))
        assert np.abs(result.confidence - small.confidence).mean() < tolerance
    finally:
        detector.remove_optimized_model()
    assert detector.runtime.name == "torch"
    detector.remove_optimized_model()
    assert same(detector.predict(images[0], threshold=0.0), detector.predict(images[0], threshold=0.0))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_another_number_format_changes_scores_a_little(rtdetr, sample, dtype):
    plain = rtdetr.predict(sample.image(1), threshold=0.0)
    rtdetr.optimize_for_inference(compile=False, dtype=dtype)
    try:
        result = rtdetr.predict(sample.image(1), threshold=0.0)
    finally:
        rtdetr.remove_optimized_model()
    assert result.confidence.dtype == np.float32 and np.allclose(result.confidence, plain.confidence, atol=0.03)
    assert not np.array_equal(result.confidence, plain.confidence)


def test_invalid_options_of_optimization_are_reported(rtdetr):
    with pytest.raises(UserError, match="dtype: 'int8' is invalid; expected one of float32, float16, bfloat16"):
        rtdetr.optimize_for_inference(dtype="int8")
    with pytest.raises(UserError, match="batch_size: 0 is invalid"):
        rtdetr.optimize_for_inference(batch_size=0)


def test_float16_is_refused_on_a_cpu_and_the_detector_stays_as_it_was(rtdetr, sample):
    before = rtdetr.predict(sample.image(1), threshold=0.0)
    with pytest.raises(UserError, match="fp16 is not supported on a CPU"):
        rtdetr.optimize_for_inference(dtype="float16")
    assert same(rtdetr.predict(sample.image(1), threshold=0.0), before)


@pytest.mark.parametrize(("name", "field"), [("RFDETRSegNano", "mask"), ("RFDETRKeypointPreview", "xy")])
def test_optimized_detectors_return_masks_and_keypoints(name, field, sample):
    model = getattr(api, name)(**{**SMALL_RFDETR, "resolution": 96}, pretrain_weights=None, device="cpu")
    plain = model.predict(sample.image(1), threshold=0.0)
    model.optimize_for_inference()
    optimized = model.predict(sample.image(1), threshold=0.0)
    np.testing.assert_array_equal(getattr(optimized, field), getattr(plain, field))


def test_supervision_gets_its_own_class(rtdetr, sample, monkeypatch):
    supervision = pytest.importorskip("supervision")
    monkeypatch.undo()
    result = rtdetr.predict(sample.image(1), threshold=0.0)
    assert isinstance(result, supervision.Detections) and isinstance(rtdetr, Detector)
    assert len(result) > 0 and len(result.with_nms(0.5)) <= len(result)
    assert result["class_name"][0] == f"class_{result.class_id[0]}"
    assert len(rtdetr.predict(sample.image(1), threshold=1.0)) == 0


@pytest.mark.parametrize("channels", [1, 4])
def test_images_with_other_channels_are_arrays_tensors_files_and_pil_images(channels, tmp_path):
    gray = api.RTDETR("resnet_18", num_classes=2, device="cpu", num_channels=channels, **SMALL_RTDETR)
    values = np.random.default_rng(0).integers(0, 255, (48, 64, channels), dtype=np.uint8)
    pillow = Image.fromarray(values[..., 0] if channels == 1 else values)
    pillow.save(tmp_path / "a.png")
    forms = [values, torch.from_numpy(values).permute(2, 0, 1), pillow, tmp_path / "a.png", values / np.float32(255)]
    forms += [values[..., 0]] if channels == 1 else []
    expected, *others = gray.predict(forms, threshold=0.0)
    assert len(expected) > 0
    for result in others:
        assert np.allclose(result.confidence, expected.confidence, atol=1e-5)
    for wrong in (np.zeros((48, 64, 3), np.uint8), Image.new("RGB", (64, 48))):
        with pytest.raises(DataError, match=r"3 channels|\[48, 64, 3\] is not an image"):
            gray.predict(wrong)
