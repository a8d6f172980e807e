"""Intervals and p-values agree with closed forms, with SciPy and with counting by hand."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import astuple
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("scipy")
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.statistics import (
    Estimate,
    Paired,
    holm,
    mean_interval,
    paired_difference,
)

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)

VALUES = st.lists(
    st.integers(-4, 4).map(float) | st.floats(-1e3, 1e3) | st.none() | st.just(math.nan),
    max_size=12,
)
NUMBERS = np.random.default_rng(7)


# --- the mean and its interval -----------------------------------------------------------------


@QUICK
@given(VALUES)
def test_the_mean_is_that_of_what_is_there(values: list[float | None]) -> None:
    there = [Fraction(v) for v in values if v is not None and v == v]
    found = mean_interval(values, resamples=50)
    assert (found.count, found.missing) == (len(there), len(values) - len(there))
    assert found.images == found.count
    if there:
        assert found.mean == pytest.approx(float(sum(there) / len(there)), rel=1e-15, abs=1e-300)
    else:
        assert found.mean is None
    if len(there) < 2:
        assert found.low is found.high is None
    else:
        assert min(there) <= found.low <= found.high <= max(there)


def test_what_is_little_or_all_the_same() -> None:
    assert mean_interval([]) == Estimate(None, None, None, 0, 0, 0)
    assert mean_interval([None, math.nan]) == Estimate(None, None, None, 0, 2, 0)
    assert mean_interval([3, None]) == Estimate(3.0, None, None, 1, 1, 1)
    assert mean_interval([0, 1]) == Estimate(0.5, 0.0, 1.0, 2, 0, 2)
    assert mean_interval([0.1] * 3) == Estimate(0.1, 0.1, 0.1, 3, 0, 3)  # 0.3 / 3 is another
    assert mean_interval([0.1] * 10) == Estimate(0.1, 0.1, 0.1, 10, 0, 10)
    assert mean_interval([0.1] * 9, groups=[0, 0, 0, 1, 1, 2, 2, 2, 2]) == Estimate(
        0.1, 0.1, 0.1, 9, 0, 3
    )
    assert mean_interval(np.ones(1000, np.bool_)) == Estimate(1.0, 1.0, 1.0, 1000, 0, 1000)
    assert mean_interval([1, 2, None], groups=["a", "a", "b"]) == Estimate(1.5, None, None, 2, 1, 1)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("kind", ["hits", "steps", "continuous", "skewed"])
def test_the_interval_is_that_of_scipy(kind: str, level: float) -> None:
    """Two runs of the same bootstrap, but for the noise of 10,000 draws."""
    rng = np.random.default_rng(1)
    values = {
        "hits": rng.random(80) < 0.8,
        "steps": rng.integers(0, 4, 200) / 4,
        "continuous": rng.normal(3, 2, 70),
        "skewed": rng.exponential(1, 40),
    }[kind].astype(np.float64)
    found = mean_interval(values, level=level)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=10_000,
        method="percentile",
        random_state=np.random.default_rng(2),
    ).confidence_interval
    noise = 0.15 * values.std() / math.sqrt(len(values))
    noise += 1.01 / len(values) if kind == "hits" else 0  # to the next number of hits
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.low, abs=noise)
    assert found.high == pytest.approx(theirs.high, abs=noise)


def test_the_interval_of_hits_is_that_of_the_binomial() -> None:
    """A resample of hits has a binomial number of them, whose quantiles are known."""
    values = np.arange(50_000) < 31_000
    found = mean_interval(values)
    exact = stats.binom(50_000, 0.62).ppf([0.025, 0.975]) / 50_000
    assert [found.low, found.high] == pytest.approx(exact.tolist(), abs=2e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for run in range(400):
        found = mean_interval(rng.normal(5, 2, 60), resamples=500, seed=run)
        covered += found.low <= 5 <= found.high
    assert 0.91 < covered / 400 < 0.97


def test_the_interval_narrows_with_the_root_of_the_number() -> None:
    rng = np.random.default_rng(4)
    for number in (100, 10_000):
        found = mean_interval(rng.normal(size=number), resamples=2000)
        assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(number), rel=0.2)


# --- several rows of an image ------------------------------------------------------------------


def test_an_image_that_is_there_twice_is_no_more_evidence() -> None:
    values = NUMBERS.normal(size=90)
    once = mean_interval(values)
    twice = mean_interval(np.repeat(values, 3), groups=np.repeat(np.arange(90), 3))
    assert (twice.count, twice.images) == (270, 90)
    assert [twice.mean, twice.low, twice.high] == pytest.approx([once.mean, once.low, once.high])
    naive = mean_interval(np.repeat(values, 3))
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


@pytest.mark.parametrize("kind", ["continuous", "hits"])
def test_groups_of_any_size_are_drawn_as_by_hand(kind: str) -> None:
    """Every drawn image brings all its rows, and each row counts the same."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(150), rng.integers(1, 4, 150))
    values = rng.normal(size=150)[groups] + rng.normal(size=len(groups))
    if kind == "hits":
        values = (values > 0).astype(np.float64)
    found = mean_interval(values, groups=groups)
    by_image = [values[groups == g] for g in range(150)]
    means = [
        np.concatenate([by_image[i] for i in rng.integers(0, 150, 150)]).mean() for _ in range(4000)
    ]
    noise = 0.1 * float(np.std(means))
    assert found.mean == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=noise)


