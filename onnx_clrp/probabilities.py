"""Probabilities in front of the logits: where a map would explain them as if they were scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx_clrp.facts import Facts
from onnx_clrp.rules import find_rule
from onnx_clrp.signs import falls
from onnx_clrp.steps import Step

_CURE = "name the scores in front of it with --logits"


def doubted(steps: Sequence[Step], ends: set[str], facts: Facts) -> list[Step]:
    """The steps, with a doubt where a Sigmoid's probabilities are picked or turned round.

    A Sigmoid is an activation like any other in the midst of a network, and skipped at its very
    end. In between, where `1 - p` or a few of the classes are put out, it is neither.
    """
    made: list[Step] = []
    tail, sources = set(ends), {y.name: step for step in steps for y in step.outputs}
    for step in reversed(steps):
        if any(y.name in tail for y in step.outputs):
            if step.op == "Sigmoid":
                step = replace(step, doubt=f"behind it classes are only picked: {_CURE}")
            elif _only_moves(step):
                tail.update(x.name for x in step.receivers)
        if falls(step, facts) and _of_sigmoid(step, sources, facts):
            step = replace(step, doubt=f"it turns a probability round: {_CURE}")
        made.append(step)
    return made[::-1]


def _only_moves(step: Step) -> bool:
    rule = find_rule(step.op, step.domain)
    return rule is not None and not rule.calculates


def _of_sigmoid(step: Step, sources: dict[str, Step], facts: Facts) -> bool:
    made_by = (sources.get(x.name) for x in step.receivers if facts.carries(x))
    return any(before is not None and before.op == "Sigmoid" for before in made_by)
