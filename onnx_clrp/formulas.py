"""Normalisations that an exporter wrote out in primitive operators, recognised as what they are.

Silu, Gelu, HardSwish and the like need no recognition: written out they are a signal and a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import onnx_graphsurgeon as gs

from onnx_clrp.facts import Facts, Shape, Tensor
from onnx_clrp.steps import Step

_SAME = frozenset({"Identity", "Cast", "Expand"})
_DEPTH = 12


def as_composite(step: Step, facts: Facts) -> Step:
    """The step as a normalisation of what it is made from, if that is what its formula says.

    `(x - mean) / sqrt(variance + ε)`, or multiplied out with a constant scale γ and shift β:
    `x g + (β - mean g)`, `g = γ / sqrt(variance + ε)`.
    """
    if step.domain or step.op not in ("Div", "Mul", "Add", "Sub") or not _carries(step, facts):
        return step
    found = _Formula(facts).normalised(step.outputs[0])
    if found is None:
        return step
    x, gamma = found
    if not _same_shape(facts.shape(x), facts.shape(step.outputs[0])):  # it is broadcast on the way
        return step
    origin = f"{step.operator} (LayerNormalization)"
    return replace(step, op="LayerNormalization", inputs=(x, gamma), attributes={}, origin=origin)


def _same_shape(one: Shape | None, other: Shape | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return False
    return all(a == b or None in (a, b) for a, b in zip(one, other, strict=True))


def _carries(step: Step, facts: Facts) -> bool:
    return sum(facts.carries(x) for x in step.inputs) == 2


def answered(y: Tensor, facts: Facts) -> Tensor | None:
    """The scores z, if `y` is `exp(z) / Σ exp(z)`, its logarithm, or `1 / (1 + exp(-z))`.

    Softmax is often written of `z - max(z)`.
    """
    return _Formula(facts).answered(y)


@dataclass(frozen=True)
class Moments:
    """What a variance was taken of: `centred = x - mean`, both over the axes."""

    x: Tensor
    centred: Tensor
    axes: list[int]


class _Formula:
    """Reads formulas off the graph."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._compared: dict[tuple[str, str, int], bool] = {}

    def normalised(self, y: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """`x` and γ, if `y` is a normalised `x`."""
        op, (a, b) = self._parts(y)
        if op == "Div":
            return self._over(a, self._deviation(b))
        if op == "Mul":
            return self._over(a, self._inverse(b)) or self._over(b, self._inverse(a))
        return self._multiplied_out(op, a, b) if op in ("Add", "Sub") else None

    def _over(self, centred: Tensor, moments: Moments | None) -> tuple[Tensor, None] | None:
        """`x`, if that is what was centred, and the moments are its own."""
        own = moments is not None and self._same(moments.centred, centred)
        return (moments.x, None) if moments is not None and own else None

    def answered(self, y: Tensor) -> Tensor | None:
        """`z`, if `y` is a Softmax, a LogSoftmax or a Sigmoid of it."""
        dividend, divisor = self._quotient(y)
        if self._parts(dividend)[0] == "Exp" and self._is_sum_of(divisor, dividend):
            return self._uncentred(self._parts(dividend)[1][0])
        op, (z, logarithm) = self._parts(y)
        if op == "Reciprocal" or (op == "Pow" and self._number(logarithm) == -1):
            return self._behind_one_plus_exponential(z)
        if self._number(dividend) == 1:
            return self._behind_one_plus_exponential(divisor)
        if op != "Sub":
            return None
        inner, (total, _) = self._parts(logarithm)
        if inner == "ReduceLogSumExp" and self._same(total, z):
            return self._uncentred(z)
        exponential = self._node(total)
        if inner != "Log" or exponential is None or exponential.op != "ReduceSum":
            return None
        power, (exponent, _) = self._parts(exponential.inputs[0])
        return self._uncentred(z) if power == "Exp" and self._same(exponent, z) else None

    def _is_sum_of(self, total: Tensor, terms: Tensor) -> bool:
        node = self._node(total)
        return node is not None and node.op == "ReduceSum" and self._same(node.inputs[0], terms)

    def _behind_one_plus_exponential(self, d: Tensor) -> Tensor | None:
        """`z` of `1 + exp(-z)`."""
        exponential = self._without_constant(d, ("Add",))
        if exponential is None or self._parts(exponential)[0] != "Exp":
            return None
        if 1 not in [self._number(x) for x in self._parts(d)[1]]:
            return None
        negated = self._parts(exponential)[1][0]
        op, (a, b) = self._parts(negated)
        if op == "Neg":
            return a
        if op == "Sub" and self._number(a) is not None:
            return b
        factors = [self._number(x) for x in (a, b)]
        falls = any(factor is not None and factor < 0 for factor in factors)
        return self._without_constant(negated, ("Mul", "Div")) if falls else None

    def _uncentred(self, z: Tensor) -> Tensor:
        """The scores from which the largest was subtracted, if it was."""
        op, (scores, largest) = self._parts(z)
        most = self._node(largest)
        if op != "Sub" or most is None or most.op != "ReduceMax":
            return z
        return scores if self._same(most.inputs[0], scores) else z

    def _multiplied_out(self, op: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """`x g + (β - mean g)`, or `x g - mean g`."""
        for signal, shift in ((a, b), (b, a))[: 2 if op == "Add" else 1]:
            taken = shift
            if op == "Add":
                minus, (beta, taken) = self._parts(shift)
                if minus != "Sub" or self._facts.carries(beta):
                    continue
            (times, pair), (again, other) = self._parts(signal), self._parts(taken)
            if times != "Mul" or again != "Mul":
                continue
            for (x, g), (mean, same) in product((pair, pair[::-1]), (other, other[::-1])):
                gamma, moments = self._scale(g)
                if moments is None or not self._same(g, same) or not self._same(moments.x, x):
                    continue
                if self._mean_axes(mean, x) == moments.axes:
                    return x, gamma
        return None

    def _scale(self, g: Tensor) -> tuple[Tensor | None, Moments | None]:
        """γ, None where there is none, and the moments of `g = γ / sqrt(variance + ε)`."""
        op, (a, b) = self._parts(g)
        if op == "Mul":
            for scale, gamma in ((a, b), (b, a)):
                if not self._facts.carries(gamma):
                    return gamma, self._inverse(scale)
        if op == "Div" and not self._facts.carries(a):
            return a, self._deviation(b)
        return None, self._inverse(g)

    def _inverse(self, r: Tensor) -> Moments | None:
        """The moments of `1 / sqrt(variance + ε)`."""
        op, (a, b) = self._parts(r)
        if op == "Reciprocal":
            return self._deviation(a)
        if op == "Div" and self._number(a) == 1:
            return self._deviation(b)
        return self._variance(a) if op == "Pow" and self._number(b) == -0.5 else None

    def _deviation(self, d: Tensor) -> Moments | None:
        """The moments of `sqrt(variance + ε)`, the ε inside, outside or nowhere."""
        op, (a, b) = self._parts(d)
        if op == "Sqrt" or (op == "Pow" and self._number(b) == 0.5):
            return self._variance(a)
        inner = self._without_constant(d, ("Add",))
        return None if inner is None else self._deviation(inner)

    def _variance(self, v: Tensor) -> Moments | None:
        """The moments of a mean square of something centred, ε and constant factors aside."""
        inner = self._without_constant(v, ("Add", "Mul", "Div", "Max", "Clip"))
        if inner is not None:
            return self._variance(inner)
        node = self._node(v)
        if node is None or node.op not in ("ReduceMean", "GlobalAveragePool", "ReduceSum"):
            return None
        centred = self._square(node.inputs[0])
        if centred is None:
            return None
        op, (x, mean) = self._parts(centred)
        axes = self._mean_axes(mean, x) if op == "Sub" else None
        return Moments(x, centred, axes) if axes is not None and axes == self._axes(node) else None

    def _square(self, s: Tensor) -> Tensor | None:
        op, (a, b) = self._parts(s)
        squared = (op == "Pow" and self._number(b) == 2) or (op == "Mul" and self._same(a, b))
        return a if squared else None

    def _mean_axes(self, mean: Tensor, of: Tensor) -> list[int] | None:
        """The axes, none of them the batch's, if it is the mean of that tensor over them."""
        node = self._node(mean)
        if node is None or node.op not in ("ReduceMean", "GlobalAveragePool"):
            return None
        axes = self._axes(node)
        return axes if self._same(node.inputs[0], of) and axes and 0 not in axes else None

    def _axes(self, node: gs.Node) -> list[int] | None:
        shape = self._facts.shape(node.inputs[0])
        if shape is None or not node.attrs.get("keepdims", 1):
            return None
        if node.op == "GlobalAveragePool":
            return [*range(2, len(shape))]
        axes = self._facts.value(node.inputs[1]) if len(node.inputs) > 1 else None
        return None if axes is None else sorted(int(a) % len(shape) for a in np.atleast_1d(axes))

    # -- reading ---------------------------------------------------------------------------------

    def _source(self, x: Tensor) -> Tensor:
        """The tensor in front of those nodes that leave its values alone."""
        while x.inputs and x.inputs[0].op in _SAME:
            x = x.inputs[0].inputs[0]
        return x

    def _node(self, x: Tensor) -> gs.Node | None:
        """The node that makes the tensor's values; None for another domain's."""
        made_by = self._source(x).inputs
        return made_by[0] if made_by and made_by[0].domain in (None, "", "ai.onnx") else None

    def _parts(self, x: Tensor) -> tuple[str, tuple[Tensor, Tensor]]:
        """Operator and two operands, empty where there are fewer."""
        node = self._node(x)
        nothing = gs.Variable.empty()
        if node is None:
            return "", (nothing, nothing)
        first, second = [*list(node.inputs), nothing, nothing][:2]
        return node.op, (first, second)

    def _quotient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dividend and divisor, also where a reciprocal is multiplied with; empty if neither."""
        op, (a, b) = self._parts(x)
        if op == "Div":
            return a, b
        for factor, other in ((a, b), (b, a)) if op == "Mul" else ():
            inner, (one, divisor) = self._parts(factor)
            if inner == "Reciprocal":
                return other, one
            if inner == "Div" and self._number(one) == 1:
                return other, divisor
        return gs.Variable.empty(), gs.Variable.empty()

    def _number(self, x: Tensor) -> float | None:
        value = None if self._facts.carries(x) else self._facts.value(x)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def _without_constant(self, x: Tensor, ops: Sequence[str]) -> Tensor | None:
        """The operand that depends on the data, if all others of the node are constants."""
        node = self._node(x)
        if node is None or node.op not in ops:
            return None
        data = [a for a in node.inputs if self._facts.carries(a)]
        if len(data) != 1 or (node.op == "Div" and data[0] is not node.inputs[0]):
            return None
        return data[0]

    def _same(self, a: Tensor, b: Tensor, depth: int = _DEPTH) -> bool:
        """Do two tensors hold the same values, by name or by the same formula?"""
        pair = (self._source(a).name, self._source(b).name, depth)
        if pair not in self._compared:
            self._compared[pair] = pair[0] == pair[1] or self._same_formula(a, b, depth)
        return self._compared[pair]

    def _same_formula(self, a: Tensor, b: Tensor, depth: int) -> bool:
        one, other = self._node(a), self._node(b)
        if one is None or other is None or one is other or depth == 0:
            return False
        places = [
            [y.name for y in node.outputs].index(self._source(x).name)
            for node, x in ((one, a), (other, b))
        ]
        if places[0] != places[1]:
            return False
        if (one.op, one.attrs, len(one.inputs)) != (other.op, other.attrs, len(other.inputs)):
            return False
        return all(
            self._same_operand(p, q, depth) for p, q in zip(one.inputs, other.inputs, strict=True)
        )

    def _same_operand(self, p: Tensor, q: Tensor, depth: int) -> bool:
        if self._facts.carries(p) or self._facts.carries(q):
            return self._same(p, q, depth - 1)
        a, b = self._facts.value(p), self._facts.value(q)
        return p.name == q.name or (a is not None and b is not None and np.array_equal(a, b))
