"""Attributions of a PyTorch network beyond LRP and CLRP, each by its formula in float64.

Gradients come from autograd; excitation backprop has rules of its own over the trace that LRP's
reference makes. Sources of the formulas: Zeiler & Fergus 2014 (deconvnet), Springenberg et al.
2015 (guided backprop), Zhang et al. 2016 (excitation backprop), Selvaraju et al. 2017 (Grad-CAM),
Iwana et al. 2019 (SGLRP), Gu et al. 2018 (contrasts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import network
from .attribution_gradient import (
    Choices,
    Rectify,
    backpropagate,
    deconvolving_rectifier,
    guided_rectifier,
    record,
    true_rectifier,
)
from .attribution_rules import (
    Relevances,
    excitation_rules,
    hand_on,
    lrp_rules,
    split_at_classifier,
)
from .network_bounds import Bounds
from .network_linear import Mode, divide
from .network_trace import Array, Trace

GRADIENTS: Mapping[str, Rectify] = {
    "gradient": true_rectifier,
    "gradient_x_input": true_rectifier,
    "deconvnet": deconvolving_rectifier,
    "guided_backprop": guided_rectifier,
}
CAMS = ("grad_cam", "guided_grad_cam")
CONTRASTS = ("complement", "others", "negated")

MapOf = Callable[[Tensor, bool], Tensor]
"""The map `[N, C, ...]` of a seed `[N, classes]`, the classifier's weights negated or not."""


@dataclass(frozen=True)
class Question:
    """What is asked of a network.

    Attributes:
        method: `lrp`, `excitation_backprop`, or one of `GRADIENTS` or `CAMS`.
        contrast: the dual, one of `CONTRASTS` or `softmax`, that of SGLRP; None for no dual.
        difference: how the dual is taken from the concept: `plain`; `normalised`, each divided by
            the sum of its magnitudes first; `probabilities`, the same at the classifier's input.
        rules: LRP's rule set.
        split: whether equal maxima of a max pool share what arrives.
    """

    method: str
    contrast: str | None = None
    difference: str = "plain"
    rules: str = "default"
    split: bool = False


METHODS: Mapping[str, Question] = {
    **{name: Question(name) for name in ("lrp", "excitation_backprop", *GRADIENTS, *CAMS)},
    "clrp1": Question("lrp", "complement"),
    "clrp2": Question("lrp", "negated"),
    "sglrp": Question("lrp", "softmax"),
    "clrp1_authors": Question("lrp", "others", "normalised", "paper", split=True),
    "clrp2_authors": Question("lrp", "negated", "normalised", "paper", split=True),
    "contrastive_eb": Question("excitation_backprop", "negated", "probabilities"),
}
"""The methods by their names."""


@dataclass(frozen=True)
class Asked:
    """A network, N samples, and the class that is to be explained of each.

    Attributes:
        module: the network.
        x: `[N, C, ...]`.
        target: N classes.
        bounds: lowest and highest value of the input, each `[C]`, for the rule of the first layer.
        choices: what float32 chose where a hair's breadth decides.
        cam: the name that torch.fx gives the node whose output Grad-CAM weights.
    """

    module: nn.Module
    x: Array
    target: Sequence[int] | np.ndarray | Tensor
    bounds: Bounds | None = None
    choices: Choices | None = None
    cam: str | None = None

    @cached_property
    def logits(self) -> Tensor:
        """The network's scores, `[N, classes]`."""
        return self.trace.values[self.trace.logits_node].detach()

    @cached_property
    def chosen(self) -> Tensor:
        """1 at the class to explain, `[N, classes]`."""
        classes = torch.as_tensor(self.target, dtype=torch.int64)
        return functional.one_hot(classes, self.logits.shape[1]).to(self.logits)

    @cached_property
    def trace(self) -> Trace:
        """One run in float64, with every value kept."""
        winners = None if self.choices is None else self.choices.winners
        with torch.no_grad():
            return network.record(self.module, self.x, self.bounds, winners)

    @cached_property
    def _others(self) -> dict[Rectify, Trace]:
        return {}

    def differentiable(self, rectify: Rectify = true_rectifier) -> Trace:
        """Another one that autograd can go back through."""
        if rectify not in self._others:
            self._others[rectify] = record(self.module, self.x, rectify, self.choices)
        return self._others[rectify]


def attribute(asked: Asked, question: Question) -> Tensor:
    """The map at the input, `[N, C, ...]`; of a contrast the signed one."""
    concept, dual = parts(asked, question)
    return concept if dual is None else concept - dual


def parts(asked: Asked, question: Question) -> tuple[Tensor, Tensor | None]:
    """The map of the concept and that of the dual, `[N, C, ...]`; no dual without a contrast."""
    if question.method in CAMS:
        return cam(asked, question.method), None
    if question.method in GRADIENTS:
        return gradients(asked, question)
    return relevance(asked, question)


