"""`rtdetr default_specs`: print a command's commented default spec, or its JSON Schema."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rtdetr_tool.errors import UserError
from rtdetr_tool.json_output import command_output
from rtdetr_tool.log import drop_stdout, showable
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.default_spec import default_data, default_yaml, whole_yaml
from rtdetr_tool.spec.json_schema import json_schema
from rtdetr_tool.spec.launcher import whole_spec_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.add_argument(
        "arguments",
        metavar="command",
        nargs="+",
        help=f"{', '.join(WITH_SPEC)}; or TAO's `module_name=rtdetr results_dir=DIR`, which writes the fields of all "
        "commands to DIR/experiment.yaml",
    )
    command.completer = lambda **_: [*WITH_SPEC, "module_name=rtdetr"]  # type: ignore[attr-defined]  # for argcomplete
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of the terminal")
    parser.add_argument("--schema", action="store_true", help="the JSON Schema instead of the default values")
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def main(options: argparse.Namespace) -> int:
    if "=" in options.arguments[0]:
        path = whole_spec_path(options.arguments)
        _write(path, whole_yaml())
        print(showable(f"Wrote {path}"))
        return 0
    command = options.arguments[0]
    if len(options.arguments) > 1 or command not in WITH_SPEC:
        raise UserError(
            f"'{' '.join(options.arguments)}' is invalid; expected one of {', '.join(WITH_SPEC)}, or TAO's "
            "module_name=rtdetr results_dir=DIR"
        )
    output = command_output()
    if options.schema:
        output.results = json_schema(command)
    elif options.json:
        output.results = default_data(command)
    text = default_yaml(command) if output.results is None else json.dumps(output.results, indent=2) + "\n"
    if options.output is None:
        output.bare = True
        if not options.json:
            _print(text)
        return 0
    path = Path(options.output)
    if path.exists() and not options.force:
        raise UserError(f"{path} exists; use --force to overwrite it")
    _write(path, text)
    return 0


def _write(path: Path, text: str) -> None:
    from rtdetr_tool.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _print(text: str) -> None:
    """Print to stdout; UserError if that fails."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # the reader has closed the pipe
        drop_stdout()
    except OSError as error:
        drop_stdout()
        raise UserError(f"the output cannot be written: {error.strerror}") from None
