"""LRP, CLRP1 and CLRP2 of a PyTorch network, operator by operator in float64.

The network is traced with torch.fx, run once in float64 with every value kept, and walked
backwards; each operator hands its relevance on by the formula written at its rule. Sources
of the formulas: Montavon et al. 2017 (arXiv 1512.02479) for z-plus and z-beta; Gu, Yang and
Tresp 2018 (arXiv 1812.02100) for the contrasts. The code aims to be read, not to be fast.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn import functional

from .network_bounds import Bounds, record_bounds
from .network_linear import LINEAR_MODULES, Mode
from .network_rules import rule_of
from .network_trace import Array, Trace, Winners, run, traced

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
        if _is_linear(trace, node):
            classifiers.add(node)
        else:
            pending.extend(node.all_input_nodes)
    above = _downstream(trace.nodes, classifiers)
    for node in above:
        if _is_linear(trace, node) and any(n in above for n in node.all_input_nodes):
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
        handed = rule_of(trace.net, node)(trace, node, arriving.pop(node), mode)
        absorbed = absorbed + handed.absorbed
        for receiver, share in handed.shares:
            arriving[receiver] = arriving[receiver] + share if receiver in arriving else share
    return arriving, absorbed


def _is_linear(trace: Trace, node: Node) -> bool:
    """Whether a node is a linear map with constant weights."""
    return isinstance(trace.module(node), LINEAR_MODULES)


def record(module: nn.Module, x: Array, bounds: Bounds | None, winners: Winners | None) -> Trace:
    """Run the module in float64 on x [N, channels, ...] and keep every value.

    bounds and winners as in `explain`; without bounds the trace can not be explained.
    """
    trace = traced(module)
    for node in trace.nodes:
        if node.op != "placeholder" and node in trace.carriers:
            rule_of(trace.net, node)
    run(trace, x, winners)
    if bounds is not None:
        record_bounds(trace, bounds)
    return trace
