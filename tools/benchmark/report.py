"""What was measured as tables, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from matplotlib.figure import Figure

Row = dict[str, Any]
Results = dict[str, Any]

CONTESTANTS = {
    "explain": "explain",
    "logits": "logits",
    "torch": "PyTorch forward",
    "zennit": "zennit",
    "layerwise": "layer by layer",
}
RIVALS = ("zennit", "layerwise")

SPENT = {
    "own": "model",
    "products": "Z and adjoints",
    "pools": "pools",
    "elementwise": "element by element",
    "reorders": "reorders",
}
"""What the kinds of nodes are called."""

SAME = 3e-3
"""Maps that are farther apart are not the same."""

BUSY = 0.5
"""Other processes that make numbers doubtful. PyTorch's threads wait for one another, and lose far
more by a core that is taken than those of ONNX Runtime: ratios do not make up for that."""

NONE = "—"


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """For the page, and for the terminal."""
        lines = [self.head, ["---", *["--:"] * (len(self.head) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ratios(row: Row, name: str, base: str = "forward") -> list[float]:
    """A contestant's time over another's, in each round."""
    pairs = zip(row["seconds"][name], row["seconds"][base], strict=True)
    return [a / b for a, b in pairs]


def timed(results: Results) -> list[Row]:
    """The rows of times, without those of networks that could not be measured."""
    return [row for row in results["speed"] if "failed" not in row]


def tables(results: Results) -> dict[str, Table]:
    """Those of the page, by what they tell of."""
    return {
        "speed": Table(
            ("network", "batch", "targets", "forward", *CONTESTANTS.values(), "zennit / explain"),
            [_speed(row) for row in timed(results)],
        ),
        "spent": Table(
            ("network", *SPENT.values(), "together"),
            [_spent(row) for row in results["spent"] if "failed" not in row],
        ),
        "agreement": Table(
            ("network", "zennit", "in float32", "layer by layer", "in float32"),
            [*_agreements(results)],
        ),
        "memory": Table(
            ("network", "batch", "targets", "model", "explainer", "ratio", "`Explainer`"),
            [*_memory(results)],
        ),
        "loading": Table(
            ("network", "model", "explainer", "ratio", "`Explainer`"),
            [_loading(row) for row in results["loading"] if "failed" not in row],
        ),
        "conversion": Table(
            ("network", "nodes", "seconds"),
            [_conversion(row) for row in results["conversion"] if "failed" not in row],
        ),
    }


def notes(results: Results) -> list[str]:
    """What could not be measured or is in doubt, and why."""
    load = results["machine"]["load"]
    found = []
    if load > BUSY:
        found.append(f"all times: {load:.1f} processes were running when this one began")
    for part in ("speed", "spent", "memory", "loading", "conversion"):
        found += [f"{r['model']}, {part}: {r['failed']}" for r in results[part] if "failed" in r]
    for row in _once_each(timed(results)):
        for name, told in row["agreement"].items():
            who = f"{row['model']}, {CONTESTANTS[name]}"
            if "failed" in told:
                found.append(f"{who}: fails ({told['failed']})")
            elif told["agrees"] > SAME:
                found.append(f"{who}: another map, {told['agrees']:.0e} from the package's")
    return found


def _once_each(rows: Sequence[Row]) -> list[Row]:
    return [*{row["model"]: row for row in rows}.values()]


def _speed(row: Row) -> list[str]:
    where = [row["model"], str(row["batch"]), str(row["targets"])]
    cells = [_against_forward(row, name) for name in CONTESTANTS]
    gain = _spread(ratios(row, "zennit", "explain")) if "zennit" in row["seconds"] else NONE
    return [*where, f"{1000 * median(row['seconds']['forward']):.3g} ms", *cells, gain]


def _against_forward(row: Row, name: str) -> str:
    told = row["agreement"].get(name, {})
    if "failed" in told:
        return "fails"
    if name not in row["seconds"]:
        return NONE
    differs = " (another map)" if told.get("agrees", 0) > SAME else ""
    return _spread(ratios(row, name)) + differs


def _spread(values: Sequence[float]) -> str:
    """The median, and between which the middle half lies."""
    if len(values) < 2:
        return _short(median(values))
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{_short(median(values))} ({_short(low)} … {_short(high)})"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _spent(row: Row) -> list[str]:
    parts = [row[kind] / row["forward"] for kind in SPENT]
    return [row["model"], *(f"{part:.2f}" for part in parts), f"{sum(parts):.2f}"]


def _agreements(results: Results) -> Iterator[list[str]]:
    for row in _once_each(timed(results)):
        told = [row["agreement"].get(name, {}) for name in RIVALS]
        cells = [
            f"{t[key]:.0e}" if key in t else NONE for t in told for key in ("agrees", "float32")
        ]
        yield [row["model"], *cells]


def _memory(results: Results) -> Iterator[list[str]]:
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for row in results["memory"]:
        if "failed" not in row:
            where = (row["model"], str(row["batch"]), str(row["targets"]))
            found.setdefault(where, {})[row["what"]] = row["running"]
    for where, peaks in found.items():
        if peaks.keys() == {"forward", "explain", "package"}:
            model, explainer, package = (f"{size / 2**20:.0f} MiB" for size in peaks.values())
            ratio = f"{peaks['explain'] / peaks['forward']:.1f}"
            yield [*where, model, explainer, ratio, package]


def _loading(row: Row) -> list[str]:
    names = ("forward", "explain", "package")
    model, explainer, package = (f"{median(row['seconds'][name]):.2f} s" for name in names)
    return [row["model"], model, explainer, _spread(ratios(row, "explain")), package]


def _conversion(row: Row) -> list[str]:
    return [row["model"], str(row["nodes"]), f"{median(row['seconds']):.2f} s"]


# -- the page ----------------------------------------------------------------------------------


PAGE = """# What an explanation costs

