"""Gradients of a network in float64: true ones, and those of other rules for rectifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional

from .attribution_rules import classifiers
from .network_trace import Array, Trace, run, traced

Rectify = Callable[[Tensor, Tensor, float], Tensor]
"""`(x, open, top) -> y`: a ReLU, or a ReLU6 if the top is 6, that lets x pass where it is open."""

_RECTIFYING_FUNCTIONS = (functional.relu, torch.relu, functional.relu6)
_RECTIFYING_METHODS = ("relu", "relu_")


@dataclass(frozen=True)
class Choices:
    """What float32 chose where the gradient jumps, for the reference to choose the same.

    Values that are nearly equal, or nearly zero, may fall on the other side when they are rounded
    to float32. Such a gradient is right too, and far from that of the other side.

    winners: of every max pool, see `network.explain`. opened: of every ReLU or ReLU6 whether it
    let its input pass, of the input's shape. Both in order of execution.
    """

    winners: Sequence[np.ndarray]
    opened: Sequence[np.ndarray]


def _rectified(x: Tensor, opened: Tensor, top: float) -> Tensor:
    """A rectifier's value: x where it is open, 0 or the top elsewhere."""
    return torch.where(opened, x, x.detach().clamp(0, top))


def _hooked(value: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The value, with its gradient changed before it goes further back."""
    value.register_hook(change)
    return torch.as_tensor(value)


def _positive(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


def true_rectifier(x: Tensor, opened: Tensor, top: float) -> Tensor:
    """The gradient itself: g where x > 0."""
    return _rectified(x, opened, top)


def guided_rectifier(x: Tensor, opened: Tensor, top: float) -> Tensor:
    """Springenberg et al. 2015: max(g, 0) where x > 0."""
    return _hooked(_rectified(x, opened, top), _positive)


def deconvolving_rectifier(x: Tensor, opened: Tensor, top: float) -> Tensor:
    """Zeiler & Fergus 2014: max(g, 0), whatever x."""
    return _hooked(x + (_rectified(x, opened, top) - x).detach(), _positive)


def record(
    module: nn.Module, x: Array, rectify: Rectify = true_rectifier, choices: Choices | None = None
) -> Trace:
    """Run the module in float64 on x [N, channels, ...], for autograd to go back through it."""
    trace = traced(module)
    known = None if choices is None else iter(choices.opened)
    for node in list(trace.nodes):
        top = _top(trace, node)
        if top is not None:
            _replace(node, _Rectifier(rectify, top, known))
    leaf = torch.as_tensor(x, dtype=torch.float64).detach().clone().requires_grad_()
    with torch.enable_grad():
        run(trace, leaf, None if choices is None else choices.winners)
    if known is not None and next(known, None) is not None:
        raise ValueError("choices for more rectifiers than the network has")
    return trace


def count_differences(module: nn.Module, x: Array, choices: Choices) -> tuple[int, int]:
    """How many choices float64 makes otherwise at max pools and rectifiers, and of how many."""
    trace = traced(module)
    with torch.no_grad():
        run(trace, x, None)
    tops = {node: top for node in trace.nodes if (top := _top(trace, node)) is not None}
    opened = [(trace.values[node] > 0) & (trace.values[node] < top) for node, top in tops.items()]
    pairs = [
        *zip(trace.winners.values(), choices.winners, strict=True),
        *zip(opened, choices.opened, strict=True),
    ]
    different = sum(int((own != torch.as_tensor(given)).sum()) for own, given in pairs)
    return different, sum(own.numel() for own, _ in pairs)


@dataclass(frozen=True)
class _Rectifier:
    """Takes the place of a ReLU in a trace."""

    rectify: Rectify
    top: float
    known: Iterator[np.ndarray] | None

    def __call__(self, x: Tensor) -> Tensor:
        """Let pass what float32 let pass, if that is known."""
        if self.known is None:
            return self.rectify(x, (x > 0) & (x < self.top), self.top)
        opened = torch.as_tensor(next(self.known))
        if opened.shape != x.shape:
            raise ValueError(f"choices {list(opened.shape)} for a ReLU of {list(x.shape)}")
        return self.rectify(x, opened, self.top)


def _top(trace: Trace, node: Node) -> float | None:
    """Where the rectifier that a node is ends, None if it is none."""
    module = trace.module(node)
    if isinstance(module, nn.ReLU6) or node.target is functional.relu6:
        return 6.0
    called = node.op == "call_method" and node.target in _RECTIFYING_METHODS
    if isinstance(module, nn.ReLU) or called or node.target in _RECTIFYING_FUNCTIONS:
        return torch.inf
    return None


def _replace(node: Node, rectifier: _Rectifier) -> None:
    node.op, node.target = "call_function", rectifier
    node.args, node.kwargs = node.args[:1], {}


def backpropagate(trace: Trace, seed: Tensor, to: Node, *, negated: bool = False) -> Tensor:
    """The gradient at a node's value, from a seed [N, C] at the logits.

    negated: with the weights of the classifier layer negated.
    """
    outputs: list[Any] = [trace.values[node] for node in classifiers(trace)] if negated else []
    hooks = [output.register_hook(torch.neg) for output in outputs]
    (gradient,) = torch.autograd.grad(
        trace.values[trace.logits_node], trace.values[to], seed, retain_graph=True
    )
    for hook in hooks:
        hook.remove()
    return gradient
