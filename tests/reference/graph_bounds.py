"""Between which values the tensors of a small graph lie, and which of them are gates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from reference import operators
from reference.graphs import LINEAR, MOVEMENTS, PASSING, Array, Bounds, Graph, Node, Values

_MONOTONE = frozenset(
    {
        *("Atan", "BatchNormalization", "Ceil", "Clip", "Erf", "Exp", "Floor", "HardSigmoid"),
        *("Log", "Neg", "Relu", "Round", "Sigmoid", "Softplus", "Sqrt", "Tanh"),
    }
)
_COMBINED = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub", "Sum"})
_COARSE = frozenset({"Resize", "ScatterElements", "ScatterND"})
_QUANTISATION = frozenset({"DequantizeLinear", "QuantizeLinear"})
_CHOICES = frozenset({"GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean"})
_AVERAGING = _CHOICES | {"AveragePool", "ReduceMin", "ReduceSum", "Where"}
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Pow"),
        *("Reciprocal", "Selu", "Softsign", "Swish", "ThresholdedRelu"),
    }
)
_POOLS = frozenset(
    {
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"),
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    }
)
_SAMPLES = np.concatenate([np.linspace(-6, 6, 33), [-1e30, -99.0, 99.0, 1e30]])
_HUGE = 1e20


class UndecidedError(Exception):
    """The rules do not say which of two ways is right, so that there is nothing to compare."""


@dataclass(frozen=True)
class Interval:
    """`lo <= x <= hi`, element by element."""

    lo: Array
    hi: Array

    @property
    def finite(self) -> bool:
        """Is every element bounded below and above?"""
        return bool(np.isfinite(self.lo).all() and np.isfinite(self.hi).all())

    @property
    def away_from_zero(self) -> bool:
        """Are all elements above zero, or all below?"""
        return bool((self.lo > 0).all() or (self.hi < 0).all())

    @property
    def in_unit(self) -> bool:
        """Are all elements from 0 to 1?"""
        return bool((self.lo >= 0).all() and (self.hi <= 1).all())

    def broadcast(self, shape: tuple[int, ...]) -> "Interval":
        """The same in the shape of its tensor."""
        return Interval(np.broadcast_to(self.lo, shape), np.broadcast_to(self.hi, shape))

    def uniform(self) -> "Interval":
        """The smallest one that is the same for all elements."""
        return Interval(np.full_like(self.lo, self.lo.min()), np.full_like(self.hi, self.hi.max()))


def anything(shape: tuple[int, ...]) -> Interval:
    """Nothing is known."""
    return Interval(np.full(shape, -np.inf), np.full(shape, np.inf))


class Intervals:
    """Walks intervals forward; behind a linear map they are the same for all elements.

    How far the analysis goes is said of some operators only: monotone ones, sums, products and
    movements. Of the others the loose walk knows nothing and the tight one what is true, and where
    the two differ in what counts, nothing is decided. Normalisation bounds nothing in either.
    Bounds of None ask for what holds by nature, whatever the inputs; `quantised`, for what the
    ends of quantised integers bound as well.
    """

    def __init__(
        self,
        graph: Graph,
        values: Values,
        bounds: Mapping[str, Bounds] | None,
        *,
        tight: bool,
        quantised: bool = False,
    ) -> None:
        self._graph, self._values, self._tight = graph, values, tight
        self._by_nature = bounds is None and not quantised
        self._found = {
            name: Interval(*bounds[name]).broadcast(x.shape)
            if bounds is not None and name in bounds
            else anything(x.shape)
            for name, x in graph.data.items()
        }
        self._behind = behind_linear(graph)
        for node in graph.nodes:
            self._learn(node)

    def of(self, name: str) -> Interval:
        """The interval of a tensor."""
        return self._found[name]

    def _learn(self, node: Node) -> None:
        with np.errstate(all="ignore"):
            found = self._found_of(node)
        self._found.update(zip(node.outputs, found, strict=True))
        if self._behind.issuperset(node.outputs):
            self._found.update({y: self._found[y].uniform() for y in node.outputs})

    def _found_of(self, node: Node) -> list[Interval]:
        op, data = node.op_type, [node.inputs[i] for i in self._graph.data_of(node)]
        inputs = [self.of(x) for x in data]
        if op in MOVEMENTS | PASSING and (self._tight or op not in _COARSE):
            ends = [self._run(node, [getattr(x, end) for x in inputs]) for end in ("lo", "hi")]
            # An interpolation of infinite ends is no number, and nothing is known.
            found = [_spanned(pair) for pair in zip(*ends, strict=True)]
            if op == "Compress" and not self._tight:
                # Nobody infers how much it keeps, and so which bounds are whose behind it.
                return [anything(found[0].lo.shape)]
            if op == "ReverseSequence" and self._graph.open != "none" and not self._tight:
                # Nobody infers that its lengths are as many as the samples of an open batch.
                return [inputs[0].uniform()]
            return found
        if self._tight and (op in _ELEMENTWISE or (op in _COMBINED and len({*data}) < len(data))):
            return [self._sampled(node, inputs)]
        if op in _MONOTONE | _COMBINED and not self._divides_by_zero(node):
            return [self._at_corners(node, inputs)]
        if op == "QuantizeLinear" and self._by_nature and not inputs[0].finite:
            # That integers end somewhere bounds what they stand for, but makes no gate of it.
            return [anything(self._values[y].shape) for y in node.outputs]
        if op == "LRN" and self._tight:  # it keeps signs
            x, none = inputs[0], np.full_like(inputs[0].lo, np.inf)
            return [Interval(np.where(x.lo >= 0, 0, -none), np.where(x.hi <= 0, 0, none))]
        known = op in _CHOICES and self._per_channel(node, inputs[0])
        known = known or (op in _QUANTISATION and self._graph.constants[node.inputs[1]].size == 1)
        if known or (self._tight and op in _AVERAGING | _QUANTISATION):
            return [self._at_corners(node, inputs)]
        return [anything(self._values[y].shape) for y in node.outputs]

    def _per_channel(self, node: Node, x: Interval) -> bool:
        """Is it the same for all places of a channel, and does the operator keep channels?"""
        axes = tuple(range(2, x.lo.ndim))
        spatial = all((e == e.min(axes, keepdims=True)).all() for e in (x.lo, x.hi)) and axes
        y = self._values[node.outputs[0]]
        return bool(spatial) and y.ndim == x.lo.ndim and y.shape[:2] == x.lo.shape[:2]

    def _divides_by_zero(self, node: Node) -> bool:
        divides = node.op_type == "Div" and 1 in self._graph.data_of(node)
        return divides and not self.of(node.inputs[1]).away_from_zero

    def _at_corners(self, node: Node, inputs: Sequence[Interval]) -> Interval:
        """The least and the greatest over every combination of ends."""
        corners = [self._run(node, ends)[0] for ends in product(*((x.lo, x.hi) for x in inputs))]
        if node.op_type == "Mul":  # 0 times infinity is 0 for every number, however large
            corners = [np.nan_to_num(c, nan=0.0, posinf=np.inf, neginf=-np.inf) for c in corners]
        return _spanned(corners)

    def _sampled(self, node: Node, inputs: Sequence[Interval]) -> Interval:
        """The least and the greatest over samples of one tensor, which may be several operands."""
        found = [
            self._run(node, [np.clip(sample, x.lo, x.hi) for x in inputs])[0] for sample in _SAMPLES
        ]
        spanned = _spanned(found)
        lo = np.where(spanned.lo < -_HUGE, -np.inf, spanned.lo)
        return Interval(lo, np.where(spanned.hi > _HUGE, np.inf, spanned.hi))

    def _run(self, node: Node, data: Sequence[Array]) -> list[Array]:
        operands = self._graph.operands(node, self._values)
        for i, value in zip(self._graph.data_of(node), data, strict=True):
            operands[i] = value
        return operators.forward(
            node.op_type,
            operands,
            node.attributes,
            data=self._graph.data_of(node),
            outputs=len(node.outputs),
        )


def _spanned(found: Sequence[Array]) -> Interval:
    """From the least to the greatest; where one is no number, nothing is known."""
    unknown = np.isnan(found).any(0)
    return Interval(
        np.where(unknown, -np.inf, np.min(found, 0)), np.where(unknown, np.inf, np.max(found, 0))
    )


def behind_linear(graph: Graph) -> set[str]:
    """The tensors that some path from the input reaches by way of a linear map."""
    behind: set[str] = set()
    for node in graph.nodes:
        if node.op_type in LINEAR or behind.intersection(node.inputs):
            behind.update(node.outputs)
    return behind


class Knowledge:
    """What is known for certain: what the loose and the tight analysis agree on."""

    def __init__(
        self,
        graph: Graph,
        values: Values,
        bounds: Mapping[str, Bounds] | None,
        *,
        quantised: bool = False,
    ) -> None:
        self._loose, self._tight = (
            Intervals(graph, values, bounds, tight=tight, quantised=quantised)
            for tight in (False, True)
        )

    def finite(self, name: str) -> Interval | None:
        """The interval if it is finite, None if it is not."""
        loose, tight = self._loose.of(name), self._tight.of(name)
        if not tight.finite:
            return None
        if np.allclose(loose.lo, tight.lo) and np.allclose(loose.hi, tight.hi):
            return loose
        raise UndecidedError(f"the bounds of {name} may be finer or coarser")

    def surely(self, name: str, question: Callable[[Interval], bool]) -> bool:
        """The answer to a question on the interval of a tensor."""
        answers = {question(self._loose.of(name)), question(self._tight.of(name))}
        if len(answers) > 1:
            raise UndecidedError(f"the bounds of {name} may be finer or coarser")
        return answers.pop()


# --- Gates -----------------------------------------------------------------------------------


class Gates:
    """Which operand of a product of two activations is a gate, if any."""

    def __init__(self, graph: Graph, values: Values) -> None:
        self._graph, self._values = graph, values
        self._makers = {y: node for node in graph.nodes for y in node.outputs}

    @cached_property
    def _by_nature(self) -> Knowledge:
        return Knowledge(self._graph, self._values, None)

    @cached_property
    def _saturated(self) -> Knowledge:
        return Knowledge(self._graph, self._values, None, quantised=True)

    def signals(self, node: Node) -> list[int]:
        """The inputs that take relevance: all that depend on the data but a gate."""
        data = self._graph.data_of(node)
        if node.op_type not in ("Mul", "Div") or len(data) != 2:
            return data
        a, b = (node.inputs[i] for i in data)
        gate = self._gate(a, b) if node.op_type == "Mul" else self._divisor(a, b)
        return [i for i in data if i != gate]

    def _gate(self, a: str, b: str) -> int | None:
        pooled = [self._pooled(a, b), self._pooled(b, a)]
        qualify = [
            p or self._by_nature.surely(x, lambda interval: interval.finite)
            for p, x in zip(pooled, (a, b), strict=True)
        ]
        if not any(qualify):
            # A quantiser leaves out a Clip that its integers make up for.
            in_unit = [self._saturated.surely(x, lambda i: i.in_unit) for x in (a, b)]
            return in_unit.index(True) if sum(in_unit) == 1 else None
        if not all(qualify):
            return qualify.index(True)
        small = [self._smaller(a, b), self._smaller(b, a)]
        for signs in (pooled, small):
            if sum(signs) == 1:
                return signs.index(True)
        unit = [self._by_nature.surely(x, lambda interval: interval.in_unit) for x in (a, b)]
        return unit.index(True) if sum(unit) == 1 else None

    def _divisor(self, a: str, b: str) -> int | None:
        away = self._by_nature.surely(b, lambda interval: interval.away_from_zero)
        return 1 if away or self._pooled(b, a) else None

    def _smaller(self, x: str, other: str) -> bool:
        """Is it the one that is broadcast?"""
        a, b = self._values[x].shape, self._values[other].shape
        together = np.broadcast_shapes(a, b)
        return b == together != a and int(np.prod(a)) < int(np.prod(b))

    def _pooled(self, x: str, other: str) -> bool:
        """Is it made from the other, and on no way back without a pool?"""
        ways = [*self._ways(x, other, False)]
        return bool(ways) and all(ways)

    def _ways(self, x: str, other: str, pooled: bool) -> Iterator[bool]:
        """For each way back from one tensor to another, whether it passes a pool."""
        if x == other:
            yield pooled
        elif x in self._makers:
            node = self._makers[x]
            for i in self._graph.data_of(node):
                yield from self._ways(node.inputs[i], other, pooled or node.op_type in _POOLS)
