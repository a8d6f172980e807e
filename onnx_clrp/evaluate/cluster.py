"""A Ray cluster, that which is there or one for a while, and its silence on the terminal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnx_clrp.errors import ClrpError, UsageError
from onnx_clrp.model import first_line

_SILENT = logging.CRITICAL + 1


def ray() -> Any:
    """The module ray, imported late.

    Raises:
        UsageError: it is not installed.
    """
    try:
        # It prints what becomes of workers to standard output, where results belong; if it is
        # imported already, whoever did so has chosen.
        with _environment("RAY_DEDUP_LOGS_SKIP_REGEX", "."):
            import ray
            import ray.data
            import ray.exceptions
    except ImportError as error:
        raise UsageError("the engine ray needs Ray: pip install 'onnx-clrp[ray]'") from error
    return ray


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to a cluster.

    That which this process is connected to, or else that which Ray finds by itself, by RAY_ADDRESS
    or as `ray start` left it; or else one of this machine alone, which ends with the block.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
        ClrpError: it failed within the block.
    """
    module = ray()
    with _silenced(module), _initialised(module):
        try:
            yield module
        except module.exceptions.RayTaskError:  # a fault of the program's: its traceback is needed
            raise
        except module.exceptions.RayError as error:
            cure = "run again to go on with what is left"
            raise ClrpError(f"the Ray cluster failed: {cure} ({first_line(error)})") from error


@contextmanager
def _initialised(module: Any) -> Iterator[None]:
    if module.is_initialized():
        yield
        return
    _check_address()
    ours = signal.getsignal(signal.SIGTERM)
    try:
        module.init(include_dashboard=False, logging_level=_SILENT, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster can be reached: {first_line(error)}") from error
    finally:
        if ours is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # which Ray has replaced
    try:
        yield
    finally:
        module.shutdown()


def _check_address() -> None:
    """Refuse a cluster that does not answer: Ray would knock for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address}, which RAY_ADDRESS names: {first_line(error)}"
        ) from error


@contextmanager
def _silenced(module: Any) -> Iterator[None]:
    """Neither progress bars nor lines on the terminal; the cluster's files have what there is."""
    context = module.data.DataContext.get_current()
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "ray"]
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    consoles = [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
    loud: list[logging.Handler | logging.Logger] = [logging.getLogger("ray"), *consoles]
    bars, levels = context.enable_progress_bars, [each.level for each in loud]
    context.enable_progress_bars = False
    for each in loud:
        each.setLevel(_SILENT)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for each, level in zip(loud, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def without_stderr() -> Iterator[None]:
    """Drop what is written to standard error past Python's own."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
