"""The epochs of a run in which steps of augmentation are used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stages:
    """Strong steps (all but flips and rotations by 90 degrees) in `start` <= epoch < `stop`, mixing until `mix_stop`.

    None = until the end of the run.
    """

    start: int = 0
    mix_stop: int | None = None
    stop: int | None = None

    def is_strong(self, epoch: int) -> bool:
        return self.start <= epoch and (self.stop is None or epoch < self.stop)

    def mixes(self, epoch: int) -> bool:
        """Whether mosaic, mixup and copy-paste are used."""
        return self.is_strong(epoch) and (self.mix_stop is None or epoch < self.mix_stop)
