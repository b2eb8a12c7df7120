"""Reading videos: frames, times and orientation, and what is reported of damaged files."""

from __future__ import annotations

import itertools
import socket
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_files import draw_frame, truncate, write_video

from rtdetr_tool.data import video, video_container
from rtdetr_tool.data.video import VideoReader
from rtdetr_tool.data.video_formats import VideoSource, video_source
from rtdetr_tool.errors import DataError, UserError

pytest.importorskip("av")


def read(path: Path) -> tuple[list, VideoReader]:
    with VideoReader(VideoSource(str(path), "file")) as reader:
        return list(reader), reader


def error(frame, index: int) -> float:
    return np.abs(frame.image.permute(1, 2, 0).numpy().astype(int) - draw_frame(index)).mean()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_every_frame_is_read_with_its_index_and_time(tmp_path, name):
    frames, reader = read(write_video(tmp_path / name, 30))
    assert [frame.index for frame in frames] == list(range(30)) and not reader.problems
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(30) / 25, atol=1e-3)
    assert max(error(frame, frame.index) for frame in frames) < 3
    assert reader.fps == 25 and reader.total_frames == 30


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    pts = list(itertools.accumulate([0, *(10 if index % 2 else 90 for index in range(29))]))
    frames, _ = read(write_video(tmp_path / "a.mp4", 30, pts=pts))
    np.testing.assert_allclose([frame.time for frame in frames], np.array(pts) / 1000, atol=1e-3)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_video_is_read_upright(tmp_path, rotation):
    """`rotation` is how a player rotates the stored frames counterclockwise."""
    frames, reader = read(write_video(tmp_path / "a.mp4", 3, rotation=rotation))
    expected = np.rot90(draw_frame(0), rotation // 90)
    pixels = frames[0].image.permute(1, 2, 0).numpy()
    assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < 3
    assert reader.turned == (rotation != 180)


def test_odd_sizes_and_deep_colors_are_read(tmp_path):
    frames, _ = read(write_video(tmp_path / "a.mkv", 3, (97, 65), codec="libx265", pixel_format="yuv444p10le"))
    assert frames[0].image.shape == (3, 65, 97) and frames[0].image.dtype.is_floating_point is False


def test_a_truncated_file_gives_the_frames_before_its_end(tmp_path):
    frames, reader = read(truncate(write_video(tmp_path / "a.mp4", 60, faststart=True)))
    assert 10 < len(frames) < 60
    assert "a.mp4 is truncated: its header states 60 frames, but the file ends after" in reader.problems[0]
    frames, reader = read(truncate(write_video(tmp_path / "a.mkv", 100)))
    assert 20 < len(frames) < 80
    assert "a.mkv is truncated or damaged: its header states 4.00 s" in reader.problems[0]


def test_damage_in_the_middle_skips_frames_and_is_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    frames, reader = read(path)
    assert 40 < len(frames) <= 60 and "is damaged" in reader.problems[0]
    assert all(b.time > a.time for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"hello" * 100, "not a valid video file"), (None, "does not exist; expected a video")],
)
def test_what_is_not_a_video_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.mp4.*{reason}"):
        VideoReader(VideoSource(str(path), "file"))


def test_sound_without_video_and_video_without_frames_are_named(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"a\.mp4 has no video"):
        VideoReader(VideoSource(str(tmp_path / "a.mp4"), "file"))
    _, reader = read(write_video(tmp_path / "b.avi", 0, codec="mpeg4"))
    assert reader.problems == [f"{tmp_path}/b.avi contains no frames"]


def test_a_playlist_with_the_name_of_a_video_is_not_followed(tmp_path):
    """It could name any file or address."""
    write_video(tmp_path / "real.ts", 5)
    (tmp_path / "a.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.2,\nreal.ts\n#EXT-X-ENDLIST\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="not a valid video file"):
        VideoReader(VideoSource(str(tmp_path / "a.mp4"), "file"))
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/real.ts\n")
    with pytest.raises(DataError, match="not a valid video file"):
        VideoReader(VideoSource(str(tmp_path / "b.mp4"), "file"))


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(video_container.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'Reading videos requires av: pip install "rtdetr-tool\[video\]"'):
        VideoReader(VideoSource("a.mp4", "file"))


@pytest.mark.parametrize(
    ("value", "kind", "live", "name"),
    [
        ("a/b.mp4", "file", False, "a/b.mp4"),
        (0, "camera", True, "camera_0"),
        ("2", "camera", True, "camera_2"),
        ("rtsp://user:hunter2hunter2@10.0.0.1:554/cam/1?token=abc", "stream", True, "10.0.0.1_554_cam_1"),
        ("https://host/video.mp4", "stream", False, "host_video.mp4"),
    ],
)
def test_a_path_a_url_and_a_camera_are_told_apart(value, kind, live, name):
    source = video_source(value)
    assert (source.kind, source.live, source.file_name) == (kind, live, name)
    assert "hunter2" not in source.shown and "abc" not in source.shown


@pytest.mark.parametrize("address", ["concat:///etc/passwd", "file:///a.mp4", "subfile://a", "lavfi://x"])
def test_other_schemes_are_refused(address):
    with pytest.raises(ValueError, match="is not supported; expected one of rtsp"):
        video_source(address)


def test_a_camera_that_does_not_exist_is_named():
    with pytest.raises(DataError, match="camera 99 does not exist"):
        VideoReader(video_source(99))


def test_rtsp_is_refused_with_a_version_that_crashes(monkeypatch):
    import av

    monkeypatch.setattr(av, "__version__", "17.0.0")
    with pytest.raises(DataError, match=r"rtsp://\*\*\*@host/a cannot be opened: RTSP requires av 18\.0 .*17\.0\.0"):
        VideoReader(video_source("rtsp://user:secretsecret@host/a"))


def test_a_lost_stream_is_opened_again_until_the_attempts_are_used_up(tmp_path, monkeypatch, caplog):
    content = write_video(tmp_path / "a.ts", 40).read_bytes()
    monkeypatch.setattr(video.time, "sleep", lambda seconds: None)
    server = socket.create_server(("127.0.0.1", 0))
    address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

    def serve() -> None:
        for _ in range(2):
            connection, _ = server.accept()
            connection.sendall(content)
            connection.close()
        server.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with VideoReader(video_source(address), attempts=2) as reader:
        frames = list(reader)
    thread.join()
    assert [frame.index for frame in frames] == list(range(80))
    assert all(later.pts > earlier.pts for earlier, later in itertools.pairwise(frames))
    assert reader.time_base == Fraction(1, 90000)
    assert [text for text in caplog.messages if "connecting again" in text and "(attempt 1 of 2)" in text]
    assert f"{address} was lost after 80 frames: Connection refused" in reader.problems[0]
