"""The operators that ONNX's reference evaluator gets wrong, or runs too slowly, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_resize import Resize

from onnx_clrp.float64_windows import Array, Ints, Window, box, each, halves

_Function = Callable[..., Array]

OPERATORS: list[type[OpRun]] = []
"""For `ReferenceEvaluator(..., new_ops=OPERATORS)`."""

NARROW = frozenset({"float16", "bfloat16", "float32"})
_NARROW_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT})

_COLUMNS = 2**24
"""Elements that a convolution unrolls at once, one sample at least: 128 MiB."""


def wide(value: Array) -> Array:
    """The array, as float64 if it holds floats of fewer bits."""
    return value.astype(np.float64) if value.dtype.name in NARROW else value


def _operator(name: str) -> Callable[[_Function], _Function]:
    """Take a function of inputs and attributes for the operator of this name, of any version."""

    def take(function: _Function) -> _Function:
        def run(self: OpRun, *inputs: Array, **attributes: Any) -> tuple[Array]:
            # NumPy's float32 scalars would pull a quotient of two of them down to float32.
            exact = {
                k: float(v) if isinstance(v, np.floating) else v for k, v in attributes.items()
            }
            return (function(*inputs, **exact),)

        OPERATORS.append(type(name, (OpRun,), {"_run": run}))
        return function

    return take


# -- windows -----------------------------------------------------------------------------------


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


@_operator("Conv")
def _conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    group: int = 1,
    kernel_shape: object = None,
    **attributes: Any,
) -> Array:
    """Each window unrolled into a column, then one product for each group."""
    window = Window.over(x.shape[2:], w.shape[2:], **attributes)
    padded = window.pad(x, 0)
    weight = w.reshape(group, len(w) // group, -1)
    y = np.empty((len(x), group, len(w) // group, math.prod(window.out)))
    at_once = max(1, _COLUMNS // (x.shape[1] * math.prod((*window.kernel, *window.out))))
    for i in range(0, len(x), at_once):
        columns = np.stack([*window.places(padded[i : i + at_once])], axis=2)
        columns = columns.reshape(len(columns), group, weight.shape[2], -1)
        np.matmul(weight, columns, out=y[i : i + at_once])
    return _biased(y.reshape(len(x), len(w), *window.out), b)


@_operator("ConvTranspose")
def _conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: object = None,
    **attributes: Any,
) -> Array:
    """Each column the product of a position, added up where its window stands; the pads cut off."""
    n = x.ndim - 2
    size, stride, dilation = np.array(x.shape[2:]), each(strides, 1, n), each(dilations, 1, n)
    full = (size - 1) * stride + dilation * (np.array(w.shape[2:]) - 1) + 1
    full += each(output_padding, 0, n)
    begin, end = _cut(full, size * stride, **attributes)
    zero = np.zeros_like(size)
    window = Window(np.array(w.shape[2:]), stride, dilation, full, zero, zero, size)
    y = np.zeros((len(x), group * w.shape[1], *full))
    at_once = max(1, _COLUMNS // (y.shape[1] * math.prod((*window.kernel, *size))))
    for i in range(0, len(x), at_once):
        _spread(x[i : i + at_once], w, group, [*window.places(y[i : i + at_once])])
    return _biased(y[box(begin, full - end)], b)


def _cut(
    full: Ints,
    same: Ints,
    pads: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> tuple[Ints, Ints]:
    """What a ConvTranspose cuts off in front and behind of its full output."""
    if not output_shape and not auto_pad.startswith("SAME"):
        begin, end = np.split(each(pads, 0, 2 * len(full)), 2)
        return begin, end
    total = full - (np.array(output_shape) if output_shape else same)
    if (total < 0).any():
        raise ValueError("its output_shape is larger than its windows reach")
    return halves(total, auto_pad)


def _spread(x: Array, w: Array, group: int, places: Sequence[Array]) -> None:
    """Add the columns `Wᵀ x` up at the places of the window."""
    weight = w.reshape(group, len(w) // group, -1).transpose(0, 2, 1)
    columns = weight @ x.reshape(len(x), group, len(w) // group, -1)
    by_place = columns.reshape(len(x), -1, len(places), *x.shape[2:])
    for i, place in enumerate(places):
        np.add(place, by_place[:, :, i], out=place)


@_operator("QLinearConv")
def _qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    b: Array | None = None,
    **attributes: Any,
) -> Array:
    """Conv of the integers, which float64 holds exactly, scaled, rounded and saturated."""
    real = x.astype(np.float64) - x_zero
    y = _conv(real, w - _along(w_zero.astype(np.float64), w, 0), b, **attributes)
    scaled = np.rint(y * _along(x_scale * w_scale / y_scale, y, 1)) + y_zero
    limits = np.iinfo(y_zero.dtype)
    return np.asarray(np.clip(scaled, limits.min, limits.max), y_zero.dtype)


@_operator("MaxPool")
def _max_pool(
    x: Array, *, kernel_shape: Sequence[int], storage_order: int = 0, **attributes: Any
) -> Array:
    """The largest of each window."""
    window = Window.over(x.shape[2:], kernel_shape, **attributes)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return reduce(np.maximum, window.places(window.pad(x, lowest)))


@_operator("AveragePool")
def _average_pool(
    x: Array, *, kernel_shape: Sequence[int], count_include_pad: int = 0, **attributes: Any
) -> Array:
    """The mean of each window's elements, the padding among them or not."""
    window = Window.over(x.shape[2:], kernel_shape, **attributes)
    counted = window.pad(np.ones((1, 1, *x.shape[2:])), 0)
    if count_include_pad:  # but never what ceil_mode lets a window hang over
        counted[box(np.zeros_like(window.size), window.begin + window.size + window.end)] = 1
    total, count = (reduce(np.add, window.places(a)) for a in (window.pad(x, 0), counted))
    return np.asarray(total / count)


