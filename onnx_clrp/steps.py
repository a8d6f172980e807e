"""A step: a node on the way from the input to the logits, as the rules see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_clrp.facts import Facts, Tensor, reads
from onnx_clrp.rules import find_rule


@dataclass(frozen=True)
class Tail:
    """What is affine by constants right behind a linear map, as a BatchNorm: y ↦ factor y + shift.

    Attributes:
        factor, shift: one number, or one for each channel of the map's output.
        signs: those of scales further behind; None if all are positive.
    """

    factor: NDArray[np.float32]
    shift: NDArray[np.float32]
    signs: NDArray[np.float32] | None = None

    @property
    def adds_only(self) -> bool:
        """Is it no more than a bias?"""
        return bool((self.factor == 1).all())


@dataclass(frozen=True)
class Step:
    """A node on the way from the input to the logits, as the rules see it.

    Attributes:
        op, domain, name: of the node.
        inputs: its inputs, None for one left out; a Pad in front may have been folded away.
        outputs: its outputs.
        attributes: ONNX's, with `auto_pad` resolved.
        signs: of the per-channel scales that follow a linear map and belong to it, if any is not
            positive.
        scales: further ones that are single numbers and known only at run time.
        tail: what is affine right behind a linear map; None if nothing is.
        channel_axis: that of the output of a linear map.
        gate: which operand of a product only scales the other, and takes no relevance.
        shapes_gate: is it a part of a gate written out, and on no other way?
        doubt: why relevance cannot pass after all; None if it can.
        other_type: the type that it calculates in, if that is not float32.
        origin: what the model has in this place, where that is another operator.
        unfolded: the step with its own pads, where a Pad in front was folded away.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    signs: NDArray[np.float32] | None = None
    scales: tuple[Tensor, ...] = ()
    tail: Tail | None = None
    channel_axis: int = 1
    gate: int | None = None
    shapes_gate: bool = False
    doubt: str | None = None
    other_type: str | None = None
    origin: str | None = None
    unfolded: Step | None = None

    @property
    def linear(self) -> bool:
        """Is it a linear map with weights?"""
        rule = find_rule(self.op, self.domain)
        return rule is not None and rule.linear

    @property
    def operator(self) -> str:
        """The operator that the model has here, with its domain if that is not ONNX's."""
        return self.origin or ".".join(filter(None, (self.domain, self.op)))

    @property
    def receivers(self) -> tuple[Tensor, ...]:
        """The inputs that may take relevance."""
        return tuple(x for i, x in enumerate(self.inputs) if x is not None and i != self.gate)

    def __str__(self) -> str:
        """The name that an error or a table calls it by."""
        return self.name or f"(unnamed, writes {self.outputs[0].name})"


def step_of(node: gs.Node, facts: Facts) -> Step:
    """The node as a step; control flow also has for inputs what it takes from outside."""
    flows = any(isinstance(value, gs.Graph) for value in node.attrs.values())
    return Step(
        op=node.op,
        domain="" if node.domain in (None, "ai.onnx") else node.domain,
        name=node.name,
        inputs=tuple(x if x.name else None for x in (node.inputs, [*reads(node)])[flows]),
        outputs=tuple(node.outputs),
        attributes=dict(node.attrs),
        other_type=_other_type(node.outputs[0]) if node.outputs else None,
        origin=facts.reals.origins.get(node.outputs[0].name) if node.outputs else None,
    )


def between(steps: Iterable[Step], ends: set[str], facts: Facts) -> list[Step]:
    """The steps through which relevance can go from the ends back to the input."""
    needed, path = set(ends), []
    for step in reversed([*steps]):
        if any(y.name in needed and facts.carries(y) for y in step.outputs):
            path.append(step)
            needed.update(x.name for x in step.receivers if facts.carries(x))
    return path[::-1]


Readers = Mapping[str, Sequence[Step]]
"""The steps that hand relevance on to a tensor, by its name."""


def readers(steps: Iterable[Step]) -> Readers:
    """Those among these steps."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        for name in dict.fromkeys(x.name for x in step.receivers):
            found.setdefault(name, []).append(step)
    return found


def chain(y: Tensor, reading: Readers, ends: set[str]) -> Iterator[Step]:
    """The steps behind `y`, as long as each is the only one that reads the tensor before it."""
    while y.name not in ends:
        behind = reading.get(y.name, ())
        if len(behind) != 1:
            return
        yield behind[0]
        y = behind[0].outputs[0]


def _other_type(y: Tensor) -> str | None:
    """The tensor's type, if it is known and is not float32."""
    if not y.dtype:  # unknown, or no tensor
        return None
    dtype = y.dtype if not isinstance(y.dtype, int) else tensor_dtype_to_np_dtype(y.dtype)
    return None if np.dtype(dtype) == np.float32 else np.dtype(dtype).name
