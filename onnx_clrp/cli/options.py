"""The options that several verbs share, and the objects that they stand for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.compiler import Options
from onnx_clrp.composites import AVG_POOL, MAX_POOL, RULE_SETS
from onnx_clrp.errors import UsageError
from onnx_clrp.image import CHANNELS, PRESETS
from onnx_clrp.labels import read_labels
from onnx_clrp.methods import CONTRASTS, DIFFERENCES, METHODS
from onnx_clrp.program import Program, chosen_preprocessing

Command = TypeVar("Command", bound=Callable[..., Any])

PREPROCESSING = ("preset", "mean", "std", "scale", "channels", "resize", "crop")


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The text as numbers; a usage error if it is none."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them", param, ctx)


class Resize(click.ParamType[int | str]):
    """A number of pixels, or `stretch`."""

    name = "resize"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The text as one of the two; a usage error if it is neither."""
        text = str(value)
        if text != "stretch" and not text.isdecimal():
            self.fail(f"{value!r} is neither a number of pixels nor 'stretch'", param, ctx)
        return text if text == "stretch" else int(text)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators as one, applied so that `--help` shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_argument = click.argument("model", type=click.Path(path_type=Path))
_METHODS = click.Choice(list(METHODS))
method_option = click.option(
    "--method",
    type=_METHODS,
    metavar="NAME",
    help="The method (docs/methods.md).  [default: clrp2]",
)


def methods_option(usual: str) -> Callable[[Command], Command]:
    """`--method` for several of them; the help says which are usual."""
    return click.option(
        "--method",
        multiple=True,
        type=_METHODS,
        metavar="NAME",
        help=f"A method (docs/methods.md); may be given several times.  [default: {usual}]",
    )


rules_options = together(
    click.option(
        "--rules",
        type=click.Choice(list(RULE_SETS)),
        metavar="SET",
        help="LRP's rule set.  [default: default]",
    ),
    click.option(
        "--rules-for",
        multiple=True,
        metavar="PATTERN=RULE",
        help='Another rule for some layers: "conv*=gamma(0.25)", "#1=flat".',
    ),
    click.option("--avg-pool", type=click.Choice(list(AVG_POOL)), help="Rule for average pools."),
    click.option("--max-pool", type=click.Choice(list(MAX_POOL)), help="Ties: first, or split."),
)
contrast_options = together(
    click.option(
        "--contrast", type=click.Choice(list(CONTRASTS)), help="A contrast around the method."
    ),
    click.option(
        "--difference", type=click.Choice(DIFFERENCES), help="How a contrast is subtracted."
    ),
    click.option("--signed", is_flag=True, help="A contrast with what speaks against the class."),
)
layer_options = together(
    click.option(
        "--layer", metavar="NAME", help="Explain neurons of this layer; of a CAM, its layer."
    ),
    click.option(
        "--neuron",
        multiple=True,
        metavar="N,…",
        help="Neurons: channels, or single units as CHANNEL:ROW:COLUMN.",
    ),
    click.option(
        "--top-neurons", type=click.IntRange(min=1), metavar="K", help="The K most active channels."
    ),
    click.option(
        "--at", multiple=True, metavar="NAME", help="Save the map at this hidden layer too."
    ),
)
graph_options = together(
    click.option("--input", help="The input to explain, where there are several."),
    click.option("--logits", help="The tensor of class scores, where it is not plain."),
    click.option(
        "--input-range", type=Numbers(), metavar="LO,HI", help="The range of the model's input."
    ),
    click.option(
        "--extension",
        type=click.Path(path_type=Path),
        multiple=True,
        help="A Python file with rules of your own; it is run.",
    ),
)
preprocessing_options = together(
    click.option("--preset", type=click.Choice(list(PRESETS)), help="A usual preprocessing."),
    click.option("--mean", type=Numbers(), metavar="A,B,C", help="(pixel * scale - mean) / std"),
    click.option("--std", type=Numbers(), metavar="A,B,C"),
    click.option("--scale", type=float),
    click.option("--channels", type=click.Choice(list(CHANNELS))),
    click.option("--resize", type=Resize(), metavar="N|stretch", help="The shorter side, or both."),
    click.option("--crop", type=int, metavar="N", help="The centre crop's side."),
)
labels_option = click.option(
    "--labels", type=click.Path(path_type=Path), help="Class names: a line each, or JSON."
)
target_option = click.option(
    "--target", multiple=True, metavar="CLASS,…", help="Classes to explain: numbers or labels."
)
top_option = click.option(
    "--top", type=click.IntRange(min=1), metavar="K", help="Explain the K highest scores."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
half_option = click.option(
    "--half", is_flag=True, help="Run the model itself in float16, for many images on a GPU."
)
feed_option = click.option(
    "--feed", multiple=True, metavar="NAME=FILE.npy", help="Values of another input of the model."
)


def graph_choices(proto: onnx.ModelProto, given: dict[str, Any]) -> Options:
    """The options of `convert` that were given on the command line, and no others.

    Raises:
        UsageError: one of them makes no sense.
    """
    for path in given.pop("extension", ()):
        run_extension(path)
    prepared = {key: given.pop(key, None) for key in PREPROCESSING}
    options: Options = {}
    if any(value is not None for value in prepared.values()):
        options["preprocessing"] = chosen_preprocessing(proto, **prepared)
    bounds = given.pop("input_range", None)
    if bounds is not None:
        if len(bounds) != 2:
            raise UsageError("--input-range takes two numbers: LO,HI")
        options["input_range"] = (bounds[0], bounds[1])
    for key in ("input", "logits", "method", "contrast", "difference"):
        if given.get(key) is not None:
            options[key] = given[key]
    for chosen in ("rules", "rules_for", "avg_pool", "max_pool", "at", "signed", "half"):
        if given.get(chosen) not in (None, (), False):
            options[chosen] = given[chosen]
    return options


def run_extension(path: Path) -> None:
    """Run a Python file, which registers rules.

    Raises:
        UsageError: it cannot be read, or fails.
    """
    spec = importlib.util.spec_from_file_location(f"onnx_clrp_extension_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{path}: no Python file of that name")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except (Exception, SystemExit) as error:  # whatever the user's own file may raise
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: {type(error).__name__}: {reason}") from error


def labels_of(program: Program, path: Path | None) -> list[str] | None:
    """The class names from a file, else those in the model's metadata, else None."""
    return program.labels if path is None else read_labels(path, program.classes)


def feeds_of(given: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The values of the model's other inputs, from the files of `--feed`.

    Raises:
        UsageError: it is no NAME=FILE.npy, or the file holds no array.
    """
    feeds: dict[str, NDArray[Any]] = {}
    for text in given:
        name, _, file = text.rpartition("=")
        if not name or not file:
            raise UsageError(f"--feed {text}: write NAME=FILE.npy")
        if name in feeds:
            raise UsageError(f"--feed {name}: it is given twice")
        feeds[name] = _array(Path(file))
    return feeds


def _array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"--feed {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:  # whatever else it is; NumPy's own words mislead
        raise UsageError(f"--feed {path}: it is no .npy file of numbers") from error
    if not isinstance(values, np.ndarray):
        raise UsageError(f"--feed {path}: it is an archive of arrays, not a single .npy")
    return values
