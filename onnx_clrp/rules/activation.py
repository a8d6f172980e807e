"""Elementwise activations: relevance passes through them unchanged, R_x = R_y."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_clrp.errors import UnsupportedError
from onnx_clrp.intervals import Kind, positive_part, range_of
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@rule("Relu", "Clip", "Tanh", "Softplus", "Softsign", bounds=Kind.MONOTONE)
@rule("Sigmoid", "HardSigmoid", bounds=Kind.MONOTONE)
@rule("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", bounds=positive_part)
@rule("PRelu", "Selu")
@rule("HardSwish", bounds=range_of(-0.375, np.inf))
@rule("Gelu", bounds=range_of(-0.171, np.inf))
@rule("Mish", bounds=range_of(-0.309, np.inf))
@rule("Identity", bounds=Kind.MOVEMENT)
@rule("Cast", bounds=Kind.CAST)
def activation(t: Tape, r: Tensor, y: Tensor, x: Tensor, *parameters: Tensor, **_: Any) -> Tensor:
    """R_x = R_y: an activation scales what its unit says, not who said it."""
    return t.unbroadcast(r, y, x)


@rule("Dropout", bounds=Kind.MOVEMENT)
def dropout(
    t: Tape,
    r: Tensor,
    y: Tensor,
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """R_x = R_y: outside of training it is the identity."""
    if training is not None and (t.facts.value(training) is None or t.facts.value(training)):
        raise UnsupportedError("it drops at random (training mode)")
    return r
