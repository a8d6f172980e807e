"""The command `onnx-clrp`: words to calls, a file a verb, each loaded only when it is called."""

from __future__ import annotations

import io
import signal
import sys
from importlib import import_module

import click

from onnx_clrp.errors import ClrpError

VERBS = {
    "explain": "Draw what speaks for a class in photographs.",
    "compare": "Draw several methods side by side: rows of images, columns of methods.",
    "convert": "Write the explainer of a model as an ONNX file.",
    "inspect": "Show a model's nodes, the rule of each, and what is unsupported.",
    "evaluate": "Measure what the maps are worth on labelled images.",
    "check": "Check an explainer: conservation, the model's outputs, float64.",
    "export": "Export a torchvision classifier as ONNX.",
}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, so that `--help` is immediate."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, the main job first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, from the module of its name."""
        if cmd_name not in VERBS:
            return None
        command = import_module(f"onnx_clrp.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their one line each, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnx-clrp", prog_name="onnx-clrp")
def group() -> None:
    """Explain the decisions of a vision model exported to ONNX.

    Contrastive layer-wise relevance propagation (CLRP1, CLRP2) as in Gu, Yang, Tresp:
    Understanding Individual Decisions of CNNs via Contrastive Backpropagation, 2018; and what it is
    compared with: LRP and its rules, gradients, guided and excitation backprop, Grad-CAM.
    """


def stop(number: int, _frame: object) -> None:
    """Leave as after an error, so that no half-written file is left behind."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command; a user's mistake is one message on standard error and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show z⁺ shows z?
    signal.signal(signal.SIGTERM, stop)
    try:
        group(prog_name="onnx-clrp")
    except ClrpError as error:
        click.echo(f"onnx-clrp: {error}", err=True)
        sys.exit(error.exit_status)
    except OSError as error:  # such as a full disk under standard output
        click.echo(f"onnx-clrp: {error}", err=True)
        sys.exit(1)