# --- what the result may depend on -------------------------------------------------------------

ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, -0.0, 1.0, 0.1, 0.3, None]) | st.floats(-1, 1),
        st.sampled_from([0.0, 1.0, 0.2, None]),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=24,
)


@QUICK
@given(ROWS, st.randoms(use_true_random=False), st.booleans())
def test_neither_the_order_nor_names_of_groups_change_a_digit(
    rows: list[tuple[float | None, float | None, int]], random: Any, grouped: bool
) -> None:
    def both(of: Sequence[tuple[float | None, float | None, Any]]) -> tuple[Estimate, Paired]:
        a, b, groups = ([row[i] for row in of] for i in range(3))
        given: dict[str, Any] = {"groups": groups if grouped else None, "resamples": 80}
        return mean_interval(a, **given), paired_difference(a, b, **given)

    shuffled = [(a, b, f"image {9 - group}") for a, b, group in rows]
    random.shuffle(shuffled)
    assert both(shuffled) == both(rows)


def test_large_data_in_another_order_and_the_seed() -> None:
    a, b = NUMBERS.normal(size=(2, 3000))
    groups = NUMBERS.integers(0, 900, 3000)
    order = NUMBERS.permutation(3000)
    found = paired_difference(a, b, groups=groups, resamples=300, seed=3)
    again = paired_difference(a[order], b[order], groups=groups[order], resamples=300, seed=3)
    other = paired_difference(a, b, groups=groups, resamples=300, seed=4)
    assert again == found
    assert other.mean == found.mean
    assert astuple(other) != astuple(found)


def test_the_memory_does_not_grow_with_the_resamples() -> None:
    values = NUMBERS.normal(size=20_000)
    tracemalloc.start()
    try:
        paired_difference(values, values[::-1], resamples=400)
        assert tracemalloc.get_traced_memory()[1] < 24e6  # all at once would take 64 MB
    finally:
        tracemalloc.stop()


# --- paired differences ------------------------------------------------------------------------


def counted(differences: Sequence[float]) -> float:
    """The share of all ways to sign the differences that lead as far, in exact fractions."""
    exact = [Fraction(d).limit_denominator(1000) for d in differences]
    sums = [
        abs(sum(s * d for s, d in zip(signs, exact, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(exact))
    ]
    return sum(s >= abs(sum(exact)) for s in sums) / len(sums)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_p_is_exact_for_few_pairs(pairs: list[tuple[int, int]]) -> None:
    """In tenths, whose sums are rounded: ties must be seen in spite of it."""
    a, b = ([pair[i] / 10 for pair in pairs] for i in (0, 1))
    found = paired_difference(a, b, resamples=256)
    assert found.p == counted([x - y for x, y in zip(a, b, strict=True)])
    assert paired_difference(b, a, resamples=256).p == found.p
    one_sided = mean_interval([x - y for x, y in zip(a, b, strict=True)], resamples=256)
    assert astuple(found)[:6] == astuple(one_sided)


@QUICK
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=14),
)
def test_an_image_is_swapped_as_a_whole(rows: list[tuple[int, int]]) -> None:
    sums = {group: sum(d for d, g in rows if g == group) for _, group in rows}
    found = paired_difference(
        [d for d, _ in rows], [0] * len(rows), groups=[g for _, g in rows], resamples=64
    )
    assert found.p == counted([*sums.values()])
    assert found.images == len(sums)


