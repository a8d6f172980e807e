"""Normalisation and maps with constant operands: bypassed, R_x = R_y (paper, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import UNKNOWN, Interval, Kind, positive_part
from onnx_clrp.rules import gradient, rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


def _lrn_bounds(interval: Interval, attributes: Mapping[str, Any]) -> Interval:
    """A positive scale keeps the sign, unless odd attributes make it negative."""
    usual = attributes.get("bias", 1.0) > 0 and attributes.get("alpha", 1e-4) >= 0
    return positive_part(interval, attributes) if usual else UNKNOWN


@rule("LRN", bounds=_lrn_bounds)
@rule("BatchNormalization", "Neg", bounds=Kind.MONOTONE)
def bypass(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    *parameters: Tensor,
    training_mode: int = 0,
    **_: Any,
) -> Tensor:
    """R_x = R_y: a per-channel scale behind a linear map has been folded into its weights."""
    if training_mode:
        raise UnsupportedError("it takes its statistics from the batch (training mode)")
    return r


@rule("InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization")
@rule("LpNormalization", "MeanVarianceNormalization")
def normalise(t: Tape, r: Tensor, y: Tensor, x: Tensor, *parameters: Tensor, **_: Any) -> Tensor:
    """R_x = R_y: a per-channel scale behind a linear map has been folded into its weights."""
    return r


@rule("Mul", bounds=Kind.PRODUCT)
def multiply(t: Tape, r: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """signal takes all: a constant or a gate takes nothing; two plain activations half each."""
    signals = [t.carries(x) and t.step.gate != i for i, x in enumerate((a, b))]
    share = t.Mul(r, 0.5) if all(signals) else r
    pairs = zip((a, b), signals, strict=True)
    return [t.unbroadcast(share, y, x) if signal else None for x, signal in pairs]


@rule("Div", bounds=Kind.QUOTIENT)
def divide(t: Tape, r: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """signal takes all: a constant or a gate takes nothing."""
    signals = [t.carries(x) and t.step.gate != i for i, x in enumerate((a, b))]
    if signals[1]:  # where the divisor rises the quotient falls, and its sign is turned round
        raise UnsupportedError("its divisor depends on the input, and is no gate")
    pairs = zip((a, b), signals, strict=True)
    return [t.unbroadcast(r, y, x) if signal else None for x, signal in pairs]


@gradient("Mul")
def multiply_gradient(t: Tape, g: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """b g and a g."""
    pairs = ((a, b), (b, a))
    return [t.unbroadcast(t.Mul(g, o), y, x) if t.carries(x) else None for x, o in pairs]


@gradient("Div")
def divide_gradient(t: Tape, g: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """g / b and -y g / b."""
    over = t.Div(g, b)
    pairs = ((a, over), (b, t.Neg(t.Mul(over, t.Div(a, b)))))
    return [t.unbroadcast(part, y, x) if t.carries(x) else None for x, part in pairs]
