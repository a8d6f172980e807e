"""Gradients in place of relevance: the adjoints of linear maps, and the ways past a ReLU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnx_clrp.composites import Composite
from onnx_clrp.redistribute import LinearMap, Redistribution, plain

if TYPE_CHECKING:
    from onnx_clrp.tape import Tape, Tensor


def _adjoint(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """Wᵀg: the gradient of a linear map."""
    return f.transpose(r, f.weight)


def _mean_adjoint(t: Tape, f: LinearMap, r: Tensor) -> Tensor:
    """Wᵀ(g / n): the gradient of a mean of n elements."""
    each = r if f.count is None else t.Div(r, t.number(t.operand(f.count())))
    # Over a plane the transpose leaves it to what follows to repeat the value.
    return t.Mul(f.transpose(each, f.weight), t.Expand(1.0, t.Shape(f.x)))


adjoint = Redistribution("gradient", _adjoint)
mean_adjoint = Redistribution("gradient of a mean", _mean_adjoint)


def _deconvnet(t: Tape, g: Tensor, mask: Tensor) -> Tensor:
    """Zeiler & Fergus 2014: what is positive goes back, wherever it comes from."""
    return t.Relu(g)


def _guided(t: Tape, g: Tensor, mask: Tensor) -> Tensor:
    """Springenberg et al. 2015: what is positive, and went forward."""
    return t.Mul(t.Relu(g), mask)


GRADIENT = Composite(first=None, linear=adjoint, mean=mean_adjoint, rectify=plain)
DECONVNET = replace(GRADIENT, rectify=_deconvnet)
GUIDED = replace(GRADIENT, rectify=_guided)
