"""An explainer that keeps books: what came to each node, what it handed on, what it absorbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_clrp.compiler import Plan, append
from onnx_clrp.float64 import cut
from onnx_clrp.maps import Ways, relevance_maps
from onnx_clrp.methods import METHODS
from onnx_clrp.program import Program
from onnx_clrp.seeds import Seeds
from onnx_clrp.steps import Step
from onnx_clrp.tape import Tape, Tensor
from onnx_clrp.walk import Handed


@dataclass(frozen=True)
class Entry:
    """The ledger of one node, in units of the explained logit: arrived = handed + absorbed.

    Attributes:
        node: its name.
        operator: its op type.
        arrived: the relevance that came to its outputs.
        handed: what its inputs took.
        reasons: what it absorbed, by the reason.
    """

    node: str
    operator: str
    arrived: float
    handed: float
    reasons: dict[str, float] = field(default_factory=dict)

    @property
    def absorbed(self) -> float:
        """What found no receiver."""
        return sum(self.reasons.values())

    @property
    def leaks(self) -> float:
        """What is in the ledger nowhere: it should be nothing."""
        return self.arrived - self.handed - self.absorbed


@dataclass(frozen=True)
class Books:
    """The graph of an explainer of one class that keeps books.

    Attributes:
        model: the graph; its added outputs are the sums and the maps.
        sums: the names of the outputs that hold sums, by what they are.
        maps: those of the maps `[1, *input.shape]`: `relevance` of the method, `concept`, and
            `dual` where there is one, each handed down on its own.
        cut: the tensors of the model itself that the maps are made from.
        steps: the steps that relevance came to, in the order in which it met them.
        reasons: of each sum that was absorbed, the place of its step among them, and why.
    """

    model: onnx.ModelProto
    sums: dict[str, str]
    maps: dict[str, str]
    cut: list[str]
    steps: list[Step]
    reasons: list[tuple[int, str]]

    def entries(self, found: Mapping[str, float], unit: float) -> list[Entry]:
        """A row for each step, from the sums that a run found."""
        rows: list[dict[str, float]] = [{} for _ in self.steps]
        for i, (place, why) in enumerate(self.reasons):
            if lost := found[f"absorbed/{i}"] / unit:
                rows[place][why] = rows[place].get(why, 0.0) + lost
        return [
            Entry(
                node=str(step),
                operator=step.operator,
                arrived=found[f"arrived/{i}"] / unit,
                handed=found[f"handed/{i}"] / unit,
                reasons=rows[i],
            )
            for i, step in enumerate(self.steps)
        ]


def keep_books(program: Program, plan: Plan, target: int) -> Books:
    """Write the walk of LRP with its ledger, and the maps of a method, behind the model."""
    t = Tape(program.model.names(), program.facts)
    own = frozenset(y for node in program.model.proto.graph.node for y in node.output)
    t.targets = np.array([1], np.int64)
    seeds = Seeds.of(t, program, t.constant(np.array([[target]])))
    ledger = _Ledger(t)
    lrp, method = METHODS["lrp"], plan.method
    plain = relevance_maps(t, program, lrp, plan.composite, seeds, watch=ledger.watch)
    sums = ledger.sums()
    sums["logit"] = t.total(seeds.sown(lrp.sow)[program.logits.name])
    sums["input"] = t.total(plain["relevance"])
    ways = Ways(t, program, method, plan.composite, seeds)
    maps = relevance_maps(t, program, method, plan.composite, seeds, cam_layer=plan.cam_layer)
    if method.dual is None or not ways.in_one_pass:
        maps["concept"] = maps["relevance"]
    else:
        maps["concept"] = ways.concept()[program.input.name]
        maps["dual"] = ways.dual()[program.input.name]
    outputs = {**sums, **{f"map/{key}": r for key, r in maps.items()}}
    model = append(program.model.proto, t, {f"ledger/{k}": x for k, x in outputs.items()})
    added = [y.name for y in model.graph.output[-len(outputs) :]]
    names = added[len(sums) :]
    return Books(
        model=model,
        sums=dict(zip(sums, added, strict=False)),
        maps=dict(zip(maps, names, strict=True)),
        cut=_tapped(model, own, names),
        steps=ledger.steps,
        reasons=ledger.reasons,
    )


class _Ledger:
    """What a walk writes down of each step.

    Attributes:
        steps: the steps that relevance came to.
        reasons: of each sum that was absorbed, the place of its step among them, and why.
    """

    def __init__(self, t: Tape) -> None:
        self.steps: list[Step] = []
        self.reasons: list[tuple[int, str]] = []
        self._t = t
        self._sums: dict[str, Tensor] = {}

    def watch(self, step: Step, arrived: Sequence[Tensor | None], handed: Handed) -> None:
        """Told of every step of the walk."""
        t, place = self._t, len(self.steps)
        self.steps.append(step)
        nothing = t.constant(np.zeros(1, np.float32))
        come = [t.total(r) for r in arrived if r is not None]
        self._sums[f"arrived/{place}"] = t.sum(come)
        self._sums[f"handed/{place}"] = t.sum([t.total(r) for _, r in handed] or [nothing])

    def sums(self) -> dict[str, Tensor]:
        """All sums by what they are; to be asked for before another walk enters its own."""
        places = {id(step): place for place, step in enumerate(self.steps)}
        self.reasons = [(places[id(step)], why) for step, why, _ in self._t.absorbed]
        lost = {f"absorbed/{i}": total for i, (_, _, total) in enumerate(self._t.absorbed)}
        return {**self._sums, **lost}


def _tapped(model: onnx.ModelProto, own: frozenset[str], maps: Sequence[str]) -> list[str]:
    """The tensors of the model itself that the maps are made from, as outputs of the graph."""
    between = cut(model, own, maps)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=x) for x in between if x not in known)
    return between
