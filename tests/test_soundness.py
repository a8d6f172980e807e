"""Graphs that are easy to get wrong without noticing, each against its plain equivalent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_clrp import Explainer, ModelError, UnsupportedError, UsageError, convert
from onnx_clrp.testing import redistribute

Node = onnx.NodeProto
Shape = Sequence[int | str]
RNG = np.random.default_rng(5)
FILTERS = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
HEAD = RNG.normal(size=(4, 5)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Node:
    """A node; names with spaces between."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"n_{outputs}", **attributes)


def model(
    nodes: Sequence[Node],
    shape: Shape,
    constants: dict[str, np.ndarray] | None = None,
    *,
    kind: int = TensorProto.FLOAT,
    out: Shape = ("n", "c"),
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    values = {"V": FILTERS, "W": HEAD, **(constants or {})}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(v, name) for name, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def classified(features: str) -> list[Node]:
    """From `[N, 4, h, w]` features to logits."""
    return [
        node("Relu", features, "active"),
        node("GlobalAveragePool", "active", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat W", "y"),
    ]


def maps(made: onnx.ModelProto, x: np.ndarray, method: str = "lrp", **options: Any) -> np.ndarray:
    """The signed map of class 2."""
    options.setdefault("input_range", (-1.0, 2.0))
    return Explainer(made, method=method, signed=True, **options).explain(x, 2).relevance[:, 0]


def picture(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 2, shape).astype(np.float32)


def agree(a: np.ndarray, b: np.ndarray) -> None:
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_a_term_proven_positive_takes_nothing_of_a_negative_sum() -> None:
    graph = helper.make_graph(
        [node("Relu", "a0", "a"), node("Add", "a b", "y")],
        "sum",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("a0", "b")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    values = {"a0": np.float32([[1]]), "b": np.float32([[-3]])}
    found = redistribute(made, values, {"y": np.float32([[[1]]])})
    assert found["a0"].item() == 0
    assert found["b"].item() == 1


def test_a_difference_of_positive_terms_knows_its_sign() -> None:
    graph = helper.make_graph(
        [node("Relu", "a0", "a"), node("Relu", "b0", "b"), node("Sub", "a b", "y")],
        "difference",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("a0", "b0")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    values = {"a0": np.float32([[1]]), "b0": np.float32([[3]])}
    found = redistribute(made, values, {"y": np.float32([[[1]]])})
    assert (found["a0"].item(), found["b0"].item()) == (0, 1)


def test_bounds_reach_the_first_map_whatever_the_size_of_the_picture() -> None:
    constants = {
        "mean": np.float32([90, 100, 110]).reshape(1, 3, 1, 1),
        "std": np.float32([50, 60, 70]).reshape(1, 3, 1, 1),
    }
    nodes = [
        node("Sub", "x mean", "centred"),
        node("Div", "centred std", "ready"),
        node("Conv", "ready V", "features"),
        *classified("features"),
    ]
    x = RNG.uniform(0, 255, (1, 3, 6, 7)).astype(np.float32)
    fixed = model(nodes, ["n", 3, 6, 7], constants)
    free = model(nodes, ["n", 3, "h", "w"], constants)
    wide = (0.0, 255.0)
    agree(maps(free, x, input_range=wide), maps(fixed, x, input_range=wide))


FRONTS = {
    "channels in another order": [node("Gather", "x order", "front", axis=1)],
    "every other pixel": [
        *(node("Slice", f"x {a} end space two", f"s{a}") for a in ("even", "odd")),
        node("Concat", "seven sodd", "front", axis=2),
    ],
    "a channel at a time": [
        node("Split", "x", "r g b", axis=1, num_outputs=3),
        node("Concat", "b g r", "front", axis=1),
    ],
    "one axis more and back": [
        node("Unsqueeze", "x second", "more"),
        node("Squeeze", "more second", "front"),
    ],
    "blocks": [
        node("SpaceToDepth", "x", "deep", blocksize=2),
        node("DepthToSpace", "deep", "front", blocksize=2),
    ],
    "a mirrored border": [node("Pad", "x border", "front", mode="reflect")],
    "means": [node("AveragePool", "x", "front", kernel_shape=[2, 2])],
    "means over a border": [
        node("AveragePool", "x", "front", kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=1)
    ],
}
"""What may stand in front of the first linear map."""


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_bounds_a_channel_stay_apart_whatever_the_size_of_the_picture(front: list[Node]) -> None:
    constants = {
        "order": np.int64([2, 1, 0]),
        "even": np.int64([0, 0]),
        "odd": np.int64([1, 1]),
        "end": np.int64([2**31, 2**31]),
        "space": np.int64([2, 3]),
        "two": np.int64([2, 2]),
        "second": np.int64([1]),
        "border": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    nodes = [*front, node("Conv", "front V", "features"), *classified("features")]
    bounds = ([0.0, -2.0, -1.0], [1.0, 2.0, 3.0])
    drawn = np.random.default_rng(1).uniform(size=(1, 3, 6, 8)).astype(np.float32)
    low, high = (np.float32(bound).reshape(1, 3, 1, 1) for bound in bounds)
    x = low + (high - low) * drawn
    found, wanted = (
        Explainer(model(nodes, shape, constants), method="lrp", input_range=bounds)
        for shape in (["n", 3, "h", "w"], ["n", 3, 6, 8])
    )
    agree(*(explainer.explain(x, 2).relevance for explainer in (found, wanted)))
    assert found.notes == wanted.notes == []


def test_bounds_that_differ_in_too_many_ways_are_joined_and_noted() -> None:
    nodes = [
        node("Reshape", "x grey", "front"),
        node("Conv", "front one", "features"),
        *classified("features"),
    ]
    one = np.random.default_rng(4).normal(size=(4, 1, 3, 3)).astype(np.float32)
    constants = {"grey": np.int64([-1, 1, 6, 8]), "one": one}
    made = model(nodes, ["n", 3, 6, 8], constants, out=("m", "c"))
    explainer = Explainer(made, method="lrp", input_range=([0, -5, -1], [1, -1, 3]))
    assert explainer.notes == ["z^β at n_features takes the same bounds for all channels, -5 to 3"]


@pytest.mark.parametrize(
    "padding",
    [
        [node("Pad", "x pads", "padded")],
        [node("Pad", "x pads", "p"), node("Identity", "p", "padded")],
        [node("Pad", "x half", "p"), node("Pad", "p half", "padded")],
        [
            node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
            node("Pad", "t nhwc", "p"),
            node("Transpose", "p", "padded", perm=[0, 3, 1, 2]),
        ],
    ],
    ids=["plain", "identity", "twice", "channels last"],
)
def test_padding_in_front_of_the_first_map_is_padding_by_attribute(padding: list[Node]) -> None:
    constants = {
        "pads": np.int64([0, 0, 2, 2, 0, 0, 2, 2]),
        "half": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
        "nhwc": np.int64([0, 2, 2, 0, 0, 2, 2, 0]),
    }
    x = picture(1, 3, 6, 6)
    inside = [node("Conv", "padded V", "features"), *classified("features")]
    plain = [node("Conv", "x V", "features", pads=[2] * 4), *classified("features")]
    shape = [1, 3, 6, 6]
    agree(maps(model([*padding, *inside], shape, constants), x), maps(model(plain, shape), x))


def test_a_pad_behind_a_convolutional_classifier_does_not_hide_it() -> None:
    def made(tail: list[Node]) -> onnx.ModelProto:
        nodes = [
            node("Conv", "x V", "h0"),
            node("Relu", "h0", "h"),
            node("Conv", "h U", "s0"),
            node("Relu", "s0", "s"),
            *tail,
            node("GlobalAveragePool", "means", "g"),
            node("Flatten", "g", "y"),
        ]
        second = np.random.default_rng(8).normal(size=(5, 4, 1, 1)).astype(np.float32)
        pads = np.int64([0, 0, 1, 1, 0, 0, 1, 1])
        return model(nodes, [1, 3, 6, 6], {"U": second, "pads": pads})

    kernel = {"kernel_shape": [3, 3], "count_include_pad": 1}
    padded = [node("Pad", "s pads", "p"), node("AveragePool", "p", "means", **kernel)]
    plain = [node("AveragePool", "s", "means", pads=[1] * 4, **kernel)]
    x = picture(1, 3, 6, 6)
    agree(maps(made(padded), x, "clrp2"), maps(made(plain), x, "clrp2"))


def test_a_split_knows_the_bounds_of_each_piece() -> None:
    bounds = ([0.0, -5.0, -1.0], [1.0, -1.0, 3.0])
    weight = {
        "K": np.abs(FILTERS[:, :1]) * np.float32([1, -1, 1, -1]).reshape(4, 1, 1, 1),
        "sizes": np.int64([1, 1, 1]),
        "W": np.abs(HEAD),
    }
    tail = [node("Conv", "piece K", "features"), *classified("features")]
    split = [node("Split", "x sizes", "a piece b", axis=1), *tail]
    sliced = [node("Slice", "x one two one", "piece"), *tail]
    places = {"one": np.int64([1]), "two": np.int64([2])}
    x = np.stack([np.linspace(lo, hi, 25).reshape(5, 5) for lo, hi in zip(*bounds, strict=True)])
    x = x[None].astype(np.float32)
    shape = [1, 3, 5, 5]
    found = maps(model(split, shape, weight), x, input_range=bounds)
    agree(found, maps(model(sliced, shape, {**weight, **places}), x, input_range=bounds))


def test_a_negative_scale_is_folded_also_where_the_channels_are_no_longer_apart() -> None:
    weight = {"M": RNG.normal(size=(64, 5)).astype(np.float32)}
    tail = [node("Relu", "flat", "r"), node("MatMul", "r M", "y")]
    before = [node("Neg", "features", "turned"), node("Flatten", "turned", "flat")]
    after = [node("Flatten", "features", "apart"), node("Neg", "apart", "flat")]
    x = picture(1, 3, 6, 6)
    first = [node("Conv", "x V", "features")]
    shape = [1, 3, 6, 6]
    agree(
        maps(model([*first, *after, *tail], shape, weight), x),
        maps(model([*first, *before, *tail], shape, weight), x),
    )


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LeakyRelu", {"alpha": -0.5}),
        ("ThresholdedRelu", {"alpha": -3.0}),
        ("Elu", {"alpha": -3.0}),
    ],
)
def test_an_odd_activation_claims_no_bounds(op: str, attributes: dict[str, float]) -> None:
    nodes = [node(op, "x", "a", **attributes), node("Conv", "a V", "f"), *classified("f")]
    made = convert(model(nodes, [1, 3, 6, 6]), input_range=(-5.0, 1.0), method="lrp")
    notes = {e.key: e.value for e in made.metadata_props}["onnx_clrp.notes"]
    assert "z⁺ in place of z^β" in json.loads(notes)[0]


def test_control_flow_that_takes_the_input_from_outside_is_refused() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 4, 4])
        return helper.make_graph([node("Conv", "x V", name)], name, [], [out])

    nodes = [
        node("Conv", "x V", "a"),
        node("If", "yes", "b", then_branch=branch("then"), else_branch=branch("else")),
        node("Add", "a b", "s"),
        *classified("s"),
    ]
    with pytest.raises(UnsupportedError, match=r"n_b +If +control flow is not supported"):
        convert(model(nodes, [1, 3, 6, 6], {"yes": np.array(True)}), input_range=(0, 1))


def test_a_contrast_needs_a_classifier_layer() -> None:
    nodes = [node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "y")]
    with pytest.raises(ModelError, match="no linear map that could be the classifier layer"):
        convert(model(nodes, [1, 3, 6, 6]), input_range=(0, 1), method="clrp2")


