"""Which tensors of a float16 forward pass must be looked at to know that none has overflowed.

Most overflows tell of themselves: an infinity makes infinities or NaN of all that follows, down to
the logits. But a ReLU makes 0 of -inf, 1/inf is 0, and kernels for float16 may make 0 of NaN; then
the answers are finite and wrong. Where an operator can do that, the explainer has an output that
tells. Not everywhere, since what is read directly by an operator with a limit comes to no harm: a
ReLU makes 0 of -70000 too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_clrp.external import array_of
from onnx_clrp.model import all_inputs, constant_tensors, element_types, is_standard

_SEVERING = frozenset({"Shape", "Size"})

_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sign", "Atan"})
"""Operators whose output is finite, and what it should be, where an input has just overflowed."""

_MOVING = frozenset(
    {
        *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"),
        *("Concat", "Dropout", "Split", "Pad", "Tile", "DepthToSpace", "SpaceToDepth"),
        *("Neg", "Abs"),
    }
)
"""Operators that hand on every value, or its magnitude."""

_LIMITED = frozenset(
    {
        *_BOUNDED,
        *_MOVING,
        *("Relu", "ThresholdedRelu", "Clip", "Elu", "Celu", "Selu", "Softplus", "Exp"),
        *("Max", "Min", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"),
        *("Slice", "Gather", "Where", "Softmax"),
    }
)
"""Operators that make of an infinity what they make of what it stands for, to within float16.

That may be an infinity again. Softmax makes 0 of -inf, as masks are made, and NaN of inf.
"""

_MODEST = _LIMITED - {"Selu", "Exp"} | {"Log", "ConstantOfShape"}
"""Operators that make no infinity of finite numbers which float32 would not hold either, such as a
mask or padding of -inf, or the logarithm of 0."""

_INFECTED = frozenset(
    {
        *_MOVING,
        *("Add", "Sub", "Mul", "Sum", "Mean", "Sqrt", "Log", "LeakyRelu", "PRelu", "LogSoftmax"),
        *("Gelu", "HardSwish", "MatMul", "Gemm", "GlobalAveragePool", "ReduceMean", "ReduceSum"),
        *("ReduceSumSquare", "ReduceL1", "ReduceL2", "BatchNormalization", "LayerNormalization"),
        *("InstanceNormalization", "GroupNormalization", "Conv", "ConvTranspose", "Div", "Pow"),
    }
)
"""Operators of which some output is not finite where any value of their input is not.

