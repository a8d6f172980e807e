"""Which node of a model ran on which device, as ONNX Runtime itself notes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from onnx_clrp.sessions import open_session, profile, run

_INTEGERS = frozenset({"int64", "int32", "bool"})


@dataclass(frozen=True)
class Placed:
    """Where the nodes of one run were.

    Attributes:
        nodes: how many ran.
        on_cpu: how many of them on the CPU.
        strays: those among them that are more than arithmetic on shapes, `operator name`.
        copies: the nodes that ONNX Runtime put in to copy tensors from device to device.
    """

    nodes: int
    on_cpu: int
    strays: Sequence[str]
    copies: Sequence[str]


def placed(model: onnx.ModelProto, feeds: Mapping[str, Any], device: str) -> Placed:
    """Run a model once and see where."""
    return summary(profiled(model, [y.name for y in model.graph.output], feeds, device))


def profiled(
    model: onnx.ModelProto,
    outputs: Sequence[str],
    feeds: Mapping[str, Any],
    device: str,
    runs: int = 1,
) -> Any:
    """What ONNX Runtime notes of a session's runs: a list of events."""
    with TemporaryDirectory() as folder:
        profile(Path(folder) / "profile")
        try:
            session = open_session(model, device).session
        finally:
            profile("")
        for _ in range(runs):
            run(session, outputs, feeds)
        return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))


def summary(events: Sequence[Mapping[str, Any]]) -> Placed:
    """What a profile says of a single run."""
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    copies = [e for e in nodes if e["args"]["op_name"].startswith("Memcpy")]
    on_cpu = [e for e in nodes if e["args"]["provider"] == "CPUExecutionProvider"]
    return Placed(
        len(nodes),
        len(on_cpu),
        [_called(e) for e in on_cpu if not _types(e) <= _INTEGERS],
        [_called(e) for e in copies],
    )


def _called(event: Mapping[str, Any]) -> str:
    return f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"


def _types(event: Mapping[str, Any]) -> set[str]:
    shapes = (event["args"].get(f"{end}_type_shape", ()) for end in ("input", "output"))
    return {name for ends in shapes for entry in ends for name in entry}
