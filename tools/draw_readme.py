"""Draws the pictures of the README: a cat above a cup of coffee, and what each score rests on.

The photographs are scikit-image's `chelsea` (Stéfan van der Walt, CC0) and `coffee` (Rachel
Michetti, CC0).
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from onnx_clrp import Explainer, Preprocessing
from onnx_clrp.render import Panel, draw

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
    """Draw LRP and CLRP2 of MODEL, an ImageNet classifier, for the cat and for the cup."""
    out.mkdir(parents=True, exist_ok=True)
    photograph = out / "cat-and-coffee.png"
    scene().save(photograph, optimize=True)
    preprocessing = Preprocessing.preset("imagenet", resize="stretch")
    for method in ("lrp", "clrp2"):
        explainer = Explainer(model, method=method, preprocessing=preprocessing)
        if explainer.preprocessing is None:
            raise click.ClickException("the model takes no pictures")
        picture = explainer.preprocessing.picture(photograph)
        result = explainer.explain(explainer.preprocessing.batch([picture]), [cat, cup])
        panels = [
            Panel(heatmap, label, score)
            for heatmap, label, score in zip(
                result.heatmap()[0], ("Egyptian cat", "cup"), result.seed[0].tolist(), strict=True
            )
        ]
        draw(picture, panels, method=method.upper(), path=out / f"cat-and-coffee.{method}.png")


if __name__ == "__main__":
    main()