@pytest.mark.parametrize("number", [14, 60])
@pytest.mark.parametrize("kind", ["continuous", "hits"])
def test_p_is_that_of_scipy(kind: str, number: int) -> None:
    rng = np.random.default_rng(number)
    a, b = rng.normal(0.3, 1, number), rng.normal(0, 1, number)
    if kind == "hits":
        a, b = (a > 0).astype(np.float64), (b > 0.4).astype(np.float64)
    found = paired_difference(a, b)
    theirs = stats.permutation_test(
        (a - b,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        random_state=np.random.default_rng(1),
    )
    assert 0.01 < found.p < 1
    assert found.p == pytest.approx(theirs.pvalue, abs=0.02)


def test_p_of_differences_of_normal_data_is_near_that_of_the_t_test() -> None:
    rng = np.random.default_rng(11)
    a = rng.normal(size=2000)
    b = a + rng.normal(0.04, 1, 2000)
    assert paired_difference(a, b).p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    sure = paired_difference(a, a + 1 + rng.normal(0, 0.1, 2000), resamples=999)
    assert sure.p == 1 / 1000
    assert sure.low < sure.mean < sure.high < 0


def test_p_is_below_alpha_no_more_often_than_alpha_where_nothing_differs() -> None:
    rng = np.random.default_rng(12)
    found = [paired_difference(*rng.normal(size=(2, 25)), resamples=199).p for _ in range(400)]
    for alpha in (0.05, 0.2, 0.5):
        share = np.mean(np.array(found) <= alpha)
        assert share == pytest.approx(alpha, abs=3.5 * math.sqrt(alpha * (1 - alpha) / 400))


def test_pairs_by_hand() -> None:
    found = paired_difference([1, 1, 1, 0, None, 1], [0, 0, 0, 0, 1, None])
    assert (found.mean, found.count, found.missing, found.images) == (0.75, 4, 2, 4)
    assert found.p == 2 / 8
    assert paired_difference([], []) == Paired(None, None, None, 0, 0, 0, p=None)
    assert paired_difference([None], [1]) == Paired(None, None, None, 0, 1, 0, p=None)
    assert paired_difference([2], [1]) == Paired(1.0, None, None, 1, 0, 1, p=1.0)
    assert paired_difference([1, 1], [1, 1]) == Paired(0.0, 0.0, 0.0, 2, 0, 2, p=1.0)
    many = np.ones(50_000)
    assert paired_difference(many, many).p == 1.0
    assert (
        paired_difference(many, [*many[5:], *[0] * 5]).p == 2 / 32
    )  # five say all there is to say


# --- several comparisons -----------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"p-values lie in 0 … 1, not as \[0.5, "):
            holm([0.5, bad])


@QUICK
@given(st.lists(st.floats(0, 1) | st.none(), max_size=8), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_the_stepwise_procedure_rejects(
    pvalues: list[float | None], alpha: float
) -> None:
    left = {i: p for i, p in enumerate(pvalues) if p is not None}
    rejected = set()
    while left:
        least = min(left, key=left.__getitem__)
        if left[least] * len(left) > alpha:
            break
        rejected.add(least)
        del left[least]
    corrected = holm(pvalues)
    assert {i for i, p in enumerate(corrected) if p is not None and p <= alpha} == rejected
    for raw, p in zip(pvalues, corrected, strict=True):
        assert (p is None) == (raw is None)
        assert p is None or raw <= p <= 1


# --- what is refused ---------------------------------------------------------------------------


def test_what_is_no_measure_is_refused() -> None:
    for values, message in (
        ([1, math.inf], "one finite number a row"),
        ([[1.0, 2.0]], "one finite number a row"),
        (["much"], "a measure has numbers, or None"),
        ([1, [2, 3]], "a measure has numbers, or None"),
    ):
        with pytest.raises(UsageError, match=message):
            mean_interval(values)
    with pytest.raises(UsageError, match="3 groups for 2 values"):
        mean_interval([1, 2], groups=[1, 2, 3])
    with pytest.raises(UsageError, match="2 and 1 values make no pairs"):
        paired_difference([1, 2], [1])
    options: list[tuple[dict[str, Any], str]] = [
        *(({"level": level}, "level of an interval") for level in (0, 1, 95, math.nan)),
        ({"resamples": 0}, "at least 1 resample"),
        ({"seed": -1}, "a seed is a whole number"),
    ]
    for option, message in options:
        with pytest.raises(UsageError, match=message):
            mean_interval([1, 2], **option)
        with pytest.raises(UsageError, match=message):
            paired_difference([1, 2], [2, 1], **option)
