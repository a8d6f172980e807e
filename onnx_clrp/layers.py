"""The layers of a network by name: which tensor a name stands for, and what its neurons are."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_clrp.errors import UsageError
from onnx_clrp.facts import Facts, Tensor
from onnx_clrp.steps import Step

NEURONS = ("channels", "units")
"""What counts as a neuron of a layer: a channel with all its positions, or every single unit."""

_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_LAYING = frozenset({"Transpose", "Reshape"})


def find_tensor(graph: gs.Graph, facts: Facts, name: str) -> gs.Variable:
    """The tensor of that name, or the first output of the node of that name, as Netron shows them.

    Raises:
        UsageError: there is none, or it does not depend on the explained input.
    """
    nodes = {node.name: node.outputs[0] for node in graph.nodes if node.name and node.outputs}
    tensors = {y.name: y for node in graph.nodes for y in node.outputs}
    found = nodes.get(name) or tensors.get(name)
    if found is None:
        close = get_close_matches(name, [*nodes, *tensors], n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
        raise UsageError(f"no layer is called {name!r}: `inspect --layers` lists them{hint}")
    if not facts.carries(found):
        raise UsageError(f"the layer {name!r} does not depend on the explained input")
    if found.dtype and found.name not in facts.reals.views and not _is_float(found):
        raise UsageError(f"the layer {name!r} holds no real numbers, but {_type(found)}")
    return found


def _is_float(x: Tensor) -> bool:
    return _type(x).kind == "f"


def _type(x: Tensor) -> np.dtype[Any]:
    return np.dtype(x.dtype if not isinstance(x.dtype, int) else tensor_dtype_to_np_dtype(x.dtype))


def neurons_of(facts: Facts, layer: Tensor, neurons: str) -> int:
    """How many neurons a layer has.

    Raises:
        UsageError: it has none that could be told apart, or they cannot be counted.
    """
    if neurons not in NEURONS:
        raise UsageError(f"neurons are {' or '.join(NEURONS)}, not {neurons!r}")
    shape = facts.shape(layer)
    sizes = None if shape is None else shape[1:2] if neurons == "channels" else shape[1:]
    if shape is None or len(shape) < 2:
        raise UsageError(f"the layer {layer.name!r} has no neurons: its shape is {shape}")
    known = [d for d in sizes or () if d is not None]
    if len(known) != len(sizes or ()):
        raise UsageError(f"how many {neurons} the layer {layer.name!r} has is not known: {shape}")
    return prod(known)


def last_spatial(steps: Sequence[Step], facts: Facts) -> Tensor | None:
    """What pools or the classifier read of the last convolution over a plane.

    Args:
        steps: those in front of the classifier layer.
        facts: what is known of their tensors.

    Returns:
        The last tensor of the same plane through which every way from that convolution on leads;
        None if no convolution has a plane.
    """
    places = [i for i, s in enumerate(steps) if s.op == "Conv" and _plane(s.outputs[0], facts)]
    if not places:
        return None
    start, later = steps[places[-1]].outputs[0], steps[places[-1] + 1 :]
    plane, behind = _plane(start, facts), {start.name: start}
    for step in later:
        if step.op not in _POOLS and any(x.name in behind for x in step.receivers):
            behind.update((y.name, y) for y in step.outputs)
    laid = {y.name for s in later if s.op in _LAYING for y in s.outputs}
    alike = [y for y in reversed(behind.values()) if _plane(y, facts) == plane]
    alike = [y for y in alike if y.name not in laid]  # where channels may stand elsewhere
    return next((y for y in alike if _all_through(y.name, later, [*behind])), start)


def _all_through(name: str, later: Sequence[Step], behind: Sequence[str]) -> bool:
    """Does every way on from the first of the tensors behind it lead through that one?"""
    reached = {behind[0]} - {name}
    for step in later:
        if any(x.name in reached for x in step.receivers):
            reached.update(y.name for y in step.outputs if y.name != name)
    read = {x.name for step in later for x in step.receivers}
    return all(x in behind and x in read for x in reached)


def _plane(x: Tensor, facts: Facts) -> Sequence[int | None] | None:
    """The spatial sizes of a tensor; None if it has none, or a single position alone."""
    sizes = (facts.shape(x) or ())[2:]
    return None if not sizes or all(d == 1 for d in sizes) else sizes
