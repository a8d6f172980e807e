"""ONNX Runtime's sessions, as the package opens them."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import onnxruntime
import pytest
from quantised_support import RANGE
from test_cuda_kernels import network

from onnx_clrp import DeviceError, Explainer, sessions

PROGRAM = """
import numpy as np
import onnx
from onnx_clrp import sessions

text = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) {{ y = Mul (x, x) }}'
if {flush}:
    sessions.flush_denormals()
session = sessions.open_session(onnx.parser.parse_model(text), "cpu").session
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


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA on a machine without a GPU, which misses libraries besides."""
    build = ModuleType("onnxruntime")
    build.__dict__.update(vars(onnxruntime))

    def session(*args: Any, providers: list[Any], **options: Any) -> Any:
        if isinstance(providers[0], tuple):
            raise RuntimeError("CUDA failure 100: no CUDA-capable device\nand more")
        return onnxruntime.InferenceSession(*args, providers=providers, **options)

    cpu_and_cuda = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    build.__dict__["get_available_providers"] = lambda: cpu_and_cuda
    build.__dict__["preload_dlls"] = lambda: sys.stdout.write("Failed to load libcudnn\n")
    build.__dict__["InferenceSession"] = session
    monkeypatch.setattr(sessions, "onnxruntime", lambda: build)


def test_without_a_gpu_the_cpu_is_taken_and_nothing_is_printed(
    broken: None, capfd: pytest.CaptureFixture[str]
) -> None:
    explainer = Explainer(network("chain", opset=20), input_range=RANGE)
    assert explainer.device == "cpu"
    assert not any("CUDA" in note for note in explainer.notes)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "Failed to load libcudnn\n")


def test_without_a_gpu_cuda_is_an_error_that_says_why(broken: None) -> None:
    with pytest.raises(DeviceError, match="no CUDA-capable device") as caught:
        Explainer(network("chain"), device="cuda", input_range=RANGE)
    assert "\n" not in str(caught.value)
