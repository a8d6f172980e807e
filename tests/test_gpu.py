"""Explainers on a CUDA device. The whole proof, with times, is tools/gpu_check.py."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from benchmark.placed import placed
from quantised_support import RANGE, pictures
from test_cuda_kernels import METHODS, NETWORKS, network
from test_quantised import distance

from onnx_clrp import DeviceError, Explainer, convert
from onnx_clrp.sessions import open_session


def device_is_there() -> bool:
    """Does ONNX Runtime really run on CUDA here?"""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    try:
        open_session(network("chain"), "cuda")
    except DeviceError:
        return False
    return True


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not device_is_there(), reason="ONNX Runtime finds no CUDA device here"),
]

R_AGREES, CONTRAST_AGREES = 1e-5, 1e-3


@pytest.mark.parametrize("batch", [None, 2], ids=["open batch", "fixed batch"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_node_falls_back_to_the_cpu(name: str, method: str, batch: int | None) -> None:
    explainer = convert(network(name, opset=20, batch=batch), method=method, input_range=RANGE)
    feeds = {"x": pictures(2), "target": np.array([[0, 3], [1, 2]])}
    found = placed(explainer, feeds, "cuda")
    assert (found.strays, found.copies) == ([], [])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_the_cpu(name: str, half: bool) -> None:
    x = pictures(3)
    explainer = convert(network(name), input_range=RANGE, signed=True, parts=True, half=half)
    found, want = (Explainer(explainer, device=d).explain(x, [0, 2]) for d in ("cuda", "cpu"))
    if half:  # a CPU keeps float32 between most nodes of a float16 model
        np.testing.assert_allclose(found.logits, want.logits, atol=1e-2)
        assert distance(found.relevance, want.relevance) < 0.2
        return
    np.testing.assert_allclose(found.logits, want.logits, rtol=1e-4, atol=1e-5)
    assert found.concept is not None
    assert want.concept is not None
    assert distance(found.concept, want.concept) < R_AGREES
    assert distance(found.relevance, want.relevance) < CONTRAST_AGREES


@pytest.mark.parametrize("name", NETWORKS)
def test_a_replayed_graph_gives_the_same(name: str) -> None:
    model = convert(network(name), input_range=RANGE, signed=True)
    plain = Explainer(model, device="cuda")
    replayed = Explainer(model, device="cuda", cuda_graph=True)
    for n, seed in ((2, 0), (2, 1), (3, 2), (2, 3), (3, 4), (2, 5)):
        x = pictures(n, seed)
        targets = [seed % 5, (seed + 2) % 5]
        found, want = (e.explain(x, targets).relevance for e in (replayed, plain))
        assert distance(found, want) < R_AGREES


def test_a_batch_that_grows_is_that_of_the_cpu() -> None:
    x = pictures(60)
    model = convert(network("residual"), input_range=RANGE)
    found, want = (Explainer(model, device=d).explain(x, [1]) for d in ("cuda", "cpu"))
    assert distance(found.relevance, want.relevance) < CONTRAST_AGREES
