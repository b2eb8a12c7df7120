"""Compile the parts of a network with the same operators in every step (`train.compile`).

Backbone and encoder are compiled. The decoder is not: the number of denoising queries changes with the objects of a
batch, and deformable attention has kernels that are faster than those a compiler makes of `grid_sample`.

The first image size gets a graph of its own, and the first other size a graph for all sizes (measured with
`multi_scales`: two graphs for any number of sizes). Validation adds the graphs of eval mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.messages import first_line
from rtdetr_tool.models.detector import Detector

BACKEND = "inductor"


def compile_network(detector: Detector) -> None:
    """Compile the parts in place, when they first run. Their weights keep their names; copies are not compiled."""
    torch._dynamo.config.optimize_ddp = False  # it cuts graphs at DDP's buckets, and does not support a static graph
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # the encoder's inputs
    for part in (detector.backbone, detector.encoder):
        part.compile(backend=BACKEND)


@contextmanager
def explain_compilation() -> Iterator[None]:
    """Turn a failed compilation, such as one without a C++ compiler, into a UserError."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = first_line(getattr(error, "inner_exception", error))
        raise UserError(f"torch.compile failed on this machine: {reason}. Set train.compile to false.") from error
