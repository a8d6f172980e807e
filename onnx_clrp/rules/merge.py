"""Sums and choices among activations: by contribution, or all to the winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Kind
from onnx_clrp.rules import gradient, rule

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
    shares = iter(t.share(data, total, r))
    return [t.unbroadcast(next(shares), y, x) if t.carries(x) else None for x in xs]


@rule("Max", "Min", bounds=Kind.RISING)
def extreme(t: Tape, r: Tensor, y: Tensor, *xs: Tensor) -> list[Tensor | None]:
    """winner takes all: ties go to the first operand; with constants it is a Clip."""
    if sum(map(t.carries, xs)) == 1:
        return [t.unbroadcast(r, y, x) if t.carries(x) else None for x in xs]
    if not all(map(t.carries, xs)):
        raise UnsupportedError("a choice among activations and constants")
    won = t.composite.winners(t, xs, y)
    return [t.unbroadcast(t.Mul(r, t.number(w)), y, x) for x, w in zip(xs, won, strict=True)]


@gradient("Add", "Sum")
def add_gradient(t: Tape, g: Tensor, y: Tensor, *xs: Tensor) -> list[Tensor | None]:
    """g to every term."""
    return [t.unbroadcast(g, y, x) if t.carries(x) else None for x in xs]


@gradient("Sub")
def subtract_gradient(t: Tape, g: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """g and -g."""
    pairs = ((a, g), (b, t.Neg(g)))
    return [t.unbroadcast(part, y, x) if t.carries(x) else None for x, part in pairs]


@gradient("Max", "Min")
def extreme_gradient(t: Tape, g: Tensor, y: Tensor, *xs: Tensor) -> list[Tensor | None]:
    """g to the winner, the first of several; `max(x, 0)` is a ReLU."""
    if sum(map(t.carries, xs)) == 1 and t.step.op == "Max" and len(xs) == 2:
        x, bound = xs if t.carries(xs[0]) else xs[::-1]
        floor = t.facts.value(bound)
        if floor is not None and not floor.any():
            passed = t.rectify(g, t.number(t.Greater(x, 0.0)))
            return [t.unbroadcast(passed, y, x) if z is x else None for z in xs]
    won = t.composite.winners(t, xs, y)
    return [
        t.unbroadcast(t.Mul(g, t.number(w)), y, x) if t.carries(x) else None
        for x, w in zip(xs, won, strict=True)
    ]
