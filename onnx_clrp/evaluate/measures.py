"""What one map is worth: pointing, energy inside the box, likeness to another class's map.

A heatmap `h` is `[H, W]`, one number a pixel in any unit, since no measure depends on its scale.
Its energy is what speaks for the class, `max(0, h)`. A mask is `[H, W]` bool, the pixels of the
target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnx_clrp.errors import UsageError

Floats = NDArray[np.float64]
Heatmap = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Similarity:
    """How like each other two maps are.

    Attributes:
        cosine: of the angle between their energies, 0 … 1; None where one has no energy.
        rank: Spearman's rank correlation of all values, -1 … 1; None where one is constant.
    """

    cosine: float | None
    rank: float | None


def peak(h: Heatmap) -> tuple[int, int] | None:
    """The (row, column) of the maximum, of several the first in row-major order.

    None where nothing is positive: the zeros of a map without energy point nowhere.

    Raises:
        UsageError: `h` is no heatmap of finite numbers.
    """
    values = _heatmap(h)
    row, column = divmod(int(values.argmax()), values.shape[1])
    return (row, column) if values[row, column] > 0 else None


def pointing(h: Heatmap, mask: Mask, tolerance: float = 0) -> bool:
    """Whether the peak hits the target: the pointing game of Zhang et al. 2016.

    Args:
        h: `[H, W]`; without a peak it misses.
        mask: `[H, W]` bool.
        tolerance: how far from the peak the nearest pixel of the mask may lie, in pixels of the
            heatmap, centre to centre; they allow 15 in pixels of the photograph. A pixel just as
            far is a hit, which TorchRay counts as a miss.

    Raises:
        UsageError: `h` or `mask` is not what it should be, or `tolerance` is negative.
    """
    target = _mask(mask, h)
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"the tolerance is a number of pixels from 0 on, not {tolerance!r}")
    found = peak(h)
    if found is None:
        return False
    rows, columns = np.nonzero(target)
    distances = np.sqrt((rows - found[0]) ** 2 + (columns - found[1]) ** 2)
    return bool((distances <= tolerance).any())


def energy_set(h: Heatmap, share: float) -> Mask:
    """The fewest pixels that hold at least a share of the energy, `[H, W]` bool.

    They are taken by value, the greatest first and equal ones in row-major order. A pixel without
    energy never belongs to the set, one with energy always does at the share of 1. The set of a
    map without energy is empty.

    Args:
        h: `[H, W]`.
        share: above 0, at most 1.

    Raises:
        UsageError: `h` is no heatmap of finite numbers, or `share` is out of range.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of the energy is above 0 and at most 1, not {share!r}")
    pixels, held = _holdings(_heatmap(h))
    chosen = np.zeros(np.shape(h), np.bool_)
    chosen.flat[pixels[: np.searchsorted(held, share) + 1]] = True
    return chosen


def reach(h: Heatmap, mask: Mask) -> float:
    """The largest share of the energy whose set of pixels lies wholly in the mask, 0 … 1.

    For every share `p` that `energy_set` takes, `p <= reach(h, mask)` is exactly whether
    `energy_set(h, p)` has pixels and all of them lie in the mask. So one number a map gives the
    accuracy at every threshold of Gu et al. 2018, figure 4.

    Why: let `s_k` be the share that the k greatest pixels hold, which does not fall with k, and
    let the first m of them lie in the mask but not the next. The set at p has the least k with
    `p <= s_k`, and that k is at most m just where `p <= s_m`. Both functions compare with the same
    rounded `s_k`, so that this holds to the last digit.

    Raises:
        UsageError: `h` or `mask` is not what it should be.
    """
    target = _mask(mask, h)
    pixels, held = _holdings(_heatmap(h))
    outside = np.flatnonzero(~target.reshape(-1)[pixels])
    within = int(outside[0]) if outside.size else len(pixels)
    return float(held[within - 1]) if within else 0.0


def inside(h: Heatmap, mask: Mask) -> float | None:
    """The share of the energy that lies in the mask, 0 … 1; None where there is no energy.

    Raises:
        UsageError: `h` or `mask` is not what it should be.
    """
    target = _mask(mask, h)
    energy = _energy(_heatmap(h))
    within, beyond = float(energy[target].sum()), float(energy[~target].sum())
    return within / (within + beyond) if within + beyond > 0 else None


def similarity(a: Heatmap, b: Heatmap) -> Similarity:
    """How alike the maps of two classes are: a method that tells classes apart gives little.

    Raises:
        UsageError: one is no heatmap of finite numbers, or they differ in shape.
    """
    first, second = _heatmap(a), _heatmap(b)
    if first.shape != second.shape:
        raise UsageError(f"maps of {_form(a)} and {_form(b)} cannot be compared: give equal shapes")
    ranks = [values - (values.size + 1) / 2 for values in (_ranks(first), _ranks(second))]
    return Similarity(
        cosine=_cosine(_energy(first).reshape(-1), _energy(second).reshape(-1)),
        rank=_cosine(*ranks),
    )


