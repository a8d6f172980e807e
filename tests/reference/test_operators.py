"""The references proven by themselves: against the runtime, by hand, and by dense matrices."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from reference.cases import CASES, Attribute, Case
from reference.operators import LINEAR, MOVEMENTS, OPERATORS, forward, redistribute

EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
EACH_LINEAR = pytest.mark.parametrize(
    "case", [case for case in CASES if case.op_type in LINEAR], ids=lambda case: case.id
)
EACH_MAX_POOL = pytest.mark.parametrize(
    "case", [case for case in CASES if case.op_type == "MaxPool"], ids=lambda case: case.id
)
JOINED = frozenset({"Concat", "ScatterElements", "ScatterND", "Where"})
SUMMED = frozenset({"Add", "Sub", "Sum"})
AVERAGED = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})


def _given(value: np.ndarray | None) -> np.ndarray:
    """An array that must be there."""
    assert value is not None
    return value


def _input_info(case: Case, index: int) -> ValueInfoProto:
    value = _given(case.inputs[index])
    shape = [None] * value.ndim if case.dynamic else list(value.shape)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(f"input{index}", kind, shape)


def _model(case: Case, outputs: list[str]) -> ModelProto:
    """The case's node alone: its data are graph inputs, its constants initializers."""
    names = ["" if value is None else f"input{i}" for i, value in enumerate(case.inputs)]
    node = helper.make_node(case.op_type, names, outputs, **case.attributes)
    constants = [
        numpy_helper.from_array(np.asarray(value), names[i])
        for i, value in enumerate(case.inputs)
        if value is not None and i not in case.data
    ]
    graph = helper.make_graph(
        [node],
        "case",
        [_input_info(case, index) for index in case.data],
        [ValueInfoProto(name=name) for name in outputs],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=9
    )


def _runtime(case: Case, outputs: list[str]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = _model(case, outputs).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"input{i}": case.inputs[i] for i in case.data})


def _forward(case: Case) -> list[np.ndarray]:
    return forward(case.op_type, case.inputs, case.attributes, data=case.data, outputs=case.outputs)


def _relevance(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=y.shape) for y in _forward(case)]


def _redistribute(case: Case, relevance: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    return redistribute(
        case.op_type,
        case.inputs,
        case.attributes,
        relevance,
        data=case.data,
        rules=case.rules,
        bounds=case.bounds,
    )


# --- Every case ------------------------------------------------------------------------------


def test_every_operator_has_cases_and_every_case_its_own_name() -> None:
    assert {case.op_type for case in CASES} == OPERATORS
    assert len({case.id for case in CASES}) == len(CASES)


@EACH
def test_the_forward_map_agrees_with_the_runtime(case: Case) -> None:
    found = _runtime(case, [f"output{i}" for i in range(case.outputs)])
    expected = _forward(case)
    assert [y.shape for y in found] == [y.shape for y in expected]
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)


@EACH
def test_relevance_has_the_shape_of_the_data_and_of_nothing_else(case: Case) -> None:
    shares = _redistribute(case, list(_relevance(case)))
    for index, (value, share) in enumerate(zip(case.inputs, shares, strict=True)):
        if index not in case.data:
            assert share is None
            continue
        assert _given(share).dtype == np.float64
        assert _given(share).shape == _given(value).shape
        assert np.isfinite(_given(share)).all()


@EACH
def test_redistribution_is_linear_in_relevance(case: Case) -> None:
    first = _relevance(case)
    second = [np.cos(np.arange(r.size)).reshape(r.shape) for r in first]
    both = [2 * a - 3 * b for a, b in zip(first, second, strict=True)]
    shares = [_redistribute(case, r) for r in (first, second, both)]
    for a, b, mixed in zip(*shares, strict=True):
        if a is not None and b is not None and mixed is not None:
            np.testing.assert_allclose(mixed, 2 * a - 3 * b, rtol=1e-9, atol=1e-9)


