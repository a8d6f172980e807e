"""`onnx-clrp inspect`: what an explainer would do with each node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.output import notice, print_json, print_table

if TYPE_CHECKING:
    from onnx_clrp.inspection import Inspection


@click.command("inspect")
@common.model_argument
@common.method_option
@common.rules_option
@common.json_option
@common.graph_options
@common.preprocessing_options
def command(model: Path, as_json: bool, **given: Any) -> None:
    """Show MODEL's input and logits, the rule of every node between, and what is unsupported.

    The exit status is 1 if some node cannot hand relevance on.
    """
    from onnx_clrp.inspection import inspect
    from onnx_clrp.model import load

    proto = load(model)
    found = inspect(proto, **common.graph_choices(proto, given))
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)
    if found.missing:
        raise SystemExit(1)


def _print(found: Inspection) -> None:
    low, high = ("unbounded" if b is None else f"{b:.4g}" for b in found.input_range)
    click.echo(f"input    {found.input} {found.input_type} {_shape(found.input_shape)}")
    click.echo(f"range    {low} … {high}")
    click.echo(f"logits   {found.logits}, {found.classes} classes")
    click.echo(f"outputs  {', '.join(found.outputs)}")
    print_table(
        ["node", "operator", "rule", "input", "output shape"],
        [
            [
                row.node,
                row.operator,
                row.rule if row.missing is None else f"MISSING: {row.missing}",
                row.sign,
                _shape(row.shape),
            ]
            for row in found.nodes
        ],
    )
    for note in found.notes:
        notice(note)
    if found.missing:
        notice(f"{len(found.missing)} of {len(found.nodes)} nodes cannot hand relevance on")


def _shape(shape: list[int | str | None] | list[int | None] | None) -> str:
    return "?" if shape is None else f"[{', '.join('?' if d is None else str(d) for d in shape)}]"
