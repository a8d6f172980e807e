"""Normalisation and maps with constant operands: bypassed, R_x = R_y (paper, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import UNKNOWN, Interval, Kind, positive_part
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


def _lrn_bounds(interval: Interval, attributes: Mapping[str, Any]) -> Interval:
    """A positive scale keeps the sign, unless odd attributes make it negative."""
    usual = attributes.get("bias", 1.0) > 0 and attributes.get("alpha", 1e-4) >= 0
    return positive_part(interval, attributes) if usual else UNKNOWN


@rule("LRN", bounds=_lrn_bounds)
@rule("BatchNormalization", "Neg", bounds=Kind.MONOTONE)
def bypass(t: Tape, r: Tensor, y: Tensor, x: Tensor, *parameters: Tensor, **_: Any) -> Tensor:
    """R_x = R_y: a per-channel scale behind a linear map has been folded into its weights."""
    return r


@rule("Mul", "Div", bounds=Kind.MONOTONE)
def scale(t: Tape, r: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """R_x = R_y: a product with, or a quotient by, a constant."""
    if t.carries(a) and t.carries(b):
        raise UnsupportedError("both operands depend on the input")
    if t.step.op == "Div" and t.carries(b):
        raise UnsupportedError("its divisor depends on the input")
    return [t.unbroadcast(r, y, x) if t.carries(x) else None for x in (a, b)]
