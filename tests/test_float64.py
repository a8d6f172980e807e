"""The float64 run: each operator against PyTorch and ONNX Runtime, and a whole network."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_clrp
from onnx_clrp import float64_operators
from onnx_clrp.errors import ModelError
from onnx_clrp.float64 import cut, other_pass, run_float64
from onnx_clrp.sessions import open_session

torch = pytest.importorskip("torch", reason="the references are PyTorch's")
from reference.cases import CASES, Case
from torch import nn
from torch.nn import functional

Array = NDArray[Any]
Ints = Sequence[int]
Inputs = Sequence[Array | None]
EXACT = 1e-12


def draw(*shape: int, seed: int = 0) -> Array:
    """Float32 numbers, the same every time."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph_of(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], opset: int = 18, **x: Array
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in x.items()
    ]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=y) for y in outputs])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def one_node(
    op: str, inputs: Inputs, opset: int, attributes: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], **attributes)
    return graph_of([node], ["y"], opset, **feeds), feeds


def run(op: str, *inputs: Array | None, opset: int = 18, **attributes: Any) -> Array:
    model, feeds = one_node(op, inputs, opset, attributes)
    return run_float64(model, feeds, ["y"])["y"]


def run_float32(
    model: onnx.ModelProto, feeds: dict[str, Array], wanted: Sequence[str]
) -> list[Array]:
    outputs: list[Array] = open_session(model, "cpu").session.run(list(wanted), feeds)
    return outputs


def assert_as_the_runtime(
    op: str, *inputs: Array | None, opset: int = 18, **attributes: Any
) -> None:
    model, feeds = one_node(op, inputs, opset, attributes)
    got, (expected,) = run_float64(model, feeds, ["y"])["y"], run_float32(model, feeds, ["y"])
    assert got.dtype == (np.float64 if expected.dtype == np.float32 else expected.dtype)
    largest = np.abs(expected[np.isfinite(expected)]).max()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * largest)


def assert_exact(got: Array, expected: Any) -> None:
    assert got.dtype == np.float64
    reference = expected.numpy()
    np.testing.assert_allclose(got, reference, rtol=EXACT, atol=EXACT * np.abs(reference).max())


def double(x: Array) -> Any:
    return torch.tensor(x, dtype=torch.float64)


# -- convolutions ------------------------------------------------------------------------------

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
GEOMETRIES: list[tuple[Ints, Ints, int, Ints, Ints, Ints]] = [
    # size, kernel, groups, strides, dilations, pads
    ([9], [3], 1, [1], [1], [0, 0]),
    ([9], [4], 2, [3], [2], [2, 1]),
    ([7, 8], [3, 3], 1, [1, 1], [1, 1], [1, 1, 1, 1]),
    ([7, 8], [1, 1], 1, [2, 2], [1, 1], [0, 0, 0, 0]),
    ([7, 8], [3, 2], 3, [2, 1], [1, 2], [0, 1, 2, 1]),
    ([11, 8], [5, 3], 6, [2, 3], [2, 1], [3, 0, 1, 2]),
    ([7, 8], [7, 8], 1, [1, 1], [1, 1], [0, 0, 0, 0]),
    ([5, 6, 4], [3, 2, 2], 2, [2, 1, 1], [1, 2, 1], [1, 0, 1, 0, 1, 2]),
]


def for_torch(pads: Ints) -> list[int]:
    """ONNX's pads in PyTorch's order: last axis first, front and back of each together."""
    n = len(pads) // 2
    return [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])]


