"""ONNX Runtime, imported late: its sessions and the devices that they really run on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray

from onnx_clrp.errors import ClrpError, DeviceError, MemoryShortageError, ModelError, UsageError
from onnx_clrp.external import references, seen_from
from onnx_clrp.lowering import lowered
from onnx_clrp.model import first_line, fits, save, serialised

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_CUDA = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
"""On an H200 an exhaustive search finds nothing faster; no search may be four times slower. TF32
moves the contrast of some networks by a tenth and more."""

_NO_CUDA = "ONNX Runtime could not use CUDA: is there a GPU, with CUDA 13?"

_SHORTAGE = ("allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
"""What ONNX Runtime's allocators, CUDA, its libraries and C++ say when there is no memory left."""

_FOLDER = "session.model_external_initializers_file_folder_path"
_KNOWS_FOLDERS = (1, 21)
"""The version of ONNX Runtime from which it knows that entry."""


libraries: list[str] = []
"""Libraries of operators that sessions are to know."""

_threads = 0
_profile = ""
_entries: dict[str, str] = {}
"""What sessions are configured with beside that."""


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


def custom_operators(library: str | os.PathLike[str]) -> None:
    """Load a library of operators of your own into every session from now on.

    Args:
        library: the path of a library built against ONNX Runtime's custom operator API. It is
            native code, and runs with all rights of the process.

    Raises:
        UsageError: there is no such file.
    """
    path = os.path.abspath(library)
    if not os.path.isfile(path):
        raise UsageError(f"{os.fspath(library)}: no library of operators of that name")
    if path not in libraries:
        libraries.append(path)


def limit_threads(number: int) -> None:
    """Let each session that is opened from now on use so many threads; 0 for every core.

    For processes that share a machine, of which each would take all of it.
    """
    global _threads
    _threads = number


def flush_denormals() -> None:
    """Let sessions that are opened from now on take numbers below float32's normal ones for zero.

    For measurements, since processors are slow with such numbers. It is not the default: with the
    first session of a process it holds for the thread that opens it too, and all that it does.
    """
    _entries["session.set_denormal_as_zero"] = "1"


def profile(prefix: str | os.PathLike[str]) -> None:
    """Let sessions that are opened from now on note which node ran where, and how long.

    Args:
        prefix: what the names of their files begin with, as `session.end_profiling()` gives them;
            empty for none.
    """
    global _profile
    _profile = os.fspath(prefix)


def allow_tf32(allowed: bool = True) -> None:
    """Let sessions that are opened from now on multiply in TF32, which has 10 bits, on CUDA.

    To measure what that does to maps. It is not the default for what it does.
    """
    _CUDA["use_tf32"] = str(int(allowed))


def cuda_options(*, graphs: bool = False) -> dict[str, str]:
    """The options of the CUDA provider; with graphs, for runs that are captured and replayed."""
    return {**_CUDA, **({"enable_cuda_graph": "1"} if graphs else {})}


class Opened(NamedTuple):
    """A session, and the device that it really runs on.

    Attributes:
        session: ONNX Runtime's.
        device: `"cpu"` or `"cuda"`.
        stays: why the model had to stay in an opset of which CUDA lacks operators, if it had to.
    """

    session: Any
    device: str
    stays: str | None = None


def open_session(
    model: onnx.ModelProto, device: str = "auto", *, cuda_graph: bool = False
) -> Opened:
    """A session for the model.

    Args:
        model: the model. On CUDA it runs in an older opset, where that means the same.
        device: `"cpu"`, `"cuda"`, or `"auto"` for CUDA where it is there.
        cuda_graph: may runs be captured as CUDA graphs? On CUDA alone.

    Raises:
        DeviceError: the device is not there, or unknown, or knows no CUDA graphs.
        ModelError: ONNX Runtime cannot load the model.
    """
    ort = onnxruntime()
    if not _wants_cuda(ort.get_available_providers(), device, cuda_graph):
        return Opened(_session(ort, model, [_PROVIDERS["cpu"]]), "cpu")
    _preload(ort)
    made, stays = lowered(model)
    cuda = (_PROVIDERS["cuda"], cuda_options(graphs=cuda_graph))
    try:
        session = _session(ort, made, [cuda, _PROVIDERS["cpu"]])
        if session.get_providers()[0] == cuda[0]:
            return Opened(session, "cuda", stays)
        raise DeviceError(_NO_CUDA)
    except DeviceError:
        if device == "cuda" or cuda_graph:
            raise
    return Opened(_session(ort, model, [_PROVIDERS["cpu"]]), "cpu")


