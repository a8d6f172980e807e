"""Walks intervals forward: what a node makes of what its inputs are known to lie between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_clrp.constants import CANNOT_RUN, Value, run_node
from onnx_clrp.intervals import (
    UNKNOWN,
    Bounds,
    Interval,
    Kind,
    between,
    by_channel,
    cast,
    compressed,
    hull,
)

Tensor: TypeAlias = gs.Variable | gs.Constant
"""A tensor of the graph, constant or not; what tells them apart is its value."""

Shape = tuple[int | None, ...]

_CORNERS = 3
"""Of more inputs than that not every combination of ends is tried."""


_STAND_INS = (16, 24)
"""In place of sizes that are open: what is true of both is taken for true of all."""


class Known:
    """What `outputs` needs to know of a node's inputs.

    Args:
        data: those that are known only at run time, with their intervals, in the node's order.
        shapes: of every tensor of the node, by name.
        values: of the others, by name.
        exactly: whether bounds finer than a pair of numbers are worth anything.
        opset: that of the graph.
    """

    def __init__(
        self,
        data: Mapping[str, Interval],
        shapes: Mapping[str, Shape | None],
        values: Mapping[str, Value | None],
        *,
        exactly: bool,
        opset: int,
    ) -> None:
        self.data, self.shapes, self.values = data, shapes, values
        self.exactly, self.opset = exactly, opset

    def probe(self, name: str) -> tuple[int, ...] | None:
        """A shape to run an elementwise operator in: 1 along every axis where nothing varies."""
        shape, interval = self.shapes[name], self.data[name]
        if shape is None:
            return None
        varying = interval.lo.shape if not interval.uniform else ()
        probe = [1] * (len(shape) - len(varying)) + [*varying]
        if len(shape) > 1:
            probe[1] = shape[1] or probe[1]  # for operands given a channel
        return tuple(probe)

    def full(self, name: str, size: int) -> tuple[int, ...] | None:
        """The tensor's shape, with `size` for each that is open, and a batch of one."""
        shape = self.shapes[name]
        if shape is None:
            return None
        batch, *rest = shape or (1,)
        return (batch or 1, *(size if d is None else d for d in rest))[: len(shape)]


def outputs(node: gs.Node, bounds: Bounds, known: Known) -> list[Interval]:
    """The intervals of a node's outputs, as many as are known."""
    first = next(iter(known.data.values()), UNKNOWN)
    if not isinstance(bounds, Kind):
        return [bounds(first, node.attrs)]
    if bounds is Kind.CAST:
        return [cast(first, node.attrs["to"])]
    if bounds is Kind.CHOICE:
        return [_same_channels(first, node, known)]
    if bounds is Kind.QUOTIENT and _may_divide_by_zero(node, known):
        return []
    if bounds in (Kind.MONOTONE, Kind.RISING, Kind.PRODUCT, Kind.QUOTIENT):
        return _at_corners(node, bounds, known) or []
    return _moved(node, bounds, known)


def _may_divide_by_zero(node: gs.Node, known: Known) -> bool:
    divisor = known.data.get(node.inputs[1].name)
    return divisor is not None and not bool((divisor.lo > 0).all() or (divisor.hi < 0).all())


def _at_corners(node: gs.Node, bounds: Kind, known: Known) -> list[Interval] | None:
    """Run an elementwise operator on the ends of its inputs' intervals, in every combination."""
    open_inputs = sum(x.name in known.data for x in node.inputs)
    if bounds is not Kind.RISING and open_inputs > _CORNERS:
        return None
    ends = ("lo", "hi")
    corners: Iterable[tuple[str, ...]] = product(ends, repeat=open_inputs)
    if bounds is Kind.RISING:
        corners = _both_ends(open_inputs)
    shapes = {name: known.probe(name) for name in known.data}
    return _run_at(node, shapes, corners, known, zero_times_infinity=bounds is Kind.PRODUCT)


def _both_ends(count: int) -> list[tuple[str, ...]]:
    return [(end,) * count for end in ("lo", "hi")]


def _moved(node: gs.Node, bounds: Kind, known: Known) -> list[Interval]:
    """Exactly, as long as that matters and the sizes are known; else what holds for all."""
    intervals = [*known.data.values()]
    if node.op in ("Identity", "Dropout"):
        return intervals
    matters = known.exactly and any(i.bounded for i in intervals)
    if matters and (bounds is not Kind.MOVEMENT or not all(i.uniform for i in intervals)):
        exact = _transposed(node, known) if node.op == "Transpose" else _of_any_size(node, known)
        if exact is not None:
            return exact
    if bounds is Kind.MOVEMENT:
        return [hull(intervals)] * len(node.outputs)
    constants = [known.values.get(x.name) for x in _constants_among(node, bounds, known)]
    if any(c is None for c in constants):
        return []
    fixed = [between(float(c.min()), float(c.max())) for c in constants if c is not None and c.size]
    return [hull([*intervals, *(fixed or [between(0, 0)] * (bounds is Kind.PADDING))])]


def _transposed(node: gs.Node, known: Known) -> list[Interval] | None:
    return _run_at(node, {n: known.probe(n) for n in known.data}, _both_ends(1), known)


