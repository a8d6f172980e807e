"""Measures `explain` over a folder: how near it comes to the speed of its session alone.

Both work on the same pictures in the same batches, in turn, so that whatever else the machine does
falls on both. What is timed of `explain` is all that follows once the model is converted: decoding,
explaining, drawing, and the start of the processes that draw.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from onnx_clrp import Explainer, Preprocessing
from onnx_clrp.cli.explain import AT_ONCE, explained
from onnx_clrp.cli.job import Job
from onnx_clrp.cli.outcome import Wanted
from onnx_clrp.cli.pictures import files
from onnx_clrp.image import PRESETS
from onnx_clrp.sessions import limit_threads


def alone(explainer: Explainer, batches: list[NDArray[Any]]) -> float:
    """The seconds that the session takes for pictures that are decoded, with nothing drawn."""
    start = time.perf_counter()
    for batch in batches:
        explainer.explain(batch)
    return time.perf_counter() - start


def whole(explainer: Explainer, preprocessing: Preprocessing, paths: list[Path]) -> float:
    """The seconds that `explain` takes for files."""
    job = Job([explainer], preprocessing, None, {}, explainer.labels)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        explained(job, Wanted(Path(folder), arrays=False, sheet=False), paths)
        return time.perf_counter() - start


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--method", default="clrp2", show_default=True)
@click.option("--preset", default="imagenet", show_default=True, type=click.Choice([*PRESETS]))
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--threads",
    default=0,
    show_default=True,
    help="Of the session; 0 for a thread a core, which leaves none for what is round it.",
)
@click.option("--pictures", default=64, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
def main(
    model: Path,
    folder: Path,
    method: str,
    preset: str,
    device: str,
    threads: int,
    pictures: int,
    rounds: int,
) -> None:
    """Explain the first PICTURES of FOLDER by MODEL, with and without all that is round it."""
    limit_threads(threads)
    prepared = Preprocessing.preset(preset)
    explainer = Explainer(model, device=device, method=method, preprocessing=prepared)
    bound = explainer.preprocessing
    paths = files([folder])[0][:pictures]
    seen = [bound.picture(path) for path in paths]
    starts = range(0, len(seen), AT_ONCE)
    batches = [bound.batch(seen[start : start + AT_ONCE]) for start in starts]
    alone(explainer, batches[:1])
    times = np.array(
        [(alone(explainer, batches), whole(explainer, bound, paths)) for _ in range(rounds)]
    )
    session, command = len(paths) / np.median(times, axis=0)
    ratio = median(times[:, 0] / times[:, 1])
    sys.stdout.write(
        f"{model.name}, {method}, {len(paths)} pictures on {explainer.device}:"
        f" session {session:.2f}/s, explain {command:.2f}/s, ratio {ratio:.3f}\n"
    )


if __name__ == "__main__":
    main()
