"""The command line: help, invalid input, exit codes, and commands without torch."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rtdetr_tool import cli
from rtdetr_tool.spec import load_spec

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "torchvision", "pytorch_lightning", "lightning", "timm", "onnxruntime", "requests", "nvidia_tao_core",
)  # fmt: skip


def run(*arguments, **keywords) -> subprocess.CompletedProcess:
    """Run `rtdetr` in a separate process."""
    command = [sys.executable, "-m", "rtdetr_tool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, **keywords)


@pytest.fixture
def wrong_spec(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("train:\n  num_epoch: 3\n  precision: fp64\n")
    return path


class TestHelp:
    def test_the_overview_names_every_command_and_what_it_does(self, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(["--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        for command, row in cli.COMMANDS.items():
            assert f"  {command}" in text
            assert row.summary in text

    @pytest.mark.parametrize("command", cli.COMMANDS)
    def test_the_help_of_a_command_ends_with_a_worked_example(self, command, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "-h"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert text.rstrip().endswith(cli.COMMANDS[command].example)
        assert text.count("example:") == 1

    @pytest.mark.parametrize("command", [name for name, row in cli.COMMANDS.items() if row.has_spec])
    def test_the_worked_examples_are_right(self, command, monkeypatch, tmp_path):
        program, name, *rest = cli.COMMANDS[command].example.split()
        assert (program, name) == ("rtdetr", command)
        options = cli.build_command_parser(command).parse_intermixed_args(rest)
        monkeypatch.chdir(ROOT)
        load_spec(options.experiment_spec_file, options.overrides, command)

    def test_without_arguments_it_shows_the_help_and_fails(self, capsys):
        assert cli.main([]) == 2
        assert "commands:" in capsys.readouterr().out

    def test_the_version_is_that_of_the_package(self, capsys):
        import rtdetr_tool

        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"rtdetr {rtdetr_tool.__version__}\n"

    def test_the_package_offers_nothing_else(self):
        import rtdetr_tool

        with pytest.raises(AttributeError, match="nothing_of_this_name"):
            _ = rtdetr_tool.nothing_of_this_name


class TestUnknownCommands:
    def test_a_misspelt_command_is_answered_with_the_nearest(self, capsys):
        assert cli.main(["trian", "-e", "x.yaml"]) == 2
        assert "did you mean 'train'?" in capsys.readouterr().err

    def test_a_stranger_is_answered_with_the_list(self, capsys):
        assert cli.main(["zzz"]) == 2
        assert "command 'zzz' is invalid; expected one of train, evaluate, inference" in capsys.readouterr().err

    def test_every_command_has_its_module(self):
        for command, row in cli.COMMANDS.items():
            assert row.module == f"rtdetr_tool.commands.{command}"
            assert (ROOT / "rtdetr_tool" / "commands" / f"{command}.py").is_file()


class TestWrongInput:
    def test_a_wrong_spec_ends_with_2_and_one_message_without_a_traceback(self, wrong_spec):
        result = run("train", "-e", wrong_spec, "model.nheads=7")
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.splitlines()[0] == f"Error: 5 problems in {wrong_spec}:"
        assert "did you mean 'train.num_epochs'?" in result.stderr
        assert "expected one of bf16, fp32, fp16" in result.stderr
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("train: [", "not valid YAML, line"),
            ("", "the file is empty"),
            ("- a\n- b\n", "expected a mapping of sections, but got list"),
            ("a: 1\na: 2\n", "duplicate key a"),
        ],
    )
    def test_a_file_that_is_no_spec_is_one_clear_message(self, tmp_path, content, words, capsys):
        path = tmp_path / "spec.yaml"
        path.write_text(content)
        assert cli.main(["train", "-e", str(path)]) == 2
        assert words in capsys.readouterr().err

    def test_a_missing_file_is_named(self, tmp_path, capsys):
        assert cli.main(["evaluate", "-e", str(tmp_path / "none.yaml")]) == 2
        assert "none.yaml:\n  - the file does not exist" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments", [["train"], ["train", "-e"], ["train", "-e", "x", "--epochs", "3"], ["--fast"]]
    )
    def test_wrong_options_end_with_2(self, arguments, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
        assert "error:" in capsys.readouterr().err

    def test_a_fault_of_ours_ends_with_1_and_says_where_the_traceback_is(self, monkeypatch, capsys, tmp_path):
        def broken(*_):
            raise ZeroDivisionError("a fault")

        monkeypatch.setattr("rtdetr_tool.spec.read_spec", broken)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert cli.main(["train", "-e", "x.yaml"]) == 1
        message = capsys.readouterr().err
        assert message.startswith("Failed: ZeroDivisionError: a fault. The traceback is in ")
        assert "in broken" in Path(message.strip().rpartition(" ")[2].rstrip(".")).read_text()

    def test_an_interrupt_before_the_run_ends_with_130(self, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("rtdetr_tool.spec.read_spec", interrupted)
        assert cli.main(["train", "-e", "x.yaml"]) == 130


class TestResultsDirOption:
    @pytest.mark.parametrize(
        "folder",
        ["/plain", "with space", "a'b", 'a"b', "a,b=[c]{d}", "back\\slash", "end\\", "\\'", "$x%y@z", "ünï", "~/x"],
    )
    def test_every_folder_name_arrives_as_it_is(self, folder, monkeypatch, tmp_path):
        seen = []
        monkeypatch.setattr("rtdetr_tool.commands.session.run_session", lambda loaded, *_: seen.append(loaded) or 0)
        spec = tmp_path / "spec.yaml"
        spec.write_text(
            "dataset:\n"
            "  train_data_sources: {image_dir: a, json_file: b}\n"
            "  val_data_sources: {image_dir: a, json_file: b}\n"
        )
        assert cli.main(["train", "-e", str(spec), "-r", folder, "train.seed=3"]) == 0
        assert seen[0].spec.results_dir == folder
        assert seen[0].spec.train.results_dir == str(Path(folder) / "train")
        assert seen[0].spec.train.seed == 3

    def test_overrides_may_stand_anywhere(self, monkeypatch, tmp_path):
        seen = []
        monkeypatch.setattr("rtdetr_tool.commands.session.run_session", lambda loaded, *_: seen.append(loaded) or 0)
        spec = tmp_path / "spec.yaml"
        spec.write_text("dataset: {infer_data_sources: {image_dir: a}}\n")
        arguments = [
            "inference",
            "inference.checkpoint=x.pth",
            "-e",
            str(spec),
            "+inference.conf_threshold=0.2",
            "-r",
            "out",
        ]
        assert cli.main(arguments) == 0
        assert seen[0].spec.inference.checkpoint == "x.pth"
        assert seen[0].spec.inference.conf_threshold == 0.2


class TestSpeed:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--help"],
            ["--version"],
            ["train", "--help"],
            ["default_specs", "train"],
            ["default_specs", "train", "--schema"],
            ["trian"],
            ["train", "-e", "WRONG"],
            ["train", "-e", "WRONG", "train.seed=1"],
        ],
        ids=" ".join,
    )
    def test_no_torch_is_imported_and_half_a_second_is_enough(self, arguments, wrong_spec, tmp_path):
        arguments = [str(wrong_spec) if argument == "WRONG" else argument for argument in arguments]
        report = tmp_path / "modules.json"
        code = (
            "import atexit, json, sys\n"
            f"atexit.register(lambda: open({str(report)!r}, 'w').write(json.dumps(sorted(sys.modules))))\n"
            "from rtdetr_tool.cli import main\n"
            f"sys.exit(main({arguments!r}))\n"
        )
        seconds = []
        for _ in range(3):  # CPU time, so that other programs do not matter; the best of three
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=600)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        loaded = {name.partition(".")[0] for name in json.loads(report.read_text())}
        assert not loaded.intersection(HEAVY)
        assert min(seconds) < 0.5, seconds


def test_help_that_nobody_reads_to_the_end_is_no_error():
    command = f"{sys.executable} -m rtdetr_tool default_specs train --schema | head -c 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0
    assert result.stderr == ""


def test_the_script_and_the_module_are_the_same_program():
    script = Path(sys.executable).parent / "rtdetr"
    if not os.access(script, os.X_OK):
        pytest.skip("the package is not installed in this environment")
    by_script = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert by_script.stdout == run("--help").stdout
