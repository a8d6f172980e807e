"""Fills docs/experiments.md with the tables and figures of evaluations.

python tools/draw_experiments.py RUNS

RUNS holds a folder of results for each experiment and network, `ilsvrc-resnet18` for example, as
the commands on the page write them. What stands between `<!-- NAME -->` and `<!-- end -->` there is
replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_clrp.evaluate.statistics import Estimate, Paired
from onnx_clrp.evaluate.summary import SHARES, Measure, Summary
from onnx_clrp.methods import METHODS
from onnx_clrp.render import minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "n/a"

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "experiments.md"
IMAGES = ROOT / "docs" / "images"

NETWORKS = {
    "resnet18": "ResNet-18",
    "mobilenet_v2": "MobileNet-v2",
    "squeezenet1_1": "SqueezeNet 1.1",
}
SMALLER = {"all": None, "boxes ≤ ½": 0.5, "boxes ≤ ¼": 0.25}
"""Objects by the share of the picture that their boxes cover at most."""


class Runs:
    """The results of a folder of evaluations, each summarised once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[str, float | None], Summary] = {}

    def __call__(self, experiment: str, network: str, largest: float | None = None) -> Summary:
        """Those of an experiment with a network, of objects of at most that size."""
        name = f"{experiment}-{network}"
        if (name, largest) not in self._known:
            self._known[name, largest] = Summary(self._folder / name, largest=largest)
        return self._known[name, largest]


# -- tables ------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, numbers to the right."""
    rule = "|".join("---" if name in ("network", "method") else "--:" for name in head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, *rows)).replace(
        "\n", f"\n|{rule}|\n", 1
    )


def shown(estimate: Estimate, digits: int = 3) -> str:
    """A mean with its interval."""
    if estimate.mean is None:
        return NOTHING
    low, high = (number(x, digits) for x in (estimate.low, estimate.high))
    return f"{number(estimate.mean, digits)} [{low}, {high}]"


def number(value: float | None, digits: int) -> str:
    """Without a zero in front of the point, as the field writes shares."""
    text = f"{value:.{digits}f}" if value is not None else NOTHING
    return minus(re.sub(r"^(-?)0\.", r"\1.", text))


def compared(found: Paired, digits: int = 3) -> str:
    """A difference with its interval and p."""
    p = "p < .001" if (found.p or 0) < 0.001 else f"p = {number(found.p, 3)}"
    return f"{shown(found, digits)}, {p}"


def measure(summary: Summary, name: str) -> Measure:
    """The measure of that name."""
    return next(m for m in summary.measures if m.name == name)


def title(method: str) -> str:
    """What people call a method."""
    return METHODS[method].title


Tell = Callable[[str, str], str]
"""`(network, method) -> what a cell says`."""


def by_network(methods: Sequence[str], columns: Mapping[str, Tell]) -> str:
    """A row for each network and method, a column for each thing that is told of it."""
    rows = []
    for network, name in NETWORKS.items():
        for method in methods:
            cells = [tell(network, method) for tell in columns.values()]
            if set(cells) != {NOTHING}:
                first = f"**{name}**" if method == methods[0] else ""
                rows.append([first, title(method), *cells])
    return table(["network", "method", *columns], rows)


def mean(
    runs: Runs, experiment: str, name: str, digits: int = 3, largest: float | None = None
) -> Tell:
    """A measure's means, of objects of at most that size."""

    def tell(network: str, method: str) -> str:
        summary = runs(experiment, network, largest)
        return shown(summary.mean(measure(summary, name), method), digits)

    return tell


def methods_of(runs: Runs, experiment: str) -> Sequence[str]:
    """The methods of an experiment, the same for all networks."""
    return runs(experiment, next(iter(NETWORKS))).methods


