"""Sliding windows over arrays: the geometry of convolutions and pools, for the float64 run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes: a number an axis for each."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    size: Ints
    begin: Ints
    end: Ints
    out: Ints

    @classmethod
    def over(
        cls,
        size: Sequence[int],
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
    ) -> Window:
        """The window of a node's attributes over an input of that spatial size."""
        n = len(kernel)
        length, stride, dilation = np.array(size), each(strides, 1, n), each(dilations, 1, n)
        extent = dilation * (np.array(kernel) - 1) + 1
        if auto_pad.startswith("SAME"):
            out = -(-length // stride)
            total = np.maximum((out - 1) * stride + extent - length, 0)
            begin, end = halves(total, auto_pad)
        else:
            begin, end = np.split(each(pads, 0, 2 * n), 2)
            room = length + begin + end - extent
            out = (-(-room // stride) if ceil_mode else room // stride) + 1
            if ceil_mode:  # no window starts behind the input
                out = out - ((out - 1) * stride >= length + begin)
        return cls(np.array(kernel), stride, dilation, length, begin, end, out)

    def pad(self, x: Array, fill: float) -> Array:
        """`x` with its padding, and room behind for the windows that hang over the end."""
        extent = self.dilations * (self.kernel - 1) + 1
        needed = (self.out - 1) * self.strides + extent - self.size - self.begin
        width = np.stack([self.begin, np.maximum(self.end, needed)], axis=1)
        return np.pad(x, [(0, 0), (0, 0), *width], constant_values=fill) if width.any() else x

    def places(self, padded: Array) -> Iterator[Array]:
        """For each place in the window, row-major, a view of what stands there: `[..., *out]`."""
        span = (self.out - 1) * self.strides + 1
        for place in np.ndindex(*self.kernel):
            start = np.array(place) * self.dilations
            yield padded[box(start, start + span, self.strides)]


def box(start: Ints, stop: Ints, step: Ints | None = None) -> tuple[Any, ...]:
    """The index of a box in the last axes."""
    steps = np.ones_like(stop) if step is None else step
    return (..., *map(slice, start, stop, steps))


def each(values: Sequence[int] | None, default: int, n: int) -> Ints:
    """An attribute of a number an axis, with its default where it is left out."""
    return np.array(values) if values else np.full(n, default)


def halves(total: Ints, auto_pad: str) -> tuple[Ints, Ints]:
    """Padding split in front and behind; what is odd goes behind for SAME_UPPER alone."""
    begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    return begin, total - begin
