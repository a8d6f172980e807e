"""What an explainer would do with each node of a model, what it costs, and what it cannot do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from math import prod
from typing import Any, Unpack

import numpy as np
import onnx

from onnx_clrp.cam import default_layer
from onnx_clrp.classifier import split_at_classifier
from onnx_clrp.compiler import Options, Plan, append, plan_of
from onnx_clrp.errors import ModelError, UnsupportedError
from onnx_clrp.facts import Facts
from onnx_clrp.intervals import Interval
from onnx_clrp.maps import Ways, relevance_maps
from onnx_clrp.model import load
from onnx_clrp.program import Program, read_program, reading
from onnx_clrp.redistribute import zbeta, zplus
from onnx_clrp.rules import find_rule
from onnx_clrp.seeds import Seeds
from onnx_clrp.steps import Step, between, step_of
from onnx_clrp.tape import Tape, Tensor
from onnx_clrp.walk import Handed

_MAPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""The operators that a linear map is run by, forward or transposed."""


@dataclass(frozen=True)
class Row:
    """One node on the way from the input to the logits.

    Attributes:
        node: its name.
        operator: its op type in the model.
        rule: what it does with relevance, in a few words; empty if none comes to it.
        sign: what is proven of its input's sign: `>= 0`, `<= 0` or `±`.
        shape: of its output, None for a size that is known only at run time.
        missing: why it cannot hand relevance on; None if it can.
        role: `step` if relevance comes to it, `both` if something also reads it as a gate; `gate`
            if it is nothing but that, `beside` if it leads to gates alone, and `part` if it is
            read as a part of another node.
        gates: the nodes whose outputs it reads without handing them relevance.
        linear: whether it is a linear map.
        multiply_adds: of a linear map, what running it once for one sample takes; None if the
            model leaves sizes open.
        runs: how often the explanation of one class runs the map, forward or transposed; never
            where the row of that class is enough.
        nodes: how many nodes the explainer adds for it.
    """

    node: str
    operator: str
    rule: str
    sign: str
    shape: list[int | None] | None
    missing: str | None
    role: str
    gates: list[str]
    linear: bool
    multiply_adds: int | None
    runs: int
    nodes: int


