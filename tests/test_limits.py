"""What untrusted models may do: run for long, fill the memory, claim to be explainers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_found import handed

from onnx_clrp import Explainer, ModelError, UnsupportedError, convert

Node = onnx.NodeProto
RANGE = (-1.0, 1.0)


def classifier(front: Sequence[Node], size: int = 8, **constants: np.ndarray) -> onnx.ModelProto:
    """`front`, from `x` to `z`, and a linear classifier of five classes behind its planes."""
    tail = [
        helper.make_node("GlobalAveragePool", ["z"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    values = {"w": np.arange(15, dtype=np.float32).reshape(3, 5), **constants}
    graph = helper.make_graph(
        [*front, *tail],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def chain(op: str, first: str, count: int, *more: str) -> list[Node]:
    """`count` nodes, each reading the one before: from `first`0 to `first`count."""
    return [helper.make_node(op, [f"{first}{i}", *more], [f"{first}{i + 1}"]) for i in range(count)]


def test_a_range_of_very_many_numbers_is_not_followed() -> None:
    front = [
        helper.make_node("Range", ["nil", "many", "step"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["total"], keepdims=0),
        helper.make_node("Equal", ["total", "nil"], ["equal"]),
        helper.make_node("Cast", ["equal"], ["shift"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "shift"], ["z"]),
    ]
    sizes = {"nil": np.int64(0), "many": np.int64(9 * 10**18), "step": np.int64(1)}
    convert(classifier(front, **sizes), input_range=RANGE)


def test_two_formulas_of_wide_sums_are_compared_once() -> None:
    front = [node for start in "ab" for node in wide_sums(start)]
    front += [
        helper.make_node("Mul", ["a12", "b12"], ["square"]),
        helper.make_node("ReduceMean", ["square", "plane"], ["mean"]),
        helper.make_node("Sqrt", ["mean"], ["deviation"]),
        helper.make_node("Div", ["x", "deviation"], ["z"]),
    ]
    convert(classifier(front, plane=np.array([2, 3])), input_range=RANGE)


def wide_sums(start: str) -> list[Node]:
    first = helper.make_node("Identity", ["x"], [f"{start}0"])
    sums = (helper.make_node("Sum", [f"{start}{i}"] * 40, [f"{start}{i + 1}"]) for i in range(12))
    return [first, *sums]


def test_a_formula_of_thousands_of_nodes_is_one_line() -> None:
    front = [
        helper.make_node("Mul", ["x", "x"], ["v0"]),
        *chain("Add", "v", 3000, "one"),
        helper.make_node("Sqrt", ["v3000"], ["deviation"]),
        helper.make_node("Div", ["x", "deviation"], ["z"]),
    ]
    with pytest.raises(ModelError, match="too long to follow"):
        convert(classifier(front, one=np.float32(1)), input_range=RANGE)


def test_a_maximum_of_a_whole_plane_takes_a_few_nodes() -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 56, 56)).astype(np.float32).round(1)
    r = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3, 1, 1)
    found, wanted = (
        handed("(float[2,3,56,56] x) => (float[a,b,c,d] y)", "", body, x, r)
        for body in ("y = MaxPool<kernel_shape=[56,56]>(x)", "y = GlobalMaxPool(x)")
    )
    np.testing.assert_array_equal(found, wanted)
    assert (found != 0).sum() == 6
    many = helper.make_node("MaxPool", ["x"], ["z"], kernel_shape=[56, 56])
    assert len(convert(classifier([many], 56), input_range=RANGE).graph.node) < 150  # not 56 * 56


def test_a_maximum_of_very_many_places_is_refused() -> None:
    many = helper.make_node("MaxPool", ["x"], ["z"], kernel_shape=[56, 56])
    with pytest.raises(UnsupportedError, match="its window has 3136 places, more than 1024"):
        convert(classifier([many], 60), input_range=RANGE)


DAMAGED = (
    *("", "x", "null", "5", "1e999", "-1", '"x"', "[]", "[1, 2]", '[[["a"]]]', "{}", '{"a": 1}'),
    *('{"input": "x"}', '{"low": ["a"], "high": [1], "axis": 99}'),
)


@pytest.mark.parametrize("value", DAMAGED)
def test_damaged_metadata_is_one_line_or_does_not_matter(value: str) -> None:
    explainer = convert(classifier([helper.make_node("Relu", ["x"], ["z"])]), input_range=RANGE)
    for entry in explainer.metadata_props:
        before, entry.value = entry.value, value
        refused = None
        try:
            made = Explainer(explainer, device="cpu")
        except ModelError as error:
            refused = str(error)
        else:
            made.explain(np.zeros((1, 3, 8, 8), np.float32), 0)
        assert refused is None or "convert the original model again" in refused
        entry.value = before
