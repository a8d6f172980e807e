"""Linear maps with constant weights: how each runs W and Wᵀ; who gets what is the composite's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.redistribute import LinearMap
from onnx_clrp.rules import rule
from onnx_clrp.rules.window import Window

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@rule("Conv", linear=True)
def conv(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> Tensor:
    """linear map: y = W * x."""
    _only_first(t, x, w)
    window = Window.of(_shape(t, w)[2:], strides, pads, dilations)

    def forward(a: Tensor, weight: Tensor) -> Tensor:
        return window.convolve(t, a, weight, group)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        return t.like(window.adjoint(t, t.flat(s, y), weight, x, y, group), x)

    return t.redistribute(LinearMap(x, y, _signed(t, w, 0), forward, transpose), r)


@rule("ConvTranspose", linear=True)
def conv_transpose(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    group: int = 1,
) -> Tensor:
    """linear map: y = Wᵀ * x."""
    _only_first(t, x, w)
    window = Window.of(_shape(t, w)[2:], strides, pads, dilations)

    def forward(a: Tensor, weight: Tensor) -> Tensor:
        return window.spread(t, a, weight, group, output_padding)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        full = window.convolve(t, t.flat(s, y), weight, group)
        # Output padding beyond a stride leaves room for a window more than there was.
        exact = t.Slice(full, [0] * len(window.kernel), t.sizes(x, window.axes), [*window.axes])
        return t.like(exact if max(output_padding or [0]) else full, x)

    signs = t.step.signs
    if signs is not None and group > 1:
        signs = np.repeat(signs.reshape(group, -1), _shape(t, w)[0] // group, axis=0)
        w = t.Mul(w, signs.reshape(*signs.shape, *[1] * len(window.kernel)))
    else:
        w = _signed(t, w, 1)
    return t.redistribute(LinearMap(x, y, w, forward, transpose), r)


@rule("Gemm", linear=True)
def gemm(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """linear map: y = α x W; of α only the sign matters."""
    _only_first(t, x, w)
    if transA:
        raise UnsupportedError("its data operand is transposed (transA=1): the batch is not first")
    w = _signed(t, w, 0 if transB else 1)
    w = w if alpha > 0 else t.Mul(w, float(np.sign(alpha)))

    def forward(a: Tensor, weight: Tensor) -> Tensor:
        return t.Gemm(a, weight, transB=transB)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        return t.like(t.Gemm(t.flat(s, y), weight, transB=1 - transB), x)

    return t.redistribute(LinearMap(x, y, w, forward, transpose, dense=True), r)


@rule("MatMul", linear=True)
def matmul(t: Tape, r: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """linear map: y = x W or W x."""
    if t.carries(a) and t.carries(b):
        raise UnsupportedError("both operands depend on the input")
    x, w = (a, b) if t.carries(a) else (b, a)
    if len(_shape(t, w)) < 2 or t.rank(x) < 2 + t.carries(b) or _copies(t, x, w):
        raise UnsupportedError("a product with a vector, over the batch axis, or one that copies")

    def multiply(data: Tensor, weight: Tensor) -> Tensor:
        return t.MatMul(data, weight) if t.carries(a) else t.MatMul(weight, data)

    def transpose(s: Tensor, weight: Tensor) -> Tensor:
        axes = [*range(len(_shape(t, w)))]
        axes[-2:] = axes[:-3:-1]
        return multiply(s, t.Transpose(weight, perm=axes))

    signed = _signed(t, w, -1 if t.carries(a) else -2)
    return t.redistribute(LinearMap(x, y, signed, multiply, transpose, dense=True), r)


def _copies(t: Tape, x: Tensor, w: Tensor) -> bool:
    """Has the weight batch axes along which the data would be repeated?"""
    batch = _shape(t, w)[:-2]
    if len(batch) > t.rank(x) - 2:
        return True
    there = t.dims(x, range(t.rank(x) - 2 - len(batch), t.rank(x) - 2))
    return there is None or any(n not in (1, m) for n, m in zip(batch, there, strict=True))


def _only_first(t: Tape, x: Tensor, w: Tensor) -> None:
    if t.carries(w) or not t.carries(x):
        raise UnsupportedError("its weights depend on the input")


def _shape(t: Tape, w: Tensor) -> list[int]:
    dims = t.dims(w, range(t.rank(w)))
    if dims is None:
        raise UnsupportedError("the shape of its weights is known only at run time")
    return dims


def _signed(t: Tape, w: Tensor, axis: int) -> Tensor:
    """The weights with the signs of the per-channel scales behind the map, `axis` the outputs'.

    The redistributions do not change when an output is scaled by a positive number, so that of a
    BatchNorm folded into the weights nothing but the sign is left.
    """
    signs = t.step.signs
    if signs is None:
        return w
    shape = [1] * t.rank(w)
    shape[axis] = -1
    return t.Mul(w, signs.reshape(shape))
