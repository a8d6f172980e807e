"""Small networks to quantise, and onnxruntime's own quantiser in all its forms."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process

Array = NDArray[Any]
Floats = NDArray[np.float32]

RANGE = (-2.0, 2.0)
SIZE = 16
CLASSES = 5

RESIDUAL = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    n1 = BatchNormalization(c1, gamma, beta, mean, variance) r1 = Relu(n1)
    p1 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r1)
    c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2) a2 = Add(c2, p1) r2 = Relu(a2)
    c3 = Conv(r2, w3, b3) c4 = Conv<pads=[1,1,1,1], group=16>(c3, w4, b4) r4 = Relu(c4)
    g = GlobalAveragePool(r4) f = Flatten(g) logits = Gemm<transB=1>(f, w5, b5)
"""
"""Conv, BatchNorm with scales of both signs, pools, a residual sum, a depthwise layer, Gemm."""

GATED = """
    c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1) h1 = HardSwish(c1)
    p1 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(h1)
    c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2) l2 = LeakyRelu<alpha=0.1>(c2)
    s = GlobalAveragePool(l2) s1 = Conv(s, wd, bd) s2 = Relu(s1) s3 = Conv(s2, wu, bu)
    gate = Sigmoid(s3) m2 = Mul(l2, gate)
    c3 = Conv(m2, w6, b6) three = Constant<value_float=3.0>() nil = Constant<value_float=0.0>()
    six = Constant<value_float=6.0>() t3 = Add(c3, three) q3 = Clip(t3, nil, six)
    y3 = Mul(c3, q3) z3 = Div(y3, six) j = Concat<axis=1>(z3, m2)
    g = GlobalAveragePool(j) f = Flatten(g) h = MatMul(f, v5) logits = Add(h, b5)
"""
"""HardSwish as an operator and written out, squeeze-and-excite, Concat, MatMul and Add."""

PADDED = """
    xp = Pad(x, border) c1 = Conv(xp, w1, b1) r1 = Relu(c1)
    rp = Pad(r1, border) c2 = Conv(rp, w2, b2)
    p2 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c2) r2 = Relu(p2)
    u = Resize<mode="nearest">(r2, , twice)
    t = Transpose<perm=[0,2,3,1]>(u) t2 = Transpose<perm=[0,3,1,2]>(t)
    s1, s2 = Split<axis=1>(t2, halves) a = Sub(s1, s2) e = Max(s1, s2) j = Concat<axis=1>(a, e)
    g = GlobalAveragePool(j) f = Flatten(g) h = MatMul(f, v8) logits = Add(h, b5)
"""
"""Data movement on integers, and padding with zeros."""

BODIES = {"residual": RESIDUAL, "gated": GATED}


def _drawn(rng: np.random.Generator, *shape: int, size: float | None = None) -> Floats:
    """He's initialisation, or a given size."""
    spread = (2 / np.prod(shape[1:])) ** 0.5 if size is None else size
    return np.asarray(rng.standard_normal(shape) * spread, np.float32)


def weights() -> dict[str, Floats]:
    """Weights of all the small networks."""
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(8) % 3 == 0, -1, 1)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (16, 8, 1, 1), "w4": (16, 1, 3, 3)}
    shapes |= {"wd": (4, 8, 1, 1), "wu": (8, 4, 1, 1), "w6": (8, 8, 1, 1)}
    drawn = {name: _drawn(rng, *shape) for name, shape in shapes.items()}
    biases = {"b1": 8, "b2": 8, "b3": 16, "b4": 16, "b5": CLASSES, "bd": 4, "bu": 8, "b6": 8}
    drawn |= {name: _drawn(rng, n, size=0.1) for name, n in biases.items()}
    drawn |= {name: _drawn(rng, 8, size=0.3) for name in ("beta", "mean")}
    drawn |= {"w5": _drawn(rng, CLASSES, 16, size=0.3), "v5": _drawn(rng, 16, CLASSES, size=0.3)}
    drawn["v8"] = _drawn(rng, 8, CLASSES, size=0.5)
    drawn["gamma"] = np.asarray(signs * rng.uniform(0.5, 1.5, 8), np.float32)
    drawn["variance"] = rng.uniform(0.5, 1.5, 8).astype(np.float32)
    return drawn


