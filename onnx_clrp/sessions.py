"""ONNX Runtime, imported late: its sessions and the devices that they really run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from onnx_clrp.errors import ClrpError, DeviceError, ModelError
from onnx_clrp.model import first_line

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_CUDA = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
"""TF32 moves relevance by 2e-3, more than the whole contrast of some networks."""


def onnxruntime() -> Any:
    """The module onnxruntime, imported late.

    Raises:
        ClrpError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ClrpError(
            'ONNX Runtime is missing: pip install "onnx-clrp[cpu]", or "onnx-clrp[gpu]" for CUDA'
        ) from error
    return onnxruntime


def open_session(model: onnx.ModelProto, device: str = "auto") -> tuple[Any, str]:
    """A session for the model, and the device that it really runs on.

    Raises:
        DeviceError: the device is not there, or unknown.
        ModelError: ONNX Runtime cannot load the model.
    """
    if device not in ("auto", *_PROVIDERS):
        raise DeviceError(f"unknown device {device!r}: choose from auto, {', '.join(_PROVIDERS)}")
    ort = onnxruntime()
    there = ort.get_available_providers()
    if device == "cuda" and _PROVIDERS["cuda"] not in there:
        raise DeviceError('no CUDA here: install "onnx-clrp[gpu]" in place of "onnx-clrp[cpu]"')
    wants_cuda = device != "cpu" and _PROVIDERS["cuda"] in there
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it would print comes as an exception too
    if wants_cuda and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    providers = [(_PROVIDERS["cuda"], _CUDA)] if wants_cuda else []
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[*providers, _PROVIDERS["cpu"]]
        )
    except Exception as error:  # the runtime's own exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
    got = "cuda" if session.get_providers()[0] == _PROVIDERS["cuda"] else "cpu"
    if device == "cuda" and got != "cuda":
        raise DeviceError("ONNX Runtime could not use CUDA: is there a GPU, with CUDA 13?")
    return session, got


def run(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
    """The values of some outputs.

    Raises:
        ModelError: the model cannot be run.
    """
    options = onnxruntime().RunOptions()
    options.log_severity_level = 4
    options.only_execute_path_to_fetches = True
    try:
        values: list[NDArray[Any]] = session.run(list(names), dict(feeds), options)
    except Exception as error:  # as above
        raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error
    return values
