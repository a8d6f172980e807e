"""The signs of per-channel scales that follow a linear map, which belong to its weights."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_clrp.facts import Facts, Shape, Tensor
from onnx_clrp.steps import Readers, Step, chain
from onnx_clrp.tails import PASSING, tail_of

_MOVING = PASSING | {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_SCALED_BY_CHANNEL = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}
)
_SCALED_BY_ELEMENT = frozenset({"LayerNormalization", "RMSNormalization"})
_LOST = -99
_UNCHANGED = frozenset({"LRN", "MeanVarianceNormalization", "LpNormalization", "Sum"})
_LOST_CHANNELS = "the scales {} behind it have both signs, and where its channels lie is not known"
_UNKNOWN_SIGN = "the scale {} behind it is known only at run time, and so is its sign"
_FORKED = "several nodes read it, and the scale {} behind one of them may be negative"
_ENLARGED = "the scales behind it have both signs, and make more channels of it"


def with_signs(step: Step, reading: Readers, facts: Facts, ends: set[str]) -> Step:
    """A linear map with the signs of the scales that follow it, up to where the chain forks.

    Behind a fork a scale belongs to one branch alone, so that it cannot be part of the weights.
    """
    if not step.linear:
        return step
    signs: NDArray[np.float32] = np.ones(1, np.float32)
    scales: list[Tensor] = []
    first = _channel_axis(step, facts)
    axis: int | None = first
    step = replace(step, channel_axis=first, tail=tail_of(step, first, reading, facts, ends))
    y = step.outputs[0]
    home: dict[Shape, int] = {}
    for after in chain(y, reading, ends):
        if after.op in _MOVING:
            axis = _moved_or_back(after, axis, home, facts)
            continue
        scale = scale_of(after, axis, facts)
        if scale is None:
            break
        if isinstance(scale, str):
            return replace(step, doubt=scale)
        if isinstance(scale, gs.Tensor):
            scales.append(scale)
        else:
            signs = signs * scale
    else:
        turned = _turned_behind_a_fork(y, reading, ends, facts)
        if turned is not None:
            return replace(step, doubt=_FORKED.format(turned))
    step = replace(step, scales=tuple(scales))
    if (signs > 0).all():
        return step
    shape = facts.shape(step.outputs[0])
    step = _signed(step, signs, None if shape is None else shape[first])
    if step.tail is None or step.signs is None:
        return step
    rest = step.signs * np.sign(step.tail.factor)
    rest = np.where(step.tail.factor == 0, 1, rest).astype(np.float32)
    return step if (rest > 0).all() else replace(step, tail=replace(step.tail, signs=rest))


def _signed(step: Step, signs: NDArray[np.float32], channels: int | None) -> Step:
    """The map with a sign for each of its channels."""
    if signs.size not in (1, channels or signs.size):
        return replace(step, doubt=_ENLARGED)
    return replace(step, signs=np.broadcast_to(signs, channels or signs.shape).copy())


def falls(step: Step, facts: Facts) -> bool:
    """May the output of this affine step fall where its input rises?"""
    if step.op == "Div" and not facts.carries(step.inputs[0]):
        return facts.carries(step.inputs[1])  # a constant over it
    if step.op not in ("Neg", "Sub", "Mul", "Div"):
        return False
    scale = scale_of(step, None, facts)
    return isinstance(scale, str) or (isinstance(scale, np.ndarray) and bool((scale < 0).any()))


def _turned_behind_a_fork(y: Tensor, reading: Readers, ends: set[str], facts: Facts) -> Step | None:
    """The first scale that may be negative on any of the ways on from where a chain forks."""
    for after in chain(y, reading, ends):
        y = after.outputs[0]
    waiting = [y]
    while waiting:
        y = waiting.pop()
        for after in reading.get(y.name, ()):
            scale = np.ones(1) if after.op in _MOVING else scale_of(after, None, facts)
            if scale is None:
                continue
            if not (isinstance(scale, np.ndarray) and (scale > 0).all()):
                return after
            waiting.append(after.outputs[0])
    return None


def _moved_or_back(
    step: Step, axis: int | None, home: dict[Shape, int], facts: Facts
) -> int | None:
    """Where the channel axis stands behind a step; it is back where a shape is that it had.

    A GroupNorm is written as a Reshape to groups, an InstanceNorm, and a Reshape back.
    """
    before, after = (facts.shape(x) for x in (step.inputs[0] or step.outputs[0], step.outputs[0]))
    if axis is not None and axis != _LOST and before is not None and None not in before[1:]:
        home[before[1:]] = axis
    if step.op == "Transpose":
        home.clear()  # the same shape may hold the channels in another order then
    moved = _moved(step, axis, facts)
    reshaped = step.op == "Reshape" and after is not None and after[1:] in home
    return home[after[1:]] if moved is None and reshaped and after is not None else moved


def _channel_axis(step: Step, facts: Facts) -> int:
    if step.op == "Gemm" and not facts.carries(step.inputs[0]):
        return 0
    if step.op != "MatMul":
        return 1
    rank = len(facts.shape(step.outputs[0]) or ())
    return rank - 1 if facts.carries(step.inputs[0]) else rank - 2


def scale_of(
    step: Step, axis: int | None, facts: Facts
) -> NDArray[np.float32] | Tensor | str | None:
    """The signs, one or one a channel, that an affine step multiplies its input with.

    A tensor where it is a single number that only the run will tell; None where there is nothing
    to fold; a text where there is, but the sign is not known.
    """
    one = np.ones(1, np.float32)
    carriers = [facts.carries(x) for x in step.inputs]
    if step.domain or sum(carriers) != 1:
        return None
    if step.op in _SCALED_BY_CHANNEL:
        gamma = facts.value(step.inputs[1])
        if gamma is None:
            return _UNKNOWN_SIGN.format(step)
        return _per_channel(_of_channels(gamma, step, facts), axis, axis == 1, step)
    if step.op in _SCALED_BY_ELEMENT:
        gamma = step.inputs[1] if len(step.inputs) > 1 else None
        return one if gamma is None else _constant_signs(step, gamma, axis, facts)
    if step.op == "Neg" or (step.op == "Sub" and carriers[1]):
        return -one
    if step.op in ("Add", "Sub") or step.op in _UNCHANGED:
        return one
    if step.op == "Mul" or (step.op == "Div" and carriers[0]):
        return _constant_signs(step, step.inputs[carriers.index(False)], axis, facts)
    return None


def _constant_signs(
    step: Step, constant: Tensor | None, axis: int | None, facts: Facts
) -> NDArray[np.float32] | Tensor | str | None:
    value, shape = facts.value(constant), facts.shape(step.outputs[0])
    if value is None and constant is not None and facts.interval(constant).nonnegative:
        return np.ones(1, np.float32)  # as the scales of dynamic quantisation are
    if value is None and constant is not None and facts.shape(constant) in ((), (1,)):
        return constant
    if value is None:
        return _UNKNOWN_SIGN.format(step)
    if shape is None or value.ndim > len(shape):
        return _per_channel(value, axis, False, step)
    laid = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    along = axis is not None and axis != _LOST and laid.size == laid.shape[axis]
    return _per_channel(value, axis, along, step)


def _of_channels(gamma: NDArray[Any], step: Step, facts: Facts) -> NDArray[Any]:
    """A scale for each channel, where a GroupNormalization of older opsets has one a group."""
    shape = facts.shape(step.outputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    return gamma if channels is None else np.repeat(gamma, channels // gamma.size)


def _per_channel(
    value: NDArray[np.generic], axis: int | None, laid: bool, step: Step
) -> NDArray[np.float32] | str | None:
    """The signs of a scale: one if all are the same, else one a channel if it is laid so."""
    signs = np.sign(np.asarray(value, np.float32)).reshape(-1)
    if signs.size and (signs == signs[0]).all():
        return signs[:1]
    if axis is None or axis == _LOST:
        return _LOST_CHANNELS.format(step)
    return signs if laid else None


def _moved(step: Step, axis: int | None, facts: Facts) -> int | None:
    """Where the channel axis stands behind a step that only moves values; None if it is no more.

    `_LOST` if nobody knows, since sizes are open.
    """
    if axis is None or axis == _LOST or step.op in PASSING:
        return axis
    x, y = step.inputs[0], step.outputs[0]
    before, after = facts.shape(x) if x is not None else None, facts.shape(y)
    if before is None or after is None:
        return _LOST
    if step.op == "Transpose":
        perm = step.attributes.get("perm") or [*range(len(before))][::-1]
        return [*perm].index(axis)
    if step.op in ("Squeeze", "Unsqueeze"):
        return _among_singles(step, axis, max(len(before), len(after)), facts)
    if _same(before[: axis + 1], after[: axis + 1]) and _same(before[1:], after[1:], product=True):
        return axis
    if None not in before[axis:] and before[axis:] == after[axis - len(before) :]:
        return axis - len(before) + len(after)
    mixed = None not in (*before[1:], *after[1:]) and prod(filter(None, before[1:])) == prod(
        filter(None, after[1:])
    )
    return None if mixed else _LOST


def _among_singles(step: Step, axis: int, rank: int, facts: Facts) -> int | None:
    """Where an axis stands when others of size 1 come or go, counted among the more of both."""
    named = facts.value(step.inputs[1]) if len(step.inputs) > 1 else None
    if named is None:
        return _LOST
    singles = sorted(int(a) % rank for a in np.atleast_1d(named))
    if step.op == "Squeeze":
        return None if axis in singles else axis - sum(a < axis for a in singles)
    for single in singles:
        axis += single <= axis
    return axis


def _same(before: Shape, after: Shape, *, product: bool = False) -> bool:
    """Are the sizes the same, or do they hold as many elements; an open batch may lead both."""
    if product:
        known = None not in before and None not in after
        return known and prod(filter(None, before)) == prod(filter(None, after))
    return before == after and None not in before[1:]
