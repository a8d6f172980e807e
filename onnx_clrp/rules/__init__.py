"""The registries of rules and gradients: what each operator hands on to its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from onnx_clrp.errors import UsageError
from onnx_clrp.intervals import Bounds, Kind

Redistribute = Callable[..., Any]
"""`(t, r, y, *inputs, **attributes) -> relevance`, see `rule`."""

_Function = TypeVar("_Function", bound=Redistribute)


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        redistribute: the function.
        bounds: how the operator carries intervals; None if nothing is known of its output.
        linear: is it a linear map with weights, which z⁺, z^β and their like are defined for?
        variadic: does it take the relevance of every output, not of the first alone?
        moves: does it hand relevance back without a look at values, whatever its bounds?
    """

    redistribute: Redistribute
    bounds: Bounds | None
    linear: bool
    variadic: bool
    moves: bool

    @property
    def calculates(self) -> bool:
        """Does it need the values of its tensors, and not just move them?"""
        moving = (Kind.MOVEMENT, Kind.PADDING, Kind.JOIN, Kind.CAST)
        return not self.moves and self.bounds not in moving

    @property
    def summary(self) -> str:
        """What the rule does in a few words: its docstring up to the first colon."""
        return (inspect.getdoc(self.redistribute) or "").partition("\n")[0].partition(":")[0]

    def unknown_attributes(self, attributes: dict[str, Any]) -> list[str]:
        """The attributes that the rule's signature does not take."""
        parameters = inspect.signature(self.redistribute).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return []
        return sorted(set(attributes) - {p.name for p in parameters})


_registry: dict[tuple[str, str], Rule] = {}
_gradients: dict[tuple[str, str], Rule] = {}
_bounds: dict[tuple[str, str], Bounds] = {}


def rule(
    *operators: str,
    domain: str = "",
    bounds: Bounds | None = None,
    linear: bool = False,
    variadic: bool = False,
    moves: bool = False,
    replace: bool = False,
) -> Callable[[_Function], _Function]:
    """Register a function as the relevance rule of one or more operators.

    The function is called as `function(t, r, y, *inputs, **attributes)`: the tape to write
    nodes on, the relevance `[k, *y.shape]` of the output, the output, the node's inputs (None for
    one that is left out) and its attributes. It returns the relevance of its inputs, in order and
    None for those that take none, or a single tensor for the only input that depends on the data.
    Forward tensors broadcast to relevance from the right, so that `t.Mul(r, x)` just works.

    Args:
        operators: the op types.
        domain: their domain; empty for ONNX's own.
        bounds: how the operator carries intervals, see `onnx_clrp.intervals`.
        linear: whether it is a linear map with weights (Conv, Gemm, …).
        variadic: whether `r` and `y` are lists over all outputs (None where none arrives).
        moves: whether it never looks at values, whatever its bounds are.
        replace: whether it may take the place of a rule that is there already.

    A rule that meets what it has no formula for raises `onnx_clrp.UnsupportedError(reason)`.

    Raises:
        UsageError: an operator has a rule and `replace` is false.
    """

    def register(function: _Function) -> _Function:
        for operator in operators:
            key = (_domain(domain), operator)
            if key in _registry and not replace:
                raise UsageError(f"{operator} has a rule already; say replace=True to replace it")
            _registry[key] = Rule(function, bounds, linear, variadic, moves)
        return function

    return register


def gradient(
    *operators: str, domain: str = "", moves: bool = False, replace: bool = False
) -> Callable[[_Function], _Function]:
    """Register a function as the gradient of one or more operators: their vector-Jacobian product.

    The function is called as a rule is, with the gradient `[k, *y.shape]` of the explained scores
    by the output, and returns those by the inputs. A rule that is its own gradient, as that of a
    linear map which hands on by `Tape.redistribute` with its true weights, takes both decorators.
    Operators whose rule only moves values need none.

    Args:
        operators: the op types.
        domain: their domain; empty for ONNX's own.
        moves: whether it never looks at values, so that their type is of no matter.
        replace: whether it may take the place of a gradient that is there already.

    Raises:
        UsageError: an operator has a gradient and `replace` is false.
    """

    def register(function: _Function) -> _Function:
        for operator in operators:
            key = (_domain(domain), operator)
            if key in _gradients and not replace:
                raise UsageError(f"{operator} has a gradient already; say replace=True")
            _gradients[key] = Rule(function, None, False, False, moves)
        return function

    return register


def bounded(operator: str, *, bounds: Bounds, domain: str = "") -> None:
    """Say what an operator's values lie between that has no rule, but may make a gate."""
    _bounds[_domain(domain), operator] = bounds


def find_bounds(operator: str, domain: str | None = "") -> Bounds | None:
    """How an operator carries intervals, whether it has a rule or not."""
    rule = find_rule(operator, domain)
    return _bounds.get((_domain(domain), operator)) if rule is None else rule.bounds


def find_rule(operator: str, domain: str | None = "") -> Rule | None:
    """The rule of an operator, or None if it has none."""
    return _registry.get((_domain(domain), operator))


def find_gradient(operator: str, domain: str | None = "") -> Rule | None:
    """The gradient of an operator: its rule where that moves values; None if it has none."""
    found = _gradients.get((_domain(domain), operator))
    rule = find_rule(operator, domain)
    return rule if found is None and rule is not None and not rule.calculates else found


def differentiable(domain: str = "") -> list[str]:
    """The operators of a domain that have a gradient, sorted."""
    known = {op for d, op in (*_registry, *_gradients) if d == _domain(domain)}
    return sorted(op for op in known if find_gradient(op, domain) is not None)


def operators(domain: str = "") -> list[str]:
    """The operators of a domain that have a rule, sorted."""
    return sorted(op for d, op in _registry if d == _domain(domain))


def _domain(domain: str | None) -> str:
    return "" if domain in (None, "ai.onnx") else str(domain)


_FAMILIES = ("linear", "activation", "normalisation", "merge", "pooling", "movement", "resize")
for _family in (*_FAMILIES, "derivatives", "norm_gradients"):
    import_module(f"{__name__}.{_family}")  # each registers its rules
