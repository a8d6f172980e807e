"""What comes of an image by a method: rows of the table, remarks, and what is to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_clrp.cli.drawing import Drawing
from onnx_clrp.cli.job import Job, against
from onnx_clrp.files import safe_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_clrp.image import Picture
    from onnx_clrp.render import Panel
    from onnx_clrp.runtime import Explainer, Result


@dataclass(frozen=True)
class Wanted:
    """What is made of every image, beside a picture of each map.

    Attributes:
        folder: where it goes.
        arrays: are the numbers saved?
        sheet: is there a picture with all targets?
    """

    folder: Path
    arrays: bool
    sheet: bool


@dataclass(frozen=True)
class Image:
    """An image: its file, what files made of it are called, and what the model sees of it."""

    path: Path
    name: str
    picture: Picture


@dataclass(frozen=True)
class Row:
    """One map: what the table and the JSON say of it."""

    image: str
    method: str
    target: int
    label: str | None
    layer: str | None
    score: float
    relevance: float
    picture: str
    arrays: str | None


@dataclass(frozen=True)
class Outcome:
    """What comes of an image by a method, or by all of them where it cannot be read.

    Attributes:
        share: how much of the work on the image that was.
        error: why nothing came of it.
        remarks: what the user is told beside the rows.
        rows: one for each map.
        drawing: what is to be drawn.
    """

    share: float
    error: str | None = None
    remarks: Sequence[str] = ()
    rows: Sequence[Row] = ()
    drawing: Drawing | None = None


def outcome_of(
    job: Job,
    wanted: Wanted,
    explainer: Explainer,
    image: Image,
    result: Result,
    n: int,
    maps: NDArray[Any],
) -> Outcome:
    """What comes of an image that is sample n of a result, and whose heatmaps are given."""
    if not _is_finite(result.relevance[n]):
        return failure_of(job, image, "the model gives no finite relevance")
    targets = result.target[n].tolist()
    panels = _panels(job, result, n, maps)
    drawing = _drawing(job, wanted, explainer, image, panels, targets, _numbers(result, n, maps))
    rows = [
        Row(
            image=str(image.path),
            method=result.method,
            target=target,
            label=job.label(target),
            layer=None if job.layer is None else job.layer["name"],
            score=panel.score,
            relevance=float(panel.heatmap.sum()),
            picture=str(file),
            arrays=None if drawing.arrays is None else str(drawing.arrays),
        )
        for target, panel, file in zip(targets, panels, drawing.files, strict=True)
    ]
    remarks = [
        f"{image.path.name}: the score of {panel.label} is below zero: the map shows evidence"
        " against"
        for panel in panels
        if panel.note
    ]
    return Outcome(1 / len(job.explainers), None, remarks, rows, drawing)


def failure_of(job: Job, image: Image, reason: object) -> Outcome:
    """That nothing comes of an image by one of the methods, and why."""
    return Outcome(1 / len(job.explainers), error=f"image {str(image.path)!r}: {reason}")


def _is_finite(relevance: NDArray[Any]) -> bool:
    import numpy as np

    return bool(np.isfinite(relevance).all())


def _panels(job: Job, result: Result, n: int, maps: NDArray[Any]) -> list[Panel]:
    from onnx_clrp.render import Panel

    told = zip(maps, result.target[n].tolist(), result.seed[n].tolist(), strict=True)
    return [
        Panel(heatmap, job.shown(target), score, against(result.method, score))
        for heatmap, target, score in told
    ]


def _drawing(
    job: Job,
    wanted: Wanted,
    explainer: Explainer,
    image: Image,
    panels: Sequence[Panel],
    targets: Sequence[int],
    numbers: dict[str, NDArray[Any]],
) -> Drawing:
    """Where everything goes: the neurons of a layer into one figure, every other map on its own."""
    folder, method, layer = wanted.folder, explainer.method, job.layer
    stem = image.name if layer is None else f"{image.name}.{safe_name(layer['name'])}"
    files = [folder / f"{stem}.{method}.png"] * len(panels)
    if layer is None:
        files = [folder / f"{stem}.{_part(job, target)}.{method}.png" for target in targets]
    sheet = wanted.sheet and layer is None
    return Drawing(
        picture=image.picture,
        panels=panels,
        method=explainer.title,
        title=image.path.name if layer is None else f"{image.path.name}, {layer['name']}",
        files=files,
        neurons=layer is not None,
        sheet=folder / f"{stem}.{method}.sheet.png" if sheet else None,
        arrays=folder / f"{stem}.{method}.npz" if wanted.arrays else None,
        numbers=numbers if wanted.arrays else {},
    )


def _part(job: Job, target: int) -> str:
    """What a file's name says of a class."""
    label = job.label(target)
    return f"{target}_{safe_name(label)}" if label else str(target)


def _numbers(result: Result, n: int, maps: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What is saved of a sample, by its name in the file."""
    return {
        "relevance": result.relevance[n],
        "heatmap": maps,
        "target": result.target[n],
        "seed": result.seed[n],
        "logits": result.logits[n],
        **{f"at/{name}": values[n] for name, values in result.at.items()},
    }
