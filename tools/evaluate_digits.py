"""Measures on held-out scenes how often the maps of exported_models/digits.onnx point right."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from digit_scenes import SIZE, Box, Scene, draw_scenes, split_digits
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.stats import bootstrap
from train_digits import to_arrays

from onnx_clrp import Explainer

METHODS = ("lrp", "clrp1", "clrp2")
BEGIN, END = "<!-- pointing: begin -->", "<!-- pointing: end -->"
FOLDER = Path(__file__).resolve().parents[1] / "exported_models"

_SEED = 3
"""Other scenes than those that the accuracy of the model is measured on."""

_INK = 120
"""Paper and grain stay below this grey, the strokes of a digit above it."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pointing:
    """How one method does, an entry `[scenes, digits]` for every digit that was asked for.

    Attributes:
        box: whether the map's maximum lies in the digit's tile.
        ink: whether it lies in the smallest box around the digit's strokes.
        share: how much of the map's positive sum lies in the tile.
    """

    box: NDArray[np.bool_]
    ink: NDArray[np.bool_]
    share: NDArray[np.float64]


def held_out_scenes(count: int, digits: int) -> list[Scene]:
    """Scenes with so many digits each, of handwriting that the model was not trained on."""
    _, held_out = split_digits()
    return list(itertools.islice(draw_scenes(held_out, digits, _SEED + digits), count))


def heatmaps(model: Path, method: str, scenes: Sequence[Scene]) -> Floats:
    """The map of every digit in every scene, `[scenes, digits, SIZE, SIZE]`."""
    explainer = Explainer(model, device="cpu", method=method)
    images, _ = to_arrays(scenes)
    result = explainer.explain(images, np.array([scene.labels for scene in scenes]))
    return result.heatmap().clip(min=0)


def share_below_zero(model: Path, scenes: Sequence[Scene]) -> float:
    """Of the digits in the scenes, how many have a negative logit."""
    images, present = to_arrays(scenes)
    logits = Explainer(model, device="cpu").logits(images)
    return float((logits[present > 0] < 0).mean())


def pointing(maps: Floats, scenes: Sequence[Scene]) -> Pointing:
    """Hold maps `[scenes, digits, SIZE, SIZE]` against the boxes of the scenes."""
    tiles = [scene.boxes for scene in scenes]
    inked = [[ink_box(scene, box) for box in scene.boxes] for scene in scenes]
    return Pointing(_hits(maps, tiles), _hits(maps, inked), _shares(maps, tiles))


def ink_box(scene: Scene, tile: Box) -> Box:
    """The smallest box around the strokes in a digit's tile."""
    left, top, right, bottom = tile
    stroke = scene.image[top:bottom, left:right] > _INK
    rows, columns = (np.flatnonzero(stroke.any(axis=axis)) for axis in (1, 0))
    return (
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )


def interval(values: NDArray[np.generic]) -> tuple[float, float]:
    """A bootstrap 95 % interval of the mean; the digits of a scene are drawn together."""
    means = values.mean(axis=1)
    if (means == means[0]).all():
        return float(means[0]), float(means[0])
    drawn = bootstrap((means,), np.mean, n_resamples=2000, method="percentile", rng=0)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def table(found: dict[int, dict[str, Pointing]], unseen: dict[int, float], scenes: int) -> str:
    """What was found as Markdown: a row for every measure and number of digits.

    `unseen` is the share of the digits that have a negative logit, by their number in the scene.
    """
    measures = {
        "highest value in the tile": "box",
        "highest value in the ink's box": "ink",
        "share of the sum in the tile": "share",
    }
    rows = [
        [text, str(digits), *(_cell(getattr(by_method[m], name)) for m in METHODS)]
        for text, name in measures.items()
        for digits, by_method in found.items()
    ]
    head = [["", "digits in the scene", *METHODS], ["---"] * (len(METHODS) + 2)]
    below = " and ".join(f"{100 * unseen[digits]:.1f} % ({digits} digits)" for digits in found)
    notes = (
        f"Measured on {scenes} held-out scenes of each kind, rule set `default`; in brackets the\n"
        f"bootstrap 95 % interval. Of the digits asked for, {below} have a\n"
        "negative logit."
    )
    return "\n".join([notes, "", *(f"| {' | '.join(row)} |" for row in head + rows)])


def write_between_marks(page: Path, text: str) -> None:
    """Put the text between the two marks of a page, in place of what stands there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise click.ClickException(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _mask(box: Box) -> NDArray[np.bool_]:
    left, top, right, bottom = box
    inside = np.zeros((SIZE, SIZE), bool)
    inside[top:bottom, left:right] = True
    return inside


def _masks(boxes: Iterable[Iterable[Box]]) -> NDArray[np.bool_]:
    """`[scenes, digits, SIZE * SIZE]`."""
    return np.array([[_mask(box).reshape(-1) for box in row] for row in boxes])


def _hits(maps: Floats, boxes: Iterable[Iterable[Box]]) -> NDArray[np.bool_]:
    flat = maps.reshape(*maps.shape[:2], -1)
    highest = flat.argmax(axis=2)[..., None]
    inside = np.take_along_axis(_masks(boxes), highest, axis=2)[..., 0]
    # An empty map points nowhere.
    hits: NDArray[np.bool_] = inside & (flat.max(axis=2) > 0)
    return hits


def _shares(maps: Floats, boxes: Iterable[Iterable[Box]]) -> NDArray[np.float64]:
    flat = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    total = flat.sum(axis=2)
    shares: NDArray[np.float64] = (flat * _masks(boxes)).sum(axis=2) / np.where(total, total, 1)
    return shares


def _cell(values: NDArray[np.generic]) -> str:
    low, high = interval(values)
    return f"{100 * values.mean():.1f} % ({100 * low:.1f} … {100 * high:.1f})"


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=FOLDER,
    help="Folder of digits.onnx and of the README.md that takes the table.",
)
@click.option("--scenes", default=500, show_default=True, help="Scenes of each kind.")
@click.option("--print-only", is_flag=True, help="Print the table, leave the page as it is.")
def main(folder: Path, scenes: int, print_only: bool) -> None:
    """Measure how often LRP, CLRP1 and CLRP2 point at the digit that was asked for."""
    found: dict[int, dict[str, Pointing]] = {}
    unseen: dict[int, float] = {}
    for digits in (2, 3):
        drawn = held_out_scenes(scenes, digits)
        unseen[digits] = share_below_zero(folder / "digits.onnx", drawn)
        found[digits] = {
            method: pointing(heatmaps(folder / "digits.onnx", method, drawn), drawn)
            for method in track(METHODS, f"{digits} digits")
        }
    text = table(found, unseen, scenes)
    Console().print(text, markup=False, soft_wrap=True)
    if not print_only:
        write_between_marks(folder / "README.md", text)


if __name__ == "__main__":
    main()
