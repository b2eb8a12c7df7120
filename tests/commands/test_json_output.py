"""`--json` prints one document and `--quiet` only warnings, whatever the command."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from rtdetr_tool.cli import main
from rtdetr_tool.json_output import CommandOutput, write_document
from rtdetr_tool.log import console
from rtdetr_tool.spec.commands import COMMANDS

ROOT = Path(__file__).parents[2]
ENVELOPE = {"command", "exit_code", "results_dir", "results", "metrics", "files"}
BARE = {"models": list, "default_specs": dict}  # commands that print what they list


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_project):
    """A project with weights, an ONNX file and a run."""
    project = make_project(tmp_path_factory.mktemp("json"))
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 1, "report": False, "tensorboard": False}
    project.spec["dataset"]["batch_size"] = 6
    project.spec["model"]["dec_layers"] = 1
    project.write()
    weights = project.checkpoint(lively=True)
    assert project.run("export", f"export.checkpoint={weights}", f"export.onnx_file={project.folder}/m.onnx") == 0
    dataset = project.folder / "dataset" / "train"
    for split in ("train", "valid"):
        folder = project.folder / "dataset" / split
        folder.mkdir(parents=True)
        (folder / "_annotations.coco.json").write_text(json.dumps(project.coco))
        for number in range(1, 7):
            (folder / f"{number}.png").write_bytes(project.image(number).read_bytes())
    assert dataset.is_dir()
    return project


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def end_when_ready(port: str) -> None:
    """Send SIGTERM to this process as soon as its server answers."""
    for _ in range(600):
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"http://127.0.0.1:{port}/health/ready", timeout=60).status_code == 200:
                os.kill(os.getpid(), signal.SIGTERM)
                return
        time.sleep(0.1)


def arguments_of(command: str, project) -> list[str]:
    """Arguments with which a command is done in about a second."""
    folder, weights = project.folder, project.folder / "model_epoch_000.pth"
    spec = ["-e", str(project.spec_file)]
    return {
        "train": [*spec, f"train.results_dir={folder}/trained"],
        "evaluate": [*spec, f"evaluate.checkpoint={weights}", "evaluate.report=false"],
        "inference": [*spec, f"inference.checkpoint={weights}"],
        "serve": [*spec, f"serve.checkpoint={weights}", f"serve.port={free_port()}"],
        "export": [*spec, f"export.checkpoint={weights}", f"export.onnx_file={folder}/n.onnx", "export.overwrite=true"],
        "gen_trt_engine": [
            *spec, f"gen_trt_engine.onnx_file={folder}/m.onnx", "gen_trt_engine.trt_engine=null",
            "gen_trt_engine.backend=none", "gen_trt_engine.score_images=2",
        ],
        "distill": [
            *spec, f"distill.pretrained_teacher_model_path={weights}",
            "distill.bindings=[{teacher_module_name: pred_logits, student_module_name: pred_logits, criterion: KL, "
            "weight: 1}]",
        ],
        "automl": [*spec, "automl.trials=1", "automl.fields=[train.optim.lr]"],
        "quantize": [
            *spec, f"quantize.model_path={folder}/m.onnx", "quantize.mode=weight_only_ptq", "quantize.score_images=2",
            "quantize.max_score_drop=1",
        ],
        "benchmark": [
            *spec, f"benchmark.checkpoint={folder}/m.onnx", "benchmark.seconds=0.01", "benchmark.warmup=0",
            "benchmark.batch_sizes=[1]", "benchmark.decoder_layers=[]", "benchmark.score=false",
        ],
        "validate_data": spec,
        "convert": [str(weights), str(folder / "converted.safetensors"), "--force"],
        "triton": [f"{folder}/m.onnx", f"{folder}/models", "--force"],
        "push": [str(weights), "owner/detector", "--folder", f"{folder}/shared", "--force"],
        "init": [str(folder / "dataset"), "-o", str(folder / "new.yaml"), "--force"],
        "report": [str(folder / "results"), "-o", str(folder / "compared")],
        "models": [],
        "download": ["no-such-model"],
        "completion": ["bash"],
        "default_specs": ["train"],
    }[command]  # fmt: skip


SLOW = ("distill", "automl", "benchmark", "quantize", "gen_trt_engine")  # several seconds


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in COMMANDS]
)
def test_every_command_prints_one_document(command, prepared, capsys):
    if command == "report":
        prepared.run("evaluate", f"evaluate.checkpoint={prepared.folder}/model_epoch_000.pth", "evaluate.report=false")
        capsys.readouterr()
    arguments = arguments_of(command, prepared)
    if command == "serve":
        threading.Thread(target=end_when_ready, args=(arguments[-1].partition("=")[2],)).start()
    code = main([command, *arguments, "--json"])
    shown = capsys.readouterr()
    content = json.loads(shown.out)
    expected = 2 if command == "download" else 0
    assert code == expected, shown.err
    if command in BARE:
        assert isinstance(content, BARE[command]) and content
        return
    assert set(content) == (ENVELOPE | {"error"} if expected else ENVELOPE)
    assert (content["command"], content["exit_code"]) == (command, code)
    assert all(Path(name).exists() for name in content["files"])
    if COMMANDS[command].has_spec:
        assert f"{content['results_dir']}/experiment.yaml" in content["files"]
    if command not in ("download", "convert", "completion"):
        assert content["results"]


def test_results_and_metrics_are_those_of_the_files(prepared, capsys):
    main(["evaluate", *arguments_of("evaluate", prepared), "--json"])
    content = json.loads(capsys.readouterr().out)
    folder = Path(content["results_dir"])
    assert content["results"] == json.loads((folder / "results.json").read_text())
    assert content["metrics"]["test_mAP"] == content["results"]["mAP"]
    assert f"{folder}/predictions.json" in content["files"]
    main(["export", *arguments_of("export", prepared), "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["results"]["file"] == f"{prepared.folder}/n.onnx"
    assert content["results"]["file"] in content["files"]


SPEC_COMMANDS = [name for name, row in COMMANDS.items() if row.has_spec]
WRONG = {
    "convert": ["missing.pth", "out.pth"],
    "init": ["missing"],
    "report": ["missing"],
    "download": ["missing"],
    "completion": ["tcsh"],
    "default_specs": ["missing"],
    "models": ["missing"],
    **{name: ["-e", "missing.yaml"] for name in SPEC_COMMANDS},
}


@pytest.mark.parametrize("command", WRONG)
def test_every_error_is_a_document_with_exit_code_2(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main([command, *WRONG[command], "--json"])
    shown = capsys.readouterr()
    content = json.loads(shown.out)
    assert (code, content["exit_code"], content["command"]) == (2, 2, command)
    assert content["error"] and content["error"].splitlines()[0] in shown.err
    assert "Traceback" not in shown.err


def test_an_error_inside_a_session_is_in_the_document_and_a_later_command_does_not_have_it(prepared, capsys):
    spec = ["-e", str(prepared.spec_file)]
    assert main(["evaluate", *spec, "evaluate.checkpoint=/missing.pth", "--json"]) == 2
    content = json.loads(capsys.readouterr().out)
    assert "/missing.pth" in content["error"] and content["results"] is None
    assert main(["completion", "zsh", "--json"]) == 0
    assert "error" not in json.loads(capsys.readouterr().out)


def test_a_fault_is_a_document_with_exit_code_1(prepared, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("rtdetr_tool.commands.evaluate.open_for", broken)
    assert main(["evaluate", *arguments_of("evaluate", prepared), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == 1 and "ZeroDivisionError: a fault" in content["error"]


def test_unknown_commands_are_documents_too(capsys):
    assert main(["trian", "--json"]) == 2
    assert "did you mean 'train'?" in json.loads(capsys.readouterr().out)["error"]


def test_output_of_libraries_and_child_processes_does_not_reach_stdout():
    code = (
        "import os, sys, rtdetr_tool.commands.completion as command\n"
        "def main(options):\n"
        "    print('python'); sys.stdout.flush(); os.write(1, b'native\\n'); os.system('echo child'); return 0\n"
        "command.main = main\n"
        "sys.argv = ['rtdetr', 'completion', 'bash', '--json']\n"
        "from rtdetr_tool.cli import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "completion"
    assert [line in done.stderr for line in ("python", "native", "child")] == [True] * 3


def test_a_document_that_cannot_be_printed_is_an_error():
    command = f"{sys.executable} -m rtdetr_tool completion bash --json > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "Error: the output cannot be written: No space left on device\n")


class Warnings(logging.Handler):
    """Collects the package's warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.parametrize("command", ["evaluate", "validate_data", "convert", "init", "report", "train", "export"])
