"""Does an explainer keep its promises? Conservation per node, the model's own outputs, float64."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from onnx_clrp.comparison import Comparison
from onnx_clrp.compiler import Options
from onnx_clrp.ledger import Entry
from onnx_clrp.model import load

CLOSES = 1e-4
"""How far a node's ledger may be open, as a part of the explained logit."""

UNCHANGED = 1e-5
"""How far an output of the explainer may be from the model's, as a part of its largest value."""

AGREES = 1e-4
"""How far relevance may be from float64 on the same forward values."""

REPEATS = 1e-4
"""How far relevance may be from that of the same explainer with a ledger."""

HALF_STEPS = 5
"""By how many steps more both may differ in half precision: what nobody else reads is not rounded
to it by ONNX Runtime, so that each session rounds elsewhere."""

ONE_PASS = 1e-8
"""How far, in float64, a contrast of one pass may be from the difference of its parts."""

UNCERTAIN = 1e-2
"""From here on it is worth a remark how far relevance is from a run that is float64 throughout."""

_LEAST = 1e-5
"""A contrast that is less than this part of its concept is nothing but rounding."""


@dataclass(frozen=True)
class Report:
    """What `check` found. Distances of relevance are ‖out - ref‖ / ‖ref‖.

    Attributes:
        target: the explained class.
        logit: its score.
        method: the method.
        device: where it ran.
        random_input: whether the input was drawn, since none was given.
        ledger: of LRP, a row for each node in the order in which relevance meets them.
        arrived_at_input: ΣR at the input over the logit.
        absorbed: what all nodes absorbed, over the logit.
        reasons: the same by reason.
        outputs: for each output of the model how far the explainer's is from it.
        distance: how far relevance is from float64 on the same forward values.
        repeated: how far relevance is from that of the explainer with the ledger, whose forward
            values those are: both are one graph, that the runtime may optimise in its own way.
        whole_distance: how far it is from a run that is float64 from the input on.
        why_not: why one of them is None: of the `relevance` or of the `forward pass`.
        half_step: between two numbers of the half precision that the model calculates in; else 0.
        contrast: in float64, how far the contrast of one pass is from the difference of its
            parts; None for a method without a dual.
        notes: what was assumed about the model.
    """

    target: int
    logit: float
    method: str
    device: str
    random_input: bool
    ledger: list[Entry]
    arrived_at_input: float
    absorbed: float
    reasons: dict[str, float]
    outputs: dict[str, float]
    distance: float | None
    repeated: float
    whole_distance: float | None
    why_not: dict[str, str]
    half_step: float
    contrast: float | None
    notes: list[str]

    @property
    def open_nodes(self) -> list[Entry]:
        """The nodes whose ledger does not close, though what came to them was finite."""
        return [e for e in self.ledger if not abs(e.leaks) <= CLOSES and np.isfinite(e.arrived)]

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words; empty if the explainer keeps its promises."""
        found = [] if np.isfinite(self.logit) else [f"the explained logit is {self.logit}"]
        found += [_opening(entry) for entry in self.open_nodes]
        together = self.arrived_at_input + self.absorbed
        if not abs(together - (self.logit != 0)) <= CLOSES:
            found.append(
                f"relevance is not conserved: {together:.6f} of the logit is accounted for"
            )
        found += [
            f"the output {name} changed by {change:.1e}"
            for name, change in self.outputs.items()
            if not change <= UNCHANGED + HALF_STEPS * self.half_step
        ]
        if self.distance is not None and not self.distance <= AGREES:
            found.append(f"the relevance is {self.distance:.1e} from float64")
        if not self.repeated <= REPEATS + HALF_STEPS * self.half_step:
            found.append(f"the relevance changes by {self.repeated:.1e} as a ledger is added")
        if self.contrast is not None and not self.contrast <= ONE_PASS:
            found.append(f"the contrast is {self.contrast:.1e} from the difference of its parts")
        return found

    @property
    def remarks(self) -> list[str]:
        """What there is to know about this run that is no fault."""
        found = []
        if self.logit == 0:
            found.append(
                "the logit is 0, so is all its relevance: the ledger shows nothing; another class"
                " or input would"
            )
        if self.logit < 0:
            found.append("the logit is below zero: relevance is evidence against the class")
        if self.half_step:
            found.append(
                "in half precision ONNX Runtime does not round what nobody reads, so that outputs"
                f" are held to {UNCHANGED + HALF_STEPS * self.half_step:.0e}"
            )
        if self.whole_distance is not None and self.whole_distance > UNCERTAIN:
            found.append(
                f"the map depends on the last digits of the forward pass: in float64 it is"
                f" {self.whole_distance:.1e} away, as maxima and signs that are nearly ties fall"
                " the other way"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report for machines."""
        ledger = [{**asdict(e), "absorbed": e.absorbed, "leaks": e.leaks} for e in self.ledger]
        return {**asdict(self), "ledger": ledger, "remarks": self.remarks, "faults": self.faults}


