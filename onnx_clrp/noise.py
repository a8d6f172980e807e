"""A random map, the baseline of experiments: always the same for the same picture and class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

if TYPE_CHECKING:
    from onnx_clrp.program import Program
    from onnx_clrp.seeds import Seeds
    from onnx_clrp.tape import Tape, Tensor

_PRIME = 2**31 - 1
_ROUNDS = 3


def noise(t: Tape, program: Program, seeds: Seeds) -> Tensor:
    """Uniform numbers of [0, 1), `[k, *input.shape]`, drawn by hashing picture, class and place.

    An operator for random numbers would give others in each run, on each device and in each
    batch. In integers nothing is rounded.
    """
    x = program.input
    axes = [*range(1, t.rank(x))]
    whole = t.Cast(t.Mul(t.number(x), 4096.0), to=TensorProto.INT64)
    places = _places(t, x)
    picture = t.ReduceSum(_hashed(t, t.Add(t.Mul(t.Abs(whole), 7919), places)), axes, keepdims=1)
    numbered = t.Mul(
        t.Cast(seeds.explained, to=TensorProto.INT64), t.Range(1, seeds.classes + 1, 1)
    )
    return _finish(t, picture, numbered, places, t.rank(x))


def _finish(t: Tape, picture: Tensor, numbered: Tensor, places: Tensor, rank: int) -> Tensor:
    target = t.Unsqueeze(t.ReduceSum(numbered, [-1], keepdims=0), [*range(2, rank + 1)])
    key = _hashed(t, t.Add(t.Mod(picture, _PRIME), t.Mul(target, 104729)))
    drawn = _hashed(t, t.Add(key, places))
    fine = t.Mod(drawn, 2**24)  # as many as float32 tells apart
    return t.Div(t.Cast(fine, to=TensorProto.FLOAT), float(2**24))


def _places(t: Tape, x: Tensor) -> Tensor:
    """A number for each place of a sample, scattered: `[1, *x.shape[1:]]`."""
    sizes = t.Shape(x, start=1)
    count = t.ReduceProd(sizes, keepdims=0)
    numbers = t.Mul(t.Range(1, t.Add(count, 1), 1), 40503)
    return t.Reshape(_hashed(t, numbers), t.Concat([1], sizes, axis=0))


def _hashed(t: Tape, key: Tensor) -> Tensor:
    """Integers of [0, 2^31 - 1) that say nothing of the key: squares modulo a prime."""
    for i in range(_ROUNDS):
        key = t.Mod(t.Add(t.Mul(t.Mod(key, _PRIME), 48271 + 2 * i), 12345), _PRIME)
        key = t.Mod(t.Mul(key, key), _PRIME)
    return key
