"""Arrays as the inputs of a session take them: types, shapes, and rows that go with samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnx_clrp.errors import UsageError

Array = NDArray[Any]

_PIECE = 8
"""Samples that run at once where the model leaves the batch open."""

_NUMPY = {
    f"tensor({onnx_name})": numpy_name
    for onnx_name, numpy_name in {
        "float": "float32",
        "float16": "float16",
        "double": "float64",
        "bool": "bool",
        **{f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
    }.items()
}


def pieces(samples: Array, batch: int | str | None, maps: int = 1) -> Iterator[tuple[int, Array]]:
    """Samples in pieces of the size that a model was exported with, or of a modest one.

    Args:
        samples: `[N, ...]`.
        batch: the first size of the session's input; a number is fixed, and the last piece is
            filled up to it with its last sample.
        maps: how many are made of each sample: an open size has fewer samples then.
    """
    fixed = isinstance(batch, int)
    size = batch if isinstance(batch, int) else max(1, _PIECE // maps)
    for start in range(0, len(samples), size):
        piece = samples[start : start + size]
        missing = size - len(piece) if fixed else 0
        yield start, np.concatenate([piece, *[piece[-1:]] * missing])


def numpy_type(wanted: Any) -> np.dtype[Any]:
    """The type of a session's input.

    Raises:
        UsageError: NumPy has no such type.
    """
    if wanted.type not in _NUMPY:
        raise UsageError(f"the input {wanted.name!r} is a {wanted.type}, which cannot be fed")
    return np.dtype(_NUMPY[wanted.type])


def as_array(values: ArrayLike, what: str) -> Array:
    """The values as an array.

    Raises:
        UsageError: they are ragged.
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UsageError(f"{what} are no array: {error}") from error


def fed(
    wanted: Mapping[str, Any], feeds: Mapping[str, ArrayLike], sizes: Mapping[Any, int]
) -> dict[str, Array]:
    """The values of a session's further inputs, all of them and no more, in their types.

    Args:
        wanted: those inputs, by name.
        feeds: their values.
        sizes: what sizes that the model leaves open are known to be, by the model's names.

    Raises:
        UsageError: a feed is missing, unknown, or of another type or shape.
    """
    missing, unknown = sorted({*wanted} - {*feeds}), sorted({*feeds} - {*wanted})
    if missing:
        raise UsageError(f"the model also needs a feed for {', '.join(missing)}")
    if unknown:
        raise UsageError(f"the model has no further input called {', '.join(unknown)}")
    return {name: _one(wanted[name], value, sizes) for name, value in feeds.items()}


def _one(wanted: Any, value: ArrayLike, sizes: Mapping[Any, int]) -> Array:
    array, dtype = as_array(value, f"the values of {wanted.name!r}"), numpy_type(wanted)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(f"the input {wanted.name!r} takes {dtype}, its feed is {array.dtype}")
    if not _fits(array.shape, wanted.shape, sizes):
        form = f"{wanted.shape}, its feed is {list(array.shape)}"
        raise UsageError(f"the input {wanted.name!r} takes {form}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"the feed of {wanted.name!r} holds values that are not finite")
    return array.astype(dtype, copy=False)


def _fits(shape: Sequence[int], wanted: Sequence[Any], sizes: Mapping[Any, int]) -> bool:
    """Has the array the form of the input? A fixed number of rows may be filled up."""
    if len(shape) != len(wanted):
        return False
    pairs = [*zip(wanted, shape, strict=True)]
    if pairs and isinstance(wanted[0], int):
        pairs = pairs[1:]
    return all(w is None or (sizes.get(w, d) if isinstance(w, str) else w) == d for w, d in pairs)


def with_piece(
    others: Mapping[str, Array], by_row: Set[str], start: int, piece: Array
) -> dict[str, Array]:
    """The other inputs for a piece of the samples: the rows that go with it, or all."""
    return {
        name: filled(value[start : start + len(piece)], piece) if name in by_row else value
        for name, value in others.items()
    }


def rows_of_samples(
    wanted: Mapping[str, Any], others: Mapping[str, Array], source: Any, samples: int
) -> set[str]:
    """The further inputs that have a row for each sample, by what the model says of their sizes.

    Where both leave their first size open, by different names or none, the values decide.
    """
    together = source.shape[0]
    found = set()
    for name, value in others.items():
        first = wanted[name].shape[0] if wanted[name].shape else None
        same = first == together and first is not None
        both_open = not isinstance(first, int) and not isinstance(together, int)
        if value.ndim > 0 and len(value) == samples and (same or both_open):
            found.add(name)
    return found


def filled(rows: Array, piece: Array) -> Array:
    """As many rows as the piece has, the last one repeated."""
    return np.concatenate([rows, *[rows[-1:]] * (len(piece) - len(rows))])
