"""The exact adjoint of a convolution, by the operator that runtimes are fastest at.

That is a ConvTranspose with the same weights, unless a convolution with reversed ones does it and
is faster: of stride 1, where it has the channels for it; depthwise also over zeros put in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx_clrp.rules.window import Window
    from onnx_clrp.tape import Tape, Tensor

_VECTOR = 16
_SMALL_WINDOW, _SMALL_PLANE = 9, 32 * 32
"""Beyond the one, or within the other, zeros cost less than a depthwise ConvTranspose."""
_BEFORE_ALL = -(2**31)
"""Where a Slice ends that runs backwards through all of an axis."""


def adjoint(
    t: Tape,
    window: Window,
    s: Tensor,
    w: Tensor,
    x: Tensor,
    y: Tensor,
    group: int = 1,
    channels: tuple[int, int] | None = None,
) -> Tensor:
    """The adjoint of `window.convolve`: `[B, M, *y's size]` to `[B, C, *x's size]`.

    `x` and `y` only say which sizes, and `channels` those of the first axes of `w`.
    """
    if channels is not None and _convolves_back(window, *channels, group):
        flipped = _flipped(t, window, w, *channels, group)
        return _turned(window).convolve(t, s, flipped, group)
    size, out = t.dims(x, window.axes), t.dims(y, window.axes)
    if channels == (group, 1) and size and out and _stuffs(window, size, out):
        flipped = _flipped(t, window, w, *channels, group)
        stuffed = _stuffed(t, s, window.strides, out)
        return _turned_over_zeros(window, size, out).convolve(t, stuffed, flipped, group)
    return _spread(t, window, s, w, x, y, group)


def _spread(
    t: Tape, window: Window, s: Tensor, w: Tensor, x: Tensor, y: Tensor, group: int
) -> Tensor:
    """By a ConvTranspose of symmetric pads, since the CUDA provider leaves others to the CPU.

    What that puts in front or behind is cut off.
    """
    shift = [min(b, e) for b, e in zip(window.begin, window.end, strict=True)]
    front = np.array(window.begin) - shift
    size, exact = t.sizes(x, window.axes), False
    extra = [stride - 1 for stride in window.strides]
    known, out = t.dims(x, window.axes), t.dims(y, window.axes)
    if known is not None and out is not None and window.auto is None:
        reach = [
            (o - 1) * stride + extent - 2 * m
            for o, stride, extent, m in zip(out, window.strides, window.extent, shift, strict=True)
        ]
        extra = [max(0, c + n - r) for c, n, r in zip(front, known, reach, strict=True)]
        exact = not front.any() and [r + e for r, e in zip(reach, extra, strict=True)] == known
    symmetric = replace(window, pads=tuple(shift * 2))
    full = symmetric.spread(t, s, w, group, [int(e) for e in extra])
    cut = window.beginning(t, x, y) if window.auto else front
    return full if exact else t.Slice(full, cut, t.Add(cut, size), [*window.axes])


# -- stride 1 -------------------------------------------------------------------------------------


def _convolves_back(window: Window, m: int, c: int, group: int) -> bool:
    """Is the adjoint a convolution, and one that is no slower than a ConvTranspose?

    A convolution to a few channels is: vector units calculate eight or sixteen at a time.
    """
    if {*window.strides} != {1} or window.auto is not None:
        return False
    if any(p > k - 1 for p, k in zip(window.pads, window.extent * 2, strict=True)):
        return False  # some of what it padded would have to be cut off
    depthwise = group == m and c == 1
    return depthwise or (m // group % _VECTOR == 0 and c >= _VECTOR // 2)


def _turned(window: Window) -> Window:
    """The window of the convolution that is the adjoint."""
    reach = [k - 1 for k in window.extent] * 2
    return replace(window, pads=tuple(r - p for r, p in zip(reach, window.pads, strict=True)))


def _flipped(t: Tape, window: Window, w: Tensor, m: int, c: int, group: int) -> Tensor:
    """The weights `[M, C/group, *kernel]` of the adjoint: `[C, M/group, *kernel]`, reversed."""
    n = len(window.kernel)
    if group > 1:
        w = t.Reshape(w, [group, m // group, c, *window.kernel])
        w = t.Transpose(w, perm=[0, 2, 1, *range(3, n + 3)])
        w = t.Reshape(w, [group * c, m // group, *window.kernel])
    else:
        w = t.Transpose(w, perm=[1, 0, *range(2, n + 2)])
    if set(window.kernel) == {1}:
        return w
    return t.Slice(w, [-1] * n, [_BEFORE_ALL] * n, [*window.axes], [-1] * n)


# -- depthwise, in steps --------------------------------------------------------------------------


def _stuffs(window: Window, size: Sequence[int], out: Sequence[int]) -> bool:
    """Is a depthwise adjoint faster as a convolution of what is stuffed with zeros?"""
    if window.auto is not None or min(_turned_over_zeros(window, size, out).pads) < 0:
        return False
    return prod(window.kernel) > _SMALL_WINDOW or prod(size) <= _SMALL_PLANE


def _turned_over_zeros(window: Window, size: Sequence[int], out: Sequence[int]) -> Window:
    """The window of the convolution that is the adjoint, over `out` stuffed with zeros."""
    begin = [e - 1 - b for e, b in zip(window.extent, window.begin, strict=True)]
    stuffed = [o * stride for o, stride in zip(out, window.strides, strict=True)]
    end = [n + b - m for n, b, m in zip(size, window.begin, stuffed, strict=True)]
    return replace(window, strides=(1,) * len(begin), pads=(*begin, *end))


def _stuffed(t: Tape, s: Tensor, strides: Sequence[int], out: Sequence[int]) -> Tensor:
    """`s` with zeros between its positions, as many as the strides leave out."""
    repeated = t.Resize(
        s,
        None,
        np.array([1, 1, *strides], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    first = np.zeros(strides, np.float32)
    first.flat[0] = 1
    return t.Mul(repeated, np.tile(first, [*out]))
