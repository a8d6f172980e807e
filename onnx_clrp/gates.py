"""Products of two activations: which operand is the signal, and which only gates it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import onnx_graphsurgeon as gs

from onnx_clrp.facts import Facts, Tensor
from onnx_clrp.intervals import Interval
from onnx_clrp.steps import Step

_POOLING = frozenset(
    {
        *("AveragePool", "MaxPool", "LpPool"),
        *("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
        *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSumSquare"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
    }
)

_SHAPING = frozenset({"Add", "Sub", "Mul", "Div", "Clip", "Relu", "Max", "Min", "Identity", "Cast"})

_ROUNDED = 1e-6
"""How far beyond 1 a scale may round the greatest integer."""


class Gates:
    """Finds the gates of a graph (spec. section 1, "signal takes all")."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @cached_property
    def _by_nature(self) -> Facts:
        """Facts that hold whatever the input is: only what operators themselves bound."""
        return self._facts.unbounded()

    @cached_property
    def _by_saturation(self) -> Facts:
        """The same, and what quantised integers bound by having an end."""
        return self._facts.unbounded(quantised=True)

    def marked(self, step: Step) -> Step:
        """The step with its gate, if it is a product or quotient of two activations with one."""
        pair = [x for x in step.inputs if x is not None and self._facts.carries(x)]
        if step.op not in ("Mul", "Div") or step.domain or len(pair) != 2:
            return step
        gate = self._gate(*pair) if step.op == "Mul" else self._divisor(*pair)
        return replace(step, gate=gate)

    def _gate(self, a: Tensor, b: Tensor) -> int | None:
        """A gate is bounded whatever the input is, or pooled from the other operand.

        Quantisers leave out the Clip of a hard sigmoid, whose work the integers do; so an operand
        is a gate too that these alone keep within 0 and 1, and not the other.
        """
        pooled = [self._pooled_from(x, other) for x, other in ((a, b), (b, a))]
        qualify = [p or self._range(x).finite for p, x in zip(pooled, (a, b), strict=True)]
        if not any(qualify):
            qualify = [_in_unit(self._by_saturation.interval(x)) for x in (a, b)]
            return qualify.index(True) if sum(qualify) == 1 else None
        if not all(qualify):
            return qualify.index(True)
        small = [self._is_broadcast(x, other) for x, other in ((a, b), (b, a))]
        unit = [_in_unit(self._range(x)) for x in (a, b)]
        return next((sign.index(True) for sign in (pooled, small, unit) if sum(sign) == 1), None)

    def _divisor(self, a: Tensor, b: Tensor) -> int | None:
        """A divisor is a gate if its reciprocal is one."""
        bounds = self._range(b)
        away = bool((bounds.lo > 0).all()) or bool((bounds.hi < 0).all())
        return 1 if away or self._pooled_from(b, a) else None

    def _pooled_from(self, x: Tensor, other: Tensor) -> bool:
        """Is `x` made from `other`, and only through pools and reductions?"""
        through = self._reaches(x, other, through_pools=True)
        return through and not self._reaches(x, other, through_pools=False)

    def _reaches(self, x: Tensor, other: Tensor, *, through_pools: bool) -> bool:
        """Is there a way back from the values of `x` to those of `other`?"""
        waiting, seen = [x], set[str]()
        while waiting:
            tensor = waiting.pop()
            if tensor.name == other.name:
                return True
            if tensor.name in seen or not self._facts.carries(tensor):
                continue
            seen.add(tensor.name)
            for node in tensor.inputs:
                if through_pools or not _pools(node):
                    waiting.extend(node.inputs)
        return False

    def _range(self, x: Tensor) -> Interval:
        return self._by_nature.interval(x)

    def _is_broadcast(self, x: Tensor, other: Tensor) -> bool:
        """Is it repeated along some axis of the other, and the other along none of its own?"""
        small, large = self._facts.shape(x), self._facts.shape(other)
        if small is None or large is None or len(small) > len(large):
            return False
        padded = (1,) * (len(large) - len(small)) + small
        pairs = [*zip(padded, large, strict=True)]
        return any(s == 1 != n for s, n in pairs) and not any(n == 1 != s for s, n in pairs)


def shaping_gates(steps: Sequence[Step], gated: Iterable[Step]) -> set[str]:
    """The tensors that shape nothing but a gate, element by element, as the Clip of a hard sigmoid.

    Args:
        steps: the nodes one by one.
        gated: steps that know their gates.
    """
    producers = {y.name: step for step in steps for y in step.outputs}
    readers = Counter(x.name for step in steps for x in step.inputs if x is not None)
    waiting = [s.inputs[s.gate] for s in gated if s.gate is not None]
    found = set[str]()
    while waiting:
        name = "" if (x := waiting.pop()) is None else x.name
        step = producers.get(name)
        if step is not None and step.op in _SHAPING and readers[name] == 1:
            found.add(name)
            waiting.extend(step.inputs)
    return found


def _pools(node: gs.Node) -> bool:
    return node.op in _POOLING and node.domain in (None, "", "ai.onnx")


def _in_unit(interval: Interval) -> bool:
    return bool((interval.lo >= 0).all() and (interval.hi <= 1 + _ROUNDED).all())