# ---- seeds and contrasts -----------------------------------------------------------------


def seeds(asked: Asked, question: Question) -> tuple[Tensor, Tensor | None]:
    """Seed and dual seed at the logits, `[N, classes]`; no dual if none is asked for.

    LRP starts with y_t, the other methods with 1. Of that, `complement` gives every other class
    the same part, and `negated` all to t. `others` gives |y_j| to every j but t. SGLRP has
    p_t (1 - p_t) at t, and in its dual p_t p_j at every j but t.
    """
    chosen, logits = asked.chosen, asked.logits
    others = 1 - chosen
    seed = chosen * logits if question.method == "lrp" else chosen
    if question.contrast == "softmax":
        p = logits.softmax(1)
        mine = (chosen * p).sum(1, keepdim=True)
        return chosen * mine * (others * p).sum(1, keepdim=True), others * p * mine
    if question.contrast == "complement":
        return seed, others * seed.sum(1, keepdim=True) / (logits.shape[1] - 1)
    if question.contrast == "others":
        return seed, others * logits.abs()
    return seed, seed if question.contrast == "negated" else None


def both(asked: Asked, question: Question, map_of: MapOf) -> tuple[Tensor, Tensor | None]:
    """The maps of both seeds, as they are subtracted from each other."""
    seed, dual_seed = seeds(asked, question)
    concept = map_of(seed, False)
    if dual_seed is None:
        return concept, None
    dual = map_of(dual_seed, question.contrast == "negated")
    if question.difference == "normalised":
        return _normalised([concept])[0], _normalised([dual])[0]
    return concept, dual


def _normalised(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps at one tensor or several, divided by the sum of all magnitudes of a sample."""
    total = torch.stack([m.abs().flatten(1).sum(1) for m in maps]).sum(0)
    return [divide(m, total.view(-1, *[1] * (m.dim() - 1)).expand_as(m)) for m in maps]


# ---- the methods -------------------------------------------------------------------------


def gradients(asked: Asked, question: Question) -> tuple[Tensor, Tensor | None]:
    """dy_t/dx with the method's rectifiers, times x for `gradient_x_input`."""
    trace = asked.differentiable(GRADIENTS[question.method])
    x = trace.values[trace.input_node].detach()

    def map_of(seed: Tensor, negated: bool) -> Tensor:
        slope = backpropagate(trace, seed, trace.input_node, negated=negated)
        return slope * x if question.method == "gradient_x_input" else slope

    return both(asked, question, map_of)


def cam(asked: Asked, method: str) -> Tensor:
    """max(0, sum_c w_c A_c), w the means of dy_t/dA, in the size of the input.

    `grad_cam` gives each channel of the input the same part of it, `guided_grad_cam` is guided
    backprop times the whole.
    """
    trace = asked.differentiable()
    nodes = {node.name: node for node in trace.nodes}
    if asked.cam not in nodes:
        raise ValueError(f"no node is called {asked.cam!r}; there are {', '.join(nodes)}")
    slope = backpropagate(trace, asked.chosen, nodes[asked.cam])
    activation = trace.values[nodes[asked.cam]].detach()
    weight = slope.mean((2, 3), keepdim=True)
    heat = (weight * activation).sum(1, keepdim=True).clamp(min=0)
    x = trace.values[trace.input_node]
    heat = functional.interpolate(heat, x.shape[2:], mode="bilinear", align_corners=False)
    if method == "grad_cam":
        return heat.expand_as(x) / x.shape[1]
    return gradients(asked, METHODS["guided_backprop"])[0] * heat


def relevance(asked: Asked, question: Question) -> tuple[Tensor, Tensor | None]:
    """LRP or excitation backprop, with or without a contrast."""
    trace = asked.trace
    rules_of = lrp_rules if question.method == "lrp" else excitation_rules
    rules = rules_of(split=question.split)
    above, below = split_at_classifier(trace)

    def map_of(seed: Tensor, negated: bool) -> Tensor:
        mode = Mode(question.rules)
        start = {trace.logits_node: seed}
        arrived = hand_on(trace, above, start, Mode(question.rules, opposite=negated), rules)
        if question.difference == "probabilities":
            arrived = _normalised_at(arrived)
        arrived = hand_on(trace, below, arrived, mode, rules)
        return arrived.get(trace.input_node, torch.zeros_like(trace.values[trace.input_node]))

    with torch.no_grad():
        return both(asked, question, map_of)


def _normalised_at(arrived: Relevances) -> Relevances:
    return dict(zip(arrived, _normalised(list(arrived.values())), strict=True))
