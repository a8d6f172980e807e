"""Inputs that are changed in places: the patch at a map's peak, or some of the pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.evaluate.measures import patch, peak
from onnx_clrp.evaluate.scorer import Scorer

Input = NDArray[Any]


def patched(
    x: Input, other: NDArray[np.float32], centre: tuple[int, int], side: int, layout: str
) -> Input:
    """An input with a square patch of another: `[C, H, W]` or `[H, W, C]`, as the layout says."""
    first = layout == "NCHW"
    height, width = x.shape[1:] if first else x.shape[:2]
    rows, columns = patch((height, width), centre, side)
    where = (slice(None), rows, columns) if first else (rows, columns, slice(None))
    changed: Input = x.copy()
    changed[where] = other[where]
    return changed


def mixed(x: Input, other: Input, pixels: NDArray[np.int64], layout: str) -> Input:
    """An input with some pixels of another, in row-major numbers."""
    made: Input = x.copy()
    if layout == "NCHW":
        flat, source = (a.reshape(a.shape[0], -1) for a in (made, other))
        flat[:, pixels] = source[:, pixels]
    else:
        flat, source = (a.reshape(-1, a.shape[-1]) for a in (made, other))
        flat[pixels] = source[pixels]
    return made


def scores_without_peaks(
    scorer: Scorer,
    x: Input,
    other: NDArray[np.float32],
    heatmaps: Iterable[NDArray[np.float32]],
    sides: Sequence[int],
    layout: str,
) -> list[NDArray[np.float64] | None]:
    """What a model says of an input once the patch at a map's peak is that of another input.

    Args:
        scorer: the model.
        x: the input, `[C, H, W]` or `[H, W, C]`.
        other: the other one.
        heatmaps: the maps, `[H, W]` each.
        sides: of the patches.
        layout: of the inputs.

    Returns:
        Scores `[sides, C]` for each map; None where it has no peak.
    """
    places = [peak(h) for h in heatmaps]
    changed = [
        patched(x, other, p, side, layout) for p in places if p is not None for side in sides
    ]
    if not changed:
        return [None] * len(places)
    scores = scorer.logits(np.stack(changed)).astype(np.float64)
    by_map = iter(scores.reshape(-1, len(sides), scorer.classes))
    return [None if place is None else next(by_map) for place in places]
