"""Makes the copy of a graph over the real numbers that rules, bounds and shapes are found on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnx_clrp.dequantise import ON_INTEGERS, Dequantiser
from onnx_clrp.quantised_operators import READERS
from onnx_clrp.reals import PLAIN, Reals, View

Array = NDArray[Any]

_NARROW = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
"""Floats that relevance is not calculated in."""


_WRITTEN_AGAIN = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice"),
        *("Gather", "Identity", "Expand", "Tile", "Pad", "Cast", "Clip", "Where", "Dropout"),
        *("Relu", "Max", "Min"),
    }
)
"""Operators that ONNX Runtime has for float16 on every device."""

_LARGEST = 4096
"""Constants of more elements decide no shapes or bounds; the copy has just their form."""


def over_reals(
    model: onnx.ModelProto,
    weights: Mapping[str, onnx.TensorProto],
    values: Callable[[onnx.TensorProto], Array],
) -> tuple[onnx.ModelProto, Reals]:
    """A copy of the graph in which every tensor of numbers is float32, and how to read them.

    Args:
        model: the graph without its weights, which are inputs of it.
        weights: the weights by name.
        values: a function that gives the values of an initializer.
    """
    narrow = _has_narrow(model)
    if not narrow and not any(node.op_type in READERS for node in model.graph.node):
        return model, PLAIN
    constants = _Constants(model, weights, values)
    opset = next(o.version for o in model.opset_import if o.domain == "")
    readers = _readers(model.graph)
    fixed = _made_of_constants(model.graph, constants)
    dequantiser = Dequantiser(constants.value, constants.types, readers, fixed, opset)
    nodes = [made for node in model.graph.node for made in dequantiser.read(node)]
    views = {**(_narrow_views(model, constants, fixed) if narrow else {}), **dequantiser.views}
    reals = Reals(views, dequantiser.origins, dequantiser.intervals, constants.value)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import.append(helper.make_opsetid(ON_INTEGERS, 1))
    del copy.graph.node[:]
    copy.graph.node.extend(_widened(node) for node in nodes)
    _retype(copy.graph, {name for name, view in views.items() if view.source == name}, constants)
    made = dequantiser.inputs_made
    copy.graph.input.extend(helper.make_tensor_value_info(n, t, []) for n, t in made.items())
    for name, view in dequantiser.constants_made.items():
        _add_constant(copy.graph, name, reals, constants.shape(view.source))
    return copy, reals


class _Constants:
    """The constants of a graph: initializers, Constant nodes, and what is merely another name."""

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Mapping[str, onnx.TensorProto],
        values: Callable[[onnx.TensorProto], Array],
    ) -> None:
        self._values = values
        self._tensors = {**weights, **{t.name: t for t in model.graph.initializer}}
        for node in model.graph.node:
            given = {a.name: a for a in node.attribute}
            if node.op_type == "Constant" and "value" in given:
                self._tensors[node.output[0]] = given["value"].t
            elif node.op_type == "Identity" and node.input[0] in self._tensors:
                self._tensors[node.output[0]] = self._tensors[node.input[0]]
        self.types = {name: t.data_type for name, t in self._tensors.items()}

    def value(self, name: str) -> Array | None:
        """The value, or None if the tensor is no constant."""
        tensor = self._tensors.get(name)
        return None if tensor is None else self._values(tensor)

    def shape(self, name: str) -> list[int]:
        """The constant's shape."""
        return list(self._tensors[name].dims)


def _has_narrow(model: onnx.ModelProto) -> bool:
    graph = model.graph
    types = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    types |= {t.data_type for t in graph.initializer}
    types |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute}
    types |= {a.t.data_type for node in graph.node for a in node.attribute if a.HasField("t")}
    return not types.isdisjoint(_NARROW)


def _narrow_views(
    model: onnx.ModelProto, constants: _Constants, fixed: set[str]
) -> dict[str, View]:
    """A Cast for every tensor of another float type, and for those whose type nobody knows."""
    graph = shape_inference.infer_shapes(model).graph
    types = dict(constants.types)
    for value in (*graph.value_info, *graph.input, *graph.output):
        types.setdefault(value.name, value.type.tensor_type.elem_type)
    made = {y: node for node in graph.node for y in node.output if y}
    named = {name: types.get(name, 0) for name in (*types, *made)}
    again = {
        y
        for y, node in made.items()
        if node.op_type in _WRITTEN_AGAIN and y not in fixed and not _rounds(node, types)
    }
    return {
        name: View(
            name,
            _NARROW.get(kind, "float32"),
            constant=name in constants.types,
            again=name in again,
        )
        for name, kind in named.items()
        if kind in (0, *_NARROW)
    }


def _rounds(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    """Does a Cast make halves of wider numbers? What reads them must not see the latter."""
    to = next((a.i for a in node.attribute if a.name == "to"), 0)
    wide = types.get(node.input[0]) in (TensorProto.FLOAT, TensorProto.DOUBLE)
    return node.op_type == "Cast" and to in (TensorProto.FLOAT16, TensorProto.BFLOAT16) and wide


def _made_of_constants(graph: onnx.GraphProto, constants: _Constants) -> set[str]:
    """What every runtime calculates at load, in the type that the model says."""
    found = {*constants.types}
    for node in graph.node:
        given = [x for x in node.input if x]
        if node.op_type == "Constant" or (given and found.issuperset(given)):
            found.update(node.output)
    return found


def _readers(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes and outputs read each tensor."""
    inside = (x for node in graph.node for x in _read_by(node))
    return Counter([*inside, *(y.name for y in graph.output)])


def _read_by(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read_by(inner)


def _widened(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node with float32 wherever an attribute names or holds another float type."""
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
            attribute.i = TensorProto.FLOAT
        elif attribute.HasField("t") and attribute.t.data_type in _NARROW:
            numbers = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(numbers, attribute.t.name))
    return wide


def _retype(graph: onnx.GraphProto, names: set[str], constants: _Constants) -> None:
    """Make these tensors float32 wherever the graph declares them."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name in names:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.name in names:
            numbers = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def _add_constant(graph: onnx.GraphProto, name: str, reals: Reals, shape: list[int]) -> None:
    """A constant of the copy: its values if they may matter to shapes and bounds, else its form."""
    value = reals.value(name) if math.prod(shape) <= _LARGEST else None
    if value is not None:
        graph.initializer.append(numpy_helper.from_array(value, name))
    else:
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
