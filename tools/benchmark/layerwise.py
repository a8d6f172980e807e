"""LRP and CLRP in plain PyTorch, layer by layer and in two passes, as code of papers does it.

For networks that are a chain of layers with activations of no sign but at the pixels: AlexNet and
VGG. The positive parts of weights are made beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

METHODS = ("lrp", "clrp1", "clrp2")

_LINEAR = (nn.Conv2d, nn.Linear)
_MEANS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_MOVES = (nn.MaxPool2d, nn.Flatten)

Layer = Callable[[Tensor], Tensor]


def applies(net: nn.Module) -> bool:
    """Is the network a chain of layers?"""
    return isinstance(net, (models.AlexNet, models.VGG))


class Explainer:
    """A chain of layers with what each needs on the way back.

    Args:
        net: AlexNet or a VGG.
        low, high: the lowest and the highest input, `[1, 3, 1, 1]`.
        method: one of `METHODS`.
    """

    def __init__(self, net: nn.Module, low: Tensor, high: Tensor, method: str) -> None:
        self._low, self._high, self._method = low, high, method
        chain = [*net.features, net.avgpool, nn.Flatten(), *net.classifier]
        self._layers = [layer for layer in chain if not isinstance(layer, nn.Dropout)]
        linear = [layer for layer in self._layers if isinstance(layer, _LINEAR)]
        self._first = linear[0]
        self._positive = {layer: _part(layer, 1) for layer in linear}
        self._negative = {layer: _part(layer, -1) for layer in (linear[0], linear[-1])}

    def explain(self, pictures: Tensor, targets: Tensor, *, signed: bool = False) -> Tensor:
        """The maps `[N, k, 3, H, W]` of classes `[N, k]`."""
        inputs = []
        x = pictures
        with torch.no_grad():
            for layer in self._layers:
                inputs.append(x)
                # The networks' own ReLUs would write over what the layer in front has stored.
                x = functional.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
        maps = torch.stack([self._map(inputs, x, target) for target in targets.T], dim=1)
        return maps if signed or self._method == "lrp" else maps.clamp(min=0)

    def _map(self, inputs: Sequence[Tensor], scores: Tensor, target: Tensor) -> Tensor:
        chosen = functional.one_hot(target, scores.shape[1])
        seed = chosen * scores
        concept = self._pass(inputs, seed, self._positive)
        if self._method == "lrp":
            return concept
        if self._method == "clrp1":
            others = (1 - chosen) * seed.sum(1, keepdim=True) / (scores.shape[1] - 1)
            return concept - self._pass(inputs, others, self._positive)
        classifier = self._layers[-1]
        # 0 - W⁻ is the positive part of -W; its sign cancels in the rule.
        opposite = {**self._positive, classifier: self._negative[classifier]}
        return concept - self._pass(inputs, seed, opposite)

    def _pass(self, inputs: Sequence[Tensor], r: Tensor, weights: dict[nn.Module, Layer]) -> Tensor:
        """Relevance from the scores down to the pixels."""
        for layer, x in zip(reversed(self._layers), reversed(inputs), strict=True):
            if layer is self._first:
                r = self._zbeta(layer, x, r)
            elif isinstance(layer, _LINEAR):
                r = _shared([weights[layer]], [x], r)
            elif isinstance(layer, _MEANS):
                r = _shared([layer], [x], r)
            elif isinstance(layer, _MOVES):
                x = x.detach().requires_grad_()
                (r,) = torch.autograd.grad(layer(x), x, r)
        return r

    def _zbeta(self, layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
        maps = [self._positive[layer], self._negative[layer]]
        return _shared(maps, [x - self._low, x - self._high], r)


def _shared(maps: Sequence[Layer], xs: Sequence[Tensor], r: Tensor) -> Tensor:
    """By contribution, x ⊙ Wᵀ(R / Wx), by autograd; or over several maps that are added up."""
    xs = [x.detach().requires_grad_() for x in xs]
    z = reduce(torch.add, (f(x) for f, x in zip(maps, xs, strict=True)))
    s = r / torch.where(z == 0, torch.inf, z.detach())
    gradients = torch.autograd.grad(z, xs, s)
    return reduce(torch.add, (x.detach() * g for x, g in zip(xs, gradients, strict=True)))


def _part(layer: nn.Module, sign: int) -> nn.Module:
    """The layer without bias, and with its weights of one sign alone."""
    made = copy.deepcopy(layer)
    made.bias = None
    made.weight.data.clamp_(**({"min": 0} if sign > 0 else {"max": 0}))
    return made
