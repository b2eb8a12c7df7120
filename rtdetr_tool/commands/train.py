"""`rtdetr train`: fit a detector on the data sets of a spec."""

from __future__ import annotations

from rtdetr_tool.spec import LoadedSpec


def run(loaded: LoadedSpec) -> None:
    from rtdetr_tool.training.fit import fit

    fit(loaded.spec)