def pointing(runs: Runs) -> str:
    """The pointing game, on all objects and on small ones."""
    columns = {
        f"{what} ({runs('ilsvrc', 'resnet18', largest).pictures})": mean(
            runs, "ilsvrc", "pointing", largest=largest
        )
        for what, largest in SMALLER.items()
    }
    return by_network(methods_of(runs, "ilsvrc"), columns)


def energy(runs: Runs) -> str:
    """How much of the energy comes before the first pixel outside, and how much lies inside."""
    columns = {
        f"{what}, {of}": mean(runs, "ilsvrc", name, largest=SMALLER[of])
        for what, name in (("before the first pixel outside", "reach"), ("inside", "inside"))
        for of in ("all", "boxes ≤ ¼")
    }
    return by_network(methods_of(runs, "ilsvrc"), columns)


def ablation(runs: Runs) -> str:
    """What the patch at the maximum is worth."""
    columns = {
        "score, 9 × 9": mean(runs, "ilsvrc", "drop_9"),
        "score, 31 × 31": mean(runs, "ilsvrc", "drop_31"),
        "probability, 9 × 9": mean(runs, "ilsvrc", "probability_drop_9", 4),
        "probability, 31 × 31": mean(runs, "ilsvrc", "probability_drop_31"),
    }
    return by_network(methods_of(runs, "ilsvrc"), columns)


def against_lrp(runs: Runs) -> str:
    """CLRP against LRP, on the same maps."""

    @cache
    def found(network: str, name: str) -> Mapping[str, Paired]:
        summary = runs("ilsvrc", network)
        return summary.compared(measure(summary, name), "lrp")

    def tell(name: str) -> Tell:
        return lambda network, method: compared(found(network, name)[method])

    columns = {
        "hits": tell("pointing"),
        "energy before the first pixel outside": tell("reach"),
        "energy inside": tell("inside"),
        "9 × 9": tell("drop_9"),
        "31 × 31": tell("drop_31"),
    }
    return by_network(("clrp1", "clrp2"), columns)


def two_objects(runs: Runs, experiment: str) -> str:
    """How well a map of one object leaves the other one alone."""

    def alike(column: str) -> Tell:
        return lambda network, method: shown(runs(experiment, network).alike(method)[column])

    columns = {
        "hits": mean(runs, experiment, "pointing"),
        "energy in its own boxes": mean(runs, experiment, "inside"),
        "in those of others": mean(runs, experiment, "in_others"),
        "cosine of two maps": alike("cosine"),
        "rank correlation": alike("rank_correlation"),
    }
    return by_network(methods_of(runs, experiment), columns)


def deletion(runs: Runs) -> str:
    """Areas under the curves."""
    columns = {
        "deletion (less is better)": mean(runs, "deletion", "deletion"),
        "insertion": mean(runs, "deletion", "insertion"),
    }
    return by_network(methods_of(runs, "deletion"), columns)


def neurons(runs: Runs) -> str:
    """How often the neuron loses most whose patch it is."""
    methods = [m for m in methods_of(runs, "neurons") if m != "clrp1"]
    rows = [
        [title(m), *(shown(runs("neurons", network).diagonal(m)) for network in NETWORKS)]
        for m in methods
    ]
    return table(["method", *NETWORKS.values()], rows)


def losses(runs: Runs) -> str:
    """What each neuron of ResNet-18 loses by each patch of CLRP2, in percent."""
    matrix = 100 * runs("neurons", "resnet18").losses("clrp2")
    rows = [
        [f"patch of {i}", *(f"**{x:.1f}**" if i == j else f"{x:.1f}" for j, x in enumerate(row, 1))]
        for i, row in enumerate(matrix, 1)
    ]
    return table(["ResNet-18, CLRP2", *(f"neuron {j + 1}" for j in range(len(matrix)))], rows)


