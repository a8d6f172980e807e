"""Measures every convolutional classifier of torchvision and writes docs/models.md.

python tools/model_table.py --results models.jsonl            # all; those that are done are kept
python tools/model_table.py --results models.jsonl resnet18   # only these
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import torchvision
from processes import Row, json_rows
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
EXPORTERS = ("dynamo", "torchscript")

_TRANSFORMERS = ("vit", "swin", "maxvit")
_SIZE, _LARGER = 64, {"inception_v3": 128, "alexnet": 224, "vgg": 224}
"""Pixels of a side: few, since a float64 reference of every network has to be calculated. Some
families need more: the older exporter knows no adaptive pooling that makes a plane larger."""


def classifiers() -> list[str]:
    """The convolutional classifiers of torchvision, without its transformers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(_TRANSFORMERS)]


def measured(name: str, exporters: Sequence[str]) -> Iterable[Row]:
    """The rows of one classifier, from a process of its own, so that memory is given back."""
    script = str(ROOT / "tools" / "measure_model.py")
    size = str(next((n for family, n in _LARGER.items() if name.startswith(family)), _SIZE))
    rows, failure = json_rows([script, name, size, *exporters], [ROOT / "tests"])
    if failure is not None:
        missing = [e for e in exporters if e not in {row["exporter"] for row in rows}]
        rows += [{"model": name, "exporter": e, "error": failure} for e in missing]
    return rows


def read(results: Path) -> list[Row]:
    """The rows that are measured already."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


HEAD = """# Every convolutional classifier of torchvision

Written by `tools/model_table.py` from runs; see there. Each network has random weights (He et al.
2015) with biases, and scales of both signs in its norms, is exported by both of PyTorch's
exporters, and explains the top class of a picture of {size} × {size} pixels
({others}) in onnxruntime {runtime} on a CPU.

- **R**, **contrast**: ‖out − ref‖ / ‖ref‖ of LRP's relevance and of the signed contrast of CLRP2.
  The reference is calculated in float64 with PyTorch, on the modules and not on the graph
  (`tests/reference`). It takes the winners of max pools from the float32 run. The contrast is a
  difference: where both parts are nearly alike, as in deep networks with random weights, it has
  fewer digits than they have.
- **conservation**: what LRP neither hands on to the picture nor absorbs, as a part of the logit.
- **open**: the same of the single node whose ledger is widest open.
- **absorbed**: what found no receiver on the way down, as a part of the logit.
- **time**: an explanation over a forward pass, measured in turn in one run. The pictures are small,
  so that the number of nodes weighs more than it does at 224 pixels.

"""
COLUMNS = (
    *("model", "exporter", "nodes", "operators", "R", "contrast", "conservation", "open"),
    *("absorbed", "time"),
)


def page(rows: Sequence[Row]) -> str:
    """The page."""
    import onnxruntime

    good = sorted((r for r in rows if "error" not in r), key=_order)
    bad = sorted((r for r in rows if "error" in r), key=_order)
    others = ", ".join(f"{name}: {size}" for name, size in _LARGER.items())
    version = ".".join(onnxruntime.__version__.split(".")[:2])
    lines = [HEAD.format(size=_SIZE, others=others, runtime=version) + _summary(good)]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "--:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in good]
    lines += [f"\n{row['model']} ({row['exporter']}): {row['error']}" for row in bad]
    return "\n".join(lines) + "\n"


def _order(row: Row) -> tuple[str, str]:
    return row["model"], row["exporter"]


def _summary(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    worst = {key: max(row[key] for row in rows) for key in ("relevance", "contrast")}
    closed = {key: max(row[key] for row in rows) for key in ("conservation", "open_node")}
    return (
        f"{len({row['model'] for row in rows})} models, {len(rows)} exports. Widest: R"
        f" {worst['relevance']:.0e}, contrast {worst['contrast']:.0e}, conservation"
        f" {closed['conservation']:.0e}, open node {closed['open_node']:.0e}.\n"
    )


def _cells(row: Row) -> list[str]:
    numbers = (row[key] for key in ("relevance", "contrast", "conservation", "open_node"))
    counts = (str(row["nodes"]), str(row["operators"]))
    shares = (f"{row['absorbed']:.3f}", f"{row['ratio']:.1f} ×")
    return [row["model"], row["exporter"], *counts, *(f"{n:.0e}" for n in numbers), *shares]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), required=True, help="JSON lines.")
@click.option("--exporter", "exporters", multiple=True, default=EXPORTERS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=PAGE, show_default=True)
def main(names: tuple[str, ...], results: Path, exporters: tuple[str, ...], out: Path) -> None:
    """Measure NAMES, or all, those without a result alone; then write the page."""
    done = {(row["model"], row["exporter"]) for row in read(results)}
    wanted = {n: [e for e in exporters if (n, e) not in done] for n in names or classifiers()}
    for name, left in track([pair for pair in wanted.items() if pair[1]], "measuring"):
        with results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in measured(name, left))
    out.write_text(page(read(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
