"""`onnx-clrp explain`: an overlay picture for each image, target and method, and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.job import Job, job_of
from onnx_clrp.cli.neurons import refuse_crowd
from onnx_clrp.cli.outcome import Image, Outcome, Row, Wanted, failure_of, outcome_of
from onnx_clrp.cli.output import notice, print_json, print_table, progress
from onnx_clrp.cli.pictures import files, unique
from onnx_clrp.cli.pipeline import Work, ahead, in_turn, processes, threads
from onnx_clrp.errors import ClrpError, HalfOverflowError, ImageError
from onnx_clrp.files import safe_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_clrp.image import Picture
    from onnx_clrp.runtime import Explainer

AT_ONCE = 8
"""Images that are explained together."""

AHEAD = 2 * AT_ONCE
"""Images that are decoded, and sets of maps that are drawn, beside those that are explained."""


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
@common.half_option
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
        rows, failed = explained(job, wanted, paths)
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


def explained(job: Job, wanted: Wanted, paths: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """Draw every map: the rows, and a line for each image that could not be explained.

    While the session runs, the images that come next are decoded, and the maps that it gave
    before are drawn.
    """
    rows: list[Row] = []
    errors: list[str] = []
    runs = math.ceil(len(paths) / AT_ONCE) * len(job.explainers)
    # A single run has nothing to draw beside it, and processes take a while to start.
    drawing = processes() if runs > 1 else nullcontext(in_turn)
    with progress() as bar, threads() as decoding, drawing as begin:
        task = bar.add_task("explaining", total=len(paths))

        def decode(path: Path) -> Future[Picture]:
            return decoding.submit(job.preprocessing.picture, path)

        def draw(outcome: Outcome) -> Work | None:
            return begin(outcome.drawing.make) if outcome.drawing else None

        outcomes = _outcomes(job, wanted, paths, ahead(paths, decode, AHEAD))
        for outcome, drawn in ahead(outcomes, draw, AHEAD):
            told = [outcome.error] if outcome.error else outcome.remarks
            for line in told:
                notice(line)
            if drawn is not None:
                drawn()
            rows += outcome.rows
            errors += [outcome.error] if outcome.error else []
            bar.advance(task, outcome.share)
    return rows, errors


def _outcomes(
    job: Job,
    wanted: Wanted,
    paths: Sequence[Path],
    decoded: Iterator[tuple[Path, Future[Picture]]],
) -> Iterator[Outcome]:
    """What comes of all images, in the order in which it is told; nothing is drawn yet."""
    names = unique([safe_name(path.stem) for path in paths])
    for start in range(0, len(paths), AT_ONCE):
        images = {}
        for i, (path, picture) in enumerate(islice(decoded, AT_ONCE), start):
            try:
                images[i] = Image(path, names[i], picture.result())
            except ImageError as error:
                yield Outcome(share=1, error=str(error))
        if not images:
            continue
        batch = job.preprocessing.batch(image.picture for image in images.values())
        for explainer in job.explainers:
            yield from _explained(job, wanted, explainer, images, batch, len(paths))


def _explained(
    job: Job,
    wanted: Wanted,
    explainer: Explainer,
    images: Mapping[int, Image],
    batch: NDArray[Any],
    total: int,
) -> Iterator[Outcome]:
    """What comes of images, by their places among all: together, or one by one if one overflows."""
    import numpy as np

    try:
        result = explainer.explain(batch, job.targets, job.fed([*images], total))
    except HalfOverflowError as error:
        if len(images) == 1:
            yield from (failure_of(job, image, error) for image in images.values())
            return
        for n, (i, image) in enumerate(images.items()):
            yield from _explained(job, wanted, explainer, {i: image}, batch[n : n + 1], total)
        return
    with np.errstate(invalid="ignore"):  # what is not finite is reported
        maps = result.heatmap()
    for n, image in enumerate(images.values()):
        yield outcome_of(job, wanted, explainer, image, result, n, maps[n])


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
