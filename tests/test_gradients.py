"""Every gradient against central finite differences of a float64 forward map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from reference import operators as reference
from reference.cases import CASES, Case

import onnx_clrp
from onnx_clrp import UnsupportedError, UsageError, rules
from onnx_clrp.rules import differentiable
from onnx_clrp.tape import Tape, Tensor
from onnx_clrp.testing import backpropagate

Array = NDArray[Any]
Forward = Callable[..., Array]

TARGETS = 2
STEP = 1e-5
"""Of the differences; in float64 they are good to about 1e-9 with it."""

# --- Forward maps of what has a gradient, but no rule ---------------------------------------------


def _softmax(x: Array, axis: int = -1) -> Array:
    y: Array = np.exp(_log_softmax(x, axis))
    return y


def _log_softmax(x: Array, axis: int = -1) -> Array:
    y: Array = x - _log_sum_exp(x, (axis,))
    return y


def _reduction(function: Callable[[Array, tuple[int, ...]], Array]) -> Forward:
    """A reduction, given as a function of the input and the axes that keeps those axes."""

    def forward_map(x: Array, axes: Array | None = None, keepdims: int = 1) -> Array:
        reduced = tuple(range(x.ndim)) if axes is None else tuple(int(a) % x.ndim for a in axes)
        y = function(x, reduced)
        return y if keepdims else np.squeeze(y, reduced)

    return forward_map


def _log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    top = x.max(axes, keepdims=True)
    y: Array = top + np.log(np.exp(x - top).sum(axes, keepdims=True))
    return y


def _hardmax(x: Array, axis: int = -1) -> Array:
    return np.asarray(np.arange(x.shape[axis]) == _winner(x, axis), np.float64)


def _winner(x: Array, axis: int = 0) -> Array:
    place: Array = np.argmax(x, axis, keepdims=True)
    return place


FORWARD: dict[str, Forward] = {
    "And": np.logical_and,
    "ArgMax": _winner,
    "ArgMin": lambda x, axis=0: _winner(-x, axis),
    "Cos": np.cos,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Hardmax": _hardmax,
    "IsInf": np.isinf,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "LogSoftmax": _log_softmax,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "ReduceL1": _reduction(lambda x, axes: abs(x).sum(axes, keepdims=True)),
    "ReduceL2": _reduction(lambda x, axes: np.sqrt((x * x).sum(axes, keepdims=True))),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceSumSquare": _reduction(lambda x, axes: (x * x).sum(axes, keepdims=True)),
    "Sign": np.sign,
    "Sin": np.sin,
    "Softmax": _softmax,
    "Xor": np.logical_xor,
}


def forward(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    data: Sequence[int] = (),
    outputs: int = 1,
) -> list[Array]:
    """An operator's outputs in float64."""
    if op_type in FORWARD:
        return [np.asarray(FORWARD[op_type](*inputs, **attributes))]
    return reference.forward(op_type, inputs, attributes, data=data, outputs=outputs)


# --- Cases ----------------------------------------------------------------------------------------

X = (2, 3, 4, 5)


def drawn(seed: str, *shape: int) -> Array:
    """Halves that depend on the seed's text only."""
    rng = np.random.default_rng(list(seed.encode()))
    return (rng.integers(-4, 5, shape) / 2).astype(np.float32)


def case(name: str, *inputs: Array | None, data: tuple[int, ...] = (0,), **attributes: Any) -> Case:
    """A case by its operator's name, and what it is about."""
    return Case(name.lower().replace(" ", "-"), name.split()[0], inputs, attributes, data)


