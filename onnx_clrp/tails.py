"""What is affine right behind a linear map, as a BatchNorm: for rules that count with the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.facts import Facts
from onnx_clrp.steps import Readers, Step, Tail, chain

PASSING = frozenset({"Identity", "Dropout", "Cast"})
"""Operators that hand on the numbers of their input, whatever type these have then."""


def tail_of(step: Step, axis: int, reading: Readers, facts: Facts, ends: set[str]) -> Tail | None:
    """What is affine by constants right behind a linear map, number by number."""
    factor, shift = np.ones(1, np.float64), np.zeros(1, np.float64)
    found = False
    for after in chain(step.outputs[0], reading, ends):
        if after.op in PASSING and not after.domain:
            continue
        pair = _affine(after, axis, facts)
        if pair is None:
            break
        factor, shift, found = pair[0] * factor, pair[0] * shift + pair[1], True
    if not found:
        return None
    return Tail(factor.astype(np.float32), shift.astype(np.float32))


def _affine(
    step: Step, axis: int, facts: Facts
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Factor and shift of an affine step, one number or one a channel; None if it is none."""
    values = [None if facts.carries(x) else facts.value(x) for x in step.inputs]
    if step.domain or sum(map(facts.carries, step.inputs)) != 1:
        return None
    if step.op == "BatchNormalization":
        if any(v is None for v in values[1:]) or step.attributes.get("training_mode"):
            return None
        gamma, beta, mean, var = (np.asarray(v, np.float64).reshape(-1) for v in values[1:])
        scale = gamma / np.sqrt(var + step.attributes.get("epsilon", 1e-5))
        return (scale, beta - mean * scale) if axis == 1 else None
    one, nil = np.ones(1), np.zeros(1)
    if step.op == "Neg":
        return -one, nil
    if step.op not in ("Add", "Sub", "Mul", "Div") or len(step.inputs) != 2:
        return None
    left = facts.carries(step.inputs[0])
    number = _by_channel(values[1 if left else 0], axis, step, facts)
    if number is None or (step.op == "Div" and not (left and number.all())):
        return None
    if step.op in ("Mul", "Div"):
        return (number if step.op == "Mul" else 1 / number), nil
    if step.op == "Add":
        return one, number
    return (one, -number) if left else (-one, number)


def _by_channel(
    value: NDArray[Any] | None, axis: int, step: Step, facts: Facts
) -> NDArray[np.float64] | None:
    """A constant that is one number, or one for each channel and nothing else; None if not so."""
    shape = facts.shape(step.outputs[0])
    if value is None or shape is None or value.ndim > len(shape):
        return None
    laid = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    if laid.size not in (1, laid.shape[axis]):
        return None
    return np.asarray(laid, np.float64).reshape(-1)
