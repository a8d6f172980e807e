"""What is a matter of the whole graph: gates, signs of scales, bounds."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from reference import operators
from reference.quantised_graph import Graph, Operation
from reference.quantised_run import Array

Bounds: TypeAlias = tuple[Array, Array]

_PASSING = frozenset({"Cast", "Dropout", "Identity"})
_MOVING = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SCALING = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub"})
_SQUASHING = frozenset({"Clip", "HardSigmoid", "QLinearSigmoid", "Sigmoid", "Softmax", "Tanh"})


# --- Gates ------------------------------------------------------------------------------------


def signals(graph: Graph, operation: Operation, data: list[int]) -> list[int]:
    """Who takes the relevance of a product: the operand that is no gate, or both if none is."""
    names = [operation.name(i) for i in data]
    gates = [i for i, name in zip(data, names, strict=True) if is_gate(graph, name)]
    if len(gates) == len(data):
        sizes = {i: graph.stored[operation.name(i)].size for i in data}
        if len({*sizes.values()}) == 1:
            raise NotImplementedError(f"two gates of one size: {names}")
        gates = [min(sizes, key=lambda i: sizes[i])]
    return [i for i in data if i not in gates]


def is_gate(graph: Graph, name: str) -> bool:
    """Is it the value of a squashing function, perhaps scaled, rounded or laid out anew?"""
    maker = graph.maker(name)
    if maker is None:
        return False
    if maker.source.op_type in _SQUASHING:
        return True
    data = graph.data(maker)
    bypassing = maker.op_type in _PASSING | _MOVING | _SCALING and len(data) == 1
    return bypassing and is_gate(graph, maker.name(data[0]))


# --- Signs of the scales behind a linear map --------------------------------------------------


def weight_signs(graph: Graph, operation: Operation, at: int) -> Array:
    """The signs of the scales behind a linear map, in a shape to multiply its weight with.

    Ones are pulled back through all affine operators that follow, up to where the way forks; every
    scale that is met multiplies them by its sign.
    """
    chain = [*_affine_followers(graph, operation.outputs[0])]
    shape = graph.stored[(chain[-1] if chain else operation).outputs[0]].shape
    signs = np.ones(shape)
    for step in reversed(chain):
        signs = _pulled_back(graph, step, signs)
    weight = graph.stored[operation.name(1 - at)]
    axis = 1 if operation.op_type in ("Conv", "ConvTranspose", "Gemm") else signs.ndim - 1
    channels = np.moveaxis(signs, axis, 0).reshape(signs.shape[axis], -1)
    if (channels != channels[:, :1]).any():
        raise NotImplementedError(f"scales that vary within a channel behind {operation.outputs}")
    return channels[:, 0].reshape(_weight_layout(operation, at, weight.ndim))


def _weight_layout(operation: Operation, at: int, rank: int) -> list[int]:
    """Where the output channels are in a weight."""
    if operation.op_type == "Conv":
        axis = 0
    elif operation.op_type == "Gemm" and at == 0:
        axis = 0 if operation.attributes.get("transB", 0) else 1
    elif operation.op_type == "MatMul" and at == 0:
        axis = rank - 1
    else:
        raise NotImplementedError(f"the output channels of {operation.op_type}")
    return [-1 if i == axis else 1 for i in range(rank)]


def _affine_followers(graph: Graph, name: str) -> Iterator[Operation]:
    """The affine operators and movements behind a tensor, as long as each is its only reader."""
    while name != graph.logits:
        readers = graph.readers(name)
        if len(readers) != 1 or len(graph.data(readers[0])) != 1:
            return
        if readers[0].op_type not in _PASSING | _MOVING | _SCALING:
            return
        if readers[0].source.op_type in _SQUASHING | {"QLinearLeakyRelu"}:
            return
        yield readers[0]
        name = readers[0].outputs[0]


def _pulled_back(graph: Graph, step: Operation, signs: Array) -> Array:
    values, (at,) = graph.values(step), graph.data(step)
    if step.op_type in _PASSING | _MOVING:
        (moved, *_) = operators.redistribute(
            step.op_type, values, step.attributes, [signs], data=[0]
        )
        return np.asarray(moved)
    if step.op_type == "BatchNormalization":
        gamma = np.asarray(values[1], np.float64)
        return signs * np.sign(gamma).reshape([-1] + [1] * (signs.ndim - 2))
    if step.op_type == "Neg" or (step.op_type == "Sub" and at == 1):
        return -signs
    if step.op_type in ("Add", "Sub"):
        return signs
    if step.op_type == "Div" and at == 1:
        raise NotImplementedError("a constant over an activation")
    return signs * np.sign(np.asarray(values[1 - at], np.float64))


# --- Bounds -----------------------------------------------------------------------------------


def walked_bounds(
    graph: Graph, shape: tuple[int, ...], bounds: tuple[Any, Any]
) -> dict[str, Bounds]:
    """The bounds of every tensor that no linear map precedes, in the numbers that it holds.

    All operators in front of a linear map are monotone here, so that the values at the ends are
    the bounds, in one order or the other. They are walked place by place: padding with zeros is
    bounded by zeros.
    """
    low, high = (np.broadcast_to(np.asarray(b, np.float64), shape) for b in bounds)
    found = {graph.input: (low, high)}
    for operation in graph.operations:
        names = [operation.name(i) for i in graph.data(operation)]
        if operation.linear or any(name not in found for name in names):
            continue
        ends = [
            _at_end(graph, operation, {name: found[name][end] for name in names}) for end in (0, 1)
        ]
        found[operation.outputs[0]] = (np.minimum(*ends), np.maximum(*ends))
    return found


def _at_end(graph: Graph, operation: Operation, ends: dict[str, Array]) -> Array:
    """What an operation makes of the ends of its operands, in the numbers that it holds."""
    special = _ROUNDED.get(operation.source.op_type)
    if special is not None:
        (end,) = ends.values()
        return special(graph, operation, end)
    values = graph.values(operation)
    for i in graph.data(operation):
        operand = operation.operands[i]
        values[i] = None if operand is None else operand.real(ends[operand.name])
    if operation.result is not None:
        raise NotImplementedError(f"bounds behind {operation.source.op_type}")
    data = graph.data(operation)
    return operators.forward(operation.op_type, values, operation.attributes, data=data)[0]


def _quantised(graph: Graph, operation: Operation, x: Array) -> Array:
    """Rounded to the integers of the type, in the runtime's own float32."""
    scale, *zero = (graph.stored[name] for name in operation.source.input[1:])
    limits = np.iinfo(graph.stored[operation.outputs[0]].dtype)
    steps = np.rint(x.astype(np.float32) / scale.astype(np.float32))
    return np.clip(steps + (zero[0] if zero else 0), limits.min, limits.max).astype(np.float64)


def _dynamically_quantised(graph: Graph, operation: Operation, x: Array) -> Array:
    """The declared range itself: scale and zero point are no more than a way to write numbers."""
    _, scale, zero = (graph.stored[name] for name in operation.source.output)
    return x / scale.astype(np.float64) + zero


def _cast(graph: Graph, operation: Operation, x: Array) -> Array:
    """The same numbers: whether halves are rounded on the way is up to the runtime."""
    return x


_ROUNDED: dict[str, Callable[[Graph, Operation, Array], Array]] = {
    "Cast": _cast,
    "DynamicQuantizeLinear": _dynamically_quantised,
    "QuantizeLinear": _quantised,
}
