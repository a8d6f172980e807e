"""Measures what an explanation costs beside a forward pass, and writes docs/performance.md.

python tools/bench.py --json performance.json                  # everything, an hour or two
python tools/bench.py --models resnet50 --batches 1 --print-only  # a first look

Nothing else should run meanwhile; where that cannot be, `--threads 1` suffers least.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from benchmark.report import draw, notes, page, tables
from benchmark.settings import Settings
from processes import Row, json_rows
from rich.console import Console
from rich.progress import track

from onnx_clrp.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"

MODELS = (
    *("alexnet", "vgg16", "googlenet", "resnet50", "densenet121", "squeezenet1_1"),
    *("mobilenet_v2", "efficientnet_b0"),
)
CONVERTED = ("vgg16", "densenet201")

Results = dict[str, Any]


def rows_of(part: str, *arguments: object) -> list[Row]:
    """What a process prints that measures; the last row says why, if it has failed.

    Each has a process of its own, so that memory is given back and its peak is that of one thing.
    """
    words = ["-m", f"benchmark.{part}", *map(str, arguments)]
    rows, failure = json_rows(words, [ROOT, ROOT / "tools", ROOT / "tests"])
    return rows if failure is None else [*rows, {"failed": failure}]


def measured(name: str, settings: Settings) -> dict[str, list[Row]]:
    """The rows of one network, by what they tell of."""
    text = settings.to_json()
    with TemporaryDirectory() as folder:
        found = {"speed": rows_of("speed", name, text, folder)}
        if any("failed" in row for row in found["speed"]):
            return _named(name, found)
        found["spent"] = rows_of("spent", text, folder)
        found["loading"] = rows_of("files", "loading", text, folder)
        found["memory"] = [
            {"batch": n, "targets": k, **row}
            for n in settings.batches
            for k in settings.targets
            for what in ("forward", "explain", "package")
            for row in rows_of("files", "memory", text, folder, what, n, k)
        ]
    return _named(name, found)


def _named(name: str, found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    return {part: [{"model": name, **row} for row in rows] for part, rows in found.items()}


def measure_all(
    models: Sequence[str], conversions: Sequence[str], settings: Settings, file: Path | None
) -> Results:
    """Everything; it is written after each network, so that what is done is not lost."""
    machine = rows_of("machine")[0]
    if "failed" in machine:
        sys.exit(f"bench.py lacks something: {machine['failed']}")
    results: Results = {
        "machine": machine,
        "settings": asdict(settings),
        **{part: [] for part in ("speed", "spent", "loading", "memory", "conversion")},
    }
    for name in track(models, "measuring"):
        for part, rows in measured(name, settings).items():
            results[part] += rows
        _write(results, file)
    for name in track(conversions, "converting"):
        rows = rows_of("conversion", name, settings.to_json())
        results["conversion"] += [{"model": name, **row} for row in rows]
    _write(results, file)
    return results


def _write(results: Results, file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")


def write_page(results: Results, out: Path) -> None:
    """The page, and its picture in the folder of images beside it."""
    picture = out.parent / "images" / f"{out.stem}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(results, picture)
    out.write_text(page(results, picture.relative_to(out.parent)), encoding="utf-8")


def _names(_context: object, _parameter: object, text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(_context: object, _parameter: object, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers") from error


@click.command()
@click.option("--models", default=",".join(MODELS), callback=_names, show_default=True)
@click.option("--batches", default="1,8", callback=_numbers, show_default=True)
@click.option("--targets", default="1,5", callback=_numbers, show_default=True)
@click.option("--method", type=click.Choice([*METHODS]), default="clrp2", show_default=True)
@click.option("--rounds", default=15, show_default=True, help="Everything is timed so often.")
@click.option("--seconds", default=120.0, show_default=True, help="No round begins later.")
@click.option("--threads", default=os.cpu_count(), help="Of ONNX Runtime and PyTorch; all cores.")
@click.option("--size", default=224, show_default=True, help="Pixels of a side.")
@click.option(
    "--exporter", type=click.Choice(["dynamo", "torchscript"]), default="dynamo", show_default=True
)
@click.option("--conversions", default=",".join(CONVERTED), callback=_names, show_default=True)
@click.option("--skip-zennit", is_flag=True)
@click.option("--skip-layerwise", is_flag=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the raw numbers.")
@click.option("--redraw", is_flag=True, help="Read them from there, measure nothing.")
@click.option("--out", type=click.Path(path_type=Path), default=PAGE, show_default=True)
@click.option("--print-only", is_flag=True, help="Print the tables, leave the page as it is.")
def main(
    models: list[str],
    conversions: list[str],
    file: Path | None,
    redraw: bool,
    out: Path,
    print_only: bool,
    skip_zennit: bool,
    skip_layerwise: bool,
    **settings: Any,
) -> None:
    """Measure explanations beside forward passes, and beside zennit and plain PyTorch."""
    skipped = {"zennit": skip_zennit, "layerwise": skip_layerwise}
    settings["skipped"] = [name for name, skip in skipped.items() if skip]
    if not redraw:
        results = measure_all(models, conversions, Settings(**settings), file)
    elif file is not None:
        results = json.loads(file.read_text(encoding="utf-8"))
    else:
        raise click.UsageError("--redraw needs --json FILE")
    for table in tables(results).values():
        Console().print(f"\n{table.markdown()}", markup=False, soft_wrap=True)
    for note in notes(results):
        Console().print(f"\n{note}", markup=False, soft_wrap=True)
    if not print_only:
        write_page(results, out)


if __name__ == "__main__":
    main()