def axes_of(*axes: int) -> Array:
    return np.array(axes, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def scaled(original: Case) -> Case:
    """The normalisation with its scale from the data too, as of adaptive ones."""
    return replace(original, id=f"{original.id}-scaled", data=(0, 1))


REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")
MORE = [
    case("Softmax", drawn("softmax", *X)),
    case("Softmax channels", drawn("softmax channels", *X), axis=1),
    case("Softmax batch", drawn("softmax batch", 4, 3), axis=0),
    case("Softmax far", np.sign(drawn("softmax far", 3, 6)) * 100),
    case("LogSoftmax", drawn("logsoftmax", *X)),
    case("LogSoftmax channels", drawn("logsoftmax channels", *X), axis=1),
    case("LogSoftmax far", np.sign(drawn("logsoftmax far", 3, 6)) * 100),
    *(case(name, drawn(name, 2, 3, 5)) for name in ("Sin", "Cos")),
    case("Reciprocal negative", -abs(drawn("reciprocal", 2, 3, 5)) - 0.5),
    *(
        case(f"{name} {what}", drawn(name, *X), *axes, keepdims=keep)
        for name in REDUCTIONS
        for what, axes, keep in (
            ("kept", [axes_of(2, 3)], 1),
            ("flat", [axes_of(-1, 1)], 0),
            ("all", [], 1),
        )
    ),
    case("Div two", drawn("div", *X), abs(drawn("divisor", 3, 4, 5)) + 0.5, data=(0, 1)),
    case("Div divisor", drawn("dividend", 3, 1, 1), abs(drawn("div by", *X)) + 0.5, data=(1,)),
    case("Pow two", abs(drawn("pow", *X)) + 0.5, drawn("power", 3, 1, 1), data=(0, 1)),
    case("Pow power", floats(0.5, 2, 3).reshape(3, 1), drawn("powers", 2, 3, 4), data=(1,)),
    case("Pow negative", abs(drawn("pow below", *X)) + 0.5, scalar(-1.5)),
    case("Pow spread", drawn("pow small", 3, 1), floats(1, 2, 3, 4, 5)),
    case("Pow whole", drawn("pow whole", 2, 3, 5), floats(0, 1, 2, 3, 4)),
    case("Pow cube", drawn("cube", *X), scalar(3)),
    case("Max constant", drawn("max", *X), scalar(0)),
    case("Max three", *(drawn(f"max {i}", *X) for i in range(3)), data=(0, 2)),
    case("Min constant", drawn("min", 4, 1), drawn("least", *X)),
    case("PRelu slope", drawn("prelu", 2, 3, 4), drawn("slope", 3, 1), data=(0, 1)),
    case("MatMul two", drawn("a", 2, 3, 4), drawn("b", 2, 4, 5), data=(0, 1)),
    case("MatMul two broadcast", drawn("c", 2, 1, 3, 4), drawn("d", 5, 4, 2), data=(0, 1)),
    case("Gemm shift", drawn("e", 2, 4), drawn("f", 4, 3), drawn("g", 2, 3), data=(0, 2), beta=0.5),
    case("LRN strong", drawn("lrn", 2, 6, 2, 3), size=3, alpha=2.0, beta=0.5, bias=2.0),
    case("MeanVarianceNormalization plane", drawn("mvn", *X), axes=[2, 3]),
    case("MeanVarianceNormalization batch", drawn("mvn", *X)),
    case("Pad data value", drawn("pad", 2, 3), axes_of(0, 1, 0, 2), scalar(1.5), data=(0, 2)),
    case("Pad value alone", drawn("pad", 2, 3), axes_of(0, 1, 0, 2), scalar(1.5), data=(2,)),
    case("Clip limit alone", drawn("clip", *X), scalar(-1), data=(1,)),
    case("Clip limits", drawn("clip", *X), scalar(-1), scalar(1.5), data=(0, 1, 2)),
    *(scaled(c) for c in CASES if c.op_type.endswith("Normalization") and len(c.inputs) > 1),
    case("MatMul two repeated", drawn("k", 1, 3, 4), drawn("l", 2, 4, 5), data=(0, 1)),
    case("Gemm two", drawn("m", 2, 4), drawn("n", 4, 3), data=(0, 1)),
    case("Conv weights", drawn("conv", 1, 2, 5, 5), drawn("w", 3, 2, 3, 3), data=(0, 1)),
    case(
        "Conv bias", drawn("conv", 1, 2, 5, 5), drawn("w", 3, 2, 3, 3), drawn("h", 3), data=(0, 2)
    ),
]
"""Of what only gradients have, or of forms that relevance has no rule for."""

SATURATING = frozenset(
    {
        *("Abs", "Atan", "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish"),
        *("Tanh", "ThresholdedRelu"),
    }
)
"""What has its corners far from 0, or turns flat there."""


def stretched(original: Case, name: str, factor: int) -> Case:
    """The case with its data so many times as large."""
    x = original.inputs[0]
    assert x is not None
    return replace(original, id=f"{original.id}-{name}", inputs=(x * factor, *original.inputs[1:]))


FITTING = [
    *(c for c in CASES if c.rules == "default"),
    *(
        stretched(c, name, factor)
        for name, factor in (("wide", 4), ("far", 50))
        for c in CASES
        if c.op_type in SATURATING
    ),
    *MORE,
]
"""A gradient is the same in every rule set."""

MINE = [c for c in FITTING if c.op_type in differentiable()]
FLAT = {
    "And": "a = Greater(x, zero) d = Less(x, one) c = And(a, d)",
    "ArgMax": "c = ArgMax<axis=1>(x)",
    "ArgMin": "c = ArgMin<axis=-1>(x)",
    "Cast": "c = Cast<to=7>(x)",
    "Ceil": "c = Ceil(x)",
    "Equal": "a = Round(x) c = Equal(a, one)",
    "Floor": "c = Floor(x)",
    "Greater": "c = Greater(x, half)",
    "GreaterOrEqual": "c = GreaterOrEqual(x, half)",
    "Hardmax": "c = Hardmax(x)",
    "IsInf": "c = IsInf(x)",
    "IsNaN": "c = IsNaN(x)",
    "Less": "c = Less(half, x)",
    "LessOrEqual": "c = LessOrEqual(x, half)",
    "Not": "a = Greater(x, half) c = Not(a)",
    "Or": "a = Greater(x, one) d = Less(x, zero) c = Or(a, d)",
    "Round": "c = Round(x)",
    "Sign": "c = Sign(x)",
    "Xor": "a = Greater(x, zero) d = Less(x, one) c = Xor(a, d)",
}
"""What is flat nearly everywhere; most of it has integers or truth values for an output."""

OPEN = {c.id for c in MORE} | {c.id for c in CASES if c.op_type.endswith("Normalization")}
OPEN -= {c.id for c in FITTING if c.op_type == "GroupNormalization"}
"""Cases whose sizes are left open, too."""

GAPS = {
    **dict.fromkeys(
        (
            *("pow-two", "pow-power", "prelu-slope", "gemm-shift", "gemm-two", "pad-data-value"),
            *("pad-value-alone", "clip-limit-alone", "clip-limits", "conv-weights", "conv-bias"),
            *(c.id for c in MORE if c.id.endswith("-scaled")),
        ),
        r"depends? on the input",
    ),
    **{f"{name.lower()}-all": "it reduces over the batch axis" for name in REDUCTIONS},
    "meanvariancenormalization-batch": "it takes its statistics from the batch",
    "matmul-two-broadcast": "with different numbers of axes",
    "gemm-left": "the first axis of its data",
    "gemm-transposed-data": "the first axis of its data",
    "gemm-first-left": "the first axis of its data",
    "matmul-left-flat": "the first axis of its data",
    "maxpool-2d-no-late-start": "starts a window in the padding",
    "reducemax-all": "it reduces over the batch axis",
    "reducesum-all": "it reduces over the batch axis",
}
"""Cases that the package refuses, by what it says."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """What is as small as all this is slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_operator_with_a_gradient_has_a_case() -> None:
    assert set(differentiable()) <= {c.op_type for c in FITTING} | set(FLAT)


def test_no_forward_map_here_is_of_no_use() -> None:
    assert set(FORWARD) <= set(differentiable())
    assert not set(FORWARD) & reference.OPERATORS


def fractional(values: Array | None) -> bool:
    return values is not None and bool((values % 1 != 0).any())


def nudged(original: Case) -> Case:
    """The case with its data off corners and ties, on which there is no derivative.

    All are multiples of a half. No two of them come to lie closer to each other than two of the
    nudges do, which are evenly spaced. What is to the power of a fraction is made positive.
    """
    inputs = list(original.inputs)
    data = [(i, x) for i in original.data if (x := inputs[i]) is not None and x.dtype.kind == "f"]
    count = sum(x.size for _, x in data)
    rng = np.random.default_rng(6)
    nudges = rng.permutation(np.linspace(0.02, 0.2, count)) * rng.choice([-1, 1], count)
    for i, x in data:
        mine, nudges = nudges[: x.size].reshape(x.shape), nudges[x.size :]
        base = abs(x) + 0.5 if original.op_type == "Pow" and fractional(inputs[1]) else x
        inputs[i] = (base + mine).astype(np.float32)
    return replace(original, inputs=tuple(inputs))


def outputs_of(at: Case, data: Sequence[Array]) -> list[Array]:
    """The outputs of a case with other data in it."""
    inputs = list(at.inputs)
    for i, value in zip(at.data, data, strict=True):
        inputs[i] = value
    return forward(at.op_type, inputs, at.attributes, at.data, at.outputs)


def data_of(at: Case) -> list[Array]:
    """The data of a case in float64."""
    return [np.asarray(x, np.float64) for i, x in enumerate(at.inputs) if i in at.data]


def gradients_for(outputs: Sequence[Array]) -> list[Array]:
    """Seeded gradients `[k, *y.shape]` of each output; halves, so that float32 holds them."""
    rng = np.random.default_rng(3)
    return [rng.integers(-6, 7, (TARGETS, *y.shape)) / 2 for y in outputs]


def differences(
    function: Callable[[Sequence[Array]], list[Array]],
    values: Sequence[Array],
    gradients: Sequence[Array],
) -> list[Array]:
    """`Σ g ∂y/∂x` for each of the float64 values that a function takes, by central differences."""
    answers = []
    for value in values:
        answer, flat = np.zeros((TARGETS, value.size)), value.reshape(-1)
        for place, middle in enumerate(flat.tolist()):
            sides = []
            for flat[place] in (middle + STEP, middle - STEP):
                sides.append(function(values))
            flat[place] = middle
            for g, above, below in zip(gradients, *sides, strict=True):
                slope = (above - below).reshape(-1) / (2 * STEP)
                answer[:, place] += g.reshape(TARGETS, -1) @ slope
        answers.append(answer.reshape(TARGETS, *value.shape))
    return answers


def one_node_model(at: Case, outputs: Sequence[Array]) -> onnx.ModelProto:
    """The case as a model: its data are inputs, all else is an initializer."""
    names = ["" if x is None else f"in{i}" for i, x in enumerate(at.inputs)]
    results = [f"out{i}" for i in range(at.outputs)]
    given = [(i, names[i], x) for i, x in enumerate(at.inputs) if x is not None]

    def info(name: str, value: Array, kind: int) -> onnx.ValueInfoProto:
        shape = [f"{name}_{a}" for a in range(value.ndim)] if at.dynamic else value.shape
        return helper.make_tensor_value_info(name, kind, shape)

    kind = at.attributes.get("to", TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(at.op_type, names, results, name="it", **at.attributes)],
        "case",
        [
            info(name, x, helper.np_dtype_to_tensor_dtype(x.dtype))
            for i, name, x in given
            if i in at.data
        ],
        [info(name, y, kind) for name, y in zip(results, outputs, strict=True)],
        [numpy_helper.from_array(np.asarray(x), name) for i, name, x in given if i not in at.data],
    )
    opset = [helper.make_opsetid("", at.opset)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def found(at: Case, outputs: Sequence[Array], gradients: Sequence[Array]) -> list[Array]:
    """The package's answer for each of the data."""
    data = {f"in{i}": np.asarray(at.inputs[i]) for i in at.data}
    arriving = {f"out{i}": g for i, g in enumerate(gradients)}
    answer = backpropagate(one_node_model(at, outputs), data, arriving)
    return [answer.get(name, np.zeros((TARGETS, *x.shape))) for name, x in data.items()]


def forms(at: Case) -> list[Case]:
    """The case, and with its sizes left open."""
    return [at, replace(at, dynamic=True)] if at.id in OPEN else [at]


def assert_alike(answer: Array, wanted: Array) -> None:
    """To what float32 permits, of the largest value."""
    assert answer.shape == wanted.shape
    scale = np.abs(wanted).max() or 1.0
    np.testing.assert_allclose(answer, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("original", [c for c in MINE if c.id not in GAPS], ids=lambda c: c.id)
def test_gradient_agrees_with_differences(original: Case) -> None:
    at = nudged(original)
    data = data_of(at)
    outputs = outputs_of(at, data)
    gradients = gradients_for(outputs)
    wanted = differences(lambda values: outputs_of(at, values), data, gradients)
    for form in forms(at):
        for answer, want in zip(found(form, outputs, gradients), wanted, strict=True):
            assert_alike(answer, want)


@pytest.mark.parametrize("original", [c for c in MINE if c.id in GAPS], ids=lambda c: c.id)
def test_what_a_gradient_cannot_do_is_said(original: Case) -> None:
    at = nudged(original)
    outputs = outputs_of(at, data_of(at))
    for form in forms(at):
        with pytest.raises(UnsupportedError, match=GAPS[original.id]):
            found(form, outputs, gradients_for(outputs))


CORNERS = [c for c in CASES if c.op_type in SATURATING] + [c for c in MORE if c.id == "pow-whole"]


@pytest.mark.parametrize("at", CORNERS, ids=lambda c: c.id)
def test_on_a_corner_a_gradient_is_between_those_of_its_sides(at: Case) -> None:
    (x,) = data_of(at)
    (below,), (y,), (above,) = (outputs_of(at, [x + side]) for side in (-STEP, 0, STEP))
    sides = [(y - below) / STEP, (above - y) / STEP]
    (answer,) = found(at, [y], [np.ones((1, *y.shape))])
    assert (answer >= np.minimum(*sides) - 1e-4).all()
    assert (answer <= np.maximum(*sides) + 1e-4).all()


# --- More than one node ---------------------------------------------------------------------------

_RANDOM = np.random.default_rng(7)
WEIGHTS: dict[str, Array] = {
    name: np.asarray(_RANDOM.normal(size=shape) * size, np.float32)
    for name, shape, size in (
        ("w", (3, 3, 3, 3), 0.3),
        ("b", (3,), 1.0),
        ("narrow", (2, 3, 1, 1), 0.7),
        ("wide", (3, 2, 1, 1), 0.7),
        ("plane", (1, 2, 3, 3), 0.3),
        ("queries", (5, 5), 0.4),
        ("keys", (5, 5), 0.4),
        ("dense", (60, 4), 0.2),
    )
} | {
    "s": floats(1.5, -0.5, -2).reshape(3, 1, 1),
    "scale": floats(1.5, -0.5, -2),
    "mean": floats(0.1, -0.2, 0.3),
    "variance": floats(0.5, 1, 2),
    "half": scalar(0.5),
    "one": scalar(1),
    "two": scalar(2),
    "three": scalar(3),
    "six": scalar(6),
    "zero": scalar(0),
    "root": scalar(2**0.5),
    "epsilon": scalar(1e-3),
    "last": axes_of(-1),
    "channels": axes_of(1),
    "plane_axes": axes_of(2, 3),
    "around": axes_of(0, 0, 1, 1, 0, 0, 1, 1),
    "flat": axes_of(0, -1),
    "sizes": axes_of(2, 3, 6, 4),
}

CONV = "Conv<pads=[1,1,1,1]>"
GRAPHS = {
    "a fork": f"h = {CONV}(x, w, b) a = Relu(h) c = Tanh(h) d = Mul(a, c) y = Add(d, x)",
    "the same twice": "d = Add(x, x) q = Mul(d, x) y = Sub(q, x)",
    "silu": f"h = {CONV}(x, w) g = Sigmoid(h) y = Mul(h, g)",
    "hard swish": "a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) y = Div(p, six)",
    "gelu": "d = Div(x, root) e = Erf(d) o = Add(e, one) p = Mul(x, o) y = Mul(p, half)",
    "gelu of tanh": """q = Pow(x, three) c = Mul(q, epsilon) a = Add(x, c) t = Tanh(a)
        o = Add(t, one) p = Mul(x, o) y = Mul(p, half)""",
    "mish": "e = Softplus(x) t = Tanh(e) y = Mul(x, t)",
    "relu as a maximum": f"h = {CONV}(x, w) y = Max(h, zero)",
    "layer normalisation": """m = ReduceMean(x, last) c = Sub(x, m) q = Mul(c, c)
        v = ReduceMean(q, last) e = Add(v, epsilon) r = Sqrt(e) d = Div(c, r) y = Mul(d, s)""",
    "layer normalisation over channels": """m = ReduceMean(x, channels) c = Sub(x, m)
        q = Pow(c, two) v = ReduceMean(q, channels) e = Add(v, epsilon) r = Sqrt(e) d = Div(c, r)
        p = Mul(d, s) y = Add(p, s)""",
    "layer normalisation multiplied out": """m = ReduceMean(x, plane_axes) c = Sub(x, m)
        q = Mul(c, c) v = ReduceMean(q, plane_axes) e = Add(v, epsilon) r = Sqrt(e)
        i = Reciprocal(r) g = Mul(i, s) a = Mul(x, g) t = Mul(m, g) u = Sub(s, t) y = Add(a, u)""",
    "a group": "y = GroupNormalization<num_groups=1>(x, scale, b)",
    "rms normalisation": """q = Mul(x, x) v = ReduceMean(q, last) e = Add(v, epsilon) r = Sqrt(e)
        y = Div(x, r)""",
    "unit length": "n = ReduceL2(x, channels) m = Clip(n, epsilon) y = Div(x, m)",
    "global response": """n = ReduceL2(x, plane_axes) m = ReduceMean(n, channels)
        e = Add(m, epsilon) d = Div(n, e) p = Mul(x, d) q = Mul(p, s) y = Add(q, x)""",
    "softmax": "e = Exp(x) t = ReduceSum(e, last) y = Div(e, t)",
    "softmax of what is lowered": """a = ReduceMax(x, channels) d = Sub(x, a) e = Exp(d)
        t = ReduceSum(e, channels) y = Div(e, t)""",
    "squeeze and excite": """m = ReduceMean(x, plane_axes) a = Conv(m, narrow) r = Relu(a)
        c = Conv(r, wide) g = Sigmoid(c) y = Mul(x, g)""",
    "a map of attention": f"""m = ReduceMean(x, channels) a = ReduceMax(x, channels)
        c = Concat<axis=1>(m, a) h = {CONV}(c, plane) g = Sigmoid(h) y = Mul(g, x)""",
    "self-attention": """q = MatMul(x, queries) k = MatMul(x, keys) t = Transpose<perm=[0,1,3,2]>(k)
        a = MatMul(q, t) p = Softmax(a) y = MatMul(p, x)""",
    "signs of a normalisation": f"""h = {CONV}(x, w, b)
        n = BatchNormalization(h, scale, b, mean, variance) r = Relu(n) y = {CONV}(r, w)""",
    "signs of scales": f"h = {CONV}(x, w, b) p = Mul(h, s) a = Add(p, s) y = {CONV}(a, w)",
    "signs of scales behind a pool": f"""h = {CONV}(x, w) a = AveragePool<kernel_shape=[2,2]>(h)
        p = Mul(a, s) r = Relu(p) y = {CONV}(r, w)""",
    "a scale of the input itself": f"""h = {CONV}(x, w) k = ReduceMean(x, plane_axes)
        p = Mul(h, k) r = Relu(p) y = {CONV}(r, w)""",
    "padding of a convolution": "p = Pad(x, around) y = Conv(p, w)",
    "padding of a pool": "p = Pad(x, around) y = MaxPool<kernel_shape=[3,3]>(p)",
    "padding of a mean": "p = Pad(x, around) y = AveragePool<kernel_shape=[3,3]>(p)",
    "reflected": 'p = Pad<mode="reflect">(x, around) h = Conv(p, w) y = Relu(h)',
    "chosen by the data": "c = Greater(x, half) d = Mul(x, s) y = Where(c, x, d)",
    "divided by what it is": "a = Abs(x) o = Add(a, one) d = Div(x, o) y = Mul(d, s)",
    "one over": "e = Exp(x) o = Add(e, one) r = Reciprocal(o) y = Mul(r, x)",
    "down to scores": """h = Relu(x) f = Reshape(h, flat) d = MatMul(f, dense)
        l = LogSoftmax(d) y = Unsqueeze(l, plane_axes)""",
    "up and down": """d = Resize<mode="linear">(x, , , sizes) c = Concat<axis=1>(d, d)
        p, q = Split<axis=1, num_outputs=2>(c) a = Mul(p, q) y = MaxPool<kernel_shape=[2,2]>(a)""",
}


PICTURES = np.random.default_rng(8).normal(size=X).astype(np.float32)


def graph(body: str, sizes: str, results: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """A model of `x` and of those weights that its nodes name."""
    made = ", ".join(f"float[n,{name}1,{name}2,{name}3] {name}" for name in results)
    text = f'<ir_version: 9, opset_import: ["": 21]> g (float[{sizes}] x) => ({made}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    weights = [numpy_helper.from_array(w, name) for name, w in WEIGHTS.items() if name in used]
    model.graph.initializer.extend(weights)
    return model


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    """The outputs of a model of `x` in float64, node by node."""
    values = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer} | {"x": x}
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values.get(name) for name in node.input]
        made = forward(node.op_type, inputs, attributes, outputs=len(node.output))
        values.update(zip(node.output, made, strict=True))
    return [values[y.name] for y in model.graph.output]


def assert_gradient(body: str, results: Sequence[str] = ("y",), pictures: Array = PICTURES) -> None:
    """Of `x`, whether its sizes are known or not."""
    known, x = graph(body, "2,3,4,5", results), pictures.astype(np.float64)
    outputs = run(known, x)
    gradients = gradients_for(outputs)
    (wanted,) = differences(lambda values: run(known, values[0]), [x], gradients)
    arriving = dict(zip(results, gradients, strict=True))
    for model in (known, graph(body, "n,3,h,w", results)):
        assert_alike(backpropagate(model, {"x": pictures}, arriving)["x"], wanted)


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_of_a_graph_are_chained(name: str) -> None:
    assert_gradient(GRAPHS[name])


@pytest.mark.parametrize("op_type", FLAT)
def test_what_is_flat_hands_nothing_on(op_type: str) -> None:
    body = f"{FLAT[op_type]} f = Cast<to=1>(c) p = Mul(x, f) y = Add(p, x)"
    assert_gradient(body)


def test_an_output_may_be_read_on() -> None:
    assert_gradient("h = Relu(x) g = Sigmoid(h) p = Mul(h, g)", ("p", "h"))


DEAD = (
    *("unit length", "global response", "rms normalisation", "softmax"),
    *("layer normalisation", "layer normalisation over channels"),
)


@pytest.mark.parametrize("name", DEAD)
def test_a_norm_of_nothing_is_no_trouble(name: str) -> None:
    dead = PICTURES.copy()
    dead[0, :, 1, 2], dead[1, 1], dead[0, 2, 3] = 0, 0, 0
    assert_gradient(GRAPHS[name], pictures=dead)


@pytest.mark.parametrize("p", [1, 2])
def test_a_vector_of_zeros_has_no_infinite_gradient(p: int) -> None:
    model = graph(f"y = LpNormalization<axis=1, p={p}>(x)", "2,3,4,5")
    nothing = np.zeros(X, np.float32)  # ONNX Runtime leaves it at 0
    answer = backpropagate(model, {"x": nothing}, {"y": np.ones((1, *X))})["x"]
    assert np.isfinite(answer).all()


def test_gradients_may_come_to_some_of_the_outputs() -> None:
    model = graph("a, b, c = Split<axis=1, num_outputs=3>(x)", "n,3,4,5", ("a", "b", "c"))
    g = gradients_for(run(model, PICTURES))[1]
    answer = backpropagate(model, {"x": PICTURES}, {"b": g})["x"]
    np.testing.assert_array_equal(answer, np.pad(g, ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0))))


