"""Seeds: what starts at the explained scores, for a concept and for its dual."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.walk import Relevance

if TYPE_CHECKING:
    from onnx_clrp.program import Program
    from onnx_clrp.tape import Tape, Tensor

Sow = Callable[["Tape", "Tensor", "Tensor", int], "Tensor"]
"""`(t, chosen, scores, classes) -> seed`, all `[k, N, C]` or `[N, C]`; of a layer's channels
`[k, N, C, …]`."""


def target_score(t: Tape, chosen: Tensor, scores: Tensor, classes: int) -> Tensor:
    """y_t at the explained class, zero elsewhere (paper, section 3)."""
    return t.Where(chosen, scores, 0.0)


def one(t: Tape, chosen: Tensor, scores: Tensor, classes: int) -> Tensor:
    """1 at the explained class, zero elsewhere: ∂y_t, or the probability that it wins."""
    return t.Where(chosen, t.Expand(1.0, t.Shape(scores)), 0.0)


def complement(sow: Sow) -> Sow:
    """What a concept starts with, in equal parts at every class but the explained one.

    For y_t it is y_t / (C-1): the dual seed of CLRP1 (paper, section 4).
    """

    def sown(t: Tape, chosen: Tensor, scores: Tensor, classes: int) -> Tensor:
        total = t.ReduceSum(sow(t, chosen, scores, classes), [-1], keepdims=1)
        return t.Where(chosen, 0.0, t.Div(total, float(classes - 1)))

    return sown


def others(t: Tape, chosen: Tensor, scores: Tensor, classes: int) -> Tensor:
    """|y_j| at every class j but the explained one: the dual seed in the authors' code."""
    return t.Where(chosen, 0.0, t.Abs(scores))


def softmax_gradient(t: Tape, chosen: Tensor, scores: Tensor, classes: int) -> Tensor:
    """p_t (1 - p_t) at the explained class: ∂p_t/∂y_t (Iwana et al. 2019, eq. 9)."""
    p = t.Softmax(scores, axis=-1)
    rest = t.ReduceSum(t.Where(chosen, 0.0, p), [-1], keepdims=1)  # exact where 1 - p_t is not
    return t.Where(chosen, t.Mul(p, rest), 0.0)


def softmax_gradient_of_others(t: Tape, chosen: Tensor, scores: Tensor, classes: int) -> Tensor:
    """p_t p_j at every class j but the explained one: -∂p_t/∂y_j."""
    p = t.Softmax(scores, axis=-1)
    ours = t.ReduceSum(t.Where(chosen, p, 0.0), [-1], keepdims=1)
    return t.Where(chosen, 0.0, t.Mul(p, ours))


_PICKING = frozenset({target_score, one, softmax_gradient})
"""Seeds that are 0 at all classes but the explained one."""


def scores_of(t: Tape, program: Program) -> Tensor:
    """The scores `[N, C]`: of classes, whatever axes of size 1 they have behind, or of neurons.

    The score of a channel is what it says at all of its positions together.
    """
    rank = len(program.facts.shape(program.logits) or ())
    if rank == 2:
        return program.logits
    if program.neurons == "channels":
        return t.ReduceSum(program.logits, [*range(2, rank)], keepdims=0)
    return t.Reshape(program.logits, [-1, program.classes])


def one_hot(t: Tape, target: Tensor, classes: int) -> Tensor:
    """Whether a class is the explained one: `[k, N, C]` from the targets `[N, k]`."""
    by_target = t.Unsqueeze(t.Transpose(target, perm=[1, 0]), [2])
    return t.Equal(by_target, np.arange(classes))


@dataclass(frozen=True)
class Seeds:
    """Makes what starts at the explained scores.

    Attributes:
        logits: the tensor of class scores in the graph, or that of a layer.
        scores: its scores as `[N, C]`.
        values: the tensor that a seed is sown on: the scores, or the channels of a layer.
        chosen: whether a class is the explained one, `[k, N, C]`, or so that it broadcasts to
            the channels.
        explained: the same as `[k, N, C]`.
        targets: the explained classes, `[N, k]`.
    """

    t: Tape
    logits: Tensor
    scores: Tensor
    values: Tensor
    chosen: Tensor
    explained: Tensor
    targets: Tensor
    classes: int

    @classmethod
    def of(cls, t: Tape, program: Program, targets: Tensor) -> Seeds:
        """The seeds of a program for the targets `[N, k]`."""
        logits, explained = program.logits, one_hot(t, targets, program.classes)
        chosen = explained
        scores = values = scores_of(t, program)
        rank = len(program.facts.shape(logits) or ())
        if program.neurons == "channels" and rank > 2:
            values, chosen = logits, t.Unsqueeze(chosen, [*range(3, rank + 1)])
        return cls(t, logits, scores, values, chosen, explained, targets, program.classes)

    def sown(self, sow: Sow, *, wide: bool = False) -> Relevance:
        """The seed of a method, or of its dual: `[k, *logits.shape]`, in float64 if it is wide."""
        with self.t.double() if wide else nullcontext():
            values = self.t.number(self.values) if wide else self.values
            seed = sow(self.t, self.chosen, values, self.classes)
        if self.values is not self.logits:
            seed = self.t.like(seed, self.logits)
        elif sow in _PICKING:
            # A class that does not exist is answered by NaN in the end; an index has to exist.
            by_target = self.t.Transpose(self.targets, perm=[1, 0])
            self.t.picks[seed.name] = self.t.Clip(by_target, 0, self.classes - 1)
        return {self.logits.name: seed}