def test_quiet_shows_only_warnings_and_errors(command, prepared, capsys):
    if command == "report":
        prepared.run("evaluate", f"evaluate.checkpoint={prepared.folder}/model_epoch_000.pth", "evaluate.report=false")
    capsys.readouterr()
    handler, package = Warnings(), logging.getLogger("rtdetr_tool")
    package.addHandler(handler)
    try:
        assert main([command, *arguments_of(command, prepared), "--quiet"]) == 0
    finally:
        package.removeHandler(handler)
    assert capsys.readouterr() == ("", "".join(f"{message}\n" for message in handler.messages))
    package.info("loud again")
    assert capsys.readouterr().err == "loud again\n"


def test_quiet_shows_warnings_and_errors(prepared, capsys):
    spec = ["-e", str(prepared.spec_file)]
    assert main(["evaluate", *spec, "evaluate.checkpoint=/missing.pth", "--quiet"]) == 2
    assert "/missing.pth" in capsys.readouterr().err
    assert not console().quiet


class TestDocument:
    def test_numbers_that_json_does_not_have_are_null_and_secrets_are_masked(self, capsys):
        write_document({"a": float("nan"), "b": [1, True, Path("x")], "url": "http://me:password@host/x"}, sys.stdout)
        assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, True, "x"], "url": "http://***@host/x"}

    def test_a_folder_with_many_files_is_one_entry(self, tmp_path):
        output = CommandOutput()
        (tmp_path / "many").mkdir()
        for number in range(21):
            (tmp_path / "many" / f"{number}.txt").touch()
            output.add_file(tmp_path / "many" / f"{number}.txt")
        (tmp_path / "one.txt").touch()
        for name in ("one.txt", "removed.txt", "status.json"):
            output.add_file(tmp_path / name)
        assert output.files() == [f"{tmp_path}/many/", f"{tmp_path}/one.txt"]


def test_the_page_describes_the_document_and_the_results_of_every_command():
    page = (ROOT / "docs" / "scripting.md").read_text(encoding="utf-8")
    keys, _, rest = page.partition("| command | `results` |\n")
    results = rest.partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE)) == {*ENVELOPE, "error"}
    first_cells = "".join(line.split("|")[1] for line in results.splitlines())
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(COMMANDS) - set(BARE)
