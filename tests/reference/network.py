"""LRP, CLRP1 and CLRP2 of a PyTorch network, operator by operator in float64.

The network is traced with torch.fx, run once in float64 with every value kept, and walked
backwards; each operator hands its relevance on by the formula written at its rule. Sources
of the formulas: Montavon et al. 2017 (arXiv 1512.02479) for z-plus and z-beta; Gu, Yang and
Tresp 2018 (arXiv 1812.02100) for the contrasts. The code aims to be read, not to be fast.
"""

import copy
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Node, map_arg
from torch.nn import functional
from torchvision.ops import StochasticDepth, stochastic_depth

Array: TypeAlias = Tensor | np.ndarray | Sequence[float]
Bounds: TypeAlias = tuple[Array, Array]
LinearMap: TypeAlias = Callable[[Tensor], Tensor]
Relevances: TypeAlias = dict[Node, Tensor]

METHODS = ("lrp", "clrp1", "clrp2")
RULES = ("default", "paper")


@dataclass(frozen=True)
class Reference:
    """What the reference finds for N samples of an input of shape [N, ...].

    logits: [N, C]. seed: [N], the logit y_t of the explained class.
    relevance: [N, ...]; R for `lrp`, the signed contrast R - R_dual for the others, formed at
    the input of the classifier layer and carried down in one pass.
    concept, dual: [N, ...]; R and R_dual, each carried down on its own (dual None for `lrp`).
    absorbed: [N]; what of R found no receiver, because Z = 0 or a sum was 0.
    """

    logits: Tensor
    seed: Tensor
    relevance: Tensor
    concept: Tensor
    dual: Tensor | None
    absorbed: Tensor

    @property
    def contrast(self) -> Tensor:
        """The map of the paper, max(0, relevance), [N, ...]."""
        return self.relevance.clamp(min=0)


@dataclass(frozen=True)
class Trace:
    """One float64 forward pass.

    values: the output of every node. winners: for every max pool, in order of execution, the
    flat index [N, C, oh, ow] into its input's H*W plane. bounds: lowest and highest possible
    value, [1, ...], of every node that no linear map precedes.
    """

    net: fx.GraphModule
    values: dict[Node, Tensor]
    winners: dict[Node, Tensor]
    bounds: dict[Node, tuple[Tensor, Tensor]]

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


Rule: TypeAlias = Callable[[Trace, Node, Tensor, Mode], Handed]


def explain(
    module: nn.Module,
    x: Array,
    target: Sequence[int] | np.ndarray | Tensor,
    *,
    method: str,
    bounds: Bounds,
    rules: str = "default",
    winners: Sequence[np.ndarray | Tensor] | None = None,
) -> Reference:
    """Explain class `target[n]` of sample `x[n]`.

    x: [N, channels, H, W]. target: N classes. bounds: lowest and highest value of the input,
    each [channels]. winners: for every max pool, in order of execution, flat indices
    [N, C, oh, ow] into its input's H*W plane, to be used forward and backward in place of
    the float64 maxima. The module is used in evaluation mode and is not changed.
    """
    if method not in METHODS or rules not in RULES:
        raise ValueError(f"method {method!r} or rules {rules!r} is unknown")
    with torch.no_grad():
        trace = record(module, x, bounds, winners)
        classes = _classes(target, trace.values[trace.logits_node])
        if method == "lrp":
            return _explain_plain(trace, classes, rules)
        return _explain_contrast(trace, classes, rules, method)


def count_differences(
    module: nn.Module, x: Array, winners: Sequence[np.ndarray | Tensor]
) -> tuple[int, int]:
    """How many of the given max-pool winners differ from the float64 ones, and of how many.

    x: [N, channels, H, W]; winners as in `explain`.
    """
    with torch.no_grad():
        own = list(record(module, x, None, None).winners.values())
    given = [torch.as_tensor(winner) for winner in winners]
    if [tuple(w.shape) for w in given] != [tuple(w.shape) for w in own]:
        raise ValueError("the winners do not have the shapes of the network's max pools")
    different = sum(int((a != b).sum()) for a, b in zip(given, own, strict=True))
    return different, sum(winner.numel() for winner in own)


# ---- the methods -------------------------------------------------------------------------