def patch(shape: tuple[int, int], centre: tuple[int, int], size: int) -> tuple[slice, slice]:
    """The rows and columns of a square window about a pixel, cut off at the borders.

    Args:
        shape: (H, W).
        centre: (row, column) of a pixel.
        size: the window's side in pixels; where it is even, the window reaches one pixel further
            up and to the left than down and to the right.

    Raises:
        UsageError: the centre is not in the picture, or the size is not positive.
    """
    if not all(0 <= at < length for at, length in zip(centre, shape, strict=True)):
        raise UsageError(f"the centre {tuple(centre)} is not in the {shape[0]}x{shape[1]} pixels")
    if size < 1:
        raise UsageError(f"a patch has a side of at least 1 pixel, not {size!r}")
    rows, columns = (
        slice(max(0, at - size // 2), min(length, at - size // 2 + size))
        for at, length in zip(centre, shape, strict=True)
    )
    return rows, columns


def order(h: Heatmap) -> Integers:
    """The pixels from the most to the least relevant, `[H * W]` int64 in row-major numbers.

    Negative values count as they are; equal ones keep their row-major order.

    Raises:
        UsageError: `h` is no heatmap of finite numbers.
    """
    return _descending(_heatmap(h).reshape(-1))


def curve_area(scores: ArrayLike, fractions: ArrayLike) -> float:
    """The area under a curve of deletion or insertion, by trapezoids (Petsiuk et al. 2018, RISE).

    It is divided by the width of the curve: the mean height, in the unit of the scores.

    Args:
        scores: `[n]`, what the model gives, n at least 2.
        fractions: `[n]`, the part of the pixels deleted or inserted by then, rising in 0 … 1.

    Raises:
        UsageError: there are not two points, or the fractions do not rise.
    """
    heights, at = (np.asarray(values, np.float64) for values in (scores, fractions))
    if heights.ndim != 1 or heights.shape != at.shape or len(heights) < 2:
        raise UsageError(
            f"a curve has two points or more, each a score and a fraction, not"
            f" {list(heights.shape)} scores and {list(at.shape)} fractions"
        )
    widths = np.diff(at)
    if not (np.isfinite(heights).all() and (widths > 0).all() and at[0] >= 0 and at[-1] <= 1):
        raise UsageError("a curve needs finite scores, and fractions that rise from 0 to 1 at most")
    return float(((heights[1:] + heights[:-1]) / 2 * widths).sum() / widths.sum())


def _heatmap(h: Heatmap) -> Floats:
    """The heatmap in float64, where sums over a picture keep more digits than a pixel has."""
    given = np.asarray(h)
    if given.ndim != 2 or not given.size or given.dtype.kind not in "fiu":
        raise UsageError(f"a heatmap is [H, W] of numbers, not {_form(given)}: reduce its channels")
    values: Floats = given.astype(np.float64)
    if not np.isfinite(values).all():
        raise UsageError("the heatmap holds values that are not finite: look at the run it is from")
    return values


def _mask(mask: Mask, h: Heatmap) -> Mask:
    given = np.asarray(mask)
    if given.dtype != np.bool_ or given.shape != np.shape(h):
        raise UsageError(
            f"the mask of a heatmap {_form(h)} is bool of its shape, not {_form(mask)}"
        )
    return given


def _form(array: ArrayLike) -> str:
    return f"{list(np.shape(array))} {np.asarray(array).dtype}"


def _energy(values: Floats) -> Floats:
    """`max(0, h)` over a power of two, which changes no digit: no sum of it can overflow."""
    energy = np.maximum(values, 0)
    return np.ldexp(energy, -int(np.frexp(energy.max())[1]))


def _descending(values: Floats) -> Integers:
    return np.argsort(-values, kind="stable").astype(np.int64)


def _holdings(values: Floats) -> tuple[Integers, Floats]:
    """The pixels with energy, the greatest first, and the share that they hold up to each.

    Sums are rounded, so that the last pixels may seem to add nothing. Only all of them together
    hold the share of 1, as it is with exact sums.
    """
    flat = values.reshape(-1)
    pixels = _descending(flat)[: np.count_nonzero(flat > 0)]
    sums = np.cumsum(_energy(values).reshape(-1)[pixels])
    if not len(sums):
        return pixels, sums
    held = np.minimum(sums / sums[-1], np.nextafter(1, 0))
    held[-1] = 1
    return pixels, held


def _ranks(values: Floats) -> Floats:
    """The rank of each value from 1 on, of equal ones the mean of theirs, `[H * W]`."""
    _, which, counts = np.unique(values.reshape(-1), return_inverse=True, return_counts=True)
    means: Floats = np.cumsum(counts) - (counts - 1) / 2
    return means[which]


def _cosine(a: Floats, b: Floats) -> float | None:
    norms = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return min(1.0, max(-1.0, float((a * b).sum()) / norms)) if norms > 0 else None
