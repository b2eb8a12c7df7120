"""`rtdetr train`: train a detector on the datasets of a spec."""

from __future__ import annotations

from rtdetr_tool.json_output import command_output
from rtdetr_tool.spec import LoadedSpec


def run(loaded: LoadedSpec) -> None:
    from rtdetr_tool.training.fit import fit

    command_output().results = fit(loaded.spec).to_dict()
