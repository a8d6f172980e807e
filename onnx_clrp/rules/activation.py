"""Elementwise activations: relevance passes through them unchanged, R_x = R_y."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_clrp.intervals import Kind, range_of
from onnx_clrp.rules import rule

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


@rule("Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", bounds=Kind.MONOTONE)
@rule("Tanh", "Softplus", "Softsign", "Sigmoid", "HardSigmoid", bounds=Kind.MONOTONE)
@rule("Identity", "Cast", "Dropout", bounds=Kind.MONOTONE)
@rule("PRelu")
@rule("HardSwish", bounds=range_of(-0.375, np.inf))
@rule("Gelu", bounds=range_of(-0.171, np.inf))
@rule("Mish", bounds=range_of(-0.309, np.inf))
def activation(t: Tape, r: Tensor, y: Tensor, x: Tensor, *parameters: Tensor, **_: Any) -> Tensor:
    """R_x = R_y: an activation scales what its unit says, not who said it."""
    return t.unbroadcast(r, y, x)
