"""Writes nodes as calls, `t.Mul(x, s)`: each once, with fresh names and constants on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_clrp.facts import Facts
from onnx_clrp.facts import Tensor as Tensor
from onnx_clrp.intervals import Interval
from onnx_clrp.reals import Stored

Operand: TypeAlias = Tensor | Stored | float | int | Sequence[int] | NDArray[Any] | None

_ONNX = {np.float32: onnx.TensorProto.FLOAT, np.float64: onnx.TensorProto.DOUBLE}

_INTEGER_ARITHMETIC: dict[str, Callable[..., NDArray[np.int64]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
}


class Writer:
    """Every operator of ONNX is a method of its name: inputs first, attributes by keyword.

    Args:
        taken: names that are taken.
        facts: what is known of the graph's own tensors.
        prefix: what every new name begins with.
    """

    def __init__(self, taken: Iterable[str], facts: Facts, prefix: str = "relevance") -> None:
        self.facts = facts
        self.nodes: list[gs.Node] = []
        self.constants: list[gs.Constant] = []
        self._scope = prefix
        self._float: type[np.floating[Any]] = np.float32
        self._intervals: dict[str, Interval] = {}
        self._names = set(taken)
        self._numbers_of: dict[str, int] = {}
        self._written: dict[Any, list[Tensor]] = {}

    def __getattr__(self, op: str) -> Callable[..., Tensor]:
        if not op[:1].isupper():
            raise AttributeError(f"the tape has no method {op!r}")
        return lambda *inputs, **attributes: self.node(op, inputs, attributes)[0]

    def node(
        self, op: str, inputs: Sequence[Operand], attributes: dict[str, Any], outputs: int = 1
    ) -> list[Tensor]:
        """Write a node and return its outputs, or those of the same node written before."""
        operands = [self.operand(x) for x in inputs]
        folded = self._folded(op, operands, attributes)
        if folded is not None:
            return [self.constant(folded)]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        key = (op, tuple(x.name for x in operands), repr(sorted(attributes.items())), outputs)
        if key not in self._written:
            name = self.fresh(f"{self._scope}/{op}")
            made = [gs.Variable(self.fresh(f"{name}_output_{i}")) for i in range(outputs)]
            self.nodes.append(gs.Node(op, name, dict(attributes), operands, made))
            self._written[key] = made
        return self._written[key]

    def named(self, x: Tensor, name: str) -> Tensor:
        """The tensor under a name of its own, as an output of the graph."""
        output = gs.Variable(self.fresh(name))
        name = self.fresh(f"{self._scope}/Identity")
        node = gs.Node("Identity", name, {}, [self.operand(x)], [output])
        self.nodes.append(node)
        return output

    def operand(self, value: Operand) -> Tensor:
        """A tensor as it is; a number or array as a constant; None as an input left out."""
        if value is None:
            return gs.Variable.empty()
        if isinstance(value, Stored):
            return gs.Variable(value.name)
        if isinstance(value, gs.Tensor):
            return self._numbers(value)
        if isinstance(value, float):
            return self.constant(np.array(value, self._float))
        if isinstance(value, np.ndarray):
            return self.constant(value.astype(self._float) if value.dtype.kind == "f" else value)
        return self.constant(np.array(value, np.int64))

    def _numbers(self, x: Tensor) -> Tensor:
        """The tensor that holds the numbers which `x` stands for: mostly itself."""
        view = self.facts.reals.views.get(x.name)
        if view is None:
            return x
        if view.again:
            node = x.inputs[0]
            made = self.node(node.op, node.inputs, node.attrs, len(node.outputs))
            return made[[y.name for y in node.outputs].index(x.name)]
        shape = self.facts.shape(x)
        return view.write(self, None if shape is None else len(shape))

    def result(self, y: Tensor, again: Callable[[], Tensor]) -> Tensor:
        """An output, or the same calculated again where it is only read after rounding."""
        view = self.facts.reals.views.get(y.name)
        return y if view is None or view.source == y.name else again()

    def constant(self, values: NDArray[Any]) -> gs.Constant:
        """The constant of these values, one for all that ask for the same."""
        key = ("constant", values.dtype.str, values.shape, values.tobytes())
        if key not in self._written:
            made = gs.Constant(self.fresh("relevance/constant"), np.ascontiguousarray(values))
            made.values = made.values.reshape(values.shape)
            self.constants.append(made)
            self._written[key] = [made]
        return self._written[key][0]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes written inside begin with this one's."""
        before, self._scope = self._scope, f"{self._scope}/{name}"
        try:
            yield
        finally:
            self._scope = before

    @contextmanager
    def double(self) -> Iterator[None]:
        """Numbers and casts written inside are float64."""
        self._float = np.float64
        try:
            yield
        finally:
            self._float = np.float32

    @property
    def is_double(self) -> bool:
        """Are numbers and casts float64 now?"""
        return self._float is np.float64

    def interval(self, x: Tensor) -> Interval:
        """What the tensor's values are proven to lie between."""
        return self._intervals.get(x.name) or self.facts.interval(x)

    def number(self, x: Tensor) -> Tensor:
        """The tensor in the type that is calculated in: 0 and 1 for a truth value."""
        cast = self.Cast(x, to=_ONNX[self._float])
        self._intervals[cast.name] = self.interval(x)
        return cast

    def fresh(self, name: str) -> str:
        """The name, with a number behind it if it is taken."""
        number, fresh = self._numbers_of.get(name, 1), name
        while fresh in self._names:
            number += 1
            fresh = f"{name}_{number}"
        self._numbers_of[name] = number
        self._names.add(fresh)
        return fresh

    def _folded(
        self, op: str, operands: list[Tensor], attributes: dict[str, Any]
    ) -> NDArray[np.int64] | None:
        """Arithmetic on sizes that are all known is done at once."""
        if op not in _INTEGER_ARITHMETIC:
            return None
        if not all(isinstance(x, gs.Constant) and x.values.dtype == np.int64 for x in operands):
            return None
        return _INTEGER_ARITHMETIC[op](*(x.values for x in operands), **attributes)
