"""Grad-CAM: the channels of a layer, weighted by their gradients (Selvaraju et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_clrp.backprop import GRADIENT
from onnx_clrp.classifier import split_at_classifier
from onnx_clrp.endpoints import channel_axis
from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.layers import last_spatial
from onnx_clrp.seeds import one
from onnx_clrp.steps import Step
from onnx_clrp.walk import Watch, refuse_gaps, walk

if TYPE_CHECKING:
    from onnx_clrp.program import Program
    from onnx_clrp.seeds import Seeds
    from onnx_clrp.tape import Tape, Tensor


@dataclass(frozen=True)
class ClassActivation:
    """A class activation map at the size of the input.

    Attributes:
        map: `[k, *input.shape]` with a single channel.
    """

    t: Tape
    input: Tensor
    map: Tensor

    def shared(self) -> Tensor:
        """The map in equal parts on all channels of the input: `[k, *input.shape]`."""
        t, axis = self.t, channel_axis(self.input)
        channels = t.number(t.operand(t.sizes(self.input, [axis])))
        return t.Mul(t.Div(self.map, channels), t.Expand(1.0, t.Shape(self.input)))


def class_activation(
    t: Tape,
    program: Program,
    seeds: Seeds,
    layer: Tensor | None = None,
    watch: Watch | None = None,
) -> ClassActivation:
    """max(0, Σ_c w_c A_c), w_c the mean of ∂y_t/∂A_c over positions (eq. 1 and 2), resized.

    Raises:
        UsageError: there is no such layer, or it has no positions.
        UnsupportedError: a node behind the layer has no gradient.
    """
    a = layer if layer is not None else default_layer(program)
    if a is None:
        raise UsageError(
            "no convolution with positions in front of the classifier: name a layer for the CAM"
        )
    _refuse_flat(t, a, program.input)
    steps = _behind(a, program.plain_steps)
    gradient = walk(t, steps, seeds.sown(one), GRADIENT, watch).get(a.name)
    refuse_gaps(t, steps)
    if gradient is None:
        raise UsageError(f"the scores are not made from the layer {a.name!r}")
    axes = [*range(2 - t.rank(a), 0)]
    weights = t.ReduceMean(gradient, axes, keepdims=1)
    summed = t.ReduceSum(t.Mul(weights, a), [2], keepdims=1)
    return ClassActivation(t, program.input, _resized(t, t.Relu(summed), program.input))


def default_layer(program: Program) -> Tensor | None:
    """What the pooling or the classifier reads of the last convolution; None without one."""
    try:
        steps: Sequence[Step] = split_at_classifier(program.steps, program.logits)[1]
    except ModelError:  # a network without one still has a last convolution
        steps = program.steps
    return last_spatial(steps, program.facts)


def _refuse_flat(t: Tape, layer: Tensor, source: Tensor) -> None:
    if t.rank(layer) != t.rank(source) or t.rank(layer) < 3:
        raise UsageError(
            f"the layer {layer.name!r} is no map of the input: it has {t.rank(layer)} axes, the"
            f" input {t.rank(source)}"
        )


def _behind(layer: Tensor, steps: Sequence[Step]) -> list[Step]:
    """The steps that lie behind a layer."""
    reached, behind = {layer.name}, []
    for step in steps:
        if any(x.name in reached for x in step.receivers):
            reached.update(y.name for y in step.outputs)
            behind.append(step)
    return behind


def _resized(t: Tape, cam: Tensor, source: Tensor) -> Tensor:
    """`[k, N, 1, …]` at the sizes of the input, by linear interpolation between pixel centres."""
    axis, rank = channel_axis(source), t.rank(source)
    size = [t.sizes(source, [i]) for i in range(1, rank) if i != axis]
    planes = t.Reshape(cam, t.Concat([-1, 1], t.Shape(cam, start=3), axis=0))
    if rank == 3:  # runtimes resize planes and volumes
        planes, size = t.Unsqueeze(planes, [2]), [t.operand([1]), *size]
    batch = t.Shape(planes, end=2)
    resized = t.Resize(
        *(planes, None, None, t.Concat(batch, *size, axis=0)),
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    singles = [[1] if i == axis else t.sizes(source, [i]) for i in range(1, rank)]
    return t.Reshape(resized, t.Concat(t.Shape(cam, end=2), *singles, axis=0))
