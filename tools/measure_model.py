"""Measures the explainers of one of torchvision's classifiers; started by model_table.py.

Needs tests/ on PYTHONPATH: the reference is that of the tests, which shares no code with the
package. Prints a line of JSON for each exporter.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch
from networks_support import EXPORTERS, Case, Subject, distance, run
from reference.networks import BOUNDS, make, photographs

from onnx_clrp.comparison import Comparison
from onnx_clrp.model import save

_ROUNDS = 5
"""Explanations and forward passes that are timed in turn; the median of their ratios counts."""


def measured(subject: Subject, exporter: str) -> dict[str, Any]:
    """What is told of one export."""
    model = subject.model(exporter)
    made = subject.explainer(exporter, "clrp2", "default")
    out = run(made, subject.pictures, subject.targets)
    reference = subject.reference("clrp2", "default", out.winners)
    books = Comparison(model, "cpu", subject.pictures, {}, {"input_range": BOUNDS}).keep_books()
    entries = books.books.entries(books.sums, books.sums["logit"])
    absorbed = sum(entry.absorbed for entry in entries)
    return {
        "nodes": len(model.graph.node),
        "operators": len({(node.domain, node.op_type) for node in model.graph.node}),
        "absorbed": absorbed,
        "conservation": abs(books.sums["input"] / books.sums["logit"] + absorbed - 1),
        "open_node": max(abs(entry.leaks) for entry in entries),
        "relevance": distance(out.maps["relevance_concept"], reference.concept),
        "contrast": distance(out.maps["relevance"], reference.relevance),
        "ratio": _ratio(model, made, subject),
    }


def _ratio(model: onnx.ModelProto, made: onnx.ModelProto, subject: Subject) -> float:
    """The time of an explanation over that of a forward pass, both in turn, on one thread."""
    forward, explainer = _session(model), _session(made)
    feeds = {"x": subject.pictures}
    asked = {**feeds, "target": subject.targets}
    alone = onnxruntime.RunOptions()
    alone.only_execute_path_to_fetches = True
    rounds = [
        (
            _seconds(lambda: explainer.run(["relevance"], asked, alone)),
            _seconds(lambda: forward.run([model.graph.output[0].name], feeds)),
        )
        for _ in range(_ROUNDS + 1)
    ]
    return median(explained / passed for explained, passed in rounds[1:])


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:  # by path, since some have more than 2 GiB
        path = Path(folder) / "model.onnx"
        save(model, path)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.argument("name")
@click.argument("size", type=int)
@click.argument("exporters", nargs=-1, type=click.Choice(EXPORTERS))
def main(name: str, size: int, exporters: tuple[str, ...]) -> None:
    """Measure the classifier NAME on a picture of SIZE pixels, as EXPORTERS write it."""
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")  # the exporters warn of their own deprecations
    samples = photographs(4, size, seed=5)
    case = Case(name, lambda: make(name, samples=samples), lambda: samples[:1], targets=1)
    subject = Subject(case)
    parameters = sum(p.numel() for p in subject.net.parameters())
    for exporter in exporters:
        start = time.perf_counter()
        found = measured(subject, exporter)
        del subject.models[exporter]
        seconds = time.perf_counter() - start
        common = {"model": name, "exporter": exporter, "size": size, "parameters": parameters}
        sys.stdout.write(json.dumps({**common, **found, "seconds": seconds}, default=float) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
