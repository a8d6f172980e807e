"""LRP and CLRP of torchvision's classifiers as zennit does it, with the rules of the package.

Zennit has no rule that shares sums and means as the package does, and no canonizers for the blocks
of DenseNet, MobileNet-v2 and EfficientNet: those are here, written as its own are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.efficientnet import MBConv
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import SqueezeExcitation
from zennit.canonizers import (
    AttributeCanonizer,
    CompositeCanonizer,
    NamedMergeBatchNorm,
    SequentialMergeBatchNorm,
)
from zennit.core import BasicHook, Composite
from zennit.layer import Sum
from zennit.rules import NoMod, Pass, ZBox, ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Linear

METHODS = ("lrp", "clrp1", "clrp2")


def _safe(z: Tensor) -> Tensor:
    """A divisor that makes 0 of what is divided by 0, where zennit's own would add a little."""
    return torch.where(z == 0, torch.inf, z)


class ByContribution(BasicHook):
    """Shares among the terms of a sum, or of a mean, that have its sign."""

    def __init__(self) -> None:
        def shares(r: Tensor, sums: list[Tensor]) -> list[Tensor]:
            positive, negative = sums
            total = positive + negative
            return [r * (total > 0) / _safe(positive), r * (total < 0) / _safe(negative)]

        super().__init__(
            input_modifiers=[lambda x: x.clamp(min=0), lambda x: x.clamp(max=0)],
            param_modifiers=[NoMod(param_keys=[])] * 2,
            output_modifiers=[lambda y: y] * 2,
            gradient_mapper=shares,
            reducer=lambda xs, gradients: xs[0] * gradients[0] + xs[1] * gradients[1],
        )


class BehindClassifier(ByContribution):
    """The same for a mean behind the classifier layer, which shares the dual evenly."""


class Explainer:
    """A classifier with zennit's hooks.

    They stay in place between explanations, and the two maps of a contrast and all targets share
    one forward pass: zennit at its fastest.

    Args:
        net: one of torchvision's classifiers, which becomes its own: it is changed.
        low, high: the lowest and the highest input, `[1, 3, 1, 1]`.
        method: one of `METHODS`.
    """

    def __init__(self, net: nn.Module, low: Tensor, high: Tensor, method: str) -> None:
        self._net, self._method = net, method
        modules = [*self._net.modules()]
        linear = [module for module in modules if isinstance(module, Linear)]
        first, self._classifier = linear[0], linear[-1]
        behind = modules[modules.index(self._classifier) :]
        rules: list[tuple[Any, Any]] = [
            ((Activation, BatchNorm, SqueezeExcitation), Pass()),
            ((Sum, AvgPool), ByContribution()),
            ((Linear,), ZPlus(_safe, zero_params="bias")),
        ]
        special = {first: ZBox(low, high, _safe, zero_params="bias")}
        special |= {m: BehindClassifier() for m in behind if isinstance(m, AvgPool)}

        def rule(_context: object, _name: str, module: nn.Module) -> Any:
            usual = (rule for types, rule in rules if isinstance(module, types))
            return special.get(module) or next(usual, None)

        self._composite = Composite(rule, [canonizer(self._net)])
        self._composite.register(self._net)
        for module in self._net.modules():
            if isinstance(module, BatchNorm) and _does_nothing(module):
                module.eps = 0  # merged, it would still divide by sqrt(1 + eps)
        hooks = self._composite.hook_refs
        self._tails = [hook for hook in hooks if isinstance(hook, BehindClassifier)]

    def explain(self, pictures: Tensor, targets: Tensor, *, signed: bool = False) -> Tensor:
        """The maps `[N, k, 3, H, W]` of classes `[N, k]`."""
        x = pictures.detach().clone().requires_grad_()
        scores = self._net(x)
        maps = torch.stack([self._map(x, scores, target) for target in targets.T], dim=1)
        return maps if signed or self._method == "lrp" else maps.clamp(min=0)

    def _map(self, x: Tensor, scores: Tensor, target: Tensor) -> Tensor:
        chosen = functional.one_hot(target, scores.shape[1])
        seed = chosen * scores.detach()
        concept = _grad(scores, x, seed)
        if self._method == "lrp":
            return concept
        if self._method == "clrp1":
            others = (1 - chosen) * seed.sum(1, keepdim=True) / (scores.shape[1] - 1)
            return concept - _grad(scores, x, others)
        with self._opposite():
            return concept - _grad(scores, x, seed)

    @contextmanager
    def _opposite(self) -> Iterator[None]:
        """The classifier's weights negated, and what lies behind it spreading evenly."""
        weight = self._classifier.weight
        for hook in self._tails:
            hook.active = False  # what is left is the gradient
        self._classifier.weight = nn.Parameter(-weight, requires_grad=False)
        yield
        self._classifier.weight = weight
        for hook in self._tails:
            hook.active = True


