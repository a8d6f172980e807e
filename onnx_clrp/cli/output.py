"""What the verbs print: tables for people, JSON for machines, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_WIDE = 10_000
"""Columns for a table that goes to a file or a pipe, where nothing needs to be wrapped."""


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """A table; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        side = "right" if column in right else "left"
        table.add_column(column, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as it stands: labels are no markup
    wide = sys.stdout is None or not sys.stdout.isatty()  # None where it was closed
    Console(width=_WIDE if wide else None, highlight=False).print(table)


def print_json(data: Any) -> None:
    """One JSON document, in ASCII for any terminal; a number that is not finite becomes null."""
    click.echo(json.dumps(_finite(data), indent=2))


def notice(text: str) -> None:
    """A remark to the user, which is no part of the result."""
    click.echo(f"onnx-clrp: {text}", err=True)


def progress() -> Progress:
    """A progress display on standard error, which vanishes when the work is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def counted() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with rate and remaining time; it is told of the work, what is done, and of how much."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def watch(work: str, done: int, total: int) -> None:
            if work not in tasks:
                tasks[work] = bar.add_task(work, total=total, rate="")
            task = tasks[work]
            speed = bar.tasks[task].speed
            bar.update(task, completed=done, rate=f"{speed:.3g}/s" if speed else "")

        yield watch


def busy(text: str) -> AbstractContextManager[object]:
    """A spinner on standard error while a block runs; nothing where nobody watches."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(text) if console.is_terminal else nullcontext()


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data
