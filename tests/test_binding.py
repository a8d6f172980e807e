"""Runs on memory that is kept: the same values as a plain run, on the CPU by the same code."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from quantised_support import RANGE, pictures, written
from test_cuda_kernels import CHAIN, network

from onnx_clrp import DeviceError, Explainer, ModelError, convert, runtime
from onnx_clrp.binding import _MOST_FORMS, Bound
from onnx_clrp.errors import MemoryShortageError
from onnx_clrp.lowering import lowered
from onnx_clrp.sessions import Opened, open_session, run

NAMES = ["logits", "relevance", "relevance_target"]


@pytest.fixture(scope="module", params=[None, 2], ids=["open batch", "fixed batch"])
def session(request: pytest.FixtureRequest) -> Any:
    explainer = convert(network("residual", batch=request.param), input_range=RANGE)
    return open_session(explainer, "cpu").session


def feeds(n: int, k: int, seed: int) -> dict[str, np.ndarray]:
    target = np.random.default_rng(seed).integers(0, 5, (n, k))
    return {"x": pictures(n, seed), "target": target}


def assert_same(values: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for value, want in zip(values, wanted, strict=True):
        np.testing.assert_array_equal(value, want, strict=True)


def test_a_bound_run_gives_what_a_plain_run_does(session: Any) -> None:
    bound = Bound(session, "cpu", NAMES)
    for seed in range(4):  # on the same memory from the second on
        given = feeds(2, 1 + seed % 2, seed)
        assert_same(bound.run(given), run(session, NAMES, given))


def test_an_answer_is_not_written_over_by_the_next_run(session: Any) -> None:
    bound = Bound(session, "cpu", NAMES)
    given = [feeds(2, 1, seed) for seed in range(3)]
    answers = [bound.run(each) for each in given]
    for answer, each in zip(answers, given, strict=True):
        assert_same(answer, run(session, NAMES, each))


def test_what_was_fed_is_not_written_over(session: Any) -> None:
    bound = Bound(session, "cpu", NAMES)
    first, second = feeds(2, 1, 0), feeds(2, 1, 1)
    kept = {name: value.copy() for name, value in first.items()}
    bound.run(first)
    bound.run(second)
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_inputs_may_lie_in_memory_in_any_order(session: Any) -> None:
    bound = Bound(session, "cpu", NAMES)
    given = feeds(2, 2, 0)
    turned = {name: np.asfortranarray(value) for name, value in given.items()}
    for _ in range(2):
        assert_same(bound.run(turned), run(session, NAMES, given))


def test_the_memory_of_few_shapes_is_kept() -> None:
    session = open_session(convert(network("chain"), input_range=RANGE), "cpu").session
    bound = Bound(session, "cpu", NAMES)
    for n in [*range(1, _MOST_FORMS + 3), 1]:
        given = feeds(n, 1, n)
        assert_same(bound.run(given), run(session, NAMES, given))
    assert len(bound._forms) == _MOST_FORMS
    bound.clear()
    assert_same(bound.run(feeds(1, 1, 0)), run(session, NAMES, feeds(1, 1, 0)))


class Recorded:
    """A session that notes each run's number of a graph, which on a CPU it cannot capture."""

    def __init__(self, session: Any) -> None:
        self.session, self.graphs = session, []

    def io_binding(self) -> Any:
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        self.session.run_with_iobinding(binding, options)


def test_the_first_shapes_that_come_twice_get_graphs() -> None:
    session = open_session(convert(network("chain"), input_range=RANGE), "cpu").session
    recorded = Recorded(session)
    bound = Bound(recorded, "cpu", NAMES, graphs=True, on_device=["x", "target"])
    for n in range(1, 2 * _MOST_FORMS):
        bound.run(feeds(n, 1, n))
    assert {*recorded.graphs} == {"-1"}
    recorded.graphs.clear()
    for seed in range(3):
        for n in range(20, 20 + _MOST_FORMS):
            bound.run(feeds(n, 1, seed))
    graphs = [str(i) for i in range(_MOST_FORMS)]
    assert recorded.graphs == ["-1"] * _MOST_FORMS + 2 * graphs
    recorded.graphs.clear()
    for seed in range(3):
        bound.run(feeds(50, 1, seed))
    assert recorded.graphs == ["-1"] * 3


def test_numbers_that_the_cpu_may_read_belong_to_a_graph() -> None:
    """A replay would go on with those of the run that was captured."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N] x, int64[1] s, int64[1] e, float[M] f)'
        " => (float[A] y, float[M] z) { y = Slice(x, s, e) z = Neg(f) }"
    )
    recorded = Recorded(open_session(proto, "cpu").session)
    bound = Bound(recorded, "cpu", ["y", "z"], graphs=True, on_device=["x"])
    x, many = np.arange(6, dtype=np.float32), np.ones(100, np.float32)
    for start in (0, 2, 0, 2, 0):
        given = {"x": x + start, "s": np.array([start]), "e": np.array([5]), "f": many * start}
        y, z = bound.run(given)
        np.testing.assert_array_equal(y, x[start:5] + start)
        np.testing.assert_array_equal(z, -given["f"])
    assert recorded.graphs == ["-1", "-1", "0", "1", "0"]


def test_a_bound_run_that_fails_is_one_clear_error() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N] x, int64[1] s) => (float[A] y)'
        "{ y = Reshape(x, s) }"
    )
    session = open_session(proto, "cpu").session
    bound = Bound(session, "cpu", ["y"])
    with pytest.raises(ModelError, match="cannot run the model") as caught:
        bound.run({"x": np.ones(3, np.float32), "s": np.array([2])})
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, MemoryShortageError)
    values = bound.run({"x": np.ones(3, np.float32), "s": np.array([3])})
    np.testing.assert_array_equal(values[0], np.ones(3, np.float32))


def test_an_explainer_that_binds_gives_the_same() -> None:
    """As it does on CUDA, but on the CPU."""
    proto = convert(network("residual"), method="clrp1", input_range=RANGE)
    plain, binding = (Explainer(proto, device="cpu") for _ in range(2))
    binding._bound = Bound(binding._session, "cpu", binding._asked)
    for n in (3, 11, 3):
        x = pictures(n, n)
        wanted, got = (each.explain(x, [0, 2]) for each in (plain, binding))
        np.testing.assert_array_equal(got.relevance, wanted.relevance)
        np.testing.assert_array_equal(got.seed, wanted.seed)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_cuda_graphs_are_refused_elsewhere(device: str) -> None:
    import onnxruntime

    if device == "auto" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there may be a GPU here")
    with pytest.raises(DeviceError, match="CUDA graphs need CUDA") as caught:
        Explainer(network("chain"), device=device, cuda_graph=True, input_range=RANGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_an_explainer_on_cuda_says_that_part_of_it_is_not(
    ceil_mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of the CPU that pretends, up to its first run."""
    really = runtime.open_session
    monkeypatch.setattr(
        runtime,
        "open_session",
        lambda m, _, **__: Opened(really(m, "cpu").session, "cuda", lowered(m)[1]),
    )
    pool = f"AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode={ceil_mode}>(r1)"
    body = CHAIN.replace("MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)", pool)
    model = written(body, opset=20, dense=np.ones((16, 512), np.float32))
    explainer = Explainer(model, device="cuda", input_range=RANGE)
    assert explainer.device == "cuda"
    said = [note for note in explainer.notes if "runs on the CPU" in note]
    assert len(said) == ceil_mode
    assert all("AveragePool of opset 20" in note for note in said)
