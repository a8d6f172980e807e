"""Sums and choices among activations: by contribution, or all to the winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Kind
from onnx_clrp.redistribute import SUM_OF_ZERO, winners
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@rule("Add", "Sum", bounds=Kind.RISING)
def add(t: Tape, r: Tensor, y: Tensor, *xs: Tensor) -> list[Tensor | None]:
    """by contribution: R_a = R c_a / Σc, c_a = max(a sgn(y), 0), what has the sum's sign."""
    return _shared(t, r, y, xs, xs)


@rule("Sub", bounds=Kind.MONOTONE)
def subtract(t: Tape, r: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """by contribution: a sum of a and -b."""
    return _shared(t, r, y, (a, b), (a, t.Neg(b) if t.carries(b) else b))


def _shared(
    t: Tape, r: Tensor, y: Tensor, xs: tuple[Tensor, ...], terms: tuple[Tensor, ...]
) -> list[Tensor | None]:
    carriers = [x for x in xs if t.carries(x)]
    if len(carriers) == 1:  # the others are constants: an affine map, bypassed
        return [t.unbroadcast(r, y, x) if t.carries(x) else None for x in xs]
    data = [a for x, a in zip(xs, terms, strict=True) if t.carries(x)]
    # A constant among them is but a bias.
    total = t.result(y, lambda: t.sum(data)) if len(data) == len(xs) else t.sum(data)
    positive = all(t.nonnegative(a) for a in data)  # then so is the sum, and each is its share
    shares = [
        None if not t.carries(x) else a if positive else t.Relu(t.Mul(a, t.Sign(total)))
        for x, a in zip(xs, terms, strict=True)
    ]
    s = t.safe_div(r, t.sum(c for c in shares if c is not None), SUM_OF_ZERO)
    return [
        None if c is None else t.unbroadcast(t.Mul(c, s), y, x)
        for x, c in zip(xs, shares, strict=True)
    ]


@rule("Max", "Min", bounds=Kind.RISING)
def extreme(t: Tape, r: Tensor, y: Tensor, *xs: Tensor) -> list[Tensor | None]:
    """winner takes all: ties go to the first operand; with constants it is a Clip."""
    if sum(map(t.carries, xs)) == 1:
        return [t.unbroadcast(r, y, x) if t.carries(x) else None for x in xs]
    if not all(map(t.carries, xs)):
        raise UnsupportedError("a choice among activations and constants")
    return [t.unbroadcast(t.Mul(r, w), y, x) for x, w in zip(xs, winners(t, xs, y), strict=True)]
