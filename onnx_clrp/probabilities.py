"""Probabilities in front of the logits: where a map would explain them as if they were scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx_clrp.facts import Facts
from onnx_clrp.rules import find_rule
from onnx_clrp.signs import falls
from onnx_clrp.steps import Step

_CURE = "name the scores in front of it with --logits"
_PICKED = f"behind it classes are only picked: {_CURE}"
_MIXED = f"the answer is a mixture of probabilities: {_CURE}"
_TURNED = f"it turns a probability round: {_CURE}"

_MIXING = frozenset(
    {"Add", "Sub", "Sum", "Mean", "Mul", "Div", "Max", "Min", "Clip", "ReduceMean", "ReduceMax"}
)
"""What ensembles, and answers for several views of a picture, are put together with."""


def doubted(steps: Sequence[Step], ends: set[str], facts: Facts) -> list[Step]:
    """The steps, with a doubt where a Sigmoid's probabilities are picked, mixed or turned round.

    A Sigmoid is an activation like any other in the midst of a network, and skipped at its very
    end. In between, where `1 - p`, a few of the classes or a mean is put out, it is neither.
    """
    sources = {y.name: step for step in steps for y in step.outputs}
    picked, _ = _sigmoids(ends, sources, facts, frozenset())
    mixed, alone = _sigmoids(ends, sources, facts, _MIXING)

    def reason(step: Step) -> str | None:
        name = step.outputs[0].name
        if name in picked:
            return _PICKED
        if alone and name in mixed:
            return _MIXED
        turns = falls(step, facts) and any(
            x.name in sources and sources[x.name].op == "Sigmoid" for x in step.receivers
        )
        return _TURNED if turns else None

    reasons = ((step, reason(step)) for step in steps)
    return [step if why is None else replace(step, doubt=why) for step, why in reasons]


def _sigmoids(
    ends: set[str], sources: Mapping[str, Step], facts: Facts, mixing: frozenset[str]
) -> tuple[set[str], bool]:
    """The Sigmoids that the ends are made from by moving and mixing, and are they all there is?"""
    found, alone = set[str](), True
    waiting, seen = [*ends], set[str]()
    while waiting:
        name = waiting.pop()
        step = sources.get(name)
        if name in seen:
            continue
        seen.add(name)
        if step is not None and step.op == "Sigmoid":
            found.add(name)
        elif step is not None and (_only_moves(step) or step.op in mixing):
            waiting.extend(x.name for x in step.receivers if facts.carries(x))
        else:
            alone = False
    return found, alone


def _only_moves(step: Step) -> bool:
    rule = find_rule(step.op, step.domain)
    return rule is not None and not rule.calculates
