"""LRP, CLRP1 and CLRP2 of a whole ONNX graph in float64, whatever types its tensors have.

The forward pass is the model's own, its tensors read as real numbers (`quantised_graph`). The
walk back hands relevance on by the references of single operators (`operators`), with what is a
matter of the graph: which linear map is the first, what signs of scales belong to it, which
operand is a gate (`quantised_facts`), and where the contrast is formed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx

from reference import operators
from reference.quantised_facts import Bounds, signals, walked_bounds, weight_signs
from reference.quantised_graph import Graph, Operation, run
from reference.quantised_run import Array

Relevance: TypeAlias = dict[str, Array]

_MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
_SUMS = frozenset({"Add", "Sum", "Sub"})


@dataclass(frozen=True)
class Reference:
    """What the reference finds for N samples of an input [N, ...].

    Attributes:
        logits: [N, C].
        seed: [N], the logit of the explained class.
        relevance: [N, ...]; R for `lrp`, else the signed contrast R - R_dual, formed at the input
            of the classifier layer.
        concept: [N, ...]; R, carried down on its own.
        absorbed: [N], what of R found no receiver.
    """

    logits: Array
    seed: Array
    relevance: Array
    concept: Array
    absorbed: Array


@dataclass(frozen=True)
class Walk:
    """How relevance is carried down.

    Attributes:
        graph: the graph that has run.
        bounds: of every tensor that no linear map precedes, in the numbers that it holds.
        rules: the rule set.
        opposite: is it the dual of CLRP2: weights negated, means evenly?
    """

    graph: Graph
    bounds: dict[str, Bounds]
    rules: str
    opposite: bool = False

    def down(self, operations: Sequence[Operation], arriving: Relevance) -> tuple[Relevance, Array]:
        """What arrives at tensors that none of the operations made, and what was absorbed."""
        left, absorbed = dict(arriving), np.zeros(1)
        for operation in reversed(operations):
            arrived = [left.pop(name, None) for name in operation.outputs]
            if all(r is None for r in arrived):
                continue
            shares = self.shares(operation, arrived)
            absorbed = absorbed + _total(r for r in arrived if r is not None)
            for i, share in shares.items():
                absorbed = absorbed - _total([share])
                name = operation.name(i)
                left[name] = left[name] + share if name in left else share
        return left, absorbed

    def shares(self, operation: Operation, arrived: Sequence[Array | None]) -> dict[int, Array]:
        """The relevance of every operand that takes some."""
        values, data = self.graph.values(operation), self.graph.data(operation)
        if operation.op_type == "Mul" and len(data) > 1:
            data = signals(self.graph, operation, data)
        bounds = None
        if operation.linear:
            values, bounds = self._linear(operation, values, data)
        rules = "paper" if self.opposite else self.rules
        arrived = [self._without_zeros(operation, r, len(data), rules) for r in arrived]
        handed = operators.redistribute(
            operation.op_type,
            values,
            operation.attributes,
            arrived,
            data=data,
            rules=rules,
            bounds=bounds,
        )
        return {i: share for i, share in enumerate(handed) if share is not None}

    def _linear(
        self, operation: Operation, values: list[Array | None], data: list[int]
    ) -> tuple[list[Array | None], Bounds | None]:
        """The values with the weight's sign as it counts, and the bounds of a first map."""
        (at,) = data
        weight = np.asarray(values[1 - at], np.float64) * weight_signs(self.graph, operation, at)
        changed = [*values]
        changed[1 - at] = -weight if self.opposite else weight
        bounds = self._bounds(operation, at)
        if bounds is not None:  # what rounding put outside counts as lying on the bound
            changed[at] = np.clip(np.asarray(values[at], np.float64), *bounds)
        return changed, bounds

    def _bounds(self, operation: Operation, at: int) -> Bounds | None:
        operand = operation.operands[at]
        if operand is None or operand.name not in self.bounds:
            return None
        low, high = (operand.real(bound) for bound in self.bounds[operand.name])
        return (low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None

    def _without_zeros(
        self, operation: Operation, r: Array | None, terms: int, rules: str
    ) -> Array | None:
        """A sum that integers hold as 0 has no sign: it absorbs what arrives."""
        shared = (operation.op_type in _SUMS and terms > 1) or (
            operation.op_type in _MEANS and rules == "default"
        )
        if r is None or operation.result is None or not shared:
            return r
        y = operation.result.real(self.graph.stored[operation.outputs[0]])
        return np.where(y == 0, 0.0, r)


def explain(
    model: onnx.ModelProto,
    x: Array,
    target: Sequence[int],
    *,
    method: str,
    bounds: tuple[Any, Any],
    rules: str = "default",
    optimised: bool = False,
) -> Reference:
    """Explain class `target[n]` of sample `x[n]`.

    `bounds` are the least and the greatest value of the input, to be broadcast against it;
    `optimised` says whether the runtime may optimise the model that is explained.
    """
    graph = run(model, {model.graph.input[0].name: x}, optimised=optimised)
    logits = graph.stored[graph.logits].astype(np.float64)
    scores = logits.reshape(len(x), -1)
    seed, dual_seed = (part.reshape(logits.shape) for part in seeds(scores, target, method))
    walk = Walk(graph, walked_bounds(graph, x.shape, bounds), rules)
    head, body = split_at_classifier(graph)
    concept, lost_above = walk.down(head, {graph.logits: seed})
    arrived, lost_below = walk.down(body, concept)
    plain = relevance = arrived.get(graph.input, np.zeros(x.shape))
    if method != "lrp":
        other = Walk(graph, walk.bounds, rules, opposite=method == "clrp2")
        dual, _ = other.down(head, {graph.logits: dual_seed})
        arrived, _ = walk.down(body, {name: r - dual[name] for name, r in concept.items()})
        relevance = arrived.get(graph.input, np.zeros(x.shape))
    return Reference(scores, _total([seed]), relevance, plain, lost_above + lost_below)


def seeds(scores: Array, target: Sequence[int], method: str) -> tuple[Array, Array]:
    """Relevance of concept and dual at the logits (section 3 of the paper), both [N, C]."""
    chosen = np.eye(scores.shape[1])[np.asarray(target)]
    concept = chosen * scores
    if method == "clrp1":
        return concept, (1 - chosen) * concept.sum(1, keepdims=True) / (scores.shape[1] - 1)
    return concept, concept


def split_at_classifier(graph: Graph) -> tuple[list[Operation], list[Operation]]:
    """The classifier layer with all that follows it, and everything else.

    The classifier layer is every linear map from which the logits are reached without another.
    """
    wanted, first = {graph.logits}, set[str]()
    for operation in reversed(graph.operations):
        if not wanted.isdisjoint(operation.outputs):
            (first if operation.linear else wanted).update(_followed(graph, operation))
    head, body = list[Operation](), list[Operation]()
    behind = set[str]()
    for operation in graph.operations:
        classifies = operation.linear and operation.outputs[0] in first
        follows = classifies or not behind.isdisjoint(operation.names())
        (head if follows else body).append(operation)
        behind.update(operation.outputs if follows else ())
    if not head:
        raise ValueError("the graph has no classifier layer")
    return head, body


def _followed(graph: Graph, operation: Operation) -> Iterable[str]:
    """A linear map by its output; of any other operation all that leads to it."""
    if operation.linear:
        return operation.outputs
    return (operation.name(i) for i in graph.data(operation))


def _total(parts: Iterable[Array]) -> Array:
    """The sum of every sample, [N]."""
    return np.asarray(sum(part.reshape(len(part), -1).sum(1) for part in parts))
