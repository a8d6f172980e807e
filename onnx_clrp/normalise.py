"""Rewrite the nodes between input and logits to what the rules know: pads and signs folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_clrp.facts import Facts, Shape, Tensor
from onnx_clrp.rules import find_rule

_PASSING = frozenset({"Identity", "Dropout"})
_MOVING = _PASSING | {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_UNKNOWN_SIGN = "the scale {} behind it is known only at run time, and so is its sign"


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
        doubt: why relevance cannot pass after all; None if it can.
        other_type: the type that it calculates in, if that is not float32.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    signs: NDArray[np.float32] | None = None
    doubt: str | None = None
    other_type: str | None = None

    @property
    def linear(self) -> bool:
        """Is it a linear map with weights?"""
        rule = find_rule(self.op, self.domain)
        return rule is not None and rule.linear

    def __str__(self) -> str:
        """The name that an error or a table calls it by."""
        return self.name or f"(unnamed, writes {self.outputs[0].name})"


def normalised_steps(graph: gs.Graph, facts: Facts, ends: Sequence[Tensor]) -> list[Step]:
    """The nodes between the explained input and the ends, in the order in which they run."""
    names = {y.name for y in ends}
    made = _between(map(_step, graph.nodes), names, facts)
    made = [_explicit_pads(step, facts) for step in made]
    producers = {y.name: step for step in made for y in step.outputs}
    made = _between([_without_pads(step, producers, facts) for step in made], names, facts)
    return [_with_signs(step, made, facts, names) for step in made]


def _between(all_steps: Iterable[Step], ends: set[str], facts: Facts) -> list[Step]:
    """The steps through which relevance can go from the ends back to the input."""
    needed, path = set(ends), []
    for step in reversed([*all_steps]):
        if any(y.name in needed and facts.carries(y) for y in step.outputs):
            path.append(step)
            needed.update(x.name for x in step.inputs if x is not None and facts.carries(x))
    return path[::-1]


def _step(node: gs.Node) -> Step:
    return Step(
        op=node.op,
        domain="" if node.domain in (None, "ai.onnx") else node.domain,
        name=node.name,
        inputs=tuple(x if x.name else None for x in node.inputs),
        outputs=tuple(node.outputs),
        attributes=dict(node.attrs),
        other_type=_other_type(node.outputs[0]) if node.outputs else None,
    )


def _other_type(y: Tensor) -> str | None:
    """The tensor's type, if it is known and is not float32."""
    if y.dtype is None:
        return None
    dtype = y.dtype if not isinstance(y.dtype, int) else tensor_dtype_to_np_dtype(y.dtype)
    return None if np.dtype(dtype) == np.float32 else np.dtype(dtype).name


# -- pads --------------------------------------------------------------------------------------


def _explicit_pads(step: Step, facts: Facts) -> Step:
    """`auto_pad` and `output_shape` as explicit pads, where the sizes they need are known."""
    attributes = dict(step.attributes)
    auto = attributes.pop("auto_pad", "NOTSET")
    shaped = attributes.pop("output_shape", None) is not None
    if auto == "NOTSET" and not shaped:
        return replace(step, attributes=attributes)
    if auto == "VALID":
        attributes.pop("pads", None)
        return replace(step, attributes=attributes)
    if attributes.get("ceil_mode"):  # SAME with it means different things to different runtimes
        return step
    pads = _same_pads(step, facts, auto)
    return step if pads is None else replace(step, attributes={**attributes, "pads": pads})


