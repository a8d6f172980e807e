"""What an evaluation comes to: means with intervals, curves, and methods compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.settings import Settings, explains_neurons
from onnx_clrp.evaluate.statistics import Estimate, Paired, holm, mean_interval, paired_difference
from onnx_clrp.evaluate.store import read_header, read_table

if TYPE_CHECKING:
    import pyarrow as pa

Values = NDArray[np.float64]

SHARES = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""The sweep of p: shares of the map's energy (paper, figure 4)."""


@dataclass(frozen=True)
class Measure:
    """Something that is averaged over maps.

    Attributes:
        name: of the column that it is made from.
        title: what people call it.
        experiment: which experiment it belongs to.
        more_is_better: is a larger value what the experiment hopes for?
    """

    name: str
    title: str
    experiment: str
    more_is_better: bool = True


FADING = (
    Measure("rank_correlation", "rank correlation", "cascade", False),
    Measure("magnitude_correlation", "rank correlation of absolute values", "cascade", False),
)
"""What tells how like their first form maps are once layers are shuffled."""


def measures_of(settings: Settings) -> list[Measure]:
    """What an evaluation with these settings measures."""
    found: list[Measure] = []
    if settings.wants("pointing"):
        found += [
            Measure("pointing", "pointing game: hits", "pointing"),
            Measure("reach", "energy before the first pixel outside", "pointing"),
        ]
    if settings.wants("discrimination"):
        found += [
            Measure("inside", "energy inside the boxes", "discrimination"),
            Measure("in_others", "energy in other objects' boxes", "discrimination", False),
        ]
    if settings.wants("ablation"):
        for side in settings.patches:
            name, patch = f"drop_{side}", f"patch {side} x {side}"
            found += [
                Measure(name, f"drop of the score, {patch}", "ablation"),
                Measure(f"probability_{name}", f"drop of the probability, {patch}", "ablation"),
            ]
    if settings.wants("deletion"):
        found += [
            Measure("deletion", "area under deletion", "deletion", False),
            Measure("insertion", "area under insertion", "deletion"),
        ]
    return found