Of products this needs that inf times 0 is NaN. Of a quotient it holds for the dividend, of a power
for the base under a positive exponent, of windows and pads where they pass no value by.
"""


def watched(explainer: onnx.ModelProto, logits: str) -> list[str]:
    """The float16 tensors on the way to the logits of which the logits would not tell.

    Args:
        explainer: the model with all that reads its tensors.
        logits: the name of the logits, which are looked at anyway.
    """
    return Watch(explainer, logits).names


class Watch:
    """Goes backwards through a graph and finds the tensors that must be watched.

    Args:
        explainer, logits: as above.

    Attributes:
        names: the tensors, in the order of the graph.
    """

    def __init__(self, explainer: onnx.ModelProto, logits: str) -> None:
        graph = explainer.graph
        self._kinds = element_types(explainer)
        self._values = constant_tensors(graph)
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._varying = {x.name for x in graph.input}
        sized = {*self._varying}  # and what depends on its size alone, as a number of pixels does
        for node in graph.node:
            if node.op_type == "Cast" and node.input[0] in self._values:
                self._values[node.output[0]] = self._values[node.input[0]]
            made = [y for y in node.output if y]
            if any(x in self._varying for x in all_inputs(node)) and node.op_type not in _SEVERING:
                self._varying.update(made)
            if any(x in sized for x in all_inputs(node)):
                sized.update(made)
            for x in dict.fromkeys(all_inputs(node)):
                self._readers[x].append(node)
        self._harmful = {y.name for y in graph.output}
        self._telling = {logits}
        needed, self.names = {logits}, list[str]()
        for node in reversed(graph.node):
            forward = not needed.isdisjoint(node.output)
            needed.update(all_inputs(node) if forward else ())
            for y in filter(None, node.output):
                self._look_at(y, watch=forward and y in sized and self._overflows(node))
        self.names.reverse()

    def _look_at(self, y: str, *, watch: bool) -> None:
        """Would an infinity in it do harm, and would it be told of?"""
        readers = self._readers[y]
        if any(self._harms(node) for node in readers):
            self._harmful.add(y)
        if any(self._tells(node, y) for node in readers):
            self._telling.add(y)
        unnoticed = y in self._harmful and y not in self._telling
        if watch and unnoticed and self._kinds.get(y) == TensorProto.FLOAT16:
            self._telling.add(y)
            self.names.append(y)

    def _overflows(self, node: onnx.NodeProto) -> bool:
        """May it make an infinity of finite numbers, and of none that are meant to be infinite?"""
        if self._is_bounded(node):
            return False
        if node.op_type == "Cast":
            return self._kinds.get(node.input[0]) != TensorProto.FLOAT16
        masks = [x for x in node.input if x not in self._varying and not self._limits(x)]
        return not is_standard(node) or not (
            node.op_type in _MODEST or (node.op_type in ("Add", "Sub") and masks)
        )

    def _harms(self, node: onnx.NodeProto) -> bool:
        """Does the node make something wrong of an infinity, or one that reads its output?"""
        if node.op_type in _SEVERING or self._is_bounded(node):
            return False
        if not is_standard(node) or node.op_type not in _LIMITED or _makes_integers(node):
            return True
        return not self._harmful.isdisjoint(node.output)

    def _tells(self, node: onnx.NodeProto, x: str) -> bool:
        """Does an infinity in this input come through to where it is noticed?"""
        if not is_standard(node) or node.op_type not in _INFECTED or _makes_integers(node):
            return False
        if node.op_type in ("Div", "Pow") and (x in node.input[1:] or not self._grows(node)):
            return False
        if self._passes_by(node):
            return False
        made = node.output if node.op_type == "Split" else node.output[:1]
        return self._telling.issuperset(made)

    def _is_bounded(self, node: onnx.NodeProto) -> bool:
        """Is its output finite, and what it should be, where an input has just overflowed?"""
        if node.op_type == "Clip":
            return len(node.input) == 3 and all(map(self._limits, node.input[1:]))
        return is_standard(node) and node.op_type in _BOUNDED

    def _limits(self, x: str) -> bool:
        """Is it a constant and finite?"""
        return x in self._values and bool(np.isfinite(array_of(self._values[x])).all())

    def _grows(self, node: onnx.NodeProto) -> bool:
        """Is it no power, or one with an exponent above zero?"""
        if node.op_type != "Pow":
            return True
        exponent = self._values.get(node.input[1])
        return exponent is not None and bool((array_of(exponent) > 0).all())

    def _passes_by(self, node: onnx.NodeProto) -> bool:
        """May there be values that no window covers, or that are cut off?"""
        given = dict(_attributes(node))
        pads = given.get("pads") or [0]
        if node.op_type == "Pad":
            pads = array_of(self._values[node.input[1]]) if node.input[1] in self._values else [-1]
        if node.op_type == "ConvTranspose":
            return any(pads) or given.get("auto_pad", b"NOTSET") != b"NOTSET"
        steps = [*(given.get("strides") or ()), *(given.get("dilations") or ())]
        return any(step != 1 for step in steps) or min(pads) < 0


def _attributes(node: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
    return ((a.name, helper.get_attribute_value(a)) for a in node.attribute)


def _makes_integers(node: onnx.NodeProto) -> bool:
    floats = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
    return node.op_type == "Cast" and dict(_attributes(node))["to"] not in floats
