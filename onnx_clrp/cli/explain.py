"""`onnx-clrp explain`: an overlay picture for each image, target and method, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.output import notice, print_json, print_table, progress
from onnx_clrp.errors import ClrpError, ImageError, UsageError
from onnx_clrp.files import open_whole, safe_name
from onnx_clrp.labels import parse_targets, read_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_clrp.image import Picture, Preprocessing
    from onnx_clrp.runtime import Explainer, Result

_AGAINST = "score below zero: evidence against"
_AT_ONCE = 8
"""Images that are decoded and explained together."""

_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".jp2",
    ".avif",
)


@dataclass(frozen=True)
class Row:
    """One map: what the table and the JSON say of it."""

    image: str
    method: str
    target: int
    label: str | None
    score: float
    relevance: float
    picture: str
    arrays: str | None


@dataclass(frozen=True)
class Job:
    """What is done with every image."""

    explainers: Sequence[Explainer]
    preprocessing: Preprocessing
    targets: list[int] | None
    feeds: dict[str, NDArray[Any]]
    labels: list[str] | None
    folder: Path
    save_arrays: bool
    sheet: bool


@click.command("explain")
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
@click.option(
    "--method",
    multiple=True,
    type=click.Choice(["lrp", "clrp1", "clrp2"]),
    help="The method; may be given several times.  [default: clrp2]",
)
@common.rules_option
@common.labels_option
@click.option("--signed", is_flag=True, help="Show what speaks against a class too.")
@click.option(
    "--sheet", is_flag=True, help="Also one picture per image and method with all its targets."
)
@click.option("--save-arrays", is_flag=True, help="Also the numbers, as .npz.")
@common.json_option
@common.device_option
@common.graph_options
@common.feed_option
@common.preprocessing_options
def command(images: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Draw where in IMAGES the MODEL sees a class: what speaks for it, and for no other.

    IMAGES are files, or folders of them. The top class is explained unless --target or --top
    says otherwise.
    """
    is_new = not given["out"].exists()
    job = _job(given)
    paths, errors = _files(images)
    for error in errors:
        notice(error)
    try:
        rows, failed = _explained(job, paths)
    finally:
        if is_new:
            with suppress(OSError):  # there are pictures in it
                job.folder.rmdir()
    errors += failed
    if as_json:
        first = job.explainers[0]
        facts = {"device": first.device, "notes": first.notes}
        print_json({**facts, "explanations": [asdict(r) for r in rows], "errors": errors})
    else:
        _print(rows, job)
    if errors:
        raise SystemExit(1)


def _job(given: dict[str, Any]) -> Job:
    """Everything that can be wrong with the words of the command is found here, before any work."""
    from onnx_clrp.model import PREFIX, load, metadata
    from onnx_clrp.runtime import Explainer

    target, top = given.pop("target"), given.pop("top")
    if target and top is not None:
        raise UsageError("--target and --top exclude each other")
    labels_file, folder, device = (given.pop(key) for key in ("labels", "out", "device"))
    save_arrays, sheet = given.pop("save_arrays"), given.pop("sheet")
    feeds = common.feeds_of(given.pop("feed"))
    methods = given.pop("method")
    proto = load(given.pop("model"))
    choices = common.graph_choices(proto, given)
    if top is not None:
        choices["target"] = f"top:{top}"
    if PREFIX + "method" in metadata(proto) and not methods:
        explainers = [Explainer(proto, device=device, **choices)]
    else:
        names = dict.fromkeys(methods or ("clrp2",))
        explainers = [Explainer(proto, device=device, **{**choices, "method": m}) for m in names]
    first = explainers[0]
    if first.preprocessing is None:
        if PREFIX + "method" in metadata(proto):
            raise UsageError(
                "the explainer does not know how pictures become its input: convert the model"
                " again, with --preset"
            )
        raise UsageError("say how pictures become the model's input: --preset, --mean, --std, …")
    labels = first.labels if labels_file is None else read_labels(labels_file, first.classes)
    targets = parse_targets(target, labels, first.classes) if target else None
    for note in first.notes:
        notice(note)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClrpError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    settled = (first.preprocessing, targets, feeds, labels, folder, save_arrays, sheet)
    return Job(explainers, *settled)


