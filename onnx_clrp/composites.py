"""Composites: which redistribution where; the presets that people know, and overrides by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import isclose
from typing import TYPE_CHECKING, TypeVar

from onnx_clrp.errors import UsageError
from onnx_clrp.lrp_rules import (
    alpha_beta,
    by_signed_share,
    epsilon,
    flat,
    gamma,
    normed,
    wsquare,
)
from onnx_clrp.redistribute import (
    Rectify,
    Redistribution,
    Sharing,
    Winners,
    Wrapper,
    all_winners,
    by_contribution,
    by_excitation,
    by_sign,
    evenly,
    excitation,
    first_winner,
    of_excitations,
    plain,
    zbeta,
    zplus,
)

if TYPE_CHECKING:
    from onnx_clrp.steps import Step

Found = TypeVar("Found")

Overrides = Mapping[str, str] | Iterable[str] | Iterable[tuple[str, str]]
"""Rules by pattern, or texts `"pattern=rule"`; of several that match the last one holds."""


@dataclass(frozen=True)
class Composite:
    """Which redistribution where.

    Attributes:
        first: for linear maps that no other precedes; None if they are like the others.
        linear: for all other linear maps.
        dense: for fully connected ones among them; None if they are like the others.
        mean: for average pooling, over unit weights.
        sum: for sums of activations.
        winners: who gets what of a maximum.
        named: what takes the place of these, by the name of the output of a linear map.
        rectify: how a gradient passes a ReLU; None for relevance, which activations pass on.
    """

    first: Redistribution | None = zbeta
    linear: Redistribution = zplus
    dense: Redistribution | None = None
    mean: Redistribution = by_contribution
    sum: Sharing = by_sign
    winners: Winners = first_winner
    named: tuple[tuple[str, Redistribution], ...] = ()
    rectify: Rectify | None = None

    @property
    def gradient(self) -> bool:
        """Are gradients handed on, and not relevance?"""
        return self.rectify is not None

    @property
    def splits_ties(self) -> bool:
        """Do all that equal a maximum share it?"""
        return self.winners is all_winners

    @property
    def linear_in_relevance(self) -> bool:
        """Is what is handed on linear in what arrived, so that contrasts need a single pass?"""
        rules = (self.first, self.linear, self.dense, self.mean, *(r for _, r in self.named))
        return self.rectify in (None, plain) and all(r is None or r.linear for r in rules)

    def rule(self, step: Step, *, first: bool) -> Redistribution:
        """The redistribution of a linear map; `first` if no other precedes it."""
        named = dict(self.named).get(step.outputs[0].name)
        if named is not None:
            return named
        if first and self.first is not None:
            return self.first
        return self.dense if self.dense is not None and step.op in DENSE else self.linear

    def over_maps(self, wrapper: Wrapper) -> Composite:
        """The same with the redistribution of every linear map wrapped."""
        return replace(
            self,
            first=None if self.first is None else wrapper(self.first),
            linear=wrapper(self.linear),
            dense=None if self.dense is None else wrapper(self.dense),
            named=tuple((name, wrapper(rule)) for name, rule in self.named),
        )


DENSE = frozenset({"Gemm", "MatMul"})
"""Fully connected maps."""
_LIKE_ZENNIT = Composite(first=None, dense=epsilon(), mean=normed, sum=by_signed_share)

RULE_SETS: Mapping[str, Composite] = {
    "default": Composite(),
    "paper": Composite(mean=evenly),
    "authors": Composite(mean=evenly, winners=all_winners),
    "epsilon": replace(_LIKE_ZENNIT, linear=epsilon()),
    "epsilon_plus": replace(_LIKE_ZENNIT, linear=alpha_beta(1, 0)),
    "epsilon_gamma_box": replace(_LIKE_ZENNIT, first=zbeta, linear=gamma()),
    "alpha2_beta1": replace(_LIKE_ZENNIT, linear=alpha_beta(), dense=alpha_beta()),
    "epsilon_alpha2_beta1": replace(_LIKE_ZENNIT, linear=alpha_beta()),
}
"""The paper's text; the one row in which the default differs from it (spec. section 1); the code
that the authors released; and from `epsilon` on the presets of Montavon et al. 2019 and Bach et
al. 2015 as zennit has them."""

EXCITATION = Composite(linear=excitation, mean=of_excitations, sum=by_excitation)
"""Zhang et al. 2016, with z^β at the first linear map."""

AVG_POOL = {"even": evenly, "proportional": by_contribution}
MAX_POOL: Mapping[str, Winners] = {"first": first_winner, "split": all_winners}

RULES: Mapping[str, tuple[Callable[..., Redistribution], int]] = {
    "zplus": (lambda: zplus, 0),
    "zbeta": (lambda: zbeta, 0),
    "epsilon": (epsilon, 1),
    "gamma": (gamma, 1),
    "alpha_beta": (alpha_beta, 2),
    "wsquare": (lambda: wsquare, 0),
    "flat": (lambda: flat, 0),
}
"""Rules for overrides: how each is made, and from how many numbers at most."""


def composite_of(
    rules: str = "default", *, avg_pool: str | None = None, max_pool: str | None = None
) -> Composite:
    """The rule set of that name, with other rules for pools if they are given.

    Raises:
        UsageError: something of that name is not there.
    """
    found = _named(RULE_SETS, rules, "rule set")
    if avg_pool is not None:
        found = replace(found, mean=_named(AVG_POOL, avg_pool, "rule for average pools"))
    if max_pool is not None:
        found = replace(found, winners=_named(MAX_POOL, max_pool, "rule for max pools"))
    return found


def overridden(composite: Composite, overrides: Overrides, steps: Sequence[Step]) -> Composite:
    """The composite with other rules for some linear maps among the steps.

    A pattern is that of a shell (`*`, `?`), for the node's name or its operator, in any case; or
    a place among the linear maps in the order in which they run: `#1`, `#-1`, `#2-5`.

    Raises:
        UsageError: a pattern matches none of them, or a rule makes no sense.
    """
    maps = [step for step in steps if step.linear]
    named = dict(composite.named)
    for pattern, rule in as_pairs(overrides):
        made = parse_rule(rule)
        chosen = _matching(pattern, maps)
        if not chosen:
            names = ", ".join(str(step) for step in maps[:4])
            raise UsageError(
                f"no linear map is called {pattern!r}; there are {len(maps)}: {names}"
                f"{', …' * (len(maps) > 4)} (a place is written #1 … #{len(maps)})"
            )
        named.update((step.outputs[0].name, made) for step in chosen)
    return replace(composite, named=tuple(named.items()))


def parse_rule(text: str) -> Redistribution:
    """The redistribution that a text such as `gamma(0.25)` names.

    Raises:
        UsageError: it names none.
    """
    read = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if read is None:
        raise UsageError(f"{text!r} is no rule: it is written as epsilon(1e-6) or zplus")
    make, most = _named(RULES, read[1], "rule")
    try:
        numbers = [float(part) for part in (read[2] or "").split(",") if read[2]]
    except ValueError as error:
        raise UsageError(f"{text!r}: a rule takes numbers in its brackets") from error
    if len(numbers) > most or not all(0 <= n < float("inf") for n in numbers):
        raise UsageError(f"{text!r}: {read[1]} takes at most {most} numbers, none below zero")
    if read[1] == "alpha_beta" and numbers and not isclose(numbers[0] - sum(numbers[1:]), 1):
        raise UsageError(f"{text!r}: alpha - beta must be 1, or relevance is not conserved")
    if read[1] == "alpha_beta" and len(numbers) == 1:
        numbers.append(0.0)
    return make(*numbers)


def as_pairs(overrides: Overrides) -> list[tuple[str, str]]:
    """Each pattern with its rule.

    Raises:
        UsageError: one of them is no such pair.
    """
    listed: Iterable[object] = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(overrides, Mapping):
        listed = overrides.items()
    return [_pair(given) for given in listed]


def _pair(given: object) -> tuple[str, str]:
    match given:
        case (str(pattern), str(rule)):
            return pattern, rule
        case str(text):
            pattern, _, rule = text.rpartition("=")
            if pattern.strip() and rule.strip():
                return pattern.strip(), rule.strip()
    raise UsageError(f"{given!r} is no override: write PATTERN=RULE, as conv*=gamma(0.25)")


def _matching(pattern: str, maps: Sequence[Step]) -> list[Step]:
    place = re.fullmatch(r"#(-?\d+)(?:-(-?\d+))?", pattern)
    if place is None:
        wanted = pattern.lower()
        return [s for s in maps if any(fnmatchcase(x.lower(), wanted) for x in (s.name, s.op))]
    first = _place(int(place[1]), len(maps))
    last = first if place[2] is None else _place(int(place[2]), len(maps))
    return [step for i, step in enumerate(maps) if first <= i <= last]


def _place(number: int, total: int) -> int:
    """A place counted from 1, or backwards from -1, as an index; -1 where there is none."""
    index = number - 1 if number > 0 else total + number
    return index if number and 0 <= index < total else -1


def _named(table: Mapping[str, Found], name: str, what: str) -> Found:
    if name not in table:
        raise UsageError(f"no {what} is called {name!r}; there are {', '.join(table)}")
    return table[name]
