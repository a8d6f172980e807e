"""One float64 forward pass of a PyTorch network, traced with torch.fx, with every value kept."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_arg
from torch.nn import functional

Array: TypeAlias = Tensor | np.ndarray | Sequence[float]
MaxPool: TypeAlias = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
Winners: TypeAlias = Sequence[np.ndarray | Tensor]

_POOLS: dict[Callable[..., object], type[MaxPool]] = {
    functional.max_pool1d: nn.MaxPool1d,
    functional.max_pool2d: nn.MaxPool2d,
    functional.max_pool3d: nn.MaxPool3d,
}
_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

_SEVERING = frozenset({"size", "dim"})
"""Methods whose result says nothing of their tensor's values."""


@dataclass(frozen=True)
class Trace:
    """One float64 forward pass.

    values: the output of every node; that of a chunk is a tuple. winners: for every max pool, in
    order of execution, the flat index into the positions of its input, [N, C, ...] of its output.
    bounds: lowest and highest possible value, [1, ...], of every node that no linear map precedes.
    carriers: the nodes whose values depend on those of the input.
    """

    net: fx.GraphModule
    carriers: frozenset[Node]
    values: dict[Node, Tensor] = field(default_factory=dict)
    winners: dict[Node, Tensor] = field(default_factory=dict)
    bounds: dict[Node, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        """Every node but the output marker, in order of execution."""
        return [node for node in self.net.graph.nodes if node.op != "output"]

    @property
    def logits_node(self) -> Node:
        """The node whose value the network returns."""
        return next(node for node in self.net.graph.nodes if node.op == "output").args[0]

    @property
    def input_node(self) -> Node:
        """The network's one input."""
        return next(node for node in self.net.graph.nodes if node.op == "placeholder")

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return module_of(self.net, node)

    def sources(self, node: Node) -> list[Node]:
        """The inputs of a node that depend on the network's."""
        return [n for n in node.all_input_nodes if n in self.carriers]

    def source(self, node: Node) -> Node:
        """The only input of a node that depends on the network's."""
        (source,) = self.sources(node)
        return source

    def evaluate(self, node: Node, given: Mapping[Node, Tensor]) -> Tensor:
        """Run one node's operator on the given values, and the recorded ones of other inputs."""

        def value(source: Node) -> Tensor:
            found = given[source] if source in given else self.values[source]
            # An operator in place must not change what was recorded.
            return found.clone() if isinstance(found, Tensor) else found

        args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            return getattr(self.net.get_submodule(path), name)
        if node.op == "call_module":
            return self.net.get_submodule(node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


def module_of(net: fx.GraphModule, node: Node) -> nn.Module | None:
    """Return the module that a node calls, if it calls one."""
    return net.get_submodule(node.target) if node.op == "call_module" else None


def describe(net: fx.GraphModule, node: Node) -> str:
    """Name a node and its operator, for messages."""
    module = module_of(net, node)
    kind = type(module).__name__ if module is not None else node.target
    return f"{node.name}: {node.op} of {getattr(kind, '__name__', kind)}"


def traced(module: nn.Module) -> Trace:
    """The network in float64 and in evaluation mode, not yet run; the module is not changed."""
    net = fx.symbolic_trace(copy.deepcopy(module).double().eval().requires_grad_(False))
    carriers: set[Node] = set()
    for node in net.graph.nodes:
        severs = node.op == "call_method" and node.target in _SEVERING
        if node.op == "placeholder" or (not severs and carriers & {*node.all_input_nodes}):
            carriers.add(node)
    return Trace(net, frozenset(carriers))


def run(trace: Trace, x: Array, winners: Winners | None) -> None:
    """Run the network on x [N, ...]; winners of the max pools to be used in place of its own."""
    given = None if winners is None else [torch.as_tensor(winner) for winner in winners]
    trace.values[trace.input_node] = torch.as_tensor(x).to(torch.float64)
    for node in trace.nodes:
        if node.op != "placeholder":
            trace.values[node] = _forward(trace, node, given)
    if given is not None and len(given) != len(trace.winners):
        raise ValueError(f"{len(trace.winners)} max pools, but winners for {len(given)}")


def _forward(trace: Trace, node: Node, given: list[Tensor] | None) -> Tensor:
    """Return the node's value; a max pool takes its at the winners, which are noted."""
    pool = max_pool_of(trace.net, node)
    if pool is None:
        return trace.evaluate(node, {})
    x = trace.values[trace.source(node)]
    own = first_maxima(x, pool)
    known = len(trace.winners)
    if given is not None and known == len(given):
        raise ValueError(f"winners for {known} max pools, but there are more")
    winners = own if given is None else given[known]
    if winners.shape != own.shape:
        raise ValueError(f"{node.name}: winners {list(winners.shape)}, not {list(own.shape)}")
    trace.winners[node] = winners
    return x.flatten(2).gather(2, winners.flatten(2)).view(winners.shape)


def max_pool_of(net: fx.GraphModule, node: Node) -> MaxPool | None:
    """The max pool that a node is, written as a module or as a function; None if it is none."""
    module = module_of(net, node)
    if isinstance(module, MaxPool):
        return module
    if node.op != "call_function" or node.target not in _POOLS:
        return None
    options = dict(zip(_POOL_ARGUMENTS, node.args[1:], strict=False)) | node.kwargs
    return _POOLS[node.target](
        **{name: options[name] for name in _POOL_ARGUMENTS if name in options}
    )


def first_maxima(x: Tensor, pool: MaxPool) -> Tensor:
    """Flat index of the first maximum, in row-major order, of every window of the pool.

    x: [N, C, ...]; returns int64 [N, C, ...] of the pool's output, indices into the positions of
    x. Padding never wins. The window is walked cell by cell, and only a greater value takes the
    lead.
    """
    spatial, out = x.shape[2:], pool(x).shape[2:]
    kernel, stride, padding, dilation = (
        _per_axis(size, len(out))
        for size in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    starts = [torch.arange(o) * s - p for o, s, p in zip(out, stride, padding, strict=True)]
    best = torch.full((*x.shape[:2], *out), -torch.inf, dtype=x.dtype)
    winner = torch.full(best.shape, -1)
    for cell in itertools.product(*map(range, kernel)):
        places = [a + c * d for a, c, d in zip(starts, cell, dilation, strict=True)]
        grid = torch.meshgrid(*places, indexing="ij")
        value = _values_at(x, grid)
        flat = torch.zeros(out, dtype=torch.int64)
        for size, place in zip(spatial, grid, strict=True):
            flat = flat * size + place
        leads = value > best
        best = torch.where(leads, value, best)
        winner = torch.where(leads, flat, winner)
    return winner


def _values_at(x: Tensor, grid: Sequence[Tensor]) -> Tensor:
    """Return x [N, C, ...] at the places of a grid, [N, C, *grid]; -inf outside of it."""
    inside = torch.ones(grid[0].shape, dtype=torch.bool)
    for size, place in zip(x.shape[2:], grid, strict=True):
        inside &= (place >= 0) & (place < size)
    reached = [p.clamp(0, size - 1) for size, p in zip(x.shape[2:], grid, strict=True)]
    return torch.where(inside, x[(slice(None), slice(None), *reached)], -torch.inf)


def _per_axis(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A size per axis, from one that may be common to all."""
    return (size,) * axes if isinstance(size, int) else tuple(size)
