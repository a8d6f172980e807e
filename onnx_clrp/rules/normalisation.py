"""Normalisation and maps with constant operands: bypassed, R_x = R_y (paper, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_clrp.intervals import Kind, with_zero
from onnx_clrp.rules import UnsupportedError, rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@rule("LRN", bounds=with_zero)
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
