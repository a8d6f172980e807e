"""Times taken in turn: whatever else a machine does then falls on all contestants alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import mean

from onnx_clrp.sessions import allow_tf32

_FEWEST_ROUNDS = 3
"""So many of the rounds that are asked for take place however long they take."""

_REST = 0.05
"""Seconds before each turn, in which the threads of the one before cease to look for work."""

Work = Callable[[], object]


def in_turn(
    contestants: Mapping[str, Work],
    rounds: int,
    limit: float = float("inf"),
    least: float = 0.2,
) -> dict[str, list[float]]:
    """The seconds of every contestant in every round; none begins later than `limit` seconds.

    Each runs for `least` seconds in a round, over and over if need be. The mean counts and not the
    median: what disturbs a long run must not be left out of short ones.
    """
    repeats = {}
    for name, work in contestants.items():
        work()  # the first time memory is asked for, and much is looked up
        repeats[name] = max(1, round(least / seconds(work)))
    found: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - start > limit:
            break
        for name, work in contestants.items():
            time.sleep(_REST)
            found[name].append(mean(seconds(work) for _ in range(repeats[name])))
    return found


def seconds(work: Work) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def tf32() -> Iterator[None]:
    """In which sessions are opened that may multiply in TF32."""
    allow_tf32()
    try:
        yield
    finally:
        allow_tf32(False)
