"""Small informative nodes for the references, each with its own seeded operands.

Most values are halves and small integers: sums of them are exact in float32 and in float64,
so that ties and sums of exactly zero are the same in both.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import TensorProto

Shape = Sequence[int]
Attribute = int | float | str | list[int]


@dataclass(frozen=True)
class Case:
    """One node, which inputs are data, and the rules under which it is tried."""

    id: str
    op_type: str
    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any]
    data: tuple[int, ...] = (0,)
    outputs: int = 1
    rules: str = "default"
    opset: int = 18
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    dynamic: bool = False


# --- Operands --------------------------------------------------------------------------------


def _values(seed: str, shape: Shape, kind: str = "mixed") -> np.ndarray:
    """Float32 operands that depend on the seed's text only, never on the order of the cases."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    drawn = {
        "mixed": rng.integers(-4, 5, shape) / 2,
        "positive": rng.integers(0, 5, shape) / 2,
        "negative": rng.integers(-5, 0, shape) / 2,
        "sparse": rng.integers(1, 5, shape) / 2 * (rng.random(shape) < 0.3),
        "nonzero": rng.choice([-4.0, -2.0, -0.5, 0.5, 1.0, 2.0], shape),
        "ties": rng.integers(-1, 2, shape).astype(np.float64),
        "smooth": rng.normal(size=shape),
        "constant": np.full(shape, 1.5),
        "zero": np.zeros(shape),
    }
    return np.asarray(drawn[kind], dtype=np.float32)


