"""Constants that a graph computes for itself: run a node on known values, fold whole chains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from onnx_clrp.float64_operators import MOVEMENTS

Value = NDArray[Any]

CANNOT_RUN = (
    *(RuntimeError, ValueError, TypeError, NotImplementedError, IndexError),
    *(MemoryError, OverflowError),
)
"""What the reference evaluator raises where an operator cannot be run; then nothing is known."""

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators that draw: a value of theirs is no constant."""

_SHAPED_AS_INPUT = frozenset({"GroupNormalization"})
"""Operators whose output's shape is not inferred although it is that of the input."""

_LARGEST = 4096
"""Chains that lead to more elements than this are no axes or shapes, and stay as they are."""


_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})

_GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot"})

_FOLLOWED = 2**20
"""ONNX's inference keeps every number of a longer Range in a message of its own."""

_TOO_LARGE = 2**28
"""A model of a few bytes may ask for a constant of more elements than any machine can hold."""


def _grows_to(operator: str, values: Sequence[Value | None]) -> float:
    """How many elements an operator makes whose arguments alone say so; 0 for all others."""
    first, *others = [np.zeros(0) if v is None else np.asarray(v) for v in values] or [np.zeros(0)]
    if operator not in _GROWING or any(v.dtype.kind not in "iuf" for v in (first, *others)):
        return 0.0
    if operator == "Range":
        start, limit, delta = (float(v.reshape(-1)[0]) for v in (first, *others))
        return abs((limit - start) / delta) if delta else np.inf
    if operator == "Pad" and others[0].size == 2 * first.ndim:
        more = others[0].astype(np.float64).reshape(2, -1).sum(0)
        return float(np.prod(np.maximum(first.shape + more, 0)))
    factors = [float(np.prod(np.abs(v.astype(np.float64)))) for v in others if v.size]
    if operator == "ConstantOfShape":
        return float(np.prod(np.abs(first.astype(np.float64))))
    if operator == "Resize" and others[-1].dtype.kind in "iu":  # the sizes themselves
        return factors[-1]
    return first.size * max(factors, default=1.0)


def run_node(node: onnx.NodeProto, values: Sequence[Value | None], opset: int) -> list[Value]:
    """The outputs of one node for these inputs, None for one that is left out."""
    training = node.op_type == "Dropout" and len(values) > 2 and values[2] is not None
    if node.op_type in _RANDOM or (training and bool(values[2])):
        raise NotImplementedError(f"{node.op_type} has no value of its own")
    if node.op_type in _CONTROL_FLOW or _grows_to(node.op_type, values) > _TOO_LARGE:
        raise NotImplementedError(f"{node.op_type} may run for long or fill the memory")
    names = [x for x in node.input if x]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_empty_tensor_value_info(x) for x in dict.fromkeys(names)],
        [helper.make_empty_tensor_value_info(y) for y in node.output if y],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    given = zip(node.input, values, strict=True)
    feeds = {x: np.asarray(v) for x, v in given if x}
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return list(ReferenceEvaluator(model, new_ops=MOVEMENTS).run(None, feeds))


def with_shapes(model: onnx.ModelProto, opset: int, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The model with every shape that can be inferred, chains of constants folded for it.

    The nodes that write the tensors of `kept` stay as they are.

    Exporters compute the arguments of a Reshape or a Pad by Shape, Gather, Concat and the like;
    shape inference alone loses the sizes behind them.
    """
    follow = not _counts_far(model, opset)
    inferred = shape_inference.infer_shapes(model, data_prop=follow)
    for _ in range(3):
        changed = _fold(inferred, opset, kept)
        if not _complete(inferred) and not changed:
            break
        inferred = shape_inference.infer_shapes(inferred, data_prop=follow)
    return inferred


def _counts_far(model: onnx.ModelProto, opset: int) -> bool:
    """Is there a Range that would fill the memory where ONNX follows the values of sizes?"""
    ranges = [node for node in model.graph.node if node.op_type == "Range"]
    if not ranges:
        return False
    folded = shape_inference.infer_shapes(model)
    _fold(folded, opset, ())
    known = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    given = ([known.get(x) for x in node.input] for node in ranges)
    return any(
        _grows_to("Range", values) > _FOLLOWED
        for values in given
        if all(v is not None and np.size(v) == 1 for v in values)
    )


def _complete(model: onnx.ModelProto) -> bool:
    """Add the shapes that the inference of ONNX leaves out; were there any?"""
    graph = model.graph
    listed = {v.name: v for v in [*graph.input, *graph.value_info]}
    known = {name for name, v in listed.items() if v.type.tensor_type.HasField("shape")}
    added = False
    for node in graph.node:
        if node.op_type not in _SHAPED_AS_INPUT or node.input[0] not in known:
            continue
        if node.output[0] not in known:
            made = listed.get(node.output[0]) or graph.value_info.add()
            made.CopyFrom(listed[node.input[0]])
            made.name = node.output[0]
            listed[made.name] = made
            known.add(made.name)
            added = True
    return added


def shapes_left_out(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Those shapes that the inference of ONNX, and so a runtime's, would not find for itself."""
    made = {y for node in model.graph.node if node.op_type in _SHAPED_AS_INPUT for y in node.output}
    return [value for value in model.graph.value_info if value.name in made]


def _fold(model: onnx.ModelProto, opset: int, kept: Collection[str]) -> bool:
    """Turn nodes of known inputs into initializers, in place; did anything change?"""
    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes = {v.name: _static(v) for v in [*graph.input, *graph.value_info]}
    outputs = {*kept, *(y.name for y in graph.output)}
    folded = []
    for node in graph.node:
        values = _folded(node, known, shapes, opset) if not outputs & {*node.output} else None
        if values is not None:
            folded.append(node)
            known.update(zip(node.output, values, strict=False))
            graph.initializer.extend(
                numpy_helper.from_array(np.asarray(v), name)
                for name, v in zip(node.output, values, strict=False)
            )
    for node in folded:
        graph.node.remove(node)
    return bool(folded)


def _folded(
    node: onnx.NodeProto,
    known: dict[str, Value],
    shapes: dict[str, list[int] | None],
    opset: int,
) -> list[Value] | None:
    shape = shapes.get(node.input[0]) if node.input else None
    if node.op_type == "Shape" and shape is not None:
        ends = {a.name: a.i for a in node.attribute}
        return [np.array(shape, np.int64)[ends.get("start", 0) : ends.get("end")]]
    if node.domain not in ("", "ai.onnx") or any(x and x not in known for x in node.input):
        return None
    try:
        values = run_node(node, [known.get(x) for x in node.input], opset)
    except CANNOT_RUN:
        return None
    return values if all(np.size(v) <= _LARGEST for v in values) else None


def _static(value: onnx.ValueInfoProto) -> list[int] | None:
    """The shape, if every size is known."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return [d.dim_value for d in kind.shape.dim]
