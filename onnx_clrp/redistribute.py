"""The redistributions: who gets what of the relevance that arrives at a linear map, each once.

A map knows how to run itself forward and transposed; a redistribution knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_clrp.tape import Operand, Tape, Tensor

TINY = 1e-30
"""A denominator below it counts as 0: R/Z would overflow, and what it hands on is nothing."""

SUM_OF_ZERO = "a sum that is 0 has no shares"
"""Why a sum or a mean absorbs relevance."""


@dataclass(frozen=True)
class LinearMap:
    """`y = W x + b`.

    Attributes:
        x: the input.
        y: the output.
        weight: `W` in the operator's own layout.
        forward: `(x, w) -> w x`, in the shape of `y`.
        transpose: `(s, w) -> wᵀ s`; takes `[k, *y.shape]` and returns `[k, *x.shape]`.
        dense: is every output made from every input, a long sum, as in a fully connected layer?
        exact: must what is handed on add up to what arrived, to the last digits?
        outputs: the axis of `weight` along which the channels of the output lie, if there is one:
            for scales behind the map, which belong to its weights.
        groups: of channels, where that axis has those of one group alone, and the first axis the
            inputs of all groups.
        bias: `b`, so that it broadcasts to `y`; None without one.
        count: for a mean, what the sum over its elements is divided by.
        output: the tensor that holds `W x + b`, where there is one.
        folded: does `b` hold what is affine right behind the map already?
        plus: `(x, w, number) -> w x + number`, where the number costs nothing.
        inputs: the axes of `x` and `weight` along which the inputs lie, where one map of twice as
            many is faster than two: where there are more outputs than inputs.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    forward: Callable[[Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, Tensor], Tensor]
    dense: bool = False
    exact: bool = False
    outputs: int | None = None
    groups: int = 1
    bias: Tensor | None = None
    count: Callable[[], Operand] | None = None
    output: Tensor | None = None
    folded: bool = False
    plus: Callable[[Tensor, Tensor, float], Tensor] | None = None
    inputs: tuple[int, int] | None = None


Hand = Callable[["Tape", LinearMap, "Tensor"], "Tensor"]
"""`(t, f, r) -> relevance of f.x`."""