@pytest.mark.parametrize("columns", [1, 2**24])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("size", "kernel", "group", "strides", "dilations", "pads"), GEOMETRIES)
def test_conv(
    monkeypatch: pytest.MonkeyPatch,
    size: Ints,
    kernel: Ints,
    group: int,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    bias: bool,
    columns: int,
) -> None:
    monkeypatch.setattr(float64_operators, "_COLUMNS", columns)
    x, w, b = draw(3, 6, *size), draw(12, 6 // group, *kernel, seed=1), draw(12) if bias else None
    got = run("Conv", x, w, b, group=group, strides=strides, dilations=dilations, pads=pads)
    padded = functional.pad(double(x), for_torch(pads))
    expected = CONV[len(size)](
        padded,
        double(w),
        None if b is None else double(b),
        stride=tuple(strides),
        dilation=tuple(dilations),
        groups=group,
    )
    assert_exact(got, expected)


@pytest.mark.parametrize("columns", [1, 2**24])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize(("size", "kernel", "group", "strides", "dilations", "pads"), GEOMETRIES)
def test_conv_transpose(
    monkeypatch: pytest.MonkeyPatch,
    size: Ints,
    kernel: Ints,
    group: int,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    extra: int,
    columns: int,
) -> None:
    monkeypatch.setattr(float64_operators, "_COLUMNS", columns)
    x, w, b = draw(3, 6, *size), draw(6, 2, *kernel, seed=1), draw(2 * group)
    added = [extra * (max(s, d) - 1) for s, d in zip(strides, dilations, strict=True)]
    options: dict[str, Any] = {"strides": strides, "dilations": dilations}
    got = run("ConvTranspose", x, w, b, group=group, pads=pads, output_padding=added, **options)
    full = TRANSPOSED[len(size)](
        double(x),
        double(w),
        double(b),
        stride=tuple(strides),
        dilation=tuple(dilations),
        output_padding=tuple(added),
        groups=group,
    )
    assert_exact(got, functional.pad(full, [-p for p in for_torch(pads)]))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
def test_automatic_pads(op: str, stride: int, auto_pad: str) -> None:
    options: dict[str, Any] = {"auto_pad": auto_pad, "strides": [stride] * 2}
    if op.endswith("Pool"):
        assert_as_the_runtime(op, draw(2, 4, 8, 7), kernel_shape=[4, 3], **options)
    else:
        assert_as_the_runtime(op, draw(2, 4, 8, 7), draw(4, 4, 4, 3), **options)


def test_conv_transpose_of_a_given_size() -> None:
    x, w = draw(1, 4, 5, 5), draw(4, 2, 3, 3)
    assert_as_the_runtime("ConvTranspose", x, w, strides=[2, 2], output_shape=[10, 9])
    with pytest.raises(ModelError, match="output_shape is larger"):
        run("ConvTranspose", x, w, output_shape=[20, 20])


# -- pools -------------------------------------------------------------------------------------

POOLS = [
    # size, kernel, strides, dilations, padding
    ([9], [3], [2], [1], [1]),
    ([9, 10], [2, 2], [2, 2], [1, 1], [0, 0]),
    ([9, 10], [3, 3], [2, 2], [1, 1], [1, 1]),
    ([9, 10], [3, 4], [3, 1], [1, 1], [1, 2]),
    ([12, 10], [3, 2], [2, 3], [2, 3], [1, 1]),
    ([6, 9, 7], [2, 3, 3], [1, 2, 3], [1, 1, 1], [0, 1, 1]),
]
each_pool = pytest.mark.parametrize(("size", "kernel", "strides", "dilations", "pads"), POOLS)


@pytest.mark.parametrize("ceil", [0, 1])
@each_pool
def test_max_pool(
    size: Ints, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, ceil: int
) -> None:
    x = draw(2, 3, *size)
    x[0, 0] = -np.inf
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    got = run("MaxPool", x, pads=[*pads, *pads], dilations=dilations, ceil_mode=ceil, **options)
    pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[len(size)]
    expected = pool(
        tuple(kernel), tuple(strides), tuple(pads), tuple(dilations), ceil_mode=bool(ceil)
    )
    np.testing.assert_array_equal(got, expected(double(x)).numpy())


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
@each_pool
def test_average_pool(
    size: Ints, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, ceil: int, include: int
) -> None:
    x = draw(2, 3, *size)
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    got = run(
        "AveragePool", x, pads=[*pads, *pads], ceil_mode=ceil, count_include_pad=include, **options
    )
    pool = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[len(size)]
    expected = pool(tuple(kernel), tuple(strides), tuple(pads), bool(ceil), bool(include))
    assert_exact(got, expected(double(x)))


def test_pools_of_other_forms() -> None:
    x = draw(2, 3, 9, 8)
    dilated: dict[str, Any] = {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 0, 2, 1]}
    assert_as_the_runtime("AveragePool", x, opset=19, **dilated)
    assert_as_the_runtime("AveragePool", x, opset=19, count_include_pad=1, **dilated)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 6, 6)).astype(np.uint8)
    assert_as_the_runtime("MaxPool", pixels, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    for rank in (1, 2, 3):
        x = draw(2, 3, *[4] * rank)
        assert_as_the_runtime("GlobalMaxPool", x)
        assert_as_the_runtime("GlobalAveragePool", x)


# -- others ------------------------------------------------------------------------------------

X = draw(2, 6, 5, 7)
PARAMETERS = [draw(6, seed=s) for s in range(4)]
EPSILON = float(np.float32(1e-5))
ALPHA = float(np.float32(0.1))
SCALE, BIAS, MEAN, DEVIATION = (double(p) for p in PARAMETERS)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (lambda: run("Erf", X), torch.erf),
        (lambda: run("Gelu", X, opset=20), functional.gelu),
        (
            lambda: run("Gelu", X, opset=20, approximate="tanh"),
            lambda x: functional.gelu(x, approximate="tanh"),
        ),
        (lambda: run("HardSwish", X), functional.hardswish),
        (lambda: run("Mish", X), functional.mish),
        (lambda: run("Softplus", X), functional.softplus),
        (lambda: run("Elu", X), functional.elu),
        (lambda: run("LeakyRelu", X, alpha=0.1), lambda x: functional.leaky_relu(x, ALPHA)),
        (lambda: run("Sigmoid", X), torch.sigmoid),
        (lambda: run("Tanh", X), torch.tanh),
        (lambda: run("Softmax", X, axis=1), lambda x: x.softmax(1)),
        (
            lambda: run("BatchNormalization", X, *PARAMETERS[:3], PARAMETERS[3] ** 2),
            lambda x: functional.batch_norm(
                x, MEAN, double(PARAMETERS[3] ** 2), SCALE, BIAS, eps=EPSILON
            ),
        ),
        (
            lambda: run("InstanceNormalization", X, *PARAMETERS[:2]),
            lambda x: functional.instance_norm(x, weight=SCALE, bias=BIAS, eps=EPSILON),
        ),
        (
            lambda: run("GroupNormalization", X, *PARAMETERS[:2], opset=21, num_groups=3),
            lambda x: functional.group_norm(x, 3, SCALE, BIAS, EPSILON),
        ),
        (
            lambda: run("LayerNormalization", X, draw(7)),
            lambda x: functional.layer_norm(x, (7,), double(draw(7)), eps=EPSILON),
        ),
        (
            lambda: run("LRN", X, size=5, alpha=0.1, beta=0.5, bias=2.0),
            lambda x: functional.local_response_norm(x, 5, ALPHA, 0.5, 2.0),
        ),
        (
            lambda: run("Gemm", X[0, 0], draw(4, 7), draw(4), alpha=0.1, transB=1),
            lambda x: ALPHA * x[0, 0] @ double(draw(4, 7)).T + double(draw(4)),
        ),
        (lambda: run("MatMul", X, draw(7, 3)), lambda x: x @ double(draw(7, 3))),
    ],
)
def test_as_exact_as_pytorch(got: Any, expected: Any) -> None:
    assert_exact(got(), expected(double(X)))


