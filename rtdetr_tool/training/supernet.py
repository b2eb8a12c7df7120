"""Which sub-detector each training step trains (`train.supernet`).

One combination is drawn per optimizer step, as in RF-DETR's search (Robinson et al. 2025, arXiv:2511.09554); all of
them share the weights of the whole model.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.sub_detectors import SubDetector, sub_detectors

logger = logging.getLogger(__name__)


class Supernet:
    """The sub-detectors of a run."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.choices = sub_detectors(spec)
        names = ", ".join(self.choices[0].values)
        logger.info("Each step trains one of %d sub-detectors that share their weights (%s)", len(self.choices), names)

    def draw(self, seed: int, step: int) -> SubDetector:
        """The sub-detector of an optimizer step, a function of seed and step only, so that all ranks agree."""
        return random.Random(f"supernet {seed} {step}").choice(self.choices)


def with_all_gradients(losses: Mapping[str, Tensor], detector: Detector) -> dict[str, Tensor]:
    """Losses whose `loss` also depends, with factor 0, on the parameters that the sub-detector skips.

    DistributedDataParallel waits for the gradient of every parameter in every step.
    """
    unused = [0.0 * parameter.sum() for parameter in detector.skipped() if parameter.requires_grad]
    return {**losses, "loss": sum(unused, losses["loss"])}
