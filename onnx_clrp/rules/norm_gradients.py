"""The gradients of normalisations and of reductions that are no means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.rules import gradient
from onnx_clrp.rules.pooling import kept, reduced_axes

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@gradient("BatchNormalization")
def batch_norm(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    training_mode: int = 0,
    **_: Any,
) -> list[Tensor | None]:
    """γ g / sqrt(variance + ε), with the statistics of the training."""
    if training_mode:
        raise UnsupportedError("it takes its statistics from the batch (training mode)")
    _refuse_data(t, scale, shift, mean, var)
    factor = t.Div(scale, t.Sqrt(t.Add(var, float(epsilon))))
    return [t.Mul(g, _by_channel(t, factor, x)), None, None, None, None]


@gradient("InstanceNormalization")
def instance_norm(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    epsilon: float = 1e-5,
) -> list[Tensor | None]:
    """The gradient of (x - mean) / sqrt(variance + ε) over the plane, times γ."""
    _refuse_data(t, scale, shift)
    axes = [*range(2 - t.rank(x), 0)]
    return [_centred(t, t.Mul(g, _by_channel(t, scale, x)), x, axes, epsilon), None, None]


@gradient("LayerNormalization")
def layer_norm(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> list[Tensor | None]:
    """The gradient of (x - mean) / sqrt(variance + ε) over the last axes, times γ."""
    _refuse_data(t, scale, shift)
    axes = [*range(axis % t.rank(x) - t.rank(x), 0)]
    return [_centred(t, t.Mul(g, scale), x, axes, epsilon), None, None][: len(t.step.inputs)]


@gradient("RMSNormalization")
def rms_norm(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> list[Tensor | None]:
    """The gradient of x / sqrt(mean x² + ε) over the last axes, times γ."""
    _refuse_data(t, scale)
    axes = [*range(axis % t.rank(x) - t.rank(x), 0)]
    return [_scaled(t, t.Mul(g, scale), x, axes, epsilon), None]


@gradient("GroupNormalization")
def group_norm(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> list[Tensor | None]:
    """The gradient of (x - mean) / sqrt(variance + ε) over each group, times γ."""
    _refuse_data(t, scale, shift)
    groups = t.Reshape(x, [0, num_groups, -1])
    scaled = t.Mul(g, _by_channel(t, scale, x))
    flat = t.Reshape(scaled, t.Concat([-1], t.Shape(groups), axis=0))
    return [t.like(_centred(t, flat, groups, [-1], epsilon), x), None, None]


@gradient("MeanVarianceNormalization")
def mean_variance_norm(
    t: Tape, g: Tensor, y: Tensor, x: Tensor, *, axes: Sequence[int] = (0, 2, 3)
) -> Tensor:
    """The gradient of (x - mean) / sqrt(variance) over the axes."""
    rank = t.rank(x)
    counted = [a % rank - rank for a in axes]
    if -rank in counted:
        raise UnsupportedError("it takes its statistics from the batch")
    return _centred(t, g, x, counted, 1e-9)


@gradient("LpNormalization")
def lp_norm(t: Tape, g: Tensor, y: Tensor, x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """(g - d Σ g y) / ‖x‖, d the derivative of the norm: y for p = 2, sgn x for p = 1."""
    along = [axis % t.rank(x) - t.rank(x)]
    norm = t.ReduceL2(x, along) if p == 2 else t.ReduceL1(x, along)
    inward = y if p == 2 else t.Sign(x)
    return t.quotient(t.Sub(g, t.Mul(inward, t.ReduceSum(t.Mul(g, y), along))), norm)


@gradient("LRN")
def lrn(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
) -> Tensor:
    """g d^-β - 2αβ/n x Σ g x d^(-β-1), d = k + α/n Σ x², sums over n channels side by side."""
    before, after = (size - 1) // 2, size // 2
    share = alpha / size
    d = t.Add(t.Mul(_channel_sum(t, t.Mul(x, x), x, before, after), share), float(bias))
    reached = t.Mul(t.Mul(g, x), t.Pow(d, float(-beta - 1)))
    back = _channel_sum(t, t.flat(reached, x), x, after, before)
    inner = t.Mul(t.Mul(x, t.like(back, x)), float(2 * share * beta))
    return t.Sub(t.Mul(g, t.Pow(d, float(-beta))), inner)


@gradient("Softmax")
def softmax(t: Tape, g: Tensor, y: Tensor, x: Tensor, *, axis: int = -1) -> Tensor:
    """y (g - Σ g y)."""
    along = [axis % t.rank(x) - t.rank(x)]
    return t.Mul(y, t.Sub(g, t.ReduceSum(t.Mul(g, y), along)))


@gradient("LogSoftmax")
def log_softmax(t: Tape, g: Tensor, y: Tensor, x: Tensor, *, axis: int = -1) -> Tensor:
    """g - exp(y) Σ g."""
    along = [axis % t.rank(x) - t.rank(x)]
    return t.Sub(g, t.Mul(t.Exp(y), t.ReduceSum(g, along)))


@gradient("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
def reduction(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    axes: Tensor | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> list[Tensor | None]:
    """g times the derivative of the norm: sgn x, x / y, 2 x, exp(x - y)."""
    counted = reduced_axes(t, x, axes, noop_with_empty_axes)
    if not counted:
        raise UnsupportedError("it reduces over no axis")
    g, y = (kept(t, z, counted, keepdims) for z in (g, y))
    slopes = {
        "ReduceL1": lambda: t.Sign(x),
        "ReduceL2": lambda: t.quotient(x, y),
        "ReduceSumSquare": lambda: t.Mul(x, 2.0),
        "ReduceLogSumExp": lambda: t.Exp(t.Sub(x, y)),
    }
    return [t.Mul(g, slopes[t.step.op]()), None][: len(t.step.inputs)]


def _refuse_data(t: Tape, *parameters: Tensor | None) -> None:
    if any(map(t.carries, parameters)):
        raise UnsupportedError("its scale or its shift depends on the input")


def _centred(t: Tape, g: Tensor, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(g - mean g - z mean g z) / σ, for z = (x - mean) / σ, σ = sqrt(variance + ε)."""
    z = t.Sub(x, t.ReduceMean(x, [*axes]))
    return t.Sub(
        inner := _scaled(t, g, z, axes, epsilon),
        t.ReduceMean(inner, [*axes]),
    )


def _scaled(t: Tape, g: Tensor, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(g - z mean g z) / σ, for z = x / σ, σ = sqrt(mean x² + ε)."""
    size = t.Sqrt(t.Add(t.ReduceMean(t.Mul(x, x), [*axes]), float(epsilon)))
    z = t.Div(x, size)
    return t.Div(t.Sub(g, t.Mul(z, t.ReduceMean(t.Mul(g, z), [*axes]))), size)


def _by_channel(t: Tape, values: Tensor, x: Tensor) -> Tensor:
    """One value for each channel, so that it broadcasts to `x`."""
    return t.Reshape(values, [-1] + [1] * (t.rank(x) - 2))


def _channel_sum(t: Tape, a: Tensor, x: Tensor, before: int, after: int) -> Tensor:
    """The sum over so many channels before and behind each: `[B, C, …]`."""
    plane = t.ReduceProd(t.Shape(x, start=2))
    lines = t.Reshape(a, t.Concat([-1, 1], t.sizes(x, [1]), plane, axis=0))
    kernel = np.ones((1, 1, before + after + 1, 1), np.float32)
    summed = t.Conv(lines, kernel, pads=[before, 0, after, 0])
    return t.Reshape(summed, t.Concat([-1], t.Shape(x, start=1), axis=0))
