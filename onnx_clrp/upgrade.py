"""Older and nested forms brought to one opset: functions inlined, ONNX's converter put right."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper, version_converter

from onnx_clrp.errors import ModelError

_FROM_CORNER = 10
"""Up to this opset, resizing has no attribute that says where its pixels lie."""

_OLDEST = 7
"""Before this opset, ONNX's converter lays what is broadcast along the wrong axes."""

_ONE_AXIS = 13
"""From this opset on, Softmax and its like are over a single axis; Hardmax is not converted."""


def opset_of(model: onnx.ModelProto) -> int | None:
    """The version of ONNX's own operators that the model asks for, None if none."""
    versions = (o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return next(versions, None)


def leave_open(model: onnx.ModelProto) -> None:
    """Leave open the sizes below zero, which some exporters write for those that are."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_value < 0:
                size.Clear()


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its functions in place of the calls; it is changed.

    A function may ask for another opset than the model, and then the inliner passes it by. But
    ONNX's checker has seen to it that its operators are the same in both.
    """
    for function in model.functions:
        own = [o for o in function.opset_import if o.domain in ("", "ai.onnx")]
        for entry in own:
            entry.version = opset_of(model) or entry.version
    return inliner.inline_local_functions(model)


def upgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in a newer opset, with what ONNX's converter overlooks put right.

    Raises:
        ModelError: a node means what the newer opset cannot say.
    """
    before = opset_of(model) or 1
    _refuse_lost(model, before)
    made = version_converter.convert_version(model, opset)
    if before <= _FROM_CORNER:
        may_shrink = any(node.op_type == "Resize" for node in model.graph.node)
        for node in made.graph.node:
            if node.op_type == "Resize":
                _lay_from_corner(node, made.graph, may_shrink)
    # What the converter says of the tensors that it adds is not always so.
    given = {value.name for value in model.graph.value_info}
    kept = [value for value in made.graph.value_info if value.name in given]
    del made.graph.value_info[:]
    made.graph.value_info.extend(kept)
    return made


def _refuse_lost(model: onnx.ModelProto, before: int) -> None:
    """Refuse what the converter would change without a word."""
    if before < _OLDEST:
        raise ModelError(
            f"the model is written for opset {before}, whose operators ONNX does not bring to newer"
            f" ones correctly: export it with opset {_OLDEST} or newer"
        )
    for node in model.graph.node:
        if node.op_type == "Hardmax" and before < _ONE_AXIS:
            raise ModelError(
                f"the Hardmax that writes {node.output[0]!r} may be over several axes, as before"
                f" opset {_ONE_AXIS}: export with that or a newer one"
            )


def _lay_from_corner(node: onnx.NodeProto, graph: onnx.GraphProto, may_shrink: bool) -> None:
    """Say of a Resize what Upsample and the Resize of opset 10 meant.

    A pixel's place was its number times the scale, and of the nearest pixels the lower one was
    taken where the tensor grows, the upper one where it shrinks. The converter says neither.
    """
    added = {"coordinate_transformation_mode": "asymmetric"}
    modes = [a.s for a in node.attribute if a.name == "mode"]
    if modes in ([], [b"nearest"]):
        scales = _constant(node.input[2], graph)
        if (scales is None and may_shrink) or (scales is not None and _mixed(scales)):
            raise ModelError(
                f"the Resize that writes {node.output[0]!r} grows along one axis and shrinks along"
                " another, or nobody knows which: export with opset 11 or newer"
            )
        shrinks = scales is not None and scales.min() < 1
        added["nearest_mode"] = "ceil" if shrinks else "floor"
    node.attribute.extend(helper.make_attribute(*item) for item in added.items())


def _mixed(scales: NDArray[Any]) -> bool:
    return bool(scales.min() < 1 < scales.max())


def _constant(name: str, graph: onnx.GraphProto) -> NDArray[Any] | None:
    """The value of an initializer or a Constant node of that name, else None."""
    tensors = [t for t in graph.initializer if t.name == name]
    constants = (n for n in graph.node if n.op_type == "Constant" and name in n.output)
    tensors += [a.t for node in constants for a in node.attribute if a.name == "value"]
    return numpy_helper.to_array(tensors[0]) if tensors else None
