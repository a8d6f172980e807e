"""Operators that only move values: relevance goes back the way they came, the adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Kind
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", bounds=Kind.MOVEMENT)
def reshape(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    shape: Tensor | None = None,
    *,
    axis: int = 1,
    allowzero: int = 0,
) -> Tensor:
    """adjoint: back to the input's shape."""
    return t.like(r, x)


@rule("Transpose", bounds=Kind.MOVEMENT)
def transpose(
    t: Tape, r: Tensor, y: Tensor, x: Tensor, *, perm: Sequence[int] | None = None
) -> Tensor:
    """adjoint: the inverse permutation, behind the axis of the targets."""
    order = np.argsort(perm if perm is not None else [*range(t.rank(x))][::-1])
    return t.Transpose(r, perm=[0, *(int(a) + 1 for a in order)])


@rule("Concat", bounds=Kind.JOIN)
def concat(t: Tape, r: Tensor, y: Tensor, *xs: Tensor, axis: int) -> list[Tensor]:
    """adjoint: each input gets its own piece back."""
    axis = axis % t.rank(y) - t.rank(y)
    sizes = t.Concat(*(t.sizes(x, [axis]) for x in xs), axis=0)
    pieces = t.node("Split", [r, sizes], {"axis": axis}, outputs=len(xs))
    for x, piece in zip(xs, pieces, strict=True):
        if not t.carries(x):
            t.absorb(piece)
    return pieces


@rule("Split", bounds=Kind.MOVEMENT, variadic=True)
def split(
    t: Tape,
    r: Sequence[Tensor | None],
    y: Sequence[Tensor],
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
) -> Tensor:
    """adjoint: the pieces together again, zeros for a piece that nobody asked about."""
    pieces = [t.zeros(b) if a is None else a for a, b in zip(r, y, strict=True)]
    return t.Concat(*pieces, axis=axis % t.rank(x) - t.rank(x))


@rule("Slice", bounds=Kind.MOVEMENT)
def slice_(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """adjoint: back to where the slice was cut from, zeros elsewhere."""
    first = t.integers(starts, "starts") or []
    last = t.integers(ends, "ends") or []
    along = t.integers(axes, "axes") or [*range(len(first))]
    step = t.integers(steps, "steps") or [1] * len(first)
    for a, *bounds in zip(along, first, last, step, strict=True):
        axis = a % t.rank(x) - t.rank(x)
        size = _size(t, x, axis)
        picked = range(size)[slice(*bounds)]
        if len(picked) < size or bounds[2] < 0:
            r = t.contract(r, axis, _picking([*picked], size))
    return r


@rule("Gather", bounds=Kind.MOVEMENT)
def gather(t: Tape, r: Tensor, y: Tensor, x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """adjoint: back to the places that were picked; one picked twice gets both."""
    picked = t.facts.value(indices)
    if picked is None or picked.ndim > 1:
        raise UnsupportedError("its indices are no constant list")
    axis = axis % t.rank(x) - t.rank(x)
    size = _size(t, x, axis)
    whole = t.Unsqueeze(r, [axis]) if picked.ndim == 0 else r
    return t.contract(whole, axis, _picking([int(i) for i in picked.reshape(-1)], size))


@rule("Pad", bounds=Kind.PADDING)
def pad(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """adjoint: constant padding is cut off; a reflected place hands its share to the original."""
    widths = t.integers(pads, "pads") or []
    rank = t.rank(x)
    along = [a % rank - rank for a in t.integers(axes, "axes") or range(rank)]
    begin, end = widths[: len(along)], widths[len(along) :]
    if mode == "constant":
        # For all axes: the runtime's own optimiser mistakes a Pad of some between Transposes.
        full = np.zeros((2, rank + 1), np.int64)
        full[:, along] = -np.array([begin, end])
        kept = t.Pad(r, [int(w) for w in full.reshape(-1)], 0.0)
        t.absorb(t.Sub(t.Unsqueeze(t.total(r), [1]), t.Unsqueeze(t.total(kept), [1])))
        return kept
    for axis, *width in zip(along, begin, end, strict=True):
        if any(width):
            size = _size(t, x, axis)
            r = t.contract(r, axis, _picking(_padded(size, width, mode), size))
    return r


@rule("Expand", bounds=Kind.MOVEMENT)
def expand(t: Tape, r: Tensor, y: Tensor, x: Tensor, shape: Tensor) -> Tensor:
    """adjoint: the copies added up."""
    return t.unbroadcast(r, y, x)


def _padded(size: int, width: Sequence[int], mode: str) -> list[int]:
    kept = np.arange(size)[max(0, -width[0]) : size - max(0, -width[1])]
    wide = [max(0, w) for w in width]
    if mode == "reflect":
        return [int(i) for i in np.pad(kept, wide, "reflect")]
    if mode == "edge":
        return [int(i) for i in np.pad(kept, wide, "edge")]
    raise UnsupportedError(f"its mode is {mode!r}")


def _size(t: Tape, x: Tensor, axis: int) -> int:
    known = t.dims(x, [axis])
    if known is None:
        raise UnsupportedError(f"the size of {x.name!r} along axis {axis} is not known")
    return known[0]


def _picking(picked: Sequence[int], size: int) -> NDArray[np.float32]:
    """The matrix `[len(picked), size]` that picks elements of an axis."""
    return np.eye(size, dtype=np.float32)[np.asarray(picked, np.int64)]