def _integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def _channel_bounds(x: np.ndarray, axis: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Bounds per channel that some elements reach; the last channel has room above."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    low, high = x.min(others, keepdims=True), x.max(others, keepdims=True)
    room = np.zeros(high.shape, dtype=np.float32)
    room.reshape(-1)[-1] = 0.5
    return low, high + room


# --- Linear maps -----------------------------------------------------------------------------


def _conv(
    name: str,
    x: Shape,
    weight: Shape,
    kind: str = "mixed",
    bias: bool = False,
    group: int = 1,
    **attributes: Attribute,
) -> Case:
    """A convolution; channels of a transposed one lie on the second axis of its weight."""
    op_type = "ConvTranspose" if name.startswith("convtranspose") else "Conv"
    channels = weight[0] if op_type == "Conv" else weight[1] * group
    operands = [_values(name + "/x", x, kind), _values(name + "/w", weight)]
    if bias:
        operands.append(_values(name + "/b", [channels]))
    return Case(name, op_type, tuple(operands), {"group": group, **attributes})


def _first(case: Case, axis: int = 1) -> Case:
    """The case as the first linear map, with bounds per channel."""
    x = case.inputs[case.data[0]]
    return replace(case, bounds=None if x is None else _channel_bounds(x, axis))


def _bounded(case: Case, low: np.ndarray, high: np.ndarray) -> Case:
    return replace(case, bounds=(low, high))


def _silenced(case: Case) -> Case:
    """Makes the first filter zero and the second negative: units that only a bias can excite."""
    weight = np.array(case.inputs[1])
    weight[0] = 0
    weight[1] = -abs(weight[1])
    return replace(case, inputs=(case.inputs[0], weight, *case.inputs[2:]))


def _dynamic(case: Case) -> Case:
    return replace(case, dynamic=True)


CONVOLUTIONS = [
    _conv("conv-1d-strided", (2, 3, 9), (4, 3, 3), strides=[2]),
    _conv("conv-1d-dilated", (2, 2, 9), (3, 2, 3), "positive", dilations=[2], pads=[2, 1]),
    _conv("conv-2d-mixed", (2, 3, 5, 6), (4, 3, 3, 2), bias=True),
    _conv("conv-2d-positive", (2, 3, 5, 5), (4, 3, 3, 3), "positive", True, pads=[1, 1, 1, 1]),
    _conv("conv-2d-smooth", (2, 3, 6, 5), (5, 3, 3, 3), "smooth", True, pads=[1, 1, 1, 1]),
    _conv("conv-2d-asymmetric", (2, 2, 5, 7), (3, 2, 3, 3), pads=[0, 1, 2, 1], strides=[2, 1]),
    _dynamic(_conv("conv-2d-dynamic", (2, 2, 5, 7), (3, 2, 3, 3), strides=[2, 2])),
    _dynamic(
        _conv(
            "conv-2d-same-upper", (2, 2, 7, 6), (3, 2, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]
        )
    ),
    _conv("conv-2d-same-lower", (2, 2, 7, 6), (3, 2, 3, 4), auto_pad="SAME_LOWER", strides=[2, 2]),
    _conv("conv-2d-valid", (2, 2, 6, 6), (3, 2, 3, 3), auto_pad="VALID", strides=[2, 2]),
    _conv("conv-2d-grouped", (2, 4, 5, 5), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    _conv("conv-2d-depthwise", (2, 3, 5, 5), (3, 1, 3, 3), "sparse", True, group=3, strides=[2, 2]),
    _conv("conv-2d-multiplier", (2, 3, 5, 5), (6, 1, 3, 3), group=3),
    _conv("conv-2d-dilated", (2, 2, 7, 8), (3, 2, 3, 2), dilations=[2, 3]),
    _conv("conv-2d-pointwise", (2, 3, 5, 5), (4, 3, 1, 1), "positive", strides=[2, 2]),
    _conv("conv-2d-skipping", (2, 2, 8, 7), (3, 2, 2, 2), strides=[3, 3]),
    _dynamic(_conv("conv-2d-same-open", (2, 2, 5, 6), (3, 2, 2, 3), auto_pad="SAME_LOWER")),
    _dynamic(
        _conv("conv-1d-same-skipping", (2, 2, 9), (3, 2, 1), auto_pad="SAME_LOWER", strides=[2])
    ),
    _dynamic(
        _conv(
            "conv-2d-same-lower-open",
            (2, 2, 7, 6),
            (3, 2, 3, 4),
            "positive",
            auto_pad="SAME_LOWER",
            strides=[3, 2],
        )
    ),
    _dynamic(
        _first(
            _conv(
                "conv-2d-first-same-open",
                (2, 2, 7, 6),
                (3, 2, 3, 4),
                auto_pad="SAME_UPPER",
                strides=[2, 2],
            )
        )
    ),
    _silenced(_conv("conv-2d-silent", (2, 3, 4, 4), (4, 3, 3, 3), "positive", True)),
    _conv("conv-3d", (2, 2, 4, 5, 3), (3, 2, 2, 3, 2), bias=True, pads=[1, 0, 0, 0, 1, 1]),
    _first(_conv("conv-1d-first", (2, 2, 8), (3, 2, 3), pads=[1, 1])),
    _first(_conv("conv-2d-first", (2, 3, 5, 5), (4, 3, 3, 3), bias=True)),
    _first(
        _conv("conv-2d-first-padded", (2, 3, 5, 6), (4, 3, 3, 3), pads=[0, 1, 2, 1], strides=[2, 2])
    ),
    _first(_silenced(_conv("conv-2d-first-silent", (2, 2, 4, 4), (3, 2, 2, 2), "positive", True))),
    _first(_conv("conv-2d-first-grouped", (2, 4, 5, 5), (4, 2, 3, 3), group=2, dilations=[2, 2])),
    _first(_conv("conv-2d-first-same", (2, 2, 5, 5), (3, 2, 2, 2), auto_pad="SAME_LOWER")),
    _bounded(_conv("conv-2d-first-scalar", (2, 2, 4, 4), (3, 2, 3, 3)), _scalar(-2), _scalar(2)),
    _bounded(
        _conv("conv-2d-first-unbounded", (2, 2, 4, 4), (3, 2, 3, 3)),
        _scalar(-np.inf),
        _scalar(np.inf),
    ),
    _bounded(
        _conv("conv-2d-first-half-bounded", (2, 2, 4, 4), (3, 2, 3, 3)),
        _scalar(-2),
        _scalar(np.inf),
    ),
]

TRANSPOSED_CONVOLUTIONS = [
    _conv("convtranspose-1d", (2, 3, 5), (3, 4, 3)),
    _conv("convtranspose-1d-strided", (2, 4, 5), (4, 2, 4), "positive", True, strides=[2], group=2),
    _conv("convtranspose-1d-dilated", (2, 2, 5), (2, 3, 3), dilations=[2], pads=[1, 2]),
    _conv("convtranspose-2d", (2, 3, 3, 4), (3, 2, 3, 3), bias=True),
    _conv("convtranspose-2d-gaps", (2, 2, 3, 3), (2, 3, 2, 2), "positive", True, strides=[3, 3]),
    _conv("convtranspose-2d-pads", (2, 2, 4, 3), (2, 3, 3, 3), pads=[0, 1, 2, 1], strides=[2, 2]),
    _conv(
        "convtranspose-2d-output-padding",
        (2, 2, 3, 3),
        (2, 3, 3, 3),
        bias=True,
        output_padding=[1, 1],
        pads=[1, 1, 1, 1],
        strides=[2, 2],
    ),
    _conv(
        "convtranspose-2d-shape", (2, 2, 3, 3), (2, 2, 4, 4), output_shape=[7, 7], strides=[2, 2]
    ),
    _conv(
        "convtranspose-2d-shape-upper",
        (2, 2, 3, 3),
        (2, 2, 4, 4),
        auto_pad="SAME_UPPER",
        output_shape=[7, 7],
        strides=[2, 2],
    ),
    _conv(
        "convtranspose-2d-same-upper",
        (2, 2, 3, 4),
        (2, 3, 3, 3),
        auto_pad="SAME_UPPER",
        strides=[2, 2],
    ),
    _conv(
        "convtranspose-2d-same-lower",
        (2, 2, 3, 4),
        (2, 3, 3, 3),
        auto_pad="SAME_LOWER",
        strides=[2, 2],
    ),
    _conv("convtranspose-2d-valid", (1, 2, 3, 3), (2, 2, 2, 3), auto_pad="VALID", strides=[2, 1]),
    _conv("convtranspose-2d-grouped", (2, 4, 3, 3), (4, 3, 2, 2), group=2, dilations=[2, 1]),
    _dynamic(
        _conv(
            "convtranspose-2d-same-open",
            (2, 2, 3, 4),
            (2, 3, 3, 4),
            auto_pad="SAME_UPPER",
            strides=[2, 1],
        )
    ),
    _dynamic(_conv("convtranspose-2d-dynamic", (2, 2, 3, 4), (2, 3, 3, 3), strides=[2, 2])),
    _first(
        _conv(
            "convtranspose-2d-first", (2, 2, 3, 3), (2, 3, 3, 3), pads=[1, 0, 0, 1], strides=[2, 2]
        )
    ),
]


def _gemm(
    name: str,
    x: Shape,
    weight: Shape,
    kind: str = "mixed",
    c: Shape | None = None,
    **attributes: Attribute,
) -> Case:
    """A fully connected layer with the data on the left."""
    operands = [_values(name + "/x", x, kind), _values(name + "/w", weight)]
    if c is not None:
        operands.append(_values(name + "/c", c))
    return Case(name, "Gemm", tuple(operands), attributes)


def _matmul(name: str, x: Shape, weight: Shape, kind: str = "mixed") -> Case:
    return Case(name, "MatMul", (_values(name + "/x", x, kind), _values(name + "/w", weight)), {})


def _left(case: Case) -> Case:
    """The same operands with the constant on the left and the data on the right."""
    return replace(case, data=(1,))


PRODUCTS = [
    _gemm("gemm", (2, 5), (5, 4), c=(4,)),
    _gemm("gemm-positive", (3, 5), (4, 5), "positive", (4,), transB=1),
    _gemm("gemm-without-c", (2, 6), (3, 6), transB=1),
    _gemm("gemm-scaled", (2, 5), (5, 3), c=(1, 3), alpha=0.5, beta=2.0),
    _gemm("gemm-negated", (2, 5), (5, 3), "positive", (2, 1), alpha=-1.5, beta=0.5),
    _gemm("gemm-negated-transposed", (2, 5), (3, 5), c=(2, 3), alpha=-1.0, transB=1),
    _silenced(_gemm("gemm-silent", (2, 4), (3, 4), "positive", (3,), transB=1)),
    _left(_gemm("gemm-left", (3, 4), (4, 5), c=(5,))),
    _left(_gemm("gemm-left-transposed", (3, 4), (5, 4), c=(3, 1), alpha=-2.0, transB=1)),
    _left(_gemm("gemm-left-both-transposed", (4, 3), (5, 4), "positive", (5,), transA=1, transB=1)),
    _gemm("gemm-transposed-data", (4, 3), (4, 5), transA=1),
    _first(_left(_gemm("gemm-first-left-transposed", (3, 4), (5, 4), transB=1)), axis=1),
    _first(_gemm("gemm-first", (4, 5), (3, 5), c=(3,), transB=1)),
    _first(_gemm("gemm-first-negated", (4, 5), (5, 3), alpha=-0.5)),
    _first(_left(_gemm("gemm-first-left", (3, 4), (4, 5)))),
    _matmul("matmul", (2, 5), (5, 3)),
    _matmul("matmul-positive", (2, 3, 4), (4, 5), "positive"),
    _matmul("matmul-batched", (2, 3, 4), (2, 4, 5)),
    _matmul("matmul-broadcast-data", (3, 4), (2, 4, 5)),
    _matmul("matmul-longer", (3, 4), (1, 1, 4, 5)),
    _matmul("matmul-copied-batch", (1, 3, 4), (2, 4, 5)),
    _matmul("matmul-copied-twice", (2, 1, 3, 4), (5, 2, 3, 4, 3)),
    _matmul("matmul-vector-weight", (2, 3, 4), (4,)),
    _matmul("matmul-vector-flat", (3, 4), (4,), "positive"),
    _left(_matmul("matmul-left-vector", (4,), (2, 3, 4, 2))),
    _left(_matmul("matmul-left-copies", (3, 5, 4), (2, 1, 4, 3))),
    _left(_matmul("matmul-left-flat", (5, 4), (4, 3))),
    _first(_matmul("matmul-first-vector", (2, 3, 4), (4,)), axis=2),
    _left(_matmul("matmul-left", (5, 4), (2, 4, 3))),
    _left(_matmul("matmul-left-batched", (2, 1, 5, 4), (2, 3, 4, 3))),
    _first(_matmul("matmul-first", (2, 3, 4), (4, 5)), axis=2),
    _first(_left(_matmul("matmul-first-left", (5, 4), (2, 4, 3)))),
]


# --- Constants and activations as operands ---------------------------------------------------

X4 = (2, 3, 4, 5)
CONSTANT_SHAPES: dict[str, tuple[Shape, Shape]] = {
    "scalar": (X4, ()),
    "channel": (X4, (3, 1, 1)),
    "full": (X4, X4),
    "spread": ((2, 3, 1, 1), (1, 3, 4, 5)),
    "rank": ((3, 1), (2, 3, 4)),
}


def _with_constant(op_type: str, name: str, x: Shape, constant: Shape) -> Case:
    case_id = f"{op_type.lower()}-constant-{name}"
    operands = (_values(case_id + "/x", x), _values(case_id + "/c", constant, "nonzero"))
    return Case(case_id, op_type, operands, {})


def _constant_first(op_type: str) -> Case:
    name = f"{op_type.lower()}-constant-first"
    operands = (_values(name + "/c", (3, 1, 1), "nonzero"), _values(name + "/x", X4))
    return Case(name, op_type, operands, {}, data=(1,))


AFFINE = [
    *(_with_constant("Add", name, *shapes) for name, shapes in CONSTANT_SHAPES.items()),
    *(
        _with_constant(op_type, name, *CONSTANT_SHAPES[name])
        for op_type in ("Sub", "Mul", "Div")
        for name in ("channel", "spread", "rank")
    ),
    *(_constant_first(op_type) for op_type in ("Add", "Sub", "Mul", "Sum")),
]


def _activations(op_type: str, name: str, shapes: Sequence[Shape], kind: str = "mixed") -> Case:
    case_id = f"{op_type.lower()}-{name}"
    operands = tuple(_values(f"{case_id}/{i}", shape, kind) for i, shape in enumerate(shapes))
    return Case(case_id, op_type, operands, {}, data=tuple(range(len(shapes))))


PAIRS: dict[str, tuple[Sequence[Shape], str]] = {
    "mixed": ([X4, X4], "mixed"),
    "positive": ([X4, X4], "positive"),
    "ties": ([X4, X4], "ties"),
    "channel": ([X4, (2, 3, 1, 1)], "mixed"),
    "rank": ([(4, 5), X4], "mixed"),
    "crossed": ([(2, 1, 4), (2, 3, 1)], "ties"),
}
TRIED_PAIRS = {
    "Add": tuple(PAIRS),
    "Sub": ("mixed", "ties", "channel", "crossed"),
    "Mul": ("mixed", "channel", "rank"),
    "Max": ("ties", "channel", "crossed"),
    "Min": ("ties", "channel", "crossed"),
}


def _chosen(name: str, shapes: Sequence[Shape], data: tuple[int, ...]) -> Case:
    """A choice between two operands by a condition that is no data here."""
    a, b = (_values(f"where-{name}/{i}", shape) for i, shape in enumerate(shapes))
    condition = _values(f"where-{name}/c", X4) > 0
    return Case(f"where-{name}", "Where", (condition, a, b), {}, data=data)


ACTIVATIONS = [
    *(_activations(op, name, *PAIRS[name]) for op, names in TRIED_PAIRS.items() for name in names),
    _activations("Add", "smooth", [X4, X4], "smooth"),
    _activations("Sum", "one", [X4]),
    _activations("Sum", "two", [X4, X4], "ties"),
    _activations("Sum", "three", [X4, X4, X4], "mixed"),
    _activations("Sum", "three-broadcast", [(3, 1, 1), X4, (2, 1, 4, 1)], "ties"),
    _activations("Max", "one", [X4]),
    _activations("Max", "three-ties", [X4, X4, X4], "ties"),
    _activations("Min", "three-broadcast", [X4, (2, 3, 1, 1), (5,)], "ties"),
    _chosen("two", (X4, X4), (1, 2)),
    _chosen("constant", (X4, (3, 1, 1)), (1,)),
    _chosen("broadcast", ((2, 3, 1, 1), (4, 5)), (1, 2)),
]


# --- Bypassed operators ----------------------------------------------------------------------


def _unary(op_type: str, name: str = "", opset: int = 18, **attributes: Attribute) -> Case:
    case_id = f"{op_type.lower()}{name and '-' + name}"
    return Case(case_id, op_type, (_values(case_id, (2, 3, 5)),), attributes, opset=opset)


def _with_operands(case: Case, *operands: np.ndarray | None) -> Case:
    return replace(case, inputs=(case.inputs[0], *operands))


PLAIN_ACTIVATIONS = (
    *("Abs", "Atan", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg", "Round"),
    *("Sigmoid", "Softplus", "Softsign", "Tanh"),
)
POSITIVE_ACTIVATIONS = ("Log", "Reciprocal", "Sqrt")
ELEMENTWISE = [
    _unary("Cast", "double", to=TensorProto.DOUBLE),
    Case(
        "cast-bytes",
        "Cast",
        (np.arange(30, dtype=np.uint8).reshape(2, 3, 5),),
        {"to": TensorProto.FLOAT},
    ),
    _unary("Celu"),
    _unary("Celu", "alpha", alpha=2.0),
    _with_operands(_unary("Clip", "six"), _scalar(0), _scalar(6)),
    _with_operands(_unary("Clip", "low"), _scalar(-0.5)),
    _with_operands(_unary("Clip", "high"), None, _scalar(1)),
    _unary("Clip", "open"),
    _unary("Dropout"),
    _with_operands(_unary("Dropout", "ratio"), _scalar(0.3), np.array(False)),
    _unary("Elu"),
    _unary("Elu", "alpha", alpha=0.5),
    _unary("Gelu", opset=20),
    _unary("Gelu", "tanh", opset=20, approximate="tanh"),
    _unary("HardSigmoid"),
    _unary("HardSigmoid", "sixth", alpha=1 / 6, beta=0.5),
    _unary("Identity"),
    _dynamic(_unary("Identity", "dynamic")),
    _unary("LeakyRelu"),
    _unary("LeakyRelu", "alpha", alpha=0.3),
    _with_operands(_unary("PRelu", "scalar"), _floats(0.2)),
    _with_operands(_unary("PRelu", "channel"), _values("slope", (3, 1), "nonzero")),
    _with_operands(_unary("PRelu", "full"), _values("slope", (2, 3, 5), "nonzero")),
    _unary("Relu"),
    _dynamic(_unary("Relu", "dynamic")),
    _unary("Selu"),
    _unary("Selu", "attributes", alpha=1.5, gamma=1.2),
    _unary("ThresholdedRelu"),
    _unary("ThresholdedRelu", "alpha", alpha=0.25),
    *(_unary(op_type) for op_type in PLAIN_ACTIVATIONS),
    *(_dynamic(_unary(op_type, "dynamic")) for op_type in PLAIN_ACTIVATIONS),
    *(
        replace(_unary(op_type), inputs=(_values(op_type, (2, 3, 5), "positive") + 0.5,))
        for op_type in POSITIVE_ACTIVATIONS
    ),
    _unary("Swish", opset=24),
    _unary("Swish", "alpha", opset=24, alpha=1.702),
    _with_operands(_unary("Pow"), _scalar(2)),
    _with_operands(_unary("Pow", "channel"), _values("power", (3, 1), "positive") + 0.5),
]


def _normalised(op_type: str, name: str, shapes: Sequence[Shape], **attributes: Attribute) -> Case:
    """A normalisation of the first shape; the others are its constants, all positive."""
    case_id = f"{op_type.lower()}-{name}"
    x = _values(case_id, shapes[0])
    constants = (abs(_values(f"{case_id}/{i}", s, "nonzero")) for i, s in enumerate(shapes[1:]))
    return Case(case_id, op_type, (x, *constants), attributes)


NORMALISATIONS = [
    _normalised("BatchNormalization", "2d", [X4, (3,), (3,), (3,), (3,)]),
    _normalised("BatchNormalization", "flat", [(4, 3), (3,), (3,), (3,), (3,)], epsilon=0.1),
    _normalised("LRN", "three", [(2, 5, 3, 3)], size=3),
    _normalised("LRN", "five", [(2, 6, 2, 3)], size=5, alpha=0.5, beta=0.5, bias=2.0),
    _normalised("InstanceNormalization", "2d", [X4, (3,), (3,)]),
    _normalised("InstanceNormalization", "1d", [(2, 3, 7), (3,), (3,)], epsilon=0.5),
    _normalised("LayerNormalization", "last", [(2, 3, 6), (6,), (6,)]),
    _normalised("LayerNormalization", "two-axes", [(2, 3, 6), (3, 6)], axis=1, epsilon=0.1),
    _normalised("LpNormalization", "last", [(2, 3, 6)]),
    _normalised("LpNormalization", "channels", [(2, 3, 6)], axis=1, p=1),
    _normalised("MeanVarianceNormalization", "channels", [X4], axes=[1]),
    replace(_normalised("RMSNormalization", "last", [(2, 3, 6), (6,)]), opset=23),
    replace(
        _normalised("GroupNormalization", "pairs", [(2, 4, 3, 3), (4,), (4,)], num_groups=2),
        opset=21,
    ),
    replace(
        _normalised("GroupNormalization", "1d", [(2, 6, 5), (6,), (6,)], num_groups=3, epsilon=0.1),
        opset=21,
    ),
]

QUANTISATION = [
    _with_operands(_unary("QuantizeLinear", "bytes"), _scalar(0.25), np.array(3, dtype=np.uint8)),
    _with_operands(
        _unary("QuantizeLinear", "channels", axis=1),
        _floats(0.25, 0.5, 2),
        np.zeros(3, dtype=np.int8),
    ),
    Case(
        "dequantizelinear-bytes",
        "DequantizeLinear",
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), _scalar(0.5), np.array(5, dtype=np.uint8)),
        {},
    ),
    Case(
        "dequantizelinear-channels",
        "DequantizeLinear",
        (np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 4), _floats(0.25, 0.5, 2)),
        {"axis": 1},
    ),
]


