"""The tape: nodes are written on it as calls, `t.Mul(x, s)`, to be appended to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.facts import Facts, Shape
from onnx_clrp.facts import Tensor as Tensor
from onnx_clrp.intervals import Interval
from onnx_clrp.normalise import Step
from onnx_clrp.redistribute import Composite, LinearMap

Operand: TypeAlias = Tensor | float | int | Sequence[int] | NDArray[Any] | None
Sizes: TypeAlias = NDArray[np.int64] | Tensor
"""Sizes along some axes: numbers where they are known, else a tensor that holds them."""

_TINY = 1e-30
"""A denominator below it counts as 0: R/Z would overflow, and what it hands on is nothing."""

_FAR = 2**31 - 1

_ONNX = {np.float32: onnx.TensorProto.FLOAT, np.float64: onnx.TensorProto.DOUBLE}

_INTEGER_ARITHMETIC: dict[str, Callable[..., NDArray[np.int64]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
}


class Tape:
    """Writes nodes, each only once, with fresh names and constants made on the way.

    Relevance has one axis more than the tensor it belongs to: `[k, *x.shape]`, for `k` targets.

    Args:
        taken: names that are taken.
        facts: what is known of the graph's own tensors.
        prefix: what every new name begins with.
    """

    def __init__(self, taken: Iterable[str], facts: Facts, prefix: str = "relevance") -> None:
        self.facts = facts
        self.nodes: list[gs.Node] = []
        self.constants: list[gs.Constant] = []
        self.targets: Tensor | NDArray[np.int64] = np.array([1], np.int64)
        """How many targets there are: `[k]`, known or not."""
        self.absorbed: list[tuple[Step, Tensor]] = []
        """What found no receiver, `[k]` each; nothing is computed unless somebody asks for it."""
        self.gaps: list[tuple[Step, UnsupportedError]] = []
        """The steps that could not hand relevance on, and why."""
        self.composite: Composite
        self.step: Step
        self._scope = prefix
        self._float: type[np.floating[Any]] = np.float32
        self._intervals: dict[str, Interval] = {}
        self._names = set(taken)
        self._written: dict[Any, list[Tensor]] = {}

    # -- nodes ---------------------------------------------------------------------------------

    def __getattr__(self, op: str) -> Callable[..., Tensor]:
        if not op[:1].isupper():
            raise AttributeError(f"the tape has no method {op!r}")
        return lambda *inputs, **attributes: self.node(op, inputs, attributes)[0]

    def node(
        self, op: str, inputs: Sequence[Operand], attributes: dict[str, Any], outputs: int = 1
    ) -> list[Tensor]:
        """Write a node and return its outputs, or those of the same node written before."""
        operands = [self.operand(x) for x in inputs]
        folded = self._folded(op, operands, attributes)
        if folded is not None:
            return [self.constant(folded)]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        key = (op, tuple(x.name for x in operands), repr(sorted(attributes.items())), outputs)
        if key not in self._written:
            name = self.fresh(f"{self._scope}/{op}")
            made = [gs.Variable(self.fresh(f"{name}_output_{i}")) for i in range(outputs)]
            self.nodes.append(gs.Node(op, name, dict(attributes), operands, made))
            self._written[key] = made
        return self._written[key]

    def named(self, x: Tensor, name: str) -> Tensor:
        """The tensor under a name of its own, as an output of the graph."""
        output = gs.Variable(self.fresh(name))
        node = gs.Node("Identity", self.fresh(f"{self._scope}/Identity"), {}, [x], [output])
        self.nodes.append(node)
        return output

    def operand(self, value: Operand) -> Tensor:
        """A tensor as it is; a number or array as a constant; None as an input left out."""
        if value is None:
            return gs.Variable.empty()
        if isinstance(value, gs.Tensor):
            return value
        if isinstance(value, float):
            return self.constant(np.array(value, self._float))
        if isinstance(value, np.ndarray):
            return self.constant(value.astype(self._float) if value.dtype.kind == "f" else value)
        return self.constant(np.array(value, np.int64))

    def constant(self, values: NDArray[Any]) -> gs.Constant:
        """The constant of these values, one for all that ask for the same."""
        key = ("constant", values.dtype.str, values.shape, values.tobytes())
        if key not in self._written:
            made = gs.Constant(self.fresh("relevance/constant"), np.ascontiguousarray(values))
            made.values = made.values.reshape(values.shape)
            self.constants.append(made)
            self._written[key] = [made]
        return self._written[key][0]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes written inside begin with this one's."""
        before, self._scope = self._scope, f"{self._scope}/{name}"
        try:
            yield
        finally:
            self._scope = before

    @contextmanager
    def double(self) -> Iterator[None]:
        """Numbers and casts written inside are float64."""
        self._float = np.float64
        try:
            yield
        finally:
            self._float = np.float32

    def number(self, x: Tensor) -> Tensor:
        """The tensor in the type that is calculated in: 0 and 1 for a truth value."""
        cast = self.Cast(x, to=_ONNX[self._float])
        self._intervals[cast.name] = self.interval(x)
        return cast

    def fresh(self, name: str) -> str:
        """The name, with a number behind it if it is taken."""
        number, fresh = 1, name
        while fresh in self._names:
            number += 1
            fresh = f"{name}_{number}"
        self._names.add(fresh)
        return fresh

    def _folded(
        self, op: str, operands: list[Tensor], attributes: dict[str, Any]
    ) -> NDArray[np.int64] | None:
        """Arithmetic on sizes that are all known is done at once."""
        if op not in _INTEGER_ARITHMETIC:
            return None
        if not all(isinstance(x, gs.Constant) and x.values.dtype == np.int64 for x in operands):
            return None
        return _INTEGER_ARITHMETIC[op](*(x.values for x in operands), **attributes)

    # -- whose turn it is ----------------------------------------------------------------------

    def redistribute(self, f: LinearMap, r: Tensor) -> Tensor:
        """Hand relevance down a linear map by the composite's rule for it."""
        first = not self.facts.behind_linear(f.x)
        return (self.composite.first if first else self.composite.linear)(self, f, r)

    def average(self, f: LinearMap, r: Tensor) -> Tensor:
        """Hand relevance down a mean by the composite's rule for means."""
        return self.composite.mean(self, f, r)

    # -- what is known -------------------------------------------------------------------------

    def carries(self, x: Tensor | None) -> bool:
        """Does the tensor depend on the explained input, so that it takes relevance?"""
        return self.facts.carries(x)

    def interval(self, x: Tensor) -> Interval:
        """What the tensor's values are proven to lie between."""
        return self._intervals.get(x.name) or self.facts.interval(x)

    def nonnegative(self, x: Tensor) -> bool:
        """Is the tensor proven to be nowhere below zero?"""
        return self.interval(x).nonnegative

    def rank(self, x: Tensor) -> int:
        """The tensor's number of axes."""
        return len(self._known_shape(x))

    def dims(self, x: Tensor, axes: Sequence[int]) -> list[int] | None:
        """The tensor's sizes along `axes` where all of them are known, else None."""
        shape = self._known_shape(x)
        sizes = [shape[a] for a in axes]
        known = [d for d in sizes if d is not None]
        return known if len(known) == len(sizes) else None

    def integers(self, x: Tensor | None, what: str) -> list[int] | None:
        """The values of a constant integer input; None if it is left out."""
        if x is None:
            return None
        value = self.facts.value(x)
        if value is None:
            raise UnsupportedError(f"its {what} are computed while the model runs")
        return [int(v) for v in np.atleast_1d(value)]

    def _known_shape(self, x: Tensor) -> Shape:
        shape = self.facts.shape(x)
        if shape is None:
            raise UnsupportedError(f"the shape of {x.name!r} is not known", follows=True)
        return shape

    # -- sizes and shapes ----------------------------------------------------------------------

    def sizes(self, x: Tensor, axes: Sequence[int]) -> Sizes:
        """The tensor's sizes along `axes` (contiguous): numbers where known, else a tensor."""
        known = self.dims(x, axes)
        if known is not None:
            return np.array(known, np.int64)
        rank = self.rank(x)
        first, last = (a % rank for a in (axes[0], axes[-1]))
        return self.Shape(x, start=first, end=last + 1)

    def flat(self, r: Tensor, y: Tensor) -> Tensor:
        """Relevance `[k, *y.shape]` with targets and batch in one axis, `[k*N, ...]`."""
        rest = self.sizes(y, range(1, self.rank(y)))
        return self.Reshape(r, self.Concat([-1], rest, axis=0))

    def like(self, r: Tensor, x: Tensor) -> Tensor:
        """Relevance with its elements laid out as those of `x`: `[k, *x.shape]`."""
        return self.Reshape(r, self.shape_of_relevance(x))

    def shape_of_relevance(self, x: Tensor) -> Tensor:
        """`[k, *x.shape]`, with a single -1 in it where that makes it a constant."""
        rest = self.dims(x, range(1, self.rank(x)))
        if isinstance(self.targets, np.ndarray) and rest is not None:
            batch = self.dims(x, [0]) or [-1]
            return self.operand([int(self.targets[0]), *batch, *rest])
        return self.Concat([-1], self.sizes(x, range(self.rank(x))), axis=0)

    def zeros(self, y: Tensor) -> Tensor:
        """No relevance at all for `y`: `[k, *y.shape]`."""
        shape = self.Concat(self.targets, self.sizes(y, range(self.rank(y))), axis=0)
        return self.Expand(0.0, shape)

    def unbroadcast(self, r: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Add relevance of `y` up over the axes along which `x` was broadcast to it."""
        of_y, of_x = self._known_shape(y), self._known_shape(x)
        if of_y == of_x and None not in of_y[1:]:
            return r
        padded = (1,) * (len(of_y) - len(of_x)) + of_x
        pairs = list(zip(of_y, padded, strict=True))
        axes = [i - len(of_y) for i, (a, b) in enumerate(pairs) if b == 1 != a]
        if any(b is None and a is not None for a, b in pairs):
            raise UnsupportedError(f"whether {x.name!r} is broadcast is known only at run time")
        summed = self.ReduceSum(r, axes, keepdims=1) if axes else r
        return summed if len(of_y) == len(of_x) else self.like(summed, x)

    def contract(self, r: Tensor, axis: int, matrix: NDArray[np.float32]) -> Tensor:
        """`r` times a matrix along one axis, counted from the end."""
        if axis == -1:
            return self.MatMul(r, matrix)
        # As the left factor of every matrix of the axes (axis, rest) no transposition is needed.
        shape = self.Shape(r)
        front, back = self.Slice(shape, [0], [axis]), self.Slice(shape, [axis + 1], [_FAR])
        folded = self.Reshape(r, self.Concat([-1, matrix.shape[0]], self.ReduceProd(back), axis=0))
        moved = self.MatMul(np.ascontiguousarray(matrix.T), folded)
        return self.Reshape(moved, self.Concat(front, [matrix.shape[1]], back, axis=0))

    # -- arithmetic ----------------------------------------------------------------------------

    def sum(self, terms: Iterable[Tensor]) -> Tensor:
        """The terms added up, first to last."""
        first, *rest = terms
        for term in rest:
            first = self.Add(first, term)
        return first

    def safe_div(self, r: Tensor, z: Tensor) -> Tensor:
        """`r / z` for `z >= 0`, where 0/0 is 0.

        Where `z` is 0 the quotient is `r`, which is finite; every contribution that it is
        multiplied with there is 0, so that the relevance is absorbed.
        """
        self.absorb(self.Mul(r, self._nothing(z)))
        return self.quotient(r, z)

    def kept(self, r: Tensor, z: Tensor) -> Tensor:
        """Of `r` what `safe_div` does not let be absorbed."""
        return self.Sub(r, self.Mul(r, self._nothing(z)))

    def quotient(self, r: Tensor, z: Tensor) -> Tensor:
        """`r / z`, or `r` where `z` is 0."""
        return self.Div(r, self.Add(z, self._nothing(z)))

    def _nothing(self, z: Tensor) -> Tensor:
        return self.number(self.Less(z, _TINY))

    def absorb(self, r: Tensor) -> None:
        """Enter relevance that has no receiver into the ledger of the step whose turn it is."""
        self.absorbed.append((self.step, self.total(r)))

    def total(self, r: Tensor) -> Tensor:
        """Relevance `[k, ...]` added up over all but the targets: `[k]`."""
        rows = self.Reshape(r, self.Concat(self.targets, [-1], axis=0))
        return self.ReduceSum(rows, [1], keepdims=0)

    def positive(self, x: Tensor) -> Tensor:
        """`x⁺ = max(x, 0)`, the tensor itself where it has no other part."""
        return x if self.nonnegative(x) else self.Relu(x)

    def negative(self, x: Tensor) -> Tensor:
        """`x⁻ = min(x, 0)`."""
        return self.Sub(x, self.Relu(x))

    def agreeing_parts(self, x: Tensor, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parts of `x` and `w` whose product is not negative: one pair for a proven sign."""
        interval = self.interval(x)
        positive, negative = (self.positive(x), self.Relu(w)), (self.negative(x), self.negative(w))
        if interval.nonnegative:
            return [positive]
        return [negative] if interval.nonpositive else [positive, negative]
