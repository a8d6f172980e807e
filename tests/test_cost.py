"""What explaining costs, told by the nodes that are added: times are those of machines."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnx_clrp import Explainer, convert

CHANNELS, CLASSES = 16, 24


def model(body: str) -> onnx.ModelProto:
    """A network whose weights are random."""
    rng = np.random.default_rng(3)
    shapes = {
        "first": (CHANNELS, 3, 3, 3),
        "w": (CHANNELS, CHANNELS, 3, 3),
        "wide": (2 * CHANNELS, CHANNELS, 1, 1),
        "c": (CLASSES, CHANNELS, 1, 1),
        "b": (CLASSES,),
    }
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, 3, 8, 8] x)'
        f" => (float[N, {CLASSES}] logits) {{ a = Conv<pads = [1, 1, 1, 1]>(x, first) {body}"
        " p = GlobalAveragePool(last) logits = Flatten(p) }"
    )
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(values, name))
    return made


def connected(head: str) -> onnx.ModelProto:
    """A network with a fully connected classifier."""
    made = model("r = Relu(a) last = Identity(r)")
    end = onnx.parser.parse_graph(
        f"e (float[N, {CHANNELS}, 1, 1] p) => (float y) {{ f = Flatten(p) {head} }}"
    )
    del made.graph.node[-1]
    made.graph.node.extend(end.node)
    values = np.random.default_rng(4).normal(size=(CHANNELS, CLASSES)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(values, "v"))
    return made


def added(made: onnx.ModelProto, kept: str = "") -> list[onnx.NodeProto]:
    """The nodes that were added, of one of the model's nodes alone if it is named."""
    explainer = convert(made, input_range=(-4, 4))
    return [n for n in explainer.graph.node if n.name.startswith(f"relevance/{kept}")]


def test_of_a_convolutional_classifier_only_rows_are_read() -> None:
    nodes = added(model("r = Relu(a) last = Conv(r, c, b)"))
    assert any(n.op_type == "Gather" and n.input[0].startswith("relevance/") for n in nodes)
    reading = [n for n in nodes if "c" in n.input]
    assert {n.op_type for n in reading} == {"Reshape"}  # to the rows
    shapes = Counter(n.op_type for n in nodes)
    assert shapes["Conv"] + shapes["ConvTranspose"] == 3  # Z of the first layer, and its two parts


@pytest.mark.parametrize(
    "head",
    [
        "logits = Gemm(f, v, b)",
        "l = MatMul(f, v) logits = Add(l, b)",
        "l = MatMul(f, v) logits = Add(b, l)",
        "l = Gemm(f, v) logits = Add(l, b)",
    ],
)
@pytest.mark.parametrize("rules", ["default", "epsilon"])
def test_of_a_fully_connected_classifier_only_rows_are_read(head: str, rules: str) -> None:
    explainer = convert(connected(head), rules=rules, input_range=(-4, 4))
    nodes = [n for n in explainer.graph.node if n.name.startswith("relevance/")]
    assert {n.op_type for n in nodes if "v" in n.input} == {"Gather"}


def test_a_divisor_is_kept_from_zero_by_its_convolution() -> None:
    nodes = added(
        model("r = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(r, w) s = Relu(y) last = Conv(s, c)")
    )
    producers = {o: n for n in nodes for o in n.output}
    guards = [n for n in nodes if n.op_type == "LeakyRelu"]
    convolved = [n for n in guards if producers[n.input[0]].op_type == "Conv"]
    assert len(convolved) == 2  # the first layer, of two parts in one convolution, and the second
    assert all(len(producers[n.input[0]].input) == 3 for n in convolved)


@pytest.mark.parametrize(("pads", "looks"), [([1, 1, 1, 1], 4), ([0, 0, 0, 0], 9)])
def test_a_pool_that_slides_looks_along_one_axis_after_the_other(
    pads: list[int], looks: int
) -> None:
    """At two places along each: the third wins if none of them does."""
    pool = f"q = MaxPool<kernel_shape = [3, 3], pads = {pads}>(r)"
    nodes = added(model(f"r = Relu(a) {pool} last = Conv(q, c)"))
    compared = [n for n in nodes if n.op_type == "Equal"]
    assert len(compared) - 1 == looks  # one is that of the target


def test_a_unit_that_its_bias_alone_switched_on_absorbs() -> None:
    """Z is 0 there: nothing is handed on, and nothing overflows."""
    made = model("r = Relu(a) last = Conv(r, c, b)")
    values = np.full((CHANNELS, 3, 3, 3), -1, np.float32)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "first"))
    ones = numpy_helper.from_array(np.full(CHANNELS, 1e4, np.float32), "bias")
    made.graph.initializer.append(ones)
    made.graph.node[0].input.append("bias")
    result = Explainer(made, method="lrp", input_range=(0, 4), device="cpu").explain(
        np.zeros((1, 3, 8, 8), np.float32) + 4, [1]
    )
    assert result.seed.all()
    assert not result.relevance.any()
