"""Rules that hand relevance on: those of excitation backprop, and max pools that share ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional

from .network_affine import SUBTRACTIONS, affine_scale
from .network_linear import LINEAR_MODULES, Handed, Mode, divide, linear, per_sample
from .network_rules import Rule, add, average, max_pool, mean, rule_of
from .network_trace import Trace, describe, max_pool_of

Relevances: TypeAlias = dict[Node, Tensor]
RuleOf: TypeAlias = Callable[[Trace, Node], Rule]


# ---- the walk ----------------------------------------------------------------------------


def hand_on(
    trace: Trace, nodes: Sequence[Node], arriving: Relevances, mode: Mode, chosen: RuleOf
) -> Relevances:
    """Carry relevance down through `nodes`, last to first; what arrives at other nodes."""
    waiting = dict(arriving)
    for node in reversed(nodes):
        if node is trace.input_node or node not in waiting:
            continue
        for receiver, share in chosen(trace, node)(trace, node, waiting.pop(node), mode).shares:
            waiting[receiver] = waiting[receiver] + share if receiver in waiting else share
    return waiting


def classifiers(trace: Trace) -> list[Node]:
    """Every linear map from which the logits are reached without another one."""
    found: list[Node] = []
    pending = [trace.logits_node]
    while pending:
        node = pending.pop()
        if isinstance(trace.module(node), LINEAR_MODULES):
            found.append(node)
        else:
            pending.extend(trace.sources(node))
    return list(dict.fromkeys(found))


def split_at_classifier(trace: Trace) -> tuple[list[Node], list[Node]]:
    """The classifier layer with all that is made of it, and everything else."""
    above = set(classifiers(trace))
    for node in trace.nodes:
        if not above.isdisjoint(node.all_input_nodes):
            above.add(node)
    return [n for n in trace.nodes if n in above], [n for n in trace.nodes if n not in above]


# ---- which rule a node has -----------------------------------------------------------------


def lrp_rules(*, split: bool) -> RuleOf:
    """LRP's own, but for max pools if they share ties."""

    def chosen(trace: Trace, node: Node) -> Rule:
        rule = rule_of(trace.net, node)
        return split_max_pool if split and rule is max_pool else rule

    return chosen


def excitation_rules(*, split: bool) -> RuleOf:
    """Those of Zhang et al. 2016: whatever adds up does so over positive parts alone."""
    known: dict[Rule, Rule] = {
        linear: excite_linear,
        **dict.fromkeys((average, mean, add), excite_sum),
    }

    def chosen(trace: Trace, node: Node) -> Rule:
        rule = lrp_rules(split=split)(trace, node)
        return known.get(rule, rule)

    return chosen


def excite_linear(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """P_x = x+ W+'(P / W+ x+); z-beta, as LRP, for a first layer with finite bounds."""
    source = trace.source(node)
    bounds = trace.bounds.get(source, ())
    if bounds and all(bool(bound.isfinite().all()) for bound in bounds):
        return linear(trace, node, relevance, mode)
    # Of inputs without a negative part z-plus is what is wanted.
    return linear(_positive_parts(trace, node), node, relevance, mode)


def excite_sum(trace: Trace, node: Node, relevance: Tensor, mode: Mode) -> Handed:
    """P_x = x+ / sum x+ P: sums of activations, means over windows. Nothing where all x <= 0.

    That is LRP's share by contribution, of inputs without a negative part. Behind a classifier
    with negated weights means are even, as those of CLRP2 are.
    """
    if affine_scale(trace, node) is not None:
        return Handed([(trace.source(node), relevance)], torch.zeros_like(per_sample(relevance)))
    if node.target in SUBTRACTIONS:
        raise NotImplementedError(describe(trace.net, node))
    rule = rule_of(trace.net, node)
    return rule(_positive_parts(trace, node), node, relevance, mode)


def _positive_parts(trace: Trace, node: Node) -> Trace:
    """The trace as if what the node reads had no negative part."""
    parts = {source: trace.values[source].clamp(min=0) for source in trace.sources(node)}
    return replace(trace, values={**trace.values, **parts, node: trace.evaluate(node, parts)})


def split_max_pool(trace: Trace, node: Node, relevance: Tensor, _mode: Mode) -> Handed:
    """All relevance of a window to its maxima, the same to each of several that are equal."""
    pool = max_pool_of(trace.net, node)
    if not isinstance(pool, nn.MaxPool2d) or pool.dilation not in (1, (1, 1)):
        raise NotImplementedError(describe(trace.net, node))
    source = trace.source(node)
    leaf = trace.values[source].detach().clone().requires_grad_()
    kernel, step, before = (
        (size, size) if isinstance(size, int) else size
        for size in (pool.kernel_size, pool.stride, pool.padding)
    )
    # Behind, as much as the last window reaches over: with ceil_mode that may be more.
    after = [
        max((count - 1) * s + k - size - b, 0)
        for count, s, k, size, b in zip(
            relevance.shape[2:], step, kernel, leaf.shape[2:], before, strict=True
        )
    ]
    edges = (before[1], after[1], before[0], after[0])
    with torch.enable_grad():
        padded = functional.pad(leaf, edges, value=-torch.inf)
        windows = padded.unfold(2, kernel[0], step[0]).unfold(3, kernel[1], step[1])
    won = (windows == windows.amax((-2, -1), keepdim=True)).double()
    each = divide(relevance, won.sum((-2, -1)))[..., None, None]
    (received,) = torch.autograd.grad(windows, leaf, (won * each).detach())
    return Handed([(source, received)], torch.zeros_like(per_sample(relevance)))
