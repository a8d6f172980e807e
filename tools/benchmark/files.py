"""Measures a model's file beside its explainer's: processes for bench.py that print JSON.

PyTorch is not imported here, so that its memory is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmark.settings import Settings
from benchmark.timing import in_turn
from onnx_clrp import Explainer
from onnx_clrp.sessions import limit_threads

Run = Callable[[NDArray[np.float32], int], object]


def session(path: Path, threads: int) -> Any:
    """A file as ONNX Runtime opens it by itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def forward(folder: Path, threads: int) -> Run:
    """The model."""
    opened = session(folder / "model.onnx", threads)
    scores = [opened.get_outputs()[0].name]
    return lambda pictures, _targets: opened.run(scores, {"x": pictures})


def explain(folder: Path, threads: int) -> Run:
    """The explainer."""
    opened = session(folder / "explainer.onnx", threads)
    return lambda pictures, targets: opened.run(
        ["relevance"], {"x": pictures, "target": np.tile(np.arange(targets), (len(pictures), 1))}
    )


def package(folder: Path, threads: int) -> Run:
    """The explainer as the package opens it, with what it checks."""
    limit_threads(threads)
    explainer = Explainer(folder / "explainer.onnx", device="cpu")
    return lambda pictures, targets: explainer.explain(pictures, list(range(targets)))


OPENED = {"forward": forward, "explain": explain, "package": package}


def peak() -> int:
    """The most bytes that this process has held in memory so far."""
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # getrusage begins there with the peak of the process that started this one
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory(folder: Path, threads: int, what: str, batch: int, targets: int) -> dict[str, str | int]:
    """The peaks of opening and of running, less what the imports have taken."""
    pictures = np.load(folder / "pictures.npy")[:batch]
    before = peak()
    work = OPENED[what](folder, threads)
    opened = peak()
    work(pictures, targets)
    return {"what": what, "opening": opened - before, "running": peak() - before}


@click.group()
def main() -> None:
    """Measure the files in a folder, as speed.py has left them."""


@main.command("memory")
@click.argument("settings", type=Settings.from_json)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("what", type=click.Choice([*OPENED]))
@click.argument("batch", type=int)
@click.argument("targets", type=int)
def _memory(settings: Settings, folder: Path, what: str, batch: int, targets: int) -> None:
    """How much memory it takes to open one of the files and to run it."""
    found = memory(folder, settings.threads, what, batch, targets)
    sys.stdout.write(json.dumps(found) + "\n")


@main.command("loading")
@click.argument("settings", type=Settings.from_json)
@click.argument("folder", type=click.Path(path_type=Path))
def _loading(settings: Settings, folder: Path) -> None:
    """How long it takes to open each of the files."""
    contestants = {n: partial(opened, folder, settings.threads) for n, opened in OPENED.items()}
    found = in_turn(contestants, settings.rounds, settings.seconds)
    sys.stdout.write(json.dumps({"seconds": found}) + "\n")


if __name__ == "__main__":
    main()