@dataclass(frozen=True)
class Inspection:
    """What a model is, and what an explainer would do with each of its nodes.

    Attributes:
        input, input_shape, input_type: the explained input.
        input_range: its lowest and highest value, None for no bound.
        logits, classes: the tensor of class scores, and how many there are.
        outputs: the model's outputs.
        labels: how many class names the model's metadata hold.
        method, rules: what is to explain it.
        notes: what was assumed.
        refusal: why there is no explainer although every node has a rule; None if there is one.
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
    method: str
    rules: str
    notes: list[str]
    refusal: str | None
    nodes: list[Row]

    @property
    def missing(self) -> list[Row]:
        """The nodes that cannot hand relevance on."""
        return [row for row in self.nodes if row.missing is not None]

    @property
    def forward(self) -> int | None:
        """The multiply-adds of the linear maps from the input to the logits; None if unknown."""
        return _total([row.multiply_adds for row in self.nodes if row.linear])

    @property
    def explanation(self) -> int | None:
        """Those that explaining one class adds; None if unknown, or if there is no explainer."""
        if self.missing or self.refusal is not None:
            return None
        return _total(
            [
                None if row.multiply_adds is None else row.runs * row.multiply_adds
                for row in self.nodes
                if row.linear and row.runs
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """The inspection for machines."""
        cost = {"forward": self.forward, "explanation": self.explanation}
        return {**asdict(self), "multiply_adds": cost}


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
    program = _with_names(read_program(load(model), **reading(options)))
    plan = plan_of(program, options)
    trial = _Trial(program, plan)
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
        method=plan.method.name,
        rules=options.get("rules", "default"),
        notes=program.notes,
        refusal=trial.refusal,
        nodes=trial.rows(),
    )


@dataclass(frozen=True)
class Layer:
    """A tensor on the way from the input to the logits, whose neurons can be explained.

    Attributes:
        node: the name of the node that writes it.
        operator: its op type.
        tensor: the tensor's own name.
        shape: that of the tensor, None for a size that only the run will tell.
        cam: is a class activation map made of it, where no other is named?
    """

    node: str
    operator: str
    tensor: str
    shape: list[int | None] | None
    cam: bool


def layers_of(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, **options: Unpack[Options]
) -> list[Layer]:
    """The layers of a model, in the order in which they run.

    Args:
        model: the model, as for `convert`.
        options: those of `convert`.

    Raises:
        ModelError: the model cannot be read, or has no logits.
        UsageError: an option does not fit.
    """
    program = read_program(load(model), **reading(options))
    last = default_layer(program)
    layers = []
    for step in program.plain_steps:
        for y in step.outputs:
            shape = program.facts.shape(y)
            known = None if shape is None else [*shape]
            own = last is not None and y.name == last.name
            layers.append(Layer(step.name, step.operator, y.name, known, own))
    return layers


def _with_names(program: Program) -> Program:
    """The same with a name of its own for every step, by which its nodes are known."""
    ways = program.steps, program.plain_steps
    steps, plain_steps = ([*map(_named(way), way)] for way in ways)
    return replace(program, steps=steps, plain_steps=plain_steps)


def _named(steps: Sequence[Step]) -> Callable[[Step], Step]:
    often = Counter(step.name for step in steps)

    def named(step: Step) -> Step:
        alone = step.name and often[step.name] == 1
        return step if alone else replace(step, name=_unique(step))

    return named


def _unique(step: Step) -> str:
    return f"{step.name} (writes {step.outputs[0].name})" if step.name else str(step)


class _Trial:
    """An explainer written on trial, for what is to be seen of it.

    Attributes:
        refusal: why there is no explainer although every node has a rule.
    """

    def __init__(self, program: Program, plan: Plan) -> None:
        self.refusal: str | None = None
        self._program, self._plan = program, plan
        own = plan.method.composite
        self._composite = plan.composite if own is None else own
        self._steps = program.plain_steps if self._composite.gradient else program.steps
        self._taken: dict[str, set[str]] = {}
        self._passing: set[str] = set()
        self._gaps: dict[str, str] = {}
        self._written: Counter[tuple[str, str]] = Counter()
        self._run: Counter[str] = Counter()
        self._classifier: set[str] = set()
        try:
            self._write()
        except UnsupportedError as error:
            self._gaps = {node: reason for node, _, reason in error.gaps}
        except ModelError as error:
            self.refusal = str(error)

    def _write(self) -> None:
        program, plan = self._program, self._plan
        t = Tape(program.model.names(), program.facts)
        seeds = Seeds.of(t, program, t.constant(np.array([[0]])))
        self._composite = Ways(t, program, plan.method, plan.composite, seeds).composite

        def watch(step: Step, arrived: Sequence[Tensor | None], handed: Handed) -> None:
            self._taken[str(step)] = {x.name for x, _ in handed}
            if {r.name for _, r in handed} == {r.name for r in arrived if r is not None}:
                self._passing.add(str(step))

        maps = relevance_maps(
            *(t, program, plan.method, plan.composite, seeds), watch=watch, cam_layer=plan.cam_layer
        )
        own = len(program.model.proto.graph.node)
        made = append(program.model.proto, t, maps)
        added = made.graph.node[own:]
        self._written.update(_origin(node) for node in added)
        self._run.update(_runs_of_maps(added))
        if plan.method.dual is not None:
            head, _ = split_at_classifier(self._steps, program.logits)
            self._classifier = {str(step) for step in head if step.linear}

    def rows(self) -> list[Row]:
        """A row for each node on the way, also for those that relevance does not come to."""
        program = self._program
        named = {step.outputs[0].name: step for step in self._steps}
        every = [step_of(node, program.facts) for node in program.model.graph.nodes]
        there = between(every, {program.logits.name}, program.facts)
        steps = [named.get(step.outputs[0].name, step) for step in there]
        gates = {x.name for step in self._steps for x in self._gates(step)}
        to_gates = {step.outputs[0].name for step in between(every, gates, program.facts)}
        return [self._row(step, gates, to_gates) for step in steps]

    def _gates(self, step: Step) -> list[Tensor]:
        """The inputs that depend on the data and take no relevance all the same."""
        taken = self._taken.get(str(step))
        if not taken:
            return []
        return [
            x for x in step.inputs if self._carries(x) and x is not None and x.name not in taken
        ]

    def _row(self, step: Step, gates: set[str], to_gates: set[str]) -> Row:
        facts, name, of = self._program.facts, str(step), {y.name for y in step.outputs}
        written = {op: n for (made_for, op), n in self._written.items() if made_for == name}
        shape = facts.shape(step.outputs[0])
        role = "gate" if of & gates else "beside" if of & to_gates else "part"
        if name in self._taken:
            role = "both" if of & gates else "step"
        return Row(
            node=name,
            operator=step.operator,
            rule=self._rule(step) if name in self._taken else "",
            sign=_sign(
                [facts.interval(x) for x in step.inputs if x is not None and self._carries(x)]
            ),
            shape=None if shape is None else list(shape),
            missing=self._gaps.get(name),
            role=role,
            gates=[_maker(x) for x in self._gates(step)],
            linear=step.linear,
            multiply_adds=_multiply_adds(step, facts) if step.linear else None,
            runs=self._run[name] if step.linear else 0,
            nodes=sum(written.values()),
        )

    def _carries(self, x: Tensor | None) -> bool:
        return self._program.facts.carries(x)

    def _rule(self, step: Step) -> str:
        if self._composite.gradient:
            return "gradient"
        rule = find_rule(step.op, step.domain)
        if rule is None:
            return ""
        facts = self._program.facts
        data = [x for x in step.inputs if x is not None and facts.carries(x)]
        if not step.linear:  # a sum of one activation and a constant is no sum to share
            affine = str(step) in self._passing and len(data) < len(step.inputs)
            return "R_x = R_y" if affine else rule.summary
        x = data[0]
        chosen = self._composite.rule(step, first=not facts.behind_linear(x))
        if chosen is zbeta and not facts.interval(x).finite:
            chosen = zplus
        marks = ["classifier layer"] * (str(step) in self._classifier)
        marks += ["signs folded"] * (step.signs is not None)
        return ", ".join([chosen.name, *marks])


def _maker(x: Tensor) -> str:
    """The name of the node that writes the tensor; else its own."""
    return (x.inputs[0].name if x.inputs else "") or str(x.name)


def _origin(node: onnx.NodeProto) -> tuple[str, str]:
    """The step that a node was written for, and its operator: they are in its name."""
    step = node.name.rpartition("/")[0].partition("/")[2]
    return step, node.op_type


def _runs_of_maps(added: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """The step of each linear map that was written, as often as it has weights side by side."""
    joined = {n.output[0]: len(n.input) for n in added if n.op_type == "Concat"}
    for node in added:
        if node.op_type in _MAPS:
            yield from repeat(_origin(node)[0], joined.get(node.input[1], 1))


def _multiply_adds(step: Step, facts: Facts) -> int | None:
    """Of running a linear map once for one sample; None if that is not known."""
    if step.op not in _MAPS:
        return None
    x, w, y = (
        (None if of is None else facts.shape(of)) or (None, None)
        for of in (*step.inputs[:2], step.outputs[0])
    )
    factors: Mapping[str, Sequence[int | None]] = {
        "Conv": (*y[1:], *w[1:]),
        "ConvTranspose": (*x[1:], *w[1:]),
        "Gemm": w,
        "MatMul": (*y[1:], x[-1] or w[-2]),
    }
    known = [d for d in factors[step.op] if d is not None]
    return prod(known) if len(known) == len(factors[step.op]) else None


def _total(costs: Sequence[int | None]) -> int | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def _sign(intervals: list[Interval]) -> str:
    if all(i.nonnegative for i in intervals):
        return ">= 0"
    return "<= 0" if all(i.nonpositive for i in intervals) else "±"
