"""Pictures with several handwritten digits, where it is known which digit stands where.

The digits are the 8x8 ones that scikit-learn carries, so nothing has to be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIZE = 64
"""Height and width of a scene in pixels."""

CLASSES = 10
HELD_OUT = 500

_SPLIT_SEED = 2018
_TILE_SIDES = (18, 22)
_INK_LEVELS = (180.0, 255.0)
_PAPER_LEVELS = (0.0, 20.0)
_MAX_GRAIN = 5.0

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first ones outside."""


@dataclass(frozen=True)
class Digits:
    """Single handwritten digits.

    Attributes:
        images: float32 [N, 8, 8], the ink from 0 (none) to 1.
        labels: int64 [N], the digit 0 … 9 that each image shows.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """One picture with digits of different classes that do not overlap.

    Attributes:
        image: uint8 [SIZE, SIZE], grey, bright ink on a dark ground.
        labels: the digits 0 … 9 in the picture.
        boxes: for each label the square tile in pixels that the digit was drawn into.
    """

    image: NDArray[np.uint8]
    labels: tuple[int, ...]
    boxes: tuple[Box, ...]


def split_digits() -> tuple[Digits, Digits]:
    """The digits to train on (1297) and the ones held out (500), always the same split."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=_SPLIT_SEED
    )
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def compose(digits: Digits, labels: Sequence[int], rng: np.random.Generator) -> Scene:
    """Draw one scene with one digit of each class in `labels` (at most four, all different).

    The handwriting, the size of the tiles (18 to 22 pixels), their places, the brightness
    of ink and ground and a little grain come from `rng`.
    """
    sides = rng.integers(_TILE_SIDES[0], _TILE_SIDES[1], size=len(labels), endpoint=True)
    boxes = _place(sides.tolist(), rng)
    ink = np.zeros((SIZE, SIZE), np.float32)
    for label, (left, top, right, bottom) in zip(labels, boxes, strict=True):
        digit = digits.images[rng.choice(np.flatnonzero(digits.labels == label))]
        ink[top:bottom, left:right] = _enlarge(digit, right - left) * rng.uniform(*_INK_LEVELS)
    return Scene(_on_paper(ink, rng), tuple(labels), boxes)


def draw_scenes(digits: Digits, count: int, seed: int) -> Iterator[Scene]:
    """Endless scenes with `count` digits each, of classes drawn without repetition."""
    rng = np.random.default_rng(seed)
    while True:
        yield compose(digits, rng.permutation(CLASSES)[:count].tolist(), rng)


def _place(sides: Sequence[int], rng: np.random.Generator) -> tuple[Box, ...]:
    """Non-overlapping squares of the given sides, each uniform over the places still free."""
    boxes: list[Box] = []
    for side in sides:
        corners = np.flatnonzero(_free_corners(side, boxes))
        if not corners.size:
            return _place(sides, rng)
        top, left = divmod(int(rng.choice(corners)), SIZE - side + 1)
        boxes.append((left, top, left + side, top + side))
    return tuple(boxes)


def _free_corners(side: int, boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Where the top left corner of a square may lie so that it touches none of the boxes."""
    free = np.ones((SIZE - side + 1, SIZE - side + 1), bool)
    for left, top, right, bottom in boxes:
        free[max(0, top - side) : bottom + 1, max(0, left - side) : right + 1] = False
    return free


def _enlarge(digit: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Enlarge the 8x8 digit and half a cell of paper around it, in which its edge fades out."""
    # Without that half cell, strokes that reach the border of the 8x8 would end in a hard cut.
    cells = Image.fromarray(np.pad(digit, 1))
    enlarged = cells.resize((side, side), Image.Resampling.BICUBIC, box=(0.5, 0.5, 9.5, 9.5))
    # Bicubic interpolation overshoots at the edges of a stroke.
    return np.asarray(enlarged, np.float32).clip(0, 1)


def _on_paper(ink: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    paper = rng.uniform(*_PAPER_LEVELS)
    grain = rng.normal(0, rng.uniform(0, _MAX_GRAIN), ink.shape)
    return np.clip(np.maximum(ink, paper) + grain, 0, 255).round().astype(np.uint8)
