"""Linear maps with constant weights: how each runs W and Wᵀ; who gets what is the composite's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.redistribute import LinearMap
from onnx_clrp.rules import gradient, rule
from onnx_clrp.rules.adjoint import adjoint
from onnx_clrp.rules.window import Window, same_pads

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor

_OVER_BATCH = "it adds up over the first axis of its data, which is the batch"


@gradient("Conv")
@rule("Conv", linear=True)
def conv(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """linear map: y = W * x."""
    _only_first(t, x, w)
    m, c, *kernel = t.weight_sizes(w)
    window = Window.of(kernel, strides, pads, dilations, auto_pad)

    def forward(a: Tensor, weight: Tensor) -> Tensor:
        return window.convolve(t, a, weight, group)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        return t.like(adjoint(t, window, t.flat(s, y), weight, x, y, group, (m, c)), x)

    if window.is_pointwise and group == 1 and _is_picked(t, r, bias):
        return _of_rows(t, r, y, x, t.Reshape(w, [m, c]), bias, positions=len(kernel))

    def plus(a: Tensor, weight: Tensor, number: float) -> Tensor:
        return window.convolve(t, a, weight, group, np.full(m, number, np.float32))

    offset = _laid(t, bias, len(window.kernel))
    f = LinearMap(x, y, w, forward, transpose, outputs=0, bias=offset, output=_output(t, y))
    joint = (1, 1) if group == 1 and m > c else None
    return t.redistribute(replace(f, plus=plus, inputs=joint), r)


@gradient("ConvTranspose")
@rule("ConvTranspose", linear=True)
def conv_transpose(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """linear map: y = Wᵀ * x."""
    _only_first(t, x, w)
    window = Window.of(t.weight_sizes(w)[2:], strides, pads, dilations)
    if auto_pad.startswith("SAME"):
        window = _multiplying(window, output_padding, auto_pad)

    def forward(a: Tensor, weight: Tensor) -> Tensor:
        return window.spread(t, a, weight, group, output_padding)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        full = window.convolve(t, t.flat(s, y), weight, group)
        # Output padding beyond a stride leaves room for a window more than there was.
        exact = t.Slice(full, [0] * len(window.kernel), t.sizes(x, window.axes), [*window.axes])
        return t.like(exact if max(output_padding or [0]) else full, x)

    offset = _laid(t, bias, len(window.kernel))
    f = LinearMap(
        x, y, w, forward, transpose, outputs=1, groups=group, bias=offset, output=_output(t, y)
    )
    return t.redistribute(f, r)


@gradient("Gemm")
@rule("Gemm", linear=True)
def gemm(
    t: Tape,
    r: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """linear map: y = α x W + β b or α W x + β b."""
    if t.carries(b):
        return _gemm_on_the_right(t, r, y, a, b, bias, alpha, beta, transA, transB)
    _only_first(t, a, b)
    if transA:
        raise UnsupportedError(_OVER_BATCH)
    w, offset = _times(t, b, alpha), None if bias is None else _times(t, bias, beta)
    if _is_picked(t, r, bias):
        return _of_rows(t, r, y, a, w, offset, axis=0 if transB else 1)

    def forward(data: Tensor, weight: Tensor) -> Tensor:
        return t.Gemm(data, weight, transB=transB)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        return t.like(t.Gemm(t.flat(s, y), weight, transB=1 - transB), a)

    f = LinearMap(a, y, w, forward, transpose, dense=True, outputs=0 if transB else 1)
    return t.redistribute(replace(f, bias=offset, output=_output(t, y)), r)


def _is_picked(t: Tape, r: Tensor, bias: Tensor | None) -> bool:
    """Does relevance come from a single score of each target, through a plain map?

    What is added behind it is but a bias that a node of its own adds.
    """
    tail = t.step.tail
    scaled = t.step.signs is not None or t.step.scales or not (tail is None or tail.adds_only)
    laid = bias is None or (t.rank(bias) == 1 and t.dims(bias, [0]) != [1])
    return r.name in t.picks and not scaled and laid


def _of_rows(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    axis: int = 0,
    positions: int = 0,
) -> Tensor:
    """The map to the scores that relevance comes from alone: one row of `W` for each target.

    All others have no relevance to hand on, so that nothing need be known of them. Behind the
    channels `x` and `y` have so many axes of positions, for each of which the map is the same.
    """
    chosen, channels = t.picks[r.name], [-1 - positions]
    behind = [*range(-positions, 0)]
    rows = t.Gather(w, chosen, axis=axis)  # [k, N, F], or with the axis of x in front
    rows = rows if axis == 0 else t.Transpose(rows, perm=[1, 2, 0])
    rows = t.Unsqueeze(rows, behind) if behind else rows

    def of_scores(values: Tensor) -> Tensor:
        return t.Unsqueeze(t.Gather(values, chosen, axis=0), channels + behind)

    offset = None if bias is None else of_scores(bias)
    if t.step.tail is not None:
        shift = t.operand(t.step.tail.shift)
        shift = shift if t.step.tail.shift.size == 1 else of_scores(shift)
        offset = shift if offset is None else t.Add(offset, shift)

    def forward(data: Tensor, weight: Tensor) -> Tensor:
        return t.ReduceSum(t.Mul(data, weight), channels, keepdims=1)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        return t.Mul(s, weight)

    f = LinearMap(x, y, rows, forward, transpose, dense=not positions, bias=offset, folded=True)
    return t.redistribute(f, t.ReduceSum(r, channels, keepdims=1))


def _gemm_on_the_right(
    t: Tape,
    r: Tensor,
    y: Tensor,
    w: Tensor,
    x: Tensor,
    bias: Tensor | None,
    alpha: float,
    beta: float,
    transA: int,
    transB: int,
) -> Tensor:
    """y = W xᵀ, the batch on the second axis of `y`."""
    _only_first(t, x, w)
    if not transB:
        raise UnsupportedError(_OVER_BATCH)
    w, offset = _times(t, w, alpha), None if bias is None else _times(t, bias, beta)

    def forward(data: Tensor, weight: Tensor) -> Tensor:
        return t.Gemm(weight, data, transA=transA, transB=1)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        rows = t.Transpose(weight, perm=[1, 0]) if transA else weight
        return t.MatMul(t.Transpose(s, perm=[0, 2, 1]), rows)

    f = LinearMap(x, y, w, forward, transpose, bias=offset, output=_output(t, y))
    return t.redistribute(f, r)


@rule("MatMul", linear=True)
def matmul(t: Tape, r: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """linear map: y = x W or W x."""
    if t.carries(a) and t.carries(b):
        raise UnsupportedError("both operands depend on the input")
    left = t.carries(a)
    x, w = (a, b) if left else (b, a)
    if left and t.rank(x) == len(t.weight_sizes(w)) == 2 and _is_picked(t, r, None):
        return _of_rows(t, r, y, x, w, None, axis=1)
    if t.rank(x) < (2 if left else 3):
        raise UnsupportedError(_OVER_BATCH)
    axes = [*range(len(t.weight_sizes(w)))]
    copies, more = _copies(t, x, t.weight_sizes(w)[:-2]), len(axes) > t.rank(x)
    out = -1 if left else -2
    outputs: int | None = out
    if len(axes) == 1:  # a vector: the matrix of one column or row, whose axis the output lacks
        w, axes = t.Unsqueeze(w, [out]), [0, 1]
        y, r = t.Unsqueeze(y, [out]), t.Unsqueeze(r, [out])
        outputs = None
    axes[-2:] = axes[:-3:-1]

    def forward(data: Tensor, weight: Tensor) -> Tensor:
        return t.MatMul(data, weight) if left else t.MatMul(weight, data)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        handed = forward(s, t.Transpose(weight, perm=axes))
        handed = t.ReduceSum(handed, copies) if copies else handed
        return t.like(handed, x) if more else handed

    aligned = not copies and not more
    f = LinearMap(x, y, w, forward, transpose, dense=aligned, outputs=outputs)
    return t.redistribute(replace(f, output=_output(t, y)), r)


@gradient("MatMul")
def matmul_gradient(
    t: Tape, g: Tensor, y: Tensor, a: Tensor, b: Tensor
) -> Tensor | list[Tensor | None]:
    """g bᵀ and aᵀ g; of a linear map the adjoint."""
    if not (t.carries(a) and t.carries(b)):
        return matmul(t, g, y, a, b)
    if not t.rank(a) == t.rank(b) == t.rank(y):
        raise UnsupportedError("a product of two activations with different numbers of axes")
    turned = [*range(t.rank(a))]
    turned[-2:] = turned[:-3:-1]
    parts = t.MatMul(g, t.Transpose(b, perm=turned)), t.MatMul(t.Transpose(a, perm=turned), g)
    return [_without_copies(t, part, x, y) for part, x in zip(parts, (a, b), strict=True)]


def _without_copies(t: Tape, part: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """What came to the copies of a factor that was repeated along axes of the product, added up."""
    if all(t.facts.same_sizes(x, y)[:-2]):
        return part
    axes = t.differing_axes(t.Shape(x), t.Shape(part, start=1))
    return t.ReduceSum(part, axes, keepdims=1, noop_with_empty_axes=1)


def _copies(t: Tape, x: Tensor, batch: Sequence[int]) -> list[int]:
    """The axes of the product along which weights of these batch sizes repeat the data."""
    rank, copies = t.rank(x), []
    for axis, n in zip(range(-2 - len(batch), -2), batch, strict=True):
        there = t.dims(x, [axis]) if -axis <= rank else [1]
        if n != 1 and there is None:
            raise UnsupportedError("whether its weights repeat the data is known only at run time")
        if n != 1 and there == [1]:
            copies.append(axis)
    return copies


def _multiplying(window: Window, extra: Sequence[int] | None, auto: str) -> Window:
    """The window of a ConvTranspose whose output is as many times as large as its strides say."""
    more = extra or [0] * len(window.kernel)
    totals = [e + p - s for e, p, s in zip(window.extent, more, window.strides, strict=True)]
    if min(totals) < 0:
        raise UnsupportedError(f"auto_pad={auto} with strides beyond its windows")
    return replace(window, pads=tuple(same_pads(totals, auto)))


def _only_first(t: Tape, x: Tensor, w: Tensor) -> None:
    if t.carries(w) or not t.carries(x):
        raise UnsupportedError("its weights depend on the input")


def _times(t: Tape, w: Tensor, factor: float) -> Tensor:
    return w if factor == 1 else t.shaped(t.Mul(w, float(factor)), w)


def _laid(t: Tape, bias: Tensor | None, n: int) -> Tensor | None:
    """A bias for each channel, so that it broadcasts over `n` spatial axes."""
    return None if bias is None else t.Reshape(bias, [-1] + [1] * n)


def _output(t: Tape, y: Tensor) -> Tensor | None:
    """The tensor that holds the map's output, unless it holds only what rounding left of it."""
    return y if y.name not in t.facts.reals.views else None