def test_lrn_of_other_ranks() -> None:
    for shape in [(2, 7, 5), (1, 3, 4, 4), (2, 4, 3, 2, 2)]:
        x = draw(*shape)
        assert_exact(
            run("LRN", x, size=3, alpha=0.1),
            functional.local_response_norm(double(x), 3, ALPHA, 0.75, 1.0),
        )


def test_pads() -> None:
    x, pads = draw(1, 2, 5, 6), np.array([0, 0, 1, 2, 0, 0, 3, 0])
    for value in (None, np.float32(-np.inf), np.float32(2)):
        assert_as_the_runtime("Pad", x, pads, None if value is None else np.array(value))
    for mode in ("edge", "reflect"):
        assert_as_the_runtime("Pad", x, pads, mode=mode)
    assert_as_the_runtime("Pad", x, np.array([0, 0, -1, 2, 0, 0, 3, -2]))
    assert_as_the_runtime("Pad", x, np.array([1, -1, 2, 0]), None, np.array([-1, 2]))


def test_quantised() -> None:
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(0, 256, (2, 4, 6, 6)).astype(np.uint8),
        rng.integers(-127, 128, (6, 2, 3, 3)),
    )
    scales = np.abs(draw(6)) / 100
    zero = np.array(120, np.uint8)
    assert_as_the_runtime(
        "QLinearConv",
        x,
        np.array(0.02, np.float32),
        zero,
        w.astype(np.int8),
        scales,
        np.zeros(6, np.int8),
        np.array(0.11, np.float32),
        zero,
        rng.integers(-500, 500, 6).astype(np.int32),
        group=2,
        pads=[1, 1, 1, 1],
    )
    assert_as_the_runtime("QuantizeLinear", X, np.array(0.03, np.float32), zero)
    assert_as_the_runtime("DequantizeLinear", x, np.array(0.03, np.float32), zero)
    assert_as_the_runtime(
        "DequantizeLinear", w.astype(np.int8), scales, np.zeros(6, np.int8), axis=0
    )
    large = np.array([2**31 - 1], np.int32)  # rounded as the runtime rounds it
    assert run("DequantizeLinear", large, np.array(1, np.float32))[0] == 2**31


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Constant", {"value_float": 0.5}),
        ("Constant", {"value_floats": [0.5, 1.0]}),
        ("Constant", {"value_ints": [1, 2]}),
        ("Constant", {"value": numpy_helper.from_array(draw(2))}),
        ("Constant", {"value": numpy_helper.from_array(np.array([1, 2], np.int32))}),
    ],
)
def test_constants(op: str, attributes: dict[str, Any], opset: int) -> None:
    assert_as_the_runtime(op, opset=opset, **attributes)


