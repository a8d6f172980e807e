"""Small graphs: run in float64, blurred the way float32 blurs them, and written as ONNX models."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from reference import operators

Array = np.ndarray
Bounds = tuple[Array, Array]
Values = dict[str, Array]

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
SUMS = frozenset({"Add", "Sub", "Sum"})
PASSING = frozenset({"Cast", "Dropout", "Identity"})
MOVEMENTS = operators.MOVEMENTS


@dataclass(frozen=True)
class Node:
    """One operator; inputs by name, empty for one left out."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """A graph in the order in which it runs, and how it is to be explained.

    Attributes:
        opset: of its operators.
        data: the values of its inputs, float32 or integers.
        constants: the values of all else that its nodes read from outside.
        forms: how a constant is written, if not as an initializer: by a `node`, behind an
            `identity`, or as `int8` with a scale.
        nodes: its operators.
        outputs: the tensors that relevance starts from.
        bounds: for some inputs, the lowest and the highest value.
        rules: the rule set.
        open: which sizes of the inputs the model leaves open: `none`, `batch` or `all`.
    """

    opset: int = 18
    data: Values = field(default_factory=dict)
    constants: Values = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    bounds: dict[str, Bounds] = field(default_factory=dict)
    rules: str = "default"
    open: str = "none"

    def __repr__(self) -> str:
        """The graph as ONNX's text, with the values that it takes to run it."""
        parts = (onnx.printer.to_text(model(self)), self.data, self.bounds, self.rules)
        return "\n".join(str(part) for part in parts)

    def data_of(self, node: Node) -> list[int]:
        """Which inputs of a node depend on the graph's."""
        return [i for i, x in enumerate(node.inputs) if x and x not in self.constants]

    def operands(self, node: Node, values: Mapping[str, Array]) -> list[Array | None]:
        """The values of a node's inputs."""
        known = {**self.constants, **values}
        return [known[x] if x else None for x in node.inputs]


# --- Running ---------------------------------------------------------------------------------


def forward(graph: Graph, node: Node, values: Mapping[str, Array]) -> list[Array]:
    """The outputs of one node."""
    return operators.forward(
        node.op_type,
        graph.operands(node, values),
        node.attributes,
        data=graph.data_of(node),
        outputs=len(node.outputs),
    )


@dataclass(frozen=True)
class Blur:
    """Random errors somewhat larger than those of float32, where it would not be exact.

    Two blurs of the same seed and opposite sign err in opposite directions, so that hardly a
    decision that rounding may turn is taken alike by both; and one of them takes for nothing what
    is smaller than its error: what is left where terms cancel, or the Gelu of -6.
    """

    values: Values
    sign: int
    seed: int = 7
    size: float = 2.0**-21

    def blurred(self) -> Callable[[str, Array, Array], Array]:
        """A function from a name, a result and the size of what it rounded to one with errors."""
        rng = np.random.default_rng(self.seed)

        def blur(name: str, y: Array, rounded: Array) -> Array:
            signs = rng.choice([-1.0, 1.0], y.shape) * self.sign
            with np.errstate(invalid="ignore"):  # what errors blow up is left out
                wrong = y + self.size * signs * rng.uniform(0.5, 1.0, y.shape) * rounded
            nothing = (abs(self.values[name]) < self.size * rounded) & (self.sign < 0)
            return np.where(nothing, 0.0, wrong)

        return blur


def run(graph: Graph, blur: Blur | None = None) -> Values:
    """The values of all tensors that depend on the inputs."""
    values = {name: x.astype(np.float64) for name, x in graph.data.items()}
    blurred = None if blur is None else blur.blurred()
    for node in graph.nodes:
        results = forward(graph, node, values)
        if blurred is not None:
            rounded = _rounded(graph, node, values, results[0])
            if rounded is not None:
                results = [blurred(node.outputs[0], results[0], rounded)]
        values.update(zip(node.outputs, results, strict=True))
    return values


_EXACT = frozenset(
    {
        *("Abs", "Ceil", "Clip", "Floor", "GlobalMaxPool", "Max", "MaxPool", "Min", "Neg"),
        *("QuantizeLinear", "ReduceMax", "ReduceMin", "Relu", "Round", "ThresholdedRelu", "Where"),
        *PASSING,
        *(MOVEMENTS - {"Resize"}),
    }
)
"""Operators that pick values and calculate none."""


