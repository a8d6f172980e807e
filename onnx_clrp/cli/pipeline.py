"""Stages that overlap: work is begun ahead of its turn, elsewhere, and comes back in order."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

from onnx_clrp.cli import stop
from onnx_clrp.errors import ClrpError

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound=Executor)

Work = Callable[[], None]
"""Something to do, or to wait for."""

_THREADS = 4
"""Threads at most; of those that decode, each may hold a photograph of full size."""

_PROCESSES = 8
"""Processes at most, of about a hundred megabytes each."""

_ENDED = "a process that draws was ended from outside: is there enough memory?"


def ahead(items: Iterable[T], begin: Callable[[T], R], most: int) -> Iterator[tuple[T, R]]:
    """Each item with what `begin` gave for it, in order; at most so many are begun and not taken.

    Where an error ends the items, those before it come first, as if nothing overlapped.
    """
    begun: deque[tuple[T, R]] = deque()
    try:
        for item in items:
            begun.append((item, begin(item)))
            if len(begun) == most:
                yield begun.popleft()
    except Exception:
        yield from begun
        raise
    yield from begun


@contextmanager
def threads() -> Iterator[Executor]:
    """Threads, for work that leaves Python's lock to others, as decoding does."""
    with _ended(ThreadPoolExecutor(min(_THREADS, _cores()), "decode")) as pool:
        yield pool


@contextmanager
def processes() -> Iterator[Callable[[Work], Work]]:
    """Processes, for work that holds Python's lock, as drawing does: threads would do it in turn.

    Yields:
        How work is begun; what that gives waits for the end of it, and raises what it raised.

    Raises:
        ClrpError: one of them was ended from outside.
    """
    # One core is left to whoever hands them work. Spawned, since a fork would copy locks that
    # the threads of a session hold.
    number = max(1, min(_PROCESSES, _cores() - 1))
    try:
        with _ended(ProcessPoolExecutor(number, get_context("spawn"), _settle)) as pool:
            with _no_interrupts():  # that they inherit
                for _ in range(number):  # all start now, and are there when they are needed
                    pool.submit(int)
            yield lambda work: pool.submit(_done, work).result
    except BrokenExecutor as error:
        raise ClrpError(_ENDED) from error


def in_turn(work: Work) -> Work:
    """Work that is begun no sooner than somebody waits for it."""
    return work


@contextmanager
def _ended(pool: P) -> Iterator[P]:
    """A pool that ends with the block: what has begun is finished, and no more is begun."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Nothing happens at Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _settle() -> None:
    """Make a new process one that ends when it is told to, and with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of them
    signal.signal(signal.SIGTERM, stop)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _done(work: Work) -> None:
    """Do the work; a process that is told to end meanwhile leaves no half-written file."""
    try:
        work()
    except SystemExit:  # the pool would hand it on, and keep the process
        os._exit(1)


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
