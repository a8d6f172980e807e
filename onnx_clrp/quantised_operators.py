"""How each quantised operator is read as its float counterpart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_clrp.intervals import between
from onnx_clrp.reals import View

if TYPE_CHECKING:
    from onnx_clrp.dequantise import Dequantiser

Reader = Callable[["Dequantiser", onnx.NodeProto], "list[onnx.NodeProto] | None"]
"""Gives the nodes that take a node's place in the copy; None leaves it as it is."""

READERS: dict[str, Reader] = {}
"""The operators that are read as others."""


def _reads(*operators: str) -> Callable[[Reader], Reader]:
    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(operators, reader))
        return reader

    return register


def _inputs(node: onnx.NodeProto, count: int) -> list[str]:
    return [*node.input, *[""] * count][:count]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _as(op: str, node: onnx.NodeProto, inputs: Sequence[str], **changed: Any) -> onnx.NodeProto:
    """The node as another operator on other inputs; an attribute changed to None is dropped."""
    attributes = {k: v for k, v in {**_attributes(node), **changed}.items() if v is not None}
    return helper.make_node(op, inputs, [node.output[0]], node.name, **attributes)


@_reads("QuantizeLinear")
def _quantize(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    x, scale, zero = _inputs(node, 3)
    attributes = _attributes(node)
    if attributes.get("block_size"):
        return None
    axis = attributes.get("axis", 1)
    given = attributes.get("output_dtype")
    kind = helper.tensor_dtype_to_np_dtype(given).name if given else "uint8"
    d.integers(node.output[0], scale, zero, axis, "" if zero else kind)
    d.read_rounded(x, node.output[0])
    return [helper.make_node("Identity", [x], [node.output[0]], node.name)]


@_reads("DequantizeLinear")
def _dequantize(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    x, scale, zero = _inputs(node, 3)
    attributes = _attributes(node)
    if attributes.get("block_size"):
        return None
    name, made = d.real(x, scale, zero, attributes.get("axis", 1))
    if name == x and not d.same_parameters(x, scale, zero, attributes.get("axis", 1)):
        return None
    d.views[node.output[0]] = d.views[name]
    return [*made, helper.make_node("Identity", [name], [node.output[0]], node.name)]


@_reads("DynamicQuantizeLinear")
def _dynamic_quantize(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Scale and zero point depend on the data, but calibrate like constants and take nothing."""
    quantised, scale, zero = node.output
    d.integers(quantised, scale, zero, dtype="uint8")
    d.inputs_made |= {scale: TensorProto.FLOAT, zero: TensorProto.UINT8}
    d.intervals |= {scale: between(0, np.inf), zero: between(0, 255)}
    return [helper.make_node("Identity", [node.input[0]], [quantised], node.name)]


@_reads("QLinearConv")
def _qlinear_conv(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if _attributes(node).get("channels_last"):
        return None
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = _inputs(node, 8)
    data, made = d.real(x, x_scale, x_zero)
    weight, _ = d.real(w, w_scale, w_zero, axis=0)
    d.integers(node.output[0], y_scale, y_zero)
    return [*made, _as("Conv", node, [data, weight], channels_last=None)]


@_reads("QLinearMatMul")
def _qlinear_matmul(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    left, made = d.real(a, a_scale, a_zero, axis=-2)
    right, more = d.real(b, b_scale, b_zero, axis=-1)
    d.integers(node.output[0], y_scale, y_zero)
    return [*made, *more, _as("MatMul", node, [left, right])]


@_reads("QGemm")
def _qgemm(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    a, a_scale, a_zero, b, b_scale, b_zero, _, y_scale, y_zero = _inputs(node, 9)
    left, made = d.real(a, a_scale, a_zero)
    right, more = d.real(b, b_scale, b_zero, axis=0 if _attributes(node).get("transB") else 1)
    if y_scale:
        d.integers(node.output[0], y_scale, y_zero)
    return [*made, *more, _as("Gemm", node, [left, right])]


@_reads("QLinearAdd", "QLinearMul")
def _qlinear_pair(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    left, made = d.real(a, a_scale, a_zero)
    right, more = d.real(b, b_scale, b_zero)
    d.integers(node.output[0], y_scale, y_zero)
    return [*made, *more, _as(node.op_type.removeprefix("QLinear"), node, [left, right])]


@_reads("QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearSigmoid", "QLinearLeakyRelu")
@_reads("QLinearSoftmax")
def _qlinear_unary(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if _attributes(node).get("channels_last"):
        return None
    x, x_scale, x_zero, y_scale, y_zero = _inputs(node, 5)
    data, made = d.real(x, x_scale, x_zero)
    d.integers(node.output[0], y_scale, y_zero)
    op = node.op_type.removeprefix("QLinear")
    return [*made, _as(op, node, [data], channels_last=None, opset=None)]


@_reads("QLinearConcat")
def _qlinear_concat(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    y_scale, y_zero, *operands = node.input
    parts, nodes = [], []
    for x, scale, zero in zip(*(operands[i::3] for i in range(3)), strict=True):
        part, made = d.real(x, scale, zero)
        parts.append(part)
        nodes += made
    d.integers(node.output[0], y_scale, y_zero)
    return [*nodes, _as("Concat", node, parts)]


@_reads("ConvInteger", "MatMulInteger")
def _integer_product(d: Dequantiser, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The scales come behind it; being positive they change nothing."""
    a, b, a_zero, b_zero = _inputs(node, 4)
    convolution = node.op_type == "ConvInteger"
    data, made = d.real(a, None, a_zero, axis=-2)
    weight, more = d.real(b, None, b_zero, axis=0 if convolution else -1)
    d.views[node.output[0]] = View(node.output[0], "int32")
    return [*made, *more, _as(node.op_type.removesuffix("Integer"), node, [data, weight])]
