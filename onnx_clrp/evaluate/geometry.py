"""Boxes on the original picture as pixels of the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.errors import UsageError
from onnx_clrp.image import Preprocessing, placement

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_DIGITS = 6
"""Decimals of a pixel to which edges are rounded: a box drawn on pixels often ends just on a
pixel's centre, and the last digit of a fraction must not decide on which side of it."""


class Box(Protocol):
    """A rectangle in fractions of the upright original's width and height, 0 … 1."""

    @property
    def x0(self) -> float:
        """The left edge."""

    @property
    def y0(self) -> float:
        """The upper edge."""

    @property
    def x1(self) -> float:
        """The right edge, right of `x0`."""

    @property
    def y1(self) -> float:
        """The lower edge, below `y0`."""


def mask_of(
    boxes: Sequence[Box], picture_size: tuple[int, int], preprocessing: Preprocessing
) -> Mask:
    """The pixels of the model's input whose centres lie in any of the boxes, `[H, W]` bool.

    A centre on a left or an upper edge lies in the box, one on a right or a lower edge does not,
    so that boxes side by side share no pixel. What the crop drops is not there; a box between
    the centres of pixels has none.

    Args:
        boxes: at least one.
        picture_size: (width, height) of the upright original in pixels, as Pillow's `Image.size`.
        preprocessing: with a `size` or a `crop`.

    Raises:
        UsageError: there is no box, a box leaves the picture or has no area, the size is not
            positive, or the preprocessing leaves the model's size open.
    """
    _check(boxes, picture_size)
    across, down = _placed(picture_size, preprocessing)
    mask = np.zeros((down.length, across.length), np.bool_)
    for box in boxes:
        mask |= down.between(box.y0, box.y1)[:, None] & across.between(box.x0, box.x1)
    return mask


def visible(
    boxes: Sequence[Box], picture_size: tuple[int, int], preprocessing: Preprocessing
) -> float:
    """The share of the area of the boxes' union that the crop leaves, 0 … 1.

    The arguments and errors are those of `mask_of`.
    """
    _check(boxes, picture_size)
    across, down = _placed(picture_size, preprocessing)
    edges = np.array([(box.x0, box.y0, box.x1, box.y1) for box in boxes], np.float64)
    low, high = zip(across.seen, down.seen, strict=True)
    return min(1.0, _area(np.clip(edges, low * 2, high * 2)) / _area(edges))


@dataclass(frozen=True)
class _Axis:
    """Where an axis of the original lies in the model's input: `pixel = fraction * scale - shift`.

    Pixel `i` of `length` covers `i … i + 1`.
    """

    length: int
    scale: float
    shift: float

    def between(self, low: float, high: float) -> Mask:
        """Which pixels have their centres from one fraction up to another, `[length]` bool."""
        start, end = (round(at * self.scale - self.shift, _DIGITS) for at in (low, high))
        centres = np.arange(self.length) + 0.5
        return (start <= centres) & (centres < end)

    @property
    def seen(self) -> tuple[float, float]:
        """The fractions between which the original is seen."""
        return self.shift / self.scale, (self.length + self.shift) / self.scale


def _placed(picture_size: tuple[int, int], preprocessing: Preprocessing) -> tuple[_Axis, _Axis]:
    """The horizontal and the vertical axis."""
    height, width = target = preprocessing.extent()
    placed = placement(picture_size, preprocessing.resize, target)
    across, down = (
        _Axis(length, scale=whole * scaled / kept, shift=start * scaled / kept + crop)
        for length, whole, start, kept, scaled, crop in zip(
            (width, height), picture_size, *placed, strict=True
        )
    )
    return across, down


def _check(boxes: Sequence[Box], picture_size: tuple[int, int]) -> None:
    if not boxes:
        raise UsageError("a target without boxes lies nowhere: leave it out")
    if min(picture_size) < 1:
        raise UsageError(f"a picture's size is width and height in pixels, not {picture_size!r}")
    for box in boxes:
        if not (0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1):
            raise UsageError(
                f"the box x {box.x0:g} … {box.x1:g}, y {box.y0:g} … {box.y1:g} is no rectangle in"
                " 0 … 1: give fractions of the picture's width and height"
            )


def _area(edges: Floats) -> float:
    """The area of the union of boxes `[n, 4]`, summed over the cells into which edges cut it."""
    xs, ys = np.unique(edges[:, ::2]), np.unique(edges[:, 1::2])
    covered = np.zeros((len(ys) - 1, len(xs) - 1), np.bool_)
    for x0, y0, x1, y1 in edges:
        covered |= ((y0 <= ys[:-1]) & (ys[1:] <= y1))[:, None] & (x0 <= xs[:-1]) & (xs[1:] <= x1)
    return float(np.diff(ys) @ covered @ np.diff(xs))
