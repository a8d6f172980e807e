"""Quantised models: their own answers kept to the bit, and relevance over the real numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from quantised_support import (
    BODIES,
    CLASSES,
    GATED,
    KINDS,
    PADDED,
    RANGE,
    RESIDUAL,
    Array,
    Kind,
    pictures,
    quantised,
    small,
    written,
)
from reference.quantised import Reference, explain
from reference.quantised_run import session

from onnx_clrp import Explainer, convert
from onnx_clrp.check import check

METHODS = ("lrp", "clrp1", "clrp2")
TARGETS = [1, 3]

SAME_MAP = 1e-5
SAME_CONTRAST = 1e-4

ORDINARY = {
    "qdq-us-channel",
    "qdq-ss-tensor",
    "qoperator-us-channel",
    "qoperator-uu-tensor",
    "dynamic-us-tensor",
    "dynamic-uu-channel",
}
"""The ways to quantise that are tried after every change; the others take their turn."""

EVERY_KIND = [
    pytest.param(kind, id=str(kind), marks=[] if str(kind) in ORDINARY else pytest.mark.slow)
    for kind in KINDS
]
ONE_OF_EACH = [Kind("qdq", "us", True), Kind("qoperator", "us", True), Kind("dynamic", "us", False)]
OPTIMISED = pytest.mark.parametrize("optimised", [False, True], ids=["as written", "optimised"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: on arrays as small as these more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distance(out: Array, reference: Array) -> float:
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def model(name: str, kind: Kind | None) -> onnx.ModelProto:
    return onnx.load_from_string(small(name, kind))


def answers(
    proto: onnx.ModelProto, x: Array, target: Sequence[int] | None = None, *, optimised: bool
) -> dict[str, Array]:
    """All outputs of a model, or of an explainer of one target a sample."""
    ready = session(proto, optimised=optimised)
    names = [y.name for y in ready.get_outputs()]
    feeds: dict[str, Any] = {ready.get_inputs()[0].name: x}
    if target is not None:
        feeds["target"] = np.array(target, np.int64)[:, None]
    return dict(zip(names, ready.run(names, feeds), strict=True))


def assert_agrees(
    proto: onnx.ModelProto,
    x: Array,
    method: str,
    *,
    bounds: tuple[Any, Any] = RANGE,
    optimised: bool = False,
    target: Sequence[int] = TARGETS,
    rules: str = "default",
    **options: Any,
) -> Reference:
    """The explainer answers what the model answers, and its map is that of the reference."""
    settings = {"input_range": bounds, "rules": rules, **options}
    made = convert(proto, method=method, signed=True, **settings)
    found = answers(made, x, target, optimised=optimised)
    for name, value in answers(proto, x, optimised=optimised).items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    wanted = explain(
        proto, x, target, method=method, bounds=bounds, rules=rules, optimised=optimised
    )
    assert found["relevance"].dtype == np.float32
    limit = SAME_MAP if method == "lrp" else SAME_CONTRAST
    assert distance(found["relevance"][:, 0], wanted.relevance) <= limit
    return wanted


# --- the reference itself ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BODIES)
def test_the_reference_agrees_on_the_float_networks(name: str, method: str) -> None:
    assert_agrees(model(name, None), pictures(2), method)


# --- the small networks, quantised in every way -----------------------------------------------


@OPTIMISED
@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("name", BODIES)
def test_the_explainer_keeps_answers_to_the_bit(name: str, kind: Kind, optimised: bool) -> None:
    proto, x = model(name, kind), pictures(8, seed=7)
    before = answers(proto, x, optimised=optimised)["logits"]
    made = convert(proto, input_range=RANGE, target="top:2")
    after = answers(made, x, optimised=optimised)["logits"]
    np.testing.assert_array_equal(after, before, strict=True)
    assert len(np.unique(before)) > CLASSES  # no answer that is always the same


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("name", BODIES)
def test_relevance_is_that_of_the_real_numbers(name: str, kind: Kind) -> None:
    proto, x = model(name, kind), pictures(2)
    made = convert(proto, method="clrp2", input_range=RANGE, signed=True, parts=True)
    found = answers(made, x, TARGETS, optimised=False)
    wanted = explain(proto, x, TARGETS, method="clrp2", bounds=RANGE)
    assert distance(found["relevance_concept"][:, 0], wanted.concept) <= SAME_MAP
    assert distance(found["relevance"][:, 0], wanted.relevance) <= SAME_CONTRAST


@pytest.mark.parametrize("method", ["lrp", "clrp1"])
@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_the_other_methods_are_too(name: str, kind: Kind, method: str) -> None:
    assert_agrees(model(name, kind), pictures(2), method)


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_relevance_is_that_of_the_optimised_run(name: str, kind: Kind) -> None:
    assert_agrees(model(name, kind), pictures(2), "clrp2", optimised=True)


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
def test_the_rules_of_the_paper_hold_too(kind: Kind) -> None:
    assert_agrees(model("residual", kind), pictures(2), "clrp2", rules="paper")


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_relevance_is_conserved(name: str, kind: Kind) -> None:
    proto, x = model(name, kind), pictures(1)
    report = check(proto, x, input_range=RANGE, target=1, method="lrp")
    assert report.faults == []
    wanted = explain(proto, x, [1], method="lrp", bounds=RANGE, optimised=True)
    seed = float(wanted.seed[0])
    assert report.logit == pytest.approx(seed)
    assert report.arrived_at_input + report.absorbed == pytest.approx(1, abs=1e-4)
    assert report.absorbed == pytest.approx(float(wanted.absorbed[0]) / seed, abs=1e-4)
    assert set(report.outputs.values()) == {0.0}


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
def test_the_explainer_of_a_file_explains_it(kind: Kind) -> None:
    x = pictures(2)
    ready = Explainer(small("residual", kind), device="cpu", input_range=RANGE, signed=True)
    result = ready.explain(x, np.array(TARGETS))
    wanted = explain(model("residual", kind), x, TARGETS, method="clrp2", bounds=RANGE)
    np.testing.assert_allclose(result.logits, wanted.logits, rtol=1e-6)
    np.testing.assert_allclose(result.seed[:, 0], wanted.seed, rtol=1e-6)


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
def test_quantisation_changes_a_map_little(kind: Kind) -> None:
    x = pictures(2)
    float_map, own = (
        explain(model("gated", k), x, TARGETS, method="lrp", bounds=RANGE).relevance
        for k in (None, kind)
    )
    assert 0 < distance(own, float_map) < 0.05


# --- more of the quantiser --------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "prepared": {"prepared": True},
    "a pair for each reader": {"DedicatedQDQPair": True},
    "float biases": {"QuantizeBias": False},
    "weights with both": {"AddQDQPairToWeight": True},
    "symmetric": {"ActivationSymmetric": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_quantiser(setting: str) -> None:
    kind = Kind("qdq", "ss" if setting == "symmetric" else "us", True)
    proto = quantised(written(RESIDUAL), kind, **SETTINGS[setting])
    assert_agrees(proto, pictures(2), "clrp2")


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("opset", [11, 13, 21])
def test_old_and_new_opsets(opset: int, form: str) -> None:
    proto = quantised(written(RESIDUAL, opset=opset), Kind(form, "us", opset > 12))
    assert_agrees(proto, pictures(2), "clrp2")


@pytest.mark.parametrize("opset", [17, 21], ids=["com.microsoft", "ONNX"])
@pytest.mark.parametrize("types", ["Us", "Ss"])
def test_activations_of_sixteen_bits(types: str, opset: int) -> None:
    proto = quantised(written(GATED, opset=opset), Kind("qdq", types, True))
    assert_agrees(proto, pictures(2), "clrp2")


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=str)
def test_data_movement_and_padding(kind: Kind) -> None:
    assert_agrees(quantised(written(PADDED), kind), pictures(2), "clrp2")
