"""The most and the least convincing maps of an evaluation, made again to be looked at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from PIL import Image

from onnx_clrp.canvas import TINY, scaled
from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.geometry import mask_of
from onnx_clrp.evaluate.judge import Judge, Loaded, Mask, Row, loaded, target_of
from onnx_clrp.evaluate.run import header_of
from onnx_clrp.evaluate.summary import Summary, Values
from onnx_clrp.image import Picture
from onnx_clrp.render import minus, overlay

if TYPE_CHECKING:
    from onnx_clrp.compiler import Options
    from onnx_clrp.evaluate.dataset import Dataset, Sample

_SHORTEST, _LONGEST = 192, 288
"""The longer side of a picture in the report, in pixels: as much as a screen shows of it."""

_QUALITY = 85
"""JPEG's, with all of its colours: a page of many pictures stays below a few megabytes."""

_PREFERRED = "clrp2"


class Edges(NamedTuple):
    """A box in pixels of the model's input."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Drawn:
    """A map over its picture.

    Attributes:
        method: what made it.
        picture: as a `data:` address.
        row: what the evaluation found of it.
        words: the same in two or three words.
    """

    method: str
    picture: str
    row: Row
    words: str


@dataclass(frozen=True)
class Example:
    """A class of a picture with the maps of all methods.

    Attributes:
        value: by which it was chosen.
        row: what the evaluation found of the map that it was chosen by.
        label: the model's name of the class, where it is known.
        picture: as the model sees it, as a `data:` address.
        size: its width and height in pixels of the model's input.
        boxes: those of the class.
        others: those of the picture's other classes.
        maps: one a method.
    """

    value: float
    row: Row
    label: str | None
    picture: str
    size: tuple[int, int]
    boxes: Sequence[Edges]
    others: Sequence[Edges]
    maps: Sequence[Drawn]


@dataclass(frozen=True)
class Criterion:
    """By what maps are chosen.

    Attributes:
        method: whose maps are looked at.
        column: what is looked at.
        words: the same for people, with what is taken from it.
        values: of its maps, NaN where there is none; more is more convincing.
    """

    method: str
    column: str
    words: str
    values: Values

    @property
    def count(self) -> int:
        """How many maps have a value."""
        return int((~np.isnan(self.values)).sum())

    def ends(self, count: int) -> tuple[list[int], list[int]]:
        """The places of the highest and of the lowest, so many of each, and none in both.

        Of equal ones the first in the order of the data set comes first.
        """
        places = np.flatnonzero(~np.isnan(self.values))
        falling = places[np.argsort(-self.values[places], kind="stable")]
        high = falling[: min(count, (len(falling) + 1) // 2)].tolist()
        rest = np.setdiff1d(places, high)
        rising = rest[np.argsort(self.values[rest], kind="stable")]
        return high, rising[:count].tolist()


@dataclass(frozen=True)
class Gallery:
    """The examples of a report.

    Attributes:
        criterion: by what they were chosen.
        most, least: those at its two ends, from the end inwards.
        notes: what was assumed about the model.
    """

    criterion: Criterion
    most: Sequence[Example]
    least: Sequence[Example]
    notes: Sequence[str]


def refuse_others(
    summary: Summary, model: onnx.ModelProto, dataset: Dataset, options: Options
) -> None:
    """Refuse what the results were not made with.

    Raises:
        UsageError: the model, the data set or the options are others.
    """
    now = header_of(model, dataset, summary.settings, options)
    other = [key for key in ("model", "dataset", "options") if now[key] != summary.header[key]]
    if other:
        raise UsageError(f"the results were made with other {', '.join(other)}: give the same")


def criterion_of(summary: Summary) -> Criterion | None:
    """What the maps of CLRP2, or else of the last method, are chosen by; None if by nothing.

    Where the map lies, if any object has a box; else what its peak is worth to the score, or the
    order of its pixels.
    """
    method = _PREFERRED if _PREFERRED in summary.methods else summary.methods[-1]
    columns = summary.maps.column_names
    drop = f"drop_{max(summary.settings.patches)}"
    for first, less, words in (
        ("inside", "in_others", "energy inside the boxes less that in other objects' boxes"),
        (drop, None, "drop of the score by the largest patch"),
        ("insertion", "deletion", "area under insertion less that under deletion"),
    ):
        if first in columns:
            values = summary.values(first, method)[0]
            if less is not None:  # where there is no other object, no energy lies in one
                values = values - np.nan_to_num(summary.values(less, method)[0])
            if not np.isnan(values).all():
                return Criterion(method, first, words, values)
    return None


def gallery(
    summary: Summary,
    criterion: Criterion,
    count: int,
    model: onnx.ModelProto,
    dataset: Dataset,
    options: Options,
    *,
    device: str = "auto",
    labels: Sequence[str] | None = None,
) -> Gallery:
    """Explain the pictures at the two ends of a criterion once more.

    Args:
        summary: the results.
        criterion: by what to choose.
        count: how many examples of each end.
        model: that of the evaluation.
        dataset: that of the evaluation.
        options: those of the evaluation.
        device: as for `Explainer`.
        labels: the names of the classes; those in the model's metadata by default.

    Raises:
        UsageError: there is not a label for each class.
        ImageError: a picture cannot be read any more.
    """
    judge = Judge(model, summary.settings, device, options)
    names = labels or next(iter(judge.explainers.values())).labels
    if names is not None and len(names) != judge.scorer.classes:
        raise UsageError(f"there are {len(names)} labels, but {judge.scorer.classes} classes")
    tables = {method: summary.of(method) for method in summary.methods}

    def rows_at(place: int) -> dict[str, Row]:
        return {m: table.slice(place, 1).to_pylist()[0] for m, table in tables.items()}

    ends = [[(p, rows_at(p)) for p in places] for places in criterion.ends(count)]
    keys = {rows[criterion.method]["image"] for end in ends for _, rows in end}
    samples = {sample.key: sample for sample in dataset if sample.key in keys}
    most, least = (
        [
            _example(judge, samples[rows[criterion.method]["image"]], rows, criterion, at, names)
            for at, rows in end
        ]
        for end in ends
    )
    return Gallery(criterion, most, least, judge.notes)


def _example(
    judge: Judge,
    sample: Sample,
    rows: dict[str, Row],
    criterion: Criterion,
    place: int,
    names: Sequence[str] | None,
) -> Example:
    one, row = loaded(sample, judge.preprocessing), rows[criterion.method]
    target: int = row["target"]
    batch = judge.preprocessing.batch([one.picture])
    maps = []
    for method, explainer in judge.explainers.items():
        heatmap = explainer.explain(batch, [target]).heatmap()[0, 0]
        picture, words = overlay(one.picture, heatmap), _words(rows[method], criterion.column)
        maps.append(Drawn(method, _address(picture), rows[method], words))
    scores = judge.scorer.logits(batch)[0].astype(np.float64)
    boxes, others = _boxes(judge, one, scores, target)
    height, width = one.picture.shape[:2]
    return Example(
        value=float(criterion.values[place]),
        row=row,
        label=None if names is None else names[target],
        picture=_address(one.picture),
        size=(width, height),
        boxes=boxes,
        others=others,
        maps=maps,
    )


def _words(row: Row, column: str) -> str:
    if row["peak_row"] is None:
        return "nothing positive"
    words = [] if row["pointing"] is None else ["hits" if row["pointing"] else "misses"]
    if row["inside"] is not None:
        words.append(f"{100 * row['inside']:.0f} % inside")
    elif row[column] is not None:
        words.append(minus(f"{column.partition('_')[0]} {row[column]:.3g}"))
    return ", ".join(words)


def _boxes(
    judge: Judge, one: Loaded, scores: Values, target: int
) -> tuple[list[Edges], list[Edges]]:
    """The boxes of a class and of the picture's others, as the model sees them."""
    sides: tuple[list[Edges], list[Edges]] = ([], [])
    for found in one.sample.objects:
        masks = (mask_of([box], one.size, judge.preprocessing) for box in found.boxes)
        side = sides[target_of(found, scores) != target]
        side += [_edges(mask) for mask in masks if mask.any()]
    return sides


def _edges(mask: Mask) -> Edges:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return Edges(x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)


def _address(picture: Picture) -> str:
    """A picture as a `data:` address: tiny ones crisp, photographs small."""
    tiny = max(picture.shape[:2]) <= TINY
    image, file = Image.fromarray(scaled(picture, _SHORTEST, _LONGEST)), io.BytesIO()
    if tiny:
        image.save(file, "PNG", optimize=True)
    else:  # without halving the colours, which are what a map is made of
        image.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
