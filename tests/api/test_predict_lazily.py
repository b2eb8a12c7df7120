"""`predict` of an iterator and `predict_video` give their results one by one."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from PIL import Image
from video_files import truncate, write_video

from rtdetr_tool.api import PlainDetections
from rtdetr_tool.api import results as result_forms
from rtdetr_tool.errors import DataError, UserError


@pytest.fixture(autouse=True)
def without_supervision(monkeypatch):
    monkeypatch.setattr(result_forms, "detections_class", lambda: PlainDetections)


def same(one, other) -> bool:
    return np.allclose(one.xyxy, other.xyxy, atol=1e-3) and np.allclose(one.confidence, other.confidence, atol=1e-5)


def test_each_result_comes_before_the_next_image_is_taken(detector, sample):
    taken = []

    def images():
        for number in (1, 2, 3):
            taken.append(number)
            yield np.array(Image.open(sample.image(number)))

    results = detector.predict(images(), threshold=0.0)
    assert taken == []
    expected = detector.predict([sample.image(number) for number in (1, 2, 3)], threshold=0.0)
    for position, result in enumerate(results):
        assert taken == [1, 2, 3][: position + 1] and same(result, expected[position])
    assert position == 2


def test_an_endless_iterator_is_predicted_as_far_as_it_is_asked_for(rtdetr, sample):
    results = rtdetr.predict(itertools.repeat(sample.image(1)), threshold=0.0)
    first, second = itertools.islice(results, 2)
    assert same(first, second)


def test_a_batch_size_groups_the_images_of_an_iterator_and_of_a_list(rtdetr, sample, monkeypatch):
    sizes, predict = [], type(rtdetr.runtime).predict
    monkeypatch.setattr(
        type(rtdetr.runtime), "predict", lambda self, images: (sizes.append(len(images)), predict(self, images))[1]
    )
    paths = [sample.image(number) for number in (1, 2, 3, 4, 5)]
    assert len(list(rtdetr.predict(iter(paths), batch_size=2))) == 5 and sizes == [2, 2, 1]
    sizes.clear()
    assert len(rtdetr.predict(paths, batch_size=3)) == 5 and sizes == [3, 2]


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_an_invalid_batch_size_is_refused(rtdetr, sample, size):
    for images in ([sample.image(1)], iter([sample.image(1)])):
        with pytest.raises(UserError, match=r"batch_size .* is invalid; expected an integer of at least 1"):
            rtdetr.predict(images, batch_size=size)


def test_an_image_that_cannot_be_read_is_named_after_the_results_before_it(rtdetr, sample):
    results = rtdetr.predict(iter([sample.image(1), "/no/such.png"]))
    next(results)
    with pytest.raises(DataError, match=r"Image 1: .*no/such\.png"):
        next(results)
    with open(sample.image(1), "rb") as file, pytest.raises(DataError, match="BufferedReader is not an image"):
        rtdetr.predict(file)


def test_a_video_gives_its_frames_with_their_detections(detector, tmp_path):
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", 6)
    pairs = list(detector.predict_video(path, threshold=0.0))
    assert [frame.index for frame, _ in pairs] == list(range(6))
    assert [round(frame.time, 3) for frame, _ in pairs] == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]
    for frame, result in pairs:
        assert same(result, detector.predict(frame.image, threshold=0.0))
        assert result.metadata["source_image"].shape == (64, 96, 3)


def test_a_damaged_video_gives_what_can_be_read_and_a_warning(rtdetr, tmp_path, caplog):
    pytest.importorskip("av")
    path = truncate(write_video(tmp_path / "a.mp4", 60, faststart=True))
    with caplog.at_level(logging.WARNING):
        count = sum(1 for _ in rtdetr.predict_video(str(path)))
    assert 10 < count < 60 and "a.mp4 is truncated" in caplog.text
    with pytest.raises(DataError, match=r"no/such\.mp4 does not exist"):
        list(rtdetr.predict_video("/no/such.mp4"))
    with pytest.raises(UserError, match="predict_video: ftp:// is not supported"):
        rtdetr.predict_video("ftp://host/a.mp4")


def test_leaving_a_video_early_closes_it(rtdetr, tmp_path):
    pytest.importorskip("av")
    frames = rtdetr.predict_video(write_video(tmp_path / "a.mp4", 60))
    next(frames)
    frames.close()
    (tmp_path / "a.mp4").unlink()
