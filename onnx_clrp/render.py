"""Relevance to picture: lays heatmaps over a photograph and composes a sheet fit for print."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnx_clrp.errors import UsageError
from onnx_clrp.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]

QUANTILE = 0.995  # of the non-zero |R|: a few outliers must not wash out the rest
DIM = 0.6  # the darkest grey of the picture under a map, so that full colours stand out
# White to dark in equal steps of CIELAB lightness, both to L* = 27: read the same in grey print.
REDS = ("ffffff", "fcdfd1", "fabea4", "f79b78", "f5734d", "f33b24", "ce2824", "a51e23", "7e151f")
BLUES = ("ffffff", "caeafc", "96d3f9", "5cbbf6", "3da1e4", "3487c9", "2b6eaf", "225595", "193e7a")

MAX_PANELS = 100
PER_ROW = 5
DPI = 200  # all lengths below are pixels at this resolution
SIDE, LONGEST_SIDE = 448, 896  # a picture's longer side is brought between these
TINY = 64  # pictures up to here are enlarged with crisp pixels
MARGIN, GAP = 32, 28
TITLE, HEAD, STRIP, CAPTION, LEGEND = 60, 44, 44, 40, 84
BAR = 22
DARK, LINE = 34, 176  # greys of the strip and of the frames
FONT, INK, FAINT = "DejaVu Sans", "#111111", "#555555"


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
    maps = [_checked(picture, panel.heatmap) for panel in panels]
    both = any(map(_is_signed, maps)) if signed is None else signed
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
    values = _checked(picture, heatmap)
    both = _is_signed(values) if signed is None else signed
    return _painted(picture, _shown(values, both, smooth))


def _checked(picture: Picture, heatmap: npt.NDArray[Any]) -> Array:
    """The map as float64, or a ValueError that says why it cannot be drawn."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"picture must be uint8 [H, W, 3], not {picture.dtype} {picture.shape}")
    if heatmap.shape != picture.shape[:2]:
        raise ValueError(f"heatmap {heatmap.shape} does not fit picture {picture.shape[:2]}")
    values = np.asarray(heatmap, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the heatmap holds values that are not finite")
    return values


def _is_signed(values: Array) -> bool:
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


def _full_colour(values: Array) -> float:
    """The magnitude that is drawn in full colour; 0 for a map of zeros."""
    sizes = np.abs(values[values != 0])
    return float(np.quantile(sizes, QUANTILE)) if sizes.size else 0.0


def _painted(picture: Picture, values: Array) -> Picture:
    """The map's colours printed onto the light grey picture as onto paper of that grey."""
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float64)[..., None] / 255
    paper = DIM + (1 - DIM) * grey
    full = _full_colour(values)
    with np.errstate(over="ignore"):
        colours = _colours(values / full if full else values)
    # A colour on white is white shining through what the ink leaves: dim that share only.
    white = colours.min(axis=-1, keepdims=True)
    return _bytes(colours - white * (1 - paper))


def _colours(levels: Array) -> Array:
    """Of levels -1 to 1, as on white paper: blue, through white, to red."""
    sizes = np.clip(np.abs(levels), 0, 1)
    red, blue = _ramp(REDS, sizes), _ramp(BLUES, sizes)
    return np.where(levels[..., None] >= 0, red, blue)


def _ramp(stops: Sequence[str], sizes: Array) -> Array:
    table = np.array([list(bytes.fromhex(stop)) for stop in stops]) / 255
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(sizes, places, table[:, index]) for index in range(3)], axis=-1)