def cascade(runs: Runs) -> str:
    """What is left of the maps, in absolute value, after the first and after all stages."""
    rows = []
    for method in methods_of(runs, "cascade"):
        cells = []
        for network in NETWORKS:
            found = [*runs("cascade", network).fading(method, "magnitude_correlation").values()]
            cells += [shown(found[1], 2), shown(found[-1], 2)]
        rows.append([title(method), *cells])
    heads = [f"{name}, {stage}" for name in NETWORKS.values() for stage in ("1 step", "all")]
    return table(["method", *heads], rows)


TABLES: Mapping[str, Callable[[Runs], str]] = {
    "pointing": pointing,
    "energy": energy,
    "ablation": ablation,
    "against-lrp": against_lrp,
    "hand": lambda runs: two_objects(runs, "hand"),
    "coco": lambda runs: two_objects(runs, "coco"),
    "deletion": deletion,
    "neurons": neurons,
    "losses": losses,
    "cascade": cascade,
}


# -- figures -----------------------------------------------------------------------------------

COLOURS = {
    "random": "#8a8a8a",
    "gradient": "#e69f00",
    "guided_backprop": "#009e73",
    "grad_cam": "#cc79a7",
    "contrastive_eb": "#56b4e9",
    "lrp": "#a5312a",
    "clrp1": "#7a6a00",
    "clrp2": "#1f6fb4",
}
"""Of Okabe and Ito, told apart by people who see colours differently."""


def curves(axes: Axes, method: str, xs: Sequence[float], found: Sequence[Estimate]) -> None:
    """A curve with the band of its intervals."""
    known = [(x, e) for x, e in zip(xs, found, strict=True) if e.mean is not None]
    at = [x for x, _ in known]
    style = "--" if method in ("random", "contrastive_eb") else "-"
    axes.plot(at, [e.mean for _, e in known], style, color=COLOURS[method], label=title(method))
    low, high = ([getattr(e, end) for _, e in known] for end in ("low", "high"))
    axes.fill_between(at, low, high, color=COLOURS[method], alpha=0.15, linewidth=0)


def panels(
    path: Path, xlabel: str, ylabel: str, draw: Callable[[Axes, str], None], *, floor: float
) -> None:
    """A panel for each network, with a legend below all of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    each = figure.subplots(1, len(NETWORKS), sharey=True)
    for axes, (network, name) in zip(each, NETWORKS.items(), strict=True):
        draw(axes, network)
        axes.set(title=name, xlabel=xlabel, xlim=(0, 1), ylim=(floor, 1.02))
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    each[0].set_ylabel(ylabel)
    handles, labels = each[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)


def draw_sweep(runs: Runs, path: Path) -> None:
    """Figure 4 of the paper, on the objects whose boxes cover at most half of the picture."""

    def draw(axes: Axes, network: str) -> None:
        summary = runs("ilsvrc", network, 0.5)
        for method in summary.methods:
            curves(axes, method, SHARES, summary.sweep(method))

    label = "energy wholly in the boxes"
    panels(path, "share p of the map's energy", label, draw, floor=0)


def draw_cascade(runs: Runs, path: Path) -> None:
    """What is left of the maps as layers are shuffled."""

    def draw(axes: Axes, network: str) -> None:
        summary = runs("cascade", network)
        for method in summary.methods:
            found = summary.fading(method, "magnitude_correlation")
            last = max(n for n, _ in found)
            curves(axes, method, [n / last for n, _ in found], [*found.values()])

    label = "rank correlation of magnitudes"
    panels(path, "share of layers that are shuffled", label, draw, floor=-0.4)


FIGURES = {"experiments-sweep.png": draw_sweep, "experiments-cascade.png": draw_cascade}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Write the tables and figures of the evaluations in FOLDER into the page."""
    runs, text = Runs(folder), PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not block.search(text):
            raise click.ClickException(f"{PAGE.name} has no place for the table {name!r}")
        made = make(runs)
        text = block.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    PAGE.write_text(text, encoding="utf-8")
    for name, draw in FIGURES.items():
        draw(runs, IMAGES / name)


if __name__ == "__main__":
    main()
