"""The reverse walk: relevance goes from each node's outputs to its inputs and adds up at forks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_clrp.composites import Composite
from onnx_clrp.errors import UnsupportedError
from onnx_clrp.rules import Rule, find_gradient, find_rule
from onnx_clrp.steps import Step
from onnx_clrp.tape import Tape, Tensor

Relevance = dict[str, Tensor]
"""Relevance by the name of the tensor that it belongs to."""

Handed = list[tuple[Tensor, Tensor]]
"""Each input of a step that takes relevance, and what it takes."""

Watch = Callable[[Step, "Sequence[Tensor | None]", Handed], None]
"""Told of every step: the relevance that arrived at its outputs, and what it handed on."""

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


def walk(
    t: Tape,
    steps: Sequence[Step],
    relevance: Relevance,
    composite: Composite,
    watch: Watch | None = None,
    kept: Relevance | None = None,
) -> Relevance:
    """Hand relevance back through `steps`; what remains belongs to tensors that none of them made.

    What all readers of a tensor handed on to it is put into `kept`, for every tensor. A node that
    cannot hand it on becomes a gap of the tape's, and the walk goes on to find the others;
    `refuse_gaps` then names them all.
    """
    left, t.composite = dict(relevance), composite
    for step in reversed(steps):
        arrived = [left.pop(y.name, None) for y in step.outputs]
        if all(r is None for r in arrived):
            continue
        if kept is not None:
            pairs = zip(step.outputs, arrived, strict=True)
            kept.update((y.name, r) for y, r in pairs if r is not None)
        handed = _handed(t, step, arrived)
        for x, r in handed:
            left[x.name] = _added(t, left[x.name], r, x) if x.name in left else r
        if watch is not None:
            watch(step, arrived, handed)
    return left


def _added(t: Tape, one: Tensor, other: Tensor, x: Tensor) -> Tensor:
    """All that readers of `x` handed on to it."""
    both = t.Add(one, other)
    return t.vanishing(both, x) if t.vanishes(one, x) and t.vanishes(other, x) else both


def _handed(t: Tape, step: Step, arrived: Sequence[Tensor | None]) -> Handed:
    """What the step's rule hands on; at a gap anything, since nothing will come of it."""
    carriers = [x for x in step.receivers if t.carries(x)]
    try:
        with t.scope(step.name or step.op):
            return _by_rule(t, step, arrived, carriers)
    except UnsupportedError as error:
        t.gaps.append((step, error))
        return [(x, x) for x in carriers]


def _by_rule(
    t: Tape, step: Step, arrived: Sequence[Tensor | None], carriers: Sequence[Tensor]
) -> Handed:
    find, what = _looked_up(t)
    rule = find(step.op, step.domain)
    if rule is None:
        flow = step.op in _CONTROL_FLOW
        missing = f"no {what} for this operator"
        raise UnsupportedError("control flow is not supported" if flow else missing)
    unknown = rule.unknown_attributes(step.attributes)
    if unknown:
        raise UnsupportedError(f"its rule does not take {', '.join(unknown)}")
    if not rule.variadic and any(r is not None for r in arrived[1:]):
        raise UnsupportedError("relevance arrives at an output other than the first")
    if rule.calculates and step.other_type is not None:
        raise UnsupportedError(f"it calculates in {step.other_type}: only float32 is supported")
    if step.doubt is not None:
        raise UnsupportedError(step.doubt)
    t.step = step
    r, y = (arrived, step.outputs) if rule.variadic else (arrived[0], step.outputs[0])
    try:
        result = rule.redistribute(t, r, y, *step.inputs, **step.attributes)
    except UnsupportedError:
        raise
    except Exception as error:  # whatever a rule of the user's own may raise
        raise UnsupportedError(f"its {what} fails: {type(error).__name__}: {error}") from error
    _refuse_no_relevance(step, result, what)
    _refuse_unheeded_signs(t, step)
    if not isinstance(result, list | tuple):
        return [(_only(step, carriers), result)]
    pairs = zip(step.inputs, result, strict=True)
    taking = [x.name for x in carriers]
    return [(x, r) for x, r in pairs if r is not None and x is not None and x.name in taking]


def _only(step: Step, carriers: Sequence[Tensor]) -> Tensor:
    """The input that takes what a rule returned for its only one."""
    if len(carriers) != 1:
        raise UnsupportedError("more than one of its inputs depends on the input")
    if not step.domain and not step.linear and carriers[0] is not step.inputs[0]:
        raise UnsupportedError("another of its operands than its data depends on the input")
    return carriers[0]


def _looked_up(t: Tape) -> tuple[Callable[[str, str], Rule | None], str]:
    """Where the walk finds what a step does, and what that is called."""
    return (find_gradient, "gradient") if t.composite.gradient else (find_rule, "rule")


def _refuse_no_relevance(step: Step, result: object, what: str) -> None:
    """A rule or gradient of the user's own may return anything."""
    each = [r for r in result if r is not None] if isinstance(result, list | tuple) else [result]
    if not all(isinstance(r, Tensor) for r in each):
        raise UnsupportedError(f"its {what} returns {result!r}, which is no relevance")
    if isinstance(result, list | tuple) and len(result) != len(step.inputs):
        raise UnsupportedError(
            f"its {what} returns relevance for {len(result)} inputs, it has {len(step.inputs)}"
        )


def _refuse_unheeded_signs(t: Tape, step: Step) -> None:
    """A linear rule of the user's own may do without the composite, but not without the signs."""
    if t.heeded is not step and (step.signs is not None or step.scales):
        raise UnsupportedError(
            "a scale behind it may be negative, and its rule does not hand on by Tape.redistribute"
        )


def refuse_gaps(t: Tape, steps: Sequence[Step]) -> None:
    """Raise if any step could not hand relevance on: all in a line each, in the graph's order.

    Raises:
        UnsupportedError: with the name, the operator and the reason of each, and the cure.
    """
    found = {id(step): (step, error) for step, error in t.gaps}
    if found:
        gaps = [found[id(step)] for step in steps if id(step) in found]
        raise _unsupported(gaps, *_looked_up(t))


def _unsupported(
    found: Sequence[tuple[Step, UnsupportedError]],
    find: Callable[[str, str], Rule | None],
    what: str,
) -> UnsupportedError:
    causes = [(step, error) for step, error in found if not error.follows] or found
    gaps = [(str(step), step.operator, str(error)) for step, error in causes]
    wide, high = (max(len(gap[i]) for gap in gaps) for i in (0, 1))
    count = f"{len(gaps)} nodes" if len(gaps) > 1 else "1 node"
    handed = "gradients" if what == "gradient" else "relevance"
    lines = [f"{count} between input and logits cannot hand {handed} on:"]
    lines += [f"  {name:{wide}}  {operator:{high}}  {why}" for name, operator, why in gaps]
    missing = [step for step, _ in causes if find(step.op, step.domain) is None]
    if missing:
        domain = f', domain="{missing[0].domain}"' if missing[0].domain else ""
        lines.append(
            f'Register a {what}: @onnx_clrp.{what}("{missing[0].op}"{domain}); see docs/rules.md.'
        )
    refusal = UnsupportedError("\n".join(lines), gaps)
    refusal.__cause__ = causes[0][1].__cause__  # where a rule of the user's own went wrong
    return refusal
