"""The classifier layer: every linear map from which the scores are reached without another one."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_clrp.errors import ModelError
from onnx_clrp.facts import Tensor
from onnx_clrp.steps import Step


def split_at_classifier(steps: Sequence[Step], logits: Tensor) -> tuple[list[Step], list[Step]]:
    """The classifier layer with all that lies behind it, and the steps before it.

    The classifier layer is every linear map from which the logits are reached without another
    one. A step whose output also goes another way stands before the split, so that nothing that
    arrives there is lost.

    Raises:
        ModelError: there is no such layer, or one of its maps also feeds another linear map, so
            that no contrast can be formed in one place.
    """
    readers: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for x in step.receivers:
            readers.setdefault(x.name, []).append(i)
    head: set[int] = set()
    reaching = {logits.name}
    nested: list[Step] = []
    for i in reversed(range(len(steps))):
        after = [j for y in steps[i].outputs for j in readers.get(y.name, [])]
        final = any(y.name == logits.name for y in steps[i].outputs)
        if (after or final) and all(j in head and not steps[j].linear for j in after):
            head.add(i)
        if not any(y.name in reaching for y in steps[i].outputs):
            continue
        if steps[i].linear and i not in head:
            nested.append(steps[i])
        if not steps[i].linear:
            reaching.update(x.name for x in steps[i].receivers)
    if nested:
        raise ModelError(
            f"no contrast: {nested[0]} makes the scores and also feeds another one that does, as in"
            " front of a skip connection: of neurons there, explain those of the map before the sum"
        )
    if not any(steps[i].linear for i in head):
        raise ModelError("no contrast: there is no linear map that could be the classifier layer")
    return (
        [step for i, step in enumerate(steps) if i in head],
        [step for i, step in enumerate(steps) if i not in head],
    )
