"""Operators that only move values: relevance goes back the way they came, the adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Kind
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Sizes, Tape, Tensor

_LARGEST = 1024
"""A matrix that picks among more places than this costs more than to add up place by place."""


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
    of_x, of_y = (t.dims(z, range(1, t.rank(z))) or [] for z in (x, y))
    same_channels = of_x[:1] == of_y[:1] != [] and prod(of_x) == prod(of_y)
    return t.still_picked(r, t.like(r, x)) if same_channels else t.like(r, x)


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
        _absorb_unless_carried(t, x, piece)
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
    _refuse_data(t, "bounds", starts, ends)
    front = _front(t, x, starts, axes, steps)
    if front is None:
        return _returned(t, r, [x], lambda at: t.Slice(at, starts, ends, axes, steps))[0]
    # For all axes: the runtime's own optimiser mistakes a Pad of some between Transposes.
    axes_of_x = range(-t.rank(x), 0)
    begin = [np.array([front.get(a, 0)]) for a in axes_of_x]
    behind = [
        t.Sub(t.sizes(x, [a]), t.Add(t.sizes(y, [a]), b)) if a in front else np.array([0])
        for a, b in zip(axes_of_x, begin, strict=True)
    ]
    return t.Pad(r, t.Concat([0], *begin, [0], *behind, axis=0), 0.0)


def _front(
    t: Tape, x: Tensor, starts: Tensor, axes: Tensor | None, steps: Tensor | None
) -> dict[int, int] | None:
    """Where a slice in steps of 1 begins, by axis from the end; None if that is not known."""
    first, step = t.facts.value(starts), t.facts.value(steps)
    if first is None or (steps is not None and (step is None or (step != 1).any())):
        return None
    front = {}
    for a, i in zip(t.integers(axes, "axes") or range(first.size), first.reshape(-1), strict=True):
        axis = a % t.rank(x) - t.rank(x)
        size = _size(t, x, axis)
        if size is None and i < 0:
            return None
        front[axis] = int(i) if size is None else slice(int(i), None).indices(size)[0]
    return front


@rule("Gather", bounds=Kind.MOVEMENT)
def gather(t: Tape, r: Tensor, y: Tensor, x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """adjoint: back to the places that were picked; one picked twice gets both."""
    picked, size = t.facts.value(indices), _size(t, x, axis)
    if picked is None or picked.ndim > 1 or size is None or size > _LARGEST:
        return pick(t, r, y, x, indices, axis=axis)
    along = axis % t.rank(x) - t.rank(x)
    whole = t.Unsqueeze(r, [along]) if picked.ndim == 0 else r
    return t.contract(whole, along, t.operand(_picking([int(i) for i in picked.reshape(-1)], size)))


@rule("GatherElements", "GatherND", "Compress", "ReverseSequence", bounds=Kind.MOVEMENT)
def pick(t: Tape, r: Tensor, y: Tensor, x: Tensor, where: Tensor, **how: Any) -> Tensor:
    """adjoint: back to the places that were picked; one picked twice gets both."""
    _refuse_data(t, "indices", where)
    return _returned(t, r, [x], lambda at: t.node(t.step.op, [at, where], how)[0])[0]


@rule("ScatterElements", "ScatterND", bounds=Kind.JOIN)
def scatter(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    where: Tensor,
    updates: Tensor,
    *,
    reduction: str = "none",
    **how: Any,
) -> list[Tensor | None]:
    """adjoint: what was put in gets its share back, and x what it kept."""
    _refuse_data(t, "indices", where)
    if reduction != "none":
        raise UnsupportedError(f"its reduction is {reduction!r}")
    parts = _returned(t, r, [x, updates], lambda a, b: t.node(t.step.op, [a, where, b], how)[0])
    for part, handed in zip((x, updates), parts, strict=True):
        _absorb_unless_carried(t, part, handed)
    return [parts[0], None, parts[1]]


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
    _refuse_data(t, "widths", pads)
    if mode != "constant":
        return _returned(t, r, [x], lambda at: t.Pad(at, pads, None, axes, mode=mode))[0]
    kept = t.Pad(r, _negated(t, x, pads, axes), 0.0)
    lost = t.Sub(t.Unsqueeze(t.total(r), [1]), t.Unsqueeze(t.total(kept), [1]))
    t.absorb(lost, "the padding is no part of the input")
    return kept


def _negated(t: Tape, x: Tensor, pads: Tensor, axes: Tensor | None) -> Sizes:
    """The widths that undo a Pad's, of relevance and for all axes.

    (The runtime's own optimiser mistakes a Pad of some axes between Transposes.)
    """
    rank = t.rank(x)
    along = [a % rank for a in t.integers(axes, "axes") or range(rank)]
    known = t.facts.value(pads)
    widths = t.Neg(pads) if known is None else -known

    def width(axis: int, side: int) -> Sizes:
        if axis not in along:
            return np.array([0])
        i = along.index(axis) + side * len(along)
        return t.Slice(widths, [i], [i + 1]) if known is None else widths[i : i + 1]

    begin, end = ([width(axis, side) for axis in range(rank)] for side in (0, 1))
    return t.Concat([0], *begin, [0], *end, axis=0)


@rule("Expand", bounds=Kind.MOVEMENT)
def expand(t: Tape, r: Tensor, y: Tensor, x: Tensor, shape: Tensor) -> Tensor:
    """adjoint: the copies added up."""
    _refuse_data(t, "shape", shape)
    alike = t.rank(x) == t.rank(y) and (t.dims(x, [0]) is None) == (t.dims(y, [0]) is None)
    if alike and t.dims(x, range(1, t.rank(x))) is not None:
        return t.unbroadcast(r, y, x)
    sizes = t.Concat([1] * (t.rank(y) - t.rank(x)), t.sizes(x, range(t.rank(x))), axis=0)
    return _copies_added(t, r, x, t.Div(t.Shape(y), sizes), sizes, t.rank(y))


@rule("Tile", bounds=Kind.MOVEMENT)
def tile(t: Tape, r: Tensor, y: Tensor, x: Tensor, repeats: Tensor) -> Tensor:
    """adjoint: the copies added up."""
    _refuse_data(t, "repeats", repeats)
    return _copies_added(t, r, x, repeats, t.Shape(x), t.rank(x))


def _copies_added(
    t: Tape, r: Tensor, x: Tensor, repeats: Tensor, sizes: Sizes, rank: int
) -> Tensor:
    """Relevance of `repeats` copies of `sizes` along each axis, added up."""
    pairs = t.Concat(t.Unsqueeze(repeats, [1]), t.Unsqueeze(sizes, [1]), axis=1)
    apart = t.Reshape(r, t.Concat(t.targets, t.Reshape(pairs, [-1]), axis=0))
    return t.like(t.ReduceSum(apart, [2 * i + 1 for i in range(rank)], keepdims=0), x)


@rule("DepthToSpace", bounds=Kind.MOVEMENT)
def depth_to_space(
    t: Tape, r: Tensor, y: Tensor, x: Tensor, *, blocksize: int, mode: str = "DCR"
) -> Tensor:
    """adjoint: the blocks back into the channels."""
    deep = t.SpaceToDepth(t.flat(r, y), blocksize=blocksize)
    if mode == "CRD":  # the places of a block vary fastest among the channels, not slowest
        sizes = t.Concat([-1, blocksize**2], t.sizes(y, [1]), t.sizes(x, [2, 3]), axis=0)
        deep = t.Transpose(t.Reshape(deep, sizes), perm=[0, 2, 1, 3, 4])
    return t.like(deep, x)


@rule("SpaceToDepth", bounds=Kind.MOVEMENT)
def space_to_depth(t: Tape, r: Tensor, y: Tensor, x: Tensor, *, blocksize: int) -> Tensor:
    """adjoint: the channels back into the blocks."""
    return t.like(t.DepthToSpace(t.flat(r, y), blocksize=blocksize), x)


def _returned(
    t: Tape, r: Tensor, xs: Sequence[Tensor], move: Callable[..., Tensor]
) -> list[Tensor]:
    """Relevance back to where `move` takes its values from: it is shown the places of `xs`."""
    sizes = t.Concat(*(t.Reshape(t.Size(x), [1]) for x in xs), axis=0)
    total = t.ReduceSum(sizes, keepdims=1)
    places = t.node("Split", [t.Range(0, t.Squeeze(total), 1), sizes], {"axis": 0}, len(xs))
    origin = move(*(t.Reshape(p, t.Shape(x)) for p, x in zip(places, xs, strict=True)))
    rows = t.Reshape(r, t.Concat(t.targets, [-1], axis=0))
    index = t.Expand(t.Reshape(origin, [1, -1]), t.Shape(rows))
    empty = t.Expand(0.0, t.Concat(t.targets, total, axis=0))
    added = t.ScatterElements(empty, index, rows, axis=1, reduction="add")
    handed = t.node("Split", [added, sizes], {"axis": 1}, len(xs))
    return [t.like(part, x) for part, x in zip(handed, xs, strict=True)]


def _size(t: Tape, x: Tensor, axis: int) -> int | None:
    known = t.dims(x, [axis])
    return None if known is None else known[0]


def _absorb_unless_carried(t: Tape, x: Tensor, r: Tensor) -> None:
    if not t.carries(x):
        t.absorb(r, "a part that does not depend on the input")


def _refuse_data(t: Tape, what: str, *xs: Tensor) -> None:
    if any(map(t.carries, xs)):
        raise UnsupportedError(f"its {what} depend on the input")


def _picking(picked: Sequence[int], size: int) -> NDArray[np.float32]:
    """The matrix `[len(picked), size]` that picks elements of an axis."""
    return np.eye(size, dtype=np.float32)[np.asarray(picked, np.int64)]
