"""Completion of commands, options, spec fields and values, requested like argcomplete's shell code."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rtdetr_tool import cli
from rtdetr_tool.completion import override_completions
from rtdetr_tool.spec.commands import COMMANDS


def completions(line: str, folder=None) -> list[str]:
    """The completions of a command line with the cursor at its end."""
    separator = "\x0b"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": separator,
        "_ARGCOMPLETE_SUPPRESS_SPACE": "0",
        "_ARGCOMPLETE_SHELL": "zsh",
        "_ARGCOMPLETE_STDOUT_FILENAME": os.devnull,
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    read, write = os.pipe()
    code = f"import os; os.dup2({write}, 8); from rtdetr_tool.cli import main; main()"
    environment.pop("_ARGCOMPLETE_STDOUT_FILENAME")
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, pass_fds=(write,), check=False)
    os.close(write)
    with os.fdopen(read) as stream:
        answers = [text for text in stream.read().split(separator) if text]
    return [re.split(r"(?<!\\):", text)[0].strip() for text in answers]  # zsh: `completion:description`


def test_commands_complete():
    result = {text.strip() for text in completions("rtdetr ")}
    assert set(COMMANDS) <= result
    assert {text.strip() for text in completions("rtdetr exp")} == {"export"}


def test_fields_of_the_sections_of_a_command_complete():
    assert "train.num_epochs=" in completions("rtdetr train -e spec.yaml train.num")
    assert completions("rtdetr evaluate -e spec.yaml train.num") == []
    assert set(completions("rtdetr train -e spec.yaml dataset.augmentation.train_sp")) == {
        "dataset.augmentation.train_spatial_size="
    }


def test_values_complete(tmp_path):
    (tmp_path / "model.pth").write_text("")
    assert [text.strip() for text in completions("rtdetr train -e s.yaml train.precision=b")] == [
        "train.precision=bf16"
    ]
    result = completions("rtdetr evaluate -e s.yaml evaluate.checkpoint=mod", tmp_path)
    assert [text.strip() for text in result] == ["evaluate.checkpoint=model.pth"]


def test_specs_complete_as_files(tmp_path):
    for name in ("spec.yaml", "spec.png", "spec.json"):
        (tmp_path / name).write_text("")
    result = {text.strip() for text in completions("rtdetr train -e sp", tmp_path)}
    assert result == {"spec.yaml", "spec.json"}


def test_every_option_of_a_field_completes_and_nothing_else():
    train = COMMANDS["train"]
    assert override_completions(train, "train.enable_ema=") == ["train.enable_ema=true", "train.enable_ema=false"]
    assert override_completions(train, "train.enable_ema=t") == ["train.enable_ema=true"]
    assert override_completions(train, "train.num_epochs=") == []
    assert override_completions(train, "nothing=") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_is_printed_and_valid(shell, capsys, tmp_path):
    assert cli.main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "rtdetr" in code
    if (program := shutil.which(shell)) is not None:
        (tmp_path / "code").write_text(code)
        run = subprocess.run([program, "-n", str(tmp_path / "code")], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def typed(shell: str, line: str, expected: str, folder, before: str = "") -> str:
    """What an interactive shell shows after `line` and a tab, once it has `expected`."""
    program = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    environment = {**os.environ, "TERM": "dumb", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = folder / "rtdetr"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rtdetr_tool "$@"\n')
    command.chmod(0o755)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(program[0], program, {**environment, "PYTHONPATH": str(Path(cli.__file__).parents[1])})
    shown, deadline = "", time.monotonic() + 120
    try:
        setup = f'{before}eval "$(rtdetr completion {shell})"; echo rea""dy\n'
        os.write(terminal, setup.encode())
        for text, answer in ((None, "ready"), (f"{line}\t", expected)):
            if text is not None:
                shown = ""
                os.write(terminal, text.encode())
            while answer not in shown and time.monotonic() < deadline:
                if select.select([terminal], [], [], 1)[0]:
                    shown += os.read(terminal, 4096).decode(errors="replace")
        return shown
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rtdetr quant", "rtdetr quantize "),
        ("rtdetr evaluate -e s.yaml --js", "--json "),
        ("rtdetr models --qu", "--quiet "),
        ("rtdetr train -e s.yaml train.num_ep", "train.num_epochs="),
        ("rtdetr automl -e s.yaml automl.sampler=gr", "automl.sampler=grid"),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_real_shell_completes(shell, line, expected, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"requires {shell}")
    before = "autoload -U compinit && compinit -u -D; " if shell == "zsh" else ""
    assert expected in typed(shell, line, expected, tmp_path, before)


@pytest.mark.parametrize("command", ["train", "models"])
def test_the_options_of_every_command_complete(command):
    assert completions(f"rtdetr {command} --js") == ["--json"]
    assert completions(f"rtdetr {command} --qu") == ["--quiet"]
