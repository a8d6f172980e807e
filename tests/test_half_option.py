"""A float32 model that runs in float16 at the user's wish: nearly the same answers and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import run
from cuda_support import placement
from onnx import TensorProto, helper, numpy_helper
from quantised_support import RANGE, pictures
from test_cuda_kernels import METHODS, NETWORKS, network
from test_half import F16, float_network, retyped
from test_quantised import distance

from onnx_clrp import Explainer, ModelError, convert, runtime
from onnx_clrp.half import NOTE, halved
from onnx_clrp.lowering import lowered
from onnx_clrp.model import metadata

ROOT = Path(__file__).parents[1]

NEAR = 5e-3
"""How far float16 may move a map: its numbers have 11 bits."""

TIES = 0.1
"""And where windows of a max pool overlap: what float16 makes equal, the first one wins."""


def explained(model: onnx.ModelProto, x: np.ndarray, **options: object) -> tuple[np.ndarray, ...]:
    """Logits and the maps of two classes."""
    options = {"input_range": RANGE, "signed": True, "device": "cpu", **options}
    result = Explainer(model, **options).explain(x, [0, 2])
    return result.logits, result.relevance


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_float16_says_nearly_the_same(name: str, method: str) -> None:
    model, x = network(name), pictures(3)
    (logits, maps), (near_logits, near_maps) = (
        explained(model, x, method=method, half=half) for half in (False, True)
    )
    assert 0 < np.abs(near_logits - logits).max() < 2e-3 * np.abs(logits).max()
    assert 0 < distance(near_maps, maps) < (TIES if name == "inception" else NEAR)
    assert (near_logits.dtype, near_maps.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("name", ["residual", "gated"])
def test_it_is_what_a_float16_model_between_casts_gives(name: str) -> None:
    x = pictures(2)
    wanted = explained(retyped(float_network(name), F16, casts=True), x)
    for found, want in zip(explained(float_network(name), x, half=True), wanted, strict=True):
        assert distance(found, want) < NEAR


@pytest.mark.parametrize("name", NETWORKS)
def test_the_forward_pass_is_float16_and_relevance_float32(name: str) -> None:
    model = network(name)
    before = model.SerializeToString()
    explainer = convert(model, input_range=RANGE, half=True)
    assert model.SerializeToString() == before
    known = onnx.shape_inference.infer_shapes(explainer)
    kinds = {v.name: v.type.tensor_type.elem_type for v in known.graph.value_info}
    convolutions = [node for node in known.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        ours = node.name.startswith("relevance")
        assert kinds[node.output[0]] == (TensorProto.FLOAT if ours else TensorProto.FLOAT16)
    assert sum(not node.name.startswith("relevance") for node in convolutions) >= 2


@pytest.mark.parametrize("name", NETWORKS)
def test_it_stays_on_a_cuda_device(name: str) -> None:
    found = placement(lowered(convert(network(name), input_range=RANGE, half=True))[0])
    assert found.strays == []
    # The session that folds the constants here is of the CPU, which casts for its lack of kernels.
    inserted = [c for c in found.copies if c.tensor.startswith("InsertedPrecisionFreeCast")]
    assert found.copies == inserted


def test_a_model_keeps_its_inputs_and_outputs() -> None:
    model = network("residual")
    explainer = convert(model, input_range=RANGE, half=True)
    ends = {v.name: v for v in (*explainer.graph.input, *explainer.graph.output)}
    for value in (*model.graph.input, *model.graph.output):
        assert ends[value.name] == value
    plain = metadata(convert(model, input_range=RANGE))
    told = metadata(explainer)
    assert told["onnx_clrp.half"] == "true"
    assert NOTE in told["onnx_clrp.notes"]
    assert "onnx_clrp.half" not in plain
    assert told["onnx_clrp.source_sha256"] == plain["onnx_clrp.source_sha256"]


def test_the_weights_of_the_file_take_half_the_memory() -> None:
    model = network("chain")
    weights = sum(len(t.raw_data) for t in model.graph.initializer)
    assert sum(len(t.raw_data) for t in halved(model).graph.initializer) <= weights / 2 + 8


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant"])
def test_weights_that_float16_cannot_hold_are_refused(constant: bool) -> None:
    model = network("residual")
    weight = next(t for t in model.graph.initializer if t.name == "b3")
    value = numpy_helper.to_array(weight).copy()
    value[0] = -1e6
    tensor = numpy_helper.from_array(value, "b3")
    model.graph.initializer.remove(weight)
    if constant:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["b3"], value=tensor))
    else:
        model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match=r"float16 ends at 65504.*'b3'") as caught:
        convert(model, input_range=RANGE, half=True)
    assert "\n" not in str(caught.value)
    convert(model, input_range=RANGE)


def test_activations_that_float16_cannot_hold_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime's CPU provider keeps float32 between most nodes, and does not overflow."""
    really = runtime.run

    def overflowing(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        values = really(session, names, feeds)
        values[names.index("relevance")].flat[0] = np.nan
        return values

    monkeypatch.setattr(runtime, "run", overflowing)
    x = pictures(1)
    assert np.isnan(explained(network("residual"), x)[1]).any()
    with pytest.raises(ModelError, match="without half"):
        explained(network("residual"), x, half=True)


@pytest.mark.parametrize("casts", [False, True])
def test_a_half_precision_model_is_refused(casts: bool) -> None:
    model = retyped(float_network("residual"), F16, casts=casts)
    with pytest.raises(ModelError, match="half-precision"):
        convert(model, input_range=RANGE, half=True)


def test_an_old_model_whose_weights_are_inputs_too() -> None:
    model = network("gated")
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    wanted = explained(network("gated"), pictures(2), half=True)
    for found, want in zip(explained(model, pictures(2), half=True), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_external_weights_are_taken_along(tmp_path: Path) -> None:
    model = network("chain")
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    explainer = Explainer(path, device="cpu", input_range=RANGE, signed=True, half=True)
    found = explainer.explain(pictures(2), [0, 2]).relevance
    np.testing.assert_array_equal(found, explained(network("chain"), pictures(2), half=True)[1])


def test_the_command_takes_half(tmp_path: Path) -> None:
    out = tmp_path / "explainer.onnx"
    done = run("convert", ROOT / "exported_models" / "digits.onnx", out, "--half")
    assert done.status == 0, done.complaint
    assert metadata(onnx.load(out))["onnx_clrp.half"] == "true"
    scene = ROOT / "exported_models" / "scenes" / "3-and-7.png"
    done = run("explain", ROOT / "exported_models" / "digits.onnx", scene, "-o", tmp_path, "--half")
    assert done.status == 0, done.complaint
    assert "float16" in done.complaint
