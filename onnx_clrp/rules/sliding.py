"""Max pools whose windows stand at every position: winners found along one axis after the other.

The first maximum of a window, row-major, lies in the first row whose own maximum is that of the
window, and is the first in it. So rows win first, and then the places in them: of a window of 3 × 3
six places are looked at in place of nine. Planes are laid out flat meanwhile: runtimes are slow to
move what consists of short rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.redistribute import first_true

if TYPE_CHECKING:
    from onnx_clrp.rules.window import Window
    from onnx_clrp.tape import Tape, Tensor


def applies(t: Tape, window: Window, x: Tensor) -> bool:
    """Are the window's axes two of known sizes that it keeps, and is there a first winner?"""
    known = len(window.kernel) == 2 and t.dims(x, window.axes) is not None
    return known and window.keeps_size and not t.composite.splits_ties


def to_winners(t: Tape, window: Window, r: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Relevance of a max pool's output to the first winner of each window."""
    height, width = t.dims(x, window.axes) or (0, 0)
    column = np.arange(height * width) % width
    highest = t.MaxPool(
        x,
        kernel_shape=[1, window.kernel[1]],
        pads=[0, window.begin[1], 0, window.end[1]],
        dilations=[1, window.dilations[1]],
    )
    whole, between, parts = (t.Reshape(a, [0, 0, -1]) for a in (y, highest, x))
    rows, columns = (_moves(window, axis) for axis in (0, 1))
    of_rows = _back(t, t.Reshape(r, [0, 0, 0, -1]), whole, between, [width * m for m in rows], [])
    inside = [(column - m >= 0) & (column - m < width) for m in columns]
    return t.like(_back(t, of_rows, between, parts, columns, inside), x)


def _moves(window: Window, axis: int) -> list[int]:
    """By how much the input is moved for each place along an axis to stand at its window."""
    start, step = window.begin[axis], window.dilations[axis]
    return [start - step * place for place in range(window.kernel[axis])]


def _back(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    moves: Sequence[int],
    inside: Sequence[NDArray[np.bool_]],
) -> Tensor:
    """From the maxima `y` along an axis to the first winners among `x`, all laid out flat.

    What is moved beyond the end of a row comes to stand in the next one: `inside` says where a
    place of a window is one of its own row. The last place needs no look, since somebody wins.
    """
    if len(moves) == 1:
        return r
    truths = [t.Equal(_moved(t, x, 2, move, -np.inf), y) for move in moves[:-1]]
    for i, there in enumerate(inside[:-1]):
        truths[i] = truths[i] if there.all() else t.And(truths[i], there)
    winners, left = first_true(t, truths)
    parts = (t.Mul(r, t.number(won)) for won in (*winners, left))
    return t.sum(_moved(t, p, 3, -m, 0.0) for p, m in zip(parts, moves, strict=True))


def _moved(t: Tape, a: Tensor, axis: int, move: int, fill: float) -> Tensor:
    """What is laid out along the last axis, `axis`, moved on by so much."""
    none = [0] * axis
    return t.Pad(a, [*none, move, *none, -move], fill) if move else a
