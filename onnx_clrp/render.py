"""Relevance to picture: lays heatmaps over a photograph and composes a sheet fit for print."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnx_clrp.canvas import (
    CAPTION,
    FAINT,
    GAP,
    HEAD,
    LEADING,
    LEGEND,
    MARGIN,
    SMALL,
    TITLE,
    Canvas,
    Picture,
    scaled,
)
from onnx_clrp.errors import UsageError
from onnx_clrp.files import write_whole

Array = npt.NDArray[np.float64]

QUANTILE = 0.995  # of the non-zero |R|: a few outliers must not wash out the rest
DIM = 0.6  # the darkest grey of the picture under a map, so that full colours stand out
# White to dark in equal steps of CIELAB lightness, both to L* = 27: read the same in grey print.
REDS = ("ffffff", "fcdfd1", "fabea4", "f79b78", "f5734d", "f33b24", "ce2824", "a51e23", "7e151f")
BLUES = ("ffffff", "caeafc", "96d3f9", "5cbbf6", "3da1e4", "3487c9", "2b6eaf", "225595", "193e7a")

MAX_PANELS = 100
PER_ROW = 5
LOWEST = 64  # a map of fewer pixels has no room for words on it
BAR, STRIP, DARK = 22, 44, 34  # the heights of the legend and of a note, and the note's grey


@dataclass(frozen=True)
class Panel:
    """One heatmap [H, W], the class it explains, the class's score, and a warning if due."""

    heatmap: npt.NDArray[Any]
    label: str
    score: float
    note: str = ""


def draw(
    picture: Picture,
    panels: Sequence[Panel],
    *,
    method: str,
    path: str | Path,
    title: str = "",
    signed: bool | None = None,
    smooth: float = 0.0,
) -> None:
    """Writes a PNG with the picture at the left and every panel's map over it at the right.

    Red is positive and blue negative; colour is linear in the value and full at the 99.5 %
    quantile of each map's own non-zero |R|, which stands under it. `signed=False` shows
    positive values only, None decides by the maps. `smooth` is the sigma of a Gaussian as a
    fraction of the longer side, for the display only; the sheet says so where it is not 0.
    """
    if not 1 <= len(panels) <= MAX_PANELS:
        raise UsageError(f"a sheet takes 1 to {MAX_PANELS} maps, not {len(panels)}")
    maps = [checked(picture, panel.heatmap) for panel in panels]
    both = any(map(is_signed, maps)) if signed is None else signed
    sheet = _Sheet(picture, len(panels), bool(title), any(panel.note for panel in panels))
    sheet.heading(title)
    sheet.photograph()
    for index, (panel, values) in enumerate(zip(panels, maps, strict=True)):
        sheet.panel(index, panel, _shown(values, both, smooth))
    sheet.legend(method, both, smooth)
    write_whole(path, sheet.png())


def overlay(
    picture: Picture, heatmap: npt.NDArray[Any], *, signed: bool | None = None, smooth: float = 0.0
) -> Picture:
    """The picture in light grey under its map in colour, pixel for pixel; see `draw`."""
    values = checked(picture, heatmap)
    both = is_signed(values) if signed is None else signed
    return painted(picture, _shown(values, both, smooth))


def checked(picture: Picture, heatmap: npt.NDArray[Any]) -> Array:
    """The map as float64, or a ValueError that says why it cannot be drawn."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"picture must be uint8 [H, W, 3], not {picture.dtype} {picture.shape}")
    if heatmap.shape != picture.shape[:2]:
        raise ValueError(f"heatmap {heatmap.shape} does not fit picture {picture.shape[:2]}")
    values = np.asarray(heatmap, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the heatmap holds values that are not finite")
    return values


def is_signed(values: Array) -> bool:
    """Whether negative values matter: rounding alone leaves traces below zero."""
    return bool(values.min() < -1e-3 * np.abs(values).max())


def _shown(values: Array, signed: bool, smooth: float) -> Array:
    if not 0 <= smooth <= 1:
        raise UsageError(f"smooth must be a fraction of the picture's side, not {smooth}")
    blurred = _blurred(values, smooth * max(values.shape)) if smooth > 0 else values
    return blurred if signed else np.maximum(blurred, 0.0)


def _blurred(values: Array, sigma: float) -> Array:
    """A Gaussian along both axes, with the border repeated outwards."""
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        width = [(reach, reach) if axis == other else (0, 0) for other in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(values, width, mode="edge"), len(kernel), axis=axis
        )
        values = windows @ kernel
    return values


def minus(numbers: str) -> str:
    """With the sign that is as wide as a plus."""
    return numbers.replace("-", "\u2212")


def full_colour(values: Array) -> float:
    """The magnitude that is drawn in full colour; 0 for a map of zeros."""
    sizes = np.abs(values[values != 0])
    return float(np.quantile(sizes, QUANTILE)) if sizes.size else 0.0


def painted(picture: Picture, values: Array) -> Picture:
    """The map's colours printed onto the light grey picture as onto paper of that grey."""
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float64)[..., None] / 255
    paper = DIM + (1 - DIM) * grey
    full = full_colour(values)
    with np.errstate(over="ignore"):
        colours = _colours(values / full if full else values)
    # A colour on white is white shining through what the ink leaves: dim that share only.
    white = colours.min(axis=-1, keepdims=True)
    return _bytes(colours - white * (1 - paper))