def _fed(
    feeds: dict[str, NDArray[Any]], chosen: Sequence[int], total: int
) -> dict[str, NDArray[Any]]:
    """The other inputs for some of the images: their own rows, or the only row for each."""
    fed = {}
    for name, value in feeds.items():
        rows = value.shape[0] if value.ndim > 1 else 0
        fed[name] = value[chosen] if rows == total > 0 else value
        if rows == 1 != len(chosen):
            fed[name] = value.repeat(len(chosen), axis=0)
    return fed


def _files(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files, with the pictures in folders by their name; and a line for each that has none."""
    paths: list[Path] = []
    errors: list[str] = []
    for path in images:
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            errors.append(f"the folder {str(path)!r} cannot be read: {error.strerror}")
            continue
        found = [path] if inside is None else [p for p in inside if p.suffix.lower() in _SUFFIXES]
        paths += found
        if not found:
            errors.append(f"no pictures in the folder {str(path)!r}")
    return paths, errors


def _explained(job: Job, paths: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all maps, and a line for each image that could not be explained."""
    import numpy as np

    rows: list[Row] = []
    errors: list[str] = []

    def failed(reason: str) -> None:
        errors.append(reason)
        notice(reason)

    names = _unique([safe_name(path.stem) for path in paths])
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
                fed = _fed(job.feeds, [*pictures], len(paths))
                result = explainer.explain(batch, job.targets, fed)
                for n, (i, picture) in enumerate(pictures.items()):
                    if np.isfinite(result.relevance[n]).all():
                        args = (result, n, paths[i], names[i], picture)
                        rows += _drawn(job, explainer.method, *args)
                    else:
                        failed(f"image {str(paths[i])!r}: the model gives no finite relevance")
            bar.advance(task, min(_AT_ONCE, len(paths) - start))
    return rows, errors


def _drawn(
    job: Job, method: str, result: Result, n: int, path: Path, name: str, picture: Picture
) -> list[Row]:
    """Draw the maps of one sample; a row for each."""
    from onnx_clrp.render import Panel, draw

    maps, rows, panels = result.heatmap()[n], [], []
    arrays = job.folder / f"{name}.{method}.npz" if job.save_arrays else None
    if arrays is not None:
        _save(arrays, result, n)
    for k, target in enumerate(result.target[n].tolist()):
        label, score = _label(job, target), float(result.seed[n, k])
        shown = label or f"class {target}"
        panels.append(Panel(maps[k], shown, score, _AGAINST if score < 0 else ""))
        file = job.folder / f"{name}.{target}{'_' + safe_name(label) if label else ''}.{method}.png"
        draw(picture, panels[-1:], method=method.upper(), path=file, title=path.name)
        if score < 0:
            notice(
                f"{path.name}: the score of {shown} is below zero: the map shows evidence against"
            )
        rows.append(
            Row(
                str(path),
                method,
                target,
                label,
                score,
                float(maps[k].sum()),
                str(file),
                None if arrays is None else str(arrays),
            )
        )
    if job.sheet:
        sheet = job.folder / f"{name}.{method}.sheet.png"
        draw(picture, panels, method=method.upper(), path=sheet, title=path.name)
    return rows


def _label(job: Job, target: int) -> str | None:
    """The class's name, without its synonyms."""
    return None if job.labels is None else job.labels[target].split(",")[0].strip()


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
        )


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that came before, also in other capitals."""
    taken: set[str] = set()
    unique = []
    for name in names:
        choices = chain([name], (f"{name}-{i}" for i in count(2)))
        unique.append(next(choice for choice in choices if choice.casefold() not in taken))
        taken.add(unique[-1].casefold())
    return unique


def _print(rows: Sequence[Row], job: Job) -> None:
    if not rows:
        return
    print_table(
        ["image", "method", "class", "label", "score", "ΣR", "file"],
        [
            [
                *(Path(r.image).name, r.method, str(r.target), r.label or ""),
                *(f"{r.score:.3f}", f"{r.relevance:.3g}", r.picture),
            ]
            for r in rows
        ],
        right=["class", "score", "ΣR"],
    )
    click.echo(f"{len(rows)} map{'s' * (len(rows) > 1)} on {job.explainers[0].device}")
