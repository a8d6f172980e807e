"""Inputs that are changed in places: a patch, or some of the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.evaluate.measures import patch

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