class Summary:
    """The results of a folder, ready to be shown.

    Args:
        folder: where an evaluation wrote its results.
        level: of the intervals.
        largest: leave out objects whose boxes cover more than this share of what the model sees.
        only_right: leave out objects that do not have the highest score.

    Attributes:
        header: all that the results depend on, as it was written.
        settings: what was measured.
        methods: the methods.
        measures: what is averaged.
        maps, pairs, failed: the tables.
        neurons, cascade: those of experiments that were asked for, or None.

    Raises:
        UsageError: the folder holds no results, or nothing is left of them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        level: float = 0.95,
        largest: float | None = None,
        only_right: bool = False,
    ) -> None:
        self.folder, self.largest, self.only_right = folder, largest, only_right
        self.header = read_header(folder)
        self.settings = Settings(**self.header["settings"])
        self.methods = [*self.settings.methods]
        self.measures = measures_of(self.settings)
        self.level = level
        self.pairs = read_table(folder, "pairs")
        self.failed = read_table(folder, "failed")
        self.neurons, self.cascade = (
            read_table(folder, name) if self.settings.wants(name) else None
            for name in ("neurons", "cascade")
        )
        self.maps = _kept(read_table(folder, "maps"), largest, only_right)
        if not self.maps.num_rows:
            raise UsageError("nothing is left to be averaged: choose less narrowly")
        self._estimates: dict[tuple[object, ...], Estimate] = {}

    @property
    def pictures(self) -> int:
        """How many pictures there are maps of."""
        return len(self.maps["image"].unique())

    def of(self, method: str) -> pa.Table:
        """The maps of one method: for all methods those of the same targets, in the same order."""
        return _of(self.maps, method)

    def values(self, column: str, method: str) -> tuple[Values, NDArray[np.int64]]:
        """A column for one method, NaN where it is empty; and a number for each picture."""
        return _column(self.maps, column, method)

    def mean(self, measure: Measure, method: str) -> Estimate:
        """The mean over pictures and targets, with its interval."""
        values, groups = self.values(measure.name, method)
        return self._estimate(values, groups, measure.name, method)

    def sweep(self, method: str, shares: Sequence[float] = SHARES) -> list[Estimate]:
        """How often the smallest set with a share p of the energy lies in the box (figure 4)."""
        reach, groups = self.values("reach", method)
        return [
            self._estimate(np.where(np.isnan(reach), np.nan, reach >= p), groups, p, method)
            for p in shares
        ]

    def alike(self, method: str) -> dict[str, Estimate]:
        """How alike the maps of two objects of one picture are (figure 3 as a number)."""
        columns = ("cosine", "rank_correlation")
        return {c: self._estimate(*_column(self.pairs, c, method), c, method) for c in columns}

    def lost(self, method: str) -> NDArray[np.float64]:
        """What neurons lose by each other's patches, `[maps, n]`, as parts of what they said.

        A row for each picture and neuron whose map found the patch; NaN where it found none. That
        neuron's own place is `row % n` (paper, figure 5c).

        Raises:
            UsageError: the evaluation was none of neurons.
        """
        if self.neurons is None:
            raise UsageError("these results are not of the experiment with neurons")
        rows = _of(self.neurons, method)
        drops, said = (rows[name].to_numpy(zero_copy_only=False) for name in ("drop", "activation"))
        parts = np.full(len(drops), np.nan)
        np.divide(drops.astype(np.float64), said, out=parts, where=said.astype(np.float64) != 0)
        return parts.reshape(-1, self.settings.neurons)

    def losses(self, method: str) -> NDArray[np.float64]:
        """The mean of that over pictures, `[n, n]`: row by row the patch of a neuron.

        The neurons are in the order of their activity in each picture, so that a row is no channel.
        NaN where no map found a patch.
        """
        lost = self.lost(method)
        each = lost.reshape(-1, lost.shape[1], lost.shape[1])
        known = ~np.isnan(each)
        total, count = np.where(known, each, 0).sum(0), known.sum(0)
        mean = np.full(total.shape, np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return mean

    def diagonal(self, method: str) -> Estimate:
        """How often the neuron that a patch was found for is the one that loses most by it."""
        lost = self.lost(method)
        places = np.arange(len(lost)) % lost.shape[1]
        known = ~np.isnan(lost).any(1)
        hits = np.full(len(lost), np.nan)
        hits[known] = lost[known].argmax(1) == places[known]
        pictures = np.arange(len(lost)) // lost.shape[1]
        return self._estimate(hits, pictures, "diagonal", method)

    def fading(self, method: str, column: str) -> dict[tuple[int, str | None], Estimate]:
        """How like their first form maps are once layers are shuffled.

        Args:
            method: the method.
            column: the name of one of `FADING`.

        Returns:
            For each number of shuffled layers, and the one that was shuffled last, the mean over
            pictures. The last number is that of all layers.

        Raises:
            UsageError: the evaluation has no cascade.
        """
        if self.cascade is None:
            raise UsageError("these results are not of the experiment with shuffled layers")
        rows = _of(self.cascade, method)
        values, groups = _column(self.cascade, column, method)
        numbers = rows["stage"].to_numpy()
        names = dict(zip(numbers.tolist(), rows["layer"].to_pylist(), strict=True))
        return {
            (n, layer): self._estimate(
                values[numbers == n], groups[numbers == n], "fading", column, n, method
            )
            for n, layer in sorted(names.items())
        }

    def compared(self, measure: Measure, reference: str) -> dict[str, Paired]:
        """What each other method has over a reference on the same maps; p after Holm."""
        theirs, groups = self.values(measure.name, reference)
        others = [m for m in self.methods if m != reference]
        made = [
            paired_difference(
                self.values(measure.name, m)[0],
                theirs,
                groups=groups,
                level=self.level,
                seed=self.settings.seed,
            )
            for m in others
        ]
        return dict(zip(others, _after_holm(made), strict=True))

    def to_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        found: dict[str, Any] = {
            **self.header,
            "pictures": self.pictures,
            "failed": self.failed.num_rows,
            "level": self.level,
            "measures": {
                measure.name: {
                    "title": measure.title,
                    "means": {m: asdict(self.mean(measure, m)) for m in self.methods},
                }
                for measure in self.measures
            },
        }
        if self.settings.wants("pointing"):
            found["shares"] = SHARES
            found["sweep"] = {m: [asdict(e) for e in self.sweep(m)] for m in self.methods}
        if self.pairs.num_rows:
            found["alike"] = {
                m: {column: asdict(e) for column, e in self.alike(m).items()} for m in self.methods
            }
        if self.neurons is not None:
            told = filter(explains_neurons, self.methods)
            found["neurons"] = {
                m: {**asdict(self.diagonal(m)), "losses": self.losses(m).tolist()} for m in told
            }
        if self.cascade is not None:
            found["cascade"] = {
                measure.name: {
                    m: [
                        {"stage": n, "layer": layer, **asdict(e)}
                        for (n, layer), e in self.fading(m, measure.name).items()
                    ]
                    for m in self.methods
                }
                for measure in FADING
            }
        return found

    def _estimate(self, values: Values, groups: NDArray[np.int64], *key: object) -> Estimate:
        """The mean with its interval; for what was asked before the same, without the draws."""
        if key not in self._estimates:
            self._estimates[key] = mean_interval(
                values, groups=groups, level=self.level, seed=self.settings.seed
            )
        return self._estimates[key]


def _kept(maps: pa.Table, largest: float | None, only_right: bool) -> pa.Table:
    """The rows of maps that are averaged."""
    import pyarrow.compute as pc

    if largest is not None:
        maps = maps.filter(pc.less_equal(maps["area"], largest))
    return maps.filter(pc.equal(maps["rank"], 0)) if only_right else maps


def _of(table: pa.Table, method: str) -> pa.Table:
    """The rows of one method."""
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["method"], method))


def _column(table: pa.Table, column: str, method: str) -> tuple[Values, NDArray[np.int64]]:
    """A column of one method's rows as numbers, and a number for each row's picture."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = _of(table, method)
    values = rows[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    groups = pc.index_in(rows["image"], rows["image"].unique()).to_numpy()
    return values.astype(np.float64), groups.astype(np.int64)


def _after_holm(found: Sequence[Paired]) -> list[Paired]:
    corrected = holm([each.p for each in found])
    return [replace(each, p=p) for each, p in zip(found, corrected, strict=True)]
