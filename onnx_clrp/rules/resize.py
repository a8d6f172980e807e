"""Resize: an interpolation matrix along every axis, which relevance meets transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import UNKNOWN, Interval, by_channel
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


def interpolated(interval: Interval, attributes: Mapping[str, Any]) -> Interval:
    """Within a channel; a cubic oversteps it."""
    return UNKNOWN if attributes.get("mode", "nearest") == "cubic" else by_channel(interval)


@rule("Resize", bounds=interpolated, moves=True)
def resize(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    keep_aspect_ratio_policy: str = "stretch",
    **how: Any,
) -> Tensor:
    """adjoint: the transposed interpolation, axis by axis."""
    if coordinate_transformation_mode == "tf_crop_and_resize":
        raise UnsupportedError("it crops as well (tf_crop_and_resize)")
    if keep_aspect_ratio_policy != "stretch":
        raise UnsupportedError(f"its keep_aspect_ratio_policy is {keep_aspect_ratio_policy!r}")
    if _copied(t, x, y):
        return r
    how["coordinate_transformation_mode"] = coordinate_transformation_mode
    factors = None if sizes is not None else t.facts.value(scales)
    for i, a in enumerate(axes or range(t.rank(x))):
        axis = a % t.rank(x) - t.rank(x)
        scale = None if sizes is not None else t.Slice(scales, [i], [i + 1])
        if not _unchanged(t, x, y, axis, None if factors is None else factors[i]):
            r = t.contract(r, axis, _interpolation(t, x, y, axis, scale, how))
    return r


def _copied(t: Tape, x: Tensor, y: Tensor) -> bool:
    """Does it keep all of its sizes? Whatever the scales, the runtime copies it then."""
    rest = range(1, t.rank(x))
    known = t.dims(x, rest) is not None and t.dims(x, [0]) == t.dims(y, [0])
    return known and t.dims(x, rest) == t.dims(y, rest)


def _unchanged(t: Tape, x: Tensor, y: Tensor, axis: int, scale: float | None) -> bool:
    """Is it known that nothing happens along the axis? The batch, if not, is taken to be one."""
    before, after = t.dims(x, [axis]), t.dims(y, [axis])
    known = before is not None and after is not None
    differs = (known and before != after) or scale not in (None, 1)
    if axis == -t.rank(x) and differs:
        raise UnsupportedError("it resizes the batch axis")
    if axis == 1 - t.rank(x) and differs and t.interval(x).lo.size > 1:
        raise UnsupportedError("it resizes an axis that its bounds vary along")
    return not differs and (known or scale is not None or axis == -t.rank(x))


def _interpolation(
    t: Tape, x: Tensor, y: Tensor, axis: int, scale: Tensor | None, how: dict[str, Any]
) -> Tensor:
    """The matrix `[size of y, size of x]` along an axis: what the runtime makes of the identity.

    Every row of the identity is a picture of one line, stretched to two, since the runtime only
    copies what keeps its size.
    """
    size = t.sizes(x, [axis])
    places = t.Range(0, t.Squeeze(size, [0]), 1)
    identity = t.number(t.Equal(t.Unsqueeze(places, [1]), places))
    lines = t.Unsqueeze(identity, [1, 2])
    if scale is None:
        wide = t.Resize(
            lines, None, None, t.Concat(size, [1, 2], t.sizes(y, [axis]), axis=0), **how
        )
    else:
        three = np.array([1, 1, 2], np.float32)
        wide = t.Resize(lines, None, t.Concat(three, scale, axis=0), **how)
    return t.Transpose(t.Squeeze(t.Slice(wide, [0], [1], [2]), [1, 2]), perm=[1, 0])