def _same_pads(step: Step, facts: Facts, auto: str) -> list[int] | None:
    """The pads that bring the input's size to the output's; None if a size is not known."""
    x, y = step.inputs[0], step.outputs[0]
    kernel = step.attributes.get("kernel_shape")
    if kernel is None and step.linear and step.inputs[1] is not None:
        kernel = (facts.shape(step.inputs[1]) or ())[2:]
    small, large = (facts.shape(y), facts.shape(x)) if x is not None else (None, None)
    if not kernel or small is None or large is None:
        return None
    if step.op == "ConvTranspose":
        small, large = large, small
    n = len(kernel)
    strides, dilations, extra = (
        step.attributes.get(name) or [default] * n
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    begin, end = [], []
    for i in range(n):
        o, size = small[i - n], large[i - n]
        if o is None or size is None:
            return None
        total = (o - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - size
        halves = (total // 2, total - total // 2)
        begin.append(max(0, halves[0] if auto == "SAME_UPPER" else halves[1]))
        end.append(max(0, total) - begin[-1])
    return begin + end


def _without_pads(step: Step, producers: dict[str, Step], facts: Facts) -> Step:
    """Pads with zeros in front of a convolution or a mean become part of its own pads.

    There x, l and h are 0, as in padding by attribute, so that z^β needs no bounds for it.
    """
    if step.op not in ("Conv", "AveragePool") or "auto_pad" in step.attributes:
        return step
    while (x := step.inputs[0]) is not None and x.name in producers:
        before = producers[x.name]
        if before.op in _PASSING:
            step = replace(step, inputs=(before.inputs[0], *step.inputs[1:]))
            continue
        more = _spatial_zeros(before, facts) if before.op == "Pad" else None
        if more is None:
            break
        pads = [
            a + b for a, b in zip(step.attributes.get("pads") or [0] * len(more), more, strict=True)
        ]
        step = replace(
            step,
            inputs=(before.inputs[0], *step.inputs[1:]),
            attributes={**step.attributes, "pads": pads},
        )
    return step


def _spatial_zeros(pad: Step, facts: Facts) -> list[int] | None:
    """The widths of a Pad as pads of a window; None if it does more than add zeros in space."""
    widths = _zero_padding(pad, facts)
    if widths is None:
        return None
    n = len(widths) // 2
    if any(widths[i] for i in (0, 1, n, n + 1)):
        return None
    return [*widths[2:n], *widths[n + 2 :]]


def _zero_padding(pad: Step, facts: Facts) -> list[int] | None:
    """The widths of a Pad that adds zeros, for all axes; None if it does anything else."""
    pads, value, axes = (*pad.inputs[1:], None, None, None)[:3]
    widths, fill, along = (facts.value(x) for x in (pads, value, axes))
    shape = facts.shape(pad.outputs[0])
    if widths is None or shape is None or pad.attributes.get("mode", "constant") != "constant":
        return None
    if (fill is not None and fill.any()) or (value is not None and fill is None):
        return None
    if axes is not None and along is None:
        return None
    rank = len(shape)
    places = range(rank) if along is None else [int(a) % rank for a in np.atleast_1d(along)]
    full = np.zeros((2, rank), np.int64)
    full[:, [*places]] = widths.reshape(2, -1)
    return None if (full < 0).any() else [int(w) for w in full.reshape(-1)]


# -- signs -------------------------------------------------------------------------------------


def _with_signs(step: Step, all_steps: list[Step], facts: Facts, ends: set[str]) -> Step:
    """A linear map with the signs of the scales that follow it, up to where the chain forks."""
    if not step.linear:
        return step
    signs: NDArray[np.float32] = np.ones(1, np.float32)
    first = _channel_axis(step, facts)
    axis: int | None = first
    y = step.outputs[0]
    for after in _chain(y, all_steps, ends):
        if after.op in _MOVING:
            axis = _moved(after, axis, facts)
            continue
        scale = _scale(after, axis, facts)
        if isinstance(scale, str):
            return replace(step, doubt=scale)
        if scale is None:
            break
        signs = signs * scale
    if (signs > 0).all():
        return step
    shape = facts.shape(y)
    channels = shape[first] if shape is not None else None
    return replace(step, signs=np.broadcast_to(signs, channels or signs.shape).copy())


def _channel_axis(step: Step, facts: Facts) -> int:
    if step.op != "MatMul":
        return 1
    rank = len(facts.shape(step.outputs[0]) or ())
    return rank - 1 if facts.carries(step.inputs[0]) else rank - 2


def _chain(y: Tensor, all_steps: list[Step], ends: set[str]) -> Iterator[Step]:
    """The steps behind `y`, as long as each is the only one that reads the tensor before it."""
    while y.name not in ends:
        readers = [s for s in all_steps if y.name in [x.name for x in s.inputs if x is not None]]
        if len(readers) != 1:
            return
        yield readers[0]
        y = readers[0].outputs[0]


def _scale(step: Step, axis: int | None, facts: Facts) -> NDArray[np.float32] | str | None:
    """The signs, one or one a channel, that an affine step multiplies its input with.

    None where there is nothing to fold; a text where there is, but the sign is not known.
    """
    one = np.ones(1, np.float32)
    carriers = [facts.carries(x) for x in step.inputs]
    if step.domain or sum(carriers) != 1:
        return None
    if step.op == "BatchNormalization":
        gamma = facts.value(step.inputs[1])
        return _UNKNOWN_SIGN.format(step) if gamma is None else _per_channel(gamma, axis, axis == 1)
    if step.op == "Neg" or (step.op == "Sub" and carriers[1]):
        return -one
    if step.op in ("Add", "Sub"):
        return one
    if step.op == "Mul" or (step.op == "Div" and carriers[0]):
        return _constant_signs(step, step.inputs[carriers.index(False)], axis, facts)
    return None


def _constant_signs(
    step: Step, constant: Tensor | None, axis: int | None, facts: Facts
) -> NDArray[np.float32] | str | None:
    value, shape = facts.value(constant), facts.shape(step.outputs[0])
    if value is None:
        return _UNKNOWN_SIGN.format(step)
    if shape is None or value.ndim > len(shape):
        return _per_channel(value, axis, False)
    laid = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    return _per_channel(value, axis, axis is not None and laid.size == laid.shape[axis])


def _per_channel(
    value: NDArray[np.generic], axis: int | None, laid: bool
) -> NDArray[np.float32] | None:
    """The signs of a scale: one if all are the same, else one a channel if it is laid so."""
    signs = np.sign(np.asarray(value, np.float32)).reshape(-1)
    if signs.size and (signs == signs[0]).all():
        return signs[:1]
    return signs if laid else None


def _moved(step: Step, axis: int | None, facts: Facts) -> int | None:
    """Where the channel axis stands behind a step that only moves values; None if it is lost."""
    if axis is None or step.op in _PASSING:
        return axis
    x, y = step.inputs[0], step.outputs[0]
    before, after = facts.shape(x) if x is not None else None, facts.shape(y)
    if before is None or after is None:
        return None
    if step.op == "Transpose":
        perm = step.attributes.get("perm") or [*range(len(before))][::-1]
        return [*perm].index(axis)
    if _same(before[: axis + 1], after[: axis + 1]) and _same(before[1:], after[1:], product=True):
        return axis
    if None not in before[axis:] and before[axis:] == after[axis - len(before) :]:
        return axis - len(before) + len(after)
    return None


def _same(before: Shape, after: Shape, *, product: bool = False) -> bool:
    """Are the sizes the same, or do they hold as many elements; an open batch may lead both."""
    if product:
        known = None not in before and None not in after
        return known and prod(filter(None, before)) == prod(filter(None, after))
    return before == after and None not in before[1:]
