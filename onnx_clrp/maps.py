"""The maps of a method: walks from the scores down, and the contrast formed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from onnx_clrp.backprop import DECONVNET, GUIDED
from onnx_clrp.cam import class_activation
from onnx_clrp.classifier import split_at_classifier
from onnx_clrp.composites import DENSE, Composite
from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.methods import NORMALISED, PLAIN, PROBABILITIES, Dual, Method, opposite
from onnx_clrp.noise import noise
from onnx_clrp.redistribute import conserving, in_float64, zplus
from onnx_clrp.seeds import Seeds
from onnx_clrp.steps import Step
from onnx_clrp.walk import Relevance, Watch, refuse_gaps, walk

if TYPE_CHECKING:
    from onnx_clrp.program import Program
    from onnx_clrp.tape import Tape, Tensor

_THROUGH = frozenset(
    {"Add", "Sub", "Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
)
_NO_RELU = frozenset(
    {
        *("LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Swish", "HardSwish"),
        *("Gelu", "Mish", "Softplus", "Softsign", "Tanh", "Sigmoid", "HardSigmoid", "Erf"),
    }
)


def relevance_maps(
    t: Tape,
    program: Program,
    method: Method,
    composite: Composite,
    seeds: Seeds,
    *,
    parts: bool = False,
    watch: Watch | None = None,
    at: Sequence[Tensor] = (),
    cam_layer: Tensor | None = None,
) -> dict[str, Tensor]:
    """The maps at the input, `[k, *input.shape]`, by the name of the output they become.

    Those at hidden tensors are called `at/0`, `at/1`, … Where every rule is linear in the
    relevance, the contrast is formed at the input of the classifier layer, so that one pass does
    for both. The two are nearly alike, so that the layer itself is calculated in float64 where it
    is fully connected.

    Raises:
        UnsupportedError: nodes cannot hand relevance on, all of them named.
        UsageError: no relevance comes to one of the tensors `at`.
    """
    if method.noise:
        return {"relevance": noise(t, program, seeds)}
    ways = Ways(t, program, method, composite, seeds, at)
    if method.cam:
        return {"relevance": _of_layer(ways, cam_layer, watch)}
    concept = ways.concept(watch)
    refuse_gaps(t, ways.steps)
    program.notes.extend(_remarks(ways))
    found = concept if method.dual is None else ways.contrast(concept)
    maps = {"relevance": found[program.input.name]}
    for i, tensor in enumerate(at):
        if tensor.name not in found:
            raise UsageError(f"no relevance comes to {tensor.name!r}: it may be a gate")
        maps[f"at/{i}"] = found[tensor.name]
    if parts and method.dual is not None:
        maps["relevance_concept"] = r = concept[program.input.name]
        maps["relevance_dual"] = (
            t.Sub(r, maps["relevance"]) if ways.in_one_pass else ways.dual()[program.input.name]
        )
    return maps


def _of_layer(ways: Ways, layer: Tensor | None, watch: Watch | None) -> Tensor:
    """Grad-CAM, alone or times guided backpropagation."""
    alone = ways.method.name == "grad_cam"
    cam = class_activation(ways.t, ways.program, ways.seeds, layer, watch if alone else None)
    if alone:
        return cam.shared()
    guided = ways.concept(watch)
    refuse_gaps(ways.t, ways.steps)
    return ways.t.Mul(guided[ways.program.input.name], cam.map)


class Ways:
    """The ways down from the scores: of the concept, of its dual, and of their contrast.

    Args:
        t: the tape.
        program: the model.
        method: the method.
        composite: the rule set, for methods that have none of their own.
        seeds: what makes the seeds.
        at: the hidden tensors at which maps are wanted, beside the input.

    Attributes:
        composite: who gets what.
        steps: the steps that are walked.
        blind: does the rule of the classifier layer not see that weights are negated? Then z⁺ has
            taken its place.
    """

    def __init__(
        self,
        t: Tape,
        program: Program,
        method: Method,
        composite: Composite,
        seeds: Seeds,
        at: Sequence[Tensor] = (),
    ) -> None:
        self.t, self.program, self.method, self.seeds = t, program, method, seeds
        self.composite = method.composite or composite
        self._wanted = {x.name: x for x in (program.input, *at)}
        self.steps = program.plain_steps if self.composite.gradient else program.steps
        self.blind = False
        if method.dual is not None and method.dual.opposite:
            with suppress(ModelError):  # without a classifier layer: the contrast says so
                self.composite, self.blind = _seeing(t, self.composite, self._split[0])

    @cached_property
    def _split(self) -> tuple[list[Step], list[Step]]:
        return split_at_classifier(self.steps, self.program.logits)

    @property
    def in_one_pass(self) -> bool:
        """Is the contrast formed at the classifier layer, by subtracting alone?"""
        return self.method.difference == PLAIN and self._linear

    @property
    def _linear(self) -> bool:
        return self.composite.linear_in_relevance

    def concept(self, watch: Watch | None = None) -> Relevance:
        """R, or the gradient: one walk from the seed down."""
        kept: Relevance = {}
        seed = self.seeds.sown(self.method.sow)
        left = walk(self.t, self.steps, seed, self.composite, watch, kept)
        return self._finished({**kept, **left})

    def dual(self) -> Relevance:
        """R_dual, on a way of its own."""
        dual, (head, body) = self._dual, self._split
        kept: Relevance = {}
        composite = opposite(self.composite) if dual.opposite else self.composite
        behind = walk(self.t, head, self.seeds.sown(dual.sow), composite, kept=kept)
        left = walk(self.t, body, behind, self.composite, kept=kept)
        return self._finished({**kept, **left})

    def contrast(self, concept: Relevance) -> Relevance:
        """R - R_dual, or what the method has in its place."""
        t, difference = self.t, self.method.difference
        if difference == PROBABILITIES or self.in_one_pass:
            return self._one_pass(shares=difference == PROBABILITIES)
        if difference == PLAIN and self.method.of_relevance:
            raise UsageError("no contrast: a rule is not linear in the relevance")
        theirs = self.dual()
        pairs = {name: (r, theirs[name]) for name, r in concept.items() if name in theirs}
        if difference == NORMALISED:
            pairs = {x: (_normalised(t, a), _normalised(t, b)) for x, (a, b) in pairs.items()}
        return {name: t.number(t.Sub(*pair)) for name, pair in pairs.items()}

    def _one_pass(self, *, shares: bool) -> Relevance:
        """The contrast formed at the input of the classifier layer, and carried down."""
        dual, (head, body), t = self._dual, self._split, self.t
        pair = self.composite, opposite(self.composite) if dual.opposite else self.composite
        wide = _all_dense(t, head)
        if wide:
            pair = pair[0].over_maps(in_float64), pair[1].over_maps(in_float64)
        kept: tuple[Relevance, Relevance] = ({}, {})
        ends = [
            walk(t, head, self.seeds.sown(sow, wide=wide), composite, kept=found)
            for sow, composite, found in zip((self.method.sow, dual.sow), pair, kept, strict=True)
        ]
        if shares:
            ends = [_shares(t, end, wide) for end in ends]
        difference = _less(t, *ends)
        below: Relevance = {}
        left = walk(t, body, difference, self.composite.over_maps(conserving), kept=below)
        return self._finished({**_less(t, *kept), **below, **left})

    def _finished(self, found: Relevance) -> Relevance:
        """What is wanted of it, at the input and at hidden tensors, times the values there."""
        if self.program.input.name not in found:  # as by rounding, whose derivative is 0
            found = {**found, self.program.input.name: self.t.zeros(self.program.input)}
        wanted = {name: found[name] for name in self._wanted if name in found}
        if not self.method.times_input:
            return wanted
        t = self.t
        return {name: t.Mul(r, t.number(self._wanted[name])) for name, r in wanted.items()}

    @property
    def _dual(self) -> Dual:
        assert self.method.dual is not None  # nobody asks for the contrast of a method without one
        return self.method.dual


def _less(t: Tape, ours: Relevance, theirs: Relevance) -> Relevance:
    return {name: t.number(t.Sub(r, theirs[name])) for name, r in ours.items() if name in theirs}


def _shares(t: Tape, found: Relevance, wide: bool) -> Relevance:
    """Each over the sum of all, for every sample and target."""
    with t.double() if wide else nullcontext():
        total = t.sum(t.ReduceSum(_rows(t, r), [-1], keepdims=1) for r in found.values())
        return {
            name: t.Reshape(t.quotient(_rows(t, r), total), t.Shape(r)) for name, r in found.items()
        }


def _normalised(t: Tape, r: Tensor) -> Tensor:
    """A map over the sum of its magnitudes, for every sample and target: in float64.

    Two maps that are nearly alike are subtracted next, and a sum over a picture in float32 is off
    by more than they differ.
    """
    with t.double():
        rows = _rows(t, t.number(r))
        return t.Reshape(t.quotient(rows, t.ReduceL1(rows, [-1], keepdims=1)), t.Shape(r))


def _rows(t: Tape, r: Tensor) -> Tensor:
    """`[k, N, …]` with all that belongs to a sample in one axis."""
    return t.Reshape(r, t.Concat(t.Shape(r, end=2), [-1], axis=0))


def _seeing(t: Tape, composite: Composite, head: Sequence[Step]) -> tuple[Composite, bool]:
    """The composite with z⁺ where its rule for the classifier layer is blind to the dual."""
    maps = [step for step in head if step.linear]
    blind = [s.outputs[0].name for s in maps if composite.rule(s, first=_is_first(t, s)).blind]
    named = (*composite.named, *((name, zplus) for name in blind))
    return (replace(composite, named=named), True) if blind else (composite, False)


def _is_first(t: Tape, step: Step) -> bool:
    return not any(t.facts.behind_linear(x) for x in step.receivers if t.carries(x))


def _remarks(ways: Ways) -> list[str]:
    """What a user should know of a map that differs from what its name promises."""
    notes = []
    if ways.blind:
        notes.append(
            "the classifier layer takes z⁺ for the contrast: to its own rule negated weights are"
            " the same"
        )
    if ways.method.composite in (DECONVNET, GUIDED):
        if not ways.t.rectified:
            notes.append(f"no ReLU is passed: {ways.method.name} is the plain gradient")
        others = sorted({step.op for step in ways.steps if step.op in _NO_RELU})
        if others:
            notes.append(f"only ReLUs are treated apart; {', '.join(others)} keep their derivative")
    return notes


def _all_dense(t: Tape, head: Sequence[Step]) -> bool:
    """Is the classifier layer fully connected, with nothing behind it that mixes in values?"""
    return all(
        step.op in DENSE or (step.op in _THROUGH and sum(map(t.carries, step.inputs)) == 1)
        for step in head
    )
