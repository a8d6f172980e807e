"""What many images say together: means with intervals, paired differences with p-values.

Images are what was drawn at random, so images are what is resampled. Several rows of one image,
as of two targets in it, share the picture and the model's view of it: drawn one by one they would
count as more evidence than they are, and the intervals would come out too narrow. `groups` says
which rows belong together; without it, every row is an image of its own.

The bootstrap and the permutations are written out, in NumPy alone: for the 50,000 images of
ImageNet `scipy.stats.permutation_test` takes minutes. What is drawn, and what comes out to the last
digit, depends on the numbers and the seed alone, neither on the order of the rows nor on the names
of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from onnx_clrp.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Values = Sequence[float | None] | NDArray[np.generic]
Groups = Sequence[Hashable] | NDArray[np.generic]

_ROUNDING = 1e-12
"""Sums that differ by less, as a part of what they sum, are taken for equal."""

_FEW = 16
"""As many images a distinct value as make counting values faster than drawing images."""

_PIECE = 1 << 18
"""Numbers that are drawn at once: what bounds the memory, whatever there is to resample."""


@dataclass(frozen=True)
class Estimate:
    """A mean, and how sure it is.

    Attributes:
        mean: over all rows that have a value; None where none has.
        low, high: the ends of its interval; None for less than two images, which say nothing of
            how images differ.
        count: the rows that have a value.
        missing: the rows that were left out, as they have none.
        images: the groups with a value, or the rows where no groups were given.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    missing: int
    images: int


@dataclass(frozen=True)
class Paired(Estimate):
    """The mean of `a - b` over pairs, as an `Estimate` of them.

    Attributes:
        p: the p-value of there being no difference; None where there is no pair.
    """

    p: float | None


