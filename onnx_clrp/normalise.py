"""Rewrite the nodes between input and logits to what the rules know, one pass after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnx_clrp.facts import Facts, Tensor
from onnx_clrp.formulas import as_composite
from onnx_clrp.gates import Gates, shaping_gates
from onnx_clrp.pads import explicit_pads, without_pads
from onnx_clrp.signs import with_signs
from onnx_clrp.steps import Step, between, readers, step_of


def normalised_steps(graph: gs.Graph, facts: Facts, ends: Sequence[Tensor]) -> list[Step]:
    """The nodes between the explained input and the ends, in the order in which they run."""
    names = {y.name for y in ends}
    gates = Gates(facts)
    made = [gates.marked(as_composite(step_of(node, facts), facts)) for node in graph.nodes]
    made = [explicit_pads(step, facts) for step in between(made, names, facts)]
    producers = {y.name: step for step in made for y in step.outputs}
    made = between([without_pads(step, producers, facts) for step in made], names, facts)
    reading = readers(made)
    return [with_signs(step, reading, facts, names) for step in made]


def plain_steps(
    graph: gs.Graph, facts: Facts, ends: Sequence[Tensor], gated: Sequence[Step]
) -> list[Step]:
    """The same nodes one by one, for gradients: nothing is bypassed, a gate gets its own.

    The steps as relevance passes them say which operands are gates: a Clip there is a part of a
    hard sigmoid, and no ReLU.
    """
    made = [explicit_pads(step_of(node, facts), facts) for node in graph.nodes]
    made = [_smooth(step, facts) for step in between(made, {y.name for y in ends}, facts)]
    shaping = shaping_gates(made, gated)
    return [replace(s, shapes_gate=s.outputs[0].name in shaping) for s in made]


def _smooth(step: Step, facts: Facts) -> Step:
    """The step, in doubt where what it writes is rounded to integers and cut off at their ends."""
    views = [(y.name, facts.reals.views.get(y.name)) for y in step.outputs]
    if any(v is not None and v.scale is not None and v.source == name for name, v in views):
        return replace(step, doubt="its output is quantised, which has no gradient")
    return step
