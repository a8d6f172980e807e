"""Measurements in processes of their own, so that memory is given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

OUT_OF_TIME = "out of time"
"""Why a process has failed that was stopped."""


def json_rows(
    words: Sequence[str], folders: Iterable[Path], seconds: float | None = None
) -> tuple[list[Row], str | None]:
    """What a Python process prints as JSON, a row each line, and why it has failed, if it has.

    Args:
        words: what follows the name of the interpreter.
        folders: where it finds modules.
        seconds: it is stopped after so many; what it has printed by then counts.
    """
    try:
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": _path(folders)},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as stopped:
        said = stopped.stdout or b""
        return _rows(said.decode() if isinstance(said, bytes) else said), OUT_OF_TIME
    rows = _rows(done.stdout)
    if not done.returncode:
        return rows, None
    if done.returncode == -signal.SIGKILL:  # a system that runs short of memory sends no other
        return rows, "it was killed, as what needs more memory than the machine has is"
    if done.returncode < 0:
        return rows, f"it was ended by {signal.Signals(-done.returncode).name}"
    return rows, (done.stderr.strip().splitlines() or ["failed without a word"])[-1]


def _path(folders: Iterable[Path]) -> str:
    """The folders, and behind them those that this process was told of."""
    told = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([told] if told else [])])


def _rows(said: str) -> list[Row]:
    """The lines of JSON that are complete."""
    return [json.loads(line) for line in said.splitlines() if line[:1] == "{" and line[-1:] == "}"]
