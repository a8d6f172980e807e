"""Measurements in processes of their own, so that memory is given back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as stopped:
        said = stopped.stdout or b""
        return _rows(said.decode() if isinstance(said, bytes) else said), "out of time"
    rows = _rows(done.stdout)
    if not done.returncode:
        return rows, None
    if done.returncode < 0:  # by a signal
        return rows, "it needs more memory than the machine has"
    return rows, (done.stderr.strip().splitlines() or ["failed without a word"])[-1]


def _rows(said: str) -> list[Row]:
    """The lines of JSON that are complete."""
    return [json.loads(line) for line in said.splitlines() if line[:1] == "{" and line[-1:] == "}"]