def _colours(levels: Array) -> Array:
    """Of levels -1 to 1, as on white paper: blue, through white, to red."""
    sizes, below = np.clip(np.abs(levels), 0, 1), levels < 0
    colours = _ramp(REDS, sizes)
    colours[below] = _ramp(BLUES, sizes[below])
    return colours


def _ramp(stops: Sequence[str], sizes: Array) -> Array:
    table = np.array([list(bytes.fromhex(stop)) for stop in stops]) / 255
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(sizes, places, table[:, index]) for index in range(3)], axis=-1)


def _bytes(colours: Array) -> Picture:
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def strip_height(lines: int) -> int:
    """Of a warning of so many lines."""
    return STRIP + (lines - 1) * LEADING if lines else 0


class Plate(Canvas):
    """A canvas for maps."""

    def small(
        self,
        content: str,
        x: int,
        y: int,
        width: int,
        align: Literal["left", "center", "right"] = "left",
    ) -> int:
        """A number, or a word of little weight."""
        return self.text(content, x, y, width, size=7, color=FAINT, align=align)

    def map(self, picture: Picture, panel: Panel, x: int, y: int, side: int) -> str:
        """A map over its picture, the longer side of that length; returns what q is."""
        values = checked(picture, panel.heatmap)
        shown = values if is_signed(values) else np.maximum(values, 0.0)
        large = scaled(painted(picture, shown), side, side)
        self.paste(large, x, y)
        if full := full_colour(shown):
            return minus(f"q = {full:.3g}")
        if len(large) >= LOWEST:
            self.text("no relevance", x + 14, y + 38, SMALL - 28, boxed=True)
        return "no relevance"

    def strip(self, note: str, x: int, y: int, width: int, lines: int = 1) -> None:
        """A warning under a map, white on dark, with room for so many lines."""
        self.pixels[y : y + strip_height(lines), x : x + width] = DARK
        size = 8 if lines == 1 else 7
        words = self.broken(note, width - 28, lines, size=size)
        y += 30 + (lines - len(words)) * LEADING // 2
        for index, line in enumerate(words):
            self.text(line, x + 14, y + index * LEADING, width - 28, size=size, color="white")

    def scale_bar(self, x: int, y: int, width: int, signed: bool) -> None:
        """What the colours mean, and what q is."""
        levels = np.linspace(-1.0 if signed else 0.0, 1.0, width)
        self.paste(_bytes(_colours(levels[None])).repeat(BAR, axis=0), x, y)
        self.small("\u2212q" if signed else "0", x, y + 50, width)
        if signed:
            self.small("0", x + width // 2, y + 50, 40, "center")
        self.small("q", x + width, y + 50, 40, "right")
        self.small(f"q: {100 * QUANTILE:g} % quantile of |R| > 0, per map", x, y + 80, width)


class _Sheet(Plate):
    """The picture at the left, and the maps in a grid at its right."""

    def __init__(self, picture: Picture, count: int, titled: bool, noted: bool) -> None:
        """Fixes the grid: the picture's column, then panels in rows of nearly equal length."""
        self.picture = picture
        self.large = scaled(picture)
        self.columns = math.ceil(count / math.ceil(count / PER_ROW))
        self.cell = max(self.large.shape[1], SMALL)
        self.top = MARGIN + (TITLE if titled else 0)
        self.pitch = HEAD + self.large.shape[0] + (STRIP if noted else 0) + CAPTION + GAP
        self.foot = self.top + math.ceil(count / self.columns) * self.pitch
        width = 2 * MARGIN + (self.columns + 1) * self.cell + self.columns * GAP
        super().__init__(width, self.foot + LEGEND + MARGIN)

    def photograph(self) -> None:
        """The untouched picture, at the left of the first row."""
        self.text("picture", MARGIN, self.top + HEAD - 14, self.cell, color=FAINT)
        self.middle(self.large, MARGIN, self.top + HEAD)

    def panel(self, index: int, panel: Panel, values: Array) -> None:
        """A map over the picture, between its label and what its colours amount to."""
        x = MARGIN + (index % self.columns + 1) * (self.cell + GAP)
        y = self.top + index // self.columns * self.pitch + HEAD
        self.text(panel.label, x, y - 14, self.cell, weight="bold")
        self.middle(scaled(painted(self.picture, values)), x, y)
        full = full_colour(values)
        nothing = "no positive relevance" if np.any(panel.heatmap) else "no relevance"
        if not full:
            self.text(nothing, x + 14, y + 38, self.cell - 28, boxed=True)
        y += len(self.large)
        if panel.note:
            self.strip(panel.note, x, y, self.cell)
            y += STRIP
        amount = f"q = {full:.3g}" if full else nothing
        numbers = minus(f"score {panel.score:.4g} \u00b7 {amount}")
        self.small(numbers, x, y + 30, self.cell)

    def legend(self, method: str, signed: bool, smooth: float) -> None:
        """The method, and what the colours mean, under the first two columns."""
        x, y = MARGIN, self.foot
        self.text(method, x, y + 20, self.cell, weight="bold")
        if smooth > 0:
            sigma = smooth * max(self.picture.shape[:2])
            note = f"smoothed for display, \u03c3 = {sigma:.2g} px"
            self.small(note, x, y + 50, self.cell)
        self.scale_bar(x + self.cell + GAP, y, self.cell, signed)

    def middle(self, picture: Picture, x: int, y: int) -> None:
        """A picture in the middle of its cell."""
        self.paste(picture, x + (self.cell - picture.shape[1]) // 2, y)
