"""Runs an explainer graph in float64, slowly and exactly, for `check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_clrp.errors import ModelError
from onnx_clrp.float64_operators import NARROW, OPERATORS, wide
from onnx_clrp.float64_windows import Array
from onnx_clrp.model import first_line


def run_float64(
    model: onnx.ModelProto, feeds: Mapping[str, Array], wanted: Sequence[str]
) -> dict[str, Array]:
    """The tensors `wanted` of the graph, with every float in it computed and stored as float64.

    Only the nodes that they need are run, and a value is dropped behind its last use.

    Raises:
        ModelError: an operator cannot be run in float64, or an input is missing.
    """
    nodes = _needed(model.graph.node, wanted)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: wide(np.asarray(value)) for name, value in feeds.items()}
    uses = Counter(name for node in nodes for name in node.input)
    uses.update(wanted)
    with np.errstate(all="ignore"):  # 1/0 and the like are as silent as in any other runtime
        for node in nodes:
            inputs = {name: _value(name, values, weights) for name in node.input if name}
            values |= inputs
            values |= _run_node(node, inputs, [y for y in node.output if uses[y]], opsets)
            uses.subtract(node.input)
            values = {name: value for name, value in values.items() if uses[name] > 0}
    return {name: _value(name, values, weights) for name in wanted}


def _needed(nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that `wanted` depends on, in their order."""
    names, needed = set(wanted), []
    for node in reversed(nodes):
        if not names.isdisjoint(filter(None, node.output)):
            needed.append(node)
            names.update(node.input)
    return needed[::-1]


def _value(name: str, values: Mapping[str, Array], weights: Mapping[str, TensorProto]) -> Array:
    """A tensor that is computed already, or the weights of that name."""
    if name in values:
        return values[name]
    if name not in weights:
        raise ModelError(f"{name!r} is neither fed nor computed in the graph")
    return wide(numpy_helper.to_array(weights[name]))


# -- a node ------------------------------------------------------------------------------------


class _Evaluator(ReferenceEvaluator):
    """The reference evaluator with our operators, also inside those that are functions."""

    def __init__(self, proto: Any, *args: Any, **options: Any) -> None:
        super().__init__(proto, *args, **{**options, "new_ops": OPERATORS})


def _run_node(
    node: onnx.NodeProto, inputs: dict[str, Array], outputs: list[str], opsets: dict[str, int]
) -> dict[str, Array]:
    """Run one node; the evaluator would hold every value of a whole graph until its end."""
    try:
        found = _Evaluator(_alone(node, inputs, outputs), opsets=opsets).run(outputs, inputs)
    except Exception as error:  # an operator's Python code raises whatever it likes
        raise _failure(node, first_line(error)) from error
    computed = dict(zip(outputs, found, strict=True))
    for name, value in computed.items():
        if value.dtype.name in NARROW:
            raise _failure(node, f"the reference evaluator computes {name!r} as {value.dtype}")
    return computed


def _alone(node: onnx.NodeProto, inputs: dict[str, Array], outputs: list[str]) -> onnx.GraphProto:
    """A graph of one node; its inputs have types, since some operators are defined by them."""
    typed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    return helper.make_graph([node], "node", typed, [onnx.ValueInfoProto(name=y) for y in outputs])


def _failure(node: onnx.NodeProto, reason: str) -> ModelError:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    name = node.name or f"(unnamed, writes {node.output[0]})"
    return ModelError(f"{name}: {operator} cannot be run in float64: {reason}")
