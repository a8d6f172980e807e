"""Sliding windows: the geometry that convolutions and pools share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.rules.adjoint import adjoint

if TYPE_CHECKING:
    from onnx_clrp.tape import Operand, Sizes, Tape, Tensor


@dataclass(frozen=True)
class Window:
    """A window of `kernel` that slides over the spatial axes; `pads` as ONNX has them.

    `auto` is SAME_UPPER or SAME_LOWER where the pads follow from sizes that only the run will tell;
    `pads` are 0 then.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    auto: str | None = None

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        strides: Sequence[int] | None,
        pads: Sequence[int] | None,
        dilations: Sequence[int] | None,
        auto_pad: str = "NOTSET",
    ) -> Window:
        """The window of a node's attributes, with ONNX's defaults for those left out."""
        n = len(kernel)
        window = cls(
            tuple(kernel),
            tuple(strides or (1,) * n),
            tuple(pads or (0,) * (2 * n)),
            tuple(dilations or (1,) * n),
        )
        return window._same(auto_pad) if auto_pad.startswith("SAME") else window

    def _same(self, auto: str) -> Window:
        """The window with pads that keep the size, which a stride makes depend on the size."""
        if set(self.dilations) != {1}:
            raise UnsupportedError(f"auto_pad={auto} with dilations: runtimes do not agree on it")
        if any(k < s - 1 for k, s in zip(self.kernel, self.strides, strict=True)):
            raise UnsupportedError(f"auto_pad={auto} with windows that leave out what it crops")
        if set(self.strides) != {1}:
            return replace(self, pads=(0,) * len(self.pads), auto=auto)
        return replace(self, pads=tuple(same_pads([k - 1 for k in self.kernel], auto)))

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

    @property
    def is_pointwise(self) -> bool:
        """Does every position of the output see the same position of the input alone?"""
        alone = {*self.kernel} == {*self.strides} == {1}
        return alone and not any(self.pads) and self.auto is None

    @property
    def keeps_size(self) -> bool:
        """Is there one for every position of what it slides over?"""
        reach = [sum(p) for p in zip(self.begin, self.end, strict=True)]
        return {*self.strides} == {1} and reach == [e - 1 for e in self.extent]

    @property
    def is_dense(self) -> bool:
        """Are there neither holes in it nor pads around?"""
        return {*self.dilations} == {1} and not any(self.pads) and self.auto is None

    def is_whole(self, t: Tape, x: Tensor) -> bool:
        """Is it known to be as large as the tensor, and so the only one?"""
        return self.is_dense and t.dims(x, self.axes) == [*self.kernel]

    def convolve(
        self, t: Tape, x: Tensor, w: Tensor, group: int = 1, bias: Operand = None
    ) -> Tensor:
        """Conv of `x` `[B, C, *size]` with `w`."""
        return t.Conv(
            x,
            w,
            *([] if bias is None else [bias]),
            strides=self.strides,
            pads=None if self.auto else self.pads,
            auto_pad=self.auto,
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

    def beginning(self, t: Tape, x: Tensor, y: Tensor) -> Sizes:
        """The padding in front of each axis, a tensor where only the run will tell it."""
        if self.auto is None:
            return np.array(self.begin)
        reach = t.Mul(t.Sub(t.sizes(y, self.axes), [1] * len(self.kernel)), [*self.strides])
        total = t.Max(t.Sub(t.Add(reach, [*self.extent]), t.sizes(x, self.axes)), 0)
        half = t.Div(total, 2)
        return half if self.auto == "SAME_UPPER" else t.Sub(total, half)

    def overhanging(self, t: Tape, x: Tensor, y: Tensor) -> Window:
        """The same window with room behind for those that ceil_mode lets hang over the end.

        Of an open size as much as there can be, which may make room for a window too many.
        """
        size, out = t.dims(x, self.axes), t.dims(y, self.axes)
        if self.auto:  # all of its windows fit
            return self
        if size is None or out is None:
            end = [e + stride - 1 for e, stride in zip(self.end, self.strides, strict=True)]
            return replace(self, pads=(*self.begin, *end))
        needed = [
            (o - 1) * stride + extent - n - b
            for o, stride, extent, n, b in zip(
                out, self.strides, self.extent, size, self.begin, strict=True
            )
        ]
        end = [max(e, n) for e, n in zip(self.end, needed, strict=True)]
        return replace(self, pads=(*self.begin, *end))

    def refuse_late_start(self, t: Tape, x: Tensor) -> None:
        """Refuse ceil_mode where a window would start in the padding behind.

        ONNX counts such a window and runtimes do not, so that they contradict themselves.
        """
        late = "ceil_mode starts a window in the padding"
        if self.auto and any(k < s for k, s in zip(self.kernel, self.strides, strict=True)):
            raise UnsupportedError(late)
        for n, k, s, b, e in zip(
            t.dims(x, self.axes) or [],
            self.extent,
            self.strides,
            self.begin,
            self.end,
            strict=False,
        ):
            if not self.auto and -(-(n + b + e - k) // s) * s >= n + b:
                raise UnsupportedError(late)

    def patches(self, t: Tape, x: Tensor, y: Tensor, fill: float) -> list[Tensor]:
        """For each place in the window, row-major, what of `x` stands there: `y`'s shape each."""
        by_phase = self._by_phase(t, x, y, fill)
        if by_phase:
            return by_phase
        n, rank = len(self.kernel), t.rank(x)
        # Behind, room for a window that ceil_mode lets hang over.
        behind = [e + s for e, s in zip(self.end, self.strides, strict=True)]
        if self.auto:
            behind = [*self.extent]
        none = [0] * (rank - n)
        padded = t.Pad(x, t.Concat(none, self.beginning(t, x, y), none, behind, axis=0), fill)
        span = t.Add(t.Mul(t.Sub(t.sizes(y, self.axes), [1] * n), [*self.strides]), [1] * n)
        return [
            t.Slice(padded, start, t.Add(start, span), [*self.axes], [*self.strides])
            for start in self._places()
        ]

    def _by_phase(self, t: Tape, x: Tensor, y: Tensor, fill: float) -> list[Tensor]:
        """The same by way of a SpaceToDepth; nothing where that does not do.

        It takes one pass for all places, and leaves blocks that are copied row by row. A Slice with
        steps takes a slow pass of its own for each place.
        """
        stride, size, out = self.strides[0], t.dims(x, self.axes), t.dims(y, self.axes)
        channels = t.dims(x, [1])
        if {*self.strides} == {1} or self.strides != (stride, stride) or self.auto is not None:
            return []
        if size is None or out is None or channels is None:
            return []
        reach = [(o - 1) * stride + e for o, e in zip(out, self.extent, strict=True)]
        there = [n + b for n, b in zip(size, self.begin, strict=True)]
        behind = [-(-max(n, m) // stride) * stride - n for n, m in zip(there, reach, strict=True)]
        pads = [0, 0, *self.begin, 0, 0, *behind]
        phases = t.SpaceToDepth(t.Pad(x, pads, fill) if any(pads) else x, blocksize=stride)
        found = []
        for place in self._places():
            start, (row, column) = np.array(place) // stride, np.array(place) % stride
            channel = (row * stride + column) * channels[0]
            low, high = [channel, *start], [channel + channels[0], *(start + out)]
            found.append(t.Slice(phases, [*map(int, low)], [*map(int, high)], [1, 2, 3]))
        return found

    def _tiles(self, t: Tape, x: Tensor, y: Tensor) -> bool:
        """Are they squares that lie side by side and leave nothing out?

        What they hand back is then only laid out anew. A ConvTranspose to a single channel takes
        cuDNN as long as the convolutions around it do.
        """
        size, out = t.dims(x, self.axes), t.dims(y, self.axes)
        stride = self.strides[0]
        if not self.is_dense or size is None or out is None:
            return False
        square = self.kernel == self.strides == (stride, stride)
        return square and size == [stride * o for o in out]

    def _places(self) -> list[Sizes]:
        return [np.array(p) * self.dilations for p in product(*map(range, self.kernel))]

    def place(self, t: Tape, r: Tensor, parts: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The adjoint of `patches`: each place takes its part of `r`, `[k, *y.shape]`, at `x`."""
        n = len(self.kernel)
        each = t.number(t.Concat(*(t.Unsqueeze(p, [-n - 1]) for p in parts), axis=-n - 1))
        stacked = t.Mul(t.Unsqueeze(r, [-n - 1]), each)
        shape = t.Concat([-1, len(parts)], t.sizes(y, self.axes), axis=0)
        if self._tiles(t, x, y):
            tiled = t.DepthToSpace(t.Reshape(stacked, shape), blocksize=self.strides[0])
            return t.like(tiled, x)
        one_hot = np.eye(len(parts), dtype=np.float32).reshape(len(parts), 1, *self.kernel)
        return t.like(adjoint(t, self, t.Reshape(stacked, shape), t.operand(one_hot), x, y), x)


def same_pads(totals: Sequence[int], auto: str) -> list[int]:
    """Pads that add up to `totals`; of an odd one SAME_UPPER puts the larger half behind."""
    small, large = [n // 2 for n in totals], [n - n // 2 for n in totals]
    return small + large if auto == "SAME_UPPER" else large + small
