"""The report of an evaluation: one page of HTML that needs nothing but itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.examples import Gallery, criterion_of, gallery, refuse_others
from onnx_clrp.evaluate.settings import explains_neurons
from onnx_clrp.evaluate.statistics import Estimate, Paired
from onnx_clrp.evaluate.summary import FADING, SHARES, Measure, Summary
from onnx_clrp.files import write_whole
from onnx_clrp.methods import METHODS
from onnx_clrp.model import load
from onnx_clrp.render import BLUES, QUANTILE, REDS, minus

if TYPE_CHECKING:
    import jinja2
    import onnx

    from onnx_clrp.compiler import Options
    from onnx_clrp.evaluate.dataset import Dataset

_NEEDS = "a report needs further libraries: pip install 'onnx-clrp[evaluate]'"
_REFERENCE = "clrp2"
_COLOURS, _MARKERS = 7, 5  # they share no factor, so that 35 methods differ
_FEW = 30  # of so few pictures the bootstrap's intervals are visibly too narrow

_MOST_FAILED = 200

_HEADLINES = ("pointing", "drop", "inside", "insertion", "diagonal", "magnitude")
"""How the measures begin that stand for their experiments."""

_LIKENESS = (
    Measure("cosine", "cosine of their energies", "discrimination", False),
    Measure("rank_correlation", "rank correlation of all values", "discrimination", False),
)

_OWN_PATCH = Measure("diagonal", "loses most by its own patch", "neurons")
_NOTHING = Estimate(None, None, None, 0, 0, 0)

_COLUMNS = {
    "image": "the picture's path below the folder of pictures",
    "object": "what the data set calls what is explained",
    "target": "the number of the class that is explained",
    "other_target": "the other class, whose map is compared",
    "method": "the method that made the map",
    "score": "the model's score of the class, before any softmax",
    "probability": "what becomes of it by the softmax or sigmoid of the settings",
    "rank": "how many classes have a higher score",
    "area": "the share of what the model sees that the object's boxes cover",
    "shown": "the share of the boxes that the crop leaves",
    "peak_row": "row of the map's largest value, in pixels of the model's input from 0 on",
    "peak_column": "its column",
    "pointing": "whether that pixel hits the object",
    "reach": "the share of the energy in the largest pixels before the first one outside the boxes",
    "inside": "the share of the energy inside the object's boxes",
    "in_others": "the share in boxes of other objects, where this one is not",
    "deletion": "the area under the curve of deletion",
    "insertion": "the area under the curve of insertion",
    "cosine": "of the angle between the energies of the two maps",
    "rank_correlation": "Spearman's, of all values of the two maps",
    "patch_of": "the neuron whose map found the patch, the most active one is 0",
    "neuron": "the neuron that is asked what it loses, likewise",
    "channel": "its number in the layer",
    "activation": "what it said before, at all of its positions together",
    "drop": "how much less it says without the patch",
    "stage": "how many layers are shuffled, the last ones first",
    "layer": "the one that was shuffled last",
    "magnitude_correlation": "Spearman's, of the absolute values of the two maps",
    "reason": "why the picture could not be read",
}
"""What the columns of the raw results hold."""


def write_report(
    summary: Summary,
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | None = None,
    dataset: Dataset | None = None,
    device: str = "auto",
    options: Options | None = None,
    labels: Sequence[str] | None = None,
    examples: int = 4,
) -> Path:
    """Write what an evaluation found as one HTML page, with nothing to be fetched for it.

    The same results give the same bytes.

    Args:
        summary: the results.
        out: the file; `report.html` in their folder by default.
        model: that of the evaluation, to make the maps of examples once more; the page calls it by
            its file's name if that is what is given. Without it there are no examples.
        dataset: that of the evaluation; likewise.
        device: where the maps are made, as for `Explainer`.
        options: those of the evaluation.
        labels: the names of the classes; those in the model's metadata by default.
        examples: how many pictures of each end, the most and the least convincing.

    Returns:
        The file.

    Raises:
        UsageError: the model, the data set or the options are not those that the results were made
            with.
        ImageError: a picture of an example cannot be read any more.
        ClrpError: the file cannot be written.
    """
    if (model is None) != (dataset is None):
        raise UsageError("examples need the model and the data set: give both or none")
    if examples < 0:
        raise UsageError(f"examples must be at least 0, not {examples}")
    template = _template()
    shown: Gallery | None = None
    notes: list[str] = []
    if model is not None and dataset is not None:
        proto, options = load(model), options or {}
        refuse_others(summary, proto, dataset, options)
        criterion = criterion_of(summary)
        if criterion is not None and examples:
            shown = gallery(
                *(summary, criterion, examples, proto, dataset, options),
                device=device,
                labels=labels,
            )
        notes = [*dataset.notes, *(shown.notes if shown else ())]
    page = template.render(
        report=Report(summary),
        summary=summary,
        model_name=Path(model).name if isinstance(model, str | os.PathLike) else "",
        narrowed={"largest": summary.largest, "only right": summary.only_right},
        gallery=shown,
        no_gallery=_no_gallery(model is None, examples),
        notes=notes,
        few=_FEW,
        most_failed=_MOST_FAILED,
        ramp=[f"#{stop}" for stop in (*reversed(BLUES), *REDS[1:])],
        quantile=QUANTILE,
    )
    path = summary.folder / "report.html" if out is None else Path(out)
    text = page.strip() + "\n"
    write_whole(path, text.encode(errors="replace"))  # a file's name need not be Unicode
    return path


def _no_gallery(bare: bool, examples: int) -> str:
    if bare:
        return (
            "This page was made from the results alone. Made with the model and the data set at"
            " hand, it shows examples here."
        )
    return "No map has a value to choose by." if examples else "No examples were asked for."


# -- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A scale from one round number to another, with zero on it.

    Attributes:
        low, high: its ends.
        step: from one tick to the next.
    """

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, estimates: Sequence[Estimate], steps: int = 3) -> Axis:
        """That of some means with their intervals, in about so many steps."""
        ends = [0.0, *(x for e in estimates for x in (e.low, e.high, e.mean) if x is not None)]
        low, high = min(ends), max(ends)
        wide = (high - low) / steps or 1.0
        unit = 10.0 ** math.floor(math.log10(wide))
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= wide * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, max(last, first + 1) * step, step)

    def at(self, value: float) -> float:
        """Where a value lies, 0 … 1."""
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The values with a tick, and how they are written."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        values = [self.low + i * self.step for i in range(count + 1)]
        return [(v, number(v, digits) if abs(v) > self.step / 2 else "0") for v in values]


