"""Draws the pictures of the README: a cat above a cup of coffee, and what each score rests on.

The photographs are scikit-image's `chelsea` (Stéfan van der Walt, CC0) and `coffee` (Rachel
Michetti, CC0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from onnx_clrp import Explainer, Preprocessing
from onnx_clrp.compiler import Options
from onnx_clrp.figures import Row, draw_comparison, draw_neurons
from onnx_clrp.image import Picture
from onnx_clrp.inspection import layers_of
from onnx_clrp.render import Panel, draw
from onnx_clrp.runtime import Result

COMPARED = (
    *("gradient", "guided_backprop", "guided_grad_cam", "contrastive_eb"),
    *("lrp", "clrp1", "clrp2"),
)
LABELS = ("Egyptian cat", "cup")
NEURONS = 8

WIDTH, HEIGHT = 448, 224


def scene() -> Image.Image:
    """The two photographs, one above the other: 448 x 448 pixels."""
    picture = Image.new("RGB", (WIDTH, 2 * HEIGHT))
    for row, (photograph, top) in enumerate(((data.chelsea(), 0.3), (data.coffee(), 0.5))):
        picture.paste(_strip(photograph, top), (0, row * HEIGHT))
    return picture


def _strip(photograph: NDArray[np.uint8], top: float) -> Image.Image:
    """A photograph, twice as wide as high; `top` is how much of what is cut off lies above."""
    image = Image.fromarray(photograph)
    height = image.width * HEIGHT // WIDTH
    above = round((image.height - height) * top)
    return image.crop((0, above, image.width, above + height)).resize((WIDTH, HEIGHT))


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--cat", default=285, show_default=True, help="The cat's class.")
@click.option("--cup", default=968, show_default=True, help="The cup's class.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/images"))
def main(model: Path, cat: int, cup: int, out: Path) -> None:
    """Draw maps of MODEL, an ImageNet classifier, for the cat and for the cup."""
    out.mkdir(parents=True, exist_ok=True)
    photograph = out / "cat-and-coffee.png"
    scene().save(photograph, optimize=True)
    results, titles = [], []
    for method in COMPARED:
        explainer = _explainer(model, method=method)
        picture, result = _explained(explainer, photograph, [cat, cup])
        results.append(_panels(result, LABELS))
        titles.append(explainer.title)
        if method in ("lrp", "clrp2"):
            path = out / f"cat-and-coffee.{method}.png"
            draw(picture, results[-1], method=explainer.title, path=path)
    row = Row(picture, "", [*zip(*results, strict=True)])
    draw_comparison([row], titles, path=out / "comparison.png")
    _draw_neurons(model, photograph, out / "neurons.png")
    for name in ("comparison.png", "neurons.png"):
        _as_webp(out / name)


def _as_webp(path: Path) -> None:
    """Store a large picture pixel by pixel as it is, in two thirds of the space."""
    with Image.open(path) as picture:
        picture.save(path.with_suffix(".webp"), lossless=True, method=6)
    path.unlink()


def _draw_neurons(model: Path, photograph: Path, path: Path) -> None:
    """The channels of the last convolution that say most."""
    last = next(layer for layer in layers_of(model, preprocessing=_preset()) if layer.cam)
    explainer = _explainer(model, layer=last.tensor, target=f"top:{NEURONS}")
    picture, result = _explained(explainer, photograph, None)
    names = [f"channel {channel}" for channel in result.target[0]]
    draw_neurons(picture, _panels(result, names), method=explainer.title, path=path)


def _preset() -> Preprocessing:
    return Preprocessing.preset("imagenet", resize="stretch")


def _explainer(model: Path, **options: Unpack[Options]) -> Explainer:
    return Explainer(model, preprocessing=_preset(), **options)


def _explained(
    explainer: Explainer, photograph: Path, target: list[int] | None
) -> tuple[Picture, Result]:
    if explainer.preprocessing is None:
        raise click.ClickException("the model takes no pictures")
    picture = explainer.preprocessing.picture(photograph)
    return picture, explainer.explain(explainer.preprocessing.batch([picture]), target)


def _panels(result: Result, labels: Sequence[str]) -> list[Panel]:
    maps, scores = result.heatmap()[0], result.seed[0].tolist()
    return [Panel(*panel) for panel in zip(maps, labels, scores, strict=True)]


if __name__ == "__main__":
    main()
