"""A ring of maps around their picture: the cells on the edge of a grid, and the hole in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from onnx_clrp.canvas import (
    CAPTION,
    FAINT,
    GAP,
    HEAD,
    LEADING,
    LEGEND,
    MARGIN,
    SIDE,
    SMALL,
    TITLE,
    Picture,
    scaled,
)
from onnx_clrp.render import Panel, Plate, minus, strip_height

Place = tuple[int, int]

# Which places on the edge of three rows of three cells up to 8 maps take, counted row by row.
FEW = ("4", "34", "134", "0257", "01234", "023457", "0123457", "01234567")


@dataclass(frozen=True)
class Grid:
    """Rows and columns of cells with the maps at the edge.

    Attributes:
        places: the row and the column of each map, row by row.
        hole: those of the first cell of the square that the picture fills.
        span: how many rows and columns that square has.
    """

    places: Sequence[Place]
    hole: Place
    span: int

    @classmethod
    def of(cls, count: int) -> "Grid":
        """The smallest for so many maps; the lowest row is the one that is not full."""
        last = max(2, math.ceil(count / 4))
        cells = product(range(last + 1), range(last + 1))
        edge = [place for place in cells if not {0, last}.isdisjoint(place)]
        if count <= len(FEW):
            return cls._cropped([edge[int(place)] for place in FEW[count - 1]])
        lowest = sorted(edge[-last - 1 :], key=lambda place: abs(2 * place[1] - last))
        spare = len(edge) - count
        around = last % 2 == spare % 2 == 0  # an even number goes from both sides of a middle cell
        empty = lowest[around : around + spare]
        return cls([place for place in edge if place not in empty], (1, 1), last - 1)

    @classmethod
    def _cropped(cls, places: Sequence[Place]) -> "Grid":
        """Around a single cell, without rows and columns in which there is nothing."""
        top, left = (min(1, *(place[axis] for place in places)) for axis in (0, 1))
        moved = [(row - top, column - left) for row, column in places]
        return cls(moved, (1 - top, 1 - left), 1)

    @property
    def size(self) -> Place:
        """How many rows and columns there are."""
        cells = [*self.places, (self.hole[0] + self.span - 1, self.hole[1] + self.span - 1)]
        return max(row for row, _ in cells) + 1, max(column for _, column in cells) + 1


class Ring(Plate):
    """The maps in a ring, each with its neuron's name and activation."""

    def __init__(self, picture: Picture, panels: Sequence[Panel], titled: bool) -> None:
        """Fixes where everything lies."""
        self.picture, self.panels, self.grid = picture, panels, Grid.of(len(panels))
        rows, columns = self.grid.size
        self.side = SIDE if self.grid.span == 1 else SMALL
        self.height, width = scaled(picture, self.side, self.side).shape[:2]
        legend = math.ceil((2 * SIDE + 2 * GAP) / columns) - GAP
        self.cell = max(width, SMALL, legend)
        self.lines = 1 if self.cell >= SIDE else 2
        self.notes = self.lines if any(panel.note for panel in panels) else 0
        self.below = HEAD + self.height
        captions = strip_height(self.notes) + CAPTION + (self.lines - 1) * LEADING
        self.pitch = self.below + captions + GAP
        self.top = MARGIN + (TITLE if titled else 0)
        self.foot = self.top + rows * self.pitch
        across = 2 * MARGIN + columns * (self.cell + GAP) - GAP
        super().__init__(across, self.foot + LEGEND + MARGIN)

    def corner(self, place: Place) -> Place:
        """The x and the y of a cell."""
        return MARGIN + place[1] * (self.cell + GAP), self.top + place[0] * self.pitch

    def photograph(self) -> None:
        """The untouched picture, in the middle of the hole and as large as fits it."""
        x, y = self.corner(self.grid.hole)
        more = self.grid.span - 1
        width, height = self.cell + more * (self.cell + GAP), self.height + more * self.pitch
        large = scaled(self.picture, *[self._longest(width, height) if more else self.side] * 2)
        if more:
            x += (width - large.shape[1]) // 2
            y += (height - len(large)) // 2
        self.text("picture", x, y + HEAD - 14, self.cell, color=FAINT)
        self.paste(large, x, y + HEAD)

    def _longest(self, width: int, height: int) -> int:
        """The longer side of the picture where it fills so much room."""
        down, across = len(self.picture), len(self.picture[0])
        longer = max(down, across)
        return min(width * longer // across, height * longer // down)

    def panel(self, index: int) -> None:
        """A map between its neuron's name and the numbers."""
        panel = self.panels[index]
        x, y = self.corner(self.grid.places[index])
        self.text(panel.label, x, y + HEAD - 14, self.cell, weight="bold")
        amount = self.map(self.picture, panel, x, y + HEAD, self.side)
        if panel.note:
            self.strip(panel.note, x, y + self.below, self.cell, self.notes)
            y += strip_height(self.notes)
        numbers = [minus(f"activation {panel.score:.4g}"), amount]
        if self.lines == 1:
            numbers = [" \u00b7 ".join(numbers)]
        for line, words in enumerate(numbers):
            self.small(words, x, y + self.below + 30 + line * LEADING, self.cell)

    def legend(self, method: str, signed: bool) -> None:
        """The method, and what the colours mean, at the right."""
        x = self.pixels.shape[1] - MARGIN - SIDE
        room = x - GAP - MARGIN
        for index, line in enumerate(self.broken(method, room, 3, weight="bold")):
            self.text(line, MARGIN, self.foot + 20 + index * LEADING, room, weight="bold")
        self.scale_bar(x, self.foot, SIDE, signed)
