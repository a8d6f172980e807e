"""For tests of rules, ours and yours: hand a relevance of your choice through a few nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.backprop import GRADIENT
from onnx_clrp.compiler import append
from onnx_clrp.composites import Composite, Overrides, composite_of, overridden
from onnx_clrp.facts import Facts
from onnx_clrp.intervals import UNKNOWN, Interval
from onnx_clrp.model import load
from onnx_clrp.modernise import modernise
from onnx_clrp.normalise import normalised_steps, plain_steps
from onnx_clrp.sessions import open_session
from onnx_clrp.tape import Tape
from onnx_clrp.walk import Relevance, refuse_gaps, walk

Arrays = Mapping[str, NDArray[np.generic]]


Bounds = Mapping[str, tuple[NDArray[np.generic], NDArray[np.generic]]]


def redistribute(
    model: onnx.ModelProto,
    inputs: Arrays,
    relevance: Arrays,
    *,
    rules: str = "default",
    rules_for: Overrides = (),
    bounds: Bounds | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Hand relevance from a model's outputs back to its inputs, by the registered rules.

    Args:
        model: any model; every one of its inputs counts as data.
        inputs: a value for each input.
        relevance: for some outputs, `[k, *output.shape]` each.
        rules: the rule set.
        rules_for: other rules for some linear maps, as for `convert`.
        bounds: for some inputs, the lowest and the highest value, as arrays that broadcast.

    Returns:
        For each input that takes relevance, `[k, *input.shape]` float32.

    Raises:
        UnsupportedError: a node cannot hand relevance on.
    """
    return _handed_back(model, inputs, relevance, composite_of(rules), rules_for, bounds or {})


def backpropagate(
    model: onnx.ModelProto, inputs: Arrays, gradients: Arrays
) -> dict[str, NDArray[np.float32]]:
    """Hand gradients from a model's outputs back to its inputs.

    Args:
        model: any model; every one of its inputs counts as data.
        inputs: a value for each input.
        gradients: for some outputs, `[k, *output.shape]` each.

    Returns:
        For each input that has one, the gradient `[k, *input.shape]` float32.

    Raises:
        UnsupportedError: a node has no gradient.
    """
    return _handed_back(model, inputs, gradients, GRADIENT, (), {})


def _handed_back(
    model: onnx.ModelProto,
    inputs: Arrays,
    arriving: Arrays,
    composite: Composite,
    rules_for: Overrides,
    bounds: Bounds,
) -> dict[str, NDArray[np.float32]]:
    known = modernise(load(model))
    intervals = {x.name: UNKNOWN for x in known.graph.inputs}
    for name, (low, high) in bounds.items():
        intervals[name] = Interval(np.asarray(low, np.float32), np.asarray(high, np.float32))
    facts = Facts(known.graph, known.weights, intervals, known.reals)
    ends = [y for y in known.graph.outputs if y.name in arriving]
    t = Tape(known.names(), facts)
    relevance: Relevance = {
        y.name: t.constant(np.asarray(arriving[y.name], np.float32)) for y in ends
    }
    t.targets = np.array([len(next(iter(arriving.values())))], np.int64)
    steps = normalised_steps(known.graph, facts, ends)
    if composite.gradient:
        steps = plain_steps(known.graph, facts, ends, steps)
    taken = walk(t, steps, relevance, overridden(composite, rules_for, steps))
    refuse_gaps(t, steps)
    made = append(known.proto, t, {f"relevance of {x}": r for x, r in taken.items()})
    session = open_session(made, "cpu").session
    if not taken:  # asked for no output, a session gives all
        return {}
    values = session.run([f"relevance of {x}" for x in taken], dict(inputs))
    return dict(zip(taken, values, strict=True))
