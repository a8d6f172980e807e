"""Reads quantised operators as their float counterparts, on a copy of the graph for analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_clrp.intervals import Interval
from onnx_clrp.quantised_operators import READERS
from onnx_clrp.reals import View

Array = NDArray[Any]

_KEPT = ("", "ai.onnx", "com.microsoft")
"""Domains in which operators of one name mean the same."""

_MOVING = frozenset(
    {
        *("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"),
        *("Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "Upsample"),
        *("MaxPool", "ReduceMax", "GlobalMaxPool"),
    }
)
"""Operators that hand integers on with the scale that they came with."""

_ARGUMENTS = {
    "Concat": slice(0, None),
    "Max": slice(0, None),
    "Min": slice(0, None),
    "Clip": slice(0, 3),
    "Pad": slice(0, 3, 2),
}
"""Operators with further operands that are integers on the same scale, and which those are."""

_SEVERING = frozenset({"Shape", "Size"})
ON_INTEGERS = "onnx_clrp.integers"
"""The domain, without rules, of what calculates with integers as integers."""

_FOUR_BITS = frozenset({"int4", "uint4", "int2", "uint2"})
_CASTS_FOUR_BITS = 21

_CHOOSING = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax", "Max", "Min"})


class _UnreadableError(Exception):
    """Nobody can say which real numbers these integers stand for."""


class Dequantiser:
    """One pass over the nodes of a graph, in the order in which they run.

    Args:
        constants: a function that gives the value of a constant by its name, else None.
        readers: how many nodes and outputs read each tensor.
        fixed: the tensors that are constants, or made of nothing else.
        types: ONNX's number of the type of each constant.
        opset: that of the graph.

    Attributes:
        views: how the numbers of each tensor are read that it has met.
        origins: the model's operator, by the first output of each node that became another.
        constants_made: float constants that the copy needs, by name: values, or just a shape.
        inputs_made: tensors that become inputs of the copy, with their types.
        intervals: what is known of those.
    """

    def __init__(
        self,
        constants: Callable[[str], Array | None],
        types: Mapping[str, int],
        readers: Mapping[str, int],
        fixed: AbstractSet[str],
        opset: int,
    ) -> None:
        self._constants, self._types, self._readers = constants, types, readers
        self._integers: dict[str, View] = {}
        self.views: dict[str, View] = {}
        self.origins: dict[str, str] = {}
        self.constants_made: dict[str, View] = {}
        self.inputs_made: dict[str, int] = {}
        self.intervals: dict[str, Interval] = {}
        self._made_by: dict[str, str] = {}
        self._unreadable: set[str] = set()
        self._fixed = fixed
        self._too_short = _FOUR_BITS if opset < _CASTS_FOUR_BITS else frozenset[str]()

    def read(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node as the nodes of the copy, which are often itself."""
        reader = READERS.get(node.op_type) if node.domain in _KEPT else None
        try:
            made = reader(self, node) if reader is not None else None
        except _UnreadableError:
            made = None
        if made is None:
            self._made_by.update((y, node.op_type) for y in node.output)
            return [self._hand_on(node)]
        self.origins[made[-1].output[0]] = ".".join(filter(None, (node.domain, node.op_type)))
        return made

    def _hand_on(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """What only moves integers about leaves their scale as it is."""
        # A runtime fuses weights with what lays them out, unless somebody else reads them there.
        laid_out = node.op_type in _MOVING and self._fixed >= {*node.output}
        if (laid_out or node.op_type in _CHOOSING) and any(self._is_read(x) for x in node.input):
            self.views.update((y, View(y, "float32", again=True)) for y in node.output)
        views = [self._integers.get(x) for x in node.input]
        view = next((v for v in views if v is not None), None)
        if view is None or node.op_type in _SEVERING:
            return node
        if not self._moves(node, view):
            return self._refused(node)
        for y in node.output:
            self.integers(y, view.scale, view.zero, view.axis, view.dtype)
        return self._over_reals(node, view)

    def _moves(self, node: onnx.NodeProto, view: View) -> bool:
        """Does the node hand on integers of one scale, as they are?"""
        named = [x for x in node.input[_ARGUMENTS.get(node.op_type, slice(0, 1))] if x]
        alike = (x in self._integers and self._alike(self._integers[x], view) for x in named)
        constant = (self._type(x) is not None for x in named)
        default_fill = node.op_type == "Pad" and len(named) == 1 and view.zero is not None
        return (
            self._is_single(view.scale)
            and self._is_single(view.zero)
            and (node.op_type in _MOVING or node.op_type in _ARGUMENTS)
            and all(a or c for a, c in zip(alike, constant, strict=True))
            and (not default_fill or self._is_zero(view.zero))
        )

    def _over_reals(self, node: onnx.NodeProto, view: View) -> onnx.NodeProto:
        """The node with what its constant operands stand for, on the scale of the others."""
        places = range(len(node.input))[_ARGUMENTS.get(node.op_type, slice(0))]
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for i in places:
            if node.input[i] and node.input[i] not in self._integers:
                made.input[i], _ = self.real(node.input[i], view.scale, view.zero)
        return made

    def _refused(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """What calculates with integers as integers is read as an operator that has no rule."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.domain = ON_INTEGERS
        self.origins[node.output[0]] = f"{node.op_type} of integers"
        self._unreadable.update(node.output)
        return made

    def _is_single(self, name: str | None) -> bool:
        """Is it one number for the whole tensor, wherever its elements are moved?"""
        value = None if name is None else self._constants(name)
        return value is None or value.size == 1

    def _is_zero(self, name: str | None) -> bool:
        value = None if name is None else self._constants(name)
        return value is not None and not value.any()

    def _is_read(self, x: str) -> bool:
        """Is it a float tensor whose numbers are read off another?"""
        return x in self.views and x not in self._integers

    def integers(
        self, name: str, scale: str | None, zero: str | None, axis: int = 1, dtype: str = ""
    ) -> None:
        """A tensor of the graph holds integers with this scale and zero point."""
        known = dtype or self._type(zero) or ""
        view = View(name, known, scale or None, zero or None, axis)
        self.views[name] = self._integers[name] = view

    def real(
        self, name: str, scale: str | None, zero: str | None, axis: int = 1
    ) -> tuple[str, list[onnx.NodeProto]]:
        """The tensor's numbers in the copy: its name there, and what has to be done for it."""
        if name in self._integers:
            return name, []
        if name in self._unreadable or self._type(name) in self._too_short:
            raise _UnreadableError
        key = "|".join(("real", name, scale or "", zero or "", str(axis)))
        dtype = self._type(name)
        if dtype is not None:
            self.views[key] = View(name, dtype, scale or None, zero or None, axis, constant=True)
            self.constants_made[key] = self.views[key]
            return key, []
        made = [] if key in self.views else self._affine(name, key, scale, zero, axis)
        return key, made

    def _affine(
        self, name: str, key: str, scale: str | None, zero: str | None, axis: int
    ) -> list[onnx.NodeProto]:
        """Integers that the graph did not quantise itself are a map of what they were before."""
        parts = [(f"{key}|cast", None, None), (f"{key}|sub", None, zero), (key, scale, zero)]
        for part, s, z in parts:
            self.views[part] = View(name, self._type(zero) or "", s or None, z or None, axis)
        to_float = helper.make_node(
            "Cast", [name], [parts[0][0]], f"{name}/Cast", to=TensorProto.FLOAT
        )
        nodes = [to_float]
        for op, operand, before, after in (
            ("Sub", zero, parts[0][0], parts[1][0]),
            ("Mul", scale, parts[1][0], key),
        ):
            inputs = [before]
            if operand:
                constant, kind = f"real|{operand}", self._type(operand)
                if kind is None:
                    raise _UnreadableError
                view = View(operand, kind, constant=True)
                self.views[constant] = self.constants_made[constant] = view
                inputs.append(constant)
            nodes.append(
                helper.make_node(op if operand else "Identity", inputs, [after], f"{name}/{op}")
            )
        return nodes

    def read_rounded(self, x: str, rounded: str) -> None:
        """Read a float tensor from the integers that it becomes, where nothing else reads it.

        A further reader would keep the runtime from fusing operator and rounding. A choice is
        made by comparing values, which must be those that were compared.
        """
        alone = self._readers.get(x, 0) == 1 and x not in self.views and self._type(x) is None
        if alone and self._made_by.get(x) not in _CHOOSING:
            self.views[x] = self.views[rounded]

    def _alike(self, a: View, b: View) -> bool:
        return a.axis == b.axis and all(
            p == q or self._same_value(p, q) for p, q in ((a.scale, b.scale), (a.zero, b.zero))
        )

    def _same_value(self, p: str | None, q: str | None) -> bool:
        a, b = (None if n is None else self._constants(n) for n in (p, q))
        return a is not None and b is not None and np.array_equal(a, b)

    def same_parameters(self, name: str, scale: str | None, zero: str | None, axis: int) -> bool:
        """Was the tensor quantised with these?"""
        view = self._integers[name]
        along = view.axis if self._is_single(scale) and self._is_single(zero) else axis
        return self._alike(view, View(name, view.dtype, scale or None, zero or None, along))

    def _type(self, name: str | None) -> str | None:
        """The type of a constant, None if it is none."""
        if not name or name not in self._types:
            return None
        return str(helper.tensor_dtype_to_np_dtype(self._types[name]).name)
