"""The command line: `rtdetr <command> -e spec.yaml [-r results_dir] [key=value ...]`.

Only the module of the selected command is imported; help, spec errors and `default_specs` do not import torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rtdetr_tool.errors import UserError
from rtdetr_tool.json_output import collecting_output, command_output, stdout_to_stderr, write_document
from rtdetr_tool.log import drop_failing_output, drop_stdout, set_quiet, showable
from rtdetr_tool.redaction import mask_secrets
from rtdetr_tool.spec.commands import COMMANDS
from rtdetr_tool.status import process_rank
from rtdetr_tool.version import package_version

if TYPE_CHECKING:
    from rtdetr_tool.spec import LoadedSpec


def build_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    overview = "\n".join(f"  {name:{width}}  {row.summary}" for name, row in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="rtdetr",
        usage="rtdetr <command> -e SPEC [-r RESULTS_DIR] [key=value ...]",
        description="Train, evaluate and deploy real-time detection transformers from one spec file.",
        epilog=f"commands:\n{overview}\n\n`rtdetr <command> -h` shows an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


class UsageError(UserError):
    """Invalid options; `exit` ends the program as argparse does."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser

    def exit(self) -> NoReturn:
        argparse.ArgumentParser.error(self.parser, str(self))


class _CommandParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(self, message)


def build_command_parser(command: str) -> argparse.ArgumentParser:
    row = COMMANDS[command]
    parser = _CommandParser(
        prog=f"rtdetr {command}",
        description=f"{row.summary[0].upper()}{row.summary[1:]}.",
        epilog=f"example:\n  {row.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if row.has_spec:
        _add_spec_arguments(parser)
    else:
        importlib.import_module(row.module).add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="show only warnings and errors")
    return parser


def _add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--experiment_spec_file", metavar="SPEC", required=True, help="spec file, YAML or JSON")
    parser.add_argument("-r", "--results_dir", metavar="DIR", help="root of all results; same as results_dir=DIR")
    parser.add_argument("-g", "--gpus", type=int, metavar="N", help="number of GPUs, as in TAO's launcher")
    parser.add_argument("-k", "--key", metavar="KEY", help="accepted for TAO's launcher; files are not encrypted")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values that override those of the file, in Hydra's grammar: train.num_epochs=20, "
        "'dataset.augmentation.multi_scales=[320,352]'",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `rtdetr`; returns the exit code. Without `arguments` it uses those of the process."""
    if "_ARGCOMPLETE" in os.environ:
        from rtdetr_tool.completion import complete

        complete(build_command_parser)
    program = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if program:
        drop_failing_output("stderr")
    if not arguments or arguments[0].startswith("-"):
        options = build_parser().parse_args(arguments)
        if options.version:
            print(f"rtdetr {package_version()}")
        else:
            build_parser().print_help()
        return 0 if options.version else 2
    with collecting_output() as output:
        if "--json" not in arguments:
            return _run(arguments, program)
        with stdout_to_stderr(program) as stream:
            code = _run(arguments, program)
            if process_rank() == 0:
                return _print_document(output.to_dict(arguments[0], code), stream, code)
            return code


def _run(arguments: Sequence[str], program: bool) -> int:
    """Run a command; messages go to stderr."""
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        return _fail(_unknown_command(command))
    try:
        options = build_command_parser(command).parse_intermixed_args(rest)
    except UsageError as error:
        if "--json" not in rest:
            error.exit()
        return _fail(str(error))
    set_quiet(options.quiet)
    try:
        if not COMMANDS[command].has_spec:
            return int(importlib.import_module(COMMANDS[command].module).main(options))
        if program:
            drop_failing_output("stdout")  # a session's results are files
        return run_command(command, options, last=program)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        command_output().error = "Interrupted."
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed the pipe
        drop_stdout()
        return 0
    except Exception as error:
        return _report_fault(error)
    finally:
        set_quiet(False)


def run_command(command: str, options: argparse.Namespace, last: bool = False) -> int:
    """Check the spec, then import the command and run it in a session; `last`: the process ends afterwards."""
    from rtdetr_tool.spec import read_spec
    from rtdetr_tool.spec.launcher import gpu_overrides

    overrides = list(options.overrides)
    if options.results_dir is not None:
        overrides.append(f"results_dir={quoted(options.results_dir)}")
    if options.key is not None:
        overrides.append(f"encryption_key={quoted(options.key)}")
    if options.gpus is not None:
        overrides += gpu_overrides(command, options.gpus, options.experiment_spec_file, overrides)
    loaded = read_spec(options.experiment_spec_file, overrides, command)
    from rtdetr_tool.commands.missing_inputs import check_inputs
    from rtdetr_tool.commands.session import run_session

    def run(loaded: LoadedSpec) -> int | None:
        check_inputs(loaded.spec, command)
        code: int | None = importlib.import_module(COMMANDS[command].module).run(loaded)
        return code

    return run_session(loaded, command, run, last)


def quoted(text: str) -> str:
    """A text of any characters, quoted for Hydra's grammar."""
    text = re.sub(r"(\\*)('|$)", lambda m: m.group(1) * 2 + ("\\'" if m.group(2) else ""), text)
    return f"'{text}'"


def _unknown_command(command: str) -> str:
    near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"command '{command}' is invalid; expected one of {', '.join(COMMANDS)}{hint}"


def _print_document(content: Any, stream: TextIO, code: int) -> int:
    """Print the document of `--json`; a document that cannot be printed is an error."""
    try:
        write_document(content, stream)
    except OSError as error:
        return _fail(f"the output cannot be written: {error.strerror}")
    return code


def _fail(message: str) -> int:
    command_output().error = message
    print(showable(f"Error: {message}"), file=sys.stderr)
    return 2


def _report_fault(error: Exception) -> int:
    """Report a failure before a run has a log file: one line, with the traceback in a separate file."""
    descriptor, path = tempfile.mkstemp(prefix="rtdetr-", suffix=".txt")
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(mask_secrets("".join(traceback.format_exception(error))))
    message = f"Failed: {type(error).__name__}: {error}. The traceback is in {path}."
    command_output().error = message.removeprefix("Failed: ")
    print(showable(message), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
