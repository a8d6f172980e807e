"""`onnx-clrp inspect`: what an explainer would do with each node, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.output import notice, print_json
from onnx_clrp.cli.table import Column, print_nodes

if TYPE_CHECKING:
    from onnx_clrp.inspection import Inspection, Layer, Row

_WITHOUT = {
    "gate": "(gate: takes none)",
    "beside": "(feeds a gate)",
    "part": "(part of another)",
}
"""What is said of nodes that no relevance comes to, by their role."""


@click.command("inspect", cls=Headed)
@common.model_argument
@common.method_option
@common.rules_options
@common.contrast_options
@click.option("--layers", is_flag=True, help="List the layers whose names other options take.")
@common.json_option
@common.graph_options
@common.preprocessing_options
def command(model: Path, as_json: bool, layers: bool, **given: Any) -> None:
    """Show MODEL's input and logits, the rule of every node between, and what is unsupported.

    The sign is what is proven of the values that a node reads, ± where it is nothing. The cost of
    a linear map is how often the explanation of one class runs it times its multiply-adds; of
    other nodes, how many nodes are added. The exit status is 1 if some node cannot hand relevance
    on.
    """
    from onnx_clrp.inspection import inspect, layers_of
    from onnx_clrp.model import load

    proto = load(model)
    choices = common.graph_choices(proto, given)
    if layers:
        _print_layers(layers_of(proto, **choices), as_json)
        return
    found = inspect(proto, **choices)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)
    if found.missing or found.refusal is not None:
        raise SystemExit(1)


def _print(found: Inspection) -> None:
    low, high = ("unbounded" if b is None else f"{b:.4g}" for b in found.input_range)
    click.echo(f"input    {found.input} {found.input_type} {_shape(found.input_shape)}")
    click.echo(f"range    {low} … {high}")
    click.echo(f"logits   {found.logits}, {found.classes} classes")
    click.echo(f"outputs  {', '.join(found.outputs)}")
    rows = found.nodes
    print_nodes(
        [row.node for row in rows],
        [
            Column("operator", [row.operator for row in rows], spare=True),
            Column("rule", [_rule(row) for row in rows]),
            Column("sign", [row.sign for row in rows]),
            Column("output", [_size(row.shape) for row in rows], spare=True),
            Column("cost", [_cost(row, found) for row in rows], right=True),
        ],
    )
    for line in _totals(found):
        click.echo(line)
    for row in found.missing:
        click.echo(f"MISSING  {row.node}: {row.operator}: {row.missing}")
    for note in found.notes:
        notice(note)
    if found.missing:
        notice(f"{len(found.missing)} of {len(rows)} nodes cannot hand relevance on")
    if found.refusal is not None:
        notice(found.refusal)


def _print_layers(layers: Sequence[Layer], as_json: bool) -> None:
    """A line for each layer: names, and the shape of what it says."""
    if as_json:
        print_json([asdict(layer) for layer in layers])
        return
    marks = {True: "the CAM's, unless --layer names another", False: ""}
    print_nodes(
        [layer.node for layer in layers],
        [
            Column("operator", [layer.operator for layer in layers], spare=True),
            Column("tensor", [layer.tensor for layer in layers], spare=True),
            Column("output", [_size(layer.shape) for layer in layers]),
            Column("", [marks[layer.cam] for layer in layers], spare=True),
        ],
    )


def _rule(row: Row) -> str:
    """What a node does with relevance: a rule, or why there is none."""
    if row.missing is not None:
        return "MISSING"
    return _WITHOUT.get(row.role) or row.rule + ", also a gate" * (row.role == "both")


def _cost(row: Row, found: Inspection) -> str:
    if found.missing or found.refusal is not None:  # no explainer, and nothing that it costs
        return ""
    if not row.linear or not row.runs:
        return f"{row.nodes} node{'s' * (row.nodes != 1)}" if row.nodes else ""
    return f"{row.runs} × {_number(row.multiply_adds)}"


def _totals(found: Inspection) -> list[str]:
    """What the forward pass takes, and what explaining one class adds to it."""
    forward, explanation = found.forward, found.explanation
    lines = [f"multiply-adds, forward pass: {_number(forward)}"]
    if found.missing or found.refusal is not None:
        return lines
    ratio = (
        f", {explanation / forward:.1f} times the forward pass" if forward and explanation else ""
    )
    lines.append(f"multiply-adds, {found.method} of one class: {_number(explanation)} more{ratio}")
    if forward is None or explanation is None:
        lines.append("(?: the model leaves sizes open)")
    return lines


def _number(count: int | None) -> str:
    """A count in a few digits: 640, 16.4 k, 115.6 M."""
    if count is None:
        return "?"
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)


def _shape(shape: list[int | str | None]) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"


def _size(shape: list[int | None] | None) -> str:
    """A sample's shape, as short as can be: 64×56×56."""
    return "?" if shape is None else "×".join("?" if d is None else str(d) for d in shape[1:])
