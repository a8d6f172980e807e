"""Random small graphs of all supported operators against the references of their operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from onnxruntime.capi import onnxruntime_pybind11_state as runtime
from reference.drawing import STRATEGIES, graphs
from reference.graph_bounds import UndecidedError
from reference.graph_relevance import Explained, Walk
from reference.graphs import Blur, Graph, Values, model, run

from onnx_clrp import ModelError, UnsupportedError
from onnx_clrp.rules import operators
from onnx_clrp.testing import redistribute

Arrays = dict[str, np.ndarray]

TARGETS = 2
TOLERANCE = 1e-5
"""The largest error, in parts of the largest relevance that is expected at the same input."""

STEADY = 4e-5
"""What errors eight times those of float32 may change: more is a map next to a jump of its own."""

UNRULED = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Operators that need no rule, since they are read as the numbers that they stand for."""

SUPPORTED = sorted({*operators(), *UNRULED})

SMALL = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
LARGE = settings(SMALL, max_examples=50, phases=[Phase.generate])
"""For each operator."""

LEAST = 10
"""In how many graphs that agree each operator has to occur."""


# --- What may be refused ---------------------------------------------------------------------


def _always(_graph: Graph) -> bool:
    return True


def _is_open(graph: Graph) -> bool:
    return graph.open != "none"


def _has(*op_types: str) -> Callable[[Graph], bool]:
    return lambda graph: any(node.op_type in op_types for node in graph.nodes)


def _unknown_shapes(graph: Graph) -> bool:
    overhanging = any(node.attributes.get("ceil_mode") for node in graph.nodes)
    return _is_open(graph) or overhanging or _has("Compress")(graph)


REFUSED: dict[str, Callable[[Graph], bool]] = {
    "it reduces over the batch axis": _always,
    "ceil_mode starts a window in the padding": _has("AveragePool", "MaxPool"),
    "a choice among activations and constants": _has("Max", "Min"),
    "first axis of its data": _has("Gemm", "MatMul"),
    "its divisor depends on the input, and is no gate": _has("Div"),
    "its exponent is not positive": _has("Pow"),
    "with windows that leave out what it crops": _has("AveragePool", "Conv", "MaxPool"),
    "its rule does not take output_shape": _is_open,
    "is known only at run time": _unknown_shapes,
    "several nodes read it, and the scale": _has("Conv", "ConvTranspose", "Gemm", "MatMul"),
    "where its channels lie is not known": _has("Conv", "ConvTranspose", "Gemm", "MatMul"),
    "is not known": _unknown_shapes,
}
"""What the package says that it cannot do, and of which graphs it may say so."""

RUNTIME_ERRORS = (runtime.Fail, runtime.InvalidArgument, runtime.RuntimeException)
MISPLACED = "does not match y_zero_point type"
"""ONNX Runtime, where it moves an int8 QuantizeLinear of opset 21 on through a Transpose."""


def may_refuse(graph: Graph, reason: str) -> bool:
    """Is that a known refusal, and one for such a graph?"""
    return any(known in reason and may(graph) for known, may in REFUSED.items())


def runs(graph: Graph) -> bool:
    """Can ONNX Runtime run the model itself?"""
    try:
        session = onnxruntime.InferenceSession(model(graph).SerializeToString())
        session.run(None, graph.data)
    except RUNTIME_ERRORS:
        return False
    return True


# --- What is compared ------------------------------------------------------------------------


def relevance_for(graph: Graph, values: Values) -> Arrays:
    """Relevance `[k, *y.shape]` of each output; that of the first target is not negative."""
    rng = np.random.default_rng(3)
    drawn = {y: rng.integers(-6, 7, (TARGETS, *values[y].shape)) / 2 for y in graph.outputs}
    return {y: np.concatenate([abs(r[:1]), r[1:]]) for y, r in drawn.items()}


def expected(graph: Graph, relevance: Arrays) -> list[Explained]:
    """The reference's answer for each target.

    A sum that is almost 0, or a maximum with a close second, is left out: such maps jump.
    """
    values = run(graph)
    walk = Walk(graph, values)
    targets = [{y: r[k] for y, r in relevance.items()} for k in range(TARGETS)]
    wanted = [walk.explain(target) for target in targets]
    for sign in (1, -1):
        blurred = walk.explain(targets[0], run(graph, Blur(values, sign))).relevance
        for x, want in wanted[0].relevance.items():
            scale = max(abs(w.relevance[x]).max() for w in wanted)
            if not abs(blurred[x] - want).max() <= STEADY * scale:
                reject()
    return wanted


def found(graph: Graph, relevance: Arrays) -> Arrays:
    """The package's answer."""
    try:
        return redistribute(
            model(graph), graph.data, relevance, rules=graph.rules, bounds=graph.bounds
        )
    except RUNTIME_ERRORS:
        if runs(graph):
            raise
    except ModelError as error:
        cannot_load = "ONNX Runtime cannot load" in str(error)
        misplaced = cannot_load and MISPLACED in str(error)
        if not (may_refuse(graph, str(error)) or misplaced or (cannot_load and not runs(graph))):
            raise
    return reject()


def compare(graph: Graph) -> None:
    """Does the package agree with the references, and is nothing lost?"""
    relevance = relevance_for(graph, run(graph))
    try:
        wanted = expected(graph, relevance)
    except UndecidedError:
        reject()
    except NotImplementedError:
        with pytest.raises(UnsupportedError, match="its divisor depends on the input"):
            found(graph, relevance)
        return
    answer = found(graph, relevance)
    assert answer.keys() == wanted[0].relevance.keys()
    for x, handed in answer.items():
        want = np.stack([w.relevance[x] for w in wanted])
        scale = abs(want).max() or 1.0
        np.testing.assert_allclose(handed, want, rtol=0, atol=TOLERANCE * scale, err_msg=x)
    for k, want in enumerate(wanted):
        arrived = sum(r[k].sum() for r in relevance.values())
        handed = sum(float(r[k].sum(dtype=np.float64)) for r in answer.values())
        size = sum(abs(r[k]).sum() for r in relevance.values())
        assert abs(arrived - handed - sum(want.absorbed.values())) <= TOLERANCE * size


# --- Tests -----------------------------------------------------------------------------------


def test_every_supported_operator_is_drawn() -> None:
    assert not {*SUPPORTED} - STRATEGIES.keys()


@SMALL
@given(graphs(SUPPORTED))
def test_random_graphs_agree_with_their_references(graph: Graph) -> None:
    compare(graph)


@pytest.mark.slow
@pytest.mark.parametrize("operator", SUPPORTED)
def test_many_random_graphs_agree_with_their_references(operator: str) -> None:
    agreed: Counter[str] = Counter()

    @seed(SUPPORTED.index(operator))
    @LARGE
    @given(graphs(SUPPORTED, operator))
    def many(graph: Graph) -> None:
        compare(graph)
        agreed.update({node.op_type for node in graph.nodes})

    many()
    assert agreed[operator] >= LEAST