@dataclass(frozen=True)
class Column:
    """A measure, for each method.

    Attributes:
        measure: what is measured.
        found: what it is, by method.
        digits: decimals with which it is written.
        marked: is the best one pointed out?
    """

    measure: Measure
    found: Mapping[str, Estimate]
    digits: int
    marked: bool = True

    @cached_property
    def axis(self) -> Axis:
        """What their intervals are drawn on."""
        return Axis.over([*self.found.values()])

    @cached_property
    def leading(self) -> list[str]:
        """The methods with the best mean; none if no map has a value."""
        means = {m: e.mean for m, e in self.found.items() if e.mean is not None}
        ends = sorted(means.values(), reverse=self.measure.more_is_better)
        return [method for method, mean in means.items() if mean == ends[0]]

    @property
    def best(self) -> list[str]:
        """The same where it is pointed out; none if there is only one to choose from."""
        means = [e.mean for e in self.found.values() if e.mean is not None]
        return self.leading if self.marked and len(means) > 1 else []

    @property
    def empty(self) -> bool:
        """Has no map a value?"""
        return not any(e.count for e in self.found.values())

    @property
    def even(self) -> Estimate | None:
        """One of them, if all are made from equally many maps and pictures."""
        first, *others = self.found.values()
        count = (first.count, first.missing, first.images)
        alike = all((e.count, e.missing, e.images) == count for e in others)
        return first if alike else None

    def verdict(self, method: str, alpha: float) -> str:
        """Whether a method is better or worse than the reference beyond chance, or nothing.

        It goes by p as it is written, so that nobody reads of a p of 0.05 that is below it.
        """
        found = self.found[method]
        if not isinstance(found, Paired) or found.p is None or float(f"{found.p:.3g}") >= alpha:
            return ""
        return "better" if ((found.mean or 0) > 0) == self.measure.more_is_better else "worse"


