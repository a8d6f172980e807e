"""Does an explainer stay on a CUDA device? Said without one, by ONNX Runtime's list of kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cuda_support import Placement, placement
from onnx import TensorProto, helper, numpy_helper
from quantised_support import BODIES, CLASSES, PADDED, RANGE, pictures, written
from reference.cases import Case
from test_rules import GAPS, MINE, found, relevance_for

from onnx_clrp import Explainer, convert, testing
from onnx_clrp.lowering import lowered

METHODS = ("lrp", "clrp1", "clrp2")

CHAIN = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1)
    p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2) r2 = Relu(c2) f = Flatten(r2)
    h = Gemm<transB=1>(f, dense, b3) r3 = Relu(h) logits = Gemm<transB=1>(r3, w5, b5)
"""

INCEPTION = """
    c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1) r1 = Relu(c1)
    p1 = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(r1)
    a1 = Conv<pads=[1,1,1,1]>(p1, w2, b2) a2 = Relu(a1)
    m1 = MaxPool<kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1]>(p1)
    v1 = AveragePool<kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1], count_include_pad=1>(a2)
    j = Concat<axis=1>(m1, v1) g = GlobalAveragePool(j) f = Flatten(g)
    logits = Gemm<transB=1>(f, w5, b5)
"""

CONVOLUTIONAL = """
    c1 = Conv<pads=[0,1,1,0], strides=[2,2]>(x, w1, b1) r1 = Relu(c1)
    c2 = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(r1, w2, b2) r2 = Relu(c2)
    s = Conv(r2, last, b5) q = Relu(s) g = GlobalAveragePool(q) logits = Flatten(g)
"""
"""A convolution as classifier, behind others with uneven pads."""

NETWORKS = {
    **BODIES,
    "padded": PADDED,
    "chain": CHAIN,
    "inception": INCEPTION,
    "convolutional": CONVOLUTIONAL,
}

NEWER = {
    *("swish", "swish-alpha", "rmsnormalization-last", "averagepool-2d-dilated", "pad-wrap"),
    *("groupnormalization-pairs", "groupnormalization-1d"),
}
"""What an older opset cannot say: the model stays in a newer one."""

ELSEWHERE = {
    "convtranspose-1d-dilated": "uneven pads",
    "convtranspose-2d-pads": "uneven pads",
    "convtranspose-2d-shape": "uneven pads",
    "convtranspose-2d-shape-upper": "uneven pads",
    "convtranspose-2d-same-upper": "uneven pads",
    "convtranspose-2d-same-lower": "uneven pads",
    "convtranspose-2d-same-open": "uneven pads",
    "convtranspose-2d-first": "uneven pads",
    "atan-dynamic": "the operator itself has no kernel",
    "softsign-dynamic": "the operator itself has no kernel",
    **dict.fromkeys(
        (
            *("compress-axis", "compress-flat", "compress-dynamic", "reversesequence-time-first"),
            *("reversesequence-batch-first", "pad-reflect", "pad-edge", "pad-reflect-dynamic"),
            "pad-reflect-cropping",
        ),
        "looks places up",
    ),
}
"""The forms of operators whose relevance leaves the device, and why: the operator itself does, or
it moves data by places that are numbered while the model runs, on the CPU."""


def network(name: str, *, opset: int = 18, batch: int | None = None) -> onnx.ModelProto:
    """One of the networks, its batch open or fixed."""
    rng = np.random.default_rng(1)
    drawn = {
        "dense": rng.normal(0, 0.05, (16, 512)),
        "last": rng.normal(0, 0.3, (CLASSES, 8, 1, 1)),
    }
    more = {key: value.astype(np.float32) for key, value in drawn.items()}
    proto = written(NETWORKS[name], opset=opset, **more)
    if batch is not None:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    return proto


def placed(explainer: onnx.ModelProto) -> Placement:
    """Where its nodes run, as a session on CUDA opens it."""
    made, stays = lowered(explainer)
    assert stays is None
    return placement(made)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [None, 2], ids=["open batch", "fixed batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_node_of_an_explainer_stays_on_the_device(
    name: str, batch: int | None, method: str
) -> None:
    found = placed(convert(network(name, batch=batch), method=method, input_range=RANGE))
    assert found.strays == []
    assert found.copies == []


