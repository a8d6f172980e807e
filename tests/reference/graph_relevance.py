"""Relevance of a small graph in float64: a reverse walk over the references of its operators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from reference import operators
from reference.graph_bounds import Gates, Knowledge, UndecidedError, behind_linear
from reference.graphs import (
    LINEAR,
    MEANS,
    MOVEMENTS,
    PASSING,
    SUMS,
    Array,
    Graph,
    Node,
    Values,
    forward,
)
from reference.graphs import readers as all_readers

_LAYOUTS = PASSING | {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_QUANTISATION = frozenset({"DequantizeLinear", "QuantizeLinear"})
_JOINS = frozenset({"Concat", "Pad", "ScatterElements", "ScatterND", "Where"})
_BY_CHANNEL = frozenset({"BatchNormalization", "GroupNormalization", "InstanceNormalization"})
_ROUNDED = 1e-6
_DIVIDED = frozenset({"LRN", "LpNormalization", "MeanVarianceNormalization"})
"""They divide by what is positive, so that signs keep."""


@dataclass
class Explained:
    """What arrives at the inputs, and what each node absorbs."""

    relevance: Values = field(default_factory=dict)
    absorbed: dict[str, float] = field(default_factory=dict)


class Walk:
    """Hands relevance back through a graph.

    Args:
        graph: the graph.
        values: of its tensors; what depends on the graph alone depends on none of them.
    """

    def __init__(self, graph: Graph, values: Values) -> None:
        self._graph, self._values = graph, values
        self._gates = Gates(graph, values)
        self._behind = behind_linear(graph)
        self._makers = {y: node for node in graph.nodes for y in node.outputs}
        self._useful: set[str] = set()
        self._ends: set[str] = set()

    @cached_property
    def _known(self) -> Knowledge:
        return Knowledge(self._graph, self._values, self._graph.bounds)

    def explain(self, relevance: Mapping[str, Array], values: Values | None = None) -> Explained:
        """The relevance of the inputs for a relevance of the outputs, perhaps at other values."""
        self._values = self._values if values is None else values
        left = {name: np.asarray(r, np.float64) for name, r in relevance.items()}
        made = Explained()
        self._useful = _on_the_way(self._graph, relevance)
        self._ends = set(relevance)
        for node in reversed(self._graph.nodes):
            arrived = [left.pop(y, None) for y in node.outputs]
            if all(r is None for r in arrived):
                continue
            shares = self._handed(node, arrived)
            for x, share in zip(node.inputs, shares, strict=True):
                if share is not None:
                    left[x] = left[x] + share if x in left else share
            made.absorbed[node.outputs[0]] = self._absorbed(node, arrived, shares)
        made.relevance = left
        return made

    def _handed(self, node: Node, arrived: list[Array | None]) -> list[Array | None]:
        data = self._gates.signals(node)
        if node.op_type in MEANS | SUMS and self._rounded_to_zero(node):
            raise UndecidedError("whether the sum is 0 depends on when it is rounded")
        operands, rules = self._graph.operands(node, self._values), self._graph.rules
        bounds = self._bounds(node, data) if node.op_type in LINEAR else None
        if node.op_type in LINEAR:
            operands[1 - data[0]] = self._signed(node, data[0])
        if bounds is not None and any(_almost(operands[data[0]], end) for end in bounds):
            raise UndecidedError("whether it lies at its bound depends on when it is rounded")
        if node.op_type == "AveragePool" and rules == "paper":
            # Evenly to what is real: by contribution of ones, and of zeros in the padding.
            operands[0], rules = self._real(node.inputs[0]), "default"
        attributes = node.attributes
        return operators.redistribute(
            node.op_type, operands, attributes, arrived, data=data, rules=rules, bounds=bounds
        )

    def _rounded_to_zero(self, node: Node) -> bool:
        """Does a quantisation alone read the sum, and make a zero of what is none?"""
        (y,) = node.outputs
        after = [*all_readers(self._graph, y)]
        if y in self._ends or [n.op_type for n in after] != ["QuantizeLinear"]:
            return False
        (rounded,) = forward(self._graph, after[0], self._values)
        zero = forward(self._graph, after[0], {y: np.zeros_like(self._values[y])})[0]
        return bool(((rounded == zero) & (self._values[y] != 0)).any())

    # -- what finds no receiver ----------------------------------------------------------------

    def _absorbed(
        self, node: Node, arrived: list[Array | None], shares: list[Array | None]
    ) -> float:
        """What has no receiver; with what was handed on, it adds up to what arrived."""
        pairs = [*zip(arrived, self._received(node), strict=True)]
        lost = sum(float((r * ~received).sum()) for r, received in pairs if r is not None)
        came = sum(float(r.sum()) for r in arrived if r is not None)
        size = sum(float(abs(r).sum()) for r in arrived if r is not None)
        went = sum(float(share.sum()) for share in shares if share is not None)
        if abs(came - went - lost) > 1e-9 * size:
            raise AssertionError(f"{node}: {came} came, {went} went on, {lost} was absorbed")
        return lost

    def _received(self, node: Node) -> list[Array]:
        """For each output element, whether its relevance has a receiver."""
        operands = self._graph.operands(node, self._values)
        data, op = self._gates.signals(node), node.op_type
        if op in MOVEMENTS | {"Where"}:
            return [y > 0 for y in self._run(node, _marked(operands, data, op in _JOINS))]
        if op in LINEAR:
            return [self._denominator(node, operands, data[0]) != 0]
        if op == "AveragePool" and self._graph.rules == "paper":
            return [self._run(node, [self._real(node.inputs[0])])[0] != 0]
        reduces = op in MEANS and self._graph.rules == "default" and not _is_identity(node)
        if reduces or (op in SUMS and len(data) > 1):
            terms = [x if i in data or reduces else 0 * x for i, x in enumerate(operands)]
            return [self._run(node, terms)[0] != 0]
        return [np.ones(self._values[y].shape, bool) for y in node.outputs]

    def _denominator(self, node: Node, operands: list[Array | None], index: int) -> Array:
        """Z of a linear map."""
        x, bounds = self._values[node.inputs[index]], self._bounds(node, [index])
        weight = self._signed(node, index) * node.attributes.get("alpha", 1.0)
        above, below = (x - bounds[0], x - bounds[1]) if bounds else (x.clip(min=0), x.clip(max=0))
        bare = replace(node, attributes={**node.attributes, "alpha": 1.0})
        total = np.zeros(())
        for part, w in ((above, weight.clip(min=0)), (below, weight.clip(max=0))):
            terms = [*operands[:2]]
            terms[index], terms[1 - index] = part, w
            total = total + self._run(bare, terms)[0]
        return total

    def _run(self, node: Node, operands: list[Array | None]) -> list[Array]:
        return operators.forward(
            node.op_type,
            operands,
            node.attributes,
            data=self._graph.data_of(node),
            outputs=len(node.outputs),
        )

    # -- what depends on the graph -------------------------------------------------------------

    def _bounds(self, node: Node, data: list[int]) -> tuple[Array, Array] | None:
        """The bounds of the first linear map, if it has finite ones."""
        x = node.inputs[data[0]]
        interval = None if x in self._behind else self._known.finite(x)
        return None if interval is None else (interval.lo, interval.hi)

    def _real(self, x: str) -> Array:
        """1 for each element that is none of zero padding, else 0."""
        node = self._makers.get(x)
        if node is not None and node.op_type in PASSING:
            return self._real(node.inputs[0])
        if node is None or not self._adds_zeros(node):
            return np.ones(self._values[x].shape)
        operands = self._graph.operands(node, self._values)
        return self._run(node, [self._real(node.inputs[0]), *operands[1:]])[0]

    def _adds_zeros(self, node: Node) -> bool:
        if node.op_type != "Pad" or node.attributes.get("mode", "constant") != "constant":
            return False
        _, pads, value, axes, *_ = [*self._graph.operands(node, self._values), None, None]
        rank = self._values[node.inputs[0]].ndim
        along = range(rank) if axes is None else [int(a) % rank for a in axes]
        spans = dict(zip(along, zip(*np.reshape(pads, (2, -1)), strict=True), strict=True))
        spatial = not any(any(spans.get(axis, (0, 0))) for axis in (0, 1))
        return spatial and (value is None or not np.any(value)) and min(pads, default=0) >= 0

    def _signed(self, node: Node, index: int) -> Array:
        """The weights with the scales per channel that follow the linear map."""
        weight = self._graph.constants[node.inputs[1 - index]].astype(np.float64)
        op, (y,) = node.op_type, node.outputs
        shape = self._values[y].shape
        if weight.ndim == 1:  # all outputs are of one channel
            return weight * self._scales(y, len(shape))
        scales = self._scales(y, 1 if op != "MatMul" else len(shape) - 1 - index)
        if op == "Conv":
            return weight * scales.reshape([-1] + [1] * (weight.ndim - 1))
        if op == "ConvTranspose":
            group = node.attributes.get("group", 1)
            each = scales.reshape(group, 1, -1).repeat(weight.shape[0] // group, 1)
            return weight * each.reshape([*weight.shape[:2]] + [1] * (weight.ndim - 2))
        if op == "Gemm":
            return weight * (scales[:, None] if node.attributes.get("transB", 0) else scales)
        return weight * (scales[:, None] if index else scales)

    def _scales(self, y: str, axis: int) -> Array:
        """The sign for each channel of all that scales a tensor on its only way on."""
        sizes = self._values[y].shape
        signs = np.ones([*sizes, 1][axis])
        # Which channel each element belongs to; moved along with the elements.
        labels = np.arange(len(signs), dtype=np.float64)
        labels = labels.reshape([-1] + [1] * max(0, len(sizes) - 1 - axis))
        labels = np.broadcast_to(labels, sizes)
        while y not in self._ends and len(after := self._readers(y)) == 1:
            node = after[0]
            index = node.inputs.index(y)
            if node.op_type in _LAYOUTS:
                operands = self._graph.operands(node, self._values)
                operands[0] = labels
                (labels,) = self._run(node, operands)
            elif node.op_type not in _QUANTISATION:
                scale = self._scale(node, index)
                if scale is None:
                    break
                shape = self._values[node.outputs[0]].shape
                labels = np.broadcast_to(labels, shape)
                found = _by_label(np.sign(np.broadcast_to(scale, shape)), labels, len(signs))
                if found is None:
                    break
                signs = signs * found
            y = node.outputs[0]
        return signs

    def _readers(self, y: str) -> list[Node]:
        """The nodes that hand relevance to a tensor."""
        return [
            node
            for node in all_readers(self._graph, y)
            if self._useful.intersection(node.outputs)
            and any(node.inputs[i] == y for i in self._gates.signals(node))
        ]

    def _scale(self, node: Node, index: int) -> Array | None:
        """What an affine map multiplies its input with; None if it is no such map."""
        op, operands = node.op_type, self._graph.operands(node, self._values)
        if len(self._graph.data_of(node)) != 1:
            return None
        if op in ("Add", "Sub", "Sum", "Neg"):
            return np.array(-1.0 if op == "Neg" or (op == "Sub" and index == 1) else 1.0)
        if op in ("Mul", "Div"):
            return operands[1 - index] if op == "Mul" or index == 0 else None
        if op in _BY_CHANNEL:
            rank = self._values[node.outputs[0]].ndim
            each = self._values[node.outputs[0]].shape[1] // operands[1].size
            return operands[1].repeat(each).reshape([-1] + [1] * (rank - 2))
        if op in ("LayerNormalization", "RMSNormalization"):
            return operands[1]
        return np.ones(1) if op in _DIVIDED else None


def _almost(x: Array | None, end: Array) -> bool:
    """Is any element as good as at its bound, and yet not at it?"""
    distance = abs(x - end) if x is not None else np.zeros(())
    return bool(((distance > 0) & (distance < _ROUNDED)).any())


def _marked(
    operands: Sequence[Array | None], data: Sequence[int], joins: bool
) -> list[Array | None]:
    """Ones in the place of what takes relevance, and zeros of other values that are moved."""

    def mark(i: int, x: Array | None) -> Array | None:
        if x is None or not (i in data or (joins and x.dtype.kind == "f")):
            return x
        return np.full(x.shape, float(i in data))

    return [mark(i, x) for i, x in enumerate(operands)]


def _is_identity(node: Node) -> bool:
    """Is it a reduction over no axes?"""
    return bool(node.attributes.get("noop_with_empty_axes")) and len(node.inputs) == 1


def _by_label(scale: Array, labels: Array, count: int) -> Array | None:
    """The one value that a scale has for each label; None if there are several."""
    found = np.ones(count)
    for label in range(count):
        values = np.unique(scale[labels == label])
        if len(values) > 1:
            return None
        if len(values):
            found[label] = values[0]
    return found


def _on_the_way(graph: Graph, relevance: Mapping[str, Array]) -> set[str]:
    """The tensors between the inputs and the outputs that have relevance."""
    useful = set(relevance)
    for node in reversed(graph.nodes):
        if useful.intersection(node.outputs):
            useful.update(node.inputs)
    return useful