Written by `tools/bench.py` from runs; see there. {where}

Every network is torchvision's, with random weights that have biases, batch norms calibrated, from
PyTorch's exporter `{exporter}`, and explains by `{method}` the top classes of pictures of {size} ×
{size} pixels. Everything runs in one process on the same number of threads, with denormal numbers
flushed to zero. In each of up to {rounds} rounds every contestant has its turn, one after the
other; a number is the median of the rounds' ratios, and in brackets lies the middle half of them.
{summary}
![{alt}]({picture})

## Times a forward pass

{speed}

- **forward**: the model in ONNX Runtime, in milliseconds. All else is in multiples of it.
- **explain**: `Explainer.explain`, forward pass included. **logits**: `Explainer.logits`.
- **PyTorch forward**: the network in PyTorch, in inference mode.
- **zennit**: the same maps from zennit, with its z⁺, its z^β and its canonizers. It has none for
  DenseNet, MobileNet-v2 and EfficientNet, and no rule that shares sums and means as the package
  does: these were written for the comparison (`tools/benchmark/zennit_lrp.py`). Hooks stay in place
  between runs, and the two passes of a contrast and all targets share one forward pass.
- **layer by layer**: the same maps in plain PyTorch, in two passes, with autograd at each layer and
  the positive weights made beforehand. For chains of layers only.
- **—**: not for this network, or not timed.
{notes}
## Where the time goes

Of an explanation of one picture and one target, by ONNX Runtime's profile, in forward passes, each
node at its best of many runs. The arithmetic of the rule is 1 for the model, and 2 for Z and the
adjoints; 4 where the inputs of linear maps have both signs, as behind SiLU and linear bottlenecks.

{spent}

- **model**: its own nodes.
- **Z and adjoints**: the convolutions and matrix products of the relevance pass. Of the first layer
  there are two of each, for its bounds, and adjoints of steps larger than one are slower than what
  they belong to.
