"""`onnx-clrp check`: does an explainer keep its promises?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.output import busy, notice, print_json, print_table
from onnx_clrp.errors import UsageError

if TYPE_CHECKING:
    from onnx_clrp.check import Report

_SHOWN = 1e-6
"""Relevance below this part of the logit is not worth a row."""


@click.command("check")
@common.model_argument
@click.argument("image", required=False, type=click.Path(path_type=Path))
@common.method_option
@common.rules_option
@click.option("--all", "every", is_flag=True, help="Show every node, not only what absorbs.")
@common.json_option
@common.graph_options
@common.preprocessing_options
def command(model: Path, image: Path | None, every: bool, as_json: bool, **given: Any) -> None:
    """Run MODEL's explainer on IMAGE, or on random values, and report whether it is right.

    The ledger of LRP says for each node what relevance arrived, what it handed on and what it
    absorbed. The model's outputs must be unchanged, and the relevance must agree with a float64
    run. The exit status is 1 if anything is off.
    """
    from onnx_clrp.check import check
    from onnx_clrp.model import load
    from onnx_clrp.program import read_program, reading

    proto = load(model)
    choices = common.graph_choices(proto, given)
    batch = None
    if image is not None:
        prepared = read_program(proto, **reading(choices)).preprocessing
        if prepared is None:
            raise UsageError("say how pictures become the model's input: --preset")
        batch = prepared.load(image)
    with busy("running in float32 and in float64"):
        report = check(proto, batch, **choices)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report, every)
    if report.faults:
        raise SystemExit(1)


def _print(report: Report, every: bool) -> None:
    for note in report.notes:
        notice(note)
    click.echo(f"explained class {report.target}, logit {report.logit:.5g}; LRP's ledger:")
    rows = [e for e in report.ledger if every or abs(e.absorbed) > _SHOWN or e in report.open_nodes]
    if rows:
        print_table(
            ["node", "operator", "arrived", "handed on", "absorbed", "open"],
            [
                [
                    *(e.node, e.operator),
                    *(f"{v:.6f}" for v in (e.arrived, e.handed, e.absorbed)),
                    f"{e.leaks:+.0e}",
                ]
                for e in rows
            ],
            right=["arrived", "handed on", "absorbed", "open"],
        )
    widest = max((abs(entry.leaks) for entry in report.ledger), default=0.0)
    click.echo(f"{len(report.ledger)} nodes, {len(rows)} shown; widest open ledger {widest:.1e}")
    total = report.arrived_at_input + report.absorbed
    click.echo(
        f"at the input {report.arrived_at_input:.6f} of the logit, absorbed {report.absorbed:.6f},"
        f" together {total:.6f}"
    )
    for name, change in report.outputs.items():
        click.echo(f"output {name}: {change:.1e} from the model's own")
    click.echo(f"relevance: {report.distance:.1e} from a float64 run")
    for line in [f"FAULT: {fault}" for fault in report.faults] or ["all is well"]:
        click.echo(line)
