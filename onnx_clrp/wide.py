"""Where a float16 model keeps float32: on the way from squares to what is divided by their root.

Squares leave float16 from 256 on, and then a quotient is 0 whatever the dividend. It is the norms
that exporters write out: runtimes calculate their own in float32 anyway. So does what counts: a
number of pixels is soon more than float16 can hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnx import TensorProto, numpy_helper

from onnx_clrp.model import all_inputs, constant_tensors, element_types, is_standard

_PRODUCTS = frozenset({"Mul", "MatMul", "Gemm", "Einsum"})

_GROWING = frozenset({"Pow", "Exp", "ReduceSumSquare", "ReduceL2", "ReduceProd"})
"""Operators that make of modest numbers such as float16 cannot hold."""

_SUMS = frozenset({"ReduceSum", "ReduceL1"})

_THROUGH = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Sqrt", "Abs", "Neg", "Max", "Min", "Clip", "Sum", "Where"),
        *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceMax", "ReduceMin", "GlobalAveragePool"),
        *("AveragePool", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Expand", "Slice", "Split", "Gather", "Concat", "Pad", "Tile"),
    }
)
"""Operators behind which numbers may still be as large."""

_INSIDE = frozenset(
    {"LRN", "LpNormalization", "MeanVarianceNormalization", "LpPool", "GlobalLpPool"}
)
"""Operators that do all of it themselves, in the type of their input."""


def wide_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that are to stay float32; the graph's nodes are sorted."""
    graph, kinds = model.graph, element_types(model)
    values = constant_tensors(graph)
    makers = {y: node for node in graph.node for y in node.output if y}
    varying, kept = {x.name for x in graph.input}, set[str]()
    large = set[str]()
    for node in graph.node:
        made = [y for y in node.output if y]
        if not varying.isdisjoint(all_inputs(node)):
            varying.update(made)
        carried = node.op_type in _THROUGH and not large.isdisjoint(node.input)
        counts = node.op_type == "Cast" and kinds.get(node.input[0]) != TensorProto.FLOAT
        if carried or counts or node.op_type in _SUMS or _starts(node, varying):
            large.update(made)
        if counts or (node.op_type in _INSIDE and is_standard(node)):
            kept.add(node.output[0])
    waiting = list[str]()
    for node in graph.node:
        divisors = [x for x in _divisors(node, values) if x in large]
        waiting += divisors
        if divisors:
            kept.add(node.output[0])
    seen = set[str]()
    while waiting:
        x = waiting.pop()
        if x not in seen:
            seen.add(x)
            kept.add(makers[x].output[0])
            further = () if _starts(makers[x], varying) else makers[x].input
            waiting += [x for x in further if x in large]
    return [node for node in graph.node if node.output and node.output[0] in kept]


def _starts(node: onnx.NodeProto, varying: set[str]) -> bool:
    """Does it multiply numbers that depend on the input, or weights, with one another?"""
    factors = [x for x in node.input if x in varying]
    alone = len(factors) > 1 or not factors
    return node.op_type in _GROWING or (node.op_type in _PRODUCTS and alone)


def _divisors(node: onnx.NodeProto, values: dict[str, TensorProto]) -> Iterator[str]:
    """The inputs of which an infinity would make 0."""
    if node.op_type == "Div":
        yield node.input[1]
    elif node.op_type == "Reciprocal":
        yield node.input[0]
    elif node.op_type == "Pow":
        exponent = values.get(node.input[1])
        if exponent is None or (numpy_helper.to_array(exponent) < 0).any():
            yield node.input[0]


def without_rounding(model: onnx.ModelProto, wide: Collection[str]) -> None:
    """Let nodes in float32 read one another as they are: the converter rounds what lies between.

    Casts that nobody reads any more stay, for the names of their outputs; no runtime runs them.

    Args:
        model: the model as the converter leaves it; it is written over.
        wide: the names of the nodes that have stayed float32.
    """
    graph, kinds = model.graph, element_types(model)
    made = {y for node in graph.node if node.name in wide for y in node.output}
    made |= {x.name for x in graph.input}
    exact = {x for x in made if kinds.get(x) == TensorProto.FLOAT}
    rounded = {
        n.output[0]: n.input[0]
        for n in graph.node
        if _casts(n, TensorProto.FLOAT16) and n.input[0] in exact
    }
    again = {
        n.output[0]: rounded[n.input[0]]
        for n in graph.node
        if _casts(n, TensorProto.FLOAT) and n.input[0] in rounded
    }
    for node in graph.node:
        if node.name in wide:
            node.input[:] = [again.get(x, x) for x in node.input]


def _casts(node: onnx.NodeProto, to: int) -> bool:
    """Is it a Cast to a type?"""
    return node.op_type == "Cast" and node.attribute[0].i == to
