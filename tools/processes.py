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


def json_rows(words: Sequence[str], folders: Iterable[Path]) -> tuple[list[Row], str | None]:
    """What a Python process prints as JSON, a row each line, and why it has failed, if it has.

    Args:
        words: what follows the name of the interpreter.
        folders: where it finds modules.
    """
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not done.returncode:
        return rows, None
    if done.returncode < 0:  # by a signal
        return rows, "it needs more memory than the machine has"
    return rows, (done.stderr.strip().splitlines() or ["failed without a word"])[-1]
