"""`rtdetr completion`: what a shell runs to complete commands, spec fields and their values."""

from __future__ import annotations

import argparse

from rtdetr_tool.json_output import command_output

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=SHELLS,
        help='for bash and zsh, add `eval "$(rtdetr completion bash)"` (or zsh) to the shell\'s start file; for fish, '
        "run `rtdetr completion fish | source`",
    )


def main(options: argparse.Namespace) -> int:
    from rtdetr_tool.completion import shell_code

    code = shell_code(options.shell)
    command_output().results = {"shell": options.shell, "code": code}
    if not options.json:
        print(code)
    return 0
