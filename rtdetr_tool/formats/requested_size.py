"""The input size that a command's own section requests, such as `evaluate.input_height` and `evaluate.input_width`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rtdetr_tool.errors import UserError, nearest_multiples
from rtdetr_tool.spec import AugmentationSpec


@dataclass(frozen=True)
class RequestedSize:
    """The input size in a command's section; None means the file's."""

    height: int | None = None
    width: int | None = None
    section: str = ""

    def __bool__(self) -> bool:
        return bool(self.height or self.width)

    def applied(self, augmentation: AugmentationSpec) -> AugmentationSpec:
        """The sizes with this one for evaluation. If images are padded to a square, one side is enough."""
        if not self:
            return augmentation
        height, width = augmentation.eval_spatial_size
        if augmentation.preserve_aspect_ratio:
            height = width = self.height or self.width or height
        return replace(augmentation, eval_spatial_size=[self.height or height, self.width or width])

    def check_multiple(self, multiple: int) -> None:
        """UserError if a side is not a multiple of what the opened detector requires."""
        for name, side in self._sides.items():
            if side and side % multiple:
                raise UserError(
                    f"{self.section}.{name}: {side} is invalid; expected a multiple of {multiple}, nearest: "
                    f"{nearest_multiples(side, multiple)}"
                )

    @property
    def name(self) -> str:
        """The fields that request the size, for messages."""
        return ", ".join(f"{self.section}.{name}" for name, side in self._sides.items() if side)

    @property
    def _sides(self) -> dict[str, int | None]:
        return {"input_height": self.height, "input_width": self.width}


FILE_SIZE = RequestedSize()  # nothing is requested
