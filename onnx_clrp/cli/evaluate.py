"""`evaluate`: the paper's experiments over a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.output import counted, notice, print_json, print_table
from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.settings import (
    ENGINES,
    EXPERIMENTS,
    PROBABILITIES,
    USUAL_METHODS,
    Settings,
    explains_neurons,
)

if TYPE_CHECKING:
    from onnx_clrp.evaluate.dataset import Dataset
    from onnx_clrp.evaluate.statistics import Estimate
    from onnx_clrp.evaluate.summary import Summary
    from onnx_clrp.program import Program

_NEEDS = "evaluate needs further libraries: pip install 'onnx-clrp[evaluate]'"
_SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the energy that the printed table has, of all that are swept."""


def _number(flag: str, field: str, least: int, text: str | None = None) -> Callable[..., Any]:
    """An option for a number of the settings, with their default."""
    return click.option(
        flag,
        field,
        type=click.IntRange(min=least),
        default=getattr(Settings, field),
        show_default=True,
        metavar="N",
        help=text,
    )


_data_options = common.together(
    click.option(
        "--format",
        metavar="NAME",
        help="folder, ilsvrc, voc, coco or manifest; told from what is there.",
    ),
    click.option(
        "--annotations",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Where the boxes are: a folder of XML, or a JSON or CSV file.",
    ),
    click.option(
        "--images",
        type=click.Path(path_type=Path),
        help="The folder of pictures, if DATA is a file.",
    ),
    click.option("--split", metavar="NAME", help="The split, of data sets that have several."),
    click.option(
        "--units",
        type=click.Choice(["pixels", "fractions"]),
        help="Of the boxes in a file of your own.",
    ),
    click.option(
        "--synsets",
        type=click.Path(path_type=Path),
        help="WordNet ids in the order of the model's classes.",
    ),
    click.option(
        "--classes",
        type=click.Path(path_type=Path),
        help='Which classes stand for a name of the data set: {"zebra": [340], …}.',
    ),
    click.option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="N pictures drawn at random."
    ),
)
_experiment_options = common.together(
    click.option(
        "--experiment",
        "experiments",
        multiple=True,
        type=click.Choice(EXPERIMENTS),
        help=f"May be given several times.  [default: {', '.join(Settings.experiments)}]",
    ),
    click.option("--layer", metavar="NAME", help="The layer of the experiment with neurons."),
    _number("--neurons", "neurons", 2, "How many of its neurons, the most active ones."),
    click.option(
        "--patch",
        "patches",
        multiple=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Side of the patch that ablation replaces; may be given several times."
        f"  [default: {', '.join(map(str, Settings.patches))}]",
    ),
    click.option(
        "--probability",
        type=click.Choice(PROBABILITIES),
        default=Settings.probability,
        show_default=True,
        help="What makes a probability of the scores.",
    ),
    _number("--tolerance", "tolerance", 0, "Pixels that a peak may lie beside the box."),
    _number("--steps", "steps", 2, "Steps of a deletion or insertion curve."),
    _number(
        "--stages",
        "stages",
        1,
        "Of a cascade: how often further layers are shuffled, until all are.",
    ),
    _number(
        "--shuffled-pictures",
        "shuffled_pictures",
        1,
        "Pictures that a cascade explains, drawn at random.",
    ),
    _number("--objects", "most_objects", 1, "Objects of a picture that are explained at most."),
    _number("--batch", "batch", 1, "Pictures that are explained together."),
    _number("--seed", "seed", 0),
    click.option(
        "--largest",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="SHARE",
        help="Average only objects whose boxes cover at most that share of the picture.",
    ),
    click.option("--only-right", is_flag=True, help="Average only targets with the highest score."),
)


