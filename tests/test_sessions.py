"""ONNX Runtime's sessions, as the package opens them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
import onnx
from onnx_clrp import sessions

text = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) {{ y = Mul (x, x) }}'
if {flush}:
    sessions.flush_denormals()
session, _ = sessions.open_session(onnx.parser.parse_model(text), "cpu")
(y,) = sessions.run(session, ["y"], {{"x": np.array([1, 1e-20], np.float32)}})
print(y[0] == 1, y[1].tobytes() != bytes(4))
"""


@pytest.mark.parametrize("flush", [False, True])
def test_denormals_are_kept_unless_they_are_to_be_flushed(flush: bool) -> None:
    """In a process, since the first session there decides it for the thread."""
    program = PROGRAM.format(flush=flush)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", str(not flush)], done.stderr
