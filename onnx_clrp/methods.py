"""The methods: which seed starts at the scores, what goes down from there, and the contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnx_clrp.backprop import DECONVNET, GRADIENT, GUIDED
from onnx_clrp.composites import EXCITATION, Composite
from onnx_clrp.errors import UsageError
from onnx_clrp.redistribute import evenly, negated
from onnx_clrp.seeds import (
    Sow,
    complement,
    one,
    others,
    softmax_gradient,
    softmax_gradient_of_others,
    target_score,
)

PLAIN = "plain"
NORMALISED = "normalised"
PROBABILITIES = "probabilities"
DIFFERENCES = (PLAIN, NORMALISED)


@dataclass(frozen=True)
class Dual:
    """What a method compares the concept with.

    Attributes:
        sow: the dual seed.
        opposite: are the weights of the classifier layer negated for it?
        fewest_classes: how many classes it takes for there to be one.
    """

    sow: Sow
    opposite: bool = False
    fewest_classes: int = 1


@dataclass(frozen=True)
class Method:
    """A way to explain a score.

    Attributes:
        name: what it is called.
        sow: what starts at the scores.
        dual: for the contrastive methods, what the concept is compared with.
        title: what pictures call it.
        difference: how the dual is taken from the concept: `"plain"`, R - R_dual; `"normalised"`,
            each map over the sum of its magnitudes; `"probabilities"`, each over its sum at the
            input of the classifier layer.
        composite: who gets what, where that is no matter of rule sets.
        rules: the rule set, where none is asked for.
        times_input: is the map multiplied with the input?
        cam: is a class activation map of a layer made, or multiplied with?
        noise: is it random?
        reduce: how a heatmap comes from channels: `"sum"` or `"abs-max"`.
    """

    name: str
    sow: Sow = target_score
    dual: Dual | None = None
    title: str = ""
    difference: str = PLAIN
    composite: Composite | None = None
    rules: str = "default"
    times_input: bool = False
    cam: bool = False
    noise: bool = False
    reduce: str = "sum"

    @property
    def fewest_classes(self) -> int:
        """How many classes it needs."""
        return 1 if self.dual is None else self.dual.fewest_classes

    @property
    def starts_with_score(self) -> bool:
        """Does a score below zero make a map of what speaks against the class?"""
        return self.sow is target_score and not self.noise

    @property
    def of_relevance(self) -> bool:
        """Is it layer-wise relevance propagation, so that rule sets matter?"""
        return self.composite is None and not self.noise


CONTRASTS: Mapping[str, Callable[[Sow], Dual]] = {
    "complement": lambda sow: Dual(complement(sow), fewest_classes=2),
    "others": lambda sow: Dual(others, fewest_classes=2),
    "negated": lambda sow: Dual(sow, opposite=True),
}
"""The duals by name: CLRP1's, that of the authors' code, and CLRP2's."""

_COMPLEMENT = CONTRASTS["complement"](target_score)
_NEGATED = CONTRASTS["negated"](target_score)
_SOFTMAX = Dual(softmax_gradient_of_others, fewest_classes=2)
_EXCITATION = Method("excitation_backprop", one, title="excitation backprop", composite=EXCITATION)


def _authors(name: str, dual: Dual, title: str) -> Method:
    """As in the code that the paper's authors released."""
    return Method(name, dual=dual, title=title, difference=NORMALISED, rules="authors")


def _gradient(name: str, title: str, **differing: Any) -> Method:
    usual = Method(name, one, title=title, composite=GRADIENT, reduce="abs-max")
    return replace(usual, **differing)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("lrp", title="LRP"),
        Method("clrp1", dual=_COMPLEMENT, title="CLRP1"),
        Method("clrp2", dual=_NEGATED, title="CLRP2"),
        Method("sglrp", softmax_gradient, _SOFTMAX, title="SGLRP"),
        _authors("clrp1_authors", CONTRASTS["others"](target_score), "CLRP1, authors' code"),
        _authors("clrp2_authors", _NEGATED, "CLRP2, authors' code"),
        _gradient("gradient", "gradient"),
        _gradient("gradient_x_input", "gradient × input", times_input=True, reduce="sum"),
        _gradient("deconvnet", "DeconvNet", composite=DECONVNET),
        _gradient("guided_backprop", "guided backprop", composite=GUIDED),
        _EXCITATION,
        replace(
            _EXCITATION,
            name="contrastive_eb",
            title="contrastive EB",
            dual=CONTRASTS["negated"](one),
            difference=PROBABILITIES,
        ),
        _gradient("grad_cam", "Grad-CAM", cam=True, reduce="sum"),
        _gradient("guided_grad_cam", "guided Grad-CAM", composite=GUIDED, cam=True),
        Method("random", title="random", noise=True),
    )
}


def method_of(
    name: str, classes: int, contrast: str | None = None, difference: str | None = None
) -> Method:
    """The method of that name, with a contrast around it if one is asked for.

    Raises:
        UsageError: there is none, it has a contrast already or takes none, or there are too few
            classes for it.
    """
    if name not in METHODS:
        raise UsageError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name]
    if contrast is not None:
        method = _contrasted(method, contrast)
    if difference is not None:
        method = _taken(method, difference)
    if classes < method.fewest_classes:
        raise UsageError(f"{name} needs at least {method.fewest_classes} classes, not {classes}")
    return method


def _contrasted(method: Method, contrast: str) -> Method:
    if contrast not in CONTRASTS:
        raise UsageError(f"no contrast is called {contrast!r}; there are {', '.join(CONTRASTS)}")
    if method.dual is not None:
        raise UsageError(f"{method.name} has a contrast of its own")
    if method.cam or method.noise:
        raise UsageError(f"{method.name} takes no contrast: it does not go back to the input")
    difference = PLAIN if method.of_relevance else NORMALISED
    if method.composite is EXCITATION:
        difference = PROBABILITIES
    return replace(method, dual=CONTRASTS[contrast](method.sow), difference=difference)


def _taken(method: Method, difference: str) -> Method:
    if difference not in DIFFERENCES:
        raise UsageError(f"a difference is {' or '.join(DIFFERENCES)}, not {difference!r}")
    if method.dual is None:
        raise UsageError(f"{method.name} has no contrast, and no difference to take")
    return replace(method, difference=difference)


def opposite(composite: Composite) -> Composite:
    """The composite of a dual: weights negated.

    Relevance goes down means evenly, since the activations belong to the concept and not to its
    opposite (spec. section 2).
    """
    dual = composite.over_maps(negated)
    return dual if composite.gradient else replace(dual, mean=evenly)
