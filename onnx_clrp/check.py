"""Does an explainer keep its promises? Conservation per node, the model's own outputs, float64."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.compiler import Options, append, composite_of, convert
from onnx_clrp.errors import ClrpError
from onnx_clrp.float64 import run_float64
from onnx_clrp.methods import METHODS, Seeds, relevance_maps
from onnx_clrp.model import PREFIX, load, metadata
from onnx_clrp.normalise import Step
from onnx_clrp.program import Program, read_program, reading
from onnx_clrp.runtime import Explainer
from onnx_clrp.sessions import open_session, run
from onnx_clrp.tape import Tape, Tensor
from onnx_clrp.walk import Handed

CLOSES = 1e-4
"""How far a node's ledger may be open, as a part of the explained logit."""

UNCHANGED = 1e-5
"""How far an output of the explainer may be from the model's, as a part of its largest value."""

AGREES = 1e-2
"""How far relevance may be from a float64 run, whose pools may choose others in near ties."""


@dataclass(frozen=True)
class Entry:
    """The ledger of one node, in units of the explained logit: arrived = handed + absorbed."""

    node: str
    operator: str
    arrived: float
    handed: float
    absorbed: float

    @property
    def leaks(self) -> float:
        """What is in the ledger nowhere: it should be nothing."""
        return self.arrived - self.handed - self.absorbed


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        target: the explained class, the top one.
        logit: its score.
        ledger: of LRP, a row for each node in the order in which relevance meets them.
        arrived_at_input: ΣR at the input over the logit.
        absorbed: what all nodes absorbed, over the logit.
        outputs: for each output of the model how far the explainer's is from it.
        distance: how far the relevance is from a float64 run, ‖out - ref‖ / ‖ref‖.
        notes: what was assumed about the model.
    """

    target: int
    logit: float
    ledger: list[Entry]
    arrived_at_input: float
    absorbed: float
    outputs: dict[str, float]
    distance: float
    notes: list[str]

    @property
    def open_nodes(self) -> list[Entry]:
        """The nodes whose ledger does not close."""
        return [entry for entry in self.ledger if not abs(entry.leaks) <= CLOSES]

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words; empty if the explainer keeps its promises."""
        total = self.arrived_at_input + self.absorbed - 1
        found = [f"the ledger of {e.node} is open by {e.leaks:.1e}" for e in self.open_nodes]
        if not abs(total) <= CLOSES:
            found.append(f"relevance is not conserved: off by {total:.1e} of the logit")
        found += [
            f"the output {name} changed by {change:.1e}"
            for name, change in self.outputs.items()
            if not change <= UNCHANGED
        ]
        if not self.distance <= AGREES:
            found.append(f"the relevance is {self.distance:.1e} from a float64 run")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report for machines."""
        ledger = [{**asdict(entry), "leaks": entry.leaks} for entry in self.ledger]
        return {**asdict(self), "ledger": ledger, "faults": self.faults}


def check(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    batch: NDArray[Any] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Check the explainer of a model on one input.

    Args:
        model: the model, as for `convert`; not an explainer.
        batch: one sample `[1, ...]`; None for random values within the input's range.
        options: those of `convert`. The ledger is always that of LRP.

    Raises:
        ClrpError: whatever keeps the model from being explained.
    """
    proto = load(model)
    signed: Options = {**options, "signed": True}
    made = convert(proto, **signed)
    explainer = Explainer(made, device="cpu")
    sample = random_sample(explainer) if batch is None else np.asarray(batch)[:1]
    top = int(explainer.logits(sample).argmax())
    ledger, logit, arrived = _ledger(proto, sample, top, options)
    session, _ = open_session(made, "cpu")
    return Report(
        target=top,
        logit=logit,
        ledger=ledger,
        arrived_at_input=arrived,
        absorbed=float(sum(entry.absorbed for entry in ledger)),
        outputs=_changes(proto, made, session, sample, top),
        distance=_distance(made, session, sample, top),
        notes=explainer.notes,
    )


def random_sample(explainer: Explainer) -> NDArray[Any]:
    """A seeded random input within the range of the model's input, `[1, ...]`."""
    shape, dtype = explainer.input_form
    low, high = explainer.input_bounds
    bounded = np.isfinite(low) & np.isfinite(high)
    rng = np.random.default_rng(0)
    drawn = rng.uniform(np.where(bounded, low, -1), np.where(bounded, high, 1), shape)
    return drawn.astype(dtype)