@pytest.mark.parametrize("name", NETWORKS)
def test_with_fixed_sizes_nothing_at_all_is_left_to_the_cpu(name: str) -> None:
    found = placed(convert(network(name, batch=2), input_range=RANGE, target=[0, 3]))
    assert [node.name for node in found.on_cpu] == []


def test_the_weights_that_rules_ask_for_are_made_at_load() -> None:
    found = placed(convert(network("chain"), method="lrp", input_range=RANGE))
    made = {y for node in found.graph.node for y in node.output}
    given = {x.name for x in found.graph.input}
    for node in found.graph.node:
        assert {*node.input} & (made | given), node.name


@pytest.mark.parametrize("opset", [19, 20, 21, 22, 23])
@pytest.mark.parametrize("name", NETWORKS)
def test_models_of_newer_opsets_stay_there_too(name: str, opset: int) -> None:
    found = placed(convert(network(name, opset=opset), input_range=RANGE))
    assert found.strays == []
    assert found.copies == []


def test_without_an_older_opset_max_pools_would_go_to_the_cpu() -> None:
    """Else there would be no need for it; PyTorch exports opset 20."""
    found = placement(convert(network("residual", opset=20), input_range=RANGE))
    assert any("Equal-19" in stray for stray in found.strays)
    assert any("Pad-19" in stray for stray in found.strays)