def _opening(entry: Entry) -> str:
    if not np.isfinite(entry.leaks):
        return f"{entry.node} ({entry.operator}): what it hands on is not finite"
    return (
        f"{entry.node} ({entry.operator}): its ledger is open by {entry.leaks:.1e} of the logit:"
        f" {entry.arrived:.6f} arrived, {entry.handed:.6f} handed on, {entry.absorbed:.6f} absorbed"
    )


def check(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    batch: ArrayLike | None = None,
    *,
    feeds: Mapping[str, ArrayLike] | None = None,
    device: str = "auto",
    **options: Unpack[Options],
) -> Report:
    """Check the explainer of a model on one input.

    Args:
        model: the model, as for `convert`; not an explainer.
        batch: one sample `[1, ...]`; None for random values within the input's range.
        feeds: values of the model's other inputs, by name.
        device: as for `Explainer`.
        options: those of `convert`; `target` is one class, or None for the top one. The ledger
            is always that of LRP.

    Raises:
        ClrpError: whatever keeps the model from being explained.
    """
    run = Comparison(load(model), device, batch, feeds or {}, options)
    account = run.keep_books()
    unit = account.sums["logit"] or 1.0
    ledger = account.books.entries(account.sums, unit)
    maps, why_no_maps = run.from_cut(account)
    whole, why_not_whole = run.from_input()
    reasons = {"relevance": why_no_maps, "forward pass": why_not_whole}
    before = run.own_outputs()
    least = _LEAST * float(np.linalg.norm(maps.get("concept", 0.0)))
    return Report(
        target=run.target,
        logit=account.sums["logit"] / len(run.relevance),
        method=run.method.name,
        device=run.device,
        random_input=batch is None,
        ledger=ledger,
        arrived_at_input=account.sums["input"] / unit,
        absorbed=sum(entry.absorbed for entry in ledger),
        reasons=_by_reason(ledger),
        outputs={name: _change(out, before[name]) for name, out in run.outputs.items()},
        distance=_apart(account.relevance, maps["relevance"], least) if maps else None,
        repeated=_apart(run.relevance, account.relevance, least),
        whole_distance=None if whole is None else _apart(run.relevance, whole, least),
        half_step=run.half_step,
        why_not={k: why for k, why in reasons.items() if why},
        contrast=_one_pass(maps, least) if "dual" in maps else None,
        notes=run.program.notes,
    )


def _one_pass(maps: Mapping[str, NDArray[Any]], least: float) -> float:
    return _apart(maps["relevance"], maps["concept"] - maps["dual"], least)


def _by_reason(ledger: Sequence[Entry]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for entry in ledger:
        total.update(entry.reasons)
    return dict(total.most_common())


def _apart(out: NDArray[Any], reference: NDArray[Any], least: float) -> float:
    """‖out - ref‖ / ‖ref‖, whichever axis comes first of that of targets and that of samples."""
    exact = reference.astype(np.float64).reshape(-1)
    scale = max(float(np.linalg.norm(exact)), least)
    return float(np.linalg.norm(out.astype(np.float64).reshape(-1) - exact)) / (scale or 1.0)


def _change(out: Any, reference: Any) -> float:
    """The largest difference over the largest value; 1 where they are no numbers and differ."""
    if not isinstance(reference, np.ndarray) or reference.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(out, reference) else 1.0
    a, b = out.astype(np.float64), reference.astype(np.float64)
    if a.shape != b.shape or np.array_equal(a, b, equal_nan=True):
        return 0.0 if a.shape == b.shape else np.inf
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0)) or 1.0
    return float(np.abs(np.where(a == b, 0, a - b)).max()) / scale
