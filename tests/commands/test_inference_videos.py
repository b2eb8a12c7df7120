"""`rtdetr inference` on videos: mixed folders, damaged files, streams with passwords, signals and a missing package."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
from rtsp_server import RtspServer
from video_files import probe, truncate, write_video

from rtdetr_tool.data import inference_sources, video, video_container
from rtdetr_tool.progress import Task

pytest.importorskip("av")

PASSWORD = "hunter2-hunter2"


@pytest.fixture
def weights(project):
    project.spec["model"]["num_select"] = 16
    project.write()
    return f"inference.checkpoint={project.checkpoint()}"


def results(project):
    return project.folder / "results" / "inference"


def videos(project) -> list[dict]:
    return json.loads((results(project) / "videos.json").read_text())["videos"]


def test_a_folder_with_images_and_videos(project, weights):
    write_video(project.folder / "images" / "clip.mp4", 10)
    write_video(project.folder / "images" / "1.mkv", 5)
    (project.folder / "images" / "notes.txt").write_text("x")
    assert project.run("inference", weights, "inference.conf_threshold=0") == 0
    root = results(project)
    assert len(list((root / "images_annotated").iterdir())) == 6
    assert {path.name for path in (root / "videos_annotated").iterdir()} == {"clip.mp4", "1.mp4"}
    lines = (root / "video_detections" / "clip.jsonl").read_text().splitlines()
    assert len(lines) == len(probe(root / "videos_annotated" / "clip.mp4")["times"]) == 10
    assert all(json.loads(line)["detections"] for line in lines)
    assert [(row["frames"], row["problems"]) for row in videos(project)] == [(5, []), (10, [])]
    assert json.loads((root / "images.json").read_text())["skipped"] == [f"{project.folder}/images/notes.txt"]
    last = project.status("inference")[-1]
    assert last["status"] == "SUCCESS" and last["kpi"]["videos"] == 2 and last["kpi"]["frames"] == 15


def test_single_videos_without_a_folder(project, weights):
    paths = [write_video(project.folder / name, 3) for name in ("a.mp4", "b.mp4")]
    source = f"dataset.infer_data_sources={{image_dir: null, video: ['{paths[0]}', '{paths[1]}']}}"
    assert project.run("inference", weights, source) == 0
    assert [row["source"] for row in videos(project)] == [str(path) for path in paths]
    assert json.loads((results(project) / "predictions.json").read_text()) == []


def test_damaged_videos_are_exit_code_2_and_all_others_are_written(project, weights, capsys):
    images = project.folder / "images"
    write_video(images / "good.mp4", 4)
    truncate(write_video(images / "short.mp4", 60, faststart=True))
    (images / "empty.mp4").write_bytes(b"")
    (images / "text.mp4").write_text("hello " * 100)
    assert project.run("inference", weights) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Error: videos could not be read completely; wrote all other results" in said
    for reason in ("empty.mp4 is not a valid video file: it is empty", "text.mp4 is not a valid video file"):
        assert reason in said
    rows = {row["source"].rsplit("/", 1)[1]: row for row in videos(project)}
    assert rows["good.mp4"]["frames"] == 4 and not rows["good.mp4"]["problems"]
    assert rows["short.mp4"]["frames"] > 10 and "is truncated" in rows["short.mp4"]["problems"][0]
    assert len(probe(results(project) / "videos_annotated" / "short.mp4")["times"]) == rows["short.mp4"]["frames"]
    assert len(list((results(project) / "images_annotated").iterdir())) == 6
    assert project.status("inference")[-1]["status"] == "FAILURE"


def test_without_the_package_images_are_written_and_videos_named(project, weights, monkeypatch, capsys):
    monkeypatch.setattr(inference_sources, "video_supported", lambda: False)
    monkeypatch.setattr(video_container, "video_supported", lambda: False)
    clip = project.folder / "images" / "clip.mp4"
    clip.write_bytes(b"video")
    assert project.run("inference", weights) == 0
    assert 'reading videos requires av: pip install "rtdetr-tool[video]"' in " ".join(capsys.readouterr().err.split())
    assert json.loads((results(project) / "images.json").read_text())["skipped"] == [str(clip)]
    assert project.run("inference", weights, f"dataset.infer_data_sources={{video: '{clip}'}}") == 2
    assert "Reading videos requires av" in capsys.readouterr().err


def texts(project, capsys) -> str:
    written = [path for path in results(project).rglob("*") if path.suffix in (".json", ".jsonl", ".txt", ".yaml")]
    shown = capsys.readouterr()
    return shown.out + shown.err + " ".join(map(str, written)) + "".join(path.read_text() for path in written)


def test_a_stream_is_opened_again_and_its_password_is_not_written(project, weights, monkeypatch, capsys):
    monkeypatch.setattr(video.time, "sleep", lambda seconds: None)
    server = RtspServer(write_video(project.folder / "a.ts", 20), "operator", PASSWORD, connections=2)
    source = f"dataset.infer_data_sources={{image_dir: null, video: '{server.address}'}}"
    assert project.run("inference", weights, source, "inference.stream_attempts=1") == 2
    (row,) = videos(project)
    received = row["frames"] + row["dropped"]
    assert row["frames"] > 0 and 30 < received <= 40  # the end of a connection may cut its last frame
    assert f"was lost after {received} frames" in row["problems"][0]
    (output,) = (results(project) / "videos_annotated").iterdir()
    assert len(probe(output)["times"]) == row["frames"]
    assert PASSWORD not in texts(project, capsys)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_stream_with_whole_files(project, weights, monkeypatch, number, code):
    server = RtspServer(write_video(project.folder / "a.ts", 200), "operator", PASSWORD, connections=1, hang_up=False)
    seen, advance = threading.Event(), Task.advance

    def counted(self) -> None:
        advance(self)
        if self.done == 3:
            seen.set()

    monkeypatch.setattr(Task, "advance", counted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    killer = threading.Thread(target=lambda: (seen.wait(60), os.kill(os.getpid(), number)))
    killer.start()
    assert (
        project.run("inference", weights, f"dataset.infer_data_sources={{image_dir: null, video: '{server.address}'}}")
        == code
    )
    killer.join()
    signal.signal(signal.SIGINT, before)
    (row,) = videos(project)
    (lines,) = (results(project) / "video_detections").iterdir()
    (output,) = (results(project) / "videos_annotated").iterdir()
    assert len(lines.read_text().splitlines()) == len(probe(output)["times"]) == row["frames"] >= 3
    assert project.status("inference")[-1]["message"].startswith("User/System interruption")
