"""The bounds of what the first linear maps read, walked forward from those of the input."""

import operator
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional

from .network_affine import ADDITIONS, OTHER_NORMS, affine_scale, passes
from .network_linear import linear
from .network_rules import add, bypass, divide_by_constant, move, multiply, normalization, rule_of
from .network_trace import Array, Trace, describe

Bounds: TypeAlias = tuple[Array, Array]

_RISING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)
_MONOTONE = (torch.relu, functional.relu, operator.neg)


def record_bounds(trace: Trace, bounds: Bounds) -> None:
    """Walk the input's bounds, each [channels] or one for all, to the first linear maps.

    Every operator admitted here is monotone in all its operands together, so that its values
    at the lowest and at the highest input are the bounds, in one order or the other. Nothing is
    known behind a norm whose statistics are those of the sample.
    """
    x = trace.values[trace.input_node][:1]
    low, high = (
        torch.as_tensor(bound).to(x).view(1, -1, *[1] * (x.dim() - 2)).expand_as(x)
        for bound in bounds
    )
    trace.bounds[trace.input_node] = (low, high)
    for node in trace.nodes:
        if node.op == "placeholder" or node not in trace.carriers:
            continue
        sources = trace.sources(node)
        if rule_of(trace.net, node) is linear or any(n not in trace.bounds for n in sources):
            continue
        trace.bounds[node] = _bounds_behind(trace, node)


def _bounds_behind(trace: Trace, node: Node) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of a node whose operands have bounds."""
    if isinstance(trace.module(node), OTHER_NORMS):
        infinite = torch.full_like(trace.values[node][:1], torch.inf)
        return -infinite, infinite
    if not _is_monotone(trace, node):
        raise NotImplementedError(f"bounds behind {describe(trace.net, node)}")
    ends = [
        trace.evaluate(node, {n: trace.bounds[n][end] for n in trace.sources(node)})
        for end in (0, 1)
    ]
    return torch.minimum(*ends), torch.maximum(*ends)


def _is_monotone(trace: Trace, node: Node) -> bool:
    """Whether a node rises, or falls, in all its operands together."""
    rule = rule_of(trace.net, node)
    if rule is bypass:
        rises = isinstance(trace.module(node), _RISING)
        return rises or passes(trace, node) or node.target in _MONOTONE
    if rule in (add, multiply, divide_by_constant):
        return node.target in ADDITIONS or affine_scale(trace, node) is not None
    return rule in (move, normalization)
