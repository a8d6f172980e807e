"""The redistributions: who gets what of the relevance that arrives at a linear map, each once.

A map knows how to run itself forward and transposed; a redistribution knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_clrp.tape import Operand, Tape, Tensor


SUM_OF_ZERO = "a sum that is 0 has no shares"
"""Why a sum or a mean absorbs relevance."""


@dataclass(frozen=True)
class LinearMap:
    """`y = W x`, without its bias.

    Attributes:
        x: the input.
        y: the output.
        weight: `W` in the operator's own layout.
        forward: `(x, w) -> w x`, in the shape of `y`.
        transpose: `(s, w) -> wᵀ s`; takes `[k, *y.shape]` and returns `[k, *x.shape]`.
        dense: is every output made from every input, a long sum, as in a fully connected layer?
        exact: must what is handed on add up to what arrived, to the last digits?
        outputs: the axis of `weight` along which the channels of the output lie, if there is one:
            for scales behind the map, whose signs belong to its weights.
        signed: does `weight` hold those signs already?
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    forward: Callable[[Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, Tensor], Tensor]
    dense: bool = False
    exact: bool = False
    outputs: int | None = None
    signed: bool = False


Redistribution = Callable[["Tape", LinearMap, "Tensor"], "Tensor"]
"""`(t, f, r) -> relevance of f.x`."""


def zplus(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = x ⊙ Wᵀ(R / Wx), over the parts of x and W that agree in sign (z⁺, spec. section 1).

    For `x >= 0` this is the z⁺ rule of Montavon et al. 2017, eq. 15: x ⊙ W⁺ᵀ(R / W⁺x).
    """
    return _in_proportion(t, f, t.agreeing_parts(f.x, f.weight), r)


def zbeta(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = (x-l) ⊙ W⁺ᵀs + (x-h) ⊙ W⁻ᵀs, s = R / (W⁺(x-l) + W⁻(x-h)), for bounds l <= x <= h.

    The paper's z^β (eq. 3, with l and h for the bounds), in a form that does not cancel at
    saturated pixels. Where a bound is infinite there is no such rule, and z⁺ takes its place.
    """
    bounds = t.interval(f.x)
    if not bounds.finite:
        return zplus(t, f, r)
    # A pixel that rounding put just outside its bounds counts as lying on them.
    above = t.Relu(t.Sub(f.x, bounds.lo))
    below = t.Neg(t.Relu(t.Sub(bounds.hi, f.x)))
    parts = [(above, t.Relu(f.weight)), (below, t.negative(f.weight))]
    return _in_proportion(t, f, parts, r)


def _in_proportion(
    t: Tape, f: LinearMap, parts: Sequence[tuple[Tensor, Tensor]], r: Tensor
) -> Tensor:
    """Each input's share of Z, the sum of all products of agreeing parts: x ⊙ Wᵀ(R / Z)."""
    z = t.sum(f.forward(x, w) for x, w in parts)
    s = t.safe_div(r, z)
    handed = t.sum(t.Mul(x, f.transpose(s, w)) for x, w in parts)
    if not f.exact:
        return handed
    axes = [*range(2, t.rank(f.x) + 1)]
    return _balanced(t, handed, t.kept(r, z), axes)


def _balanced(t: Tape, handed: Tensor, arrived: Tensor, axes: list[int]) -> Tensor:
    """What is handed on, corrected in proportion so that it adds up to what arrived.

    A contrast adds up to nothing. What rounding makes of that nothing is never averaged away on
    the way down, while the contrast itself is.
    """
    with t.double():
        sums = (t.ReduceSum(t.number(r), axes) for r in (arrived, handed))
        missing = t.Sub(*sums)
    size = t.Abs(handed)
    share = t.quotient(t.number(missing), t.ReduceSum(size, axes))
    return t.Add(handed, t.Mul(size, share))


def conserving(redistribution: Redistribution) -> Redistribution:
    """The same, with the rounding of long sums made good: for a contrast on its way down."""

    def exact(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        return redistribution(t, replace(f, exact=f.dense), r)

    return exact


def in_float64(redistribution: Redistribution) -> Redistribution:
    """The same in float64 through a dense map, for what is subtracted from something alike."""

    def wide(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        if not f.dense:
            return redistribution(t, f, r)
        with t.double():
            x, weight, relevance = (t.number(a) for a in (f.x, f.weight, r))
            return redistribution(t, replace(f, x=x, weight=weight), relevance)

    return wide


def negated(redistribution: Redistribution) -> Redistribution:
    """The same with the weights negated: the dual of CLRP2 (paper, section 4)."""

    def dual(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        return redistribution(t, replace(f, weight=t.Neg(f.weight)), r)

    return dual


def by_contribution(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """z⁺ over unit weights: each gets its share among those that have the sign of the sum.

    Where y > 0, R = x⁺ ⊙ Wᵀ(R / Wx⁺); where y < 0, the same with x⁻; where y = 0, nothing.
    """
    if t.nonnegative(f.x):
        s = t.safe_div(r, f.forward(f.x, f.weight), SUM_OF_ZERO)
        return t.Mul(f.x, f.transpose(s, f.weight))

    y = t.result(f.y, lambda: f.forward(f.x, f.weight))
    t.absorb(t.Mul(r, t.number(t.Equal(y, 0.0))), SUM_OF_ZERO)

    def share(x: Tensor, chosen: Tensor) -> Tensor:
        s = t.safe_div(t.Mul(r, t.number(chosen)), f.forward(x, f.weight), SUM_OF_ZERO)
        return t.Mul(x, f.transpose(s, f.weight))

    return t.Add(share(t.Relu(f.x), t.Greater(y, 0.0)), share(t.Relu(t.Neg(f.x)), t.Less(y, 0.0)))


def evenly(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = 1 ⊙ Wᵀ(R / W1): all elements that went into the mean get the same (the paper's text)."""
    ones = t.Expand(1.0, t.Shape(f.x))
    s = t.safe_div(r, f.forward(ones, f.weight))
    return t.Mul(ones, f.transpose(s, f.weight))


def winners(t: Tape, candidates: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    """For each candidate, 1 where it is the first that equals the maximum `y`, else 0."""
    first, *others = candidates
    won = [t.number(t.Equal(first, y))]
    left: Operand = 1.0
    for candidate in others:
        left = t.Sub(left, won[-1])
        won.append(t.Mul(left, t.number(t.Equal(candidate, y))))
    return won


@dataclass(frozen=True)
class Composite:
    """Which redistribution where.

    Attributes:
        first: for linear maps that no other precedes.
        linear: for all other linear maps.
        mean: for average pooling, over unit weights.
    """

    first: Redistribution = zbeta
    linear: Redistribution = zplus
    mean: Redistribution = by_contribution

    def over_maps(self, wrapper: Callable[[Redistribution], Redistribution]) -> Composite:
        """The same with the redistribution of every linear map wrapped."""
        return replace(self, first=wrapper(self.first), linear=wrapper(self.linear))


RULE_SETS = {"default": Composite(), "paper": Composite(mean=evenly)}
"""The paper's text, and the one row in which the default differs from it (spec. section 1)."""
