"""Boxes in another unit or form than their format says: refused where all of a file shows it, a warning in doubt.

Only the whole of a file tells: one box of `[100, 100, 300, 300]` may be a width or an edge, but where hundreds of boxes
leave their images when read one way and fit when read another way, the other way is what they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.errors import DataError

Edges = tuple[NDArray, NDArray, NDArray, NDArray]

# Form -> the edges (left, top, right, bottom) of boxes whose four columns are written in it.
FORMS: dict[str, Callable[[NDArray, NDArray, NDArray, NDArray], Edges]] = {
    "[x, y, width, height]": lambda a, b, c, d: (a, b, a + c, b + d),
    "[x1, y1, x2, y2]": lambda a, b, c, d: (a, b, c, d),
    "[center x, center y, width, height]": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
}
XYWH, XYXY, CXCYWH = FORMS

TOLERANCE = 0.05  # of the image's side; a box may stick out this far and still fit
CERTAIN_BOXES = 10  # fewer are never proof
NEARLY_ALL = 0.98
BAD_CERTAIN, BAD_DOUBTFUL = 0.25, 0.05  # share of boxes that do not fit as declared, where another form fits
SMALLEST_SIDE = 16  # pixels; in smaller images a box of one pixel is nothing special
_LARGEST = 1e12  # beyond it a value says nothing about units
CORNER_BOXES, CORNER = 100, 0.5  # that many boxes, none beyond this share of both sides


@dataclass(frozen=True)
class _Boxes:
    """What was seen: [N, 4] values as written, [N] width and height of their images in the same unit."""

    values: NDArray
    width: NDArray
    height: NDArray

    def fit(self, form: str) -> NDArray:
        """Which boxes lie in their image and have a positive size when read in `form`."""
        left, top, right, bottom = FORMS[form](*self.values.T)
        across, down = TOLERANCE * self.width, TOLERANCE * self.height
        inside = (left >= -across) & (top >= -down) & (right <= self.width + across) & (bottom <= self.height + down)
        return inside & (right >= left) & (bottom >= top)


class BoxUnits:
    """Collects the boxes of a file as they are written, and judges them together.

    Args:
        declared: the form that the format prescribes, a key of `FORMS`.
        shares: values are shares of the image's sides instead of pixels.
    """

    def __init__(self, declared: str, shares: bool = False) -> None:
        self.declared, self.shares = declared, shares
        self._seen = array("d")

    def see(self, values: Sequence[float], width: float, height: float) -> None:
        """A box as written, of an image of this size (0 where it is unknown: such a box tells nothing)."""
        if width and height:
            self._seen.extend((*values, width, height))

    def check(self, name: str, repairs: Repairs) -> None:
        """`judge`, with the warning among the repairs."""
        doubt = self.judge(name)
        if doubt:
            repairs.add("unit_doubtful", doubt)

    def judge(self, name: str) -> str | None:
        """A warning about the boxes of the file or dataset `name`, None where nothing is odd.

        Raises:
            DataError: the boxes are certainly in another unit or form.
        """
        rows = np.frombuffer(self._seen, dtype=np.float64).reshape(-1, 6)
        rows = rows[(np.abs(rows) < _LARGEST).all(axis=1)]  # not for NaN either
        if not len(rows):
            return None
        sides = np.ones((len(rows), 2)) if self.shares else rows[:, 4:]
        boxes = _Boxes(rows[:, :4], *sides.T)
        if self.shares:
            return self._in_pixels(boxes, name) or self._other_form(boxes, name)
        return self._in_shares(boxes, name) or self._other_form(boxes, name) or self._in_a_corner(boxes, name)

    def _in_shares(self, boxes: _Boxes, name: str) -> str | None:
        large = np.minimum(boxes.width, boxes.height) >= SMALLEST_SIDE
        values = boxes.values[large]
        unit = (values >= -TOLERANCE).all(axis=1) & (values <= 1 + TOLERANCE).all(axis=1)
        if not unit.any():
            return None
        whole = (values[unit] == np.rint(values[unit])).all()
        first = _shown(values[unit][0])
        if unit.mean() >= NEARLY_ALL and not whole:
            raise DataError(
                f"The boxes of {name} are normalized: all four values of {_count(unit)} boxes lie in 0..1, for example "
                f"{first}, but pixels are expected ({self.declared}). Multiply x and width by the width of their "
                "image, y and height by its height."
            )
        return (
            f"{_count(unit)} boxes of {name} lie within the first pixel of their image, for example {first}. If they "
            f"are normalized to 0..1, convert them: pixels are expected ({self.declared})."
        )

    def _in_pixels(self, boxes: _Boxes, name: str) -> str | None:
        beyond = (boxes.values > 1 + TOLERANCE).any(axis=1)
        if beyond.mean() >= NEARLY_ALL and len(beyond) >= CERTAIN_BOXES:
            raise DataError(
                f"The boxes of {name} are not normalized: {_count(beyond)} boxes have a value above 1, for example "
                f"{_shown(boxes.values[beyond][0])}, but shares of the image's sides are expected ({self.declared}). "
                "Divide x and width by the width of their image, y and height by its height."
            )
        return None

    def _other_form(self, boxes: _Boxes, name: str) -> str | None:
        bad = ~boxes.fit(self.declared)
        if bad.mean() < BAD_DOUBTFUL or bad.sum() < 2:
            return None
        for form in FORMS:
            if form == self.declared or boxes.fit(form).mean() < NEARLY_ALL:
                continue
            example = _shown(boxes.values[bad][0])
            found = f"{_count(bad)} boxes leave their image or have no size, for example {example}"
            if len(bad) >= CERTAIN_BOXES and bad.mean() >= BAD_CERTAIN:
                raise DataError(
                    f"The boxes of {name} are {form}, but {self.declared} is expected: {found}; read as {form}, "
                    f"{_count(boxes.fit(form))} boxes fit. Convert them."
                )
            return (
                f"The boxes of {name} may be {form} instead of {self.declared}: {found}; read as {form}, they fit. "
                "Check a few of them."
            )
        return None

    def _in_a_corner(self, boxes: _Boxes, name: str) -> str | None:
        fits = boxes.fit(self.declared)
        _, _, right, bottom = FORMS[self.declared](*boxes.values[fits].T)
        if fits.sum() < CORNER_BOXES:
            return None
        reach = float((right / boxes.width[fits]).max()), float((bottom / boxes.height[fits]).max())
        if max(reach) >= CORNER:
            return None
        return (
            f"No box of {name} reaches beyond {reach[0]:.0%} of the width and {reach[1]:.0%} of the height of its "
            "image. Check that they are pixels of these images, not percent or pixels of smaller copies."
        )


def _count(chosen: NDArray) -> str:
    return f"{int(chosen.sum())} of {len(chosen)}"


def _shown(values: NDArray) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
