"""Pools: the winner takes all of a maximum; a mean is shared by contribution or evenly."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Kind, with_zero
from onnx_clrp.redistribute import LinearMap
from onnx_clrp.rules import gradient, rule, sliding
from onnx_clrp.rules.adjoint import adjoint
from onnx_clrp.rules.window import Window

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


_MOST_PLACES = 1024
"""In a window: each may take nodes of its own, and in the graph of an untrusted model."""


@gradient("MaxPool")
@rule("MaxPool", bounds=Kind.CHOICE)
def max_pool(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """winner takes all: the first maximum of the window, row-major; overlapping windows add.

    Under a composite that splits ties, all that equal the maximum get the same.

    A window that is the whole plane is left to an ArgMax, of which the standard says that it takes
    the first of several. All others are compared, place by place, with the output, which the same
    forward pass made; where they stand at every position, with the maxima along one axis after the
    other. A MaxPool is not asked for indices: those of ties differ from device to device.
    """
    window = Window.of(kernel_shape, strides, pads, dilations, auto_pad)
    if ceil_mode:
        window.refuse_late_start(t, x)
    if window.is_whole(t, x):
        return _to_first(t, "ArgMax", r, x, window.axes)
    places = prod(window.kernel)
    if places > _MOST_PLACES:
        raise UnsupportedError(f"its window has {places} places, more than {_MOST_PLACES}")
    reals, highest = _above_padding(t, x, x), _above_padding(t, y, x)
    if sliding.applies(t, window, x):
        placed = sliding.to_winners(t, window, r, highest, reals)
    else:
        won = t.composite.winners(t, window.patches(t, reals, y, -np.inf), highest)
        placed = window.place(t, r, won, x, y)
    return t.vanishing(placed, x) if t.vanishes(r, y) else placed


@gradient("GlobalMaxPool")
@rule("GlobalMaxPool", bounds=Kind.CHOICE)
def global_max_pool(t: Tape, r: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """winner takes all: the first maximum of the plane, row-major."""
    return _to_first(t, "ArgMax", r, x, range(2 - t.rank(x), 0))


@gradient("ReduceMax", "ReduceMin")
@rule("ReduceMax", "ReduceMin", bounds=Kind.CHOICE)
def reduce_extreme(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    axes: Tensor | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    """winner takes all: the first maximum, or minimum, over the axes, row-major."""
    reduced = reduced_axes(t, x, axes, noop_with_empty_axes)
    if not reduced:
        return r
    winning = "ArgMax" if t.step.op == "ReduceMax" else "ArgMin"
    return _to_first(t, winning, kept(t, r, reduced, keepdims), x, reduced)


@gradient("AveragePool")
@rule("AveragePool", bounds=with_zero)
def average_pool(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """rule for means: the sum over each window's real elements, by contribution or evenly."""
    window = Window.of(kernel_shape, strides, pads, dilations, auto_pad)
    # To the operator the zeros of a Pad in front are elements like others, and no padding.
    unfolded = t.step.unfolded or t.step
    padded = unfolded.inputs[0] or x
    own = Window.of(kernel_shape, strides, unfolded.attributes.get("pads"), dilations, auto_pad)
    if ceil_mode:
        own.refuse_late_start(t, padded)
        window, own = window.overhanging(t, x, y), own.overhanging(t, padded, y)
    shape = t.sizes(y, range(t.rank(y)))

    def planes(a: Tensor, like: Tensor) -> Tensor:
        return t.Reshape(a, t.Concat([-1, 1], t.sizes(like, window.axes), axis=0))

    def sums(window: Window, a: Tensor) -> Tensor:
        total = window.convolve(t, a, ones)
        if not ceil_mode or t.dims(y, window.axes) is not None:
            return total
        return t.Slice(total, [0] * len(window.axes), t.sizes(y, window.axes), [*window.axes])

    def forward(a: Tensor, ones: Tensor) -> Tensor:
        return t.Reshape(sums(window, planes(a, x)), shape)

    def transpose(s: Tensor, ones: Tensor) -> Tensor:
        return t.like(adjoint(t, window, planes(s, y), ones, x, y), x)

    def count() -> Tensor:
        """As the operator itself counts; runtimes do not agree on padding with ceil_mode."""
        plane = t.Expand(1.0, t.Concat([1, 1], t.sizes(padded, window.axes), axis=0))
        return t.Div(sums(own, plane), t.node("AveragePool", [plane], unfolded.attributes)[0])

    ones = t.operand(np.ones((1, 1, *window.kernel), np.float32))
    return t.still_picked(r, t.average(LinearMap(x, y, ones, forward, transpose, count=count), r))


