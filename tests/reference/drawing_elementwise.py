"""Draws elementwise operators, sums and products, normalisations and quantisation."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from reference.drawing import Sketch, operand_shape, rank, strategy

_OPTIONS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "Celu": {"alpha": (2.0, 0.5)},
    "Elu": {"alpha": (0.5, 2.0)},
    "Gelu": {"approximate": ("none", "tanh")},
    "HardSigmoid": {"alpha": (1 / 6, 0.5, -0.25), "beta": (0.5, 0.25)},
    "LeakyRelu": {"alpha": (0.25, 0.3, -0.5)},
    "Selu": {"alpha": (1.5,), "gamma": (1.25,)},
    "Swish": {"alpha": (0.5, 2.0)},
    "ThresholdedRelu": {"alpha": (0.25, 0.0, 2.0)},
}
_FLOAT = 1
_EPSILON = 0.25
"""Large, so that what hardly varies is not blown up together with its rounding errors."""


@strategy("Abs", "Atan", "Ceil", "Celu", "Elu", "Erf", "Floor", "HardSigmoid", "HardSwish")
@strategy("Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid")
@strategy("Softplus", "Softsign", "Tanh", "ThresholdedRelu")
@strategy("Gelu", opset=20)
@strategy("Swish", opset=24)
@strategy("Exp", fits=lambda x: x.max() <= 4)
@strategy("Log", fits=lambda x: x.min() > 0.1)
@strategy("Sqrt", fits=lambda x: x.min() >= 0)
@strategy("Reciprocal", fits=lambda x: abs(x).min() > 0.1)
def unary(s: Sketch, op: str, x: str) -> None:
    options = _OPTIONS.get(op, {})
    s.add(op, [x], **{key: s.one_of(*given) for key, given in options.items() if s.often()})


@strategy("Cast")
def cast(s: Sketch, op: str, x: str) -> None:
    s.add(op, [x], to=_FLOAT)


@strategy("Clip")
def clip(s: Sketch, op: str, x: str) -> None:
    low, high = s.one_of(None, 0.0, -1.0, 0.5), s.one_of(None, 6.0, 1.0, 0.5)
    ends = ["" if end is None else s.constant(end) for end in (low, high)]
    while ends and not ends[-1]:
        ends.pop()
    s.add(op, [x, *ends])


@strategy("PRelu")
def prelu(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    slope = [s.one_of(1, n) for n in shape][s.number(0, len(shape) - 1) :]
    s.add(op, [x, s.floats(slope, "positive", "mixed", "smooth")])


@strategy("Dropout")
def dropout(s: Sketch, op: str, x: str) -> None:
    more = [s.constant(0.3), s.constant(False, np.bool_)]
    s.add(op, [x, *more[: s.number(0, 2)]])


@strategy("Pow", fits=lambda x: x.min() >= 0.1)
def power(s: Sketch, op: str, x: str) -> None:
    s.add(op, [x, s.constant(s.one_of(2.0, 0.5, 3.0, -1.0))])


@strategy("QuantizeLinear", "DequantizeLinear")
def quantisation(s: Sketch, op: str, x: str) -> None:
    """There and back, by one scale or one for each place along an axis."""
    kind = s.one_of(np.uint8, np.int8)
    shape = s.values[x].shape
    axis = s.number(0, len(shape) - 1)
    each = {"axis": axis} if len(shape) > 1 and s.rarely(4) else {}
    sizes = [shape[axis]] if each else []
    zero = np.full(sizes, s.one_of(0, 3, 128 if kind is np.uint8 else -5))
    operands = [s.constant(s.array(sizes, "above") / 16), s.constant(zero, kind)]
    made = s.add("QuantizeLinear", [x, *operands], **each)
    s.integers.update(made)
    if made:
        s.add("DequantizeLinear", [*made, *operands], **each)


# --- Constants and activations as operands ---------------------------------------------------


@strategy("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")
def combined(s: Sketch, op: str, x: str) -> None:
    if op in ("Max", "Min", "Sum") and s.often():
        _of_several(s, op, x)
    elif s.often():
        _with_activation(s, op, x)
    else:
        constant = s.floats(operand_shape(s, s.values[x].shape), "nonzero", "above", "smooth")
        swapped = s.often() and op != "Div"
        s.add(op, [constant, x] if swapped else [x, constant])


def _with_activation(s: Sketch, op: str, x: str) -> None:
    if op != "Div":
        inputs = [x, s.companion(x)]
        s.add(op, inputs[::-1] if s.often() else inputs)
    elif s.rarely(4) and abs(s.values[x]).min() > 0.1:
        s.add(op, [s.companion(x), x])


def _of_several(s: Sketch, op: str, x: str) -> None:
    inputs = [x, *(s.companion(x) for _ in range(s.number(0, 3)))]
    if s.rarely(3 if op == "Sum" else 12):
        inputs.append(s.floats(operand_shape(s, s.values[x].shape)))
    if s.goes_together(inputs):
        s.add(op, inputs[::-1] if s.often() else inputs)


# --- Normalisation ---------------------------------------------------------------------------


@strategy("BatchNormalization", fits=rank(2))
def batch_norm(s: Sketch, op: str, x: str) -> None:
    channels = [s.values[x].shape[1]]
    parameters = [s.floats(channels, "nonzero", "mixed", "above") for _ in range(3)]
    more = {"epsilon": _EPSILON} if s.often() else {}
    s.add(op, [x, *parameters, s.floats(channels, "above")], **more)


@strategy("LRN", fits=rank(4, 4))
def lrn(s: Sketch, op: str, x: str) -> None:
    more = {"alpha": 0.5, "beta": 0.5, "bias": 2.0} if s.often() else {}
    s.add(op, [x], size=s.one_of(1, 3, 5), **more)


@strategy("InstanceNormalization", fits=lambda x: x.ndim >= 3 and math.prod(x.shape[2:]) > 1)
def instance_norm(s: Sketch, op: str, x: str) -> None:
    channels = [s.values[x].shape[1]]
    s.add(op, [x, *(s.floats(channels, "nonzero", "mixed") for _ in "sb")], epsilon=_EPSILON)


@strategy("GroupNormalization", fits=lambda x: x.ndim >= 3 and math.prod(x.shape[2:]) > 1, opset=21)
def group_norm(s: Sketch, op: str, x: str) -> None:
    channels = s.values[x].shape[1]
    groups = s.one_of(*(g for g in range(1, channels + 1) if channels % g == 0))
    operands = [s.floats([channels], "nonzero", "mixed") for _ in "sb"]
    s.add(op, [x, *operands], num_groups=groups, epsilon=_EPSILON)


@strategy("LayerNormalization", fits=lambda x: x.ndim >= 2 and x.shape[-1] > 1)
@strategy("RMSNormalization", fits=lambda x: x.ndim >= 2 and x.shape[-1] > 1, opset=23)
def layer_norm(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    axis = s.one_of(-1, *range(1, len(shape)))
    sizes = shape[axis % len(shape) :]
    operands = [s.floats(sizes, "nonzero", "mixed", "above")]
    if op == "LayerNormalization" and s.often():
        operands.append(s.floats(sizes))
    s.add(op, [x, *operands], axis=axis, epsilon=_EPSILON)


@strategy("LpNormalization", fits=lambda x: x.ndim >= 2 and bool((abs(x).sum(1) > 0.1).all()))
def lp_norm(s: Sketch, op: str, x: str) -> None:
    s.add(op, [x], axis=1, p=s.one_of(1, 2))


@strategy("MeanVarianceNormalization", fits=lambda x: x.ndim == 4 and x[0].size > 1)
def mean_variance_norm(s: Sketch, op: str, x: str) -> None:
    axes = s.one_of([0, 2, 3], [1, 2, 3], [2, 3])
    if s.values[x].std(tuple(axes)).min() > 0.1:
        s.add(op, [x], axes=axes)
