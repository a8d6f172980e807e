"""Many maps in one picture: methods side by side, and neurons around their input."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from onnx_clrp.canvas import (
    CAPTION,
    FAINT,
    GAP,
    HEAD,
    INK,
    LEADING,
    LEGEND,
    LINE,
    MARGIN,
    SIDE,
    SMALL,
    TITLE,
    Canvas,
    Picture,
    scaled,
)
from onnx_clrp.errors import UsageError
from onnx_clrp.files import write_whole
from onnx_clrp.render import Panel, Plate, checked, is_signed, minus, strip_height
from onnx_clrp.ring import Ring

MAX_ROWS, MAX_TARGETS, MAX_METHODS = 20, 4, 12
MAX_NEURONS = 24
MAX_PIXELS = 50_000_000  # to draw them takes half a gigabyte, and Pillow warns of 89 million

BELOW = CAPTION + 12  # from a line of maps to the next, in pixels
NARROW = 192  # the least of a column of small maps: 64 pixels in whole steps


@dataclass(frozen=True)
class Row:
    """A picture, its title, and for each target one panel per method.

    All panels of a target have the same label and score: those of the first are shown.
    """

    picture: Picture
    title: str
    panels: Sequence[Sequence[Panel]]


def draw_comparison(
    rows: Sequence[Row], methods: Sequence[str], *, path: str | Path, title: str = ""
) -> None:
    """Writes a PNG with rows of pictures and columns of methods, a line of maps for each target.

    Colours are those of `draw`. Every map has its own scale, with q under it, and is red alone
    where nothing in it is negative.
    """
    _refuse("a comparison", "pictures", rows, MAX_ROWS)
    _refuse("a comparison", "methods", methods, MAX_METHODS)
    for row in rows:
        _refuse("a comparison", "targets a picture", row.panels, MAX_TARGETS)
        if any(len(panels) != len(methods) for panels in row.panels):
            raise ValueError("every target of a row must have a panel for each method")
    signed = [_any_signed(row.picture, panels) for row in rows for panels in row.panels]
    comparison = _Comparison(rows, methods, bool(title))
    comparison.heading(title)
    comparison.heads()
    for index in range(len(rows)):
        comparison.row(index)
    comparison.legend(any(signed))
    write_whole(path, comparison.png())


def draw_neurons(
    picture: Picture, panels: Sequence[Panel], *, method: str, path: str | Path, title: str = ""
) -> None:
    """Writes a PNG with the picture in the middle and the maps of neurons around it, row by row.

    A panel's label is the neuron's name and its score the neuron's activation. Colours are those
    of `draw_comparison`.
    """
    _refuse("a figure", "neurons", panels, MAX_NEURONS)
    signed = _any_signed(picture, panels)
    ring = Ring(picture, panels, bool(title))
    ring.heading(title)
    ring.photograph()
    for index in range(len(panels)):
        ring.panel(index)
    ring.legend(method, signed)
    write_whole(path, ring.png())


def _refuse(who: str, what: str, items: Sequence[object], most: int) -> None:
    if not 1 <= len(items) <= most:
        raise UsageError(f"{who} takes 1 to {most} {what}, not {len(items)}")


def _any_signed(picture: Picture, panels: Sequence[Panel]) -> bool:
    """Whether any map has blue in it; all are looked at, so that none turns out bad later."""
    maps = [checked(picture, panel.heatmap) for panel in panels]
    return any(map(is_signed, maps))


class _Comparison(Plate):
    """Lines of maps in columns, the photograph at the left of each picture's first line."""

    def __init__(self, rows: Sequence[Row], methods: Sequence[str], titled: bool) -> None:
        """Fixes where everything lies."""
        self.rows = rows
        count = sum(len(row.panels) for row in rows)
        # A single column is large in any case: it has to hold the names of its lines.
        many = len(methods) > 4 or (len(methods) > 1 and count > 8)
        self.side = SMALL if many else SIDE
        self.large = [scaled(row.picture, self.side, self.side) for row in rows]
        self.cell = max(NARROW if many else SMALL, *(large.shape[1] for large in self.large))
        self.pitch = self.cell + GAP
        self.names = _Names.fitted(methods, self.cell, ((3, 9), (3, 8), (3, 7)), "bold")
        titles = [row.title for row in rows]
        self.titles = _Names.fitted(titles, self.cell, ((1, 9), (1, 8), (1, 7), (2, 7)))
        self.head = MARGIN + (TITLE if titled else 0) + self.names.most * LEADING
        self.tops, self.foot = self._tops()
        width, height = len(methods) * self.pitch, self.foot + LEGEND + MARGIN
        super().__init__(*_affordable(2 * MARGIN + self.cell + width, height))

    def _tops(self) -> tuple[list[list[int]], int]:
        """Where the maps of each line begin, and where the last line ends."""
        y = self.head
        tops: list[list[int]] = []
        for row, large in zip(self.rows, self.large, strict=True):
            y += GAP + (self.titles.most - 1) * LEADING
            tops.append([])
            for panels in row.panels:
                tops[-1].append(y + HEAD)
                y += HEAD + len(large) + strip_height(self._noted(panels)) + BELOW
        return tops, y + GAP

    def _noted(self, panels: Sequence[Panel]) -> int:
        """How many lines the warnings under a line of maps take."""
        notes = {panel.note for panel in panels}
        cramped = len(notes) > 1 and self.cell < SIDE
        return 0 if notes == {""} else 1 + cramped

    def heads(self) -> None:
        """The methods over their columns."""
        for index in range(len(self.names.lines)):
            self.name(self.names, index, MARGIN + (index + 1) * self.pitch, self.head)

    def name(self, names: "_Names", index: int, x: int, y: int, color: str = INK) -> None:
        """One of several names, its last line on the baseline y."""
        for line in reversed(names.lines[index]):
            self.text(line, x, y, self.cell, size=names.size, weight=names.weight, color=color)
            y -= LEADING

    def row(self, index: int) -> None:
        """A picture and its lines of maps, under a hairline."""
        row, large, tops = self.rows[index], self.large[index], self.tops[index]
        rule = tops[0] - HEAD - (self.titles.most - 1) * LEADING - GAP // 2
        self.pixels[rule, MARGIN:-MARGIN] = LINE
        self.name(self.titles, index, MARGIN, tops[0] - 14, FAINT)
        self.paste(large, MARGIN, tops[0])
        for panels, y in zip(row.panels, tops, strict=True):
            self.label(panels[0], y - 14)
            amounts = [
                self.map(row.picture, panel, MARGIN + column * self.pitch, y, self.side)
                for column, panel in enumerate(panels, start=1)
            ]
            self.below(panels, amounts, y + len(large))

    def label(self, panel: Panel, y: int) -> None:
        """The target and its score, over its maps."""
        x, score = MARGIN + self.pitch, minus(f"score {panel.score:.4g}")
        width, taken = self.pixels.shape[1] - MARGIN - x, self.extent(score, size=7)
        x += self.text(panel.label, x, y, width - taken - GAP // 2, weight="bold") + GAP // 2
        self.small(score, x, y, taken)

    def below(self, panels: Sequence[Panel], amounts: Sequence[str], y: int) -> None:
        """What the colours of a line amount to; a warning stands once under all neighbours."""
        lines, x = self._noted(panels), MARGIN + self.pitch
        for note, group in groupby(panels, key=lambda panel: panel.note):
            width = len(list(group)) * self.pitch
            if note:
                self.strip(note, x, y, width - GAP, lines)
            x += width
        for column, amount in enumerate(amounts, start=1):
            x = MARGIN + column * self.pitch
            self.small(amount, x, y + strip_height(lines) + 30, self.cell)

    def legend(self, signed: bool) -> None:
        """What the colours mean, under the first maps if there is room."""
        x = min(MARGIN + self.pitch, self.pixels.shape[1] - MARGIN - SIDE)
        self.scale_bar(x, self.foot, SIDE, signed)


def _affordable(width: int, height: int) -> tuple[int, int]:
    if width * height > MAX_PIXELS:
        most = f"more than {MAX_PIXELS // 10**6} million"
        raise UsageError(f"a comparison of {width} x {height} pixels, {most}: draw it in parts")
    return width, height


@dataclass(frozen=True)
class _Names:
    """Names of one size, each in lines."""

    lines: Sequence[Sequence[str]]
    size: int
    weight: str

    @classmethod
    def fitted(
        cls,
        names: Sequence[str],
        width: int,
        tries: Sequence[tuple[int, int]],
        weight: str = "normal",
    ) -> "_Names":
        """The first try in which all fit: so many lines at most, and the size of the font."""
        ruler = Canvas(1, 1)
        for most, size in tries:
            broken = [ruler.broken(name, width, most, size=size, weight=weight) for name in names]
            lines = chain(*broken)
            if all(ruler.extent(line, size=size, weight=weight) <= width for line in lines):
                break
        return cls(broken, size, weight)

    @property
    def most(self) -> int:
        """The lines of the longest."""
        return max(map(len, self.lines))
