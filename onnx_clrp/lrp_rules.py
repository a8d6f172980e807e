"""LRP's family of rules over signed contributions: ε, γ, αβ, w², flat; the bias among them.

Where zennit has them too they are the same, its stabiliser included, so that maps can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnx_clrp.redistribute import LinearMap, Redistribution

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor

BIAS_SHARE = "the bias's share, and the stabiliser's"
"""Why a redistribution with the bias in its denominator absorbs relevance."""

STABILISER = 1e-6
"""Added to signed denominators, away from zero; as zennit's default."""


def epsilon(size: float = STABILISER) -> Redistribution:
    """R = x ⊙ Wᵀ(R / (z + ε sgn z)), z = Wx + b (Bach et al. 2015, eq. 58); LRP-0 for ε = 0."""

    def hand(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        s = _over(t, r, whole_output(t, f), size)
        return _shared(t, f, r, [(f.x, f.weight, s)])

    return Redistribution(f"ε = {size:g}", hand, whole=True, blind=True)


def gamma(share: float = 0.25) -> Redistribution:
    """The ε rule with W + γW⁺ in place of W where z > 0, and W + γW⁻ where z < 0.

    Montavon et al. 2019, section 10.2.3, for inputs of both signs as in Andéol et al. 2021: of a
    negative input the parts of W change places.
    """

    def hand(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        z, terms = whole_output(t, f), []
        favoured = [
            t.Add(f.weight, t.Mul(part(f.weight), float(share))) for part in (t.Relu, t.negative)
        ]
        for sign, weights, part in (
            (t.Greater, favoured, t.Relu),
            (t.Less, favoured[::-1], t.negative),
        ):
            pairs = [*zip(_signed_parts(t, f.x), weights, strict=False)]
            bias = None if f.bias is None else t.Add(f.bias, t.Mul(part(f.bias), float(share)))
            s = _over(t, t.Mul(r, t.number(sign(z, 0.0))), _contributions(t, f, pairs, bias))
            terms += [(x, w, s) for x, w in pairs]
        return _shared(t, f, r, terms)

    return Redistribution(f"γ = {share:g}", hand, whole=True)


def alpha_beta(alpha: float = 2.0, beta: float = 1.0) -> Redistribution:
    """R = α times the share of what is positive in Wx + b, less β times that of what is negative.

    Bach et al. 2015, eq. 60. With β = 0 it is the z⁺ rule with the bias in its denominator.
    """

    def hand(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
        weights, terms = [t.Relu(f.weight), t.negative(f.weight)], []
        for factor, order, part in (
            (alpha, weights, t.Relu),
            (-beta, weights[::-1], t.negative),
        ):
            if factor == 0:
                continue
            pairs = [*zip(_signed_parts(t, f.x), order, strict=False)]
            bias = None if f.bias is None else part(f.bias)
            s = _over(t, t.Mul(r, float(factor)), _contributions(t, f, pairs, bias))
            terms += [(x, w, s) for x, w in pairs]
        return _shared(t, f, r, terms)

    return Redistribution(f"α = {alpha:g}, β = {beta:g}", hand, whole=True)


def _wsquare(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = (W²)ᵀ(R / (W² 1 + b²)): by weight alone (Montavon et al. 2017, eq. 12)."""
    bias = None if f.bias is None else t.Mul(f.bias, f.bias)
    return _blindly(t, f, r, t.Mul(f.weight, f.weight), bias)


def _flat(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = 1ᵀ(R / 11): evenly over all that an output is made of (Lapuschkin et al. 2019)."""
    return _blindly(t, f, r, t.Add(t.Mul(f.weight, 0.0), 1.0), None)


def _blindly(t: Tape, f: LinearMap, r: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    ones = t.Expand(1.0, t.Shape(f.x))
    s = _over(t, r, _contributions(t, f, [(ones, weight)], bias))
    return _shared(t, f, r, [(ones, weight, s)])


wsquare = Redistribution("w²", _wsquare, whole=True, blind=True)
flat = Redistribution("flat", _flat, blind=True)


def whole_output(t: Tape, f: LinearMap) -> Tensor:
    """`W x + b`: the model's own where it holds just that.

    Of a dense map it is calculated anew, which costs little: a contrast formed there is exact.
    """
    if f.output is not None and not f.dense:
        return f.output
    return _contributions(t, f, [(f.x, f.weight)], f.bias)


def _signed_parts(t: Tape, x: Tensor) -> list[Tensor]:
    """`x⁺`, and `x⁻` unless there is none."""
    return [x] if t.nonnegative(x) else [t.Relu(x), t.negative(x)]


def _contributions(
    t: Tape, f: LinearMap, pairs: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None
) -> Tensor:
    z = t.sum(f.forward(x, w) for x, w in pairs)
    return z if bias is None else t.Add(z, bias)


def _over(t: Tape, r: Tensor, z: Tensor, size: float = STABILISER) -> Tensor:
    """`r / (z + ε sgn z)`, where sgn 0 = 1; without ε nothing where z is 0."""
    if not size:
        nothing = t.Equal(z, 0.0)
        return t.Where(nothing, 0.0, t.Div(r, t.Where(nothing, 1.0, z)))
    return t.Div(r, t.Add(z, t.Where(t.Less(z, 0.0), -float(size), float(size))))


def _shared(
    t: Tape, f: LinearMap, r: Tensor, terms: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """Σ x ⊙ Wᵀs; the ledger is told what of `r` is no input's share."""
    shares = t.sum(t.Mul(s, f.forward(x, w)) for x, w, s in terms)
    t.absorb(t.Sub(r, shares), BIAS_SHARE)
    return t.sum(t.Mul(x, f.transpose(s, w)) for x, w, s in terms)


def _normed(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """R = x / n ⊙ Wᵀ(R / (y + ε sgn y)): the ε rule of the mean y (zennit's Norm)."""
    n = 1.0 if f.count is None else t.number(t.operand(f.count()))
    s = t.Div(_over(t, r, t.Div(f.forward(f.x, f.weight), n)), n)
    return _shared(t, f, r, [(f.x, f.weight, s)])


normed = Redistribution("signed shares", _normed)


def by_signed_share(t: Tape, terms: Sequence[Tensor], total: Tensor, r: Tensor) -> list[Tensor]:
    """R_a = a R / (y + ε sgn y): the ε rule over unit weights (zennit's Norm)."""
    whole = t.sum(terms)  # the total itself may have been rounded
    s = _over(t, r, whole)
    t.absorb(t.Sub(r, t.Mul(s, whole)), BIAS_SHARE)
    return [t.Mul(a, s) for a in terms]
