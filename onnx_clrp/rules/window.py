"""Sliding windows: the geometry that convolutions and pools share, and its exact adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.errors import UnsupportedError

if TYPE_CHECKING:
    from onnx_clrp.tape import Sizes, Tape, Tensor


@dataclass(frozen=True)
class Window:
    """A window of `kernel` that slides over the spatial axes; `pads` as ONNX has them."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        strides: Sequence[int] | None,
        pads: Sequence[int] | None,
        dilations: Sequence[int] | None,
    ) -> Window:
        """The window of a node's attributes, with ONNX's defaults for those left out."""
        n = len(kernel)
        return cls(
            tuple(kernel),
            tuple(strides or (1,) * n),
            tuple(pads or (0,) * (2 * n)),
            tuple(dilations or (1,) * n),
        )

    @property
    def axes(self) -> range:
        """The spatial axes, counted from the end."""
        return range(-len(self.kernel), 0)

    @property
    def begin(self) -> tuple[int, ...]:
        """The padding in front of each axis."""
        return self.pads[: len(self.kernel)]

    @property
    def end(self) -> tuple[int, ...]:
        """The padding behind each axis."""
        return self.pads[len(self.kernel) :]

    @property
    def extent(self) -> tuple[int, ...]:
        """The length that the window covers along each axis, holes included."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def convolve(self, t: Tape, x: Tensor, w: Tensor, group: int = 1) -> Tensor:
        """Conv of `x` `[B, C, *size]` with `w`, without a bias."""
        return t.Conv(
            x,
            w,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=group,
            kernel_shape=self.kernel,
        )

    def spread(
        self, t: Tape, x: Tensor, w: Tensor, group: int, output_padding: Sequence[int] | None
    ) -> Tensor:
        """ConvTranspose of `x` `[B, C, *size]` with `w`, without a bias."""
        return t.ConvTranspose(
            x,
            w,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=group,
            kernel_shape=self.kernel,
            output_padding=output_padding,
        )

    def overhanging(self, t: Tape, x: Tensor, y: Tensor) -> Window:
        """The same window with room behind for those that ceil_mode lets hang over the end."""
        size, out = t.dims(x, self.axes), t.dims(y, self.axes)
        if size is None or out is None:
            raise UnsupportedError("ceil_mode with a size that is known only at run time")
        needed = [
            (o - 1) * stride + extent - n - b
            for o, stride, extent, n, b in zip(
                out, self.strides, self.extent, size, self.begin, strict=True
            )
        ]
        end = (max(e, n) for e, n in zip(self.end, needed, strict=True))
        return replace(self, pads=(*self.begin, *end))

    def refuse_late_start(self, t: Tape, x: Tensor) -> None:
        """Refuse ceil_mode where a window would start in the padding behind.

        ONNX counts such a window and runtimes do not, so that they contradict themselves.
        """
        for n, k, s, b, e in zip(
            t.dims(x, self.axes) or [],
            self.extent,
            self.strides,
            self.begin,
            self.end,
            strict=False,
        ):
            if -(-(n + b + e - k) // s) * s >= n + b:
                raise UnsupportedError("ceil_mode starts a window in the padding")

    def adjoint(
        self, t: Tape, s: Tensor, w: Tensor, x: Tensor, y: Tensor, group: int = 1
    ) -> Tensor:
        """The adjoint of `convolve`: `[B, M, *y's size]` to `[B, C, *x's size]`.

        `x` and `y` only say which sizes. The pads are made symmetric, since the CUDA provider
        leaves others to the CPU; what that puts in front or behind is cut off.
        """
        shift = [min(b, e) for b, e in zip(self.begin, self.end, strict=True)]
        cut = np.array(self.begin) - shift
        size, exact = t.sizes(x, self.axes), False
        extra = [stride - 1 for stride in self.strides]
        known, out = t.dims(x, self.axes), t.dims(y, self.axes)
        if known is not None and out is not None:
            reach = [
                (o - 1) * stride + extent - 2 * m
                for o, stride, extent, m in zip(out, self.strides, self.extent, shift, strict=True)
            ]
            extra = [max(0, c + n - r) for c, n, r in zip(cut, known, reach, strict=True)]
            exact = not cut.any() and [r + e for r, e in zip(reach, extra, strict=True)] == known
        symmetric = replace(self, pads=tuple(shift * 2))
        full = symmetric.spread(t, s, w, group, [int(e) for e in extra])
        return full if exact else t.Slice(full, cut, t.Add(cut, size), [*self.axes])

    def patches(self, t: Tape, x: Tensor, y: Tensor, fill: float) -> list[Tensor]:
        """For each place in the window, row-major, what of `x` stands there: `y`'s shape each."""
        n, rank = len(self.kernel), t.rank(x)
        # Behind, room for a window that ceil_mode lets hang over.
        behind = [e + s for e, s in zip(self.end, self.strides, strict=True)]
        pads = [*[0] * (rank - n), *self.begin, *[0] * (rank - n), *behind]
        padded = t.Pad(x, pads, fill)
        span = t.Add(t.Mul(t.Sub(t.sizes(y, self.axes), [1] * n), [*self.strides]), [1] * n)
        return [
            t.Slice(padded, start, t.Add(start, span), [*self.axes], [*self.strides])
            for start in self._places()
        ]

    def _places(self) -> list[Sizes]:
        return [np.array(p) * self.dilations for p in product(*map(range, self.kernel))]

    def place(self, t: Tape, parts: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The adjoint of `patches`: relevance `[k, *y.shape]` for each place, added up at `x`."""
        n = len(self.kernel)
        stacked = t.Concat(*(t.Unsqueeze(p, [-n - 1]) for p in parts), axis=-n - 1)
        shape = t.Concat([-1, len(parts)], t.sizes(y, self.axes), axis=0)
        one_hot = np.eye(len(parts), dtype=np.float32).reshape(len(parts), 1, *self.kernel)
        return t.like(self.adjoint(t, t.Reshape(stacked, shape), t.operand(one_hot), x, y), x)