CONSTANTS: dict[str, Array] = {
    "border": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "halves": np.array([4, 4]),
}


def written(body: str, *, opset: int = 17, domains: str = "", **more: Array) -> onnx.ModelProto:
    """A float network of these nodes with the weights that they name."""
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}{domains}]>'
        f" net (float[N,3,{SIZE},{SIZE}] x) => (float[N,{CLASSES}] logits) {{ {body} }}"
    )
    proto: onnx.ModelProto = parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    known: dict[str, Array] = {**weights(), **CONSTANTS, **more}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in known.items()
        if name in read
    )
    onnx.checker.check_model(proto, full_check=not domains)  # it infers no foreign shapes
    return proto


def pictures(n: int, seed: int = 0) -> Floats:
    """Random pictures over the whole of the declared range, some values right at its ends."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(*RANGE, (n, 3, SIZE, SIZE)).astype(np.float32)
    drawn[:, :, :2, :2], drawn[:, :, -2:, -2:] = RANGE
    return drawn


# --- the quantiser ----------------------------------------------------------------------------

TYPES = {
    "u": QuantType.QUInt8,
    "s": QuantType.QInt8,
    "U": QuantType.QUInt16,
    "S": QuantType.QInt16,
}
FORMATS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


@dataclass(frozen=True)
class Kind:
    """A way to quantise: `qdq`, `qoperator` or `dynamic`, and the types.

    `types` are those of activations and weights, u for uint8 and s for int8, as in "us";
    U and S are those of 16 bits.
    """

    form: str
    types: str
    per_channel: bool

    def __str__(self) -> str:
        """The name of a test."""
        return f"{self.form}-{self.types}-{'channel' if self.per_channel else 'tensor'}"


STATIC = [
    Kind(form, types, per_channel)
    for form in FORMATS
    for types in ("uu", "us", "ss")
    for per_channel in (False, True)
]
DYNAMIC = [Kind("dynamic", types, channel) for types in ("uu", "us") for channel in (False, True)]
KINDS = [*STATIC, *DYNAMIC]


class _Calibration(CalibrationDataReader):
    def __init__(self, batches: int) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter(
            [{"x": pictures(2, seed)} for seed in range(100, 100 + batches)]
        )

    def get_next(self) -> dict[str, Array] | None:
        """The next batch of the calibration, None behind the last."""
        return next(self._feeds, None)


def quantised(
    model: onnx.ModelProto, kind: Kind, *, prepared: bool = False, **extra: Any
) -> onnx.ModelProto:
    """What onnxruntime's quantiser makes of a float model, with its `extra_options`.

    It may be prepared by the quantiser's own optimisations, which fold the BatchNorm.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, before)
        if prepared:
            quant_pre_process(before, before)
        common = {"per_channel": kind.per_channel, "weight_type": TYPES[kind.types[1]]}
        if kind.form == "dynamic":
            quantization.quantize_dynamic(
                before, after, op_types_to_quantize=["Conv", "MatMul", "Gemm"], **common
            )
        else:
            quantization.quantize_static(
                before,
                after,
                _Calibration(8),
                quant_format=FORMATS[kind.form],
                activation_type=TYPES[kind.types[0]],
                reduce_range=False,
                extra_options=extra,
                **common,
            )
        return onnx.load(after)


@cache
def small(name: str, kind: Kind | None) -> bytes:
    """A small network, quantised in a way or float, serialised."""
    model = written(BODIES[name])
    return (model if kind is None else quantised(model, kind)).SerializeToString()
