"""Runs an explainer graph in float64, slowly and exactly, for `check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_clrp.errors import ModelError
from onnx_clrp.external import array_of
from onnx_clrp.float64_operators import NARROW, OPERATORS, wide
from onnx_clrp.float64_windows import Array
from onnx_clrp.model import first_line

_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})
_HALF = {int(TensorProto.FLOAT16): 2.0**-10, int(TensorProto.BFLOAT16): 2.0**-7}


def run_float64(
    model: onnx.ModelProto, feeds: Mapping[str, Array], wanted: Sequence[str]
) -> dict[str, Array]:
    """The tensors `wanted` of the graph, with every float in it computed and stored as float64.

    Only the nodes that they need are run, and a value is dropped behind its last use. A tensor
    that is fed is not computed, also where a node of the graph writes it.

    Raises:
        ModelError: an operator cannot be run in float64, or an input is missing.
    """
    nodes = _needed(model.graph.node, wanted, feeds)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: np.asarray(value) for name, value in feeds.items()}
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


def cut(model: onnx.ModelProto, own: frozenset[str], wanted: Sequence[str]) -> list[str]:
    """The tensors at which the nodes that were added to a model read what its own nodes wrote.

    Fed with their values, `run_float64` runs nothing but what was added. What is cast is read
    behind the Cast: the runtime leaves out a rounding to half precision that a Cast makes undone.

    Args:
        model: the graph with the nodes that were added.
        own: the outputs of the model's own nodes.
        wanted: what is made by the nodes that were added.
    """
    theirs = set(own)
    for node in model.graph.node:
        if node.op_type == "Cast" and theirs.intersection(node.input):
            theirs.update(node.output)
    added = [node for node in model.graph.node if theirs.isdisjoint(node.output)]
    needed = _needed(added, wanted, ())
    written = {y for node in needed for y in node.output}
    written.update(tensor.name for tensor in model.graph.initializer)
    read = dict.fromkeys(x for node in needed for x in node.input if x)
    return [x for x in read if x not in written]


def other_pass(model: onnx.ModelProto, wanted: Sequence[str]) -> str | None:
    """Why a run in float64 would be another forward pass than the model's own; None if it is not.

    The numbers that float32 rounds differ in their last digits. What is rounded to integers or to
    half precision on the way differs by whole steps.
    """
    if half_step(model, wanted):
        return "the model calculates in half precision"
    for node in _needed(model.graph.node, wanted, ()):
        if node.op_type in _ROUNDING or node.op_type.startswith("QLinear"):
            return f"the model is quantised ({node.op_type})"
    return None


def half_step(model: onnx.ModelProto, wanted: Sequence[str]) -> float:
    """The relative distance between two numbers of the half precision that a model calculates in.

    It is 0 for a model that calculates in float32 throughout.
    """
    values = [*model.graph.input, *model.graph.output]
    kinds = {value.type.tensor_type.elem_type for value in values}
    for node in _needed(model.graph.node, wanted, ()):
        if node.op_type == "Cast":
            kinds.update(a.i for a in node.attribute if a.name == "to")
    return max((step for kind, step in _HALF.items() if kind in kinds), default=0.0)


def _needed(
    nodes: Sequence[onnx.NodeProto], wanted: Iterable[str], known: Collection[str]
) -> list[onnx.NodeProto]:
    """The nodes that `wanted` depends on beyond what is known, in their order."""
    names, needed = {name for name in wanted if name not in known}, []
    for node in reversed(nodes):
        if not names.isdisjoint(filter(None, node.output)):
            needed.append(node)
            names.update(name for name in node.input if name not in known)
    return needed[::-1]


def _value(name: str, values: Mapping[str, Array], weights: Mapping[str, TensorProto]) -> Array:
    """A tensor that is computed already, or the weights of that name."""
    if name in values:
        return wide(values[name])
    if name not in weights:
        raise ModelError(f"{name!r} is neither fed nor computed in the graph")
    return wide(array_of(weights[name]))


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
