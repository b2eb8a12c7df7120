"""The `distill` section: train a student with a teacher. Its fields, what bindings can name, and checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rtdetr_tool.spec.fields import MISSING, field
from rtdetr_tool.spec.model import ModelSpec

# Outputs of a detector that a binding of `distill` can name in addition to modules of the network. A prediction can
# only be bound to the same prediction; IOU is defined for some outputs only.
FEATURES = ("srcs", "dsrcs", "bb_feats")
PREDICTIONS = ("pred_logits", "pred_boxes")
BINDING_CRITERIA: dict[str, tuple[str, ...]] = {
    "srcs": ("L1", "L2", "KL", "IOU"),
    "dsrcs": ("L1", "L2", "KL", "IOU"),
    "pred_logits": ("L1", "L2", "KL"),
    "pred_boxes": ("L1", "L2", "IOU"),
}
OTHER_CRITERIA = ("L1", "L2", "KL")  # of bb_feats and every other module

CRITERIA = (*OTHER_CRITERIA, "IOU")
_OUTPUTS = ", ".join((*FEATURES, *PREDICTIONS))

# The binding that TAO's documentation recommends.
RECOMMENDED_BINDING = {
    "teacher_module_name": "srcs", "student_module_name": "srcs", "criterion": "IOU", "weight": 20.0,
}  # fmt: skip


@dataclass(frozen=True)
class BindingSpec:
    """A pair of teacher and student outputs, and its loss."""

    teacher_module_name: str = field(MISSING, f"Module of the teacher, or {_OUTPUTS}.")
    student_module_name: str = field(MISSING, f"Module of the student, or {_OUTPUTS}.")
    criterion: str = field(MISSING, "Loss of the pair.", options=CRITERIA)
    weight: float = field(1.0, "Weight of this binding.")


@dataclass(frozen=True)
class DistillSpec:
    """Train a student with a teacher."""

    teacher: ModelSpec = field(ModelSpec, "The teacher's model section.")
    pretrained_teacher_model_path: str | None = field(MISSING, "Weights of the teacher.", path="read")
    bindings: list[BindingSpec] = field([], "Pairs of teacher and student outputs, and their losses.")
    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/distill.", path="results"
    )
    align: str = field(
        "project",
        "If shapes differ: project = use a learned 1x1 projection and interpolation; error = refuse.",
        options=("project", "error"),
        origin="ours",
    )
    temperature: float = field(1.0, "KL: both logits are divided by it before the softmax.", above=0.0, origin="ours")
    warmup_epochs: int = field(
        0,
        "Number of epochs over which the weight of the distillation loss increases linearly to its full value.",
        min=0,
        origin="ours",
    )
    decay_from_epoch: int | None = field(
        None,
        "Epoch (counted from 0) from which the weight of the distillation loss decreases linearly, to final_factor in "
        "the last epoch.",
        min=0,
        origin="ours",
    )
    final_factor: float = field(
        0.0,
        "Share of the weight in the last epoch, with decay_from_epoch; at 0 the teacher is not run in that epoch.",
        min=0.0,
        max=1.0,
        origin="ours",
    )


ENDS = ("teacher_module_name", "student_module_name")
_WITH_IOU = [name for name, criteria in BINDING_CRITERIA.items() if "IOU" in criteria]


def distill_problems(distill: DistillSpec, num_epochs: int) -> Iterator[str]:
    """Invalid bindings, and a decay that would never begin."""
    for index, binding in enumerate(distill.bindings):
        name = f"distill.bindings[{index}]"
        teacher, student = (getattr(binding, end) for end in ENDS)
        if {teacher, student} & set(PREDICTIONS) and teacher != student:
            yield f"{name}: {teacher} cannot be bound to the student's {student}; expected the same prediction of both"
        for end in dict.fromkeys((teacher, student)):
            allowed = BINDING_CRITERIA.get(end, OTHER_CRITERIA)
            if end not in (MISSING, "") and binding.criterion not in (*allowed, MISSING, ""):
                more = f" (IOU is supported for {', '.join(_WITH_IOU)})" if binding.criterion == "IOU" else ""
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
    """Missing values that `rtdetr distill` requires."""
    if not distill.bindings:
        yield (
            "distill.bindings: [] is invalid; expected at least one pair of outputs, such as "
            "{teacher_module_name: srcs, student_module_name: srcs, criterion: IOU, weight: 20}"
        )
    for index, binding in enumerate(distill.bindings):
        for key in (*ENDS, "criterion"):
            if getattr(binding, key) in (None, MISSING, ""):
                yield f"distill.bindings[{index}].{key}: required, but not set"