def test_every_float_is_wide() -> None:
    assert_as_the_runtime("ConstantOfShape", np.array([2, 3]))
    half = numpy_helper.from_array(np.array([0.5], np.float16))
    assert run("ConstantOfShape", np.array([2, 3]), value=half).dtype == np.float64
    assert run("Relu", X.astype(np.float16)).dtype == np.float64
    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        assert run("Cast", np.array([2**60 + 2**10]), to=kind)[0] == 2**60 + 2**10
    assert run("Cast", X, to=TensorProto.INT32).dtype == np.int32
    assert run("Cast", X > 0, to=TensorProto.FLOAT).dtype == np.float64


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_operator_with_a_rule(case: Case) -> None:
    names = ["" if x is None else f"x{i}" for i, x in enumerate(case.inputs)]
    feeds = {f"x{i}": np.asarray(x) for i, x in enumerate(case.inputs) if x is not None}
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op_type, names, outputs, **case.attributes)
    model = graph_of([node], outputs, case.opset, **feeds)
    got = run_float64(model, feeds, outputs)
    for name, expected in zip(outputs, run_float32(model, feeds, outputs), strict=True):
        assert got[name].shape == expected.shape
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-5)


# -- graphs ------------------------------------------------------------------------------------


def test_runs_only_what_is_needed() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Detect", ["a"], ["b"], "the head", domain="com.acme"),
        helper.make_node("Neg", ["a"], ["c"]),
    ]
    x = draw(3)
    model = graph_of(nodes, ["b", "c"], x=x)
    found = run_float64(model, {"x": x}, ["c", "x", "c"])
    assert list(found) == ["c", "x"]
    np.testing.assert_array_equal(found["c"], -np.maximum(x, 0))
    with pytest.raises(
        ModelError, match=r"^the head: com\.acme\.Detect cannot be run in float64: "
    ) as e:
        run_float64(model, {"x": x}, ["b"])
    assert "\n" not in str(e.value)
    with pytest.raises(ModelError, match="'x' is neither fed nor computed"):
        run_float64(model, {}, ["c"])


def test_what_is_fed_is_not_computed() -> None:
    nodes = [
        helper.make_node("Detect", ["x"], ["a", "b"], domain="com.acme"),
        helper.make_node("Neg", ["a"], ["c"]),
    ]
    a = draw(3)
    model = graph_of(nodes, ["b", "c"], x=draw(3))
    found = run_float64(model, {"a": a}, ["a", "c"])
    np.testing.assert_array_equal(found["c"], -a)
    assert found["a"].dtype == found["c"].dtype == np.float64
    with pytest.raises(ModelError, match="cannot be run"):
        run_float64(model, {"a": a, "x": a}, ["b"])


