"""`onnx-clrp convert`: the explainer graph as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnx_clrp.cli import options as common
from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.job import refuse_both
from onnx_clrp.cli.neurons import Asked
from onnx_clrp.cli.output import busy, notice
from onnx_clrp.errors import UsageError
from onnx_clrp.labels import parse_targets


@click.command("convert", cls=Headed)
@common.model_argument
@click.argument("out", type=click.Path(path_type=Path))
@common.method_option
@common.layer_options
@common.contrast_options
@common.rules_options
@common.target_option
@common.top_option
@common.labels_option
@click.option("--parts", is_flag=True, help="Add the two maps of a contrast.")
@common.graph_options
@common.half_option
@common.preprocessing_options
def command(
    model: Path,
    out: Path,
    target: tuple[str, ...],
    top: int | None,
    labels: Path | None,
    parts: bool,
    **given: Any,
) -> None:
    """Write the explainer of MODEL to OUT: the same model with relevance as one more output.

    The classes are an input of the graph unless --target or --top settles them. Weights in files of
    their own stay there if OUT is in the same folder, and are copied to OUT.data if it is not.
    """
    from onnx.helper import set_model_props

    from onnx_clrp.compiler import convert
    from onnx_clrp.model import PREFIX, load, metadata, save
    from onnx_clrp.program import read_program, reading

    written = (out, Path(f"{out}.data"))
    if any(path.exists() and path.resolve() == model.resolve() for path in written):
        raise UsageError("the explainer would replace the model: name another file")
    asked = Asked.of(given)
    refuse_both(target, top, asked)
    proto = load(model)
    choices = common.graph_choices(proto, given)
    choices["parts"] = parts
    if top is not None:
        choices["target"] = f"top:{top}"
    choices = {**choices, **asked.options(choices.get("method", "clrp2"), at_run_time=True)}
    known = read_program(proto, **reading(choices))
    names = common.labels_of(known, labels)
    if target:
        choices["target"] = parse_targets(target, names, known.classes)
    if asked.places:
        choices["target"] = asked.targets(known.facts.shape(known.logits) or (), choices["neurons"])
    with busy(f"converting {model}"):
        explainer = convert(proto, **choices)
    if labels is not None:
        set_model_props(explainer, {**metadata(explainer), PREFIX + "labels": json.dumps(names)})
    save(explainer, out)
    inputs = ", ".join(x.name for x in explainer.graph.input)
    outputs = ", ".join(y.name for y in explainer.graph.output)
    notice(f"wrote {out}: {inputs} -> {outputs}")