# --- What has no gradient, and what a user gives one ----------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in a test is gone behind it."""
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))
    monkeypatch.setattr(rules, "_gradients", dict(rules._gradients))


def quick_gelu() -> onnx.ModelProto:
    """An operator of ONNX Runtime's own between two of ONNX."""
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[n,4] x) => (float[n,4] y) <float[n,4] h, float[n,4] k> {
            h = Tanh(x) k = com.microsoft.QuickGelu<alpha = 1.5>(h) y = Neg(k)
        }"""
    )


NUMBERS = np.linspace(-2, 2, 8).astype(np.float32).reshape(2, 4)
ONES = np.ones((1, 2, 4), np.float32)


def test_an_operator_without_a_gradient_is_refused_by_name() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[2,4,4] x) => (float[2] y) {
            h = Relu(x) y = Det(h)
        }"""
    )
    with pytest.raises(UnsupportedError, match=r"Det .*no gradient") as caught:
        backpropagate(model, {"x": np.ones((2, 4, 4), np.float32)}, {"y": np.ones((1, 2))})
    assert '@onnx_clrp.gradient("Det")' in str(caught.value)


def test_what_is_quantised_is_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[n,4] x) => (float[n,4] y)
        <float scale = {0.1}, uint8 zero = {128}> {
            q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero) y = Mul(d, d)
        }"""
    )
    with pytest.raises(UnsupportedError, match="quantised, which has no gradient"):
        backpropagate(model, {"x": NUMBERS}, {"y": ONES})


@pytest.mark.usefixtures("registered")
def test_a_rule_is_no_gradient() -> None:
    @onnx_clrp.rule("QuickGelu", domain="com.microsoft")
    def hand_on(t: Tape, r: Tensor, y: Tensor, x: Tensor, *, alpha: float) -> Tensor:
        return r

    assert differentiable("com.microsoft") == []
    with pytest.raises(UnsupportedError, match=r"QuickGelu .*no gradient") as caught:
        backpropagate(quick_gelu(), {"x": NUMBERS}, {"y": ONES})
    assert '@onnx_clrp.gradient("QuickGelu", domain="com.microsoft")' in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_a_gradient_of_ones_own_is_used() -> None:
    @onnx_clrp.gradient("QuickGelu", domain="com.microsoft")
    def derivative(t: Tape, g: Tensor, y: Tensor, x: Tensor, *, alpha: float = 1.702) -> Tensor:
        s = t.Sigmoid(t.Mul(x, alpha))
        return t.Mul(g, t.Add(s, t.Mul(t.Mul(y, alpha), t.Sub(1.0, s))))

    assert differentiable("com.microsoft") == ["QuickGelu"]

    def function(values: Sequence[Array]) -> list[Array]:
        h = np.tanh(values[0])
        return [-h / (1 + np.exp(-1.5 * h))]

    (wanted,) = differences(function, [NUMBERS.astype(np.float64)], [ONES.repeat(TARGETS, 0)])
    answer = backpropagate(quick_gelu(), {"x": NUMBERS}, {"y": ONES})["x"]
    assert_alike(answer, wanted[:1])


def test_what_a_test_registers_is_gone_behind_it() -> None:
    assert differentiable("com.microsoft") == []


@pytest.mark.usefixtures("registered")
def test_a_gradient_is_replaced_on_purpose_alone() -> None:
    def none(t: Tape, g: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return t.Mul(g, 0.0)

    with pytest.raises(UsageError, match="Relu has a gradient already; say replace=True"):
        onnx_clrp.gradient("Relu")(none)
    onnx_clrp.gradient("Relu", replace=True)(none)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[n,4] x) => (float[n,4] y) {y = Relu(x)}'
    )
    answer = backpropagate(model, {"x": NUMBERS}, {"y": ONES})["x"]
    np.testing.assert_array_equal(answer, np.zeros((1, 2, 4)))
