"""Checks between the fields of the `distill` section."""

from __future__ import annotations

from collections.abc import Iterator

from rtdetr_tool.spec.distill import DistillSpec
from rtdetr_tool.spec.fields import MISSING
from rtdetr_tool.spec.tables import BINDING_CRITERIA, OTHER_CRITERIA, PREDICTIONS

ENDS = ("teacher_module_name", "student_module_name")
_WITH_IOU = [name for name, criteria in BINDING_CRITERIA.items() if "IOU" in criteria]


def distill_problems(distill: DistillSpec, num_epochs: int) -> Iterator[str]:
    """Bindings that have no meaning, and a decay that would never begin."""
    for index, binding in enumerate(distill.bindings):
        name = f"distill.bindings[{index}]"
        teacher, student = (getattr(binding, end) for end in ENDS)
        if {teacher, student} & set(PREDICTIONS) and teacher != student:
            yield f"{name}: {teacher} of the teacher and {student} of the student; expected the same prediction of both"
        for end in dict.fromkeys((teacher, student)):
            allowed = BINDING_CRITERIA.get(end, OTHER_CRITERIA)
            if end not in (MISSING, "") and binding.criterion not in (*allowed, MISSING, ""):
                more = f" (IOU goes with {', '.join(_WITH_IOU)})" if binding.criterion == "IOU" else ""
                text = f"{binding.criterion} is invalid; expected, with {end}, one of {', '.join(allowed)}{more}"
                yield f"{name}.criterion: {text}"
        if binding.weight < 0:
            yield f"{name}.weight: {binding.weight} is invalid; expected at least 0"
    if distill.decay_from_epoch is not None and distill.decay_from_epoch >= num_epochs:
        yield (
            f"distill.decay_from_epoch: {distill.decay_from_epoch} is invalid; expected below train.num_epochs "
            f"({num_epochs})"
        )


def missing_bindings(distill: DistillSpec) -> Iterator[str]:
    """What `rtdetr distill` cannot do without."""
    if not distill.bindings:
        yield (
            "distill.bindings: [] is invalid; expected at least one pair of outputs, such as "
            "{teacher_module_name: srcs, student_module_name: srcs, criterion: IOU, weight: 20}"
        )
    for index, binding in enumerate(distill.bindings):
        for field in (*ENDS, "criterion"):
            if getattr(binding, field) in (None, MISSING, ""):
                yield f"distill.bindings[{index}].{field}: required, but not set"
