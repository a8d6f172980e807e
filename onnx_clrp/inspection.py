"""What an explainer would do with each node of a model, and what it cannot do."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np
import onnx

from onnx_clrp.compiler import Options, composite_of, method_of, write
from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Interval
from onnx_clrp.methods import split_at_classifier
from onnx_clrp.model import load
from onnx_clrp.normalise import Step
from onnx_clrp.program import Program, read_program, reading
from onnx_clrp.rules import find_rule


@dataclass(frozen=True)
class Row:
    """One node on the way from the input to the logits.

    Attributes:
        node: its name.
        operator: its op type.
        rule: what it does with relevance, in a few words.
        sign: what is proven of its input's sign: `>= 0`, `<= 0` or `±`.
        shape: of its output, None for a size that is known only at run time.
        missing: why it cannot hand relevance on; None if it can.
    """

    node: str
    operator: str
    rule: str
    sign: str
    shape: list[int | None] | None
    missing: str | None


@dataclass(frozen=True)
class Inspection:
    """What a model is, and what an explainer would do with each of its nodes.

    Attributes:
        input, input_shape, input_type: the explained input.
        input_range: its lowest and highest value, None for no bound.
        logits, classes: the tensor of class scores, and how many there are.
        outputs: the model's outputs.
        labels: how many class names the model's metadata hold.
        notes: what was assumed.
        nodes: the nodes from the input to the logits, in the order in which they run.
    """

    input: str
    input_shape: list[int | str | None]
    input_type: str
    input_range: list[float | None]
    logits: str
    classes: int
    outputs: list[str]
    labels: int
    notes: list[str]
    nodes: list[Row]

    @property
    def missing(self) -> list[Row]:
        """The nodes that cannot hand relevance on."""
        return [row for row in self.nodes if row.missing is not None]

    def as_dict(self) -> dict[str, Any]:
        """The inspection for machines."""
        return asdict(self)


def inspect(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, **options: Unpack[Options]
) -> Inspection:
    """Find out what an explainer would do with each node of a model.

    Args:
        model: the model, as for `convert`.
        options: those of `convert`.

    Raises:
        ModelError: the model cannot be read, or has no logits.
        UsageError: an option does not fit.
    """
    program = read_program(load(model), **reading(options))
    method = method_of(options.get("method", "clrp2"), program.classes)
    composite = composite_of(options.get("rules", "default"))
    gaps: dict[str, str] = {}
    try:
        write(program, method, composite, None)
    except UnsupportedError as error:
        gaps = {node: reason for node, _, reason in error.gaps}
    classifier = []
    if method.dual is not None and not gaps:
        head, _ = split_at_classifier(program.steps, program.logits)
        classifier = [step.outputs[0].name for step in head if step.linear]
    rows = [_row(step, program, classifier, gaps) for step in program.steps]
    interval = program.facts.interval(program.input)
    ends = (float(interval.lo.min()), float(interval.hi.max()))
    return Inspection(
        input=program.input.name,
        input_shape=list(program.input.shape or ()),
        input_type=str(np.dtype(program.input.dtype)),
        input_range=[end if np.isfinite(end) else None for end in ends],
        logits=program.logits.name,
        classes=program.classes,
        outputs=[y.name for y in program.model.graph.outputs],
        labels=len(program.labels or ()),
        notes=program.notes,
        nodes=rows,
    )


def _row(
    step: Step,
    program: Program,
    classifier: list[str],
    gaps: dict[str, str],
) -> Row:
    data = [x for x in step.inputs if x is not None and program.facts.carries(x)]
    shape = program.facts.shape(step.outputs[0])
    return Row(
        node=str(step),
        operator=".".join(filter(None, (step.domain, step.op))),
        rule=_rule(step, program, step.outputs[0].name in classifier),
        sign=_sign([program.facts.interval(x) for x in data]),
        shape=None if shape is None else list(shape),
        missing=gaps.get(str(step)),
    )


def _rule(step: Step, program: Program, classifier: bool) -> str:
    rule = find_rule(step.op, step.domain)
    if rule is None:
        return ""
    if not step.linear:
        return rule.summary
    x = next(x for x in step.inputs if x is not None and program.facts.carries(x))
    first = not program.facts.behind_linear(x)
    bounded = first and program.facts.interval(x).finite
    name = "z^β" if bounded else "z⁺"
    marks = ["classifier layer"] * classifier + ["signs folded"] * (step.signs is not None)
    return ", ".join([name, *marks])


def _sign(intervals: list[Interval]) -> str:
    if all(i.nonnegative for i in intervals):
        return ">= 0"
    return "<= 0" if all(i.nonpositive for i in intervals) else "±"
