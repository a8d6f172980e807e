"""Every tensor of a quantised or half-precision model, as it is when ONNX Runtime runs it."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, shape_inference

from reference import operators

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Stored: TypeAlias = Mapping[str, Array]

_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

# ONNX Runtime's CPU provider calculates in float32 all along a chain of float16 operators. A Cast
# shows the numbers that it really has; but behind an operator that has a float16 kernel it would
# change them, since the operator would then use that kernel, and round.
_NATIVE_HALF = frozenset({"Cast", "Clip", "Concat", "Constant", "Flatten", "Relu"})


def session(model: onnx.ModelProto, *, optimised: bool) -> ort.InferenceSession:
    """A session on the CPU, with the runtime's graph optimisations or without any."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def rounded(model: onnx.ModelProto, feeds: Stored) -> dict[str, Array]:
    """What the quantising operators give in an optimised session, which they stay outputs of."""
    makers = [node for node in model.graph.node if node.op_type in _ROUNDING]
    names = [name for node in makers for name in node.output]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    results = _outputs(probe, feeds, optimised=True)
    _assert_unchanged(results, _outputs(model, feeds, optimised=True))
    return {name: results[name] for name in names}


def _outputs(model: onnx.ModelProto, feeds: Stored, *, optimised: bool) -> dict[str, Array]:
    names = [value.name for value in model.graph.output]
    results = session(model, optimised=optimised).run(names, dict(feeds))
    return dict(zip(names, results, strict=True))


def _assert_unchanged(results: Stored, outputs: Stored) -> None:
    """The outputs added must have changed nothing."""
    for name, value in outputs.items():
        np.testing.assert_array_equal(results[name], value, err_msg=name)


def tapped(model: onnx.ModelProto, feeds: Stored, given: Stored) -> dict[str, Array]:
    """Every tensor of the model, without graph optimisations; halves as float32.

    What is given is not calculated but put in, in the place of the nodes that make it.
    """
    probe = _without(model, given)
    halves = _halves(model)
    taps, later = dict[str, str](), list[onnx.NodeProto]()
    for node in probe.graph.node:
        if halves.isdisjoint(node.output):
            taps.update((name, name) for name in node.output if name)
        elif node.op_type in _NATIVE_HALF:
            later.append(node)
        else:
            taps.update((name, f"{name} as float32") for name in node.output)
    for name, tap in taps.items():
        if name != tap:  # a Cast that is itself an output would read rounded numbers
            probe.graph.node.append(helper.make_node("Cast", [name], [f"{tap} within"], to=1))
            probe.graph.node.append(helper.make_node("Identity", [f"{tap} within"], [tap]))
    known = {value.name for value in model.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=t) for t in taps.values() if t not in known)
    results = _outputs(probe, {**feeds, **given}, optimised=False)
    if not given:
        _assert_unchanged(results, _outputs(model, feeds, optimised=False))
    numbers = {name: results[tap] for name, tap in taps.items()}
    constants = {t.name: _number(numpy_helper.to_array(t)) for t in model.graph.initializer}
    stored = {**constants, **feeds, **given, **numbers}
    for node in later:
        stored[node.output[0]] = _again(node, stored)
    return stored


def _again(node: onnx.NodeProto, stored: Stored) -> Array:
    """What a node makes of halves, in the float32 numbers that stand in their place."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Constant":
        return _number(numpy_helper.to_array(attributes["value"]))
    if node.op_type == "Cast":
        half = helper.tensor_dtype_to_np_dtype(attributes["to"])
        return stored[node.input[0]].astype(half).astype(np.float32)
    values = [stored[name] if name else None for name in node.input]
    (y,) = operators.forward(node.op_type, values, attributes, data=range(len(values)))
    return y.astype(np.float32)


def _without(model: onnx.ModelProto, given: Stored) -> onnx.ModelProto:
    """A copy in which the given tensors are inputs, without the nodes that made them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [node for node in model.graph.node if given.keys().isdisjoint(node.output)]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in given.items()
    )
    return copy


def _halves(model: onnx.ModelProto) -> set[str]:
    """The tensors of float16 and bfloat16."""
    known = shape_inference.infer_shapes(model).graph
    values = (*known.value_info, *known.output)
    return {v.name for v in values if v.type.tensor_type.elem_type in _HALVES}


def _number(value: Array) -> Array:
    """Halves as float32; bfloat16 is a type that NumPy knows as no number."""
    kept = value.dtype.kind in "iub" or value.dtype == np.float64
    return value if kept else value.astype(np.float32)
