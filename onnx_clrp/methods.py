"""The methods: which seed starts at the logits, and what the contrast is taken with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.errors import ModelError
from onnx_clrp.redistribute import (
    Composite,
    conserving,
    evenly,
    in_float64,
    negated,
)
from onnx_clrp.steps import Step
from onnx_clrp.walk import Relevance, Watch, refuse_gaps, walk

if TYPE_CHECKING:
    from onnx_clrp.program import Program
    from onnx_clrp.tape import Tape, Tensor

Sow = Callable[["Tape", "Tensor", "Tensor", int], "Tensor"]
"""`(t, chosen, logits, classes) -> seed`, all `[k, N, C]` or `[N, C]`."""


@dataclass(frozen=True)
class Dual:
    """What a method compares the concept with.

    Attributes:
        sow: the dual seed.
        composite: how the dual is handed through the classifier layer and what lies behind it.
    """

    sow: Sow
    composite: Callable[[Composite], Composite]


@dataclass(frozen=True)
class Method:
    """A seed and, for the contrastive methods, a dual."""

    name: str
    sow: Sow
    dual: Dual | None = None
    fewest_classes: int = 1


_DENSE = frozenset({"Gemm", "MatMul"})
_THROUGH = frozenset(
    {"Add", "Sub", "Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
)


def target_logit(t: Tape, chosen: Tensor, logits: Tensor, classes: int) -> Tensor:
    """y_t at the explained class, zero elsewhere (paper, section 3)."""
    return t.Where(chosen, logits, 0.0)


def complement(t: Tape, chosen: Tensor, logits: Tensor, classes: int) -> Tensor:
    """y_t / (C-1) at every class but the explained one: the dual seed of CLRP1 (section 4)."""
    y_t = t.ReduceSum(target_logit(t, chosen, logits, classes), [-1], keepdims=1)
    return t.Where(chosen, 0.0, t.Div(y_t, float(classes - 1)))


def _same(composite: Composite) -> Composite:
    return composite


def opposite(composite: Composite) -> Composite:
    """Weights negated; means evenly, since the activations belong to the concept (section 4)."""
    return replace(
        composite,
        first=negated(composite.first),
        linear=negated(composite.linear),
        mean=evenly,
    )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("lrp", target_logit),
        Method("clrp1", target_logit, Dual(complement, _same), fewest_classes=2),
        Method("clrp2", target_logit, Dual(target_logit, opposite)),
    )
}


def scores_of(t: Tape, program: Program) -> Tensor:
    """The class scores as `[N, C]`, whatever axes of size 1 the logits have behind."""
    if len(program.facts.shape(program.logits) or ()) == 2:
        return program.logits
    return t.Reshape(program.logits, [-1, program.classes])


def one_hot(t: Tape, target: Tensor, classes: int) -> Tensor:
    """Whether a class is the explained one: `[k, N, C]` from the targets `[N, k]`."""
    by_target = t.Unsqueeze(t.Transpose(target, perm=[1, 0]), [2])
    return t.Equal(by_target, np.arange(classes))


@dataclass(frozen=True)
class Seeds:
    """Makes the relevance that starts at the logits.

    Attributes:
        logits: the tensor of class scores in the graph.
        scores: the same as `[N, C]`.
        chosen: whether a class is the explained one, `[k, N, C]`.
    """

    t: Tape
    logits: Tensor
    scores: Tensor
    chosen: Tensor
    classes: int

    @classmethod
    def of(cls, t: Tape, program: Program, targets: Tensor) -> Seeds:
        """The seeds of a program for the targets `[N, k]`."""
        chosen = one_hot(t, targets, program.classes)
        return cls(t, program.logits, scores_of(t, program), chosen, program.classes)

    def sown(self, sow: Sow, *, wide: bool = False) -> Relevance:
        """The seed of a method, or of its dual: `[k, *logits.shape]`, in float64 if it is wide."""
        with self.t.double() if wide else nullcontext():
            scores = self.t.number(self.scores) if wide else self.scores
            seed = sow(self.t, self.chosen, scores, self.classes)
        if self.scores is not self.logits:
            seed = self.t.like(seed, self.logits)
        return {self.logits.name: seed}


def relevance_maps(
    t: Tape,
    program: Program,
    method: Method,
    composite: Composite,
    seeds: Seeds,
    *,
    parts: bool = False,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """The maps at the input, `[k, *input.shape]`, by the name of the output they become.

    The contrast is formed at the input of the classifier layer: below it every rule is linear in
    the relevance, so that one pass does for both. The two are nearly alike, so that the layer
    itself is calculated in float64 where it is fully connected.

    Raises:
        UnsupportedError: nodes cannot hand relevance on, all of them named.
    """
    whole = walk(t, program.steps, seeds.sown(method.sow), composite, watch)
    refuse_gaps(t, program.steps)
    concept = whole[program.input.name]
    if method.dual is None:
        return {"relevance": concept}
    difference, body = _contrast(t, program, method.sow, method.dual, composite, seeds)
    contrast = walk(t, body, difference, composite.over_maps(conserving))[program.input.name]
    if not parts:
        return {"relevance": contrast}
    return {
        "relevance": contrast,
        "relevance_concept": concept,
        "relevance_dual": t.Sub(concept, contrast),
    }


def _contrast(
    t: Tape, program: Program, sow: Sow, dual: Dual, composite: Composite, seeds: Seeds
) -> tuple[Relevance, list[Step]]:
    """R - R_dual at the input of the classifier layer, and the steps below it."""
    head, body = split_at_classifier(program.steps, program.logits)
    wide = _all_dense(t, head)
    pair = composite, dual.composite(composite)
    if wide:
        pair = pair[0].over_maps(in_float64), pair[1].over_maps(in_float64)
    ours = walk(t, head, seeds.sown(sow, wide=wide), pair[0])
    theirs = walk(t, head, seeds.sown(dual.sow, wide=wide), pair[1])
    return {name: t.number(t.Sub(r, theirs[name])) for name, r in ours.items()}, body


def _all_dense(t: Tape, head: Sequence[Step]) -> bool:
    """Is the classifier layer fully connected, with nothing behind it that mixes in values?"""
    return all(
        step.op in _DENSE or (step.op in _THROUGH and sum(map(t.carries, step.inputs)) == 1)
        for step in head
    )


def split_at_classifier(steps: Sequence[Step], logits: Tensor) -> tuple[list[Step], list[Step]]:
    """The classifier layer with all that lies behind it, and the steps before it.

    The classifier layer is every linear map from which the logits are reached without another
    one. A step whose output also goes another way stands before the split, so that nothing that
    arrives there is lost.

    Raises:
        ModelError: there is no such layer, or one of its maps also feeds another linear map, so
            that no contrast can be formed in one place.
    """
    readers: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for x in step.receivers:
            readers.setdefault(x.name, []).append(i)
    head: set[int] = set()
    reaching = {logits.name}
    nested: list[Step] = []
    for i in reversed(range(len(steps))):
        after = [j for y in steps[i].outputs for j in readers.get(y.name, [])]
        final = any(y.name == logits.name for y in steps[i].outputs)
        if (after or final) and all(j in head and not steps[j].linear for j in after):
            head.add(i)
        if not any(y.name in reaching for y in steps[i].outputs):
            continue
        if steps[i].linear and i not in head:
            nested.append(steps[i])
        if not steps[i].linear:
            reaching.update(x.name for x in steps[i].receivers)
    if nested:
        raise ModelError(f"no contrast: {nested[0]} is a classifier layer and feeds another one")
    if not any(steps[i].linear for i in head):
        raise ModelError("no contrast: there is no linear map that could be the classifier layer")
    return (
        [step for i, step in enumerate(steps) if i in head],
        [step for i, step in enumerate(steps) if i not in head],
    )