def test_the_cut_lies_between_the_model_and_what_was_added() -> None:
    own = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Detect", ["a"], ["b"], domain="com.acme"),
        helper.make_node("Neg", ["b"], ["unread"]),
    ]
    added = [
        helper.make_node("Mul", ["a", "w"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["e"]),
        helper.make_node("Neg", ["unread"], ["off the way"]),
    ]
    model = graph_of([*own, *added], ["e"], x=draw(3))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "w"))
    outputs = frozenset(y for node in own for y in node.output)
    assert set(cut(model, outputs, ["e"])) == {"a", "b", "x"}
    assert cut(model, outputs, ["c"]) == ["a"]
    feeds = {"a": draw(3, seed=1), "b": draw(3, seed=2), "x": draw(3)}
    exact = 2 * feeds["a"].astype(float) + feeds["b"] + feeds["x"]
    np.testing.assert_allclose(run_float64(model, feeds, ["e"])["e"], exact, rtol=EXACT)


HALF = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)
WHOLE = helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)
QUANTISED = helper.make_node("QuantizeLinear", ["x", "s"], ["h"])
FORWARD = helper.make_node("Neg", ["x"], ["y"])


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([FORWARD], None),
        ([FORWARD, QUANTISED], None),  # nothing that is wanted needs it
        ([HALF, WHOLE], "the model calculates in half precision"),
        ([QUANTISED, WHOLE], "the model is quantised (QuantizeLinear)"),
        (
            [helper.make_node("QLinearSigmoid", ["x"], ["y"], domain="com.microsoft")],
            "the model is quantised (QLinearSigmoid)",
        ),
    ],
)
def test_a_model_that_rounds_on_the_way_has_another_forward_pass(
    nodes: Sequence[onnx.NodeProto], why: str | None
) -> None:
    assert other_pass(graph_of(nodes, ["y"], x=draw(3)), ["y"]) == why


def test_an_input_of_half_precision_is_one_of_the_whole_model() -> None:
    model = graph_of([FORWARD], ["y"], x=draw(3).astype(np.float16))
    assert other_pass(model, ["y"]) == "the model calculates in half precision"


def test_a_result_of_few_bits_is_an_error() -> None:
    with pytest.raises(ModelError, match="computes 'y' as float32"):
        run("EyeLike", X[0, 0], dtype=TensorProto.FLOAT)


def test_values_are_dropped_behind_their_last_use() -> None:
    names = ["x", *(f"y{i}" for i in range(20))]
    nodes = [helper.make_node("Neg", [a], [b]) for a, b in pairwise(names)]
    x = np.zeros(2**17)
    model = graph_of(nodes, names[-1:], x=x)
    tracemalloc.start()
    run_float64(model, {"x": x}, names[-1:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * x.nbytes


class Residual(nn.Module):
    """A small network with what the usual ones are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.average = nn.AvgPool2d(2)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Any) -> Any:
        x = self.pool(self.norm(self.stem(x)).relu())
        x = self.average((x + self.body(x)).relu())
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def network() -> bytes:
    torch.manual_seed(3)
    file = io.BytesIO()
    args = (torch.zeros(2, 3, 32, 32),)
    torch.onnx.export(Residual().eval(), args, file, dynamo=False, opset_version=18)
    return file.getvalue()


@pytest.mark.parametrize("method", ["lrp", "clrp1", "clrp2"])
def test_an_explainer(network: bytes, method: str) -> None:
    model = onnx_clrp.convert(network, method=method, input_range=(-3, 3), signed=True)
    x = np.clip(draw(2, 3, 32, 32), -3, 3)
    feeds = {model.graph.input[0].name: x, "target": np.array([[0, 3], [4, 1]])}
    wanted = [model.graph.output[0].name, "relevance"]
    logits, relevance = run_float64(model, feeds, wanted).values()
    for got, expected in zip((logits, relevance), run_float32(model, feeds, wanted), strict=True):
        assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(got)
    seed = np.take_along_axis(logits, feeds["target"], axis=1)
    left = seed if method == "lrp" else np.zeros_like(seed)  # a contrast subtracts as much
    largest = np.abs(seed).max()
    np.testing.assert_allclose(relevance.sum((2, 3, 4)), left, rtol=0, atol=1e-10 * largest)
