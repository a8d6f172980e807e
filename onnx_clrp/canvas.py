"""A canvas of exact pixels with text set over it: what every sheet and figure is drawn on."""

import io
import re
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Picture = npt.NDArray[np.uint8]

DPI = 200  # all lengths below are pixels at this resolution
SIDE, LONGEST_SIDE = 448, 896  # a picture's longer side is brought between these
TINY = 64  # pictures up to here are enlarged with crisp pixels
SMALL = SIDE // 2  # the longer side where there are many
MARGIN, GAP, LEADING = 32, 28, 29
TITLE, HEAD, CAPTION, LEGEND = 60, 44, 40, 84
LINE = 176  # the grey of frames
FONT, INK, FAINT = "DejaVu Sans", "#111111", "#555555"

# Words, a lone sign with the word behind it; then parts of words.
_BREAKS = (re.compile(r"(?:\W )?\S+ ?"), re.compile(r"[^ _-]*[ _-]?"))


class Canvas:
    """White pixels; pictures are pasted as they are, text is drawn when all is done."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        self.figure = _figure(width, height)

    def heading(self, title: str) -> None:
        """The line above everything."""
        width = self.pixels.shape[1] - 2 * MARGIN
        self.text(title, MARGIN, MARGIN + 28, width, size=11, weight="bold")

    def paste(self, picture: Picture, x: int, y: int) -> None:
        """A picture in a hairline frame."""
        height, width = picture.shape[:2]
        self.pixels[y - 1 : y + height + 1, x - 1 : x + width + 1] = LINE
        self.pixels[y : y + height, x : x + width] = picture

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
    ) -> int:
        """One line on the baseline y, cut to the width; returns how much of it that takes."""
        artist = self._set(content := printable(content), size, weight)
        artist.set(x=x / self.pixels.shape[1], y=1 - y / self.pixels.shape[0])
        artist.set(color=color, ha=align)
        if boxed:
            artist.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 3})
        while (actual := _width(artist)) > width and content:
            guess = int(len(content) * width / actual) + 1
            content = content[: min(guess, len(content) - 1)].rstrip()
            artist.set_text(content + "\u2026")
        return actual

    def broken(
        self, content: str, width: int, most: int, *, size: int = 9, weight: str = "normal"
    ) -> list[str]:
        """In so many lines at most, between words, or inside them where they are too long."""
        for breaks in _BREAKS:
            lines = [""]
            for piece in breaks.findall(printable(content)):
                longer = self.extent((lines[-1] + piece).rstrip(), size=size, weight=weight)
                if longer > width and lines[-1] and len(lines) < most:
                    lines.append("")
                lines[-1] += piece
            lines = [line.rstrip() for line in lines]
            if all(self.extent(line, size=size, weight=weight) <= width for line in lines):
                break
        return lines

    def extent(self, content: str, *, size: int = 9, weight: str = "normal") -> int:
        """How wide a line of text would be."""
        artist = self._set(printable(content), size, weight)
        width = _width(artist)
        artist.remove()
        return width

    def _set(self, content: str, size: int, weight: str) -> "Text":
        """Text that is never read as TeX or mathematics."""
        return self.figure.text(
            0,
            0,
            content,
            fontfamily=FONT,
            fontsize=size,
            fontweight=weight,
            va="baseline",
            usetex=False,
            parse_math=False,
        )

    def png(self) -> bytes:
        """The finished picture."""
        agg: Any = self.figure.canvas  # what Agg adds to a canvas has no types
        renderer = agg.get_renderer()
        drawn = np.asarray(renderer.buffer_rgba())
        drawn[..., :3], drawn[..., 3] = self.pixels, 255  # figimage would take seconds
        self.figure.draw(renderer)
        file = io.BytesIO()
        image = Image.fromarray(drawn).convert("RGB")
        image.save(file, "PNG", dpi=(DPI, DPI), compress_type=zlib.Z_RLE)
        return file.getvalue()


def scaled(picture: Picture, shortest: int = SIDE, longest: int = LONGEST_SIDE) -> Picture:
    """The longer side between two lengths: tiny pictures in whole steps and crisp, or smoothly."""
    height, width = picture.shape[:2]
    side = max(height, width)
    if side <= TINY:
        step = shortest // side
        return picture.repeat(step, axis=0).repeat(step, axis=1)
    wanted = min(max(side, shortest), longest)
    if wanted == side:
        return picture
    size = [max(1, round(length * wanted / side)) for length in (width, height)]
    image = Image.fromarray(picture).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def printable(text: str) -> str:
    """One line without control characters; what the font lacks becomes a question mark."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    line = " ".join(text[:200].split())
    shown = (character for character in line if character.isprintable())
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in shown)


def _width(artist: "Text") -> int:
    return round(artist.get_window_extent().width)


def _figure(width: int, height: int) -> "Figure":
    """A figure of exactly so many pixels, on a canvas of its own: pyplot keeps global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Agg cuts the product of inches and dpi to whole pixels: a hair more keeps the last one.
    figure = Figure(((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI)
    figure.patch.set_visible(False)
    FigureCanvasAgg(figure)
    return figure
