"""Float64 references of what picks, puts and resamples: forward maps, in loops over elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from reference.operators import Node

Attributes = Mapping[str, Any]
Weights = list[tuple[int, float]]


# --- Picking and putting ---------------------------------------------------------------------


def gather_elements(node: Node) -> Tensor:
    """``y[i, j] = x[index[i, j], j]`` along the first axis, and so on along others."""
    x, index, axis = node.needed(0), node.needed(1), node.attributes.get("axis", 0)
    return torch.stack(
        [x[_moved_to(x, axis, place, int(index[place]))] for place in np.ndindex(*index.shape)]
    ).reshape(index.shape)


def gather_nd(node: Node) -> Tensor:
    """The last axis of the indices holds where in ``x``, behind the axes of the batch."""
    x, index, batch = node.needed(0), node.needed(1), node.attributes.get("batch_dims", 0)
    parts = [
        x[(*place[:batch], *(int(i) for i in index[place]))]
        for place in np.ndindex(*index.shape[:-1])
    ]
    return torch.stack(parts).reshape(*index.shape[:-1], *parts[0].shape)


def compress(node: Node) -> Tensor:
    """The slices whose condition holds; of ``x`` in one row where no axis is named."""
    x, axis = node.needed(0), node.attributes.get("axis")
    chosen = [i for i, taken in enumerate(node.needed(1).tolist()) if taken]
    x, axis = (x.flatten(), 0) if axis is None else (x, axis)
    return torch.stack([x.select(axis, i) for i in chosen], axis)


def reverse_sequence(node: Node) -> Tensor:
    """Of each sample the first so many entries in time, from the last to the first."""
    x, lengths = node.needed(0), node.integers(1) or []
    batch, time = node.attributes.get("batch_axis", 1), node.attributes.get("time_axis", 0)

    def source(place: tuple[int, ...]) -> tuple[int, ...]:
        length, step = lengths[place[batch]], place[time]
        return _moved_to(x, time, place, length - 1 - step if step < length else step)

    return torch.stack([x[source(place)] for place in np.ndindex(*x.shape)]).reshape(x.shape)


def scatter_elements(node: Node) -> Tensor:
    """The reverse of GatherElements: ``y[index[i, j], j] = updates[i, j]``, else ``x``."""
    y, index, updates = node.needed(0).clone(), node.needed(1), node.needed(2)
    axis = node.attributes.get("axis", 0)
    for place in np.ndindex(*index.shape):
        y[_moved_to(y, axis, place, int(index[place]))] = updates[place]
    return y


def scatter_nd(node: Node) -> Tensor:
    """The reverse of GatherND: a whole slice of ``updates`` to each index."""
    y, index, updates = node.needed(0).clone(), node.needed(1), node.needed(2)
    for place in np.ndindex(*index.shape[:-1]):
        y[tuple(int(i) for i in index[place])] = updates[place]
    return y


def _moved_to(x: Tensor, axis: int, place: tuple[int, ...], entry: int) -> tuple[int, ...]:
    axis %= x.ndim
    return (*place[:axis], entry % x.shape[axis], *place[axis + 1 :])


# --- Resampling ------------------------------------------------------------------------------


def resize(node: Node) -> Tensor:
    """One dense interpolation matrix per axis: all modes are separable.

    Where no size changes the runtime copies, whatever the scales.
    """
    y = node.needed(0)
    axes = node.attributes.get("axes", list(range(y.ndim)))
    if all(
        _resized_length(node, i, y.shape[axis])[0] == y.shape[axis] for i, axis in enumerate(axes)
    ):
        return y
    if node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("Resize that keeps the aspect ratio")
    for i, axis in enumerate(axes):
        old = y.shape[axis]
        new, scale = _resized_length(node, i, old)
        matrix = _matrix(node.attributes, old, new, scale)
        y = torch.tensordot(y, matrix, dims=([axis], [1])).movedim(-1, axis)
    return y


def _resized_length(node: Node, i: int, old: int) -> tuple[int, float]:
    """The new length of the i-th resized axis and its scale; the runtime counts in float32."""
    sizes = node.integers(3)
    if sizes is not None:
        return sizes[i], sizes[i] / old
    scale = np.float32(node.needed(2)[i])
    return math.floor(np.float32(old) * scale), float(scale)


def _matrix(attributes: Attributes, old: int, new: int, scale: float) -> Tensor:
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        place = _coordinate(attributes, row, old, new, scale)
        for column, weight in _weights(attributes, place, scale, old):
            matrix[row, min(max(column, 0), old - 1)] += weight
    return matrix


def _coordinate(attributes: Attributes, i: int, old: int, new: int, scale: float) -> float:
    mode = attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * (old - 1) / (new - 1) if new > 1 else 0.0
    if mode == "pytorch_half_pixel" and new == 1:
        return 0.0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        lost = old / 2 * (1 - new / (scale * old))
        return lost + (i + 0.5) / scale - 0.5
    raise NotImplementedError(f"Resize with {mode}")


def _weights(attributes: Attributes, place: float, scale: float, old: int) -> Weights:
    """The neighbours of a place and their weights."""
    mode = attributes.get("mode", "nearest")
    if mode == "nearest":
        rounding = {
            "round_prefer_floor": math.ceil(place - 0.5),
            "round_prefer_ceil": math.floor(place + 0.5),
            "floor": math.floor(place),
            "ceil": math.ceil(place),
        }
        return [(rounding[attributes.get("nearest_mode", "round_prefer_floor")], 1.0)]
    shrink = min(scale, 1.0) if attributes.get("antialias", 0) else 1.0
    reach = (2 if mode == "cubic" else 1) / shrink
    columns = range(math.ceil(place - reach), math.floor(place + reach) + 1)
    if attributes.get("exclude_outside", 0):
        columns = range(max(columns.start, 0), min(columns.stop, old))
    drawn = [(c, _kernel(attributes, (c - place) * shrink)) for c in columns]
    total = sum(weight for _, weight in drawn)
    return [(column, weight / total) for column, weight in drawn]


def _kernel(attributes: Attributes, distance: float) -> float:
    """The tent of linear interpolation, or Keys' cubic."""
    d = abs(distance)
    if attributes["mode"] == "linear":
        return max(0.0, 1 - d)
    a: float = attributes.get("cubic_coeff_a", -0.75)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0
