"""What a quantised or half-precision graph calculates, as maps of real numbers.

The model runs as it is, with every tensor as an output (`quantised_run`); an integer ``q`` with
scale ``s`` and zero point ``z`` counts as the real number ``(q − z)·s``. Each node becomes the
operator of `operators` that it stands for, so that QLinearConv is a Conv of real numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from reference.quantised_run import Array, Stored, rounded, tapped

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ENDS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_AFTER_LOGITS = ENDS | {
    "Cast",
    "DequantizeLinear",
    "Flatten",
    "Identity",
    "QuantizeLinear",
    "Reshape",
    "Squeeze",
}
_SEVERING = frozenset({"Shape", "Size"})


# --- Reading numbers --------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A tensor by its name, and how real numbers are read off it: ``(q − zero)·scale``."""

    name: str
    scale: Array | None = None
    zero: Array | None = None
    axis: int = 1

    def real(self, stored: Array) -> Array:
        """The real numbers, float64."""
        numbers = stored.astype(np.float64)
        if self.zero is not None:
            numbers = numbers - _along(self.zero, numbers.ndim, self.axis)
        return numbers if self.scale is None else numbers * self._factor(numbers.ndim)

    def _factor(self, rank: int) -> Array:
        return _along(np.ones(1) if self.scale is None else self.scale, rank, self.axis)


def _along(values: Array, rank: int, axis: int) -> Array:
    """One number, one for each place along an axis, or numbers that broadcast as they are."""
    if values.size == 1:
        return values.astype(np.float64).reshape(())
    if values.ndim > 1:
        return values.astype(np.float64)
    return values.astype(np.float64).reshape([-1 if i == axis % rank else 1 for i in range(rank)])


@dataclass(frozen=True)
class Operation:
    """One node of the model as an operator over real numbers.

    Attributes:
        op_type: the operator of `operators` that it stands for.
        operands: what it reads, None where an input is left out.
        outputs: the names of what it writes.
        attributes: those of `op_type`.
        source: the node that the model has.
        result: how its first output is read, if it rounds a sum to integers.
    """

    op_type: str
    operands: tuple[Operand | None, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    source: onnx.NodeProto = field(default_factory=onnx.NodeProto)
    result: Operand | None = None

    @property
    def linear(self) -> bool:
        """Is it a linear map with weights?"""
        return self.op_type in LINEAR

    def name(self, index: int) -> str:
        """The name of what it reads at an index."""
        operand = self.operands[index]
        if operand is None:
            raise ValueError(f"{self.op_type} has no input {index}")
        return operand.name

    def names(self) -> Iterator[str]:
        """The names of what it reads."""
        return (operand.name for operand in self.operands if operand is not None)


# --- What each operator stands for ------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads the inputs of one node, by index."""

    node: onnx.NodeProto
    stored: Stored

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return {a.name: helper.get_attribute_value(a) for a in self.node.attribute}

    def has(self, index: int) -> bool:
        """Is there an input at an index?"""
        return len(self.node.input) > index and bool(self.node.input[index])

    def plain(self, index: int) -> Operand | None:
        """The numbers as they are stored."""
        return Operand(self.node.input[index]) if self.has(index) else None

    def constant(self, index: int) -> Array | None:
        """The value at an index."""
        return self.stored[self.node.input[index]] if self.has(index) else None

    def scaled(self, x: int, scale: int | None, zero: int, axis: int = 1) -> Operand:
        """An input with its scale and zero point."""
        factor = None if scale is None else self.constant(scale)
        return Operand(self.node.input[x], factor, self.constant(zero), axis)

    def result(self, scale: int, zero: int) -> Operand | None:
        """How the first output is read; None where it holds plain numbers."""
        if not self.has(scale):
            return None
        return Operand(self.node.output[0], self.constant(scale), self.constant(zero))

    def operation(
        self,
        op_type: str,
        *operands: Operand | None,
        result: Operand | None = None,
        outputs: int | None = None,
        **attributes: Any,
    ) -> Operation:
        """The node as an operator with these operands and further attributes."""
        merged = {**self.attributes, **attributes}
        written = tuple(self.node.output)[:outputs]
        return Operation(op_type, operands, written, merged, self.node, result)


def _as_it_is(read: Reader) -> Operation:
    operands = [read.plain(i) for i in range(len(read.node.input))]
    return read.operation(read.node.op_type, *operands)


def _passed_on(read: Reader) -> Operation:
    """QuantizeLinear and DynamicQuantizeLinear: only the first output stands for the input."""
    return Operation("Identity", (read.plain(0),), (read.node.output[0],), {}, read.node)


def _dequantised(read: Reader) -> Operation:
    x = read.scaled(0, 1, 2, read.attributes.get("axis", 1))
    return Operation("Identity", (x,), tuple(read.node.output), {}, read.node)


def _activation(read: Reader) -> Operation:
    return Operation("Identity", (read.scaled(0, 1, 2),), tuple(read.node.output), {}, read.node)


def _qlinear_conv(read: Reader) -> Operation:
    return read.operation("Conv", read.scaled(0, 1, 2), read.scaled(3, 4, 5, axis=0))


def _qlinear_matmul(read: Reader) -> Operation:
    return read.operation("MatMul", read.scaled(0, 1, 2), read.scaled(3, 4, 5, axis=-1))


def _qgemm(read: Reader) -> Operation:
    axis = 0 if read.attributes.get("transB", 0) else 1
    return read.operation("Gemm", read.scaled(0, 1, 2), read.scaled(3, 4, 5, axis))


def _conv_integer(read: Reader) -> Operation:
    return read.operation("Conv", read.scaled(0, None, 2), read.scaled(1, None, 3, axis=0))


def _matmul_integer(read: Reader) -> Operation:
    return read.operation("MatMul", read.scaled(0, None, 2), read.scaled(1, None, 3, axis=-1))


def _binary(op_type: str) -> Callable[[Reader], Operation]:
    def translate(read: Reader) -> Operation:
        a, b = read.scaled(0, 1, 2), read.scaled(3, 4, 5)
        return read.operation(op_type, a, b, result=read.result(6, 7))

    return translate


def _pool(op_type: str) -> Callable[[Reader], Operation]:
    def translate(read: Reader) -> Operation:
        if read.attributes.get("channels_last", 0):
            raise NotImplementedError(f"{read.node.op_type} with the channels last")
        return read.operation(op_type, read.scaled(0, 1, 2), result=read.result(3, 4))

    return translate


def _qlinear_concat(read: Reader) -> Operation:
    parts = [read.scaled(i, i + 1, i + 2) for i in range(2, len(read.node.input), 3)]
    return read.operation("Concat", *parts)


_QUANTISED: dict[str, Callable[[Reader], Operation]] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantised,
    "DynamicQuantizeLinear": _passed_on,
    "MatMulInteger": _matmul_integer,
    "QGemm": _qgemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _pool("AveragePool"),
    "QLinearConcat": _qlinear_concat,
    "QLinearConv": _qlinear_conv,
    "QLinearGlobalAveragePool": _pool("GlobalAveragePool"),
    "QLinearLeakyRelu": _activation,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _activation,
    "QuantizeLinear": _passed_on,
}