def _ledger(
    proto: onnx.ModelProto, sample: NDArray[Any], target: int, options: Options
) -> tuple[list[Entry], float, float]:
    """LRP's ledger in units of the logit, the logit, and what arrives at the input."""
    program = read_program(proto, **reading(options))
    t = Tape(program.model.names(), program.facts)
    t.targets = np.array([1], np.int64)
    seeds = Seeds.of(t, program, t.constant(np.array([[target]])))
    seen: list[tuple[Step, Tensor, Tensor]] = []

    def watch(step: Step, arrived: Sequence[Tensor | None], handed: Handed) -> None:
        come = t.sum(t.total(r) for r in arrived if r is not None)
        seen.append((step, come, t.sum(t.total(r) for _, r in handed)))

    composite = composite_of(options.get("rules", "default"))
    maps = relevance_maps(t, program, METHODS["lrp"], composite, seeds, watch=watch)
    sums = {f"ledger/arrived/{i}": come for i, (_, come, _) in enumerate(seen)}
    sums |= {f"ledger/handed/{i}": gone for i, (_, _, gone) in enumerate(seen)}
    sums |= {f"ledger/absorbed/{i}": lost for i, (_, lost) in enumerate(t.absorbed)}
    sums["ledger/logit"] = t.total(t.Where(seeds.chosen, seeds.scores, 0.0))
    sums["ledger/input"] = t.total(maps["relevance"])
    found = _run(append(program.model.proto, t, sums), program, sample)
    logit = found["ledger/logit"]
    if logit == 0:
        raise ClrpError("the explained logit is 0, so is all relevance: check with an IMAGE")
    entries = []
    for i, (step, _, _) in enumerate(seen):
        lost = sum(
            found[f"ledger/absorbed/{j}"] for j, (s, _) in enumerate(t.absorbed) if s is step
        )
        row = (found[f"ledger/arrived/{i}"], found[f"ledger/handed/{i}"], lost)
        entries.append(Entry(str(step), step.op, *(v / logit for v in row)))
    return entries, logit, found["ledger/input"] / logit


def _run(model: onnx.ModelProto, program: Program, sample: NDArray[Any]) -> dict[str, float]:
    session, _ = open_session(model, "cpu")
    known = {y.name for y in program.model.graph.outputs}
    names = [y.name for y in session.get_outputs() if y.name not in known]
    values = run(session, names, {program.input.name: _batch(session, sample)})
    return {name: float(np.sum(v)) for name, v in zip(names, values, strict=True)}


def _batch(session: Any, sample: NDArray[Any]) -> NDArray[Any]:
    """The sample, as often as the model's fixed batch asks for."""
    size = session.get_inputs()[0].shape[0]
    return np.repeat(sample, size, axis=0) if isinstance(size, int) else sample


def _changes(
    proto: onnx.ModelProto,
    explainer: onnx.ModelProto,
    session: Any,
    sample: NDArray[Any],
    target: int,
) -> dict[str, float]:
    """How far each output of the model is from the explainer's, over its largest value."""
    original, _ = open_session(proto, "cpu")
    names = [y.name for y in original.get_outputs()]
    batch = _batch(original, sample)
    before = run(original, names, {original.get_inputs()[0].name: batch})
    after = run(session, names, _feeds(explainer, batch, target))
    return {name: _distant(a, b) for name, a, b in zip(names, after, before, strict=True)}


def _distance(explainer: onnx.ModelProto, session: Any, sample: NDArray[Any], target: int) -> float:
    """How far the relevance is from that of the same graph in float64."""
    name = json.loads(metadata(explainer)[PREFIX + "names"])["relevance"]
    feeds = _feeds(explainer, _batch(session, sample), target)
    out = run(session, [name], feeds)[0].astype(np.float64)
    reference = run_float64(explainer, feeds, [name])[name]
    scale = float(np.linalg.norm(reference))
    return float(np.linalg.norm(out - reference)) / (scale or 1.0)


def _feeds(explainer: onnx.ModelProto, sample: NDArray[Any], target: int) -> dict[str, Any]:
    names = json.loads(metadata(explainer)[PREFIX + "names"])
    feeds: dict[str, Any] = {names["input"]: sample}
    if "target" in names:
        feeds[names["target"]] = np.full((len(sample), 1), target)
    return feeds


def _distant(out: NDArray[Any], reference: NDArray[Any]) -> float:
    scale = float(np.abs(reference).max()) or 1.0
    return float(np.abs(out.astype(np.float64) - reference).max()) / scale