@dataclass(frozen=True)
class Section:
    """An experiment: its means, and how methods compare with the reference."""

    name: str
    columns: Sequence[Column]
    without: Sequence[Measure]
    differences: Sequence[Column]

    @property
    def headline(self) -> Column | None:
        """The measure that stands for all."""
        known = [c for c in self.columns if c.measure.name.startswith(_HEADLINES)]
        return known[-1] if known else None


class Report:
    """What a page shows of some results, in the form in which it is shown."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self.methods = [Line(name, i) for i, name in enumerate(summary.methods)]
        self.alpha = round(1 - summary.level, 12)
        self.reference = _REFERENCE if _REFERENCE in summary.methods else summary.methods[0]

    @cached_property
    def sections(self) -> list[Section]:
        """The experiments, in the order of the paper."""
        return [self._section(name) for name in self._summary.settings.experiments]

    @cached_property
    def chart(self) -> Chart | None:
        """The sweep of p; None if there is nothing to be swept."""
        if not self._summary.settings.wants("pointing"):
            return None
        curves = {m: self._summary.sweep(m) for m in self._summary.methods}
        known = {m: curve for m, curve in curves.items() if curve[0].mean is not None}
        heads = [f"{share:.2f}" for share in SHARES]
        return Chart("sweep", SHARES, heads, known) if known else None

    @cached_property
    def fading(self) -> Chart | None:
        """What is left of the maps as layers are shuffled; None if none were."""
        if self._summary.cascade is None:
            return None
        found = {m: self._summary.fading(m, FADING[1].name) for m in self._summary.methods}
        stages = [*next(iter(found.values()))]
        heads = [f"{n}, {layer}" if layer else "0" for n, layer in stages]
        shares = [n / stages[-1][0] for n, _ in stages]
        curves = {m: [*each.values()] for m, each in found.items()}
        known = {m: c for m, c in curves.items() if any(e.mean is not None for e in c)}
        return Chart("fading", shares, heads, known) if known else None

    @cached_property
    def likeness(self) -> list[Column]:
        """How alike the maps of two classes of a picture are; none if no picture has two."""
        if not self._summary.pairs.num_rows:
            return []
        found = {m: self._summary.alike(m) for m in self._summary.methods}
        columns = [_column(m, {x: f[m.name] for x, f in found.items()}, False) for m in _LIKENESS]
        return [column for column in columns if not column.empty]

    @cached_property
    def losses(self) -> list[tuple[Line, list[list[tuple[float, float]]]]]:
        """What neurons lose by each other's patches: numbers, and their shades from 0 to 1."""
        if self._summary.neurons is None:
            return []
        found = []
        for line in self.methods:
            if explains_neurons(line.name):
                matrix = self._summary.losses(line.name)
                most = float(np.nanmax(matrix, initial=0)) or 1.0
                rows = [[(float(x), max(float(x), 0) / most) for x in row] for row in matrix]
                found.append((line, rows))
        return found

    @property
    def failed(self) -> list[dict[str, str]]:
        """The pictures that could not be read, and why."""
        rows: list[dict[str, str]] = self._summary.failed.to_pylist()
        return rows

    @property
    def settings(self) -> Iterator[tuple[str, str]]:
        """All that the results depend on, in words."""
        header = self._summary.header
        yield "onnx-clrp", header["version"]
        yield "model, SHA-256", header["model"]
        yield from ((f"data set, {key}", _plain(x)) for key, x in header["dataset"].items())
        yield from ((k.replace("_", " "), _plain(x)) for k, x in header["settings"].items())
        yield from ((f"option {key}", _plain(x)) for key, x in header["options"].items())

    @property
    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """The columns of each raw table, and what they hold."""
        summary = self._summary
        tables = {"maps": summary.maps, "pairs": summary.pairs, "failed": summary.failed}
        further = {"neurons": summary.neurons, "cascade": summary.cascade}
        tables |= {name: table for name, table in further.items() if table is not None}
        return {name: [(c, _meaning(c)) for c in t.column_names] for name, t in tables.items()}

    def _section(self, name: str) -> Section:
        summary, methods = self._summary, self._summary.methods
        if name == "neurons":
            told = {x: summary.diagonal(x) if explains_neurons(x) else _NOTHING for x in methods}
            return Section(name, [_column(_OWN_PATCH, told)], [], [])
        if name == "cascade":
            ends = {
                m: {x: [*summary.fading(x, m.name).values()][-1] for x in methods} for m in FADING
            }
            return Section(name, [_column(m, found, False) for m, found in ends.items()], [], [])
        measures = [m for m in summary.measures if m.experiment == name]
        columns = [_column(m, {x: summary.mean(m, x) for x in methods}) for m in measures]
        shown = [column for column in columns if not column.empty]
        differences = []
        if len(methods) > 1:
            differences = [
                Column(c.measure, summary.compared(c.measure, self.reference), c.digits, False)
                for c in shown
            ]
        return Section(name, shown, [c.measure for c in columns if c.empty], differences)


