"""Linear maps with weights: z-plus, and z-beta for the first one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional

from .network_affine import scale_behind
from .network_trace import Trace

LinearMap: TypeAlias = Callable[[Tensor], Tensor]

_CONVOLUTIONS = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
_TRANSPOSED = {
    nn.ConvTranspose1d: functional.conv_transpose1d,
    nn.ConvTranspose2d: functional.conv_transpose2d,
    nn.ConvTranspose3d: functional.conv_transpose3d,
}
LINEAR_MODULES = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


@dataclass(frozen=True)
class Mode:
    """How a pass is carried down.

    rules: the rule set. opposite: whether it is the dual of CLRP2 on its way from the logits
    to the input of the classifier layer: weights negated, average pools even.
    """

    rules: str
    opposite: bool = False


@dataclass(frozen=True)
class Handed:
    """What one operator hands on: to whom how much, and what it absorbed per sample, [N]."""

    shares: list[tuple[Node, Tensor]]
    absorbed: Tensor


def divide(relevance: Tensor, denominator: Tensor) -> Tensor:
    """Relevance / denominator, with x/0 = 0."""
    empty = denominator == 0
    return torch.where(empty, 0.0, relevance / torch.where(empty, 1.0, denominator))


def per_sample(relevance: Tensor) -> Tensor:
    """Sum of each sample: [N, ...] to [N]."""
    return relevance.flatten(1).sum(1)


def distribute(
    parts: Sequence[tuple[Tensor, LinearMap]], relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """Distribute R in proportion to contributions: Z = sum M p, R_x = sum p * M'(R / Z).

    parts: pairs of an input part p [N, ...] and a linear map M; relevance: R, of the shape
    of M p. M' is the transposed map, taken from autograd. Returns R_x [N, ...] and what was
    absorbed where Z = 0, [N].
    """
    leaves = [part.detach().clone().requires_grad_() for part, _ in parts]
    with torch.enable_grad():
        images = [image(leaf) for leaf, (_, image) in zip(leaves, parts, strict=True)]
    denominator = sum(image.detach() for image in images)
    ratio = divide(relevance, denominator)
    pulled = torch.autograd.grad(images, leaves, [ratio] * len(images))
    received = sum(part * pull for (part, _), pull in zip(parts, pulled, strict=True))
    return received, per_sample(torch.where(denominator == 0, relevance, 0.0))


def linear(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Convolution, plain or transposed, or fully connected layer; its bias takes no relevance.

    z-beta for a first one with finite bounds l <= x <= h: Z = W+ (x - l) + W- (x - h).
    z-plus for every other: Z = W+ x+ + W- x-.
    """
    source = trace.source(node)
    x = trace.values[source]
    weight = folded_weight(trace, node)
    weight = -weight if mode.opposite else weight
    layer = trace.module(node)

    def positive(part: Tensor) -> Tensor:
        return _apply(layer, weight.clamp(min=0), part)

    def negative(part: Tensor) -> Tensor:
        return _apply(layer, weight.clamp(max=0), part)

    low, high = trace.bounds.get(source, (None, None))
    if low is not None and bool(low.isfinite().all()) and bool(high.isfinite().all()):
        parts = [(x - low, positive), (x - high, negative)]
    else:
        parts = [(x.clamp(min=0), positive)]
        if bool((x < 0).any()):
            parts.append((x.clamp(max=0), negative))
    received, absorbed = distribute(parts, relevance)
    return Handed([(source, received)], absorbed)


def _apply(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Run a layer's linear map on x with another weight and without its bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    if layer.padding_mode != "zeros":
        raise NotImplementedError(f"{layer}: padding mode {layer.padding_mode!r}")
    if type(layer) in _CONVOLUTIONS:
        convolve = _CONVOLUTIONS[type(layer)]
        return convolve(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    spread = _TRANSPOSED[type(layer)]
    options = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    return spread(x, weight, None, *options)


def folded_weight(trace: Trace, node: Node) -> Tensor:
    """Weight of a linear map, times the scales per output channel directly behind it."""
    layer = trace.module(node)
    scale = scale_behind(trace, node, -1 if isinstance(layer, nn.Linear) else 1)
    if bool((scale == 1).all()):
        return layer.weight
    if type(layer) not in _TRANSPOSED:
        return layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    # Weight is [in, out / groups, ...]; the inputs of a group are next to each other.
    per_group = scale.view(layer.groups, -1)
    rows = per_group.repeat_interleave(layer.in_channels // layer.groups, 0)
    return layer.weight * rows.view(*rows.shape, *[1] * (layer.weight.dim() - 2))
