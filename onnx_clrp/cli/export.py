"""`onnx-clrp export`: a torchvision classifier as ONNX."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_clrp.cli.headings import Headed
from onnx_clrp.cli.output import busy, notice
from onnx_clrp.errors import ClrpError


@click.command("export", cls=Headed)
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    default="DEFAULT",
    show_default=True,
    metavar="NAME|FILE|none",
    help="torchvision's name of weights, a state-dict file, or none for random ones.",
)
@click.option("--size", type=click.IntRange(min=1), help="The input's side in pixels.")
@click.option(
    "--exporter",
    type=click.Choice(["dynamo", "torchscript"]),
    default="dynamo",
    show_default=True,
    help="Which of PyTorch's exporters.",
)
def command(name: str, out: Path, weights: str, size: int | None, exporter: str) -> None:
    """Export the torchvision classifier NAME to OUT, with labels and preprocessing inside."""
    from onnx_clrp.export import export
    from onnx_clrp.model import save

    if not out.parent.is_dir():  # said before the download, not after it
        raise ClrpError(f"cannot write {str(out)!r}: no such folder")
    with busy(f"exporting {name}"):
        model = export(name, weights=weights, size=size, exporter=exporter)
    save(model, out)
    if weights == "none":
        notice("the weights are random: the scores mean nothing")
    notice(f"wrote {out}")
