"""Where the time of an explanation goes, by ONNX Runtime's own profile: a process for bench.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from benchmark.placed import profiled
from benchmark.settings import Settings
from onnx_clrp.sessions import flush_denormals, limit_threads

_RUNS = 15
"""Each node counts with the fastest of so many: what else a machine does only ever adds."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul"})
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})

KINDS = ("own", "products", "pools", "elementwise", "reorders")
"""What a node of an explainer is part of: the model itself; the convolutions and matrix products of
Z and of the adjoints; the relevance of pools; all that is done element by element; and changes
between the two layouts of tensors, which a convolution and everything else want."""


def kind_of(name: str, operator: str, pools: Sequence[str]) -> str:
    """The kind of a node of an explainer by its name, and by those of the model's pools."""
    if operator in _REORDERS:
        return "reorders"
    _, found, behind = name.partition("relevance/")
    if not found:
        return "own"
    if behind.rpartition("/")[0] in pools:
        return "pools"
    return "products" if operator in _PRODUCTS else "elementwise"


def fastest(events: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The milliseconds of each node at its best, by name and operator."""
    found: dict[tuple[str, str], float] = {}
    for event in events:
        name, kernel, _ = event["name"].rpartition("_kernel_time")
        if event["cat"] == "Node" and kernel:
            node = (name, event["args"]["op_name"])
            found[node] = min(event["dur"] / 1000, found.get(node, float("inf")))
    return found


def spent(folder: Path, batch: int, targets: int) -> dict[str, Any]:
    """The milliseconds of the model alone, and those of each kind in its explainer."""
    pictures = np.load(folder / "pictures.npy")[:batch]
    model, explainer = (onnx.load(folder / f"{name}.onnx") for name in ("model", "explainer"))
    scores = model.graph.output[0].name
    alone = fastest(profiled(model, [scores], {"x": pictures}, "cpu", _RUNS))
    pools = [node.name for node in model.graph.node if "Pool" in node.op_type]
    asked = {"x": pictures, "target": np.tile(np.arange(targets), (batch, 1))}
    found: Counter[str] = Counter(dict.fromkeys(KINDS, 0.0))
    events = profiled(explainer, ["relevance"], asked, "cpu", _RUNS)
    for (name, operator), time in fastest(events).items():
        found[kind_of(name, operator, pools)] += time
    return {"batch": batch, "targets": targets, "forward": sum(alone.values()), **found}


@click.command()
@click.argument("settings", type=Settings.from_json)
@click.argument("folder", type=click.Path(path_type=Path))
def main(settings: Settings, folder: Path) -> None:
    """Profile the files in FOLDER, as speed.py has left them."""
    limit_threads(settings.threads)
    flush_denormals()
    found = spent(folder, settings.batches[0], settings.targets[0])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
