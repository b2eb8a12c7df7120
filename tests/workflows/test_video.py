"""Inference on a video with a detector built by hand: the right detections in the right frames, and whole files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from video_files import CLASSES, GREEN, ColorRuntime, draw_frame, probe, squares_at, truncate, write_video

from rtdetr_tool.data.video import VideoFrame
from rtdetr_tool.data.video_formats import VideoSource
from rtdetr_tool.errors import UserError, WriteError
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.progress import Task
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.workflows import tracking
from rtdetr_tool.workflows.tracking import build_tracker, require_tracker
from rtdetr_tool.workflows.video import VideoDetector, video_stems
from rtdetr_tool.workflows.video_writer import VideoWriter

pytest.importorskip("av")


@pytest.fixture
def detector(tmp_path):
    spec = spec_from_dict(
        {
            "dataset": {"batch_size": 4, "augmentation": {"eval_spatial_size": [64, 96]}},
            "model": {"num_select": 2},
            "inference": {"results_dir": str(tmp_path / "results")},
        }
    )
    (tmp_path / "results").mkdir()
    return VideoDetector(ColorRuntime(), spec, CLASSES, torch.full((2,), 0.5), {}, tmp_path / "results")


def run(detector: VideoDetector, path, stem: str = "a"):
    detector.run(VideoSource(str(path), "file"), stem)
    lines = detector.folder / "video_detections" / f"{stem}.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return detector.results[-1], rows


def test_every_frame_has_its_detections(detector, tmp_path):
    result, rows = run(detector, write_video(tmp_path / "a.mp4", 50))
    assert [row["frame"] for row in rows] == list(range(50)) and result.frames == 50 and not result.problems
    for row in rows:
        expected = squares_at(row["frame"])
        actual = {detection["category_id"] - 1: detection["bbox"] for detection in row["detections"]}
        assert actual.keys() == expected.keys()
        for label, (left, top, right, bottom) in expected.items():
            np.testing.assert_allclose(actual[label], [left, top, right - left, bottom - top], atol=2.1)
        assert row["time"] == pytest.approx(row["frame"] / 25, abs=1e-3) and (row["width"], row["height"]) == (96, 64)
    assert result.detections == 50 + len(GREEN)
    assert detector.runtime.batches == [4] * 12 + [2]


def test_the_annotated_video_has_the_same_size_rate_and_times(detector, tmp_path):
    run(detector, write_video(tmp_path / "a.mkv", 31, fps=Fraction(30000, 1001)))
    output = probe(detector.folder / "videos_annotated" / "a.mp4")
    assert (output["size"], output["codec"], output["pixels"]) == ((96, 64), "h264", "yuv420p")
    assert float(output["fps"]) == pytest.approx(30000 / 1001, rel=1e-3) and len(output["times"]) == 31
    np.testing.assert_allclose(output["times"], np.arange(31) * 1001 / 30000, atol=1e-3)
    top_left = output["first"][2:6, 70:90].astype(int)  # without a box
    assert np.abs(top_left - draw_frame(0)[2:6, 70:90]).mean() < 5
    assert np.abs(output["first"].astype(int) - draw_frame(0)).max() > 60  # the box


def test_a_variable_frame_rate_stays_one(detector, tmp_path):
    pts = list(itertools.accumulate([0, *(10 if index % 3 else 150 for index in range(24))]))
    _, rows = run(detector, write_video(tmp_path / "a.mp4", 25, pts=pts))
    np.testing.assert_allclose([row["time"] for row in rows], np.array(pts) / 1000, atol=1e-3)
    output = probe(detector.folder / "videos_annotated" / "a.mp4")
    np.testing.assert_allclose(output["times"], np.array(pts) / 1000, atol=2e-3)


def test_boxes_of_a_rotated_video_are_on_the_upright_frame(detector, tmp_path):
    _, rows = run(detector, write_video(tmp_path / "a.mp4", 3, rotation=90, aspect_ratio=Fraction(4, 3)))
    left, top, right, bottom = squares_at(0)[0]  # rotated counterclockwise: x' = y, y' = 96 - x
    np.testing.assert_allclose(rows[0]["detections"][0]["bbox"], [top, 96 - right, bottom - top, right - left], atol=2)
    output = probe(detector.folder / "videos_annotated" / "a.mp4")
    assert output["size"] == (64, 96) and output["aspect_ratio"] == Fraction(3, 4)


def test_an_odd_size_gets_one_more_row_and_column(detector, tmp_path):
    _, rows = run(detector, write_video(tmp_path / "a.mkv", 3, (97, 65), pixel_format="yuv444p"))
    assert (rows[0]["width"], rows[0]["height"]) == (97, 65)
    output = probe(detector.folder / "videos_annotated" / "a.mp4")
    assert output["size"] == (98, 66) and len(output["times"]) == 3


def test_one_frame_is_a_video(detector, tmp_path):
    result, rows = run(detector, write_video(tmp_path / "a.mp4", 1))
    assert result.frames == len(rows) == len(probe(detector.folder / "videos_annotated" / "a.mp4")["times"]) == 1


def test_a_truncated_file_leaves_whole_results_and_its_reason(detector, tmp_path):
    result, rows = run(detector, truncate(write_video(tmp_path / "a.mp4", 60, faststart=True)))
    output = probe(detector.folder / "videos_annotated" / "a.mp4")
    assert 10 < result.frames == len(rows) == len(output["times"]) < 60
    assert "is truncated" in result.problems[0]


@pytest.mark.parametrize("name", ["empty.mp4", "none.avi"])
def test_without_a_frame_there_are_no_files(detector, tmp_path, name):
    path = tmp_path / name
    if name == "empty.mp4":
        path.write_bytes(b"")
    else:
        write_video(path, 0, codec="mpeg4")
    result, rows = run(detector, path)
    assert result.problems and not rows and result.annotated_video is None
    assert not list(detector.folder.rglob("*.*"))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_finishes_the_files(detector, tmp_path, kind):
    predict = detector.runtime.predict

    def interrupted(images):
        if len(detector.runtime.batches) == 5:
            raise kind
        return predict(images)

    detector.runtime.predict = interrupted
    with pytest.raises(kind):
        run(detector, write_video(tmp_path / "a.mp4", 50))
    rows = (detector.folder / "video_detections" / "a.jsonl").read_text().splitlines()
    output = probe(detector.folder / "videos_annotated" / "a.mp4")
    assert len(rows) == len(output["times"]) == 20 and detector.results[0].frames == 20
    assert not list(detector.folder.rglob(".*"))


def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path, monkeypatch):
    from rtdetr_tool.workflows import video_writer

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_writer.Encoder, "write", full)
    writer = VideoWriter(tmp_path / "a.mp4", tmp_path / "a.jsonl", CLASSES, Fraction(25), Fraction(1, 25))
    frame = VideoFrame(0, 0.0, 0, torch.zeros(3, 32, 32, dtype=torch.uint8))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(WriteError, match=r"a\.mp4 cannot be written: No space left on device"):
        for _ in range(20):
            writer.write(frame, nothing)
        writer.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_is_constant_over_5000_frames(detector, tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 5000, (640, 360))
    memory, advance = {}, Task.advance

    def measured(self) -> None:
        advance(self)
        if self.done % 1000 == 0:
            memory[self.done] = resident_megabytes()

    monkeypatch.setattr(Task, "advance", measured)
    result, rows = run(detector, path)
    print(f"resident memory in MB after frames: {memory}, {result.frames_per_second} frames/s")
    assert len(rows) == 5000 and len(probe_times(detector.folder / "videos_annotated" / "a.mp4")) == 5000
    assert memory[5000] - memory[1000] < 30, memory  # one frame has 0.7 MB


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def probe_times(path: Path) -> list[float]:
    import av

    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def test_sources_of_one_name_get_different_files():
    sources = [
        VideoSource("x/a.mp4", "file"), VideoSource("y/a.mp4", "file"), VideoSource("y/b.mkv", "file"),
        VideoSource("0", "camera"), VideoSource("rtsp://u:secretsecret@h/s", "stream"),
        VideoSource("rtsp://v:secretsecret@h/s", "stream"),
    ]  # fmt: skip
    stems = video_stems(sources)
    assert len(set(stems)) == 6 and not any("secret" in stem for stem in stems)
    assert stems[2:5] == ["b", "camera_0", "h_s"]


def test_the_tracker_is_refused_without_its_package(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'bytetrack requires trackers: pip install "rtdetr-tool\[tracking\]"'):
        require_tracker("bytetrack")
    require_tracker("none")
    assert build_tracker("none", 0.5, None) is None


def test_tracks_follow_the_squares(detector, tmp_path):
    pytest.importorskip("trackers")
    detector.spec = dataclasses.replace(
        detector.spec, inference=dataclasses.replace(detector.spec.inference, tracker="bytetrack")
    )
    _, rows = run(detector, write_video(tmp_path / "a.mp4", 50))
    numbers: dict[int, set] = {1: set(), 2: set()}
    for row in rows:
        for detection in row["detections"]:
            numbers[detection["category_id"]].add(detection["track_id"])
    red, green = (result - {None} for result in numbers.values())
    assert len(red) == len(green) == 1 and red != green
