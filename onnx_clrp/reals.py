"""The model over the real numbers: quantised and half-precision tensors as what they stand for.

Relevance is shared over real numbers, while a tensor may hold integers with a scale and a zero
point, or float16. Rules, bounds and shapes are found on a copy of the graph in which every such
tensor is float32 and every quantised operator is its float counterpart; the model's own nodes are
never touched. A view says how the numbers are read off the tensor that the model really has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_clrp.intervals import Interval

if TYPE_CHECKING:
    from onnx_clrp.writer import Writer

Array = NDArray[Any]


_INTEGERS = frozenset(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32))
"""Types with limits that NumPy knows."""


@dataclass(frozen=True)
class Stored:
    """The name of a tensor as the model holds it, whatever numbers that stands for."""

    name: str


@dataclass(frozen=True)
class View:
    """How real numbers are read off a tensor: `(source - zero) * scale`.

    Attributes:
        source: the tensor in the model.
        dtype: its type, empty if nobody knows.
        scale, zero: of quantised integers, the names of both tensors; None for 1 and 0.
        axis: along which scale and zero vary, if they are no single numbers.
        constant: is the source an initializer, so that what is made of it is folded at load?
        again: is the operator that makes it written again on the numbers of its inputs? A runtime
            without half-precision arithmetic keeps float32 between the operators that lack it,
            and would round for a further reader; a maximum must be one of the very numbers that
            it is compared with.
    """

    source: str
    dtype: str
    scale: str | None = None
    zero: str | None = None
    axis: int = 1
    constant: bool = False
    again: bool = False

    def write(self, t: Writer, rank: int | None) -> gs.Variable:
        """The nodes that read the numbers, float32; `rank` is that of the tensor, if known."""

        def number(name: str) -> gs.Variable:
            return t.Cast(Stored(name), to=TensorProto.FLOAT)

        # By arithmetic: DequantizeLinear would draw the runtime's rewriting of such nodes, which
        # moves them about and, with int8, breaks them.
        x = number(self.source)
        if self.zero is not None:
            x = t.Sub(x, self._laid(t, number(self.zero), rank))
        return x if self.scale is None else t.Mul(x, self._laid(t, number(self.scale), rank))

    def _laid(self, t: Writer, values: gs.Variable, rank: int | None) -> gs.Variable:
        """One value, or one for each place along the axis."""
        if rank is None or not -rank <= self.axis < rank:
            return values  # single numbers
        shape = np.ones(rank, np.int64)
        shape[self.axis] = -1
        return t.Reshape(values, shape)


@dataclass(frozen=True)
class Reals:
    """How the tensors of a graph stand for real numbers.

    Attributes:
        views: by the name of each tensor that is not simply float32.
        origins: the operator that the model has, by the first output of each node that is read
            as another one.
        intervals: what is known of further tensors that only the run will tell.
        stored: the value of a constant of the model, by its name; None if it is none.
    """

    views: Mapping[str, View] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    stored: Callable[[str], Array | None] = field(default=lambda _: None)

    def value(self, name: str) -> Array | None:
        """The numbers that a constant stands for, float32; None for what is no constant."""
        view = self.views[name]
        source = self.stored(view.source) if view.constant else None
        scale, zero = self._parameters(view)
        if source is None or scale is None or zero is None:
            return None
        numbers = source.astype(np.float32) - _along(zero, source, view.axis)
        return np.asarray(numbers * _along(scale, source, view.axis), np.float32)

    def held(self, name: str, interval: Interval) -> Interval:
        """The interval after quantisation: rounded, and cut off where the integers end."""
        view = self.views.get(name)
        if view is None or view.scale is None or view.dtype not in _INTEGERS:
            return interval
        scale, zero = self._parameters(view)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            return interval
        limits = np.iinfo(view.dtype)
        s, z = scale.astype(np.float32).reshape(()), zero.astype(np.float32).reshape(())

        def rounded(end: Array) -> Array:
            whole = np.clip(np.rint(end / s) + z, limits.min, limits.max)
            return np.asarray((whole - z) * s, np.float32)

        return Interval(rounded(interval.lo), rounded(interval.hi))

    def alike(self, a: str, b: str) -> bool:
        """Are two tensors, one a copy of the other, rounded alike, so that they hold the same?"""
        views = [self.views.get(name) for name in (a, b)]
        pairs = [(None, None) if v is None else (v.scale, v.zero) for v in views]
        return pairs[0] == pairs[1] or all(self._same(p, q) for p, q in zip(*pairs, strict=True))

    def _same(self, p: str | None, q: str | None) -> bool:
        a, b = (None if name is None else self.stored(name) for name in (p, q))
        return p == q or (a is not None and b is not None and np.array_equal(a, b))

    def _parameters(self, view: View) -> tuple[Array | None, Array | None]:
        one, nil = np.ones(1, np.float32), np.zeros(1, np.float32)
        scale = one if view.scale is None else self.stored(view.scale)
        return scale, nil if view.zero is None else self.stored(view.zero)


PLAIN = Reals()
"""All tensors are what they stand for."""


def _along(values: Array, x: Array, axis: int) -> Array:
    numbers = values.astype(np.float32)
    if numbers.size == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
