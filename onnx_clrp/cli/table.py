"""Tables with a line for each node of a model, that fit a terminal whatever the nodes' names."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

_GAP = 2
_SHORTEST = 16
"""Columns below which a node's name says nothing."""


@dataclass(frozen=True)
class Column:
    """A column: its title and its texts, one for each node.

    Attributes:
        right: whether it is aligned to the right.
        spare: whether it is left out where the terminal is too narrow.
    """

    title: str
    cells: Sequence[str]
    right: bool = False
    spare: bool = False

    @property
    def width(self) -> int:
        """Of the longest text."""
        return max(map(len, (self.title, *self.cells)))


def print_nodes(names: Sequence[str], columns: Sequence[Column]) -> None:
    """A line for each node. On a terminal, long names lose their front: their end tells them apart.

    Args:
        names: the nodes' names.
        columns: what is said of them.
    """
    node = Column("node", names)
    shown, room = _fitted(node, columns, _wide())
    clipped = [name if len(name) <= room else f"…{name[len(name) - room + 1 :]}" for name in names]
    table = [Column("node", clipped), *shown]
    width = sum(c.width for c in table) + _GAP * len(shown)
    click.echo()
    click.echo(_line([c.title for c in table], table))
    click.echo("-" * width)
    for cells in zip(*(c.cells for c in table), strict=True):
        click.echo(_line(cells, table))
    click.echo()


def _wide() -> int | None:
    """The terminal's width; None for a file or a pipe, where nothing needs to be cut."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed
    return shutil.get_terminal_size().columns if terminal else None


def _fitted(node: Column, columns: Sequence[Column], wide: int | None) -> tuple[list[Column], int]:
    """The columns to show, and the room that they leave for the nodes' names.

    Spare columns go, the last first, if that leaves room to tell the names apart.
    """
    if wide is None:
        return list(columns), node.width
    choices = [list(columns)]
    while spare := [c for c in choices[-1] if c.spare]:
        choices.append([c for c in choices[-1] if c is not spare[-1]])
    rooms = [wide - sum(c.width + _GAP for c in choice) for choice in choices]
    for needed in (_telling(node), min(node.width, _SHORTEST)):
        for choice, room in zip(choices, rooms, strict=True):
            if room >= needed:
                return choice, room
    return choices[-1], min(node.width, _SHORTEST)


def _telling(node: Column) -> int:
    """The fewest columns in which the ends of the names still tell them apart."""
    different = len({*node.cells})
    fewest = range(min(node.width, _SHORTEST), node.width)
    enough = (n for n in fewest if len({name[1 - n :] for name in node.cells}) == different)
    return next(enough, node.width)


def _line(cells: Sequence[str], table: Sequence[Column]) -> str:
    pairs = zip(cells, table, strict=True)
    texts = [cell.rjust(c.width) if c.right else cell.ljust(c.width) for cell, c in pairs]
    return (" " * _GAP).join(texts).rstrip()