def _grad(scores: Tensor, x: Tensor, seed: Tensor) -> Tensor:
    return torch.autograd.grad(scores, x, seed.to(scores.dtype), retain_graph=True)[0]


# -- canonizers --------------------------------------------------------------------------------


def canonizer(net: nn.Module) -> Any:
    """What lets zennit see sums and means that are not modules, and merges batch norms."""
    if isinstance(net, models.ResNet):
        return ResNetCanonizer()
    if isinstance(net, models.DenseNet):
        merged = NamedMergeBatchNorm(_pairs_of_densenet(net))
        return CompositeCanonizer([merged, AttributeCanonizer(_attributes)])
    return CompositeCanonizer([SequentialMergeBatchNorm(), AttributeCanonizer(_attributes)])


def _pairs_of_densenet(net: nn.Module) -> list[tuple[list[str], str]]:
    """Which norm follows which convolution, since the order of modules does not tell here."""
    names = [name for name, _ in net.named_modules() if name.endswith((".conv0", ".conv1"))]
    follows = {"conv0": "norm0", "conv1": "norm2"}
    return [([name], name[:-5] + follows[name[-5:]]) for name in names]


def _attributes(_name: str, module: nn.Module) -> dict[str, Any] | None:
    added = {
        models.DenseNet: {"pool": nn.AdaptiveAvgPool2d(1)},
        models.MobileNetV2: {"pool": nn.AdaptiveAvgPool2d(1)},
        InvertedResidual: {"total": Sum()},
        MBConv: {"total": Sum()},
        SqueezeExcitation: {},
    }.get(type(module))
    if added is None:
        return None
    return {**added, "forward": _FORWARD[type(module)].__get__(module)}


def _densenet(net: Any, x: Tensor) -> Tensor:
    return net.classifier(net.pool(functional.relu(net.features(x))).flatten(1))


def _mobilenet(net: Any, x: Tensor) -> Tensor:
    return net.classifier(net.pool(net.features(x)).flatten(1))


def _inverted_residual(block: Any, x: Tensor) -> Tensor:
    passed = block.conv(x)
    return block.total(torch.stack([x, passed], -1)) if block.use_res_connect else passed


def _mbconv(block: Any, x: Tensor) -> Tensor:
    passed = block.block(x)
    return block.total(torch.stack([x, passed], -1)) if block.use_res_connect else passed


def _squeeze_excitation(block: Any, x: Tensor) -> Tensor:
    return block._scale(x.detach()) * x  # a gate takes nothing


_FORWARD = {
    models.DenseNet: _densenet,
    models.MobileNetV2: _mobilenet,
    InvertedResidual: _inverted_residual,
    MBConv: _mbconv,
    SqueezeExcitation: _squeeze_excitation,
}


def _does_nothing(norm: Any) -> bool:
    zeros, ones = (norm.running_mean, norm.bias), (norm.running_var, norm.weight)
    return all((x == 0).all() for x in zeros) and all((x == 1).all() for x in ones)