def test_a_node_on_the_wrong_side_is_found() -> None:
    """The check itself: a Det, which CUDA has no kernel for, takes what follows it along."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,3,3] x) => (float[N] y)'
        "{ a = Relu(x) d = Det(a) y = Relu(d) }"
    )
    found = placement(proto)
    assert [node.op_type for node in found.on_cpu] == ["Det", "Relu"]
    assert len(found.strays) == 2
    assert [(copy.tensor, copy.to_device) for copy in found.copies] == [("a", False)]


def test_arithmetic_on_shapes_is_left_to_the_cpu_and_needs_no_copies() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,M] x, float[K] z) => (float[A,B] y)'
        "{ a = Shape(x) b = Add(a, a) c = Relu(z) y = Expand(c, b) }"
    )
    found = placement(proto)
    assert [node.op_type for node in found.on_cpu] == ["Add"]
    assert found.strays == []
    assert found.copies == []


# -- every rule --------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[onnx.ModelProto]:
    """The models that sessions are opened for."""
    models: list[onnx.ModelProto] = []
    really = testing.open_session

    def noted(model: onnx.ModelProto, device: str) -> object:
        models.append(model)
        return really(model, device)

    monkeypatch.setattr(testing, "open_session", noted)
    return models


def with_relevance_fed(model: onnx.ModelProto, relevance: list[np.ndarray]) -> onnx.ModelProto:
    """The model with what arrives as an input, so that nothing is folded for its being known."""
    arriving = [np.asarray(r, np.float32) for r in relevance]
    for tensor in [*model.graph.initializer]:
        value = numpy_helper.to_array(tensor)
        if any(np.array_equal(value, r) and value.dtype == r.dtype for r in arriving):
            model.graph.initializer.remove(tensor)
            info = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
            model.graph.input.append(info)
    return model


@pytest.mark.parametrize(
    "case", [c for c in MINE if c.id not in {*GAPS, *NEWER}], ids=lambda case: case.id
)
def test_every_rule_stays_on_the_device(case: Case, opened: list[onnx.ModelProto]) -> None:
    relevance = relevance_for(case)
    found(case, relevance)
    result = placed(with_relevance_fed(opened[0], relevance))
    ours = [stray for stray in result.strays if stray.startswith("relevance")]
    theirs = [node for node in result.on_cpu if not node.name.startswith("relevance")]
    touched = {x for node in theirs for x in (*node.input, *node.output)}
    for_ours = [copy.tensor for copy in result.copies if copy.tensor not in touched]
    assert bool(ours or for_ours) == (case.id in ELSEWHERE)


# -- the older opset ---------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [19, 20, 21, 22, 23])
def test_the_older_opset_says_the_same(opset: int) -> None:
    explainer = convert(network("residual", opset=opset), input_range=RANGE)
    before = explainer.SerializeToString()
    model, stays = lowered(explainer)
    assert (stays, model.opset_import[0].version) == (None, 18)
    assert explainer.SerializeToString() == before
    x = pictures(2)
    wanted, got = (Explainer(m, device="cpu").explain(x, [0, 3]) for m in (explainer, model))
    np.testing.assert_allclose(got.logits, wanted.logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.relevance, wanted.relevance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attributes", ["", '<approximate="tanh">'])
def test_gelu_becomes_that_of_onnx_runtime(attributes: str) -> None:
    body = CHAIN.replace("r1 = Relu(c1)", f"r1 = Gelu{attributes}(c1)")
    rng = np.random.default_rng(2)
    dense = (rng.normal(size=(16, 512)) / 16).astype(np.float32)
    explainer = convert(written(body, opset=20, dense=dense), input_range=RANGE)
    found = placed(explainer)
    assert (found.strays, found.copies) == ([], [])
    wanted, got = (
        Explainer(m, device="cpu").explain(pictures(2), [0, 3])
        for m in (explainer, lowered(explainer)[0])
    )
    np.testing.assert_allclose(got.logits, wanted.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.relevance, wanted.relevance, rtol=1e-3, atol=1e-5)


def test_opset_18_stays_as_it_is() -> None:
    model = network("chain")
    made, stays = lowered(model)
    assert made is model
    assert stays is None


def test_attributes_that_say_the_default_are_left_out() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[N] x) => (float[N] y)'
        "{ a = Cast<to=11, saturate=1>(x) y = Cast<to=1>(a) }"
    )
    made, _ = lowered(model)
    assert made.opset_import[0].version == 18
    assert [[a.name for a in node.attribute] for node in made.graph.node] == [["to"], ["to"]]
    assert len(model.graph.node[0].attribute) == 2


REFUSED: dict[str, tuple[int, str, str]] = {
    "a new operator": (23, "y = RMSNormalization(x, s6)", "RMSNormalization of opset 23"),
    "another than the default": (19, "y = Cast<to=1, saturate=0>(x)", "Cast of opset 19"),
    "a new mode": (19, 'y = Pad<mode="wrap">(x, border)', "Pad of opset 19"),
    "a new attribute": (
        19,
        "y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(x)",
        "AveragePool of opset 19",
    ),
    "another mean": (
        19,
        "y = AveragePool<kernel_shape=[2,2], ceil_mode=1>(x)",
        "AveragePool of opset 19",
    ),
    "another meaning": (21, "y = GroupNormalization<num_groups=3>(x, s, s)", "GroupNormalization"),
    "an opset of tomorrow": (24, "y = Relu(x)", "opset 24"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_older_opset_cannot_say_stays(name: str) -> None:
    opset, body, reason = REFUSED[name]
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> g (float[1,3,6,6] x) => (float[a,b,c,d] y)'
        f"<float[3] s = {{1, 2, 3}}, float[6] s6 = {{1, 1, 1, 1, 1, 1}},"
        f" int64[8] border = {{0, 0, 1, 1, 0, 0, 1, 1}}> {{ {body} }}"
    )
    made, stays = lowered(model)
    assert made is model
    assert reason in (stays or "")


# -- whole networks ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "mobilenet_v2", "convnext_tiny"])
def test_a_network_from_pytorch_stays_on_the_device(name: str) -> None:
    pytest.importorskip("torchvision", reason="the networks are torchvision's")
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    from networks_support import exported
    from reference.networks import make, photographs

    samples = photographs(4, 64, seed=5)
    model = exported(make(name, samples=samples), samples[:1], "dynamo")
    found = placed(convert(model))
    assert (found.strays, found.copies) == ([], [])