def _column(measure: Measure, found: Mapping[str, Estimate], marked: bool = True) -> Column:
    """With as many decimals as give the greatest three digits; one more or less at the ends."""
    greatest = max((abs(e.mean) for e in found.values() if e.mean), default=0.1)
    size = math.floor(math.log10(greatest))
    digits = max(0, 3 - size) if size > 0 else min(2 - size, max(3, 1 - size), 6)
    return Column(measure, found, digits, marked)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _meaning(column: str) -> str:
    kind, _, side = column.rpartition("_")
    if side.isdecimal():
        what = "probability" if kind.startswith("probability") else "score"
        return f"what the {what} loses when a patch of {side} x {side} pixels is replaced"
    return _COLUMNS[column]


# -- curves ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A method, and how its curve is drawn: no two share both colour and marker."""

    name: str
    place: int

    @property
    def title(self) -> str:
        """What people call it."""
        return METHODS[self.name].title

    @property
    def noise(self) -> bool:
        """Is it the random baseline, which is drawn in grey?"""
        return METHODS[self.name].noise

    @property
    def colour(self) -> str:
        """The class of its colour."""
        return "noise" if self.noise else f"c{self.place % _COLOURS}"

    @property
    def marker(self) -> int:
        """The number of its marker."""
        return self.place % _MARKERS


@dataclass(frozen=True)
class Chart:
    """Curves over shares, in the unit square with the origin at the lower left.

    Attributes:
        name: of the chart, unlike that of any other.
        shares: where the points lie.
        heads: what the points are called.
        curves: the values at each, by method.
    """

    name: str
    shares: Sequence[float]
    heads: Sequence[str]
    curves: Mapping[str, Sequence[Estimate]]

    @property
    def told(self) -> list[int]:
        """The points that stand for the curve where it is told in words."""
        last = len(self.shares) - 1
        return sorted({round(last * part) for part in (0.05, 0.5, 1)})

    @cached_property
    def axis(self) -> Axis:
        """That of the heights."""
        return Axis.over([e for curve in self.curves.values() for e in curve], steps=5)

    def line(self, method: str) -> list[tuple[float, float]]:
        """The means."""
        pairs = zip(self.shares, self.curves[method], strict=True)
        return [(share, self.axis.at(e.mean)) for share, e in pairs if e.mean is not None]

    def band(self, method: str) -> list[tuple[float, float]]:
        """The outline of the intervals: along their upper ends, and back along the lower."""
        pairs = [*zip(self.shares, self.curves[method], strict=True)]
        upper = [(share, self.axis.at(e.high)) for share, e in pairs if e.high is not None]
        lower = [(share, self.axis.at(e.low)) for share, e in pairs if e.low is not None]
        return upper + lower[::-1]


# -- words -------------------------------------------------------------------------------------


def number(value: float, digits: int) -> str:
    """With so many decimals, and a sign as wide as a plus; never a negative zero."""
    return minus(f"{value:.{digits}f}") if round(value, digits) else f"{0:.{digits}f}"


def probability(p: float) -> str:
    """A p-value, as it is written."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3g}"


def _template() -> jinja2.Template:
    """The page, in which all that is put into it stays text.

    Raises:
        UsageError: Jinja is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise UsageError(_NEEDS) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnx_clrp", "evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, probability=probability)
    return environment.get_template("report.html.jinja")
