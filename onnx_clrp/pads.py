"""Padding made explicit, and a Pad in front of a convolution or a mean made part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnx_clrp.facts import Facts, Tensor
from onnx_clrp.steps import Step

_PASSING = frozenset({"Identity", "Dropout"})


def explicit_pads(step: Step, facts: Facts) -> Step:
    """`auto_pad` and `output_shape` as explicit pads, where the sizes they need are known."""
    attributes = dict(step.attributes)
    auto = attributes.pop("auto_pad", "NOTSET")
    shaped = attributes.pop("output_shape", None) is not None
    if auto == "NOTSET" and not shaped:
        return replace(step, attributes=attributes)
    if auto == "VALID" and not shaped:
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
    pooling = not step.linear
    if pooling and max(dilations) > 1:  # runtimes pad as if there were no holes
        return None
    for i in range(n):
        o, size = small[i - n], large[i - n]
        if o is None or size is None:
            return None
        total = (o - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - size
        if total < -1 or (total < 0 and pooling):  # runtimes crop, or fail
            return None
        halves = (total // 2, total - total // 2)
        begin.append(max(0, halves[0] if auto == "SAME_UPPER" else halves[1]))
        end.append(max(0, total) - begin[-1])
    return begin + end


def without_pads(step: Step, producers: Mapping[str, Step], facts: Facts) -> Step:
    """Pads with zeros in front of a convolution or a mean become part of its own pads.

    There x, l and h are 0, as in padding by attribute, so that z^β needs no bounds for it.
    """
    if step.op not in ("Conv", "AveragePool") or "auto_pad" in step.attributes:
        return step
    while (before := _before(step.inputs[0], producers, facts)) is not None:
        more = _spatial_zeros(before, facts) if before.op == "Pad" else None
        if more is None or not _rounded_alike(before.inputs[0], step.inputs[0], facts):
            break
        pads = [
            a + b for a, b in zip(step.attributes.get("pads") or [0] * len(more), more, strict=True)
        ]
        step = replace(
            step,
            inputs=(before.inputs[0], *step.inputs[1:]),
            attributes={**step.attributes, "pads": pads},
            unfolded=step.unfolded or step,
        )
    return step


def _rounded_alike(a: Tensor | None, b: Tensor | None, facts: Facts) -> bool:
    """May one be read in place of the other, as far as quantisation goes?"""
    return a is not None and b is not None and facts.reals.alike(a.name, b.name)


def _before(x: Tensor | None, producers: Mapping[str, Step], facts: Facts) -> Step | None:
    """The step that makes a tensor's values, past those that leave them as they are."""
    while x is not None and x.name in producers:
        made_by = producers[x.name]
        before = made_by.inputs[0]
        unchanged = before is not None and facts.reals.alike(before.name, x.name)
        if made_by.op not in _PASSING or not unchanged:
            return made_by
        x = before
    return None


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