# --- The graph --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """A model that has run once.

    Attributes:
        stored: every tensor, as the model holds it.
        operations: the nodes through which relevance goes from the logits to the input.
        carriers: the tensors that depend on the input.
        input: the name of the explained input.
        logits: the name of the class scores, which hold plain numbers.
    """

    stored: Stored
    operations: list[Operation]
    carriers: frozenset[str]
    input: str
    logits: str

    def data(self, operation: Operation) -> list[int]:
        """Which operands depend on the input."""
        return [
            i for i, x in enumerate(operation.operands) if x is not None and x.name in self.carriers
        ]

    def values(self, operation: Operation) -> list[Array | None]:
        """The operands' values: real numbers, and integers where they are shapes and the like."""
        return [self._value(operand) for operand in operation.operands]

    def _value(self, operand: Operand | None) -> Array | None:
        if operand is None:
            return None
        stored = self.stored[operand.name]
        is_number = operand.scale is not None or operand.zero is not None
        return operand.real(stored) if is_number else stored

    def maker(self, name: str) -> Operation | None:
        """The operation that writes a tensor, if it is on the way."""
        return next((op for op in self.operations if name in op.outputs), None)

    def readers(self, name: str) -> list[Operation]:
        """The operations that read a tensor."""
        return [operation for operation in self.operations if name in operation.names()]


def run(model: onnx.ModelProto, feeds: Stored, *, optimised: bool = False) -> Graph:
    """Run a model, with the runtime's optimisations or without, and read its nodes as operators."""
    stored = tapped(model, feeds, rounded(model, feeds) if optimised else {})
    nodes = [_QUANTISED.get(n.op_type, _as_it_is)(Reader(n, stored)) for n in model.graph.node]
    source = model.graph.input[0].name
    carriers = {source}
    for operation in nodes:
        if operation.op_type not in _SEVERING and not carriers.isdisjoint(operation.names()):
            carriers.update(operation.outputs)
    logits = logits_name(model)
    path = [*_leading_to(logits, nodes, carriers)][::-1]
    return Graph(stored, path, frozenset(carriers), source, logits)


def _leading_to(end: str, nodes: list[Operation], carriers: set[str]) -> Iterator[Operation]:
    """The operations through which relevance can reach the input, last first."""
    needed = {end}
    for operation in reversed(nodes):
        if not needed.isdisjoint(operation.outputs) and not carriers.isdisjoint(operation.outputs):
            yield operation
            needed.update(carriers.intersection(operation.names()))


def logits_name(model: onnx.ModelProto) -> str:
    """What the first output is made from: in front of a final Softmax, if there is one."""
    producers = {name: node for node in model.graph.node for name in node.output}
    name: str = model.graph.output[0].name
    found = name
    while name in producers and producers[name].op_type in _AFTER_LOGITS:
        node = producers[name]
        name = node.input[0]
        found = name if node.op_type in ENDS else found
    return found
