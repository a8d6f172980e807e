"""Elementwise activations: relevance passes through them unchanged, R_x = R_y."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import UNKNOWN, Interval, Kind, positive_part, range_of
from onnx_clrp.rules import bounded, gradient, rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


def _reciprocal(interval: Interval, _attributes: Mapping[str, Any]) -> Interval:
    """Falling, on either side of zero."""
    if not ((interval.lo > 0).all() or (interval.hi < 0).all()):
        return UNKNOWN
    return Interval(np.float32(1) / interval.hi, np.float32(1) / interval.lo)


bounded("Reciprocal", bounds=_reciprocal)
bounded("Softmax", bounds=range_of(0, 1))
bounded("LogSoftmax", bounds=range_of(-np.inf, 0))
for _operator in ("Sin", "Cos", "Sign"):
    bounded(_operator, bounds=range_of(-1, 1))
for _operator in (
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or", "Xor"),
    *("Hardmax", "IsNaN", "IsInf"),
):
    bounded(_operator, bounds=range_of(0, 1))


@rule("Relu", "Clip", "Tanh", "Softplus", "Softsign", "Erf", bounds=Kind.MONOTONE)
@rule("Sigmoid", "HardSigmoid", "Atan", bounds=Kind.MONOTONE)
@rule("Exp", "Log", "Sqrt", "Floor", "Ceil", "Round", bounds=Kind.MONOTONE)
@rule("Abs", bounds=range_of(0, np.inf))
@rule("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", bounds=positive_part)
@rule("PRelu", "Selu", "Swish")
@rule("HardSwish", bounds=range_of(-0.375, np.inf))
@rule("Gelu", bounds=range_of(-0.171, np.inf))
@rule("Mish", bounds=range_of(-0.309, np.inf))
@rule("Identity", bounds=Kind.MOVEMENT)
@rule("Cast", bounds=Kind.CAST)
def activation(t: Tape, r: Tensor, y: Tensor, x: Tensor, *parameters: Tensor, **_: Any) -> Tensor:
    """R_x = R_y: an activation scales what its unit says, not who said it."""
    passed = t.unbroadcast(r, y, x)
    return t.vanishing(passed, x) if t.step.op == "Relu" and t.vanishes(r, y) else passed


@rule("Pow")
def power(t: Tape, r: Tensor, y: Tensor, x: Tensor, exponent: Tensor) -> Tensor:
    """R_x = R_y: as an activation; a negative exponent would turn the sign round."""
    value = t.facts.value(exponent)
    if t.carries(exponent) or value is None or not (value > 0).all():
        raise UnsupportedError("its exponent is not positive")
    return t.unbroadcast(r, y, x)


@rule("Dropout", bounds=Kind.MOVEMENT)
def dropout(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """R_x = R_y: outside of training it is the identity."""
    if training is not None and (t.facts.value(training) is None or t.facts.value(training)):
        raise UnsupportedError("it drops at random (training mode)")
    return r


@gradient("Where")
@rule("Where")
def where(t: Tape, r: Tensor, y: Tensor, c: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """winner takes all: the operand that was chosen."""
    chosen = t.number(c)
    shares = [t.Mul(r, s) for s in (chosen, t.Sub(1.0, chosen))]
    for x, share in zip((a, b), shares, strict=True):
        if not t.carries(x):
            t.absorb(share, "a part that does not depend on the input")
    pairs = zip((a, b), shares, strict=True)
    return [None, *(t.unbroadcast(s, y, x) if t.carries(x) else None for x, s in pairs)]
