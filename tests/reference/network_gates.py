"""Products of two activations: which of the two is the gate that takes no relevance."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn
from torch.fx.node import Node
from torch.nn import functional

from .network_affine import is_move, passes
from .network_trace import Trace

Range: TypeAlias = tuple[float, float]

AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
AVERAGE_FUNCTIONS = (
    *(functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d),
    *(functional.adaptive_avg_pool3d, torch.mean),
)
AVERAGE_METHODS = ("mean", "sum")

_UNIT = (0.0, 1.0)
_RANGES: dict[type[nn.Module] | Callable[..., object] | str, Range] = {
    nn.Sigmoid: _UNIT,
    nn.Hardsigmoid: _UNIT,
    nn.Softmax: _UNIT,
    nn.ReLU6: (0.0, 6.0),
    nn.Tanh: (-1.0, 1.0),
    torch.sigmoid: _UNIT,
    functional.sigmoid: _UNIT,
    functional.hardsigmoid: _UNIT,
    functional.relu6: (0.0, 6.0),
    torch.tanh: (-1.0, 1.0),
    "sigmoid": _UNIT,
    "tanh": (-1.0, 1.0),
}


def is_average(trace: Trace, node: Node) -> bool:
    """Whether a node takes averages, or sums, over places."""
    if node.op == "call_method":
        return node.target in AVERAGE_METHODS
    return node.target in AVERAGE_FUNCTIONS or isinstance(trace.module(node), AVERAGES)


def gate_of(trace: Trace, node: Node) -> Node | None:
    """The operand of a product that is its gate; None if both are plain activations.

    An operand may be the gate if it is bounded below and above whatever the input, or pooled from
    the other. If both may be, it is the one pooled from the other, else the one that is
    broadcast, else the one whose range lies in [0, 1] when the other's does not.
    """
    a, b = trace.sources(node)
    pooled = [g for g, signal in ((a, b), (b, a)) if _is_pooled_from(trace, g, signal)]
    bounded = [n for n in (a, b) if value_range(trace, n) is not None]
    if len({*pooled, *bounded}) < 2:
        return next(iter(pooled + bounded), None)
    larger = trace.values[node].shape
    broadcast = [n for n in (a, b) if trace.values[n].shape != larger]
    units = [n for n in bounded if _lies_in_unit(value_range(trace, n))]
    for choice in (pooled, broadcast, units):
        if len(choice) == 1:
            return choice[0]
    raise NotImplementedError(f"{node.name}: either operand may be the gate")


def _lies_in_unit(known: Range | None) -> bool:
    return known is not None and known[0] >= 0 and known[1] <= 1


def value_range(trace: Trace, node: Node) -> Range | None:
    """Bounds that the value of a node keeps whatever the input; None if it has none."""
    module = trace.module(node)
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return module.min_val, module.max_val
    known = _RANGES.get(type(module) if module is not None else node.target)
    if known is not None or node.op == "placeholder":
        return known
    summed = node.op == "call_method" and node.target == "sum"
    keeps = is_move(trace, node) or passes(trace, node) or is_average(trace, node)
    return value_range(trace, trace.source(node)) if keeps and not summed else None


def _is_pooled_from(trace: Trace, gate: Node, signal: Node) -> bool:
    """Whether the gate is calculated from averages of the signal."""
    pending, seen = [(gate, False)], set()
    while pending:
        node, pooled = pending.pop()
        if node is signal:
            if pooled:
                return True
            continue
        if (node, pooled) in seen:
            continue
        seen.add((node, pooled))
        pending += [(n, pooled or is_average(trace, node)) for n in trace.sources(node)]
    return False
