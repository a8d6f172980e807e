"""Every registered rule against the slow float64 reference of its operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from reference import operators as reference
from reference.cases import CASES, Case

from onnx_clrp import UnsupportedError
from onnx_clrp.rules import operators
from onnx_clrp.testing import redistribute

MINE = [case for case in CASES if case.op_type in operators()]
TARGETS = 2
GAPS = {
    "gemm-left": "the first axis of its data",
    "gemm-transposed-data": "the first axis of its data",
    "gemm-first-left": "the first axis of its data",
    "matmul-left-flat": "the first axis of its data",
    "maxpool-2d-no-late-start": "starts a window in the padding",
    "reducemax-all": "it reduces over the batch axis",
    "reducesum-all": "it reduces over the batch axis",
}
"""Cases that the package refuses, by what it says."""


def test_every_registered_operator_has_a_reference() -> None:
    assert set(operators()) <= reference.OPERATORS


def test_every_registered_operator_has_a_case() -> None:
    assert set(operators()) <= {case.op_type for case in CASES}


def forward(case: Case) -> list[np.ndarray]:
    """The case's outputs in float64."""
    return reference.forward(
        case.op_type, case.inputs, case.attributes, data=case.data, outputs=case.outputs
    )


def one_node_model(case: Case) -> onnx.ModelProto:
    """The case as a model: its data are inputs, all else is an initializer."""
    names = ["" if v is None else f"in{i}" for i, v in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op_type, names, outputs, name="it", **case.attributes)

    kind = case.attributes.get("to", TensorProto.FLOAT)

    def info(name: str, value: np.ndarray, kind: int) -> onnx.ValueInfoProto:
        shape = [f"{name}_{a}" for a in range(value.ndim)] if case.dynamic else value.shape
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [node],
        "case",
        [
            info(names[i], v, helper.np_dtype_to_tensor_dtype(v.dtype))
            for i, v in enumerate(case.inputs)
            if i in case.data
        ],
        [info(name, y, kind) for name, y in zip(outputs, forward(case), strict=True)],
        [
            numpy_helper.from_array(np.asarray(v), names[i])
            for i, v in enumerate(case.inputs)
            if v is not None and i not in case.data
        ],
    )
    opset = [helper.make_opsetid("", case.opset)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def relevance_for(case: Case) -> list[np.ndarray]:
    """Seeded relevance `[k, *y.shape]` for each output; halves, so that float32 holds it."""
    rng = np.random.default_rng(3)
    return [rng.integers(-6, 7, (TARGETS, *y.shape)) / 2 for y in forward(case)]


def expected(case: Case, relevance: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The reference's answer for each target, stacked."""
    per_target = [
        reference.redistribute(
            case.op_type,
            case.inputs,
            case.attributes,
            [r[k] for r in relevance],
            data=case.data,
            rules=case.rules,
            bounds=case.bounds,
        )
        for k in range(TARGETS)
    ]
    return {f"in{i}": np.stack([answer[i] for answer in per_target]) for i in case.data}


def bounds_of(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The case's own bounds; else of non-negative data just that, for the short form of z⁺."""
    if case.bounds is not None:
        return {f"in{i}": case.bounds for i in case.data}
    half_line = (np.zeros(()), np.full((), np.inf))
    return {f"in{i}": half_line for i in case.data if (case.inputs[i] >= 0).all()}


def found(case: Case, relevance: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The package's answer."""
    return redistribute(
        one_node_model(case),
        {f"in{i}": case.inputs[i] for i in case.data},
        {f"out{i}": r for i, r in enumerate(relevance)},
        rules=case.rules,
        bounds=bounds_of(case),
    )


@pytest.mark.parametrize("case", [c for c in MINE if c.id not in GAPS], ids=lambda case: case.id)
def test_rule_agrees_with_its_reference(case: Case) -> None:
    relevance = relevance_for(case)
    answer = found(case, relevance)
    for name, want in expected(case, relevance).items():
        scale = np.abs(want).max() or 1.0
        np.testing.assert_allclose(answer[name], want, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", [c for c in MINE if c.id in GAPS], ids=lambda case: case.id)
def test_what_a_rule_cannot_do_is_said(case: Case) -> None:
    with pytest.raises(UnsupportedError, match=GAPS[case.id]):
        found(case, relevance_for(case))


# --- What only the run will tell --------------------------------------------------------------

COMPUTED = {
    "slice": (
        """ <int64[1] two = {2}, int64[1] zero = {0}, int64[2] axes = {2, -1}, int64[1] one = {1}> {
            size = Shape<start = 2, end = 3>(x)
            half = Div(size, two)
            starts = Concat<axis = 0>(half, one)
            ends = Concat<axis = 0>(size, size)
            y = Slice(x, starts, ends, axes)
        } """,
        ("Slice", [[2, 1], [5, 5], [2, -1]], {}),
    ),
    "slice in steps": (
        """ <int64[1] axes = {3}, int64[1] starts = {-1}, int64[1] lowest = {-99}> {
            size = Shape<start = 2, end = 3>(x)
            two = Constant<value_ints = [-2]>()
            ends = Add(lowest, size)
            y = Slice(x, starts, ends, axes, two)
        } """,
        ("Slice", [[-1], [-94], [3], [-2]], {}),
    ),
    "gather": (
        """ <int64 axis = {2}, int64 one = {1}> {
            shape = Shape(x)
            size = Gather(shape, axis)
            last = Sub(size, one)
            y = Gather<axis = 2>(x, last)
        } """,
        ("Gather", [4], {"axis": 2}),
    ),
    "pad": (
        """ <int64[6] front = {0, 0, 1, 2, 0, 0}, int64[1] four = {4}> {
            size = Shape<start = 2, end = 4>(x)
            behind = Sub(size, four)
            pads = Concat<axis = 0>(front, behind)
            y = Pad(x, pads)
        } """,
        ("Pad", [[0, 0, 1, 2, 0, 0, 1, 2]], {}),
    ),
    "pad of two axes": (
        """ <int64[2] front = {1, -2}, int64[1] four = {4}, int64[2] axes = {-1, 2},
             float zero = {0}> {
            size = Shape<start = 2, end = 4>(x)
            behind = Sub(size, four)
            pads = Concat<axis = 0>(front, behind)
            y = Pad(x, pads, zero, axes)
        } """,
        ("Pad", [[1, -2, 1, 2], None, [-1, 2]], {}),
    ),
    "reflection": (
        """ <int64[6] front = {0, 0, 1, 2, 0, 0}, int64[1] four = {4}> {
            size = Shape<start = 2, end = 4>(x)
            behind = Sub(size, four)
            pads = Concat<axis = 0>(front, behind)
            y = Pad<mode = "reflect">(x, pads)
        } """,
        ("Pad", [[0, 0, 1, 2, 0, 0, 1, 2]], {"mode": "reflect"}),
    ),
    "tile": (
        """ <int64[2] once = {1, 1}, int64[1] three = {3}> {
            size = Shape<start = 2, end = 4>(x)
            times = Sub(size, three)
            repeats = Concat<axis = 0>(once, times)
            y = Tile(x, repeats)
        } """,
        ("Tile", [[1, 1, 2, 3]], {}),
    ),
    "expand": (
        """ <int64[1] two = {2}> {
            shape = Shape(x)
            more = Concat<axis = 0>(two, shape)
            y = Expand(x, more)
        } """,
        ("Expand", [[2, 1, 2, 5, 6]], {}),
    ),
    "resize to sizes": (
        """ <int64[1] two = {2}> {
            kept = Shape<end = 2>(x)
            size = Shape<start = 2>(x)
            doubled = Mul(size, two)
            sizes = Concat<axis = 0>(kept, doubled)
            y = Resize<mode = "linear">(x, , , sizes)
        } """,
        ("Resize", [None, None, [1, 2, 10, 12]], {"mode": "linear"}),
    ),
    "resize by scales": (
        """ <float[2] ones = {1, 1}, float ten = {10}> {
            size = Shape<start = 2>(x)
            numbers = Cast<to = 1>(size)
            factors = Div(numbers, ten)
            scales = Concat<axis = 0>(ones, factors)
            y = Resize<mode = "cubic">(x, , scales)
        } """,
        ("Resize", [None, np.array([1, 1, 0.5, 0.6], np.float32)], {"mode": "cubic"}),
    ),
    "convolution with made weights": (
        """ <float[3, 2, 2, 1] one = {-1, 2, -3, 4, 5, -6, 7, 8, -9, 1, -2, 3}, float two = {2}> {
            scaled = Mul(one, two)
            turned = Transpose<perm = [0, 1, 3, 2]>(scaled)
            y = Conv(x, turned)
        } """,
        ("Conv", [np.reshape([-2.0, 4, -6, 8, 10, -12, 14, 16, -18, 2, -4, 6], (3, 2, 1, 2))], {}),
    ),
    "convolution with weights of one value": (
        """ {
            shape = Constant<value_ints = [3, 2, 2, 2]>()
            w = ConstantOfShape<value = float[1] {-0.5}>(shape)
            y = Conv(x, w)
        } """,
        ("Conv", [np.full((3, 2, 2, 2), -0.5)], {}),
    ),
}


@pytest.mark.parametrize("shape", ["1, 2, 5, 6", "n, 2, h, w", "n, c, h, w"])
@pytest.mark.parametrize("name", COMPUTED)
def test_arguments_may_be_computed_while_the_model_runs(name: str, shape: str) -> None:
    text, (op_type, others, attributes) = COMPUTED[name]
    x = np.random.default_rng(4).integers(-4, 5, (1, 2, 5, 6)).astype(np.float32) / 2
    inputs = [x, *(None if v is None else np.asarray(v) for v in others)]
    (y,) = reference.forward(op_type, inputs, attributes)
    sizes = ", ".join(f"y{i}" for i in range(y.ndim))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> '
        f"computed (float[{shape}] x) => (float[{sizes}] y) {text}"
    )
    r = np.random.default_rng(5).integers(-4, 5, (TARGETS, *y.shape)) / 2
    want = [reference.redistribute(op_type, inputs, attributes, [one], data=(0,))[0] for one in r]
    answer = redistribute(model, {"x": x}, {"y": r})["x"]
    np.testing.assert_allclose(answer, np.stack(want), rtol=0, atol=1e-5 * np.abs(want).max())


REFUSED = {
    'y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, roi, scales)': "it crops",
    'y = Resize<keep_aspect_ratio_policy = "not_larger">(x, , , sizes)': "keep_aspect_ratio_policy",
    "y = Resize(x, , thrice)": "the batch axis",
    'y = ScatterND<reduction = "add">(x, place, put)': "its reduction is 'add'",
    "n = Cast<to = 7>(x) at = Reshape(n, flat) y = Gather<axis = 1>(x, at)": "its indices depend",
    "n = Cast<to = 7>(x) end = Reshape(n, flat) y = Slice(x, two, end, two)": "its bounds depend",
    'y = Conv<auto_pad = "SAME_UPPER", strides = [4, 4]>(x, w)': "auto_pad=SAME_UPPER",
    'y = MaxPool<auto_pad = "SAME_UPPER", kernel_shape = [2, 2], strides = [2, 2],'
    " dilations = [2, 2]>(x)": "dilations",
    'y = AveragePool<auto_pad = "SAME_UPPER", kernel_shape = [1, 1], strides = [2, 2],'
    " ceil_mode = 1>(x)": "starts a window in the padding",
    "y = ReduceL2(x, two)": "no rule for this operator",
}


@pytest.mark.parametrize("node", REFUSED)
def test_what_has_no_formula_is_refused_with_its_reason(node: str) -> None:
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 9, opset_import: ["": 19]>
        agraph (float[1, 2, h, w] x) => (float[a, b, c, d] y)
        <float[4] scales = {{1, 1, 2, 2}}, float[4] thrice = {{3, 1, 1, 1}}, int64[1] flat = {{-1}},
         float[8] roi = {{0, 0, 0, 0, 1, 1, 1, 1}}, int64[4] sizes = {{1, 2, 7, 9}},
         int64[1] two = {{2}}, int64[1, 4] place = {{0, 0, 0, 0}}, float[1] put = {{1}},
         float[1, 2, 1, 1] w = {{1, 2}}>
        {{ {node} }}
        """
    )
    x = np.ones((1, 2, 3, 4), np.float32)
    with pytest.raises(UnsupportedError, match=REFUSED[node]):
        redistribute(model, {"x": x}, {"y": np.ones((1, 1, 2, 3, 4))})


# --- Two ways to write one map, and numbers next to nothing ------------------------------------


def handed(body: str, weights: dict[str, np.ndarray], x: np.ndarray, **options: str) -> np.ndarray:
    """The relevance of `x` for relevance of 1 at every element of `y`."""
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]>'
        f" g (float[n,c,h,w] x) => (float[n,d,i,j] y) {{{body}}}"
    )
    made.graph.initializer.extend(
        numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()
    )
    shape = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})[0].shape
    return redistribute(made, {"x": x}, {"y": np.ones((1, *shape), np.float32)}, **options)["x"]


@pytest.mark.parametrize("rules", ["default", "epsilon", "epsilon_plus", "alpha2_beta1"])
@pytest.mark.parametrize("behind", ["Neg(h)", "BatchNormalization(h, g, s, s, v)"])
def test_groups_are_one_map_whose_other_weights_are_zero(behind: str, rules: str) -> None:
    """The scale behind a grouped ConvTranspose counts once, by group and channel."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 4, 3, 3)).astype(np.float32)
    grouped, full = rng.normal(size=(4, 2, 2, 2)), np.zeros((4, 4, 2, 2))
    full[:2, :2], full[2:, 2:] = grouped[:2], grouped[2:]
    rest = {
        "b": rng.normal(size=4),
        "g": np.array([-1.5, 2.0, 0.5, -3.0]),
        "s": rng.normal(size=4),
        "v": np.ones(4),
    }
    text = f"h = ConvTranspose<strides = [2, 2], {{}}>(x, w, b) y = {behind}"
    found = handed(text.format("group = 2"), {"w": grouped, **rest}, x, rules=rules)
    wanted = handed(text.format("group = 1"), {"w": full, **rest}, x, rules=rules)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize("z", [1.0000001e-30, 1.1e-30, 2e-30, 1e-28, 1e-24, 1e-20])
def test_the_guard_of_a_quotient_takes_nothing_from_small_denominators(z: float) -> None:
    x = np.array([z, 0, 1, 2], np.float32).reshape(1, 1, 1, 4)
    found = handed("y = Conv(x, w)", {"w": np.ones((1, 1, 1, 1))}, x)
    np.testing.assert_allclose(found.ravel(), [1, 0, 1, 1], rtol=1e-6)
