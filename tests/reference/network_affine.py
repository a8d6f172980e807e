"""Affine maps with constant operands, and the scales that they put behind a linear map."""

import operator

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional
from torchvision.ops import StochasticDepth, stochastic_depth
from torchvision.ops.misc import Permute

from .network_trace import Trace

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Norms whose statistics are those of the sample."""

MOVES = frozenset(
    {"permute", "transpose", "reshape", "view", "flatten", "squeeze", "unsqueeze", "contiguous"}
)
"""Functions and methods that give every value another place, and lose or copy none."""

_MOVING_MODULES = (nn.Flatten, nn.Unflatten, Permute)
_PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PASSING = (functional.dropout, stochastic_depth)

_LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_ONE = torch.ones((), dtype=torch.float64)

ADDITIONS = (operator.add, operator.iadd, torch.add)
SUBTRACTIONS = (operator.sub, operator.isub, torch.sub)
PRODUCTS = (operator.mul, operator.imul, torch.mul)
QUOTIENTS = (operator.truediv, operator.itruediv, torch.div)


def is_move(trace: Trace, node: Node) -> bool:
    """Whether a node only gives values another place."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in MOVES
    if node.op == "call_method":
        return node.target in MOVES
    return isinstance(trace.module(node), _MOVING_MODULES)


def passes(trace: Trace, node: Node) -> bool:
    """Whether a node does nothing at all in evaluation mode."""
    module = trace.module(node)
    return node.target in _PASSING or isinstance(module, (*_PASSING_MODULES, StochasticDepth))


def affine_scale(trace: Trace, node: Node) -> Tensor | None:
    """What an affine map with constant operands multiplies its input with.

    It broadcasts to the node's value. For a norm over the statistics of the sample it is gamma,
    for the rest of its scale is positive. None for any other node.
    """
    module = trace.module(node)
    if passes(trace, node):
        return _ONE
    if isinstance(module, (*BATCH_NORMS, *OTHER_NORMS)):
        return _norm_scale(module, trace.values[node].dim())
    if node.target is functional.layer_norm:
        given = dict(zip(_LAYER_NORM, node.args, strict=False)) | node.kwargs
        gamma = given.get("weight")
        return _ONE if gamma is None else trace.values[gamma]
    if node.op == "call_function" and len(trace.sources(node)) == 1:
        return _constant_factor(trace, node)
    return None


def _norm_scale(norm: nn.Module, rank: int) -> Tensor:
    """Scale of a norm, to broadcast to values of that rank."""
    if norm.weight is None:
        return _ONE
    if isinstance(norm, nn.LayerNorm):
        return norm.weight
    scale = norm.weight
    if isinstance(norm, BATCH_NORMS):
        scale = scale / (norm.running_var + norm.eps).sqrt()
    return scale.view(-1, *[1] * (rank - 2))


def _constant_factor(trace: Trace, node: Node) -> Tensor | None:
    """Factor of an arithmetic function of one data operand and one constant, None for others."""
    if node.target is operator.neg:
        return torch.tensor(-1.0, dtype=torch.float64)
    if node.target not in (*ADDITIONS, *SUBTRACTIONS, *PRODUCTS, *QUOTIENTS) or node.kwargs:
        return None
    carries = [argument in trace.carriers for argument in node.args]
    if carries not in ([True, False], [False, True]):
        return None
    constant = node.args[carries.index(False)]
    value = trace.values[constant] if isinstance(constant, Node) else constant
    value = torch.as_tensor(value, dtype=torch.float64)
    if node.target in ADDITIONS:
        return torch.ones_like(value)
    if node.target in SUBTRACTIONS:
        return torch.ones_like(value) if carries[0] else -torch.ones_like(value)
    if node.target in PRODUCTS:
        return value
    return 1 / value if carries[0] else None


@torch.enable_grad()
def scale_behind(trace: Trace, node: Node, channel_axis: int) -> Tensor:
    """The product of the scales per output channel directly behind a linear map, [channels].

    It is the derivative of what stands behind it, as long as every node is the only one that
    reads the one before it, and moves values or scales whole channels.
    """
    y = torch.ones_like(trace.values[node]).requires_grad_()
    scale = torch.ones(y.shape[channel_axis], dtype=torch.float64)
    value = y
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        if is_move(trace, node):
            value = trace.evaluate(node, {before: value})
            continue
        factor = affine_scale(trace, node) if node.op != "output" else None
        if factor is None:
            break
        value = value * factor
        (slope,) = torch.autograd.grad(value.sum(), y, retain_graph=True)
        per_channel = slope.transpose(0, channel_axis).flatten(1)
        if not torch.equal(per_channel.amin(1), per_channel.amax(1)):
            break
        scale = per_channel[:, 0]
    return scale
