"""`onnx-clrp explain`: an overlay picture for each image, target and method, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.job import Job, against, job_of
from onnx_clrp.cli.neurons import refuse_crowd
from onnx_clrp.cli.output import notice, print_json, print_table, progress
from onnx_clrp.cli.pictures import files, unique
from onnx_clrp.errors import ClrpError, ImageError
from onnx_clrp.files import open_whole, safe_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_clrp.image import Picture
    from onnx_clrp.render import Panel
    from onnx_clrp.runtime import Explainer, Result

_AT_ONCE = 8
"""Images that are decoded and explained together."""


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


@click.command("explain", cls=Headed)
@common.model_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("explanations"),
    show_default=True,
    help="The folder for the pictures.",
)
@common.target_option
@common.top_option
@common.methods_option("clrp2")
@common.labels_option
@click.option(
    "--sheet", is_flag=True, help="Also one picture per image and method with all its targets."
)
@click.option("--save-arrays", is_flag=True, help="Also the numbers, as .npz.")
@common.json_option
@common.device_option
@common.layer_options
@common.contrast_options
@common.rules_options
@common.graph_options
@common.feed_option
@common.preprocessing_options
def command(images: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Draw where in IMAGES the MODEL sees a class: what speaks for it, and for no other.

    IMAGES are files, or folders of them. The top class is explained unless --target or --top
    says otherwise; with --layer and --neuron or --top-neurons, neurons of a hidden layer are.
    """
    folder = given.pop("out")
    is_new = not folder.exists()
    arrays = given.pop("save_arrays") or bool(given["at"])
    wanted = Wanted(folder, arrays, given.pop("sheet"))
    refuse_crowd(given["neuron"], given["top_neurons"])
    job = job_of(given, ["clrp2"], top=1)  # the graph itself finds the top class
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClrpError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    paths, errors = files(images)
    for line in errors:
        notice(line)
    try:
        rows, failed = _explained(job, wanted, paths)
    finally:
        if is_new:
            with suppress(OSError):  # there are pictures in it
                folder.rmdir()
    errors += failed
    if as_json:
        first = job.explainers[0]
        facts = {"device": first.device, "notes": first.notes}
        print_json({**facts, "explanations": [asdict(r) for r in rows], "errors": errors})
    else:
        _print(rows, job)
    if errors:
        raise SystemExit(1)


def _explained(job: Job, wanted: Wanted, paths: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all maps, and a line for each image that could not be explained."""
    import numpy as np

    rows: list[Row] = []
    errors: list[str] = []

    def failed(reason: str) -> None:
        errors.append(reason)
        notice(reason)

    names = unique([safe_name(path.stem) for path in paths])
    with progress() as bar:
        task = bar.add_task("explaining", total=len(paths))
        for start in range(0, len(paths), _AT_ONCE):
            pictures = {}
            for i in range(start, min(start + _AT_ONCE, len(paths))):
                try:
                    pictures[i] = job.preprocessing.picture(paths[i])
                except ImageError as error:
                    failed(str(error))
            for explainer in job.explainers if pictures else ():
                batch = job.preprocessing.batch(pictures.values())
                fed = job.fed([*pictures], len(paths))
                result = explainer.explain(batch, job.targets, fed)
                for n, (i, picture) in enumerate(pictures.items()):
                    if np.isfinite(result.relevance[n]).all():
                        args = (result, n, paths[i], names[i], picture)
                        rows += _drawn(job, wanted, explainer, *args)
                    else:
                        failed(f"image {str(paths[i])!r}: the model gives no finite relevance")
            bar.advance(task, min(_AT_ONCE, len(paths) - start))
    return rows, errors


def _drawn(
    job: Job,
    wanted: Wanted,
    explainer: Explainer,
    result: Result,
    n: int,
    path: Path,
    name: str,
    picture: Picture,
) -> list[Row]:
    """Draw the maps of one sample; a row for each."""
    stem, maps = f"{name}.{_place(job)}", result.heatmap()[n]
    arrays = wanted.folder / f"{stem}{result.method}.npz" if wanted.arrays else None
    if arrays is not None:
        _save(arrays, result, n)
    panels, targets = _panels(job, result, n, maps, path), result.target[n].tolist()
    drawn = _pictures(job, wanted, stem, path, picture, panels, targets, explainer)
    return [
        Row(
            image=str(path),
            method=result.method,
            target=target,
            label=job.label(target),
            layer=None if job.layer is None else job.layer["name"],
            score=panel.score,
            relevance=float(panel.heatmap.sum()),
            picture=str(file),
            arrays=None if arrays is None else str(arrays),
        )
        for target, panel, file in zip(targets, panels, drawn, strict=True)
    ]


def _place(job: Job) -> str:
    """What a file's name says of the layer whose neurons are explained."""
    return "" if job.layer is None else f"{safe_name(job.layer['name'])}."


def _panels(job: Job, result: Result, n: int, maps: NDArray[Any], path: Path) -> list[Panel]:
    from onnx_clrp.render import Panel

    panels = []
    for k, target in enumerate(result.target[n].tolist()):
        score, shown = float(result.seed[n, k]), job.shown(target)
        warning = against(result.method, score)
        panels.append(Panel(maps[k], shown, score, warning))
        if warning:
            notice(
                f"{path.name}: the score of {shown} is below zero: the map shows evidence against"
            )
    return panels


def _pictures(
    job: Job,
    wanted: Wanted,
    stem: str,
    path: Path,
    picture: Picture,
    panels: Sequence[Panel],
    targets: Sequence[int],
    explainer: Explainer,
) -> list[Path]:
    """Draw every map, or all neurons in one figure; the file that each is in."""
    from onnx_clrp.figures import draw_neurons
    from onnx_clrp.render import draw

    folder, method, title = wanted.folder, explainer.method, explainer.title
    if job.layer is not None:
        file = folder / f"{stem}{method}.png"
        heading = f"{path.name}, {job.layer['name']}"
        draw_neurons(picture, panels, method=title, path=file, title=heading)
        return [file] * len(panels)
    drawn = []
    for panel, target in zip(panels, targets, strict=True):
        label = job.label(target)
        drawn.append(
            folder / f"{stem}{target}{'_' + safe_name(label) if label else ''}.{method}.png"
        )
        draw(picture, [panel], method=title, path=drawn[-1], title=path.name)
    if wanted.sheet:
        sheet = folder / f"{stem}{method}.sheet.png"
        draw(picture, panels, method=title, path=sheet, title=path.name)
    return drawn


def _save(path: Path, result: Result, n: int) -> None:
    import numpy as np

    with open_whole(path) as file:
        np.savez_compressed(
            file,
            relevance=result.relevance[n],
            heatmap=result.heatmap()[n],
            target=result.target[n],
            seed=result.seed[n],
            logits=result.logits[n],
            **{f"at/{name}": values[n] for name, values in result.at.items()},
        )


def _print(rows: Sequence[Row], job: Job) -> None:
    if not rows:
        return
    explained = "class" if job.layer is None else "neuron"
    print_table(
        ["image", "method", explained, "label", "score", "ΣR", "file"],
        [
            [
                *(Path(r.image).name, r.method, str(r.target), r.label or ""),
                *(f"{r.score:.3f}", f"{r.relevance:.3g}", r.picture),
            ]
            for r in rows
        ],
        right=[explained, "score", "ΣR"],
    )
    click.echo(f"{len(rows)} map{'s' * (len(rows) > 1)} on {job.explainers[0].device}")