def _dense(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a linear node, one column per data element, and its constant part."""
    index = case.data[0]
    shape = _given(case.inputs[index]).shape
    columns = []
    for unit in (np.zeros(math.prod(shape)), *np.eye(math.prod(shape))):
        inputs = [unit.reshape(shape) if i == index else v for i, v in enumerate(case.inputs)]
        outputs = forward(
            case.op_type, inputs, case.attributes, data=case.data, outputs=case.outputs
        )
        columns.append(np.concatenate([y.ravel() for y in outputs]))
    return np.stack(columns[1:], 1) - columns[0][:, None], columns[0]


def _contributions(case: Case, matrix: np.ndarray) -> np.ndarray:
    """What each data element contributes to each output, by the rule of the case."""
    x = np.asarray(case.inputs[case.data[0]], dtype=np.float64)
    if case.bounds is None or not all(np.isfinite(bound).all() for bound in case.bounds):
        return np.maximum(matrix * x.ravel(), 0)
    low, high = (np.broadcast_to(bound, x.shape).ravel() for bound in case.bounds)
    flat = x.ravel()
    return np.maximum(matrix, 0) * (flat - low) + np.minimum(matrix, 0) * (flat - high)


@EACH_LINEAR
def test_linear_maps_agree_with_their_dense_matrix(case: Case) -> None:
    """z⁺ shares by ``(w x)⁺``; z^β by ``w⁺ (x − l) + w⁻ (x − h)``; in loops over units."""
    parts = _contributions(case, _dense(case)[0])
    relevance = _relevance(case)
    expected = np.zeros(parts.shape[1])
    for unit, arrived in zip(parts, relevance[0].ravel(), strict=True):
        if unit.sum() != 0:
            expected += unit / unit.sum() * arrived
    share = _given(_redistribute(case, relevance)[case.data[0]])
    np.testing.assert_allclose(share.ravel(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.op_type in MOVEMENTS and len(case.data) == 1],
    ids=lambda case: case.id,
)
def test_movements_agree_with_their_dense_matrix(case: Case) -> None:
    relevance = _relevance(case)
    arrived = np.concatenate([r.ravel() for r in relevance])
    share = _given(_redistribute(case, relevance)[case.data[0]])
    np.testing.assert_allclose(share.ravel(), _dense(case)[0].T @ arrived, rtol=1e-9, atol=1e-9)


def _without_receiver(case: Case) -> np.ndarray:
    """Where the mathematics has no receiver for what arrives at the first output."""
    y = _forward(case)[0]
    if case.op_type in LINEAR:
        return (_contributions(case, _dense(case)[0]).sum(1) == 0).reshape(y.shape)
    if case.op_type == "Pad":
        return (_dense(case)[0] == 0).all(1).reshape(y.shape)
    shared = case.op_type in SUMMED and len(case.data) > 1
    averaged = case.op_type in AVERAGED and case.rules == "default"
    averaged = averaged and not case.attributes.get("noop_with_empty_axes")
    return (y == 0) & (shared or averaged)


def _on_constants(case: Case, relevance: list[np.ndarray]) -> float:
    """The relevance that falls on constants which the node puts or chooses as they are."""
    if case.op_type not in JOINED:
        return 0.0
    everyone = [i for i, value in enumerate(case.inputs) if _given(value).dtype.kind == "f"]
    shares = redistribute(case.op_type, case.inputs, case.attributes, relevance, data=everyone)
    return sum(_given(shares[i]).sum().item() for i in everyone if i not in case.data)


@EACH
def test_relevance_is_conserved_but_for_what_has_no_receiver(case: Case) -> None:
    relevance = _relevance(case)
    absorbed = relevance[0][_without_receiver(case)].sum() + _on_constants(case, relevance)
    handed_on = sum(s.sum() for s in _redistribute(case, relevance) if s is not None)
    assert handed_on == pytest.approx(sum(r.sum() for r in relevance) - absorbed, abs=1e-9)


def test_some_cases_absorb_and_some_do_not() -> None:
    for family in (LINEAR, SUMMED, AVERAGED, {"Pad"}):
        found = {bool(_without_receiver(c).any()) for c in CASES if c.op_type in family}
        assert found == {False, True}, family


@EACH_MAX_POOL
def test_the_winner_of_a_max_pool_is_the_one_that_the_runtime_names(case: Case) -> None:
    """Its second output holds flat places in row-major order, whatever ``storage_order``."""
    x = np.asarray(case.inputs[0])
    relevance = _relevance(case)[0]
    plain = {k: v for k, v in case.attributes.items() if k != "storage_order"}
    named = Case(case.id, case.op_type, case.inputs, plain, opset=case.opset)
    winners = _runtime(named, ["output0", "output1"])[1]
    expected = np.zeros(x.size)
    np.add.at(expected, winners.ravel(), relevance.ravel())
    share = _given(_redistribute(case, [relevance])[0])
    np.testing.assert_allclose(share, expected.reshape(x.shape), rtol=1e-12, atol=1e-12)


# --- By hand ---------------------------------------------------------------------------------


def _array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _handed_on(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    relevance: Sequence[np.ndarray | None],
    data: Sequence[int] = (0,),
    rules: str = "default",
    **attributes: Attribute,
) -> list[Any]:
    """The relevance of the inputs in ``data`` as nested lists."""
    shares = redistribute(op_type, inputs, attributes, relevance, data=data, rules=rules)
    return [share.tolist() for share in shares if share is not None]


def _first_map(
    weight: np.ndarray, x: np.ndarray, r: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The relevance of ``x`` in front of a MatMul that is the first linear map."""
    return _given(redistribute("MatMul", [x, weight], {}, [r], data=[0], bounds=(low, high))[0])


def test_z_plus_by_hand() -> None:
    """Unit 0: 1·2 and (−3)·(−1) contribute 2 and 3. Unit 1: only (−2)·(−1) = 2."""
    x, weight = (_array(2, -1, 4)[None], np.array([[1.0, -2.0], [-3.0, -2.0], [-1.0, 0.0]]))
    assert _handed_on("MatMul", [x, weight], [_array(10, 6)[None]]) == [[[4.0, 12.0, 0.0]]]


def test_a_unit_that_only_its_bias_excites_absorbs_by_hand() -> None:
    x, weight, bias = _array(1, 2)[None], np.array([[-1.0], [0.0]]), _array(5)
    assert _handed_on("Gemm", [x, weight, bias], [_array(4)[None]]) == [[[0.0, 0.0]]]


def test_a_negative_alpha_turns_the_weights_by_hand() -> None:
    """−1 · (1, −2) = (−1, 2): all goes to the second input."""
    x, weight = _array(3, 5)[None], np.array([[1.0], [-2.0]])
    assert _handed_on("Gemm", [x, weight], [_array(7)[None]], alpha=-1.0) == [[[0.0, 7.0]]]


@pytest.mark.parametrize(("x", "expected"), [((1, 1), [4.0, 4.0]), ((1, 3), [8.0, 0.0])])
def test_z_beta_by_hand(x: tuple[float, float], expected: list[float]) -> None:
    """2·(1 − 0) = 2 and −1·(1 − 3) = 2 share evenly; −1·(3 − 3) gets nothing."""
    weight, r = np.array([[2.0], [-1.0]]), _array(8)[None]
    share = _first_map(weight, _array(*x)[None], r, _array(0, 0), _array(3, 3))
    assert share.tolist() == [expected]


def test_z_beta_is_the_formula_of_the_paper_where_there_is_no_padding() -> None:
    """``Z = Wx − W⁺l − W⁻h``, ``R_x = x⊙Wᵀs − l⊙W⁺ᵀs − h⊙W⁻ᵀs``."""
    rng = np.random.default_rng(3)
    x, w, r = rng.normal(size=(2, 5)), rng.normal(size=(5, 3)), rng.normal(size=(2, 3))
    low, high = x.min(0) - 0.5, x.max(0) + 0.5
    up, down = np.maximum(w, 0), np.minimum(w, 0)
    s = r / (x @ w - low @ up - high @ down)
    expected = x * (s @ w.T) - low * (s @ up.T) - high * (s @ down.T)
    np.testing.assert_allclose(_first_map(w, x, r, low, high), expected, rtol=1e-10)


def test_an_infinite_bound_means_z_plus_by_hand() -> None:
    weight, r = np.array([[2.0], [-1.0]]), _array(8)[None]
    share = _first_map(weight, _array(1, 1)[None], r, _array(0, 0), _array(3, np.inf))
    assert share.tolist() == [[8.0, 0.0]]


def test_padding_takes_no_relevance_under_z_beta_by_hand() -> None:
    """Windows (pad, a) and (b, pad) of a kernel (1, 1): all goes to the real element."""
    x, weight, r = (_array(1, 2)[None, None], np.ones((1, 1, 2)), _array(3, 5)[None, None])
    attributes, bounds = {"pads": [1, 1], "strides": [2]}, (_array(-1), _array(4))
    share = redistribute("Conv", [x, weight], attributes, [r], data=[0], bounds=bounds)[0]
    assert np.array_equal(_given(share), [[[3.0, 5.0]]])


def test_a_convolution_by_hand() -> None:
    """Windows (1, 2) and (2, 3) under (1, 1) share 3 as 1, 2 and 5 as 2, 3."""
    x, weight = _array(1, 2, 3)[None, None], np.ones((1, 1, 2))
    assert _handed_on("Conv", [x, weight], [_array(3, 5)[None, None]]) == [[[[1.0, 4.0, 3.0]]]]


def test_a_transposed_convolution_by_hand() -> None:
    """(1, 2) under (3, 1) and stride 1 makes (3, 1 + 6, 2); the middle shares 7 as 1, 6."""
    x, weight = _array(1, 2)[None, None], _array(3, 1)[None, None]
    r = _array(5, 7, 4)[None, None]
    assert _handed_on("ConvTranspose", [x, weight], [r]) == [[[[6.0, 10.0]]]]


@pytest.mark.parametrize(("op_type", "sign"), [("Add", 1), ("Sub", -1), ("Sum", 1)])
def test_sums_by_hand(op_type: str, sign: int) -> None:
    """2 + 3 = 5 shares; 3 − 2 = 1 and −4 + 1 = −3 go to the first; 1 − 1 = 0 absorbs."""
    a, b, r = _array(2, 3, -4, 1), sign * _array(3, -2, 1, -1), _array(10, 7, 6, 9)
    expected = [[4.0, 7.0, 6.0, 0.0], [6.0, 0.0, 0.0, 0.0]]
    assert _handed_on(op_type, [a, b], [r], data=(0, 1)) == expected


def test_a_broadcast_operand_collects_what_it_gave_by_hand() -> None:
    """(1, 3) + 1: it gave halves of the one and a quarter of the other."""
    inputs = [_array(1, 3), _array(1)]
    assert _handed_on("Add", inputs, [_array(4, 8)], data=(0, 1)) == [[2.0, 6.0], [4.0]]


def test_a_larger_constant_hands_back_the_sum_by_hand() -> None:
    assert _handed_on("Mul", [_array(2), _array(1, 2, 4)], [_array(5, 6, 7)]) == [[18.0]]


def test_a_constant_takes_nothing_from_a_sum_of_activations_by_hand() -> None:
    """(1 + 3) − 9: the constant is bypassed, the activations share 8 as 2, 6."""
    inputs = [_array(1), _array(3), _array(-9)]
    assert _handed_on("Sum", inputs, [_array(8)], data=(0, 1)) == [[2.0], [6.0]]


def test_products_by_hand() -> None:
    inputs = [_array(2, 3), _array(5)]
    assert _handed_on("Mul", inputs, [_array(4, 8)], data=(0, 1)) == [[2.0, 4.0], [6.0]]


@pytest.mark.parametrize(
    ("op_type", "expected"),
    [("Max", [[0.0, 2.0, 3.0], [1.0, 0.0, 0.0]]), ("Min", [[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])],
)
def test_winners_and_ties_by_hand(op_type: str, expected: list[list[float]]) -> None:
    inputs = [_array(1, 2, 4), _array(3, 2, 3)]
    assert _handed_on(op_type, inputs, [_array(1, 2, 3)], data=(0, 1)) == expected


def test_max_pool_by_hand() -> None:
    """Overlapping windows (1, 3), (3, 3), (3, 2): ties go to the first, windows add."""
    x, r = _array(1, 3, 3, 2)[None, None], _array(1, 2, 4)[None, None]
    assert _handed_on("MaxPool", [x], [r], kernel_shape=[2]) == [[[[0.0, 3.0, 4.0, 0.0]]]]


def test_reduce_max_reads_in_row_major_order_by_hand() -> None:
    """Of three equal maxima the first in the first row wins, however the axes are listed."""
    x, axes = np.array([[[1.0, 5.0], [5.0, 5.0]]]), np.array([2, 1])
    r = _array(3)[:, None, None]
    assert _handed_on("ReduceMax", [x, axes], [r]) == [[[[0.0, 3.0], [0.0, 0.0]]]]


AVERAGES = {"default": [4.0, 0.0, 0.0, 6.0, 0.0, 0.0], "paper": [2.0, 2.0, 3.0, 3.0, 1.0, 1.0]}


@pytest.mark.parametrize("rules", AVERAGES)
def test_average_pool_by_hand(rules: str) -> None:
    """Windows (3, −1) with y > 0, (1, −2) with y < 0, (1, −1) with y = 0."""
    x, r = _array(3, -1, 1, -2, 1, -1)[None, None], _array(4, 6, 2)[None, None]
    found = _handed_on("AveragePool", [x], [r], rules=rules, kernel_shape=[2], strides=[2])
    assert found == [[[AVERAGES[rules]]]]


def test_a_spatial_sum_is_shared_like_an_average_by_hand() -> None:
    x, axes, r = np.array([[1.0, 3.0, -1.0]]), np.array([1]), _array(8)[:, None]
    assert _handed_on("ReduceSum", [x, axes], [r]) == [[[2.0, 6.0, 0.0]]]
    third = 8 / 3
    assert _handed_on("ReduceSum", [x, axes], [r], rules="paper") == [[[third, third, third]]]


def test_padding_takes_no_share_of_an_average_by_hand() -> None:
    """The window (pad, 2) hands all to its real element even when padding is counted."""
    x, r = _array(2, 1)[None, None], _array(5, 6)[None, None]
    attributes = {"kernel_shape": [2], "pads": [1, 0], "count_include_pad": 1}
    share = redistribute("AveragePool", [x], attributes, [r], data=[0], rules="paper")[0]
    assert np.array_equal(_given(share), [[[8.0, 3.0]]])


def test_normalisation_is_bypassed_by_hand() -> None:
    x, ones, r = _array(1, 2)[None], _array(3, 3), _array(5, -6)[None]
    inputs = [x, ones, ones, ones, ones]
    assert _handed_on("BatchNormalization", inputs, [r]) == [[[5.0, -6.0]]]
    assert _handed_on("Neg", [x], [r]) == [[[5.0, -6.0]]]


def test_movements_by_hand() -> None:
    one, two, r = _array(7), _array(7, 8), _array(1, 2, 4)
    ends = [np.array([value]) for value in (1, -9, 0, -1)]
    assert _handed_on("Gather", [two, np.array([1, 0, -1])], [r]) == [[2.0, 5.0]]
    assert _handed_on("Pad", [one, np.array([1, 1]), np.array(3.0)], [r]) == [[2.0]]
    assert _handed_on("Pad", [two, np.array([1, 0])], [r], mode="reflect") == [[2.0, 5.0]]
    assert _handed_on("Slice", [two, *ends], [_array(1, 2)]) == [[2.0, 1.0]]
    assert _handed_on("Expand", [one, np.array([3])], [r]) == [[7.0]]


def test_a_linear_resize_by_hand() -> None:
    """Twice as wide by half pixels: rows (1, 0), (¾, ¼), (¼, ¾), (0, 1)."""
    inputs = [_array(1, 2), None, np.array([2.0], dtype=np.float32)]
    assert _handed_on("Resize", inputs, [_array(4, 8, 16, 32)], mode="linear") == [[14.0, 46.0]]


def test_outputs_of_a_split_without_relevance_count_as_zero() -> None:
    relevance = [None, _array(5), None]
    assert _handed_on("Split", [_array(1, 2, 3)], relevance, num_outputs=3) == [[0.0, 5.0, 0.0]]


def test_no_relevance_at_all_is_zero_everywhere() -> None:
    assert _handed_on("Relu", [_array(1, 2)], [None]) == [[0.0, 0.0]]


# --- What has no reference -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op_type", "data"), [("Upsample", [0]), ("MatMul", [0, 1]), ("Div", [0, 1])]
)
def test_what_has_no_rule_is_refused(op_type: str, data: list[int]) -> None:
    square = np.ones((2, 2))
    with pytest.raises(NotImplementedError):
        redistribute(op_type, [square, square], {}, [square], data=data)


def test_unknown_rules_and_bounds_out_of_place_are_refused() -> None:
    x = _array(1, 2)
    with pytest.raises(ValueError, match="rule set"):
        redistribute("Relu", [x], {}, [x], data=[0], rules="other")
    with pytest.raises(ValueError, match="bounds"):
        redistribute("Relu", [x], {}, [x], data=[0], bounds=(x, x))


def test_relevance_that_does_not_fit_the_windows_is_refused() -> None:
    x = np.ones((1, 1, 4))
    with pytest.raises(ValueError, match="does not fit"):
        redistribute("MaxPool", [x], {"kernel_shape": [2]}, [np.ones((1, 1, 4))], data=[0])
