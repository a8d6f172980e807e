"""The tape: what rules write nodes with, and what they know of tensors and of relevance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.composites import Composite
from onnx_clrp.errors import UnsupportedError
from onnx_clrp.facts import Facts, Shape
from onnx_clrp.redistribute import TINY, LinearMap
from onnx_clrp.steps import Step
from onnx_clrp.writer import Operand as Operand
from onnx_clrp.writer import Tensor as Tensor
from onnx_clrp.writer import Writer

Sizes: TypeAlias = NDArray[np.int64] | Tensor
"""Sizes along some axes: numbers where they are known, else a tensor that holds them."""

BIAS_ALONE = "Z = 0: its bias alone made the output"
"""Why a linear map absorbs relevance."""


class Tape(Writer):
    """Writes the nodes of a walk.

    Relevance has one axis more than the tensor it belongs to: `[k, *x.shape]`, for `k` targets.
    """

    def __init__(self, taken: Iterable[str], facts: Facts, prefix: str = "relevance") -> None:
        super().__init__(taken, facts, prefix)
        self.targets: Tensor | NDArray[np.int64] = np.array([1], np.int64)
        """How many targets there are: `[k]`, known or not."""
        self.absorbed: list[tuple[Step, str, Tensor]] = []
        """What found no receiver, at which step and why, `[k]` each; computed if asked for."""
        self.gaps: list[tuple[Step, UnsupportedError]] = []
        """The steps that could not hand relevance on, and why."""
        self.composite: Composite
        self.step: Step
        self.picks: dict[str, Tensor] = {}
        """Which channel alone has relevance, `[k, N]`, by the name of such relevance
        `[k, N, C, …]`."""
        self._products: dict[str, tuple[Tensor, Tensor]] = {}
        self._vanishing: set[tuple[str, str]] = set()
        self.rectified = 0
        """How many ReLUs gradients have passed."""
        self.heeded: Step | None = None
        """The last step whose scales behind it were heeded."""

    # -- whose turn it is ----------------------------------------------------------------------

    def redistribute(self, f: LinearMap, r: Tensor) -> Tensor:
        """Hand relevance down a linear map by the composite's rule for it."""
        rule = self.composite.rule(self.step, first=not self.facts.behind_linear(f.x))
        self.heeded = self.step
        whole = rule.whole and not f.folded
        return rule(self, self._whole(f) if whole else self._signed(f), r)

    def _signed(self, f: LinearMap) -> LinearMap:
        """The map with the signs of the per-channel scales behind it in its weights.

        The redistributions do not change when an output is scaled by a positive number, so that of
        a BatchNorm folded into the weights nothing but the sign is left.
        """
        weight, signs = f.weight, self.step.signs
        if signs is not None:
            weight = self._scaled(f, signs)
        for scale in self.step.scales:
            weight = self.Mul(weight, self.Sign(scale))
        return f if weight is f.weight else replace(f, weight=weight, output=None)

    def _whole(self, f: LinearMap) -> LinearMap:
        """The map with what is affine right behind it folded in, as a BatchNorm, its bias too."""
        weight, bias, tail = f.weight, f.bias, self.step.tail
        factor, shift = self.step.signs, None
        if tail is not None:
            signs = 1 if tail.signs is None else tail.signs
            factor, shift = tail.factor * signs, tail.shift * signs
        if factor is not None:
            laid = [-1] + [1] * (self.rank(f.y) - self.step.channel_axis - 1)
            weight = self._scaled(f, factor)
            bias = None if bias is None else self.Mul(bias, factor.reshape(laid))
            if shift is not None:
                added = self.operand(shift.reshape(laid))
                bias = added if bias is None else self.Add(bias, added)
        for scale in self.step.scales:
            weight = self.Mul(weight, self.Sign(scale))
            bias = None if bias is None else self.Mul(bias, self.Sign(scale))
        same = weight is f.weight and bias is f.bias
        return f if same else replace(f, weight=weight, bias=bias, output=None)

    def _scaled(self, f: LinearMap, factors: NDArray[np.float32]) -> Tensor:
        """The weights times a number for each channel of the output."""
        if (factors == factors[0]).all():
            return self.Mul(f.weight, float(factors[0]))
        if f.outputs is None:
            raise UnsupportedError(
                "scales that differ by channel behind it, and its rule names no axis of its"
                " weights for them (LinearMap.outputs)"
            )
        shape = [1] * self.rank(f.weight)
        shape[f.outputs] = -1
        if f.groups > 1:  # one number for each input too, since an output's group is theirs
            shape[0] = inputs = self.weight_sizes(f.weight)[0]
            factors = np.repeat(factors.reshape(f.groups, -1), inputs // f.groups, axis=0)
        return self.Mul(f.weight, factors.reshape(shape))

    def average(self, f: LinearMap, r: Tensor) -> Tensor:
        """Hand relevance down a mean by the composite's rule for means."""
        return self.composite.mean(self, f, r)

    def share(self, terms: Sequence[Tensor], total: Tensor, r: Tensor) -> list[Tensor]:
        """Hand relevance down a sum by the composite's rule for sums."""
        return self.composite.sum(self, terms, total, r)

    def rectify(self, g: Tensor, mask: Tensor) -> Tensor:
        """Hand a gradient down a ReLU that let pass where the mask is 1; in a gate it is none."""
        if self.step.shapes_gate:
            return self.Mul(g, mask)
        self.rectified += 1
        assert self.composite.rectify is not None  # gradients are handed on by no other composite
        return self.composite.rectify(self, g, mask)

    # -- what is known -------------------------------------------------------------------------

    def carries(self, x: Tensor | None) -> bool:
        """Does the tensor depend on the explained input, so that it takes relevance?"""
        return self.facts.carries(x)

    def nonnegative(self, x: Tensor) -> bool:
        """Is the tensor proven to be nowhere below zero?"""
        return self.interval(x).nonnegative

    def rank(self, x: Tensor) -> int:
        """The tensor's number of axes."""
        return len(self._known_shape(x))

    def dims(self, x: Tensor, axes: Sequence[int]) -> list[int] | None:
        """The tensor's sizes along `axes` where all of them are known, else None."""
        shape = self._known_shape(x)
        sizes = [shape[a] for a in axes]
        known = [d for d in sizes if d is not None]
        return known if len(known) == len(sizes) else None

    def weight_sizes(self, w: Tensor) -> list[int]:
        """The sizes of weights, which no rule can do without."""
        dims = self.dims(w, range(self.rank(w)))
        if dims is None:
            raise UnsupportedError("the shape of its weights is known only at run time")
        return dims

    def integers(self, x: Tensor | None, what: str) -> list[int] | None:
        """The values of a constant integer input; None if it is left out."""
        if x is None:
            return None
        value = self.facts.value(x)
        if value is None:
            raise UnsupportedError(f"its {what} are computed while the model runs")
        return [int(v) for v in np.atleast_1d(value)]

    def _known_shape(self, x: Tensor) -> Shape:
        shape = self.facts.shape(x)
        if shape is None:
            raise UnsupportedError(f"the shape of {x.name!r} is not known", follows=True)
        return shape

    def vanishing(self, r: Tensor, x: Tensor) -> Tensor:
        """Relevance of `x`, of which `vanishes` is to say yes."""
        self._vanishing.add((r.name, x.name))
        return r

    def vanishes(self, r: Tensor, x: Tensor) -> bool:
        """Is the relevance of `x` known to be 0 wherever `x` is not above zero?

        As that of a ReLU's output is, where it is its share in sums, and so that of its input.
        """
        return (r.name, x.name) in self._vanishing

    def still_picked(self, r: Tensor, handed: Tensor) -> Tensor:
        """Relevance that lies in the same channels as `r` does."""
        if r.name in self.picks:
            self.picks[handed.name] = self.picks[r.name]
        return handed

    # -- sizes and shapes ----------------------------------------------------------------------

    def sizes(self, x: Tensor, axes: Sequence[int]) -> Sizes:
        """The tensor's sizes along `axes` (contiguous): numbers where known, else a tensor."""
        known = self.dims(x, axes)
        if known is not None:
            return np.array(known, np.int64)
        rank = self.rank(x)
        first, last = (a % rank for a in (axes[0], axes[-1]))
        return self.Shape(x, start=first, end=last + 1)

    def shaped(self, a: Tensor, x: Tensor) -> Tensor:
        """A tensor that was written, of which is known now that it has the shape of `x`."""
        a.shape = self._known_shape(x)
        return a

    def flat(self, r: Tensor, y: Tensor) -> Tensor:
        """Relevance `[k, *y.shape]` with targets and batch in one axis, `[k*N, ...]`."""
        rest = self.sizes(y, range(1, self.rank(y)))
        return self.Reshape(r, self.Concat([-1], rest, axis=0))

    def like(self, r: Tensor, x: Tensor) -> Tensor:
        """Relevance with its elements laid out as those of `x`: `[k, *x.shape]`."""
        return self.Reshape(r, self.shape_of_relevance(x))

    def shape_of_relevance(self, x: Tensor) -> Tensor:
        """`[k, *x.shape]`, with a single -1 in it where that makes it a constant."""
        rest = self.dims(x, range(1, self.rank(x)))
        if isinstance(self.targets, np.ndarray) and rest is not None:
            batch = self.dims(x, [0]) or [-1]
            return self.operand([int(self.targets[0]), *batch, *rest])
        return self.Concat([-1], self.sizes(x, range(self.rank(x))), axis=0)

    def zeros(self, y: Tensor) -> Tensor:
        """No relevance at all for `y`: `[k, *y.shape]`."""
        shape = self.Concat(self.targets, self.sizes(y, range(self.rank(y))), axis=0)
        return self.Expand(0.0, shape)

    def unbroadcast(self, r: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Add relevance of `y` up over the axes along which `x` was broadcast to it."""
        of_y, of_x = self._known_shape(y), self._known_shape(x)
        missing = len(of_y) - len(of_x)
        padded = (1,) * missing + of_x
        alike = (*[False] * missing, *self.facts.same_sizes(y, x))
        if any(b is None and not same for b, same in zip(padded, alike, strict=True)):
            sizes = self.Concat([1] * missing, self.Shape(x), axis=0) if missing else self.Shape(x)
            axes: Operand = self.differing_axes(sizes, self.Shape(y))
        else:
            pairs = enumerate(zip(of_y, padded, strict=True))
            axes = [i - len(of_y) for i, (a, b) in pairs if b == 1 != a]
            if not axes:
                return r if not missing else self.like(r, x)
        summed = self.ReduceSum(r, axes, keepdims=1, noop_with_empty_axes=1)
        return self.like(summed, x) if missing else summed

    def differing_axes(self, sizes: Tensor, others: Tensor) -> Tensor:
        """The axes of relevance where two shapes differ, found while the model runs."""
        differ = self.Not(self.Equal(sizes, others))
        return self.Add(self.Squeeze(self.NonZero(differ), [0]), [1])

    def contract(self, r: Tensor, axis: int, matrix: Tensor) -> Tensor:
        """`r` times a matrix along one axis, counted from the end."""
        if axis == -1:
            return self.MatMul(r, matrix)
        # As the left factor of every matrix of the axes (axis, rest) no transposition is needed.
        turned = self.Transpose(matrix, perm=[1, 0])
        if axis == -2:
            return self.MatMul(turned, r)
        front, back = self.Slice(self.Shape(r), [0], [axis]), self.Shape(r, start=axis + 1)
        rows = self.Concat([-1], self.Shape(matrix, end=1), self.ReduceProd(back), axis=0)
        moved = self.MatMul(turned, self.Reshape(r, rows))
        return self.Reshape(moved, self.Concat(front, self.Shape(matrix, start=1), back, axis=0))

    # -- arithmetic ----------------------------------------------------------------------------

    def sum(self, terms: Iterable[Tensor]) -> Tensor:
        """The terms added up, first to last."""
        first, *rest = terms
        for term in rest:
            first = self.Add(first, term)
        return first

    def safe_div(
        self, r: Tensor, z: Tensor, why: str = BIAS_ALONE, lowered: Tensor | None = None
    ) -> Tensor:
        """`r / z` for `z >= 0`, where 0/0 is 0; `why` tells the ledger what that means.

        Where `z` is 0 the quotient is `r`, which is finite; every contribution that it is
        multiplied with there is 0, so that the relevance is absorbed.

        Args:
            r: relevance.
            z: what it is divided by.
            why: why it has no receiver where that is 0.
            lowered: `z` less `TINY`, where there is such a tensor.
        """
        self.absorb(self.Mul(r, self._nothing(z)), why)
        return self.quotient(r, z, lowered)

    def kept(self, r: Tensor, z: Tensor) -> Tensor:
        """Of `r` what `safe_div` does not let be absorbed."""
        return self.Sub(r, self.Mul(r, self._nothing(z)))

    def quotient(self, r: Tensor, z: Tensor, lowered: Tensor | None = None) -> Tensor:
        """`r / z`, or `r` where `z` is 0."""
        divisor = self._divisor(z, lowered)
        if r.name not in self._products:
            return self.Div(r, divisor)
        x, g = self._products[r.name]
        return self.Mul(g, self.Div(x, divisor))

    def _divisor(self, z: Tensor, lowered: Tensor | None) -> Tensor:
        """`z >= 0`, or 1 where it is 0.

        TINY less than 0 is -TINY, of which a leaky ReLU makes 1; to all else it is given back.
        Runtimes have the first two in a convolution for nothing; to compare takes two passes more.
        """
        if self.is_double:  # runtimes have no such activation of it
            return self.Add(z, self._nothing(z))
        lowered = self.Sub(z, TINY) if lowered is None else lowered
        return self.Add(self.LeakyRelu(lowered, alpha=-1 / TINY), TINY)

    def product(self, x: Tensor, g: Tensor) -> Tensor:
        """Relevance `x ⊙ g`, for `x` without an axis of targets and `g` with one.

        What it is divided by next divides `x`, once for all targets.
        """
        r = self.Mul(x, g)
        self._products[r.name] = x, g
        return r

    def _nothing(self, z: Tensor) -> Tensor:
        return self.number(self.Less(z, TINY))

    def absorb(self, r: Tensor, why: str) -> None:
        """Enter relevance that has no receiver into the ledger of the step whose turn it is."""
        self.absorbed.append((self.step, why, self.total(r)))

    def total(self, r: Tensor) -> Tensor:
        """Relevance `[k, ...]` added up over all but the targets: `[k]`."""
        rows = self.Reshape(r, self.Concat(self.targets, [-1], axis=0))
        return self.ReduceSum(rows, [1], keepdims=0)

    def positive(self, x: Tensor) -> Tensor:
        """`x⁺ = max(x, 0)`, the tensor itself where it has no other part."""
        return x if self.nonnegative(x) else self.Relu(x)

    def negative(self, x: Tensor) -> Tensor:
        """`x⁻ = min(x, 0)`."""
        return self.Clip(x, None, 0.0)

    def agreeing_parts(self, x: Tensor, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parts of `x` and `w` whose product is not negative: one pair for a proven sign."""
        interval = self.interval(x)
        positive, negative = (self.positive(x), self.Relu(w)), (self.negative(x), self.negative(w))
        if interval.nonnegative:
            return [positive]
        return [negative] if interval.nonpositive else [positive, negative]
