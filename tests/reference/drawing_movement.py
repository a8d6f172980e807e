"""Draws operators that move values about, pick some of them, or put others in their place."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.drawing import Sketch, operand_shape, rank, strategy
from reference.graphs import Array

_FAR = 2**40


def _an_axis(s: Sketch, x: str) -> int:
    """Any axis, hardly ever that of the batch, counted from either end."""
    n = s.values[x].ndim
    axis = 0 if n == 1 or s.rarely(20) else s.number(1, n - 1)
    return axis - n if s.often() else axis


def _factors(s: Sketch, number: int, count: int) -> list[int]:
    """So many factors of a number."""
    found = []
    for _ in range(count - 1):
        found.append(s.one_of(*(d for d in range(1, number + 1) if number % d == 0)))
        number //= found[-1]
    return [*found, number]


# --- Joins and parts -------------------------------------------------------------------------


@strategy("Concat")
def concat(s: Sketch, op: str, x: str) -> None:
    axis = _an_axis(s, x)
    shape = s.values[x].shape
    place = axis % len(shape)

    def fits(y: Array) -> bool:
        return y.ndim == len(shape) and [*np.delete(y.shape, place)] == [*np.delete(shape, place)]

    fitting = sorted(s.fitting(fits), key=lambda y: y == x)
    parts = [x, *(s.one_of(*fitting) for _ in range(s.number(0, 2)))]
    if s.rarely(5):
        parts.append(s.floats([2 if i == place else n for i, n in enumerate(shape)]))
    s.add(op, parts[::-1] if s.often() else parts, axis=axis)


@strategy("Split")
def split(s: Sketch, op: str, x: str) -> None:
    axis = _an_axis(s, x)
    size = s.values[x].shape[axis]
    if s.often():
        cuts = sorted({0, s.number(0, size), s.number(0, size), size})
        sizes = [int(n) for n in np.diff(cuts)]
        s.add(op, [x, s.list_of(sizes)], len(sizes), axis=axis)
        return
    count = s.number(1, min(3, size))
    if size > math.ceil(size / count) * (count - 1):
        s.add(op, [x], count, axis=axis, num_outputs=count)


@strategy("Slice")
def slice_(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    axes = [*dict.fromkeys(_an_axis(s, x) % len(shape) for _ in range(s.number(1, 2)))]
    spans = [_span(s, shape[axis]) for axis in axes]
    starts, ends, steps = zip(*spans, strict=True)
    given = [starts, ends, [a - len(shape) if s.often() else a for a in axes], steps]
    if all(step == 1 for step in steps) and s.often():
        given.pop()
    s.add(op, [x, *(s.list_of(part) for part in given)])


def _span(s: Sketch, size: int) -> tuple[int, int, int]:
    """Start, end and step of a slice that is not empty."""
    step, first = s.one_of(1, 2, -1, -2), s.number(0, size - 1)
    if step > 0:
        last = s.one_of(s.number(first + 1, size), _FAR)
    else:
        last = s.number(0, first) - 1
        last = -_FAR if last < 0 else last
    return first - size if s.often() else first, last, step


@strategy("Gather")
def gather(s: Sketch, op: str, x: str) -> None:
    axis = _an_axis(s, x)
    size = s.values[x].shape[axis]
    shape = s.one_of([s.number(1, 4)], [], [2, 2])
    s.add(op, [x, s.constant(s.random().integers(-size, size, shape), np.int64)], axis=axis)


@strategy("Pad")
def pad(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    modes = ("constant", "constant", "constant", "reflect", "edge")
    mode = s.one_of(*modes, *(["wrap"] if s.graph.opset >= 19 else []))
    chances = [20, 6, *[1] * (len(shape) - 2)]  # rather in space than elsewhere
    axes = [a for a in range(len(shape)) if s.rarely(chances[a])]
    widths = [_width(s, mode, shape[a]) for _ in range(2) for a in axes]
    ends = [*zip(widths[: len(axes)], widths[len(axes) :], strict=True)]
    if any(shape[a] + sum(both) < 1 for a, both in zip(axes, ends, strict=True)):
        return
    value = [s.constant(s.one_of(0.0, 1.5))] if mode == "constant" and s.rarely(3) else []
    if axes and s.rarely(4):
        some = s.list_of([a - len(shape) for a in axes])
        s.add(op, [x, s.list_of(widths), *(value or [""]), some], mode=mode)
        return
    every = dict(zip(axes, ends, strict=True))
    full = [every.get(a, (0, 0))[side] for side in (0, 1) for a in range(len(shape))]
    s.add(op, [x, s.list_of(full), *value], mode=mode)


def _width(s: Sketch, mode: str, size: int) -> int:
    """The width of padding on one side; a negative one cuts off."""
    if mode in ("reflect", "wrap"):
        return s.number(0, min(1, size - 1))
    return s.number(-1 if mode == "constant" and s.rarely(6) else 0, 2)


# --- Shapes ----------------------------------------------------------------------------------


@strategy("Reshape")
def reshape(s: Sketch, op: str, x: str) -> None:
    batch, *rest = s.values[x].shape
    shape = [s.one_of(0, batch), *_factors(s, math.prod(rest), s.number(1, 4))]
    if s.rarely(16):
        shape = _factors(s, batch * math.prod(rest), s.number(1, 4))
    if s.often():
        shape[s.number(1 if shape[0] == 0 else 0, len(shape) - 1)] = -1
    s.add(op, [x, s.list_of(shape)])


@strategy("Flatten")
def flatten(s: Sketch, op: str, x: str) -> None:
    n = s.values[x].ndim
    axis = s.number(-n, n) if s.rarely(4) else 1
    s.add(op, [x], **({"axis": axis} if axis != 1 or s.often() else {}))


@strategy("Transpose")
def transpose(s: Sketch, op: str, x: str) -> None:
    n = s.values[x].ndim
    perm = s.order(range(n)) if s.rarely(20) else [0, *s.order(range(1, n))]
    s.add(op, [x], **({} if s.rarely(20) else {"perm": perm}))


@strategy("Squeeze", fits=lambda x: 1 in x.shape[1:])
def squeeze(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    if s.rarely(8) and shape[0] > 1:
        s.add(op, [x])
        return
    ones = [a for a, n in enumerate(shape) if n == 1 and (a > 0 or s.rarely(12))]
    axes = s.some(ones, 1)
    if len(axes) < len(shape):
        s.add(op, [x, s.list_of([a - len(shape) if s.often() else a for a in axes])])


@strategy("Unsqueeze", fits=rank(1, 4))
def unsqueeze(s: Sketch, op: str, x: str) -> None:
    n = s.values[x].ndim + 1
    axis = 0 if s.rarely(16) else s.number(1, n - 1)
    axes = s.some(range(1, n + 1), 2)[:2] if n > 2 and s.rarely(4) else None
    s.add(op, [x, s.list_of(axes or [axis - n if s.often() else axis])])


# --- Repetition and blocks -------------------------------------------------------------------


@strategy("Expand")
def expand(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    sizes = [
        s.one_of(1, 2, 3) if n == 1 and (a > 0 or s.rarely(12)) else s.one_of(n, 1)
        for a, n in enumerate(shape)
    ]
    s.add(op, [x, s.list_of([2, *sizes] if s.rarely(20) else sizes[s.number(0, 1) :])])


@strategy("Tile")
def tile(s: Sketch, op: str, x: str) -> None:
    axes = range(s.values[x].ndim)
    s.add(op, [x, s.list_of([s.number(1, 2) if a or s.rarely() else 1 for a in axes])])


@strategy("DepthToSpace", fits=lambda x: x.ndim == 4 and x.shape[1] % 4 == 0)
def depth_to_space(s: Sketch, op: str, x: str) -> None:
    s.add(op, [x], blocksize=s.one_of(2, 1), mode=s.one_of("DCR", "CRD"))


@strategy("SpaceToDepth", fits=lambda x: x.ndim == 4 and not (x.shape[2] % 2 or x.shape[3] % 2))
def space_to_depth(s: Sketch, op: str, x: str) -> None:
    s.add(op, [x], blocksize=s.one_of(2, 1))


@strategy("Resize", fits=rank(3, 4))
def resize(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    sizes = shape[2:]
    mode = s.one_of("nearest", "linear")
    coordinates = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    roundings = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    attributes: dict[str, Any] = {"coordinate_transformation_mode": s.one_of(*coordinates)}
    if mode == "nearest":
        attributes["nearest_mode"] = s.one_of(*roundings)
    if mode == "linear" and s.often():  # nearest: rounding would decide between two places
        wanted = [*shape[:2], *(max(1, n + s.number(-2, 4)) for n in sizes)]
        s.add(op, [x, "", "", s.list_of(wanted)], mode=mode, **attributes)
        return
    scales = [1, 1, *(s.one_of(2.0, 1.0, 3.0, 0.5, 1.5) for _ in sizes)]
    s.add(op, [x, "", s.constant(scales)], mode=mode, **attributes)


# --- Picking and choosing --------------------------------------------------------------------


@strategy("GatherElements", fits=rank(2))
def gather_elements(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    axis = s.number(1, len(shape) - 1)
    sizes = [s.number(1, 4 if i == axis else n) for i, n in enumerate(shape)]
    places = s.random().integers(-shape[axis], shape[axis], sizes)
    s.add(op, [x, s.constant(places, np.int64)], axis=axis)


@strategy("GatherND", fits=rank(2))
def gather_nd(s: Sketch, op: str, x: str) -> None:
    shape, batch = s.values[x].shape, s.one_of(1, 0)
    indexed = shape[batch : batch + s.number(1, len(shape) - batch)]
    places = [s.random().integers(-n, n, [*shape[:batch], 3]) for n in indexed]
    s.add(op, [x, s.constant(np.stack(places, -1), np.int64)], batch_dims=batch)


@strategy("Compress")
def compress(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    axis = None if len(shape) == 1 or s.rarely(8) else s.number(1, len(shape) - 1)
    size = s.number(1, s.values[x].size if axis is None else shape[axis])
    kept = s.random().random(size) < 0.6
    kept[-1] = True
    s.add(op, [x, s.constant(kept, np.bool_)], **({} if axis is None else {"axis": axis}))


@strategy("ReverseSequence", fits=rank(2))
def reverse_sequence(s: Sketch, op: str, x: str) -> None:
    time, shape = s.one_of(0, 1), s.values[x].shape
    lengths = s.list_of([s.number(1, shape[time]) for _ in range(shape[1 - time])])
    s.add(op, [x, lengths], time_axis=time, batch_axis=1 - time)


def _of_shape(s: Sketch, shape: Sequence[int]) -> str:
    """A tensor of a shape: one of the graph, if there is any, or a constant."""
    known = s.fitting(lambda y: [*y.shape] == [*shape])
    return str(s.one_of(*known)) if known and s.often() else s.floats(shape)


@strategy("ScatterElements", fits=rank(2))
def scatter_elements(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    axis = s.number(1, len(shape) - 1)
    # Every place once at most: of several the runtime says not which one stays.
    order = np.argsort(s.random().random(shape), axis)
    sizes = [s.number(1, n) if s.often() else n for n in shape]
    places = s.constant(order[tuple(slice(n) for n in sizes)], np.int64)
    s.add(op, [x, places, _of_shape(s, sizes)], axis=axis)


@strategy("ScatterND", fits=rank(2))
def scatter_nd(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    count = s.number(1, len(shape))
    chosen = s.random().permutation(math.prod(shape[:count]))[: s.number(1, 4)]
    places = s.constant(np.stack(np.unravel_index(chosen, shape[:count]), -1), np.int64)
    s.add(op, [x, places, _of_shape(s, [len(chosen), *shape[count:]])])


@strategy("Where")
def where(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    condition = s.random().random(operand_shape(s, shape)) < 0.5
    other = s.companion(x) if s.often() else s.floats(operand_shape(s, shape))
    inputs = [s.constant(condition, np.bool_), *([other, x] if s.often() else [x, other])]
    if s.goes_together(inputs):
        s.add(op, inputs)
