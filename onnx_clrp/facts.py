"""What is known of each tensor before anything is rewritten: constant, shape, interval, carrier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_clrp import bounds
from onnx_clrp.bounds import Shape as Shape
from onnx_clrp.bounds import Tensor as Tensor
from onnx_clrp.constants import CANNOT_RUN, Value, run_node
from onnx_clrp.external import array_of
from onnx_clrp.intervals import UNKNOWN, Interval, hull
from onnx_clrp.reals import PLAIN, Reals
from onnx_clrp.rules import find_bounds, find_rule

_SEVERING = frozenset({"Shape", "Size"})
"""Operators whose output says nothing of their input's values: relevance ends here by nature."""


class Facts:
    """Facts about the tensors of one graph, for one explained input; nothing changes once made.

    Args:
        graph: the graph, its nodes in topological order.
        weights: the initializers that were taken out of it, by name.
        source: the inputs to explain and the intervals of their values, by name.
        reals: how tensors stand for real numbers.
    """

    def __init__(
        self,
        graph: gs.Graph,
        weights: Mapping[str, onnx.TensorProto],
        source: Mapping[str, Interval],
        reals: Reals = PLAIN,
    ) -> None:
        self.opset: int = graph.opset
        self._graph, self._weights, self.reals = graph, weights, reals
        self._values: dict[str, Value | None] = {}
        self._intervals = {**reals.intervals, **source}
        self._carriers = set(source)
        self._behind_linear: set[str] = set()
        self._open = {x.name for x in graph.inputs} | {*self._intervals}
        for node in graph.nodes:
            if node.op not in _SEVERING and any(x.name in self._open for x in reads(node)):
                self._learn(node)

    def unbounded(self, *, quantised: bool = False) -> Facts:
        """The same for an input that may be anything: what is bounded now is so by nature.

        That quantised integers have an end bounds what they stand for only if asked for.
        """
        source = {x.name: UNKNOWN for x in self._graph.inputs if x.name in self._carriers}
        return Facts(self._graph, self._weights, source, self.reals if quantised else PLAIN)

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

    def same_sizes(self, a: Tensor, b: Tensor) -> list[bool]:
        """For each of the last axes whether two tensors are known to have the same size there.

        As many as the shorter shape has; a size that is open may still have a name in both.
        """
        pairs = [*zip(reversed(self._named(a)), reversed(self._named(b)), strict=False)]
        return [p == q and p is not None for p, q in reversed(pairs)]

    def _named(self, tensor: Tensor) -> list[int | str | None]:
        if tensor.name in self._weights:
            return list(self._weights[tensor.name].dims)
        return [
            d if isinstance(d, str) or d is None or d >= 0 else None for d in tensor.shape or ()
        ]

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
        view = self.reals.views.get(tensor.name)
        if view is not None and (view.constant or view.scale is not None):
            return self.reals.value(tensor.name)
        if tensor.name in self._weights:
            return array_of(self._weights[tensor.name])
        if not tensor.inputs:
            return None
        node = tensor.inputs[0]
        if node.op in _SEVERING:
            return self._size(node)
        values = [self.value(x) for x in node.inputs]
        if any(v is None and x.name for v, x in zip(values, node.inputs, strict=True)):
            return None
        try:
            results = run_node(OnnxExporter.export_node(node), values, self.opset)
        except CANNOT_RUN:
            return None
        return results[[y.name for y in node.outputs].index(tensor.name)]

    def _size(self, node: gs.Node) -> Value | None:
        shape = self.shape(node.inputs[0])
        if shape is None or None in shape:
            return None
        sizes = np.array(shape, np.int64)[node.attrs.get("start", 0) : node.attrs.get("end")]
        return np.asarray(sizes.prod()) if node.op == "Size" else sizes

    def _learn(self, node: gs.Node) -> None:
        rule = find_rule(node.op, node.domain)
        linear = rule is not None and rule.linear
        behind = linear or any(x.name in self._behind_linear for x in reads(node))
        carried = None if linear else find_bounds(node.op, node.domain)
        known = [] if carried is None else bounds.outputs(node, carried, self._known(node))
        carries = any(self.carries(x) for x in reads(node))
        for i, y in enumerate(node.outputs):
            interval = self.reals.held(y.name, known[i] if i < len(known) else UNKNOWN)
            self._open.add(y.name)
            self._intervals[y.name] = hull([interval]) if behind else interval
            if carries:
                self._carriers.add(y.name)
            if behind and carries:
                self._behind_linear.add(y.name)

    def _known(self, node: gs.Node) -> bounds.Known:
        data = {x.name: self.interval(x) for x in node.inputs if x.name in self._open}
        others = [x for x in node.inputs if x.name and x.name not in data]
        return bounds.Known(
            data,
            {x.name: self.shape(x) for x in (*node.inputs, *node.outputs)},
            {x.name: self.value(x) for x in others},
            exactly=not any(name in self._behind_linear for name in data),
            opset=self.opset,
        )


def reads(node: gs.Node) -> Iterator[Tensor]:
    """All that a node reads: its inputs, and what the graphs inside it take from outside."""
    yield from node.inputs
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield from value.outputs
            for inner in value.nodes:
                yield from reads(inner)
