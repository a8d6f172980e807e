"""`onnx-clrp check`: does an explainer keep its promises?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.output import busy, notice, print_json
from onnx_clrp.cli.table import Column, print_nodes
from onnx_clrp.errors import UsageError
from onnx_clrp.labels import parse_targets

if TYPE_CHECKING:
    from onnx_clrp.check import Report

_SHOWN = 1e-6
"""Relevance below this part of the logit is not worth a row."""


@click.command("check", cls=Headed)
@common.model_argument
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option("--target", metavar="CLASS", help="The class: a number or a label.  [default: top]")
@common.method_option
@common.rules_options
@common.contrast_options
@common.labels_option
@click.option("--all", "every", is_flag=True, help="Show every node, not only what absorbs.")
@common.json_option
@common.device_option
@common.graph_options
@common.feed_option
@common.preprocessing_options
def command(image: Path | None, every: bool, as_json: bool, **given: Any) -> None:
    """Run MODEL's explainer on IMAGE, or on random values, and report whether it is right.

    What comes to a node it hands on or absorbs; the model's outputs are unchanged; relevance
    agrees with float64. The exit status is 1 if anything is off.
    """
    from onnx_clrp.check import check
    from onnx_clrp.model import load
    from onnx_clrp.program import read_program, reading

    proto, device = load(given.pop("model")), given.pop("device")
    feeds = common.feeds_of(given.pop("feed"))
    target, labels = given.pop("target"), given.pop("labels")
    choices = common.graph_choices(proto, given)
    program = read_program(proto, **reading(choices))
    names = common.labels_of(program, labels)
    if target is not None:
        choices["target"] = parse_targets([target], names, program.classes)
    batch = None
    if image is not None:
        if program.preprocessing is None:
            raise UsageError("say how pictures become the model's input: --preset")
        batch = program.preprocessing.load(image)
    with busy("running in float32 and in float64"):
        report = check(proto, batch, feeds=feeds, device=device, **choices)
    label = names[report.target] if names else None
    if as_json:
        print_json({"label": label, **report.as_dict()})
    else:
        _print(report, every, label)
    if report.faults:
        raise SystemExit(1)


def _print(report: Report, every: bool, label: str | None) -> None:
    for note in report.notes:
        notice(note)
    named = f" ({label})" if label not in (None, str(report.target)) else ""
    source = "random values" if report.random_input else "the image"
    click.echo(
        f"explained class {report.target}{named} of {source}, logit {report.logit:.5g},"
        f" {report.method} on {report.device}"
    )
    for remark in report.remarks:
        notice(remark)
    _print_ledger(report, every)
    total = report.arrived_at_input + report.absorbed
    click.echo(
        f"at the input {report.arrived_at_input:.6f} of the logit, absorbed {report.absorbed:.6f},"
        f" together {total:.6f}"
    )
    for number, (why, lost) in enumerate(report.reasons.items(), 1):
        if abs(lost) > _SHOWN:
            click.echo(f"  absorbed ({number}) {lost:.6f}: {why}")
    for name, change in report.outputs.items():
        click.echo(f"output {name}: {change:.1e} from the model's own")
    for line in _distances(report):
        click.echo(line)
    for line in [f"FAULT: {fault}" for fault in report.faults] or ["all is well"]:
        click.echo(line)


def _print_ledger(report: Report, every: bool) -> None:
    faulty = {entry.node for entry in report.open_nodes}
    rows = [e for e in report.ledger if every or abs(e.absorbed) > _SHOWN or e.node in faulty]
    numbers = {why: str(i) for i, why in enumerate(report.reasons, 1)}
    click.echo("the ledger of LRP, in parts of the logit:")
    if rows:
        whys = [[numbers[w] for w, v in e.reasons.items() if abs(v) > _SHOWN] for e in rows]
        columns = [
            Column("operator", [e.operator for e in rows], spare=True),
            Column("arrived", [f"{e.arrived:.6f}" for e in rows], right=True),
            Column("handed on", [f"{e.handed:.6f}" for e in rows], right=True),
            Column("absorbed", [f"{e.absorbed:.6f}" for e in rows], right=True),
            Column("why", [",".join(sorted(why)) for why in whys]),
            Column("open", [f"{e.leaks:+.0e}" for e in rows], right=True),
        ]
        print_nodes([e.node for e in rows], columns)
    widest = max((abs(entry.leaks) for entry in report.ledger), default=0.0)
    hint = "" if every or len(rows) == len(report.ledger) else " (--all shows them all)"
    click.echo(f"{len(report.ledger)} nodes, {len(rows)} shown{hint}; widest open {widest:.0e}")


def _distances(report: Report) -> list[str]:
    """How far relevance is from float64, and the contrast from its parts."""
    lines = []
    if report.distance is not None:
        lines.append(f"relevance: {report.distance:.1e} from float64 on the same forward values")
    if report.repeated > _SHOWN:
        lines.append(f"relevance: {report.repeated:.1e} from that of an explainer with a ledger")
    if report.whole_distance is not None:
        lines.append(f"relevance: {report.whole_distance:.1e} from a forward pass in float64 too")
    lines += [f"no float64 {run}: {why}" for run, why in report.why_not.items()]
    if report.contrast is not None:
        lines.append(f"contrast: {report.contrast:.1e} from the difference of its two parts")
    return lines