def _rounded(graph: Graph, node: Node, values: Values, y: Array) -> Array | None:
    """The size of the numbers that a node rounds; None where it rounds none."""
    if node.op_type in _EXACT:
        return None
    if node.op_type in LINEAR | SUMS | MEANS | {"Mul", "Resize"}:
        size, terms = _absolute(graph, node, values)
        grains = [_grain(x) for x in terms]
        exact = node.op_type not in MEANS | {"Resize"} and None not in grains
        fine = exact and sum(g or 0 for g in grains) <= 10 and size.max(initial=0) < 2**13
        return None if fine else size
    x = values[node.inputs[graph.data_of(node)[0]]]
    size = abs(y) + (abs(x) if x.shape == y.shape else 0)
    return size + abs(y).max(initial=0) if "Normalization" in node.op_type else size


def _absolute(graph: Graph, node: Node, values: Values) -> tuple[Array, list[Array]]:
    """The sum of the sizes of all terms, and the operands they are made of."""
    operands = graph.operands(node, values)
    terms = [x for x in operands if x is not None and x.dtype.kind == "f"]
    attributes = {k: abs(v) if k in ("alpha", "beta") else v for k, v in node.attributes.items()}
    (size,) = operators.forward(
        "Add" if node.op_type == "Sub" else node.op_type,
        [x if x is None or x.dtype.kind != "f" else abs(x) for x in operands],
        attributes,
        data=graph.data_of(node),
    )
    return size, terms


def _grain(x: Array) -> int | None:
    """The number of binary digits behind the point, if they are few."""
    return next((g for g in range(9) if (x * 2**g == np.round(x * 2**g)).all()), None)


# --- Writing ---------------------------------------------------------------------------------


def model(graph: Graph) -> onnx.ModelProto:
    """The graph as an ONNX model."""
    values = run(graph)
    nodes, initializers = [], []
    for name, value in graph.constants.items():
        made, stored = _constant(name, value, graph.forms.get(name, ""))
        nodes += made
        initializers += stored
    nodes += [
        helper.make_node(
            n.op_type, n.inputs, n.outputs, name=f"node_{n.outputs[0]}", **n.attributes
        )
        for n in graph.nodes
    ]
    made = helper.make_graph(
        nodes,
        "drawn",
        [_info(name, x, graph.open) for name, x in graph.data.items()],
        [_info(y, values[y].astype(np.float32), "all") for y in graph.outputs],
        initializers,
    )
    opset = [helper.make_opsetid("", graph.opset)]
    return helper.make_model(made, opset_imports=opset, ir_version=9)


def _info(name: str, value: Array, leaving_open: str) -> onnx.ValueInfoProto:
    """The type and shape of an input or output, some of its sizes left open."""
    sizes: dict[str, list[int | str]] = {
        "none": [*value.shape],
        "batch": ["N", *value.shape[1:]],
        "all": [f"{name}_{axis}" for axis in range(value.ndim)],
    }
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, sizes[leaving_open])


def _constant(
    name: str, value: Array, form: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and initializers that make a constant."""
    if form == "node":
        tensor = numpy_helper.from_array(value, f"{name}_value")
        return [helper.make_node("Constant", [], [name], value=tensor)], []
    if form == "identity":
        node = helper.make_node("Identity", [f"{name}_stored"], [name])
        return [node], [numpy_helper.from_array(value, f"{name}_stored")]
    if form == "int8":
        parts = [f"{name}_integers", f"{name}_scale"]
        stored = [np.asarray(value * 2, np.int8), np.array(0.5, np.float32)]
        node = helper.make_node("DequantizeLinear", parts, [name])
        return [node], [numpy_helper.from_array(v, p) for v, p in zip(stored, parts, strict=True)]
    return [], [numpy_helper.from_array(value, name)]


def readers(graph: Graph, name: str) -> Iterator[Node]:
    """The nodes that read a tensor."""
    return (node for node in graph.nodes if name in node.inputs)
