"""Draws random small graphs; how nodes of each operator are drawn is registered next door."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from reference.graphs import Array, Bounds, Graph, Node, Values, forward

Draw = Callable[[st.SearchStrategy[Any]], Any]
Fits = Callable[[Array], bool]
Build = Callable[["Sketch", str, str], None]

OPSETS = (18, 19, 20, 21, 24)
KINDS = ("mixed", "positive", "ties", "nonzero", "sparse", "negative", "smooth")
_LARGEST_VALUE = 1e4
_MOST_ELEMENTS = 1500
_MOST_AXES = 6
_TRIES = 40


class Sketch:
    """A graph that is being drawn.

    Attributes:
        graph: what has been drawn of it.
        values: of its inputs and of all that its nodes make.
        integers: the tensors that hold quantised integers.
    """

    def __init__(self, draw: Draw, opset: int) -> None:
        self._draw = draw
        self.graph = Graph(opset)
        self.values: Values = {}
        self.integers: set[str] = set()

    # -- choices -------------------------------------------------------------------------------

    def number(self, low: int, high: int) -> int:
        """An integer from low to high."""
        return int(self._draw(st.integers(low, high)))

    def one_of(self, *options: Any) -> Any:
        """One of the options, the plainest of which is the first."""
        return self._draw(st.sampled_from(options))

    def some(self, options: Sequence[int], least: int = 0) -> list[int]:
        """Some of the options, in any order."""
        each = st.sampled_from(options)
        return list(self._draw(st.lists(each, min_size=least, max_size=len(options), unique=True)))

    def order(self, axes: Sequence[int]) -> list[int]:
        """The axes in any order."""
        return list(self._draw(st.permutations(axes)))

    def often(self) -> bool:
        """Every other time."""
        return bool(self._draw(st.booleans()))

    def rarely(self, times: int = 16) -> bool:
        """Once in so many times."""
        return self.number(1, times) == times

    def random(self) -> np.random.Generator:
        """A generator for what need not be drawn number by number."""
        return np.random.default_rng(self.number(0, 999))

    # -- tensors -------------------------------------------------------------------------------

    def array(self, shape: Sequence[int], *kinds: str) -> Array:
        """Float32 values; all but the smooth ones are halves, whose sums are exact."""
        return _values(self.random(), shape, self.one_of(*(kinds or KINDS)))

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """A constant, written in one of several forms."""
        name = f"c{len(self.graph.constants)}"
        self.graph.constants[name] = np.asarray(value, dtype)
        self.graph.forms[name] = self.one_of("", "", "", "", "node", "identity")
        return name

    def floats(self, shape: Sequence[int], *kinds: str) -> str:
        """A constant of float32 values."""
        return self.constant(self.array(shape, *kinds))

    def list_of(self, numbers: Sequence[int]) -> str:
        """A constant list of integers."""
        return self.constant([*numbers], np.int64)

    def weight(self, shape: Sequence[int]) -> str:
        """The weights of a convolution; some are stored as integers with a scale.

        (Of a MatMul the runtime then rounds the activations to 8 bits, too.)
        """
        array = self.array(shape)
        name = self.constant(array)
        if self.rarely(8) and (array * 2 == np.round(array * 2)).all():
            self.graph.forms[name] = "int8"
        return name

    def input(self, shape: Sequence[int]) -> None:
        """A new input of the graph."""
        name = f"x{len(self.graph.data)}"
        self.graph.data[name] = self.array(shape)
        self.values[name] = self.graph.data[name].astype(np.float64)

    def add(
        self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> tuple[str, ...]:
        """A node; none, unless its values are such as to go on with."""
        names = tuple(f"t{len(self.values) + i}" for i in range(outputs))
        node = Node(op_type, tuple(inputs), names, attributes)
        results = forward(self.graph, node, self.values)
        if not all(_usable(y) for y in results):
            return ()
        self.graph.nodes.append(node)
        self.values.update(zip(names, results, strict=True))
        return names

    # -- what there is -------------------------------------------------------------------------

    def fitting(self, fits: Fits) -> list[str]:
        """The tensors of floats that fit, first to last."""
        floats = (x for x in self.values if x not in self.integers)
        return [x for x in floats if fits(self.values[x])]

    def companion(self, x: str, fits: Fits = lambda _: True) -> str:
        """A tensor that broadcasts with another one, and hardly ever that itself."""
        shape = self.values[x].shape
        found = self.fitting(lambda y: _together(shape, y.shape) and fits(y))
        return str(self.one_of(*sorted(found, key=lambda y: y == x)))

    def goes_together(self, names: Sequence[str]) -> bool:
        """Do all these tensors and constants broadcast?"""
        known = {**self.graph.constants, **self.values}
        return _together(*(known[x].shape for x in names))


def _usable(y: Array) -> bool:
    small = 0 < y.size <= _MOST_ELEMENTS and 1 <= y.ndim <= _MOST_AXES
    return small and bool(np.isfinite(y).all() and abs(y).max() <= _LARGEST_VALUE)


def _together(*shapes: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def _values(rng: np.random.Generator, shape: Sequence[int], kind: str) -> Array:
    makers: dict[str, Callable[[], Array]] = {
        "mixed": lambda: rng.integers(-4, 5, shape) / 2,
        "positive": lambda: rng.integers(0, 5, shape) / 2,
        "negative": lambda: rng.integers(-5, 0, shape) / 2,
        "sparse": lambda: rng.integers(1, 5, shape) / 2 * (rng.random(shape) < 0.3),
        "nonzero": lambda: rng.choice([-4.0, -2.0, -0.5, 0.5, 1.0, 2.0], shape),
        "above": lambda: rng.choice([0.5, 1.0, 2.0], shape),
        "ties": lambda: rng.integers(-1, 2, shape),
        "smooth": lambda: rng.normal(size=shape),
    }
    return np.asarray(makers[kind](), dtype=np.float32)


# --- How nodes are drawn ---------------------------------------------------------------------


@dataclass(frozen=True)
class Strategy:
    """How nodes of an operator are drawn: for which tensors, from which opset on, and how."""

    fits: Fits
    build: Build
    opset: int


STRATEGIES: dict[str, Strategy] = {}


def strategy(
    *op_types: str, fits: Fits = lambda _: True, opset: int = OPSETS[0]
) -> Callable[[Build], Build]:
    """Register a function that draws nodes of some operators: `(sketch, operator, input)`.

    It adds what it draws to the sketch, and nothing where it ends up with something illegal.
    """

    def register(build: Build) -> Build:
        STRATEGIES.update(dict.fromkeys(op_types, Strategy(fits, build, opset)))
        return build

    return register


def rank(low: int, high: int = _MOST_AXES) -> Fits:
    """Which tensors have so many axes."""
    return lambda x: low <= x.ndim <= high


def operand_shape(s: Sketch, shape: Sequence[int]) -> list[int]:
    """A shape that broadcasts with another; now and then one that makes it larger."""
    grown = [1 if axis == 0 or not s.rarely(8) else s.number(2, 3) for axis in range(len(shape))]
    any_sizes = [s.one_of(n, 1) if n > 1 else g for n, g in zip(shape, grown, strict=True)]
    per_channel = [1, *shape[1:2], *[1] * (len(shape) - 2)]
    sizes = s.one_of(per_channel, any_sizes, [])
    if s.rarely(24):
        return [s.number(1, 2), *[1] * (len(shape) - len(sizes)), *sizes]
    ones = next((i for i, n in enumerate(sizes) if n != 1), len(sizes))
    return list(sizes[s.number(0, ones) :])


# --- Graphs ----------------------------------------------------------------------------------


@st.composite
def graphs(draw: Draw, available: Sequence[str], wanted: str | None = None) -> Graph:
    """A graph of one to eight nodes of some operators; one of the first is the wanted one."""
    known = STRATEGIES[wanted] if wanted is not None else None
    s = Sketch(draw, draw(st.sampled_from([v for v in OPSETS if not known or known.opset <= v])))
    usable = [op for op in sorted(available) if STRATEGIES[op].opset <= s.graph.opset]
    batch, *sizes = _draw_first(s, known.fits if known is not None else lambda _: True)
    for _ in range(s.one_of(0, 0, 1)):
        s.input([batch, *_sizes(s, len(sizes))])
    count = s.number(1, 8)
    place = s.number(0, min(count, 3) - 1)
    for i in range(count):
        _draw_node(s, usable if wanted is None or i != place else [wanted])
    if not s.graph.nodes:
        s.add("Identity", ["x0"])
    _draw_rest(s)
    return s.graph


def _draw_first(s: Sketch, fits: Fits) -> tuple[int, ...]:
    """An input that fits; its shape."""
    for _ in range(_TRIES):
        s.input([s.number(1, 3), *_sizes(s, s.one_of(3, 3, 3, 2, 1, 4))])
        first = s.values["x0"]
        if fits(first):
            return first.shape
        s.graph.data.clear()
        s.values.clear()
    return reject()


def _sizes(s: Sketch, axes: int) -> list[int]:
    """Those behind the batch."""
    return [s.number(1, 4 if axes == 4 else 6) for _ in range(axes)]


def _draw_node(s: Sketch, usable: Sequence[str]) -> None:
    """A node for some tensor, rather for one that was made just now."""
    for _ in range(3):
        op = s.one_of(*usable)
        names = s.fitting(STRATEGIES[op].fits)
        if names:
            x = names[-1] if s.number(0, 3) else s.one_of(*names)
            return STRATEGIES[op].build(s, op, x)
    return None


def _draw_rest(s: Sketch) -> None:
    """Outputs, bounds and all else that is not a node."""
    graph = s.graph
    read = {x for node in graph.nodes for x in node.inputs}
    made = [y for node in graph.nodes for y in node.outputs if y not in s.integers]
    *others, last = [y for y in made if y not in read] or made
    chosen = s.some(range(len(others))) if others else []
    inner = [s.one_of(*made)] if s.rarely(8) else []
    graph.outputs = [*dict.fromkeys([last, *(others[i] for i in chosen), *inner])]
    graph.rules = s.one_of("default", "default", "paper")
    graph.open = s.one_of("none", "none", "batch", "batch", "all")
    graph.constants = {k: v for k, v in graph.constants.items() if k in read}
    if graph.open != "all":  # bounds of elements need the sizes
        bounded = [name for name in graph.data if s.often()]
        graph.bounds = {name: _bounds(s, graph.data[name]) for name in bounded}


def _bounds(s: Sketch, x: Array) -> Bounds:
    """Bounds for each channel or for all, which some elements reach; or a lower one alone."""
    form = s.one_of("channel", "all", "below")
    axes = tuple(i for i in range(x.ndim) if i != 1) if form == "channel" else None
    low, high = (np.asarray(f(x, axes, keepdims=axes is not None)) for f in (np.min, np.max))
    if form == "below":
        return np.minimum(low, 0), np.full_like(high, np.inf)
    return low, high + np.float32(s.one_of(0, 0.5))


for _family in ("elementwise", "windows", "movement"):
    import_module(f"reference.drawing_{_family}")  # each registers its strategies
