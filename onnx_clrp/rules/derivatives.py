"""The derivatives of elementwise functions: g_x = g f'(x), and how a gradient passes a ReLU."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.rules import gradient

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor

Derivative = Callable[..., "Tensor"]
"""`(t, x, y, **attributes) -> f'(x)`, in the shape of `y`."""


def derivative(*operators: str) -> Callable[[Derivative], Derivative]:
    """Register `f'` of elementwise operators of a single input."""

    def register(function: Derivative) -> Derivative:
        def handed(t: Tape, g: Tensor, y: Tensor, x: Tensor, *_: Tensor, **how: Any) -> Tensor:
            return t.Mul(g, function(t, x, y, **how))

        gradient(*operators)(handed)
        return function

    return register


# -- ReLU and its kin ---------------------------------------------------------------------------


@gradient("Relu")
def relu(t: Tape, g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """g where x > 0; deconvnet and guided backprop differ from that (spec. section 2)."""
    return t.rectify(g, t.number(t.Greater(y, 0.0)))


@gradient("Clip")
def clip(
    t: Tape,
    g: Tensor,
    y: Tensor,
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """g between the bounds; from 0 up it is a ReLU, with a ceiling or without."""
    inside = [t.number(t.Greater(x, low))] if low is not None else []
    inside += [t.number(t.Less(x, high))] if high is not None else []
    if not inside:
        return g
    mask = inside[0] if len(inside) == 1 else t.Mul(*inside)
    floor = None if low is None else t.facts.value(low)
    return t.rectify(g, mask) if floor is not None and not floor.any() else t.Mul(g, mask)


@derivative("LeakyRelu")
def _leaky_relu(t: Tape, x: Tensor, y: Tensor, *, alpha: float = 0.01) -> Tensor:
    return t.Where(t.Greater(x, 0.0), 1.0, float(alpha))


@gradient("PRelu")
def prelu(t: Tape, g: Tensor, y: Tensor, x: Tensor, slope: Tensor) -> list[Tensor | None]:
    """g where x > 0, slope g elsewhere."""
    if t.carries(slope):
        raise UnsupportedError("its slope depends on the input")
    passed = t.Where(t.Greater(x, 0.0), 1.0, slope)
    return [t.unbroadcast(t.Mul(g, passed), y, x), None]


@derivative("ThresholdedRelu")
def _thresholded_relu(t: Tape, x: Tensor, y: Tensor, *, alpha: float = 1.0) -> Tensor:
    return t.number(t.Greater(x, float(alpha)))


@derivative("Elu")
def _elu(t: Tape, x: Tensor, y: Tensor, *, alpha: float = 1.0) -> Tensor:
    return t.Where(t.Greater(x, 0.0), 1.0, t.Add(y, float(alpha)))


@derivative("Celu")
def _celu(t: Tape, x: Tensor, y: Tensor, *, alpha: float = 1.0) -> Tensor:
    return t.Exp(t.Div(t.negative(x), float(alpha)))


@derivative("Selu")
def _selu(
    t: Tape,
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Tensor:
    curved = t.Mul(t.Exp(t.negative(x)), float(alpha))
    return t.Mul(t.Where(t.Greater(x, 0.0), 1.0, curved), float(gamma))


# -- smooth ones ----------------------------------------------------------------------------------


@derivative("Sigmoid")
def _sigmoid(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    s = t.Sigmoid(x)
    return t.Mul(s, t.Sub(1.0, s))


@derivative("HardSigmoid")
def _hard_sigmoid(
    t: Tape, x: Tensor, y: Tensor, *, alpha: float = 0.2, beta: float = 0.5
) -> Tensor:
    line = t.Add(t.Mul(x, float(alpha)), float(beta))
    rising = t.And(t.Greater(line, 0.0), t.Less(line, 1.0))
    return t.Mul(t.number(rising), float(alpha))


@derivative("HardSwish")
def _hard_swish(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    middle = t.Add(t.Div(x, 3.0), 0.5)
    left = t.Where(t.Greater(x, -3.0), middle, 0.0)
    return t.Where(t.Less(x, 3.0), left, 1.0)


@derivative("Swish")
def _swish(t: Tape, x: Tensor, y: Tensor, *, alpha: float = 1.0) -> Tensor:
    s = t.Sigmoid(t.Mul(x, float(alpha)))
    slope = t.Mul(t.Mul(t.Mul(x, float(alpha)), s), t.Sub(1.0, s))
    return t.Add(s, slope)


@derivative("Gelu")
def _gelu(t: Tape, x: Tensor, y: Tensor, *, approximate: str = "none") -> Tensor:
    if isinstance(approximate, bytes):
        approximate = approximate.decode()
    if approximate == "tanh":
        return _tanh_gelu(t, x)
    share = t.Mul(t.Add(t.Erf(t.Mul(x, 1 / sqrt(2))), 1.0), 0.5)
    density = t.Mul(t.Exp(t.Mul(t.Mul(x, x), -0.5)), 1 / sqrt(2 * pi))
    return t.Add(share, t.Mul(x, density))


def _tanh_gelu(t: Tape, x: Tensor) -> Tensor:
    square, slope = t.Mul(x, x), sqrt(2 / pi)
    tanh = t.Tanh(t.Mul(t.Mul(x, t.Add(t.Mul(square, 0.044715), 1.0)), slope))
    inner = t.Mul(t.Add(t.Mul(square, 3 * 0.044715), 1.0), slope)
    rising = t.Mul(t.Mul(x, t.Sub(1.0, t.Mul(tanh, tanh))), inner)
    return t.Mul(t.Add(t.Add(tanh, 1.0), rising), 0.5)


@derivative("Mish")
def _mish(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    tanh = t.Tanh(t.Softplus(x))
    return t.Add(tanh, t.Mul(t.Mul(x, t.Sigmoid(x)), t.Sub(1.0, t.Mul(tanh, tanh))))


@derivative("Softplus")
def _softplus(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Sigmoid(x)


@derivative("Softsign")
def _softsign(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    size = t.Add(t.Abs(x), 1.0)
    return t.Div(1.0, t.Mul(size, size))


@derivative("Tanh")
def _tanh(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Sub(1.0, t.Mul(y, y))


@derivative("Erf")
def _erf(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Mul(t.Exp(t.Neg(t.Mul(x, x))), 2 / sqrt(pi))


@derivative("Atan")
def _atan(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Div(1.0, t.Add(t.Mul(x, x), 1.0))


@derivative("Exp")
def _exp(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return y


@derivative("Log")
def _log(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Div(1.0, x)


@derivative("Sqrt")
def _sqrt(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Div(0.5, y)


@derivative("Reciprocal")
def _reciprocal(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Neg(t.Mul(y, y))


@derivative("Sin")
def _sin(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Cos(x)


@derivative("Cos")
def _cos(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Neg(t.Sin(x))


@derivative("Abs")
def _abs(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.Sign(x)


@derivative("Neg")
def _neg(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    return t.operand(-1.0)


@gradient("Pow")
def power(t: Tape, g: Tensor, y: Tensor, x: Tensor, exponent: Tensor) -> list[Tensor | None]:
    """n x^(n-1) g."""
    if t.carries(exponent):
        raise UnsupportedError("its exponent depends on the input")
    n, value = t.number(exponent), t.facts.value(exponent)
    slope = t.Mul(n, t.Pow(x, t.Sub(n, 1.0)))
    if value is None or not value.all():  # x^0 is flat at 0 too
        slope = t.Where(t.Equal(n, 0.0), 0.0, slope)
    return [t.unbroadcast(t.Mul(g, slope), y, x), None]


# -- nothing to hand on ----------------------------------------------------------------------------


@gradient("Floor", "Ceil", "Round", "Sign", "Hardmax", moves=True)
@gradient("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", moves=True)
@gradient("Not", "And", "Or", "Xor", "IsNaN", "IsInf", "ArgMax", "ArgMin", moves=True)
def flat(t: Tape, g: Tensor, y: Tensor, *xs: Tensor, **_: Any) -> list[Tensor | None]:
    """0: flat nearly everywhere."""
    return [None for _ in xs]


@gradient("Cast", moves=True)
def cast(t: Tape, g: Tensor, y: Tensor, x: Tensor, *, to: int, **_: Any) -> list[Tensor | None]:
    """g between floats and from integers; 0 to integers, which rounds."""
    rounds = np.dtype(tensor_dtype_to_np_dtype(to)).kind in "iub"
    return [None if rounds else g]
