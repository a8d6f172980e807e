"""What values a tensor can take: an interval, and the kinds of operators that carry it forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnx_clrp.errors import UsageError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Interval:
    """`lo <= x <= hi`: arrays of one shape that broadcast to the tensor, its batch counted as 1."""

    lo: Array
    hi: Array

    def __post_init__(self) -> None:
        if np.shape(self.lo) != np.shape(self.hi):
            lo, hi = np.broadcast_arrays(self.lo, self.hi)
            object.__setattr__(self, "lo", lo)
            object.__setattr__(self, "hi", hi)

    @property
    def nonnegative(self) -> bool:
        """Is the tensor proven to be nowhere below zero?"""
        return bool((self.lo >= 0).all())

    @property
    def nonpositive(self) -> bool:
        """Is the tensor proven to be nowhere above zero?"""
        return bool((self.hi <= 0).all())

    @property
    def finite(self) -> bool:
        """Are both bounds finite everywhere, as z^β needs them?"""
        return bool(np.isfinite(self.lo).all() and np.isfinite(self.hi).all())

    @property
    def bounded(self) -> bool:
        """Is any bound finite, so that there is something to carry forward?"""
        return bool(np.isfinite(self.lo).any() or np.isfinite(self.hi).any())

    @property
    def uniform(self) -> bool:
        """Is it the same pair of numbers for every element?"""
        return self.lo.size == 1 and self.hi.size == 1


def between(lo: float, hi: float) -> Interval:
    """The same two bounds for every element."""
    return Interval(np.array(lo, np.float32), np.array(hi, np.float32))


UNKNOWN = between(-np.inf, np.inf)


def per_channel(
    low: object, high: object, rank: int, axis: int, channels: int | None = None
) -> Interval:
    """Bounds given as a number or one number a channel, laid along `axis` of the tensor.

    Raises:
        UsageError: a bound is not a number or a list of numbers, or `low > high`.
    """
    lo, hi = (_along(bound, rank, axis) for bound in (low, high))
    for bound in (lo, hi):
        if bound.size not in (1, channels or bound.size) or bound.size not in (
            1,
            max(lo.size, hi.size),
        ):
            raise UsageError(
                f"an input range of {bound.size} numbers, the input has {channels} channels"
            )
    if not (lo <= hi).all():
        raise UsageError(f"the input range must have low <= high, not {low} and {high}")
    if (lo == np.inf).any() or (hi == -np.inf).any():
        raise UsageError(f"no number of float32 lies between {low} and {high}")
    return Interval(lo, hi)


def _along(bound: object, rank: int, axis: int) -> Array:
    try:
        with np.errstate(over="ignore"):
            values = np.asarray(bound, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"an input range is numbers, not {bound!r}") from error
    if values.ndim > 1:
        raise UsageError("an input range is one number, or one number per channel")
    shape = [] if values.size == 1 else [-1 if i == axis else 1 for i in range(rank)]
    return values.reshape(shape)


def hull(intervals: Sequence[Interval]) -> Interval:
    """The smallest uniform interval that holds all of them."""
    return between(min(i.lo.min() for i in intervals), max(i.hi.max() for i in intervals))


def compressed(lo: Array, hi: Array) -> Interval:
    """The interval from full arrays, with every axis dropped to 1 along which nothing changes."""
    for axis in range(lo.ndim):
        first = [a.take([0], axis) for a in (lo, hi)]
        if (lo == first[0]).all() and (hi == first[1]).all():
            lo, hi = first
    return Interval(lo, hi) if lo.size > 1 else between(lo.item(), hi.item())


class Kind(Enum):
    """How an operator carries intervals when it is simply run on both ends."""

    MONOTONE = "elementwise, monotone either way in each input while the others are held"
    RISING = "elementwise, rising in every input"
    PRODUCT = "an elementwise product"
    QUOTIENT = "an elementwise quotient"
    MOVEMENT = "moves or drops values without changing any"
    CHOICE = "averages or picks values: the output stays among the inputs"
    CAST = "the same values in another type"
    PADDING = "moves values and puts constants around them"
    JOIN = "puts tensors together, constants among them"


Bounds = Kind | Callable[[Interval, Mapping[str, Any]], Interval]
"""A kind, or a function of the first data input's interval and of the operator's attributes."""


def range_of(lo: float, hi: float) -> Bounds:
    """The kind of an operator whose output lies in a fixed range whatever its input."""
    return lambda _interval, _attributes: between(lo, hi)


def by_channel(interval: Interval) -> Interval:
    """What mixes of the values of one channel lie in, or, bounded otherwise, of all values."""
    differ = interval.lo.ndim > 1 and interval.lo.size == interval.lo.shape[1]
    return interval if differ else hull([interval])


def with_zero(interval: Interval, _attributes: Mapping[str, Any]) -> Interval:
    """The bounds of a channel and zero: what a mean over zero padding may give."""
    bounds = by_channel(interval)
    return Interval(np.minimum(bounds.lo, 0), np.maximum(bounds.hi, 0))


def cast(interval: Interval, to: int) -> Interval:
    """The interval in another type: as it is in a float, cut off in an integer that holds it."""
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if dtype.kind not in "iu":
        return UNKNOWN if dtype == np.bool_ else interval
    limits = np.iinfo(dtype)
    holds = interval.finite and interval.lo.min() >= limits.min and interval.hi.max() <= limits.max
    if not holds:  # it wraps around
        return between(float(limits.min), float(limits.max))
    return Interval(np.trunc(interval.lo), np.trunc(interval.hi))


def positive_part(interval: Interval, _attributes: Mapping[str, Any]) -> Interval:
    """Not negative where the input is not: all that is sure of many activations."""
    return between(0, np.inf) if interval.nonnegative else UNKNOWN
