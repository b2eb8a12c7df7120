"""A run only writes to its results folder and to files in the spec, whatever data and links contain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.schema import walk_fields
from rtdetr_tool.workflows.kitti import output_stems


def tree(folder: Path, but: Path) -> dict[str, tuple]:
    """Every file below a folder with size, time and target, except those below `but`."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns, os.readlink(path) if path.is_symlink() else "")
        for path in folder.rglob("*")
        if but not in path.parents and path != but and not path.is_dir()
    }


@pytest.fixture
def untouched(project):
    """Check that nothing outside of the results folder has changed in the test's folder."""
    before = {}

    def remember():
        before.update(tree(project.folder, project.folder / "results"))

    yield remember
    assert before and tree(project.folder, project.folder / "results") == before


def test_every_field_that_looks_like_a_path_declares_how_it_is_used():
    endings = ("_dir", "_path", "_file", "_cache", "_engine", "checkpoint")
    undeclared = {
        name
        for name, entry, hint in walk_fields()
        if "str" in str(hint) and name.endswith(endings) and not entry.metadata["path"]
    }
    assert undeclared == set()


@pytest.mark.parametrize(
    ("command", "one", "other"),
    [
        ("gen_trt_engine", "gen_trt_engine.trt_engine", "gen_trt_engine.onnx_file"),
        ("gen_trt_engine", "gen_trt_engine.timing_cache", "gen_trt_engine.trt_engine"),
        ("gen_trt_engine", "gen_trt_engine.tensorrt.calibration.cal_cache_file", "gen_trt_engine.onnx_file"),
        ("export", "export.onnx_file", "export.checkpoint"),
    ],
)
def test_a_file_to_write_cannot_be_a_file_to_read_or_another_one_to_write(command, one, other, tmp_path):
    data: dict = {"gen_trt_engine": {"onnx_file": "a.onnx", "trt_engine": "a.engine"}, "results_dir": str(tmp_path)}
    data["export"] = {"onnx_file": "b.onnx", "checkpoint": "b.pth"}
    spec_from_dict(data, command)
    for name, value in ((one, "folder/../same.file"), (other, "./same.file")):
        *sections, leaf = name.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    with pytest.raises(SpecError, match="the same file") as caught:
        spec_from_dict(data, command)
    assert one in str(caught.value) and other in str(caught.value)


@pytest.mark.parametrize("internal", [False, True])
def test_names_of_images_lead_nowhere_else(internal, project, untouched):
    folder = project.folder / "images"
    names = ["..png", "...png", "-rf.png", "a\nb.png", "..\\..\\up.png", "con.png", "ü‮.png", "x" * 200 + ".png"]
    for name in names:
        Image.new("RGB", (32, 32)).save(folder / name, format="PNG")
    (folder / "inner").mkdir()
    (folder / "inner" / "link.png").symlink_to(project.image(1))
    weights = project.checkpoint(lively=True)
    untouched()
    overrides = [f"inference.is_internal={internal}", "inference.conf_threshold=0.01"]
    assert project.run("inference", f"inference.checkpoint={weights}", *overrides) == 0
    written = {path for path in (project.folder / "results").rglob("*.txt") if path.parent.name != "inference"}
    assert len(written) >= 6 + len(names) - 2  # hidden files are passed over


@pytest.mark.parametrize(
    "paths",
    [
        ["/data/../etc/x.png", "/etc/x.png"],
        ["../x.png", "../../x.png", "x.png"],
        ["a/..png", "b/..png"],
        ["/x.png", "/a/x.png", "/a/b/x.png"],
        ["a/b.c/x.png", "a/b_c/x.png", "a/x.png"],
    ],
)
def test_output_names_are_relative_and_never_go_up(paths):
    stems = output_stems(paths)
    assert len({stem.lower() for stem in stems.values()}) == len(paths)
    for stem in stems.values():
        assert not os.path.isabs(stem) and ".." not in Path(stem).parts and stem


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "..\\..\\x.png", "a/../../x.png", "C:\\x.png"])
def test_file_names_in_labels_cannot_leave_the_folder_of_images(name, project, capsys, untouched):
    project.coco["images"][0]["file_name"] = name
    project.write()
    untouched()
    assert project.run("train") == 2
    assert "relative to the image directory" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["../../evil", "a\nb c"])
def test_names_of_classes_are_text_in_files_and_never_part_of_a_path(name, project, untouched):
    project.coco["categories"][0]["name"] = name
    project.write()
    weights = project.checkpoint(lively=True)
    payload = torch.load(weights, weights_only=True)
    payload["rtdetr_tool"]["classes"][0]["name"] = name
    save_checkpoint(payload, weights)
    untouched()
    overrides = ["inference.conf_threshold=0.01"]
    assert project.run("inference", f"inference.checkpoint={weights}", *overrides) == 0
    files = (project.folder / "results").rglob("labels/*.txt")
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert lines and all(len(line.split()) == 16 for line in lines)


@pytest.mark.parametrize("file", ["log.txt", "status.json", "experiment.yaml", "results.json"])
def test_a_planted_link_in_the_results_folder_is_not_followed(file, project, capsys, untouched):
    victim = project.folder / "victim"
    victim.write_text("mine")
    folder = project.folder / "results" / "evaluate"
    folder.mkdir(parents=True)
    (folder / file).symlink_to(victim)
    weights = project.checkpoint()
    untouched()
    assert project.run("evaluate", f"evaluate.checkpoint={weights}") in (0, 2)
    assert victim.read_text() == "mine"
    assert "Traceback" not in capsys.readouterr().err


def test_the_results_folder_itself_may_be_a_link(project):
    (project.folder / "large disk").mkdir()
    (project.folder / "results").symlink_to("large disk")
    assert project.run("evaluate", f"evaluate.checkpoint={project.checkpoint()}") == 0
    assert (project.folder / "large disk" / "evaluate" / "status.json").exists()