- **pools**: all that the relevance of pools takes.
- **element by element**: products, quotients and sums. They are bound by memory, and weigh the more
  the less the convolutions between them do.
- **reorders**: convolutions lay tensors out in blocks of channels, all else does not. In the model
  alone hardly anything is in between.

## The same maps

‖a − b‖ / ‖b‖ of the signed map of a picture's top class. The first column of each pair compares
the package with the other one in float64, and shows that both calculate the same thing; the second
compares the other one in float32, as it is timed, with itself in float64. Where a contrast is small
beside its two parts, their difference in float32 has few digits left.

{agreement}

## Memory

Peak of a process that opens the file and runs it once, less what the imports take: the model and
the explainer as sessions of ONNX Runtime, and the latter as an `Explainer`, which checks the file.

{memory}

## Opening and converting

The same three, opened:

{loading}

`convert`, from memory to memory:

{conversion}
"""


def page(results: Results, picture: Path) -> str:
    """The page."""
    made = {name: table.markdown() for name, table in tables(results).items()}
    settings = results["settings"]
    told = "".join(f"\n- {note}" for note in notes(results))
    return PAGE.format(
        **made,
        **{key: settings[key] for key in ("exporter", "method", "size", "rounds")},
        where=_where(results),
        summary=_summary(results),
        alt=_ALT,
        picture=picture.as_posix(),
        notes=f"\nNot measured, not the same, or in doubt:\n{told}\n" if told else "",
    )


_ALT = "For each network, how many forward passes an explanation takes in ONNX Runtime and PyTorch."


def _where(results: Results) -> str:
    machine = results["machine"]
    names = ("onnxruntime", "torch", "torchvision", "zennit", "onnx-clrp")
    versions = ", ".join(f"{name} {machine[name]}" for name in names)
    return (
        f"Measured on: {machine['processor']}, {results['settings']['threads']} threads;\n"
        f"Python {machine['python']}, {versions}\n(PyTorch's build: {machine['build']})."
    )


def _summary(results: Results) -> str:
    """In one sentence."""
    rows = timed(results)
    costs = {
        name: [median(ratios(r, name)) for r in rows if name in r["seconds"]]
        for name in CONTESTANTS
    }
    if not costs["explain"]:
        return ""
    text = f"\nAn explanation takes {_range(costs['explain'])} forward passes"
    if costs["zennit"]:
        text += f", with zennit {_range(costs['zennit'])}"
    return text + ".\n"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} … {max(values):.1f}"


# -- the picture -------------------------------------------------------------------------------


COLOURS = {"explain": "#b2182b", "torch": "#999999", "zennit": "#2166ac", "layerwise": "#67a9cf"}


def draw(results: Results, path: Path) -> None:
    """A panel for each size of a batch and number of targets, a line for each network."""
    rows = timed(results)
    kinds = sorted({(row["batch"], row["targets"]) for row in rows})
    names = [row["model"] for row in _once_each(rows)]
    lines, height = max(1, (len(kinds) + 1) // 2), 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(9, height * lines), layout="constrained")
    axes = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(kinds) :]:
        axis.set_visible(False)
    for axis, (batch, targets) in zip(axes.flat, kinds, strict=False):
        shown = [row for row in rows if (row["batch"], row["targets"]) == (batch, targets)]
        for name, colour in COLOURS.items():
            points = [(median(ratios(r, name)), r["model"]) for r in shown if name in r["seconds"]]
            if points:
                axis.scatter(*zip(*points, strict=True), c=colour, label=CONTESTANTS[name])
        axis.set_title(f"pictures: {batch}, targets of each: {targets}", fontsize=10)
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel("forward passes in ONNX Runtime")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    settings, processor = results["settings"], results["machine"]["processor"]
    title = f"{settings['method']} on {processor}, {settings['threads']} threads"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