def _session(ort: Any, model: onnx.ModelProto, providers: Sequence[Any]) -> Any:
    try:
        return _load(ort, model, _options(ort), providers)
    except ClrpError:
        raise
    except Exception as error:  # the runtime's own exceptions share no base class
        if isinstance(error, RuntimeError) and len(providers) > 1:  # which none of them is
            raise DeviceError(f"{_NO_CUDA} ({first_line(error)})") from error
        raise ModelError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


@cache
def _preload(ort: Any) -> None:
    """Find the libraries that came with onnxruntime-gpu.

    What it prints of those that it misses is no part of what a program here prints.
    """
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(sys.stderr):
            ort.preload_dlls()


def _options(ort: Any) -> Any:
    """The options of every session."""
    options = ort.SessionOptions()
    _share_arena(ort)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 4  # what it would print comes as an exception too
    options.intra_op_num_threads = _threads
    for key, value in _entries.items():
        options.add_session_config_entry(key, value)
    options.enable_profiling = bool(_profile)
    options.profile_file_prefix = _profile or options.profile_file_prefix
    for library in libraries:
        options.register_custom_ops_library(library)
    return options


def _wants_cuda(there: Sequence[str], device: str, cuda_graph: bool) -> bool:
    """Is CUDA asked for, or taken since it is there?"""
    if device not in ("auto", *_PROVIDERS):
        raise DeviceError(f"unknown device {device!r}: choose from auto, {', '.join(_PROVIDERS)}")
    wanted = device != "cpu" and _PROVIDERS["cuda"] in there
    if device == "cuda" and not wanted:
        raise DeviceError('no CUDA here: install "onnx-clrp[gpu]" in place of "onnx-clrp[cpu]"')
    if cuda_graph and not wanted:
        raise DeviceError("CUDA graphs need CUDA: leave out cuda_graph, or take device='cuda'")
    return wanted


@cache
def _share_arena(ort: Any) -> None:
    """Let all sessions of ours take their memory from one arena.

    An arena gives nothing back. With one for each session, those of many methods, which run one
    after the other, would hold as much as all of them need at their worst.
    """
    place = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(place, None)


def _load(ort: Any, model: onnx.ModelProto, options: Any, providers: Sequence[Any]) -> Any:
    """A session that reads weights from their files; those of a huge model get one for a while."""
    # By itself it would print that a provider failed, and take the next.
    opened = partial(
        ort.InferenceSession, sess_options=options, providers=providers, enable_fallback=False
    )
    found = references(model)
    _check_memory(sum(place.length for place in found))
    if found:
        _check_version(ort.__version__)
        folder = Path(os.path.commonpath([place.file.parent for place in found]))
        options.add_session_config_entry(_FOLDER, str(folder))
        return opened(serialised(seen_from(model, folder)))
    if fits(model):
        return opened(serialised(model))
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        path = Path(temporary) / "model.onnx"
        save(model, path)
        return opened(path)


def _check_version(version: str) -> None:
    """Earlier ones look for the files where the process was started, and may find others there."""
    if tuple(map(int, version.split(".")[:2])) < _KNOWS_FOLDERS:
        raise ModelError(f"weights in files of their own need ONNX Runtime 1.21, not {version}")


def _check_memory(needed: int) -> None:
    """A file can claim more than its size on the disk, and so more than there is memory."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ModelError(
            f"the model's weights take {needed / 2**30:.1f} GiB, this machine has"
            f" {there / 2**30:.1f} GiB of memory"
        )


def run_options() -> Any:
    """The options of a run: what it would print comes as an exception."""
    options = onnxruntime().RunOptions()
    options.log_severity_level = 4
    options.only_execute_path_to_fetches = True
    return options


@contextmanager
def failures() -> Iterator[None]:
    """ONNX Runtime's exceptions as ours, which are one clear line.

    Raises:
        MemoryShortageError: there is not enough memory.
        ModelError: the model cannot be run.
    """
    try:
        yield
    except Exception as error:  # as above
        reason = first_line(error)
        if any(sign in str(error) for sign in _SHORTAGE):
            raise MemoryShortageError(f"not enough memory to run the model: {reason}") from error
        raise ModelError(f"ONNX Runtime cannot run the model: {reason}") from error


def run(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
    """The values of some outputs.

    Raises:
        ModelError: the model cannot be run.
    """
    with failures():
        values: list[NDArray[Any]] = session.run(list(names), dict(feeds), run_options())
    return values