def _of_any_size(node: gs.Node, known: Known) -> list[Interval] | None:
    """Run a movement on whole tensors; where sizes are open, on two, which have to agree.

    Along an open axis one pair of bounds has to hold everywhere.
    """
    both = _both_ends(sum(x.name in known.data for x in node.inputs))
    found: list[list[Interval]] = []
    for size in _STAND_INS:
        shapes = {name: known.full(name, size) for name in known.data}
        exact = _run_at(node, shapes, both, known)
        if exact is None:
            return None
        pairs = zip(exact, (known.shapes[y.name] for y in node.outputs), strict=True)
        found.append([_merged(interval, shape) for interval, shape in pairs])
        if not any(None in (shape or ())[1:] for shape in known.shapes.values()):
            break
    same = (
        np.array_equal(a.lo, b.lo) and np.array_equal(a.hi, b.hi)
        for a, b in zip(found[0], found[-1], strict=True)
    )
    return found[0] if all(same) else None


def _merged(interval: Interval, shape: Shape | None) -> Interval:
    """The interval with one pair of bounds along every axis whose size is open."""
    if interval.uniform:
        return interval
    if shape is None or len(shape) != interval.lo.ndim:
        return hull([interval])
    axes = tuple(i for i, size in enumerate(shape) if size is None)
    lo, hi = interval.lo.min(axes, keepdims=True), interval.hi.max(axes, keepdims=True)
    return compressed(lo, hi)


def _constants_among(node: gs.Node, bounds: Kind, known: Known) -> list[Tensor]:
    """The constants whose values go into the output: of a Pad the one that it pads with."""
    if bounds is Kind.PADDING:
        return [x for x in node.inputs[2:3] if x.name]
    return [x for x in node.inputs if x.name and x.name not in known.data]


def _same_channels(interval: Interval, node: gs.Node, known: Known) -> Interval:
    """Bounds a channel are those of a pool's output too; anything finer is not."""
    before, after = (known.shapes[x.name] for x in (node.inputs[0], node.outputs[0]))
    kept = before is not None and after is not None and before[:2] == after[:2]
    same = kept and len(before or ()) == len(after or ()) == interval.lo.ndim
    return by_channel(interval) if same else hull([interval])


def _run_at(
    node: gs.Node,
    shapes: Mapping[str, tuple[int, ...] | None],
    corners: Iterable[tuple[str, ...]],
    known: Known,
    *,
    zero_times_infinity: bool = False,
) -> list[Interval] | None:
    """The hull of what the node makes of its inputs' ends, each laid out in a shape.

    A corner has an end for each place among the inputs, so that two places of one tensor count
    as two tensors: the bounds are wider than they could be, and never wrong.
    """
    if None in shapes.values() or any(v is None for v in known.values.values()):
        return None
    found: list[list[NDArray[np.float32]]] = []
    for corner in corners:
        ends = iter(corner)
        values = [
            _laid(known.data[x.name], next(ends), shapes[x.name])
            if x.name in known.data
            else known.values.get(x.name)
            for x in node.inputs
        ]
        if any(v is None and x.name for v, x in zip(values, node.inputs, strict=True)):
            return None
        results = _run(node, values, known.opset)
        if results is None or any(np.size(result) == 0 for result in results):
            return None
        found.append([np.asarray(result, np.float32) for result in results])
    if zero_times_infinity:  # is 0 for every number, however large
        found = [[np.nan_to_num(r, nan=0, posinf=np.inf, neginf=-np.inf) for r in c] for c in found]
    return [_spanned(results) for results in zip(*found, strict=True)]


def _laid(interval: Interval, end: str, shape: tuple[int, ...] | None) -> Value | None:
    """One end of an interval in a shape; None if it does not fit."""
    bound = getattr(interval, end)
    fits = shape is not None and _fits(bound, shape)
    return np.broadcast_to(bound, shape) if fits and shape is not None else None


def _run(node: gs.Node, values: Sequence[Value | None], opset: int) -> list[Value] | None:
    proto = OnnxExporter.export_node(node)
    places = [name and f"{i}/{name}" for i, name in enumerate(proto.input)]
    del proto.input[:]
    proto.input.extend(places)  # or one tensor in two places could not have two values
    try:
        return run_node(proto, values, opset)
    except CANNOT_RUN:
        return None


def _fits(bound: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Does it broadcast to the shape, without making it larger?"""
    padded = (1,) * (len(shape) - bound.ndim) + bound.shape
    return len(padded) == len(shape) and all(
        b in (1, n) for b, n in zip(padded, shape, strict=True)
    )


def _spanned(results: Sequence[NDArray[np.float32]]) -> Interval:
    """From the least to the greatest; inf - inf and 0 / 0 say nothing about the tensor."""
    unknown = np.any([np.isnan(r) for r in results], axis=0)
    lo = np.where(unknown, -np.inf, np.min(results, axis=0)).astype(np.float32)
    hi = np.where(unknown, np.inf, np.max(results, axis=0)).astype(np.float32)
    return between(lo.item(), hi.item()) if lo.size == 1 else compressed(lo, hi)