# --- Pools and reductions --------------------------------------------------------------------


def _pool(
    op_type: str, name: str, x: Shape, kernel: Shape, kind: str = "ties", **more: Attribute
) -> Case:
    case_id = f"{op_type.lower()}-{name}"
    attributes = {"kernel_shape": list(kernel), **more}
    return Case(case_id, op_type, (_values(case_id, x, kind),), attributes)


def _both_rules(cases: Sequence[Case]) -> list[Case]:
    """Each case under both rule sets."""
    return [
        replace(case, id=f"{case.id}-{rules}", rules=rules)
        for case in cases
        for rules in ("default", "paper")
    ]


MAX_POOLS = [
    _pool("MaxPool", "1d", (2, 3, 9), [3], strides=[2]),
    _pool("MaxPool", "2d", (2, 2, 6, 6), [2, 2], strides=[2, 2]),
    _dynamic(
        _pool("MaxPool", "2d-padded", (2, 2, 7, 6), [3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    ),
    _pool("MaxPool", "2d-negative", (2, 2, 5, 5), [3, 3], "negative", strides=[2, 2], pads=[1] * 4),
    _pool("MaxPool", "2d-constant", (1, 2, 5, 5), [3, 3], "constant", strides=[1, 2]),
    _pool("MaxPool", "2d-skipping", (2, 2, 7, 8), [2, 2], strides=[3, 3]),
    _pool("MaxPool", "2d-asymmetric", (2, 2, 5, 6), [3, 2], strides=[2, 1], pads=[0, 1, 2, 0]),
    _pool("MaxPool", "2d-dilated", (2, 2, 7, 7), [2, 3], dilations=[3, 2]),
    *(
        _pool("MaxPool", f"2d-sliding-{name}", (2, 2, *plane), kernel, kind, pads=pads, **more)
        for name, plane, kernel, kind, pads, more in (
            ("ties", (5, 6), [3, 3], "ties", [1, 1, 1, 1], {}),
            ("negative", (5, 6), [3, 3], "negative", [1, 1, 1, 1], {}),
            ("constant", (4, 3), [3, 3], "constant", [1, 1, 1, 1], {}),
            ("mixed", (5, 6), [5, 3], "mixed", [2, 1, 2, 1], {}),
            ("even", (5, 6), [2, 4], "ties", [0, 2, 1, 1], {}),
            ("uneven", (5, 6), [3, 3], "ties", [2, 0, 0, 2], {}),
            ("along-rows", (5, 6), [1, 3], "ties", [0, 1, 0, 1], {}),
            ("along-columns", (5, 6), [3, 1], "ties", [1, 0, 1, 0], {}),
            ("dilated", (5, 6), [3, 3], "ties", [2, 1, 2, 1], {"dilations": [2, 1]}),
            ("beyond", (3, 2), [5, 7], "ties", [2, 3, 2, 3], {}),
            ("one-row", (1, 6), [3, 3], "ties", [1, 1, 1, 1], {}),
            ("one-column", (6, 1), [3, 3], "ties", [1, 1, 1, 1], {}),
        )
    ),
    _dynamic(_pool("MaxPool", "2d-sliding-open", (2, 2, 5, 6), [3, 3], pads=[1, 1, 1, 1])),
    _pool("MaxPool", "2d-overhang", (2, 2, 6, 8), [3, 3], strides=[2, 2], ceil_mode=1),
    _pool(
        "MaxPool",
        "2d-overhang-padded",
        (2, 2, 6, 5),
        [3, 3],
        strides=[2, 2],
        pads=[1] * 4,
        ceil_mode=1,
    ),
    _pool(
        "MaxPool",
        "2d-no-late-start",
        (1, 2, 5, 4),
        [2, 2],
        strides=[3, 3],
        pads=[1] * 4,
        ceil_mode=1,
    ),
    _pool("MaxPool", "2d-same-upper", (2, 2, 5, 6), [3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    _pool("MaxPool", "2d-same-lower", (2, 2, 5, 6), [3, 3], auto_pad="SAME_LOWER", strides=[2, 2]),
    _pool("MaxPool", "2d-valid", (2, 2, 5, 6), [3, 3], auto_pad="VALID", strides=[2, 2]),
    _pool(
        "MaxPool", "1d-valid-overhang", (2, 2, 5), [2], auto_pad="VALID", strides=[2], ceil_mode=1
    ),
    _dynamic(
        _pool(
            "MaxPool", "2d-same-open", (2, 2, 5, 6), [3, 2], auto_pad="SAME_UPPER", strides=[2, 2]
        )
    ),
    _dynamic(
        _pool(
            "MaxPool",
            "2d-same-lower-open",
            (2, 2, 5, 6),
            [4, 3],
            auto_pad="SAME_LOWER",
            strides=[3, 2],
        )
    ),
    _pool(
        "MaxPool",
        "2d-same-overhang",
        (2, 2, 5, 6),
        [3, 3],
        auto_pad="SAME_LOWER",
        ceil_mode=1,
        strides=[2, 2],
    ),
    _dynamic(
        _pool(
            "MaxPool",
            "2d-late-start-open",
            (1, 2, 5, 4),
            [2, 2],
            strides=[3, 3],
            pads=[1] * 4,
            ceil_mode=1,
        )
    ),
    _pool("MaxPool", "2d-storage-order", (2, 2, 4, 4), [2, 3], storage_order=1),
    _pool("MaxPool", "3d", (1, 2, 4, 5, 4), [2, 3, 2], strides=[2, 2, 1], pads=[0, 1, 0, 0, 1, 1]),
]

AVERAGE_POOLS = [
    *_both_rules(
        [
            _pool("AveragePool", "1d", (2, 3, 9), [3], strides=[2]),
            _pool("AveragePool", "2d", (2, 2, 6, 6), [2, 2], strides=[2, 2]),
            _pool("AveragePool", "2d-asymmetric", (2, 2, 5, 6), [3, 2], pads=[0, 1, 2, 0]),
            _pool("AveragePool", "2d-overhang", (2, 2, 6, 8), [3, 3], strides=[2, 2], ceil_mode=1),
            _pool("AveragePool", "2d-same-lower", (1, 2, 5, 6), [3, 3], auto_pad="SAME_LOWER"),
        ]
    ),
    _pool("AveragePool", "2d-positive", (2, 2, 5, 5), [3, 3], "positive", pads=[1] * 4),
    _pool("AveragePool", "2d-sparse", (2, 2, 6, 6), [2, 2], "sparse", strides=[2, 2]),
    _pool("AveragePool", "2d-skipping", (2, 2, 7, 8), [2, 2], strides=[3, 3]),
    _pool("AveragePool", "2d-same", (2, 2, 5, 6), [3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    _pool("AveragePool", "2d-valid", (2, 2, 5, 6), [3, 3], auto_pad="VALID", strides=[2, 2]),
    _pool("AveragePool", "2d-zero", (1, 2, 4, 4), [2, 2], "zero", strides=[2, 2]),
    _pool("AveragePool", "2d-smooth", (2, 2, 6, 7), [3, 3], "smooth", strides=[2, 2]),
    _pool("AveragePool", "2d-include", (2, 2, 5, 5), [3, 3], pads=[1] * 4, count_include_pad=1),
    _pool(
        "AveragePool",
        "2d-include-overhang",
        (2, 2, 6, 6),
        [3, 3],
        "mixed",
        ceil_mode=1,
        count_include_pad=1,
        pads=[1] * 4,
        strides=[2, 2],
    ),
    _pool("AveragePool", "3d", (1, 2, 4, 5, 4), [2, 3, 2], pads=[0, 1, 0, 0, 1, 1]),
    *_both_rules(
        [
            _dynamic(
                _pool(
                    "AveragePool",
                    "2d-overhang-open",
                    (2, 2, 6, 8),
                    [3, 3],
                    strides=[2, 2],
                    ceil_mode=1,
                )
            ),
            _dynamic(
                _pool(
                    "AveragePool",
                    "2d-same-open",
                    (2, 2, 5, 6),
                    [3, 2],
                    auto_pad="SAME_LOWER",
                    strides=[2, 2],
                )
            ),
        ]
    ),
    *(
        _dynamic(
            _pool(
                "AveragePool",
                f"1d-overhang-open-{size}",
                (2, 2, size),
                [3],
                strides=[4],
                pads=[1, 2],
                ceil_mode=1,
            )
        )
        for size in (5, 6, 7, 8)
    ),
    _pool(
        "AveragePool",
        "2d-same-overhang",
        (2, 2, 5, 6),
        [3, 3],
        auto_pad="SAME_UPPER",
        ceil_mode=1,
        strides=[2, 2],
    ),
    _dynamic(_pool("AveragePool", "2d-dynamic", (2, 2, 7, 6), [3, 3], pads=[1] * 4)),
    replace(_pool("AveragePool", "2d-dilated", (2, 2, 7, 7), [2, 3], dilations=[3, 2]), opset=19),
]


def _reduction(
    op_type: str,
    name: str,
    x: Shape,
    axes: Shape | None,
    kind: str = "ties",
    **attributes: Attribute,
) -> Case:
    case_id = f"{op_type.lower()}-{name}"
    reduced = () if axes is None else (_integers(*axes),)
    return Case(case_id, op_type, (_values(case_id, x, kind), *reduced), attributes)


REDUCTIONS = [
    _reduction("GlobalMaxPool", "1d", (2, 3, 5), None),
    _reduction("GlobalMaxPool", "constant", (2, 2, 3, 3), None, "constant"),
    _dynamic(_reduction("GlobalMaxPool", "2d-dynamic", X4, None)),
    _reduction("ReduceMax", "spatial", X4, (2, 3)),
    _reduction("ReduceMax", "unsorted", X4, (3, 2), keepdims=0),
    _reduction("ReduceMax", "channels", X4, (1,), keepdims=0),
    _reduction("ReduceMax", "apart", X4, (1, -1), keepdims=0),
    _reduction("ReduceMax", "all", (2, 3, 4), None, keepdims=0),
    _reduction("ReduceMax", "nothing", X4, None, noop_with_empty_axes=1),
    _reduction("ReduceMax", "no-axes", X4, (), noop_with_empty_axes=1),
    _dynamic(_reduction("ReduceMax", "dynamic", X4, (2,), keepdims=0)),
    _reduction("ReduceMin", "spatial", X4, (2, 3)),
    _reduction("ReduceMin", "apart", X4, (-1, 1), keepdims=0),
    _reduction("ReduceMin", "nothing", X4, (), noop_with_empty_axes=1),
    _dynamic(_reduction("ReduceMin", "dynamic", X4, (-1,), "constant")),
    _reduction("ReduceMean", "nothing", X4, (), noop_with_empty_axes=1),
    _reduction("ReduceSum", "nothing", X4, None, noop_with_empty_axes=1),
    _reduction("ReduceSum", "all", (2, 3, 4), ()),
    *_both_rules(
        [
            _reduction("GlobalAveragePool", "2d", X4, None, "mixed"),
            _reduction("ReduceMean", "flat", X4, (-2, -1), "sparse", keepdims=0),
            _reduction("ReduceSum", "kept", X4, (2, 3)),
        ]
    ),
    _reduction("GlobalAveragePool", "1d", (2, 3, 4), None),
    _reduction("GlobalAveragePool", "zero", (2, 3, 2, 2), None, "zero"),
    _dynamic(_reduction("GlobalAveragePool", "2d-dynamic", X4, None, "positive")),
    _reduction("ReduceMean", "kept", X4, (2, 3)),
    _reduction("ReduceMean", "nhwc", (2, 4, 5, 3), (1, 2), "mixed", keepdims=0),
    _dynamic(_reduction("ReduceMean", "dynamic", X4, (-1, -2), keepdims=0)),
    _reduction("ReduceSum", "flat", (2, 3, 4), (-1,), "positive", keepdims=0),
]


# --- Data movement ---------------------------------------------------------------------------


def _moved(
    op_type: str, name: str, x: Shape, *operands: np.ndarray | None, **attributes: Attribute
) -> Case:
    case_id = f"{op_type.lower()}-{name}"
    return Case(case_id, op_type, (_values(case_id, x), *operands), attributes)


def _resized(
    name: str, x: Shape, scales: Sequence[float] = (), sizes: Shape = (), **more: Attribute
) -> Case:
    factors = _floats(*scales) if scales else None
    targets = (_integers(*sizes),) if sizes else ()
    return _moved("Resize", name, x, None, factors, *targets, **more)


def _put(
    op_type: str, name: str, x: Shape, index: np.ndarray, updates: Shape, **more: Attribute
) -> Case:
    """Something put into something else; both are data."""
    case = _moved(op_type, name, x, index, _values(f"{op_type}-{name}/updates", updates), **more)
    return replace(case, data=(0, 2))


JOINS_AND_PARTS = [
    replace(_activations("Concat", "channels", [(2, 3, 4), (2, 1, 4)]), attributes={"axis": 1}),
    replace(_activations("Concat", "three", [(2, 3), (2, 1), (2, 2)]), attributes={"axis": -1}),
    replace(
        _activations("Concat", "constant", [(2, 3, 4), (2, 2, 4), (2, 1, 4)]),
        attributes={"axis": 1},
        data=(0, 2),
    ),
    replace(_moved("Split", "even", (2, 6, 3), axis=1, num_outputs=3), outputs=3),
    replace(_moved("Split", "uneven", (2, 7, 3), axis=1, num_outputs=3), outputs=3),
    replace(_moved("Split", "sizes", (2, 6, 3), _integers(1, 3, 2), axis=-2), outputs=3),
    replace(_moved("Split", "batch", (4, 3), _integers(1, 3)), outputs=2),
    replace(_moved("Split", "vector", (6,), axis=0, num_outputs=2), outputs=2),
    replace(_dynamic(_moved("Split", "dynamic", (2, 5, 4), axis=-2, num_outputs=2)), outputs=2),
    replace(
        _dynamic(_activations("Concat", "dynamic", [(2, 3, 4), (2, 1, 4)])), attributes={"axis": -2}
    ),
    _moved("Slice", "vector", (6,), _integers(1), _integers(5)),
    _moved("Slice", "plain", X4, _integers(1, 0), _integers(3, 4), _integers(2, 3)),
    _moved("Slice", "all-axes", (4, 5), _integers(1, 0), _integers(3, 100)),
    _moved(
        "Slice", "stepped", X4, _integers(0, 1), _integers(4, 5), _integers(-2, -1), _integers(2, 3)
    ),
    _moved(
        "Slice",
        "reversed",
        (2, 3, 5),
        _integers(-1, 4),
        _integers(-(2**63), 0),
        _integers(1, 2),
        _integers(-1, -2),
    ),
    _moved("Slice", "negative-ends", (2, 3, 6), _integers(-4), _integers(-1), _integers(2)),
    _dynamic(_moved("Slice", "dynamic", X4, _integers(1), _integers(2**63 - 1), _integers(3))),
    _dynamic(
        _moved(
            "Slice",
            "dynamic-stepped",
            X4,
            _integers(-1),
            _integers(-9),
            _integers(2),
            _integers(-2),
        )
    ),
    _dynamic(
        _moved("Slice", "dynamic-end", X4, _integers(-3, 0), _integers(-1, 2), _integers(-1, 1))
    ),
    _dynamic(
        _moved("Slice", "dynamic-two", X4, _integers(1, 0), _integers(3, -1), _integers(1, 3))
    ),
    _moved("Slice", "short-integers", (2, 3, 5), np.array([1], np.int32), np.array([4], np.int32)),
    _dynamic(
        replace(
            _moved("Slice", "dynamic-short", (2, 3, 5)),
            inputs=(_values("slice", (2, 3, 5)), *(np.array([v], np.int32) for v in (-4, 9, 2, 2))),
        )
    ),
    _dynamic(_moved("Gather", "dynamic", (2, 4, 3), _integers(0, 2, 2, -1, 0), axis=-2)),
    _dynamic(_moved("Gather", "dynamic-scalar", (2, 4, 3), np.array(-1, np.int64), axis=2)),
    _moved(
        "Gather", "cube", (2, 4, 3), _integers(1, 1, -4, 3, 0, 2, 1, 1).reshape(2, 2, 2), axis=1
    ),
    _moved("Gather", "short-integers", (2, 4, 3), np.array([3, 1, 1], np.int32), axis=1),
    _moved("Gather", "wide", (1, 1100), _integers(1099, 0, 5, 5), axis=1),
    _moved("GatherElements", "rows", (3, 4), _integers(0, -1, 1, 1, 2, 0).reshape(2, 3)),
    _moved(
        "GatherElements", "last", (2, 3, 2), _integers(*[0, 1, 1] * 6).reshape(2, 3, 3), axis=-1
    ),
    _dynamic(
        _moved("GatherElements", "dynamic", (2, 3), _integers(2, 2, 0, 1).reshape(2, 2), axis=1)
    ),
    _moved("GatherND", "elements", (3, 4), _integers(0, 1, 2, 3, 0, 1).reshape(3, 2)),
    _moved("GatherND", "slices", (3, 2, 4), _integers(2, 0, 0).reshape(3, 1)),
    _moved("GatherND", "batch", (2, 3, 4), _integers(1, 1, 2, 0).reshape(2, 2, 1), batch_dims=1),
    _dynamic(_moved("GatherND", "dynamic", (2, 3), _integers(1, 1).reshape(2, 1))),
    _moved("Compress", "axis", (2, 4, 3), np.array([True, False, True, True]), axis=1),
    _moved("Compress", "flat", (2, 3), np.array([False, True, True, False, True])),
    _dynamic(_moved("Compress", "dynamic", (2, 3), np.array([False, True, True]), axis=-1)),
    _moved("ReverseSequence", "time-first", (4, 3, 2), _integers(4, 1, 3)),
    _moved("ReverseSequence", "batch-first", (2, 4), _integers(2, 3), batch_axis=0, time_axis=1),
    *(
        replace(case, data=data, id=f"{case.id}-{name}")
        for case in (
            _put("ScatterElements", "rows", (3, 4), _integers(0, -1, 1, 2).reshape(2, 2), (2, 2)),
            _put("ScatterElements", "last", (2, 3), _integers(2, 0).reshape(2, 1), (2, 1), axis=-1),
            _put("ScatterND", "elements", (3, 4), _integers(0, 1, 2, 3).reshape(2, 2), (2,)),
            _put("ScatterND", "slices", (3, 2, 4), _integers(2, 0).reshape(2, 1), (2, 2, 4)),
            _dynamic(_put("ScatterND", "dynamic", (3, 2), _integers(2, 0).reshape(2, 1), (2, 2))),
        )
        for name, data in (("both", (0, 2)), ("into", (0,)), ("from", (2,)))
    ),
    _moved("Gather", "scalar", (2, 3, 4), np.array(-1, dtype=np.int64), axis=1),
    _moved("Gather", "repeated", (2, 4, 3), _integers(0, 2, 2, -1, 0), axis=1),
    _moved("Gather", "matrix", (4, 3), _integers(1, 1, -4, 3).reshape(2, 2)),
    _moved("Gather", "reversed", (2, 3, 4, 4), _integers(2, 1, 0), axis=1),
    _moved("Gather", "last", (2, 3, 5), _integers(4), axis=-1),
]

PADS = [
    _moved("Pad", "constant", (2, 2, 3, 4), _integers(0, 0, 1, 0, 0, 0, 2, 1)),
    _moved("Pad", "value", (2, 3, 4), _integers(0, 1, 1, 0, 0, 2), _scalar(1.5)),
    _moved("Pad", "axes", (2, 3, 4), _integers(1, 2), None, _integers(-1)),
    _moved("Pad", "two-axes", X4, _integers(1, 0, 2, 1), _scalar(0), _integers(3, 2)),
    _moved("Pad", "cropping", (2, 3, 5), _integers(0, 0, -1, 0, 1, -2)),
    _moved("Pad", "reflect", (2, 1, 4, 5), _integers(0, 0, 2, 1, 0, 0, 1, 3), mode="reflect"),
    _moved("Pad", "edge", (2, 1, 3, 4), _integers(0, 0, 2, 1, 0, 0, 1, 3), mode="edge"),
    _dynamic(
        _moved(
            "Pad",
            "reflect-dynamic",
            X4,
            _integers(2, 1, 1, 3),
            None,
            _integers(2, 3),
            mode="reflect",
        )
    ),
    replace(_moved("Pad", "wrap", (2, 3, 4), _integers(0, 1, 2, 0, 2, 1), mode="wrap"), opset=19),
    _moved("Pad", "reflect-cropping", (2, 3, 5), _integers(0, 0, 2, 0, 1, -1), mode="reflect"),
    _dynamic(_moved("Pad", "dynamic", X4, _integers(0, 0, 1, 1, 0, 0, 1, 1))),
]

SHAPES = [
    _moved("Reshape", "flat", X4, _integers(0, -1)),
    _moved("Reshape", "split", (2, 6, 4), _integers(0, 2, 3, -1)),
    _moved("Reshape", "explicit", (2, 6), _integers(3, 2, 2)),
    _dynamic(_moved("Reshape", "dynamic", X4, _integers(0, 3, -1))),
    _moved("Flatten", "default", X4),
    _moved("Flatten", "zero", (2, 3, 4), axis=0),
    _moved("Flatten", "negative", X4, axis=-1),
    _moved("Flatten", "end", (2, 3), axis=2),
    _dynamic(_moved("Flatten", "dynamic", X4)),
    _dynamic(_moved("Reshape", "kept-dynamic", (2, 6, 1, 1), _integers(0, 0))),
    _moved("Reshape", "allowzero", (2, 6), _integers(2, 3, 2), allowzero=1),
    _dynamic(_moved("Reshape", "one-dynamic", (2, 6), _integers(-1))),
    _dynamic(_moved("Flatten", "end-dynamic", (2, 3), axis=2)),
    _dynamic(_moved("Flatten", "zero-dynamic", (2, 3, 4), axis=0)),
    _dynamic(_moved("Squeeze", "dynamic", (2, 1, 3, 1), _integers(-1, 1))),
    _dynamic(_moved("Unsqueeze", "dynamic", (2, 3), _integers(-1, 0))),
    _moved("Transpose", "default", (2, 3, 4)),
    _moved("Transpose", "nhwc", X4, perm=[0, 2, 3, 1]),
    _dynamic(_moved("Transpose", "nchw", (2, 4, 5, 3), perm=[0, 3, 1, 2])),
    _moved("Squeeze", "axes", (2, 1, 3, 1), _integers(1, -1)),
    _moved("Squeeze", "one", (2, 1, 3, 1), _integers(-1)),
    _moved("Squeeze", "all", (2, 1, 3, 1)),
    _moved("Unsqueeze", "front", (2, 3), _integers(0)),
    _moved("Unsqueeze", "apart", (2, 3), _integers(1, -1)),
    _moved("Unsqueeze", "unsorted", (2, 3), _integers(3, 1)),
]

REPEATS = [
    _moved("Expand", "axis", (2, 3, 1), _integers(2, 3, 4)),
    _moved("Expand", "rank", (3, 1), _integers(2, 1, 4)),
    _moved("Expand", "smaller", (2, 3, 4), _integers(3, 1)),
    _dynamic(_moved("Expand", "dynamic", (2, 3, 1), _integers(2, 1, 4))),
    _dynamic(_moved("Expand", "dynamic-rank", (3, 1), _integers(2, 1, 4))),
    _dynamic(_moved("Tile", "dynamic", (2, 3, 2), _integers(1, 2, 3))),
    _moved("Tile", "batch", (2, 3), _integers(2, 1)),
    _moved("Tile", "one", (3,), _integers(3)),
    _dynamic(_moved("DepthToSpace", "crd-dynamic", (2, 12, 2, 3), blocksize=2, mode="CRD")),
    _dynamic(_moved("DepthToSpace", "dcr-dynamic", (2, 12, 2, 3), blocksize=2)),
    _dynamic(_moved("SpaceToDepth", "dynamic", (2, 2, 4, 6), blocksize=2)),
    _moved("Tile", "axes", (2, 3, 2), _integers(1, 2, 3)),
    _moved("Tile", "once", (2, 3), _integers(1, 1)),
    _moved("DepthToSpace", "dcr", (2, 8, 2, 3), blocksize=2),
    _moved("DepthToSpace", "crd", (2, 8, 2, 3), blocksize=2, mode="CRD"),
    _moved("DepthToSpace", "three", (1, 9, 2, 2), blocksize=3, mode="DCR"),
    _moved("SpaceToDepth", "two", (2, 2, 4, 6), blocksize=2),
    _moved("SpaceToDepth", "three", (1, 1, 6, 3), blocksize=3),
]

RESIZES = [
    _resized(
        "nearest-doubled",
        (2, 2, 3, 4),
        (1, 1, 2, 2),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    _resized("nearest-half-pixel", (1, 2, 3, 4), (1, 1, 2, 3)),
    _resized("nearest-sizes", (1, 2, 4, 5), sizes=(1, 2, 7, 3)),
    _resized("nearest-shrunk", (1, 2, 6, 6), (1, 1, 0.5, 0.5), nearest_mode="round_prefer_ceil"),
    _resized(
        "nearest-ceil",
        (1, 1, 4, 4),
        (1, 1, 1.5, 2),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil",
    ),
    _resized("linear-half-pixel", (2, 2, 3, 4), (1, 1, 2, 2), mode="linear"),
    _resized("linear-sizes", (1, 2, 4, 5), sizes=(1, 2, 7, 3), mode="linear"),
    _resized(
        "linear-align-corners",
        (1, 2, 3, 4),
        sizes=(1, 2, 5, 7),
        coordinate_transformation_mode="align_corners",
        mode="linear",
    ),
    _resized(
        "linear-asymmetric",
        (1, 2, 3, 4),
        (1, 1, 2, 1.5),
        coordinate_transformation_mode="asymmetric",
        mode="linear",
    ),
    _resized(
        "linear-pytorch",
        (1, 2, 4, 3),
        sizes=(1, 2, 1, 6),
        coordinate_transformation_mode="pytorch_half_pixel",
        mode="linear",
    ),
    _resized("linear-1d", (2, 3, 5), (1, 1, 2), mode="linear"),
    _resized("nearest-1d", (2, 3, 5), (1, 1, 2.5)),
    _resized("nearest-3d", (1, 2, 3, 2, 2), (1, 1, 2, 1, 2)),
    _resized("linear-3d", (1, 2, 3, 2, 2), (1, 1, 2, 1.5, 2), mode="linear"),
    _resized("linear-nhwc", (1, 3, 4, 2), (1, 2, 1.5, 1), mode="linear"),
    _resized("linear-axes", (1, 2, 3, 4), (1.5, 2), mode="linear", axes=[-1, 2]),
    _resized("linear-kept-size", (1, 2, 3, 4), (1, 1, 2, 1.2), mode="linear"),
    _resized("linear-all-kept-size", (1, 2, 3, 4), (1, 1, 1.3, 1.2), mode="linear"),
    *(
        _resized(
            f"{mode}-uneven-{coordinates}",
            (1, 2, 5, 6),
            (1, 1, 1.5, 0.75),
            coordinate_transformation_mode=coordinates,
            mode=mode,
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in (
            "half_pixel",
            "half_pixel_symmetric",
            "asymmetric",
            "align_corners",
            "pytorch_half_pixel",
        )
    ),
    *(
        _resized(f"{mode}-antialias", (1, 2, 7, 6), (1, 1, 0.4, 1.5), mode=mode, antialias=1)
        for mode in ("linear", "cubic")
    ),
    _resized("cubic-sharp", (1, 2, 4, 5), sizes=(1, 2, 6, 3), mode="cubic", cubic_coeff_a=-0.5),
    _resized("cubic-inside", (1, 2, 4, 5), (1, 1, 2, 0.7), mode="cubic", exclude_outside=1),
    *(
        _dynamic(_resized(f"{mode}-dynamic", (2, 2, 3, 4), (1, 1, 2, 2), mode=mode))
        for mode in ("nearest", "linear", "cubic")
    ),
    _dynamic(_resized("linear-sizes-dynamic", (2, 2, 3, 4), sizes=(2, 2, 5, 7), mode="linear")),
    _dynamic(_resized("linear-1d-dynamic", (2, 3, 5), (1, 1, 1.5), mode="linear")),
    _dynamic(_resized("nearest-3d-dynamic", (1, 2, 3, 2, 2), (1, 1, 2, 1, 2))),
]

CASES: list[Case] = [
    *CONVOLUTIONS,
    *TRANSPOSED_CONVOLUTIONS,
    *PRODUCTS,
    *AFFINE,
    *ACTIVATIONS,
    *ELEMENTWISE,
    *NORMALISATIONS,
    *QUANTISATION,
    *MAX_POOLS,
    *AVERAGE_POOLS,
    *REDUCTIONS,
    *JOINS_AND_PARTS,
    *PADS,
    *SHAPES,
    *REPEATS,
    *RESIZES,
]
