"""Encoder and decoder of a student that start from the teacher's (`model.load_teacher_enc_dec`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rtdetr_tool.checkpoints.class_rows import Classes, some, with_class_rows

logger = logging.getLogger(__name__)

def copy_fitting(student: nn.Module, weights: Mapping[str, Tensor], classes: Classes, teacher_classes: Classes) -> None:
    """Copy tensors of the same name and shape into the student's encoder and decoder, and log what was done.

    Rows of class tensors are copied by the names of the classes.
    """
    own = {name: tensor for name, tensor in student.state_dict().items() if _in_encoder_or_decoder(name)}
    arranged, rows = with_class_rows(weights, own, classes, teacher_classes, "the teacher")
    fitting = [name for name, tensor in own.items() if name in arranged and arranged[name].shape == tensor.shape]
    other = [name for name in own if name in arranged and name not in fitting]
    absent = [name for name in own if name not in weights]
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(arranged[name])
    lines = [f"Copied {len(fitting)} of {len(own)} tensors of encoder and decoder from the teacher."]
    lines += rows.lines("the teacher") if rows else []
    lines += [f"Another shape there: {some(other)}."] if other else []
    lines += [f"Not there: {some(absent)}."] if absent else []
    logger.log(logging.INFO if rows is None or rows.complete else logging.WARNING, "%s", " ".join(lines))


def weights_to_copy(teacher: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in teacher.state_dict().items() if _in_encoder_or_decoder(name)}


def _in_encoder_or_decoder(name: str) -> bool:
    return name.startswith(("encoder.", "decoder."))
