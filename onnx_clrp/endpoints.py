"""Where relevance starts and ends: the logits of a graph and the input that is explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_graphsurgeon as gs

from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.facts import Facts, reads
from onnx_clrp.formulas import answered
from onnx_clrp.rules import find_rule
from onnx_clrp.signs import falls
from onnx_clrp.steps import step_of

ENDS = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "TopK", "Hardmax"})
"""Operators that turn logits into an answer; relevance starts in front of them."""

_BEHIND = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Gather"),
        *("Clip", "Mul", "Div", "Add", "Sub", "Log", "Exp", "Round", "Max", "Min", "ReduceMax"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("ZipMap", "ArrayFeatureExtractor", "LabelEncoder", "Normalizer"),
    }
)
"""What may lie between an answer and the output: other shapes, units and types, names."""

_LOOKUPS = frozenset({"Gather", "ArrayFeatureExtractor"})


def find_input(graph: gs.Graph, name: str | None = None) -> gs.Variable:
    """The input to explain: the one that is named, the only one, or the only picture.

    Where no input is a picture, the only one that has more axes than batch and features.

    Raises:
        UsageError: there is no such input, or several and none was named.
    """
    inputs = {x.name: x for x in graph.inputs}
    if name is not None:
        if name not in inputs:
            raise UsageError(f"no input is called {name!r}; the model has {_names(inputs)}")
        return inputs[name]
    if not inputs:
        raise ModelError("the model has no input")
    ranks = [len(x.shape or ()) for x in graph.inputs]
    pictures = [x for x, rank in zip(graph.inputs, ranks, strict=True) if rank == 4]
    others = [x for x, rank in zip(graph.inputs, ranks, strict=True) if rank > 2]
    candidates = list(graph.inputs) if len(inputs) == 1 else pictures or others
    if len(candidates) != 1:
        raise UsageError(f"say which input to explain with --input: {_names(inputs)}")
    return candidates[0]


def find_logits(
    graph: gs.Graph, facts: Facts, name: str | None = None
) -> tuple[gs.Variable, list[str]]:
    """The tensor of class scores, and remarks for the user where it had to be guessed.

    A Softmax, LogSoftmax, Sigmoid or ArgMax at the very end is skipped, since "the logit before
    softmax is taken" (paper, section 3). Of several candidates the one is taken that is called
    logits, or else the one behind the most linear maps.

    Raises:
        UsageError: there is no such tensor, or several are as good as each other.
    """
    if name is not None:
        tensors = graph.tensors()
        if name not in tensors or not tensors[name].inputs:
            raise UsageError(f"no node writes a tensor called {name!r}")
        return before_the_end(tensors[name], facts), []
    if not graph.outputs:
        raise ModelError("the model has no output")
    leading = [y for y in graph.outputs if facts.carries(y)] or graph.outputs
    found = {before_the_end(y, facts).name: before_the_end(y, facts) for y in leading}
    fitting = {n: x for n, x in found.items() if _fits(x, facts)} or found
    best = _best(fitting, [y.name for y in leading])
    if len(best) > 1:
        raise UsageError(f"several outputs; say which holds the logits: --logits {_names(fitting)}")
    chosen = fitting[best[0]]
    if len(fitting) == 1:
        return chosen, []
    return chosen, [f"of {_names(fitting)}, {chosen.name!r} is taken for the logits"]


def before_the_end(tensor: gs.Variable, facts: Facts) -> gs.Variable:
    """The tensor in front of a final Softmax and the like, or the tensor itself."""
    found = tensor
    for node, before in _spine(tensor, facts):
        if node.op in ENDS:
            found = before
        elif (scores := answered(node.outputs[0], facts)) is not None:
            found = scores
    return found


def _spine(tensor: gs.Variable, facts: Facts) -> Iterator[tuple[gs.Node, gs.Variable]]:
    """The nodes at the end that make an answer of scores, last first, and what each reads."""
    while tensor.inputs:
        node = tensor.inputs[0]
        scores = answered(tensor, facts)
        data = [scores] if scores is not None else [x for x in node.inputs if facts.carries(x)]
        if len(data) != 1 or (scores is None and node.op not in ENDS | _BEHIND):
            return
        if node.op in _LOOKUPS and data[0] is node.inputs[0]:  # picks classes, and no names
            return
        if scores is None and falls(step_of(node, facts), facts):  # as 1 - p: no answer any more
            return
        tensor = data[0]
        yield node, tensor


def _fits(scores: gs.Variable, facts: Facts) -> bool:
    """Is it `[N, C]`, `[N, C, 1, …]`, `[N, 1, …, C]` or `[N]`, as far as is known?"""
    shape = facts.shape(scores)
    return shape is None or (len(shape) > 0 and sum(d != 1 for d in shape[1:]) <= 1)


def _best(candidates: Mapping[str, gs.Variable], outputs: Sequence[str]) -> list[str]:
    """Those of the candidates that nothing speaks against.

    Behind the same linear maps, what is made from another candidate is drawn from the scores.
    """
    if len(candidates) == 1:
        return [*candidates]
    called = [n for n in outputs if n in candidates and "logit" in n.lower()]
    called = [n for n in called if "aux" not in n.lower()]  # which only training needed
    if len(called) == 1:
        return called
    behind = {n: _upstream(x) for n, x in candidates.items()}
    deepest = max(depth for _, depth in behind.values())
    last = [n for n in candidates if behind[n][1] == deepest]
    return [n for n in last if behind[n][0].isdisjoint(last)]


def _upstream(tensor: gs.Variable) -> tuple[set[str], int]:
    """The names of all tensors that it is made from, and by how many linear maps with weights."""
    names: set[str] = set()
    nodes: dict[int, gs.Node] = {}
    waiting = [tensor]
    while waiting:
        for node in waiting.pop().inputs:
            if id(node) not in nodes:
                nodes[id(node)] = node
                new = [x for x in reads(node) if x.name not in names]
                names.update(x.name for x in new)
                waiting.extend(new)
    rules = (find_rule(node.op, node.domain) for node in nodes.values())
    return names, sum(rule is not None and rule.linear for rule in rules)


def _names(tensors: Mapping[str, gs.Variable]) -> str:
    return ", ".join(repr(name) for name in tensors)


def channel_axis(source: gs.Variable) -> int:
    """The axis of the channels of an input: 1, or the last one of a picture `[N, H, W, C]`."""
    shape = source.shape
    if shape is None or len(shape) != 4 or shape[1] in (1, 3, 4):
        return 1
    return 3 if shape[3] in (1, 3, 4) else 1
