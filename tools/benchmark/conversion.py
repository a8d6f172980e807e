"""Times the conversion of one network: a process for bench.py, which prints a line of JSON."""

from __future__ import annotations

import json
import sys

import click

import onnx_clrp
from benchmark.networks import build, to_onnx
from benchmark.settings import Settings
from benchmark.timing import seconds


@click.command()
@click.argument("name")
@click.argument("settings", type=Settings.from_json)
def main(name: str, settings: Settings) -> None:
    """Convert the classifier NAME over and over, from memory to memory."""
    net, pictures = build(name, settings.size, 1)
    model = to_onnx(net, pictures, settings.exporter)
    found = [
        seconds(lambda: onnx_clrp.convert(model, method=settings.method))
        for _ in range(settings.rounds)
    ]
    row = {"model": name, "nodes": len(model.graph.node), "seconds": found}
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
