"""A float32 model in float16: its own forward pass for half the memory, on the units for that.

ONNX Runtime's own converter does it. Inputs and outputs stay float32, and so do norms that are
written out, and relevance, of which most values lie below what float16 can hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from onnx_clrp.errors import ClrpError, ModelError
from onnx_clrp.external import references
from onnx_clrp.model import first_line, fits, load, self_contained
from onnx_clrp.modernise import modernise
from onnx_clrp.wide import wide_nodes, without_rounding

NOTE = "the model itself runs in float16, relevance is calculated in float32"

_LARGEST = float(np.finfo(np.float16).max)

_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in float16, its inputs and outputs as they were.

    Raises:
        ClrpError: ONNX Runtime, whose converter it is, is not installed.
        ModelError: the model is no float32 model, float16 cannot hold its weights, or it takes
            more than 2 GiB.
    """
    made = _whole_copy(model)
    kinds = {tensor.data_type for _, tensor in _constants(made)}
    if TensorProto.FLOAT not in kinds or kinds & _HALVES:
        raise ModelError("half: the model has no float32 weights, or has half-precision ones")
    _refuse_large(made)
    try:
        made = load(_converted(made))  # which sorts its nodes: the converter appends
        checker.check_model(made, full_check=True)
    except ClrpError:
        raise
    except Exception as error:  # whatever the converter stumbles over
        raise ModelError(f"half: it cannot be brought to float16: {first_line(error)}") from error
    return made


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16 where it can be; it is written over."""
    convert = _converter()
    # The converter goes by names, which nodes need not have.
    names = {f"wide {i}": (node, node.name) for i, node in enumerate(wide_nodes(model))}
    for name, (node, _) in names.items():
        node.name = name
    made: onnx.ModelProto = convert(model, keep_io_types=True, node_block_list=[*names])
    without_rounding(made, names)
    for node in made.graph.node:
        node.name = names[node.name][1] if node.name in names else node.name
    return made


def _whole_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in one modern form with all weights inside, for the converter to write over."""
    if not fits(model):
        raise ModelError("half: the model takes more than 2 GiB, which the converter cannot take")
    made = modernise(model).proto
    if references(made):
        made = self_contained(made)
    for node in made.graph.node:
        _with_tensors(node)
    _without_types_of_weights(made.graph)
    return made


def _without_types_of_weights(graph: onnx.GraphProto) -> None:
    """Leave out types that say of weights what they say themselves.

    The converter would make float16 of the former even where the latter stay float32.
    """
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _with_tensors(node: onnx.NodeProto) -> None:
    """A Constant of floats as one of a tensor: the converter passes the former by."""
    for attribute in node.attribute if node.op_type == "Constant" else ():
        if attribute.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(attribute), np.float32)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """The initializers and the tensors of Constant nodes, with their names."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield node.output[0], attribute.t


def _refuse_large(model: onnx.ModelProto) -> None:
    """The converter would make the largest number of float16 of what is larger."""
    large = []
    for name, tensor in _constants(model):
        if tensor.data_type == TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            if (values[np.isfinite(values)] > _LARGEST).any():
                large.append(name)
    if large:
        named = ", ".join(map(repr, large[:3])) + (", …" if len(large) > 3 else "")
        raise ModelError(f"half: float16 ends at {_LARGEST:.0f}, and larger numbers are in {named}")


def _converter() -> Any:
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise ClrpError("half needs ONNX Runtime's tools (onnxruntime.transformers)") from error
    return convert_float_to_float16
