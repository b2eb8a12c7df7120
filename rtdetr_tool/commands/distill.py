"""`rtdetr distill`: train a student (`model`) with a teacher (`distill.teacher`) on the data sets of a spec."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.runtimes.open import OpenedDetector, open_detector
from rtdetr_tool.spec import LoadedSpec


def run(loaded: LoadedSpec) -> None:
    from rtdetr_tool.training.distill import DistillModule
    from rtdetr_tool.training.fit import fit

    teacher = open_teacher(loaded)
    spec = loaded.spec
    spec = replace(spec, train=replace(spec.train, results_dir=spec.distill.results_dir))
    build = partial(DistillModule, teacher=teacher.detector, teacher_classes=teacher.class_map)
    fit(spec, build_module=build)


def open_teacher(loaded: LoadedSpec) -> OpenedDetector:
    """The teacher: what the file says of itself, completed (and checked) by what the user says in `distill.teacher`."""
    section = loaded.spec.distill
    given = (loaded.explicit.get("distill") or {}).get("teacher") or {}
    as_model = LoadedSpec(replace(loaded.spec, model=section.teacher), {"model": given})
    try:
        return open_detector(section.pretrained_teacher_model_path, as_model)
    except CheckpointError as error:
        text = str(error)
        for before in ("  - ", "give "):
            text = text.replace(f"{before}model.", f"{before}distill.teacher.")
        raise CheckpointError(f"distill.pretrained_teacher_model_path: {text}") from error