def _bytes(colours: Array) -> Picture:
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _scaled(picture: Picture) -> Picture:
    """At a size fit for print: tiny pictures in whole steps and crisp, others smoothly."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= TINY:
        step = SIDE // longest
        return picture.repeat(step, axis=0).repeat(step, axis=1)
    wanted = min(max(longest, SIDE), LONGEST_SIDE)
    if wanted == longest:
        return picture
    size = [max(1, round(length * wanted / longest)) for length in (width, height)]
    image = Image.fromarray(picture).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


class _Sheet:
    """A canvas of exact pixels, with text set over it."""

    def __init__(self, picture: Picture, count: int, titled: bool, noted: bool) -> None:
        """Fixes the grid: the picture's column, then panels in rows of nearly equal length."""
        self.picture = picture
        self.large = _scaled(picture)
        self.columns = math.ceil(count / math.ceil(count / PER_ROW))
        self.cell = max(self.large.shape[1], SIDE // 2)
        self.strip = STRIP if noted else 0
        self.top = MARGIN + (TITLE if titled else 0)
        self.pitch = HEAD + self.large.shape[0] + self.strip + CAPTION + GAP
        self.foot = self.top + math.ceil(count / self.columns) * self.pitch
        width = 2 * MARGIN + (self.columns + 1) * self.cell + self.columns * GAP
        self.canvas = np.full((self.foot + LEGEND + MARGIN, width, 3), 255, dtype=np.uint8)
        self.figure = _figure(width, len(self.canvas))

    def heading(self, title: str) -> None:
        """The line above everything."""
        width = self.canvas.shape[1] - 2 * MARGIN
        self.text(title, MARGIN, MARGIN + 28, width, size=11, weight="bold")

    def photograph(self) -> None:
        """The untouched picture, at the left of the first row."""
        self.text("picture", MARGIN, self.top + HEAD - 14, self.cell, color=FAINT)
        self.paste(self.large, MARGIN, self.top + HEAD)

    def panel(self, index: int, panel: Panel, values: Array) -> None:
        """A map over the picture, between its label and what its colours amount to."""
        x = MARGIN + (index % self.columns + 1) * (self.cell + GAP)
        y = self.top + index // self.columns * self.pitch + HEAD
        self.text(panel.label, x, y - 14, self.cell, weight="bold")
        self.paste(_scaled(_painted(self.picture, values)), x, y)
        full = _full_colour(values)
        nothing = "no positive relevance" if np.any(panel.heatmap) else "no relevance"
        if not full:
            self.text(nothing, x + 14, y + 38, self.cell - 28, boxed=True)
        y += len(self.large)
        if panel.note:
            self.canvas[y : y + self.strip, x : x + self.cell] = DARK
            self.text(panel.note, x + 14, y + 30, self.cell - 28, size=8, color="white")
            y += self.strip
        amount = f"q = {full:.3g}" if full else nothing
        numbers = f"score {panel.score:.4g} \u00b7 {amount}".replace("-", "\u2212")
        self.text(numbers, x, y + 30, self.cell, size=7, color=FAINT)

    def legend(self, method: str, signed: bool, smooth: float) -> None:
        """The method, and what the colours mean, under the first two columns."""
        x, y = MARGIN, self.foot
        self.text(method, x, y + 20, self.cell, weight="bold")
        if smooth > 0:
            sigma = smooth * max(self.picture.shape[:2])
            note = f"smoothed for display, \u03c3 = {sigma:.2g} px"
            self.text(note, x, y + 50, self.cell, size=7, color=FAINT)
        x += self.cell + GAP
        levels = np.linspace(-1.0 if signed else 0.0, 1.0, self.cell)
        self.paste(_bytes(_colours(np.tile(levels, (BAR, 1)))), x, y)
        self.text("\u2212q" if signed else "0", x, y + 50, self.cell, size=7, color=FAINT)
        if signed:
            self.text("0", x + self.cell // 2, y + 50, 40, size=7, color=FAINT, align="center")
        self.text("q", x + self.cell, y + 50, 40, size=7, color=FAINT, align="right")
        rule = f"q: {100 * QUANTILE:g} % quantile of |R| > 0, per map"
        self.text(rule, x, y + 80, self.cell, size=7, color=FAINT)

    def paste(self, picture: Picture, x: int, y: int) -> None:
        """A picture in the middle of its cell, in a hairline frame."""
        height, width = picture.shape[:2]
        x += (self.cell - width) // 2
        self.canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = LINE
        self.canvas[y : y + height, x : x + width] = picture

    def text(
        self,
        content: str,
        x: int,
        y: int,
        width: int,
        *,
        size: int = 9,
        weight: str = "normal",
        color: str = INK,
        align: Literal["left", "center", "right"] = "left",
        boxed: bool = False,
    ) -> None:
        """One line on the baseline y, cut to the width; never read as TeX or mathematics."""
        artist = self.figure.text(
            x / self.canvas.shape[1],
            1 - y / self.canvas.shape[0],
            content := _printable(content),
            fontfamily=FONT,
            fontsize=size,
            fontweight=weight,
            color=color,
            ha=align,
            va="baseline",
            usetex=False,
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 3} if boxed else None,
        )
        while content and (actual := artist.get_window_extent().width) > width:
            guess = int(len(content) * width / actual) + 1
            content = content[: min(guess, len(content) - 1)].rstrip()
            artist.set_text(content + "\u2026")

    def png(self) -> bytes:
        """The finished sheet."""
        self.figure.figimage(self.canvas, zorder=-1, origin="upper")
        agg: Any = self.figure.canvas  # what Agg adds to a canvas has no types
        agg.draw()
        pixels = np.asarray(agg.buffer_rgba())[..., :3]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", dpi=(DPI, DPI), compress_level=4)
        return file.getvalue()


def _figure(width: int, height: int) -> "Figure":
    """A figure of exactly so many pixels, on a canvas of its own: pyplot keeps global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Agg cuts the product of inches and dpi to whole pixels: a hair more keeps the last one.
    figure = Figure(((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _printable(text: str) -> str:
    """One line without control characters; what the font lacks becomes a question mark."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    line = " ".join(text[:200].split())
    shown = (character for character in line if character.isprintable())
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in shown)
