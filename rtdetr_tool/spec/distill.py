"""The `distill` section: train a student with a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import MISSING, field
from rtdetr_tool.spec.model import ModelSpec


@dataclass(frozen=True)
class BindingSpec:
    """One pair of teacher and student outputs to bring together."""

    teacher_module_name: str = field(
        MISSING, "Module of the teacher, or srcs, dsrcs, bb_feats, pred_logits, pred_boxes."
    )
    student_module_name: str = field(
        MISSING, "Module of the student, or srcs, dsrcs, bb_feats, pred_logits, pred_boxes."
    )
    criterion: str = field(MISSING, "How they are compared.", options=("L1", "L2", "KL", "IOU"))
    weight: float = field(1.0, "Weight of this binding.")


@dataclass(frozen=True)
class DistillSpec:
    """Train a student with a teacher."""

    teacher: ModelSpec = field(ModelSpec, "The teacher's model section.")
    pretrained_teacher_model_path: str | None = field(MISSING, "Weights of the teacher.", path="read")
    bindings: list[BindingSpec] = field([], "Pairs of outputs to bring together.")
    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/distill.", path="results"
    )
    align: str = field(
        "project",
        "Where shapes differ: project = a 1x1 projection learned with the student, and interpolation; error = refuse.",
        options=("project", "error"),
        origin="ours",
    )
    temperature: float = field(1.0, "KL: both sides are divided by it before the softmax.", above=0.0, origin="ours")
    warmup_epochs: int = field(
        0, "The distillation loss grows to its full weight, linearly, in this many epochs.", min=0, origin="ours"
    )
    decay_from_epoch: int | None = field(
        None,
        "From this epoch (counted from 0) on its weight shrinks linearly, to final_factor in the last epoch.",
        min=0,
        origin="ours",
    )
    final_factor: float = field(
        0.0,
        "Share of the weight in the last epoch, with decay_from_epoch; at 0 the teacher is not run.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
