"""What is known of each tensor before anything is rewritten: constant, shape, interval, carrier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_clrp.constants import CANNOT_RUN, Value, run_node
from onnx_clrp.intervals import UNKNOWN, Interval, Kind, between, compressed, hull
from onnx_clrp.rules import find_rule

Tensor: TypeAlias = gs.Variable | gs.Constant
"""A tensor of the graph, constant or not; what tells them apart is `Facts.value`."""

Shape = tuple[int | None, ...]

_SEVERING = frozenset({"Shape", "Size"})
"""Operators whose output says nothing of their input's values: relevance ends here by nature."""


class Facts:
    """Facts about the tensors of one graph, for one explained input; nothing changes once made.

    Args:
        graph: the graph, its nodes in topological order.
        weights: the initializers that were taken out of it, by name.
        source: the inputs to explain and the intervals of their values, by name.
    """

    def __init__(
        self,
        graph: gs.Graph,
        weights: Mapping[str, onnx.TensorProto],
        source: Mapping[str, Interval],
    ) -> None:
        self.opset: int = graph.opset
        self._weights = weights
        self._values: dict[str, Value | None] = {}
        self._intervals = dict(source)
        self._carriers = set(source)
        self._behind_linear: set[str] = set()
        for node in graph.nodes:
            if node.op not in _SEVERING and any(self.carries(x) for x in node.inputs):
                self._learn(node)

    def carries(self, tensor: Tensor | None) -> bool:
        """Do the tensor's values depend on the explained input?"""
        return tensor is not None and tensor.name in self._carriers

    def behind_linear(self, tensor: Tensor) -> bool:
        """Does a path from the explained input to the tensor pass a linear map?"""
        return tensor.name in self._behind_linear

    def interval(self, tensor: Tensor) -> Interval:
        """What the tensor's values are proven to lie between."""
        return self._intervals.get(tensor.name, UNKNOWN)

    def shape(self, tensor: Tensor) -> Shape | None:
        """The tensor's shape, None for each size that only the run will tell; None if unknown."""
        if tensor.name in self._weights:
            return tuple(self._weights[tensor.name].dims)
        if tensor.shape is None:
            return None
        return tuple(d if isinstance(d, int) and d >= 0 else None for d in tensor.shape)

    def value(self, tensor: Tensor | None) -> Value | None:
        """The tensor's value where that is known before the model runs, else None."""
        if tensor is None or tensor.name == "":
            return None
        if tensor.name not in self._values:
            self._values[tensor.name] = self._find_value(tensor)
        return self._values[tensor.name]

    def _find_value(self, tensor: Tensor) -> Value | None:
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        if tensor.name in self._weights:
            return numpy_helper.to_array(self._weights[tensor.name])
        if not tensor.inputs:
            return None
        node = tensor.inputs[0]
        if node.op in _SEVERING:
            return self._size(node)
        values = [self.value(x) for x in node.inputs]
        if any(v is None and x.name for v, x in zip(values, node.inputs, strict=True)):
            return None
        results = self._run(node, values)
        outputs = [y.name for y in node.outputs]
        return None if results is None else results[outputs.index(tensor.name)]

    def _size(self, node: gs.Node) -> Value | None:
        shape = self.shape(node.inputs[0])
        if shape is None or None in shape:
            return None
        sizes = np.array(shape, np.int64)[node.attrs.get("start", 0) : node.attrs.get("end")]
        return np.asarray(sizes.prod()) if node.op == "Size" else sizes

    def _learn(self, node: gs.Node) -> None:
        rule = find_rule(node.op, node.domain)
        linear = rule is not None and rule.linear
        behind = linear or any(x.name in self._behind_linear for x in node.inputs)
        interval = UNKNOWN if rule is None or linear else self._carried(node, rule.bounds)
        for y in node.outputs:
            self._carriers.add(y.name)
            self._intervals[y.name] = hull([interval]) if behind else interval
            if behind:
                self._behind_linear.add(y.name)

    def _carried(self, node: gs.Node, bounds: Any) -> Interval:
        data = [x for x in node.inputs if self.carries(x)]
        intervals = [self.interval(x) for x in data]
        if bounds is None or (bounds is Kind.MONOTONE and len(data) > 1):
            return UNKNOWN
        if not isinstance(bounds, Kind):
            found: Interval = bounds(intervals, [self.value(x) for x in node.inputs])
            return found
        if bounds is Kind.JOIN:
            return self._joined(node, data)
        if bounds is Kind.MOVEMENT and all(i.uniform for i in intervals):
            return hull(intervals)
        return self._ends(node, [(x, self._probe(x)) for x in data]) or UNKNOWN

    def _joined(self, node: gs.Node, data: Sequence[Tensor]) -> Interval:
        if not any(self.behind_linear(x) for x in data):
            exact = self._ends(node, [(x, self._full(x)) for x in data])
            if exact is not None:
                return exact
        constants = [self.value(x) for x in node.inputs if not self.carries(x)]
        if any(c is None for c in constants):
            return UNKNOWN
        fixed = [between(float(c.min()), float(c.max())) for c in constants if c is not None]
        return hull([*(self.interval(x) for x in data), *fixed])

    def _ends(
        self, node: gs.Node, data: Sequence[tuple[Tensor, tuple[int, ...] | None]]
    ) -> Interval | None:
        """Run the node on both ends of its inputs' intervals, each laid out in a shape."""
        names = {x.name for x, _ in data}
        others = [x for x in node.inputs if x.name and x.name not in names]
        values: dict[str, Value | None] = {x.name: self.value(x) for x in others}
        if None in [shape for _, shape in data] or any(v is None for v in values.values()):
            return None
        ends = []
        for end in ("lo", "hi"):
            for x, shape in data:
                values[x.name] = np.broadcast_to(getattr(self.interval(x), end), shape or ())
            results = self._run(node, [values.get(x.name) for x in node.inputs])
            if results is None:
                return None
            ends.append(np.asarray(results[0], np.float32))
        return _ordered(*ends)

    def _probe(self, tensor: Tensor) -> tuple[int, ...] | None:
        """A shape to run an elementwise operator in: one element a channel where that suffices."""
        shape = self.shape(tensor)
        if shape is None or not self.interval(tensor).uniform:
            return self._full(tensor)
        return (1, shape[1] or 1 if len(shape) > 1 else 1, *[1] * (len(shape) - 2))[: len(shape)]

    def _full(self, tensor: Tensor) -> tuple[int, ...] | None:
        """The tensor's shape for a batch of one, None where a size is known only at run time."""
        sizes = [d for d in (self.shape(tensor) or ())[1:] if d is not None]
        return (1, *sizes) if len(sizes) + 1 == len(self.shape(tensor) or ()) else None

    def _run(self, node: gs.Node, values: Sequence[Value | None]) -> list[Value] | None:
        try:
            return run_node(OnnxExporter.export_node(node), values, self.opset)
        except CANNOT_RUN:
            return None


def _ordered(a: NDArray[np.float32], b: NDArray[np.float32]) -> Interval:
    lo, hi = np.minimum(a, b), np.maximum(a, b)
    # inf - inf and 0 * inf say nothing about the tensor.
    lo, hi = np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi)
    if lo.size == 1:
        return between(lo.item(), hi.item())
    return compressed(lo.astype(np.float32), hi.astype(np.float32))