@gradient("GlobalAveragePool")
@rule("GlobalAveragePool", bounds=Kind.CHOICE)
def global_average_pool(t: Tape, r: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """rule for means: the sum over the plane, by contribution or evenly."""
    return t.still_picked(r, _mean(t, r, y, x, range(2 - t.rank(x), 0)))


@gradient("ReduceMean", "ReduceSum")
@rule("ReduceMean", bounds=Kind.CHOICE)
@rule("ReduceSum")
def reduce_mean(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    axes: Tensor | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    """rule for means: the sum over the axes, by contribution or evenly."""
    reduced = reduced_axes(t, x, axes, noop_with_empty_axes)
    if not reduced:
        return r
    y = t.result(y, lambda: t.ReduceSum(x, reduced, keepdims=keepdims))
    arrived, y = (kept(t, z, reduced, keepdims) for z in (r, y))
    handed = _mean(t, arrived, y, x, reduced, summed=t.step.op == "ReduceSum")
    return t.still_picked(r, handed) if 1 - t.rank(x) not in reduced else handed


def _mean(
    t: Tape, r: Tensor, y: Tensor, x: Tensor, axes: Sequence[int], summed: bool = False
) -> Tensor:
    def forward(a: Tensor, ones: Tensor) -> Tensor:
        return t.ReduceSum(a, [*axes], keepdims=1)

    def transpose(s: Tensor, ones: Tensor) -> Tensor:
        return s  # broadcasts back over the plane

    def count() -> Tensor:
        return t.ReduceProd(t.Concat(*(t.sizes(x, [a]) for a in axes), axis=0), keepdims=0)

    ones = t.operand(np.float32(1).reshape(()))
    f = LinearMap(x, y, ones, forward, transpose, count=None if summed else count)
    return t.average(f, r)


def _to_first(t: Tape, winning: str, r: Tensor, x: Tensor, axes: Sequence[int]) -> Tensor:
    """`r`, whose reduced axes are 1, to the first winner (ArgMax, ArgMin) of `x` over them."""
    if t.composite.splits_ties:
        extreme = t.node(f"Reduce{winning[3:]}", [x, [*axes]], {"keepdims": 1})[0]
        won = t.number(t.Equal(x, extreme))
        return t.Mul(r, t.Div(won, t.ReduceSum(won, [*axes], keepdims=1)))
    rank = t.rank(x)
    kept = [a for a in range(rank) if a - rank not in axes]
    order = [*kept, *(a + rank for a in axes)]
    last = t.Transpose(x, perm=order)
    rows = t.Reshape(last, t.Concat(*(t.sizes(x, [a]) for a in kept), [-1], axis=0))
    winner = t.node(winning, [rows], {"axis": -1, "keepdims": 1})[0]
    width = t.Squeeze(t.Shape(rows, start=-1), [0])
    won = t.number(t.Equal(winner, t.Range(0, width, 1)))
    back = t.Transpose(t.Reshape(won, t.Shape(last)), perm=[int(i) for i in np.argsort(order)])
    return t.Mul(r, back)


def _above_padding(t: Tape, a: Tensor, x: Tensor) -> Tensor:
    """`a`, the pool's input `x` or its output, with the lowest number in place of -inf.

    So padding, which is -inf, wins nothing. Runtimes pad with either of the two, and so answer a
    window of nothing but -inf with either. Where `x` is proven to be above, it costs nothing.
    """
    if np.isfinite(t.interval(x).lo).all():
        return a
    view = t.facts.reals.views.get(x.name)
    half = view is not None and view.dtype == "float16"
    return t.shaped(t.Clip(a, float(np.finfo(np.float16 if half else np.float32).min)), a)


def reduced_axes(t: Tape, x: Tensor, axes: Tensor | None, none_is_none: int) -> list[int]:
    """The reduced axes, counted from the end; all if none are named, which the batch forbids."""
    rank = t.rank(x)
    named = t.integers(axes, "axes") or ([] if none_is_none else [*range(rank)])
    counted = sorted(a % rank - rank for a in named)
    if -rank in counted:
        raise UnsupportedError("it reduces over the batch axis")
    return counted


def kept(t: Tape, y: Tensor, axes: Sequence[int], keepdims: int) -> Tensor:
    """What belongs to a reduction's output, with the reduced axes in it as 1."""
    return y if keepdims else t.Unsqueeze(y, [*axes])
