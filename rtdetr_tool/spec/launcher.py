"""The command line of TAO's launcher: `-g N` (`--gpus N`) as overrides, and the arguments of its `default_specs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.spec.documents import read_file

# Command -> section with its number of GPUs; other commands use one.
_DEVICES = {"train": "train", "evaluate": "evaluate", "inference": "inference", "distill": "train"}


def gpu_overrides(command: str, gpus: int, spec_file: str, overrides: Sequence[str]) -> list[str]:
    """Overrides for `gpus` devices. `gpu_ids` of a spec file apply if there are as many; otherwise the first GPUs do.

    Raises SpecError for a command that uses one device.
    """
    section = _DEVICES.get(command)
    if section is None:
        if gpus == 1:
            return []
        raise SpecError(f"--gpus: {gpus} is not supported with `{command}`; use 1, since it runs on one device")
    fields = [f"{section}.num_gpus={gpus}"]
    if gpus > 0 and not any(override.lstrip("+").startswith(f"{section}.gpu_ids=") for override in overrides):
        given = read_file(Path(spec_file)).get(section)
        ids = given.get("gpu_ids") if isinstance(given, dict) else None
        if isinstance(ids, list) and len(ids) != gpus:
            fields.append(f"{section}.gpu_ids=[{','.join(map(str, range(gpus)))}]")
    return fields


def whole_spec_path(arguments: Sequence[str]) -> Path:
    """The file that TAO's `default_specs module_name=rtdetr results_dir=DIR` writes, replacing an older one."""
    values = dict(argument.partition("=")[::2] for argument in arguments)
    if values.keys() != {"module_name", "results_dir"} or not values["results_dir"]:
        raise UserError(
            f"'{' '.join(arguments)}' is invalid; expected module_name=rtdetr results_dir=DIR, or the name of a command"
        )
    if values["module_name"] != "rtdetr":
        raise UserError(f"module_name: '{values['module_name']}' is invalid; expected rtdetr")
    return Path(values["results_dir"]) / "experiment.yaml"
