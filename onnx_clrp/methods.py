"""The methods: which seed starts at the logits, and what the contrast is taken with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.normalise import Step
from onnx_clrp.redistribute import (
    Composite,
    Redistribution,
    conserving,
    evenly,
    in_float64,
    negated,
)
from onnx_clrp.walk import Relevance, Watch, walk

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

    def sown(self, sow: Sow) -> Relevance:
        """The seed of a method, or of its dual: `[k, *logits.shape]`."""
        seed = sow(self.t, self.chosen, self.scores, self.classes)
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
    """
    head, body = split_at_classifier(program.steps, program.logits)

    def carried(relevance: Relevance, composite: Composite) -> Tensor:
        return walk(t, body, relevance, composite, watch)[program.input.name]

    if method.dual is None:
        concept = walk(t, head, seeds.sown(method.sow), composite, watch)
        return {"relevance": carried(concept, composite)}
    wide = in_float64 if _all_dense(t, head) else _unchanged
    concept = walk(t, head, seeds.sown(method.sow), composite.over_maps(wide), watch)
    dual_composite = method.dual.composite(composite).over_maps(wide)
    dual = walk(t, head, seeds.sown(method.dual.sow), dual_composite)
    difference = {name: t.number(t.Sub(r, dual[name])) for name, r in concept.items()}
    contrast = carried(difference, composite.over_maps(conserving))
    if not parts:
        return {"relevance": contrast}
    whole = carried({name: t.number(r) for name, r in concept.items()}, composite)
    return {
        "relevance": contrast,
        "relevance_concept": whole,
        "relevance_dual": t.Sub(whole, contrast),
    }


def _all_dense(t: Tape, head: Sequence[Step]) -> bool:
    """Does nothing but dense maps lead out of the classifier layer, so that it may be float64?"""
    made = {y.name for step in head for y in step.outputs}
    return all(
        step.op in ("Gemm", "MatMul")
        for step in head
        for x in step.inputs
        if x is not None and t.carries(x) and x.name not in made
    )


def _unchanged(redistribution: Redistribution) -> Redistribution:
    return redistribution


def split_at_classifier(steps: Sequence[Step], logits: Tensor) -> tuple[list[Step], list[Step]]:
    """The classifier layer with all that lies behind it, and the steps before it.

    The classifier layer is every linear map from which the logits are reached without another
    one. A step whose output also goes another way stands before the split, so that nothing that
    arrives there is lost.
    """
    readers: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for x in step.inputs:
            readers.setdefault(x.name if x is not None else "", []).append(i)
    head: set[int] = set()
    for i in reversed(range(len(steps))):
        after = [j for y in steps[i].outputs for j in readers.get(y.name, [])]
        final = any(y.name == logits.name for y in steps[i].outputs)
        if (after or final) and all(j in head and not steps[j].linear for j in after):
            head.add(i)
    return (
        [step for i, step in enumerate(steps) if i in head],
        [step for i, step in enumerate(steps) if i not in head],
    )