def mean_interval(
    values: Values,
    *,
    groups: Groups | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """The mean of a measure and its bootstrap interval.

    It is the percentile interval (Efron and Tibshirani 1993, chapter 13). For two-sided intervals
    its error in coverage is of the same order in the number of images as that of the corrected
    BCa; it is always defined, where BCa fails if all values agree, and it never leaves the range of
    the values. For few images it is too narrow, as every bootstrap is: of equal values it has no
    width at all.

    Args:
        values: one a row, in any unit; None and NaN are missing and left out.
        groups: an id for each row, equal for the rows of one image.
        level: the coverage wanted.
        resamples: how many times images are drawn, with replacement.
        seed: of what is drawn.

    Raises:
        UsageError: a value is infinite or no number, there is not one group for each value, or an
            option is out of range.
    """
    _check(level, resamples, seed)
    numbers = _numbers(values)
    return _estimate(numbers, _images(numbers, groups), level, resamples, seed)


def paired_difference(
    a: Values,
    b: Values,
    *,
    groups: Groups | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """How much more `a` has than `b` on the same rows, and whether chance may have made it.

    The p-value is that of a two-sided permutation test: if the two methods are exchangeable,
    swapping their values on an image, in all its rows at once, changes the sign of its difference
    and nothing else. Where there are no more ways to swap than `resamples`, as for 13 images that
    differ, all are counted and p is exact. Else they are drawn, and the observed one counts as one
    of them, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        a: one value a row; a pair where one is None or NaN is left out.
        b: the same rows' values of the other method, in the same unit.
        groups: an id for each row, equal for the rows of one image.
        level: the coverage wanted.
        resamples: how many times images are drawn, and how many swaps at most.
        seed: of what is drawn.

    Raises:
        UsageError: as for `mean_interval`, or `a` and `b` differ in length.
    """
    _check(level, resamples, seed)
    first, second = _numbers(a), _numbers(b)
    if first.shape != second.shape:
        raise UsageError(f"{len(first)} and {len(second)} values make no pairs: give equally many")
    differences = first - second
    images = _images(differences, groups)
    found = _estimate(differences, images, level, resamples, seed)
    # A stream of its own, or the swaps would follow the draws of the interval.
    p = _sign_flips(images, resamples, default_rng([seed, 1])) if found.count else None
    return Paired(**vars(found), p=p)


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """P-values of several comparisons, each corrected for there being others (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none falls below a smaller one's: what
    is then below α is wrong anywhere with a probability of at most α, however the comparisons
    depend on each other. A comparison without a p-value (None) keeps none and does not count.

    Raises:
        UsageError: a p-value is not in 0 … 1.
    """
    known = [(p, i) for i, p in enumerate(pvalues) if p is not None]
    if not all(0 <= p <= 1 for p, _ in known):
        raise UsageError(f"p-values lie in 0 … 1, not as {list(pvalues)!r}")
    corrected: list[float | None] = [None] * len(pvalues)
    least = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[i] = least
    return corrected


@dataclass(frozen=True)
class _Images:
    """The distinct images, in an order of their own: what is drawn must not depend on the rows'.

    Attributes:
        sums: `[k]`, of an image's values.
        rows: `[k]`, how many values those are.
        counts: `[k]`, how many images are so.
    """

    sums: Floats
    rows: Integers
    counts: Integers

    @property
    def number(self) -> int:
        """How many images there are."""
        return int(self.counts.sum())


def _estimate(values: Floats, images: _Images, level: float, resamples: int, seed: int) -> Estimate:
    there = np.sort(values[~np.isnan(values)])
    low = high = mean = None
    if len(there):
        least, most = float(there[0]), float(there[-1])
        # A sum that is rounded once is the same in any order; n times a value over n may miss it.
        mean = min(max(math.fsum(there) / len(there), least), most)
    if len(there) and images.number > 1:
        means = _resampled(images, resamples, default_rng(seed)).clip(least, most)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Estimate(mean, low, high, len(there), len(values) - len(there), images.number)


def _images(values: Floats, groups: Groups | None) -> _Images:
    ids = np.arange(len(values)) if groups is None else _numbered(groups)
    if len(ids) != len(values):
        raise UsageError(f"{len(ids)} groups for {len(values)} values: give each value its group")
    there = np.flatnonzero(~np.isnan(values))
    there = there[np.lexsort((values[there], ids[there]))]  # added in order of size
    rows = np.bincount(ids[there])
    sums = np.bincount(ids[there], weights=values[there])
    pairs = np.stack([sums, rows], axis=1, dtype=np.float64)[rows > 0]
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    return _Images(distinct[:, 0], distinct[:, 1].astype(np.int64), counts.astype(np.int64))


def _resampled(images: _Images, resamples: int, rng: Generator) -> Floats:
    """The mean over the rows of as many images drawn with replacement, `[resamples]`."""
    number, kinds = images.number, len(images.counts)
    if _FEW * kinds <= number:
        share = images.counts / number
        drawn = (rng.multinomial(number, share, n) for n in _pieces(resamples, kinds))
        # Not as a matrix product, whose rounding depends on how many cores share it.
        ratios = ((d * images.sums).sum(axis=1) / (d * images.rows).sum(axis=1) for d in drawn)
        return np.concatenate([*ratios])
    sums, rows = np.repeat(images.sums, images.counts), np.repeat(images.rows, images.counts)
    places = (rng.integers(0, number, (n, number)) for n in _pieces(resamples, number))
    if (rows == rows[0]).all():  # as without groups: only half is to be looked up
        return np.concatenate([sums.take(p).mean(axis=1) / rows[0] for p in places])
    return np.concatenate([sums.take(p).sum(axis=1) / rows.take(p).sum(axis=1) for p in places])


def _sign_flips(images: _Images, resamples: int, rng: Generator) -> float:
    """The two-sided p-value of the sum of all values, where each image's sign is a coin's toss."""
    sums = np.repeat(images.sums, images.counts)
    sizes = np.abs(sums[sums != 0])  # a zero has no sign to toss
    least = abs(float(sums.sum())) - _ROUNDING * float(sizes.sum())
    if len(sizes) < 63 and 2 ** len(sizes) <= resamples:
        signs = 1 - 2 * (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1)
        return float((np.abs((signs * sizes).sum(axis=1)) >= least).mean())
    as_far = sum(
        int((np.abs(sizes.sum() - 2 * heads) >= least).sum())
        for heads in _heads(sizes, resamples, rng)
    )
    return (as_far + 1) / (resamples + 1)


def _heads(sizes: Floats, times: int, rng: Generator) -> Iterator[Floats]:
    """The sum of those sizes whose coin shows heads, `times` over, in pieces.

    A random byte tosses eight coins at once: what each byte would give is looked up.
    """
    eights = np.zeros((-(-len(sizes) // 8), 8))
    eights.flat[: len(sizes)] = sizes
    coins = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    table = (eights @ coins.T).reshape(-1)
    starts = 256 * np.arange(len(eights))
    for number in _pieces(times, len(eights)):
        tossed = rng.integers(0, 256, (number, len(eights)), np.uint8)
        yield table.take(starts + tossed).sum(axis=1)


def _pieces(times: int, numbers: int) -> Iterator[int]:
    """How often to draw so many numbers at once, until they have been drawn `times`."""
    step = max(1, _PIECE // numbers)
    for start in range(0, times, step):
        yield min(step, times - start)


def _numbered(groups: Groups) -> Integers:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in groups], np.int64)


def _numbers(values: Values) -> Floats:
    try:
        numbers: Floats = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a measure has numbers, or None where there is none: {error}") from error
    if numbers.ndim != 1 or np.isinf(numbers).any():
        raise UsageError("a measure is one finite number a row, or None where there is none")
    return numbers


def _check(level: float, resamples: int, seed: int) -> None:
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval lies between 0 and 1, not at {level!r}")
    if resamples < 1:
        raise UsageError(f"at least 1 resample is needed, not {resamples!r}")
    if seed < 0:
        raise UsageError(f"a seed is a whole number from 0 on, not {seed!r}")