def _classes(target: Sequence[int] | np.ndarray | Tensor, logits: Tensor) -> Tensor:
    """Return `target` as int64 [N], checked against logits [N, C]."""
    classes = torch.as_tensor(target, dtype=torch.int64)
    if logits.dim() != 2:
        raise ValueError(f"logits must be [N, C], not {list(logits.shape)}")
    if tuple(classes.shape) != (logits.shape[0],):
        raise ValueError(f"{logits.shape[0]} targets are needed, not {list(classes.shape)}")
    if bool((classes < 0).any()) or bool((classes >= logits.shape[1]).any()):
        raise ValueError(f"a target lies outside 0 ... {logits.shape[1] - 1}")
    return classes


def _seeds(logits: Tensor, classes: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Relevance of concept and dual at the logits, both [N, C] (section 3 of the paper).

    The concept has y_t at t. The dual of CLRP1 has y_t / (C - 1) at every class but t; that
    of CLRP2 has y_t at t and differs from the concept by the classifier's negated weights.
    """
    chosen = functional.one_hot(classes, logits.shape[1]).to(logits)
    concept = chosen * logits
    if method == "clrp2":
        return concept, concept
    if logits.shape[1] < 2:
        raise ValueError("CLRP1 needs two classes or more")
    seed = concept.sum(1, keepdim=True)
    return concept, (1 - chosen) * seed / (logits.shape[1] - 1)


def _explain_plain(trace: Trace, classes: Tensor, rules: str) -> Reference:
    """LRP: R from y_t at t, zero elsewhere."""
    logits = trace.values[trace.logits_node]
    start = functional.one_hot(classes, logits.shape[1]).to(logits) * logits
    arrived, absorbed = carry(trace, trace.nodes, {trace.logits_node: start}, Mode(rules))
    relevance = _at_input(trace, arrived)
    return Reference(logits, start.sum(1), relevance, relevance, None, absorbed)


def _explain_contrast(trace: Trace, classes: Tensor, rules: str, method: str) -> Reference:
    """CLRP1 and CLRP2: R - R_dual, formed at the input of the classifier layer."""
    logits = trace.values[trace.logits_node]
    above, below = _split_at_classifier(trace)
    seed, dual_seed = _seeds(logits, classes, method)
    mode, dual_mode = Mode(rules), Mode(rules, opposite=method == "clrp2")
    concept, lost_above = carry(trace, above, {trace.logits_node: seed}, mode)
    dual, _ = carry(trace, above, {trace.logits_node: dual_seed}, dual_mode)
    contrast = {node: concept[node] - dual[node] for node in concept}

    # Below the classifier layer every rule is linear in R, so the difference may travel alone.
    concept, lost_below = carry(trace, below, concept, mode)
    dual, _ = carry(trace, below, dual, mode)
    contrast, _ = carry(trace, below, contrast, mode)
    return Reference(
        logits=logits,
        seed=seed.sum(1),
        relevance=_at_input(trace, contrast),
        concept=_at_input(trace, concept),
        dual=_at_input(trace, dual),
        absorbed=lost_above + lost_below,
    )


def _at_input(trace: Trace, arrived: Relevances) -> Tensor:
    """Return the relevance that reached the network's input."""
    x = trace.values[trace.input_node]
    return arrived.get(trace.input_node, torch.zeros_like(x))


def _split_at_classifier(trace: Trace) -> tuple[list[Node], list[Node]]:
    """Return the classifier layer with all that follows it, and everything else.

    The classifier layer is every linear map from which the logits are reached without
    another one.
    """
    classifiers: set[Node] = set()
    pending = [trace.logits_node]
    while pending:
        node = pending.pop()
        if _is_linear(trace.net, node):
            classifiers.add(node)
        else:
            pending.extend(node.all_input_nodes)
    above = _downstream(trace.nodes, classifiers)
    for node in above:
        if _is_linear(trace.net, node) and any(n in above for n in node.all_input_nodes):
            raise NotImplementedError(f"{node.name}: a classifier layer behind another one")
    if not classifiers:
        raise ValueError("the network has no classifier layer")
    return [n for n in trace.nodes if n in above], [n for n in trace.nodes if n not in above]


def _downstream(nodes: Iterable[Node], sources: set[Node]) -> set[Node]:
    """Return `sources` and every node that depends on them; `nodes` in order of execution."""
    found = set(sources)
    for node in nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def carry(
    trace: Trace, nodes: Sequence[Node], arriving: Relevances, mode: Mode
) -> tuple[Relevances, Tensor]:
    """Carry relevance down through `nodes`, last to first.

    Returns what arrived at nodes outside `nodes` or at the input, and what was absorbed, [N].
    Relevance that reaches one value from several consumers is added.
    """
    arriving = dict(arriving)
    absorbed = torch.zeros(trace.values[trace.input_node].shape[0], dtype=torch.float64)
    for node in reversed(nodes):
        if node.op == "placeholder" or node not in arriving:
            continue
        handed = _rule_of(trace.net, node)(trace, node, arriving.pop(node), mode)
        absorbed = absorbed + handed.absorbed
        for receiver, share in handed.shares:
            arriving[receiver] = arriving[receiver] + share if receiver in arriving else share
    return arriving, absorbed


# ---- the forward pass --------------------------------------------------------------------


def record(
    module: nn.Module,
    x: Array,
    bounds: Bounds | None,
    winners: Sequence[np.ndarray | Tensor] | None,
) -> Trace:
    """Run the module in float64 on x [N, channels, H, W] and keep every value.

    bounds and winners as in `explain`; without bounds the trace can not be explained.
    """
    net = fx.symbolic_trace(copy.deepcopy(module).double().eval().requires_grad_(False))
    for node in net.graph.nodes:
        if node.op not in ("placeholder", "output"):
            _rule_of(net, node)
    trace = Trace(net, {}, {}, {})
    given = None if winners is None else [torch.as_tensor(winner) for winner in winners]
    trace.values[trace.input_node] = torch.as_tensor(x).to(torch.float64)
    for node in trace.nodes[1:]:
        trace.values[node] = _forward(trace, node, given)
    if given is not None and len(given) != len(trace.winners):
        raise ValueError(f"{len(trace.winners)} max pools, but winners for {len(given)}")
    if bounds is not None:
        _record_bounds(trace, bounds)
    return trace


def _forward(trace: Trace, node: Node, given: list[Tensor] | None) -> Tensor:
    """Return the node's value; a max pool takes its at the winners, which are noted."""
    pool = _module_of(trace.net, node)
    if not isinstance(pool, nn.MaxPool2d):
        return _evaluate(trace.net, node, trace.values)
    x = trace.values[node.all_input_nodes[0]]
    own = first_maxima(x, pool)
    winners = own if given is None else given[len(trace.winners)]
    if winners.shape != own.shape:
        raise ValueError(f"{node.name}: winners {list(winners.shape)}, not {list(own.shape)}")
    trace.winners[node] = winners
    return x.flatten(2).gather(2, winners.flatten(2)).view(winners.shape)


def _evaluate(net: fx.GraphModule, node: Node, values: Mapping[Node, Tensor]) -> Tensor:
    """Run one node's operator on the given values of its inputs."""

    def value(source: Node) -> Tensor:
        return values[source].clone()  # An operator in place must not change what was recorded.

    args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
    if node.op == "call_module":
        return net.get_submodule(node.target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def first_maxima(x: Tensor, pool: nn.MaxPool2d) -> Tensor:
    """Flat index of the first maximum, in row-major order, of every window of the pool.

    x: [N, C, H, W]; returns int64 [N, C, oh, ow], indices into the H*W plane. Padding never
    wins. The window is walked cell by cell, and only a greater value takes the lead.
    """
    height, width = pool(x).shape[-2:]
    kernel, stride, padding, dilation = (
        _pair(size) for size in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    top = torch.arange(height) * stride[0] - padding[0]
    left = torch.arange(width) * stride[1] - padding[1]
    best = torch.full((*x.shape[:2], height, width), -torch.inf, dtype=x.dtype)
    winner = torch.full(best.shape, -1)
    for row, column in itertools.product(range(kernel[0]), range(kernel[1])):
        rows, columns = top + row * dilation[0], left + column * dilation[1]
        value = _values_at(x, rows, columns)
        leads = value > best
        best = torch.where(leads, value, best)
        winner = torch.where(leads, rows[:, None] * x.shape[3] + columns, winner)
    return winner


def _values_at(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return x [N, C, H, W] at rows [h] and columns [w]: [N, C, h, w], -inf outside the plane."""
    height, width = x.shape[-2:]
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    value = x[:, :, rows.clamp(0, height - 1)[:, None], columns.clamp(0, width - 1)]
    return torch.where(inside_rows[:, None] & inside_columns, value, -torch.inf)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size per axis, from one that may be common to both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _record_bounds(trace: Trace, bounds: Bounds) -> None:
    """Walk the input's bounds forward to the first linear maps.

    Every operator admitted here is monotone in all its operands together, so that its values
    at the lowest and at the highest input are the bounds, in one order or the other.
    """
    x = trace.values[trace.input_node][:1]
    low, high = (
        torch.as_tensor(bound).to(x).view(1, -1, *[1] * (x.dim() - 2)).expand_as(x)
        for bound in bounds
    )
    trace.bounds[trace.input_node] = (low, high)
    for node in trace.nodes[1:]:
        rule = _rule_of(trace.net, node)
        if rule is _linear or any(n not in trace.bounds for n in node.all_input_nodes):
            continue
        if rule not in (_move, _normalization, _multiply, _add):
            raise NotImplementedError(f"bounds behind {_describe(trace.net, node)}")
        at_low = _evaluate(trace.net, node, {n: b[0] for n, b in trace.bounds.items()})
        at_high = _evaluate(trace.net, node, {n: b[1] for n, b in trace.bounds.items()})
        trace.bounds[node] = (torch.minimum(at_low, at_high), torch.maximum(at_low, at_high))


# ---- the rules ---------------------------------------------------------------------------


def _divide(relevance: Tensor, denominator: Tensor) -> Tensor:
    """Relevance / denominator, with x/0 = 0."""
    empty = denominator == 0
    return torch.where(empty, 0.0, relevance / torch.where(empty, 1.0, denominator))


def _per_sample(relevance: Tensor) -> Tensor:
    """Sum of each sample: [N, ...] to [N]."""
    return relevance.flatten(1).sum(1)


def _distribute(
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
    ratio = _divide(relevance, denominator)
    pulled = torch.autograd.grad(images, leaves, [ratio] * len(images))
    received = sum(part * pull for (part, _), pull in zip(parts, pulled, strict=True))
    return received, _per_sample(torch.where(denominator == 0, relevance, 0.0))


def _linear(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Convolution or fully connected layer; its bias takes no relevance.

    z-beta for a first one with finite bounds l <= x <= h: Z = W+ (x - l) + W- (x - h).
    z-plus for every other: Z = W+ x+ + W- x-.
    """
    source = node.all_input_nodes[0]
    x = trace.values[source]
    weight = _folded_weight(trace.net, node) * (-1 if mode.opposite else 1)
    positive = functools.partial(_apply, trace.net, node, weight.clamp(min=0))
    negative = functools.partial(_apply, trace.net, node, weight.clamp(max=0))
    low, high = trace.bounds.get(source, (None, None))
    if low is not None and bool(low.isfinite().all()) and bool(high.isfinite().all()):
        parts = [(x - low, positive), (x - high, negative)]
    else:
        parts = [(x.clamp(min=0), positive)]
        if bool((x < 0).any()):
            parts.append((x.clamp(max=0), negative))
    received, absorbed = _distribute(parts, relevance)
    return Handed([(source, received)], absorbed)


def _apply(net: fx.GraphModule, node: Node, weight: Tensor, x: Tensor) -> Tensor:
    """Run the node's linear map on x with another weight and without its bias."""
    layer = _module_of(net, node)
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    if layer.padding_mode != "zeros":
        raise NotImplementedError(f"{node.name}: padding mode {layer.padding_mode!r}")
    return functional.conv2d(
        x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def _folded_weight(net: fx.GraphModule, node: Node) -> Tensor:
    """Weight of a linear map, times the scales per output channel directly behind it."""
    weight = _module_of(net, node).weight
    scale = torch.ones(weight.shape[0], dtype=torch.float64)
    while len(node.users) == 1:
        node = next(iter(node.users))
        factor = _constant_scale(net, node)
        if factor is None:
            break
        scale = scale * factor
    return weight * scale.view(-1, *[1] * (weight.dim() - 1))


def _constant_scale(net: fx.GraphModule, node: Node) -> Tensor | float | None:
    """Scale of an affine map with constant operands; None for any other node."""
    norm = _module_of(net, node)
    if isinstance(norm, nn.BatchNorm2d):
        gamma = 1.0 if norm.weight is None else norm.weight
        return gamma / (norm.running_var + norm.eps).sqrt()
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return None
    constants = [argument for argument in node.args if isinstance(argument, (int, float))]
    if len(constants) != 1 or len(node.args) != 2:
        return None
    if node.target in (operator.mul, torch.mul):
        return float(constants[0])
    return 1.0 if node.target in (operator.add, operator.iadd, torch.add) else None


def _bypass(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """R_x = R_y: activations and dropout."""
    return Handed([(node.all_input_nodes[0], relevance)], _nothing(relevance))


def _normalization(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """R_x = R_y; `_folded_weight` has given the scale to the linear map in front, if any."""
    return _bypass(trace, node, relevance, mode)


def _nothing(relevance: Tensor) -> Tensor:
    """No relevance absorbed, [N]."""
    return torch.zeros(relevance.shape[0], dtype=torch.float64)


def _max_pool(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """All relevance of a window to its winner; overlapping windows add."""
    source = node.all_input_nodes[0]
    received = torch.zeros_like(trace.values[source]).flatten(2)
    received.scatter_add_(2, trace.winners[node].flatten(2), relevance.flatten(2))
    return Handed([(source, received.view_as(trace.values[source]))], _nothing(relevance))


def _average(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Average pooling, over the real elements of each window.

    Rule set `default`: by contribution, as a sum y = sum x: where y > 0, R_x = x+ / sum x+ R_y;
    where y < 0, R_x = x- / sum x- R_y; where y = 0 it is absorbed. `paper`: evenly.
    A pool that changes nothing, whatever its input, passes relevance on.
    """
    source = node.all_input_nodes[0]
    x, y = trace.values[source], trace.values[node]

    def pool(values: Tensor) -> Tensor:
        return _evaluate(trace.net, node, {source: values})

    if _is_identity(pool, x):
        return Handed([(source, relevance)], _nothing(relevance))
    if mode.rules == "paper" or mode.opposite:
        # The zeros of a padded border count for nothing in pool(1), as they should.
        received, absorbed = _distribute([(torch.ones_like(x), pool)], relevance)
        return Handed([(source, received)], absorbed)
    above, lost_above = _distribute([(x.clamp(min=0), pool)], torch.where(y > 0, relevance, 0.0))
    below, lost_below = _distribute([(x.clamp(max=0), pool)], torch.where(y < 0, relevance, 0.0))
    lost = _per_sample(torch.where(y == 0, relevance, 0.0)) + lost_above + lost_below
    return Handed([(source, above + below)], lost)


def _spatial_mean(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Mean over height and width: global average pooling."""
    if node.kwargs or list(node.args[1]) not in ([2, 3], [-2, -1]):
        raise NotImplementedError(f"{_describe(trace.net, node)} over {node.args[1:]}")
    return _average(trace, node, relevance, mode)


def _is_identity(pool: LinearMap, x: Tensor) -> bool:
    """Whether the pool leaves every plane of x's size as it is, told from a curved one."""
    plane = torch.arange(x[0, 0].numel(), dtype=torch.float64) ** 2
    plane = plane.view(1, 1, *x.shape[2:])
    return torch.equal(pool(plane), plane)


def _add(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """Sum y = a + b, in proportion to the contributions that have the sign of the sum.

    Where y > 0, R_a = a+ / (a+ + b+) R_y; where y < 0, R_a = a- / (a- + b-) R_y; where y = 0
    it is absorbed. With a constant operand: R_x = R_y.
    """
    if _constant_scale(trace.net, node) is not None:
        return _bypass(trace, node, relevance, mode)
    if not all(isinstance(operand, Node) for operand in node.args) or node.kwargs:
        raise NotImplementedError(_describe(trace.net, node))
    operands = [trace.values[operand] for operand in node.args]
    if any(value.shape != relevance.shape for value in operands):
        raise NotImplementedError(f"{_describe(trace.net, node)} that broadcasts")
    y = trace.values[node]
    parts = [torch.where(y > 0, v.clamp(min=0), v.clamp(max=0)) for v in operands]
    ratio = torch.where(y == 0, 0.0, _divide(relevance, parts[0] + parts[1]))
    shares = [(n, part * ratio) for n, part in zip(node.args, parts, strict=True)]
    return Handed(shares, _per_sample(torch.where(y == 0, relevance, 0.0)))


def _multiply(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """By a constant: R_x = R_y. By a gate, the value of a sigmoid: all to the other operand."""
    if _constant_scale(trace.net, node) is not None:
        return _bypass(trace, node, relevance, mode)
    gates = [n for n in node.args if _is_gate(trace.net, n)]
    signals = [n for n in node.args if n not in gates]
    if len(gates) != 1 or len(signals) != 1:
        raise NotImplementedError(f"{_describe(trace.net, node)} of two plain activations")
    if trace.values[signals[0]].shape != relevance.shape:
        raise NotImplementedError(f"{_describe(trace.net, node)} that broadcasts its signal")
    return Handed([(signals[0], relevance)], _nothing(relevance))


def _is_gate(net: fx.GraphModule, operand: Argument) -> bool:
    """Whether an operand is the output of a sigmoid."""
    return isinstance(operand, Node) and isinstance(
        _module_of(net, operand), (nn.Sigmoid, nn.Hardsigmoid)
    )


def _move(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """Data movement: its adjoint, which autograd knows."""
    leaves = {n: trace.values[n].detach().clone().requires_grad_() for n in node.all_input_nodes}
    with torch.enable_grad():
        moved = _evaluate(trace.net, node, leaves)
    received = torch.autograd.grad(moved, list(leaves.values()), relevance)
    return Handed(list(zip(leaves, received, strict=True)), _nothing(relevance))


# ---- which operator has which rule -------------------------------------------------------

_MODULE_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _linear,
    nn.Linear: _linear,
    nn.BatchNorm2d: _normalization,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _average,
    nn.Flatten: _move,
}
for _kind in (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.Hardsigmoid),
    *(nn.Dropout, nn.Identity, StochasticDepth),
):
    _MODULE_RULES[_kind] = _bypass

_FUNCTION_RULES: dict[Callable[..., object], Rule] = {
    functional.relu: _bypass,
    torch.relu: _bypass,
    functional.dropout: _bypass,
    stochastic_depth: _bypass,
    functional.adaptive_avg_pool2d: _average,
    functional.avg_pool2d: _average,
    torch.flatten: _move,
    torch.unsqueeze: _move,
    torch.cat: _move,
    operator.getitem: _move,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.mul: _multiply,
    torch.mul: _multiply,
}

_METHOD_RULES: dict[str, Rule] = {
    "relu": _bypass,
    "flatten": _move,
    "unsqueeze": _move,
    "mean": _spatial_mean,
}


def _rule_of(net: fx.GraphModule, node: Node) -> Rule:
    """Return the rule of a node; NotImplementedError, naming the operator, if it has none."""
    if node.op == "call_module":
        rule = _MODULE_RULES.get(type(_module_of(net, node)))
    elif node.op == "call_function":
        rule = _FUNCTION_RULES.get(node.target)
    else:
        rule = _METHOD_RULES.get(node.target) if node.op == "call_method" else None
    if rule is None:
        raise NotImplementedError(_describe(net, node))
    return rule


def _describe(net: fx.GraphModule, node: Node) -> str:
    """Name a node and its operator, for messages."""
    module = _module_of(net, node)
    kind = type(module).__name__ if module is not None else node.target
    return f"{node.name}: {node.op} of {getattr(kind, '__name__', kind)}"


def _module_of(net: fx.GraphModule, node: Node) -> nn.Module | None:
    """Return the module that a node calls, if it calls one."""
    return net.get_submodule(node.target) if node.op == "call_module" else None


def _is_linear(net: fx.GraphModule, node: Node) -> bool:
    """Whether a node is a linear map with constant weights."""
    return isinstance(_module_of(net, node), (nn.Conv2d, nn.Linear))
