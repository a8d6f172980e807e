"""`onnx-clrp compare`: one picture, rows of images, columns of methods, two classes of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.job import Job, against, job_of
from onnx_clrp.cli.output import notice, progress
from onnx_clrp.cli.pictures import files
from onnx_clrp.errors import HalfOverflowError, ImageError, UsageError

if TYPE_CHECKING:
    from onnx_clrp.figures import Row

METHODS = ("gradient", "guided_backprop", "lrp", "clrp1", "clrp2")
"""The columns where none are named: those of the paper's comparison."""

_NO_NEURONS: dict[str, Any] = {"neuron": (), "top_neurons": None, "at": ()}
"""A comparison is of classes at the input; explain draws neurons."""


@click.command("compare", cls=Headed)
@common.model_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("comparison.png"),
    show_default=True,
    help="The picture.",
)
@common.target_option
@common.top_option
@common.methods_option(", ".join(METHODS))
@common.labels_option
@click.option("--title", default="", help="A line above the picture.")
@common.device_option
@click.option("--layer", metavar="NAME", help="The layer of Grad-CAM.")
@common.contrast_options
@common.rules_options
@common.graph_options
@common.feed_option
@common.preprocessing_options
def command(images: tuple[Path, ...], out: Path, title: str, **given: Any) -> None:
    """Draw MODEL's IMAGES in rows and methods in columns, for two classes of each image.

    The classes are the two highest scores of each image unless --target or --top says otherwise;
    the methods are gradient, guided_backprop, lrp, clrp1 and clrp2.
    """
    from onnx_clrp.figures import MAX_METHODS, MAX_ROWS, MAX_TARGETS, draw_comparison

    if out.suffix.lower() != ".png":
        raise UsageError(f"a comparison is a .png, not {str(out)!r}")
    _refuse("methods", len(dict.fromkeys(given["method"])), MAX_METHODS)
    _refuse("targets a picture", given["top"] or 0, MAX_TARGETS)
    job = job_of({**given, **_NO_NEURONS}, METHODS, top=2)
    _refuse("targets a picture", len(job.targets or ()), MAX_TARGETS)
    paths, errors = files(images)
    for error in errors:
        notice(error)
    if len(paths) > MAX_ROWS:
        raise UsageError(f"a comparison takes {MAX_ROWS} images at most, not {len(paths)}")
    rows, failed = _rows(job, paths)
    if rows:
        draw_comparison(rows, [e.title for e in job.explainers], path=out, title=title)
        counts = {"image": len(rows), "method": len(job.explainers)}
        notice(f"wrote {out}: " + ", ".join(f"{n} {x}{'s' * (n > 1)}" for x, n in counts.items()))
    if errors or failed:
        raise SystemExit(1)


def _refuse(what: str, count: int, most: int) -> None:
    """Refuse before any work what the picture has no room for."""
    if count > most:
        raise UsageError(f"a comparison takes 1 to {most} {what}, not {count}")


def _rows(job: Job, paths: Sequence[Path]) -> tuple[list[Row], int]:
    """A row for each image, and how many could not be explained."""
    rows, failed = [], 0
    with progress() as bar:
        task = bar.add_task("explaining", total=len(paths))
        for i, path in enumerate(paths):
            try:
                rows.append(_row(job, path, i, len(paths)))
            except ImageError as error:
                notice(str(error))
                failed += 1
            bar.advance(task)
    return rows, failed


def _row(job: Job, path: Path, i: int, total: int) -> Row:
    """All maps of one image.

    Raises:
        ImageError: it cannot be read, a map is not finite, or it is too much for float16.
    """
    import numpy as np

    from onnx_clrp.figures import Row
    from onnx_clrp.render import Panel

    picture = job.preprocessing.picture(path)
    batch, fed = job.preprocessing.batch([picture]), job.fed([i], total)
    try:
        results = [explainer.explain(batch, job.targets, fed) for explainer in job.explainers]
    except HalfOverflowError as error:
        raise ImageError(f"image {str(path)!r}: {error}") from error
    if not all(np.isfinite(result.relevance).all() for result in results):
        raise ImageError(f"image {str(path)!r}: the model gives no finite relevance")
    maps = [result.heatmap()[0] for result in results]
    targets, scores = results[0].target[0].tolist(), results[0].seed[0].tolist()
    panels = [
        [
            Panel(heatmap[k], job.shown(target), scores[k], against(result.method, scores[k]))
            for heatmap, result in zip(maps, results, strict=True)
        ]
        for k, target in enumerate(targets)
    ]
    return Row(picture, path.name, panels)