@dataclass(frozen=True)
class Redistribution:
    """Who gets what of the relevance that arrives at a linear map: `rule(t, f, r)`.

    Attributes:
        name: what `inspect` calls it.
        hand: the function.
        whole: does the map count with its bias, and with a BatchNorm right behind it?
        blind: is it the same when all weights are negated, so that CLRP2 has no dual?
        linear: is it linear in the relevance, as a contrast of one pass takes for granted?
    """

    name: str
    hand: Hand
    whole: bool = False
    blind: bool = False
    linear: bool = True

    def __call__(self, t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        """The relevance of the map's input."""
        return self.hand(t, f, r)


Wrapper = Callable[[Redistribution], Redistribution]
"""Makes another redistribution of one."""


# -- over what has the sign of the whole --------------------------------------------------------


def _zplus(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = x ⊙ Wᵀ(R / Wx), over the parts of x and W that agree in sign (z⁺, spec. section 1).

    For `x >= 0` this is the z⁺ rule of Montavon et al. 2017, eq. 15: x ⊙ W⁺ᵀ(R / W⁺x).
    """
    return _in_proportion(t, f, t.agreeing_parts(f.x, f.weight), r)


def _zbeta(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = (x-l) ⊙ W⁺ᵀs + (x-h) ⊙ W⁻ᵀs, s = R / (W⁺(x-l) + W⁻(x-h)), for bounds l <= x <= h.

    The paper's z^β (eq. 3, with l and h for the bounds), in a form that does not cancel at
    saturated pixels. Where a bound is infinite there is no such rule, and z⁺ takes its place.
    """
    bounds = t.interval(f.x)
    if not bounds.finite:
        return _zplus(t, f, r)
    # A pixel that rounding put just outside its bounds counts as lying on them.
    above = t.Relu(t.Sub(f.x, bounds.lo))
    below = t.Neg(t.Relu(t.Sub(bounds.hi, f.x)))
    parts = [(above, t.Relu(f.weight)), (below, t.negative(f.weight))]
    return _in_proportion(t, f, parts, r)


def _excitation(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """P = x⁺ ⊙ W⁺ᵀ(P / W⁺x⁺): marginal winning probability (Zhang et al. 2016, eq. 4)."""
    return _in_proportion(t, f, [(t.positive(f.x), t.Relu(f.weight))], r)


def _in_proportion(
    t: Tape, f: LinearMap, parts: Sequence[tuple[Tensor, Tensor]], r: Tensor
) -> Tensor:
    """Each input's share of Z, the sum of all products of agreeing parts: x ⊙ Wᵀ(R / Z)."""
    z, lowered = _denominator(t, f, parts)
    s = t.safe_div(r, z, lowered=lowered)
    handed = t.sum(t.product(x, f.transpose(s, w)) for x, w in parts)
    if f.exact:
        handed = _balanced(t, handed, t.kept(r, z), [*range(2, t.rank(f.x) + 1)])
    return t.vanishing(handed, f.x) if parts[0][0] is f.x else handed


def _denominator(
    t: Tape, f: LinearMap, parts: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor | None]:
    """Z, and a little less than Z where that costs nothing, as `Tape.safe_div` takes them."""
    if f.inputs is not None and len(parts) > 1:
        xs, ws = zip(*parts, strict=True)
        x_axis, w_axis = f.inputs
        parts = [(t.Concat(*xs, axis=x_axis), t.Concat(*ws, axis=w_axis))]
    *others, (x, w) = parts
    before = [f.forward(a, b) for a, b in others]
    lowered = None if f.plus is None else t.sum([*before, f.plus(x, w, -TINY)])
    return t.sum([*before, f.forward(x, w)]), lowered


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


zplus = Redistribution("z⁺", _zplus)
zbeta = Redistribution("z^β", _zbeta)
excitation = Redistribution("excitation", _excitation)


# -- wrappers -------------------------------------------------------------------------------------


def conserving(rule: Redistribution) -> Redistribution:
    """The same, with the rounding of long sums made good: for a contrast on its way down."""

    def exact(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        return rule(t, replace(f, exact=f.dense), r)

    return replace(rule, hand=exact)


def in_float64(rule: Redistribution) -> Redistribution:
    """The same in float64 through a dense map, for what is subtracted from something alike."""

    def wide(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        if not f.dense:
            return rule(t, f, r)
        with t.double():
            x, weight, relevance = (t.number(a) for a in (f.x, f.weight, r))
            bias = None if f.bias is None else t.number(f.bias)
            widened = replace(f, x=x, weight=weight, bias=bias, output=None)
            return rule(t, widened, relevance)

    return replace(rule, hand=wide)


def negated(rule: Redistribution) -> Redistribution:
    """The same with the weights negated: the dual of CLRP2 (paper, section 4)."""

    def dual(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        bias = None if f.bias is None else t.Neg(f.bias)
        return rule(t, replace(f, weight=t.Neg(f.weight), bias=bias, output=None), r)

    return replace(rule, hand=dual)


# -- means ----------------------------------------------------------------------------------------


def _by_contribution(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """z⁺ over unit weights: each gets its share among those that have the sign of the sum.

    Where y > 0, R = x⁺ ⊙ Wᵀ(R / Wx⁺); where y < 0, the same with x⁻; where y = 0, nothing.
    """
    if t.nonnegative(f.x):
        s = t.safe_div(r, f.forward(f.x, f.weight), SUM_OF_ZERO)
        return t.vanishing(t.Mul(f.x, f.transpose(s, f.weight)), f.x)

    y = t.result(f.y, lambda: f.forward(f.x, f.weight))
    t.absorb(t.Mul(r, t.number(t.Equal(y, 0.0))), SUM_OF_ZERO)

    def share(x: Tensor, chosen: Tensor) -> Tensor:
        s = t.safe_div(t.Mul(r, t.number(chosen)), f.forward(x, f.weight), SUM_OF_ZERO)
        return t.Mul(x, f.transpose(s, f.weight))

    return t.Add(share(t.Relu(f.x), t.Greater(y, 0.0)), share(t.Relu(t.Neg(f.x)), t.Less(y, 0.0)))


def _evenly(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = 1 ⊙ Wᵀ(R / W1): all elements that went into the mean get the same (the paper's text)."""
    ones = t.Expand(1.0, t.Shape(f.x))
    s = t.safe_div(r, f.forward(ones, f.weight))
    return t.Mul(ones, f.transpose(s, f.weight))


def _of_excitations(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """Excitation backprop over unit weights: x⁺ ⊙ Wᵀ(P / Wx⁺)."""
    x = t.positive(f.x)
    s = t.safe_div(r, f.forward(x, f.weight), SUM_OF_ZERO)
    return t.Mul(x, f.transpose(s, f.weight))


by_contribution = Redistribution("by contribution", _by_contribution)
evenly = Redistribution("evenly", _evenly)
of_excitations = Redistribution("excitation", _of_excitations)


# -- sums and choices -----------------------------------------------------------------------------

Sharing = Callable[["Tape", "Sequence[Tensor]", "Tensor", "Tensor"], "list[Tensor]"]
"""`(t, terms, total, r) -> relevance of each term`, in the shape of the total."""


def by_sign(t: Tape, terms: Sequence[Tensor], total: Tensor, r: Tensor) -> list[Tensor]:
    """R_a = R c_a / Σc, c_a = max(a sgn(y), 0): z⁺ over unit weights."""
    if t.vanishes(r, total):  # what is handed on is, as far as there is any, that of a positive sum
        shares = [t.positive(a) for a in terms]
        s = t.Div(r, t.Max(t.sum(shares), TINY))
        return [t.vanishing(t.product(c, s), a) for c, a in zip(shares, terms, strict=True)]
    positive = all(t.nonnegative(a) for a in terms)  # then so is the sum, and each is its share
    shares = [a if positive else t.Relu(t.Mul(a, t.Sign(total))) for a in terms]
    s = t.safe_div(r, t.sum(shares), SUM_OF_ZERO)
    return [t.product(c, s) for c in shares]


def by_excitation(t: Tape, terms: Sequence[Tensor], total: Tensor, r: Tensor) -> list[Tensor]:
    """P_a = P a⁺ / Σa⁺: excitation backprop over unit weights."""
    shares = [t.positive(a) for a in terms]
    s = t.safe_div(r, t.sum(shares), SUM_OF_ZERO)
    return [t.Mul(c, s) for c in shares]


def first_winner(t: Tape, candidates: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    """For each candidate, whether it is the first that equals the maximum `y`.

    In truth values, which take a quarter of the memory of numbers.
    """
    return first_true(t, [t.Equal(candidate, y) for candidate in candidates])[0]


def first_true(t: Tape, truths: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """For each of some truth values, whether it is the first that is true; and whether none is."""
    first, *others = truths
    won, left = [first], t.Not(first)
    for other in others:
        won.append(t.And(left, other))
        left = t.Xor(left, won[-1])
    return won, left


def all_winners(t: Tape, candidates: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    """For each candidate, its part where as many as equal the maximum `y` share it equally."""
    won = [t.number(t.Equal(candidate, y)) for candidate in candidates]
    total = t.sum(won)
    return [t.Div(w, total) for w in won]


Winners = Callable[["Tape", "Sequence[Tensor]", "Tensor"], "list[Tensor]"]
"""`(t, candidates, y) -> the part of y that each candidate gets`, in the shape of `y`; of all of
them numbers or truth values."""

Rectify = Callable[["Tape", "Tensor", "Tensor"], "Tensor"]
"""`(t, g, mask) -> gradient behind a ReLU`, where `mask` is 1 where it let its input pass."""


def plain(t: Tape, g: Tensor, mask: Tensor) -> Tensor:
    """The derivative of a ReLU: what went forward goes back."""
    return t.Mul(g, mask)