# -- others ------------------------------------------------------------------------------------


def _along(values: Array, x: Array, axis: int) -> Array:
    """One value for all of `x`, or one for each place along an axis of it."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


@_operator("Cast")
def _cast(x: Array, *, to: int, **_: Any) -> Array:
    """To float64 where a narrower float is asked for."""
    dtype = np.float64 if to in _NARROW_TYPES else helper.tensor_dtype_to_np_dtype(to)
    return x.astype(dtype, copy=False)


@_operator("Constant")
def _constant(**value: Any) -> Array:
    """A tensor, or the number or numbers of `value_float`, `value_ints` and so on."""
    (given,) = value.values()
    return wide(np.asarray(given))


@_operator("ConstantOfShape")
def _constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """An array of one value, a float 0 by default."""
    return np.full(shape, 0.0 if value is None else wide(value).reshape(()))


@_operator("DequantizeLinear")
def _dequantize_linear(
    x: Array, scale: Array, zero: Array | None = None, *, axis: int = 1, **options: Any
) -> Array:
    """`(x - zero) * scale`, rounded as the runtime rounds it, so that equal numbers stay equal.

    The evaluator's own knows no opset below 19.
    """
    if options.get("block_size"):
        raise NotImplementedError("its scales are for blocks")
    zeros = np.zeros(1) if zero is None else zero.astype(np.float64)
    exact = (x - _along(zeros, x, axis)) * _along(scale, x, axis)
    return np.asarray(exact).astype(np.float32).astype(np.float64)


@_operator("Erf")
def _erf(x: Array) -> Array:
    """The evaluator's own rounds to float32."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


@_operator("Gelu")
def _gelu(x: Array, *, approximate: str = "none") -> Array:
    """The evaluator's own has a constant of float32 in it."""
    if approximate == "tanh":
        squashed = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        squashed = _erf(x / math.sqrt(2))
    return np.asarray(x / 2 * (1 + squashed))


@_operator("GatherElements")
def _gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """The evaluator's own takes no fewer rows than there are."""
    shortened = tuple(slice(None if i == axis % x.ndim else n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(x[shortened], indices % x.shape[axis], axis)


@_operator("GlobalMaxPool")
def _global_max_pool(x: Array) -> Array:
    """The evaluator's own takes the wrong axes where there are not two."""
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


@_operator("HardSwish")
def _hard_swish(x: Array) -> Array:
    """The evaluator's own has a sixth of float32 in it."""
    return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))


@_operator("LRN")
def _lrn(x: Array, *, size: int, alpha: float, beta: float, bias: float) -> Array:
    """The evaluator's own normalises as many channels as there are samples."""
    width = [(0, 0)] * x.ndim
    width[1] = ((size - 1) // 2, size // 2)
    squares = np.pad(x * x, width)
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return np.asarray(x / (bias + alpha / size * total) ** beta)


@_operator("LpNormalization")
def _lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """The evaluator's own forgets that a norm is made of magnitudes."""
    norm = np.linalg.norm(x, p, axis, keepdims=True)
    return np.asarray(x / np.where(norm == 0, 1, norm))


@_operator("Pad")
def _pad(
    x: Array,
    pads: Array,
    value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
) -> Array:
    """The evaluator's own refuses negative pads, which cut off."""
    width = np.zeros((x.ndim, 2), np.int64)
    width[slice(None) if axes is None else axes] = pads.reshape(2, -1).T
    kept = (slice(max(0, -b), n - max(0, -e)) for n, (b, e) in zip(x.shape, width, strict=True))
    cut, width = x[tuple(kept)], np.maximum(width, 0)
    if mode == "constant":
        return np.pad(cut, width, constant_values=0 if value is None else value.reshape(()))
    return np.asarray(np.pad(cut, width, mode))


@_operator("Relu")
def _relu(x: Array) -> Array:
    """The evaluator's own copies its result, and it runs on every weight there is."""
    return np.asarray(np.maximum(x, 0))


class _Resize(Resize):
    """The evaluator's own mixes axes up, scales what keeps its size, and takes parts of pixels."""

    def _run(self, *inputs: Any, **how: Any) -> Any:
        x, roi, scales, sizes = (*inputs, None, None, None)[:4]
        if how.get("keep_aspect_ratio_policy") not in (None, "stretch"):
            return super()._run(*inputs, **how)
        axes = how.pop("axes", None)
        along = [*range(x.ndim)] if axes is None else [*axes]
        factors, size = np.ones(x.ndim), np.array(x.shape)
        if sizes is None or not sizes.size:
            factors[along] = scales
            size = np.floor(size * factors).astype(np.int64)
        else:
            size[along] = sizes
        if tuple(size) == x.shape:
            return (x,)
        corners = how.get("coordinate_transformation_mode") == "align_corners"
        whole = corners or (sizes is not None and sizes.size > 0)
        given = (None, size) if whole else (factors, None)
        return super()._run(x, roi, *given, **how)


OPERATORS.append(type("Resize", (_Resize,), {}))

MOVEMENTS = [o for o in OPERATORS if o.__name__ in ("GatherElements", "Pad", "Resize")]
"""Those of them that only move values about, in whatever type these have."""
