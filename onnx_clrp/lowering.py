"""The same model in an older opset, for providers whose kernels are of that opset alone.

ONNX Runtime has a kernel for the very version of an operator in which it was last defined. A new
version that only adds a type leaves the CUDA provider without one until somebody adds it, and the
node runs on the CPU, between copies: from opset 19 on Equal and Pad do, and so every max pool's
relevance. Most such nodes mean the same in opset 18.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
from onnx import checker, defs, helper, shape_inference

from onnx_clrp.model import first_line, is_standard, skeleton
from onnx_clrp.upgrade import opset_of

OPSET = 18
"""CUDA has kernels for all that explainers write in this one."""

_NEWEST = 23
"""What later opsets change nobody has looked at."""

_TYPES_ALONE = frozenset(
    {
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "Cast", "CastLike"),
        *("Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "Dropout", "Elu"),
        *("DequantizeLinear", "Equal", "Flatten", "GlobalAveragePool", "GlobalMaxPool"),
        *("HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN"),
        *("LpNormalization", "MaxPool", "Mish", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMin"),
        *("Reshape", "Resize", "Round", "Selu", "Shape", "Sin", "Sinh", "Size", "Softplus"),
        *("Softsign", "Squeeze", "Tan", "ThresholdedRelu", "Transpose", "Unsqueeze"),
    }
)
"""Operators whose versions after opset 18 add types, attributes and values of attributes, and
change nothing else."""

_OWN = "com.microsoft"
"""The domain of ONNX Runtime's own operators, which had a Gelu before ONNX did."""

_NEW_VALUES = frozenset({b"wrap", b"half_pixel_symmetric"})
"""What attributes could not say before."""


def lowered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """The model in opset 18, in a copy, or as it is if it cannot be, and then why it cannot.

    Only the number changes, and Gelu becomes ONNX Runtime's own; what an exporter says of
    attributes that opset 18 does not have, and that is their default, is left out.
    """
    stays = _staying(model)
    if stays is not None or (opset_of(model) or OPSET) <= OPSET:
        return model, stays
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _stamp(made)
    return made, None


def _staying(model: onnx.ModelProto) -> str | None:
    """Why the model has to stay in an opset after 18; None if it can be, or is, in that."""
    opset = opset_of(model) or OPSET
    if opset <= OPSET:
        return None
    if opset > _NEWEST:
        return f"opset {opset}"
    reason = "functions of its own" if model.functions else _newer(model.graph, opset)
    if reason is not None:
        return reason
    bare, _ = skeleton(model)
    bare = shape_inference.infer_shapes(bare)  # nobody does behind an operator of ONNX Runtime's
    _stamp(bare)
    try:
        checker.check_model(bare, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        return first_line(error)
    return None


def _stamp(model: onnx.ModelProto) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    for node in model.graph.node:
        if node.op_type in _TYPES_ALONE and is_standard(node):
            kept = [a for a in node.attribute if a.name in _attributes(node.op_type, OPSET)]
            del node.attribute[:]
            node.attribute.extend(kept)
    gelus = [node for node in model.graph.node if node.op_type == "Gelu" and not node.domain]
    for node in gelus:
        by_tanh = any(a.s == b"tanh" for a in node.attribute)
        node.op_type, node.domain = "FastGelu" if by_tanh else "Gelu", _OWN
        del node.attribute[:]
    if gelus and all(entry.domain != _OWN for entry in model.opset_import):
        model.opset_import.add(domain=_OWN, version=1)


def _newer(graph: onnx.GraphProto, opset: int) -> str | None:
    """The first node that opset 18 does not have, or has with another meaning."""
    for node in graph.node:
        own = is_standard(node)
        if any(a.HasField("g") for a in node.attribute) or (
            own and not _means_the_same(node, opset)
        ):
            return f"{node.op_type} of opset {opset}"
    return None


def _means_the_same(node: onnx.NodeProto, opset: int) -> bool:
    if _since(node.op_type, opset) <= OPSET or node.op_type == "Gelu":
        return True
    if node.op_type not in _TYPES_ALONE:
        return False
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "AveragePool" and values.get("ceil_mode"):
        return False  # what a window that hangs over is divided by
    if any(value in _NEW_VALUES for value in values.values() if isinstance(value, bytes)):
        return False
    known, newer = (_attributes(node.op_type, version) for version in (OPSET, opset))
    return all(values[name] == newer.get(name) for name in {*values} - {*known})


@cache
def _attributes(op: str, opset: int) -> dict[str, Any]:
    """The operator's attributes, each with its default; None for none."""
    known = defs.get_schema(op, opset).attributes
    return {
        name: helper.get_attribute_value(a.default_value) if a.default_value.type else None
        for name, a in known.items()
    }


@cache
def _since(op: str, opset: int) -> int:
    """The opset in which the operator was last defined."""
    return int(defs.get_schema(op, opset).since_version)
