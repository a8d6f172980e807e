"""What every operator but a linear map hands on, and which operator has which rule."""

import operator
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.nn import functional
from torchvision.ops import StochasticDepth, stochastic_depth
from torchvision.ops.misc import Permute

from .network_affine import (
    ADDITIONS,
    BATCH_NORMS,
    MOVES,
    OTHER_NORMS,
    PRODUCTS,
    QUOTIENTS,
    SUBTRACTIONS,
    affine_scale,
)
from .network_gates import AVERAGE_FUNCTIONS, AVERAGE_METHODS, AVERAGES, gate_of
from .network_linear import (
    LINEAR_MODULES,
    Handed,
    LinearMap,
    Mode,
    distribute,
    divide,
    linear,
    per_sample,
)
from .network_trace import Trace, describe, max_pool_of, module_of

Rule: TypeAlias = Callable[[Trace, Node, Tensor, Mode], Handed]


def _nothing(relevance: Tensor) -> Tensor:
    """No relevance absorbed, [N]."""
    return torch.zeros(relevance.shape[0], dtype=torch.float64)


def bypass(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """R_x = R_y: activations and dropout."""
    return Handed([(trace.source(node), relevance)], _nothing(relevance))


def normalization(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """R_x = R_y; `folded_weight` has given the scale to the linear map in front, if any."""
    return bypass(trace, node, relevance, mode)


def max_pool(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """All relevance of a window to its winner; overlapping windows add."""
    source = trace.source(node)
    received = torch.zeros_like(trace.values[source]).flatten(2)
    received.scatter_add_(2, trace.winners[node].flatten(2), relevance.flatten(2))
    return Handed([(source, received.view_as(trace.values[source]))], _nothing(relevance))


def average(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Average pooling, over the real elements of each window.

    Rule set `default`: by contribution, as a sum y = sum x: where y > 0, R_x = x+ / sum x+ R_y;
    where y < 0, R_x = x- / sum x- R_y; where y = 0 it is absorbed. `paper`: evenly.
    A pool that changes nothing, whatever its input, passes relevance on.
    """
    source = trace.source(node)
    x, y = trace.values[source], trace.values[node]

    def pool(values: Tensor) -> Tensor:
        return trace.evaluate(node, {source: values})

    if _is_identity(pool, x):
        return Handed([(source, relevance)], _nothing(relevance))
    if mode.rules == "paper" or mode.opposite:
        # The zeros of a padded border count for nothing in pool(1), as they should.
        received, absorbed = distribute([(torch.ones_like(x), pool)], relevance)
        return Handed([(source, received)], absorbed)
    above, lost_above = distribute([(x.clamp(min=0), pool)], torch.where(y > 0, relevance, 0.0))
    below, lost_below = distribute([(x.clamp(max=0), pool)], torch.where(y < 0, relevance, 0.0))
    lost = per_sample(torch.where(y == 0, relevance, 0.0)) + lost_above + lost_below
    return Handed([(source, above + below)], lost)


def _is_identity(pool: LinearMap, x: Tensor) -> bool:
    """Whether the pool leaves every sample of x's shape as it is, told from a curved one."""
    curved = torch.arange(x[0].numel(), dtype=torch.float64).view(1, *x.shape[1:]) ** 2
    return torch.equal(pool(curved), curved)


def mean(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Mean or sum over axes other than the batch, as average pooling."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = [given] if isinstance(given, int) else list(given or [0])
    rank = trace.values[trace.source(node)].dim()
    if any(axis % rank == 0 for axis in axes):
        raise NotImplementedError(f"{describe(trace.net, node)} over {axes}")
    return average(trace, node, relevance, mode)


def add(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Sum y = a + b, in proportion to the contributions that have the sign of the sum.

    Where y > 0, R_a = a+ / (a+ + b+) R_y; where y < 0, R_a = a- / (a- + b-) R_y; where y = 0
    it is absorbed. For a difference b stands for -b. With a constant operand: R_x = R_y.
    """
    if affine_scale(trace, node) is not None:
        return bypass(trace, node, relevance, mode)
    operands = _both_operands(trace, node, relevance)
    values = [trace.values[operand] for operand in operands]
    if node.target in SUBTRACTIONS:
        values[1] = -values[1]
    y = trace.values[node]
    parts = [torch.where(y > 0, v.clamp(min=0), v.clamp(max=0)) for v in values]
    ratio = torch.where(y == 0, 0.0, divide(relevance, parts[0] + parts[1]))
    shares = [(n, part * ratio) for n, part in zip(operands, parts, strict=True)]
    return Handed(shares, per_sample(torch.where(y == 0, relevance, 0.0)))


def multiply(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """By a constant: R_x = R_y. By a gate: all to the other operand. Else half to each."""
    if affine_scale(trace, node) is not None:
        return bypass(trace, node, relevance, mode)
    if len(trace.sources(node)) == 1:  # x * x: both halves go to x
        return bypass(trace, node, relevance, mode)
    gate = gate_of(trace, node)
    if gate is None:
        both = _both_operands(trace, node, relevance)
        return Handed([(n, relevance / 2) for n in both], _nothing(relevance))
    (signal,) = (n for n in trace.sources(node) if n is not gate)
    if trace.values[signal].shape != relevance.shape:
        raise NotImplementedError(f"{describe(trace.net, node)} that broadcasts its signal")
    return Handed([(signal, relevance)], _nothing(relevance))


def divide_by_constant(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """By a constant: R_x = R_y; nothing else is known."""
    if affine_scale(trace, node) is None:
        raise NotImplementedError(describe(trace.net, node))
    return bypass(trace, node, relevance, mode)


def _both_operands(trace: Trace, node: Node, relevance: Tensor) -> list[Node]:
    """The two data operands of a node that does not broadcast them."""
    operands = [operand for operand in node.args if operand in trace.carriers]
    if len(operands) != 2 or node.kwargs:
        raise NotImplementedError(describe(trace.net, node))
    if any(trace.values[operand].shape != relevance.shape for operand in operands):
        raise NotImplementedError(f"{describe(trace.net, node)} that broadcasts")
    return operands


def move(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """Data movement: its adjoint, which autograd knows.

    What a chunk was cut from receives what arrives at one of its pieces.
    """
    cuts = [n for n in trace.sources(node) if isinstance(trace.values[n], tuple)]
    whole = [n for n in trace.sources(node) if n not in cuts] + [trace.source(n) for n in cuts]
    leaves = {n: trace.values[n].detach().clone().requires_grad_() for n in whole}
    with torch.enable_grad():
        pieces = {n: trace.evaluate(n, leaves) for n in cuts}
        moved = trace.evaluate(node, leaves | pieces)
    received = torch.autograd.grad(moved, list(leaves.values()), relevance)
    return Handed(list(zip(leaves, received, strict=True)), _nothing(relevance))


# ---- which operator has which rule -------------------------------------------------------

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus),
    *(nn.Hardswish, nn.SiLU, nn.Mish, nn.GELU, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh),
)
_PASSING_MODULES = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, StochasticDepth),
)
_MODULE_RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(LINEAR_MODULES, linear),
    **dict.fromkeys((*BATCH_NORMS, *OTHER_NORMS), normalization),
    **dict.fromkeys(AVERAGES, average),
    **dict.fromkeys((*_ACTIVATIONS, *_PASSING_MODULES), bypass),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, Permute, nn.Upsample), move),
}

_ACTIVATION_FUNCTIONS = (
    *(functional.relu, torch.relu, functional.relu6, functional.leaky_relu, functional.elu),
    *(functional.silu, functional.gelu, functional.hardswish, functional.mish),
    *(torch.sigmoid, functional.sigmoid, functional.hardsigmoid, torch.tanh),
)
_FUNCTION_RULES: dict[Callable[..., object], Rule] = {
    **dict.fromkeys(
        (*_ACTIVATION_FUNCTIONS, functional.dropout, stochastic_depth, operator.neg), bypass
    ),
    **dict.fromkeys(AVERAGE_FUNCTIONS, average),
    **dict.fromkeys((*ADDITIONS, *SUBTRACTIONS), add),
    **dict.fromkeys(PRODUCTS, multiply),
    **dict.fromkeys(QUOTIENTS, divide_by_constant),
    operator.neg: bypass,
    torch.mean: mean,
    functional.layer_norm: normalization,
}

_METHOD_RULES: dict[str, Rule] = {
    **dict.fromkeys(AVERAGE_METHODS, mean),
    **dict.fromkeys(("relu", "sigmoid", "tanh"), bypass),
}

_MOVING_FUNCTIONS = frozenset({"cat", "concat", "getitem", "chunk", "interpolate"})


def rule_of(net: fx.GraphModule, node: Node) -> Rule:
    """Return the rule of a node; NotImplementedError, naming the operator, if it has none."""
    rule = max_pool if max_pool_of(net, node) is not None else _known_rule(net, node)
    if rule is None:
        raise NotImplementedError(describe(net, node))
    return rule


def _known_rule(net: fx.GraphModule, node: Node) -> Rule | None:
    if node.op == "call_module":
        return _MODULE_RULES.get(type(module_of(net, node)))
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    if name in MOVES | _MOVING_FUNCTIONS:
        return move
    if node.op == "call_method":
        return _METHOD_RULES.get(node.target)
    return _FUNCTION_RULES.get(node.target)