def test_a_classifier_layer_behind_another_is_refused() -> None:
    nodes = [
        node("Conv", "x V", "f"),
        node("GlobalAveragePool", "f", "g"),
        node("Flatten", "g", "h0"),
        node("Gemm", "h0 S", "h"),
        node("Gemm", "h S", "l"),
        node("Add", "h l", "y"),
    ]
    made = model(nodes, [1, 3, 6, 6], {"S": np.eye(4, dtype=np.float32) + 0.5})
    with pytest.raises(ModelError, match="also feeds another one"):
        convert(made, input_range=(0, 1), method="clrp2")


def test_a_scale_of_unknown_sign_is_refused() -> None:
    nodes = [
        node("Conv", "x V", "f0"),
        node("RandomNormal", "", "scale", shape=[1, 4, 1, 1]),
        node("Mul", "f0 scale", "f"),
        *classified("f"),
    ]
    with pytest.raises(UnsupportedError, match="known only at run time, and so is its sign"):
        convert(model(nodes, [1, 3, 6, 6]), input_range=(0, 1))


def test_every_gap_is_named_and_nothing_that_only_follows() -> None:
    nodes = [
        node("Conv", "x V", "f"),
        node("Cos", "f", "odd"),
        node("GlobalAveragePool", "odd", "g"),
        node("Flatten", "g", "flat"),
        node("Gemm", "flat W", "l"),
        node("Sin", "l", "y"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        convert(model(nodes, [1, 3, 6, 6]), input_range=(0, 1))
    assert [(name, op) for name, op, _ in caught.value.gaps] == [("n_odd", "Cos"), ("n_y", "Sin")]


@pytest.mark.parametrize("given", [5, ([0, 0], [1, 1]), ([0] * 5, [1] * 5), (1, 0), ("a", "b")])
def test_an_input_range_that_makes_no_sense_is_a_usage_error(given: object) -> None:
    nodes = [node("Conv", "x V", "f"), *classified("f")]
    with pytest.raises(UsageError):
        convert(model(nodes, [1, 3, 6, 6]), input_range=given)


@pytest.mark.parametrize("target", [1.7, True, [[1]], [], {1.5}, "top:0", "best", 5, -1])
def test_a_target_that_makes_no_sense_is_a_usage_error(target: object) -> None:
    nodes = [node("Conv", "x V", "f"), *classified("f")]
    with pytest.raises(UsageError):
        convert(model(nodes, [1, 3, 6, 6]), input_range=(0, 1), target=target)