@click.command("evaluate", cls=Headed)
@common.model_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evaluation"),
    show_default=True,
    help="The folder for the results; one that was broken off is gone on with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@click.option(
    "--report/--no-report",
    default=True,
    show_default=True,
    help="Also write report.html: tables, curves, the best and the worst maps.",
)
@click.option(
    "--save-maps",
    is_flag=True,
    help="Also keep every map as .npz, for tools such as Quantus: about 0.2 MB each at 224 pixels.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="This process, or the workers of a Ray cluster.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many workers of the cluster; all of them, if not said.",
)
@_data_options
@_experiment_options
@common.methods_option(", ".join(USUAL_METHODS))
@common.labels_option
@common.device_option
@common.rules_options
@common.graph_options
@common.preprocessing_options
def command(data: Path, out: Path, as_json: bool, report: bool, **given: Any) -> None:
    """Measure what MODEL's maps are worth on DATA, images with the classes of what is in them.

    DATA is a folder with a folder for each class, a folder of ILSVRC, Pascal VOC or COCO, or a
    CSV or JSON file of images, labels and boxes. The experiments are those of the paper: whether
    the map points at the object, what the patch at its maximum is worth to the score, and how it
    tells two classes of a picture apart.
    """
    try:
        for library in ("jinja2", "pyarrow"):  # what comes next needs both, but not at once
            import_module(library)
        from onnx_clrp.evaluate.report import write_report
        from onnx_clrp.evaluate.run import evaluate
        from onnx_clrp.evaluate.summary import Summary
    except ModuleNotFoundError as error:
        raise UsageError(_NEEDS) from error
    from onnx_clrp.model import load
    from onnx_clrp.program import read_program, reading

    narrow = {key: given.pop(key) for key in ("largest", "only_right")}
    settings = _settings(given)
    device, model = given.pop("device"), given.pop("model")
    proto = load(model)
    source = {key: given.pop(key) for key in _SOURCE}
    options = common.graph_choices(proto, given)
    program = read_program(proto, **reading(options))
    dataset = _dataset(program, data, settings.seed, **source)
    where = {key: given.pop(key) for key in ("engine", "workers")}
    with counted() as watch:
        notes = evaluate(
            proto, dataset, out, settings, device=device, options=options, watch=watch, **where
        )
    for note in (*dataset.notes, *notes):
        notice(note)
    summary = Summary(out, **narrow)
    if report:
        path = write_report(
            summary,
            model=model,
            dataset=dataset,
            device=device,
            options=options,
            labels=common.labels_of(program, source["labels"]),
        )
        notice(f"wrote {path}")
    if as_json:
        print_json(summary.to_json())
    else:
        _print(summary, out)


_SOURCE = (
    *("format", "annotations", "images", "split", "units"),
    *("synsets", "classes", "limit", "labels"),
)


def _dataset(
    program: Program,
    data: Path,
    seed: int,
    *,
    synsets: Path | None,
    classes: Path | None,
    limit: int | None,
    labels: Path | None,
    **source: Any,
) -> Dataset:
    """The data set, with the model's classes for what is in it."""
    from onnx_clrp.evaluate.classes import read_classes, read_synsets
    from onnx_clrp.evaluate.readers import open_dataset

    ids = synsets or labels
    dataset = open_dataset(
        data,
        count=program.classes,
        classes=None if classes is None else read_classes(classes),
        labels=common.labels_of(program, labels),
        synsets=None if ids is None else read_synsets(ids),
        **source,
    )
    return dataset if limit is None else dataset.subset(limit, seed)


def _settings(given: dict[str, Any]) -> Settings:
    """The settings that were given, and the usual ones for all others."""
    names = [f.name for f in fields(Settings) if f.name in given]
    chosen = {name: given.pop(name) for name in names}
    chosen["methods"] = given.pop("method")
    return Settings(**{name: value for name, value in chosen.items() if value != ()})


def _print(summary: Summary, out: Path) -> None:
    from onnx_clrp.evaluate.summary import FADING

    for experiment in summary.settings.experiments:
        columns = [m for m in summary.measures if m.experiment == experiment]
        rows = [
            [method, *(_text(summary.mean(m, method)) for m in columns)]
            for method in summary.methods
        ]
        if columns:
            print_table(["method", *(m.title for m in columns)], rows)
    if summary.neurons is not None:
        told = [[m, _text(summary.diagonal(m))] for m in summary.methods if explains_neurons(m)]
        print_table(["method", "neurons that lose most by their own patch"], told)
    if summary.cascade is not None:
        for measure in FADING:
            fading = {m: summary.fading(m, measure.name) for m in summary.methods}
            heads = [f"{n} shuffled" for n, _ in next(iter(fading.values()))]
            print_table(
                [measure.title, *heads], [[m, *map(_text, f.values())] for m, f in fading.items()]
            )
    if summary.settings.wants("pointing"):
        shares = [f"p = {share:g}" for share in _SHOWN]
        swept = [[m, *map(_text, summary.sweep(m, _SHOWN))] for m in summary.methods]
        print_table(["method", *shares], swept)
    failed = summary.failed.num_rows
    broken = f", {failed} could not be read" if failed else ""
    click.echo(f"{summary.pictures} pictures, {summary.maps.num_rows} maps{broken}; in {out}")


def _text(estimate: Estimate) -> str:
    if estimate.mean is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.3g}"
    return f"{estimate.mean:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
