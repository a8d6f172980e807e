"""What is known of each tensor before anything is rewritten: constant, shape, interval, carrier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_clrp.constants import CANNOT_RUN, Value, run_node
from onnx_clrp.intervals import (
    UNKNOWN,
    Bounds,
    Interval,
    Kind,
    between,
    cast,
    compressed,
    hull,
)
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
            if node.op not in _SEVERING and any(self.carries(x) for x in reads(node)):
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
        behind = linear or any(x.name in self._behind_linear for x in reads(node))
        known: list[Interval] = []
        if rule is not None and not linear and rule.bounds is not None:
            known = self._carried(node, rule.bounds)
        for i, y in enumerate(node.outputs):
            interval = known[i] if i < len(known) else UNKNOWN
            self._carriers.add(y.name)
            self._intervals[y.name] = hull([interval]) if behind else interval
            if behind:
                self._behind_linear.add(y.name)

    def _carried(self, node: gs.Node, bounds: Bounds) -> list[Interval]:
        """The intervals of the outputs, as many as are known."""
        data = [x for x in node.inputs if self.carries(x)]
        first = self.interval(data[0]) if data else UNKNOWN
        if not isinstance(bounds, Kind):
            return [bounds(first, node.attrs)]
        if bounds is Kind.CAST:
            return [cast(first, node.attrs["to"])]
        if bounds is Kind.CHOICE:
            return [self._same_channels(first, node)]
        if bounds is Kind.MONOTONE and len(data) != 1:
            return []
        if bounds in (Kind.MONOTONE, Kind.RISING):
            return self._ends(node, [(x, self._probe(x)) for x in data]) or []
        return self._moved(node, data, bounds)

    def _moved(self, node: gs.Node, data: Sequence[Tensor], bounds: Kind) -> list[Interval]:
        """Exactly, as long as that matters and the sizes are known; else what holds for all."""
        intervals = [self.interval(x) for x in data]
        matters = any(i.bounded for i in intervals) and not any(map(self.behind_linear, data))
        if matters and (bounds is not Kind.MOVEMENT or not all(i.uniform for i in intervals)):
            shapes = [
                (x, self._probe(x) if node.op == "Transpose" else self._full(x)) for x in data
            ]
            exact = self._ends(node, shapes)
            if exact is not None:
                return exact
        if bounds is Kind.MOVEMENT:
            return [hull(intervals)] * len(node.outputs)
        constants = [self.value(x) for x in self._constants_among(node, bounds)]
        if any(c is None for c in constants):
            return []
        fixed = [between(float(c.min()), float(c.max())) for c in constants if c is not None]
        return [hull([*intervals, *(fixed or [between(0, 0)] * (bounds is Kind.PADDING))])]

    def _constants_among(self, node: gs.Node, bounds: Kind) -> list[Tensor]:
        """The constants whose values go into the output: of a Pad the one that it pads with."""
        if bounds is Kind.PADDING:
            return [x for x in node.inputs[2:3] if x.name]
        return [x for x in node.inputs if not self.carries(x)]

    def _same_channels(self, interval: Interval, node: gs.Node) -> Interval:
        """Bounds a channel are those of a pool's output too; anything finer is not."""
        before, after = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        kept = before is not None and after is not None and before[:2] == after[:2]
        varies = interval.lo.ndim >= 2 and interval.lo.size == interval.lo.shape[1]
        same = kept and varies and before is not None and len(before) == interval.lo.ndim
        return interval if same and len(before or ()) == len(after or ()) else hull([interval])

    def _ends(
        self, node: gs.Node, data: Sequence[tuple[Tensor, tuple[int, ...] | None]]
    ) -> list[Interval] | None:
        """Run the node on both ends of its inputs' intervals, each laid out in a shape."""
        names = {x.name for x, _ in data}
        others = [x for x in node.inputs if x.name and x.name not in names]
        values: dict[str, Value | None] = {x.name: self.value(x) for x in others}
        if None in [shape for _, shape in data] or any(v is None for v in values.values()):
            return None
        ends = []
        for end in ("lo", "hi"):
            for x, shape in data:
                bound = getattr(self.interval(x), end)
                if shape is None or not _fits(bound, shape):
                    return None
                values[x.name] = np.broadcast_to(bound, shape)
            results = self._run(node, [values.get(x.name) for x in node.inputs])
            if results is None:
                return None
            ends.append([np.asarray(result, np.float32) for result in results])
        return [_ordered(low, high) for low, high in zip(*ends, strict=True)]

    def _probe(self, tensor: Tensor) -> tuple[int, ...] | None:
        """A shape to run an elementwise operator in: 1 along every axis where nothing varies."""
        shape = self.shape(tensor)
        if shape is None:
            return None
        varying = self.interval(tensor).lo.shape if not self.interval(tensor).uniform else ()
        probe = [1] * (len(shape) - len(varying)) + [*varying]
        if len(shape) > 1:
            probe[1] = shape[1] or probe[1]  # for operands given a channel
        return tuple(probe)

    def _full(self, tensor: Tensor) -> tuple[int, ...] | None:
        """The tensor's shape, a batch of one if it is open; None where another size is."""
        batch, *rest = self.shape(tensor) or (None, None)
        sizes = [d for d in rest if d is not None]
        return (batch or 1, *sizes) if len(sizes) == len(rest) else None

    def _run(self, node: gs.Node, values: Sequence[Value | None]) -> list[Value] | None:
        try:
            return run_node(OnnxExporter.export_node(node), values, self.opset)
        except CANNOT_RUN:
            return None


def reads(node: gs.Node) -> Iterator[Tensor]:
    """All that a node reads: its inputs, and what the graphs inside it take from outside."""
    yield from node.inputs
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield from value.outputs
            for inner in value.nodes:
                yield from reads(inner)


def _fits(bound: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Does it broadcast to the shape, without making it larger?"""
    padded = (1,) * (len(shape) - bound.ndim) + bound.shape
    return len(padded) == len(shape) and all(
        b in (1, n) for b, n in zip(padded, shape, strict=True)
    )


def _ordered(a: NDArray[np.float32], b: NDArray[np.float32]) -> Interval:
    lo, hi = np.minimum(a, b), np.maximum(a, b)
    # inf - inf and 0 * inf say nothing about the tensor.
    lo, hi = np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi)
    if lo.size == 1:
        return between(lo.item(), hi.item())
    return compressed(lo.astype(np.float32), hi.astype(np.float32))
