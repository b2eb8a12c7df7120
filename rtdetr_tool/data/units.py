"""Detect boxes in a different unit or format than declared: an error if the whole file shows it, a warning in doubt.

Only a whole file is conclusive: the last values of a single box `[100, 100, 300, 300]` may be a size or a corner. But
if hundreds of boxes leave their images when read one way and fit when read another way, the other way is right.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.errors import DataError

Array = NDArray[np.float64]
Edges = tuple[Array, Array, Array, Array]

# Format -> edges (left, top, right, bottom) of boxes with four columns in this format.
FORMS: dict[str, Callable[[Array, Array, Array, Array], Edges]] = {
    "[x, y, width, height]": lambda a, b, c, d: (a, b, a + c, b + d),
    "[x1, y1, x2, y2]": lambda a, b, c, d: (a, b, c, d),
    "[center x, center y, width, height]": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
}
XYWH, XYXY, CXCYWH = FORMS

TOLERANCE = 0.05  # of the image's side; a box that extends beyond the image by less still fits
CERTAIN_BOXES = 10  # fewer boxes are never conclusive
NEARLY_ALL = 0.98
BAD_CERTAIN, BAD_DOUBTFUL = 0.25, 0.05  # share of boxes that do not fit as declared, if another format fits
SMALLEST_SIDE = 16  # pixels; in smaller images boxes of one pixel are normal
_LARGEST = 1e12  # larger values are ignored
CORNER_BOXES, CORNER = 100, 0.5  # at least this many boxes, all within this share of both sides


@dataclass(frozen=True)
class _Boxes:
    """Boxes of a file: [N, 4] values as written, [N] width and height of their images in the same unit."""

    values: Array
    width: Array
    height: Array

    def fit(self, form: str) -> NDArray[np.bool_]:
        """Which boxes are inside their image and have a positive size when read in `form`."""
        left, top, right, bottom = FORMS[form](*self.values.T)
        across, down = TOLERANCE * self.width, TOLERANCE * self.height
        inside = (left >= -across) & (top >= -down) & (right <= self.width + across) & (bottom <= self.height + down)
        return inside & (right >= left) & (bottom >= top)


class BoxUnits:
    """Collects the boxes of a file as written and checks them together.

    Args:
        declared: the box format that the file format prescribes, a key of `FORMS`.
        normalized: values are fractions of the image's sides instead of pixels.
    """

    def __init__(self, declared: str, normalized: bool = False) -> None:
        self.declared, self.normalized = declared, normalized
        self._values = array("d")

    def add(self, values: Sequence[float], width: float, height: float) -> None:
        """Add a box as written, in an image of this size (0 if unknown; then the box is ignored)."""
        if width and height:
            self._values.extend((*values, width, height))

    def check(self, name: str, repairs: Repairs) -> None:
        """Check the boxes and add the warning, if any, to the repairs."""
        warning = self.warning(name)
        if warning:
            repairs.add("unit_doubtful", warning)

    def warning(self, name: str) -> str | None:
        """A warning about the boxes of the file or dataset `name`; None if nothing is suspicious.

        Raises:
            DataError: the boxes are certainly in a different unit or format.
        """
        rows = np.frombuffer(self._values, dtype=np.float64).reshape(-1, 6)
        rows = rows[(np.abs(rows) < _LARGEST).all(axis=1)]  # also false for NaN
        if not len(rows):
            return None
        sides = np.ones((len(rows), 2)) if self.normalized else rows[:, 4:]
        boxes = _Boxes(rows[:, :4], *sides.T)
        if self.normalized:
            return self._check_pixels(boxes, name) or self._check_format(boxes, name)
        return self._check_normalized(boxes, name) or self._check_format(boxes, name) or self._check_corner(boxes, name)

    def _check_normalized(self, boxes: _Boxes, name: str) -> str | None:
        large = np.minimum(boxes.width, boxes.height) >= SMALLEST_SIDE
        values = boxes.values[large]
        unit: NDArray[np.bool_] = np.logical_and.reduce((values >= -TOLERANCE) & (values <= 1 + TOLERANCE), axis=1)
        if not unit.any():
            return None
        whole = (values[unit] == np.rint(values[unit])).all()
        first = _box(values[unit][0])
        if unit.mean() >= NEARLY_ALL and not whole:
            raise DataError(
                f"The boxes of {name} are normalized: all four values of {_count(unit)} boxes are in 0..1, for example "
                f"{first}; expected pixels ({self.declared}). Multiply x and width by the width of the image, y and "
                "height by its height."
            )
        return (
            f"{_count(unit)} boxes of {name} are within the first pixel of their image, for example {first}. If they "
            f"are normalized to 0..1, convert them to pixels ({self.declared})."
        )

    def _check_pixels(self, boxes: _Boxes, name: str) -> str | None:
        beyond: NDArray[np.bool_] = np.logical_or.reduce(boxes.values > 1 + TOLERANCE, axis=1)
        if beyond.mean() >= NEARLY_ALL and len(beyond) >= CERTAIN_BOXES:
            raise DataError(
                f"The boxes of {name} are not normalized: {_count(beyond)} boxes have a value above 1, for example "
                f"{_box(boxes.values[beyond][0])}; expected fractions of the image's sides ({self.declared}). "
                "Divide x and width by the width of the image, y and height by its height."
            )
        return None

    def _check_format(self, boxes: _Boxes, name: str) -> str | None:
        bad = ~boxes.fit(self.declared)
        if bad.mean() < BAD_DOUBTFUL or bad.sum() < 2:
            return None
        for form in FORMS:
            if form == self.declared or boxes.fit(form).mean() < NEARLY_ALL:
                continue
            example = _box(boxes.values[bad][0])
            problem = f"{_count(bad)} boxes leave their image or have no area, for example {example}"
            if len(bad) >= CERTAIN_BOXES and bad.mean() >= BAD_CERTAIN:
                raise DataError(
                    f"The boxes of {name} are {form}; expected {self.declared}. {problem}; read as {form}, "
                    f"{_count(boxes.fit(form))} boxes fit. Convert them."
                )
            return (
                f"The boxes of {name} may be {form} instead of {self.declared}: {problem}; read as {form}, they fit. "
                "Check some of them."
            )
        return None

    def _check_corner(self, boxes: _Boxes, name: str) -> str | None:
        fits = boxes.fit(self.declared)
        _, _, right, bottom = FORMS[self.declared](*boxes.values[fits].T)
        if fits.sum() < CORNER_BOXES:
            return None
        reach = float((right / boxes.width[fits]).max()), float((bottom / boxes.height[fits]).max())
        if max(reach) >= CORNER:
            return None
        return (
            f"All boxes of {name} are within {reach[0]:.0%} of the width and {reach[1]:.0%} of the height of their "
            "image. Check that they are pixels of these images, not percentages or pixels of smaller copies."
        )


def _count(mask: NDArray[np.bool_]) -> str:
    return f"{int(mask.sum())} of {len(mask)}"


def _box(values: Array) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
