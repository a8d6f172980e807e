"""Structures that torchvision's networks do not show, each against another way to write it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper, parser

import onnx_clrp
from onnx_clrp import Explainer, UnsupportedError, UsageError
from onnx_clrp.model import PREFIX, metadata
from onnx_clrp.runtime import open_session

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

CHANNELS, SIZE, CLASSES = 3, 8, 5
RANGE = (-1.0, 1.0)
METHODS = ("lrp", "clrp1", "clrp2")

HEAD = "r = Relu(h) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r) f = Flatten(p)"
BODY = f"h = Conv <pads=[1,1,1,1]> (x, w, b) {HEAD} logits = Gemm(f, v, c)"


def drawn(*shape: int, seed: int = 0) -> Floats:
    """Values of both signs, the same for the same shape and seed."""
    return np.random.default_rng([*shape, seed]).normal(size=shape).astype(np.float32)


def pictures(*shape: int) -> Floats:
    """Seeded values within `RANGE`."""
    return np.random.default_rng(shape).uniform(*RANGE, shape).astype(np.float32)


PICTURES = pictures(3, CHANNELS, SIZE, SIZE)
WEIGHTS: dict[str, Array] = {
    "w": drawn(6, CHANNELS, 3, 3),
    "b": drawn(6),
    "v": drawn(6 * 16, CLASSES),
    "c": drawn(CLASSES),
    "shift": drawn(6, seed=1),
    "mean": drawn(6, seed=2),
    "variance": np.abs(drawn(6, seed=3)) + 1,
}
MIXED = np.array([0.5, -1.5, 2, -0.25, 1, -1], np.float32)
"""Scales of both signs, one for each channel of the first convolution."""


def network(
    body: str = BODY,
    x: str = f"float[N,{CHANNELS},{SIZE},{SIZE}]",
    outputs: str = f"float[N,{CLASSES}] logits",
    **weights: Array,
) -> onnx.ModelProto:
    """The model of these nodes, with the weights that they name."""
    header = f'<ir_version: 8, opset_import: ["": 18]> net ({x} x) => ({outputs})'
    proto: onnx.ModelProto = parser.parse_model(f"{header} {{ {body} }}")
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in {**WEIGHTS, **weights}.items()
        if name in used
    )
    return proto


def relevance(
    proto: onnx.ModelProto,
    batch: ArrayLike = PICTURES,
    target: ArrayLike | None = (0, 3),
    **options: Any,
) -> Floats:
    """The signed relevance of two classes."""
    settings = {"input_range": RANGE, "signed": True, **options}
    return Explainer(proto, device="cpu", **settings).explain(batch, target).relevance


def assert_near(out: Array, wanted: Array, tolerance: float = 1e-5) -> None:
    """‖out - wanted‖ / ‖wanted‖ is small, and `wanted` is something."""
    assert out.shape == wanted.shape
    size = np.linalg.norm(wanted)
    assert size > 0
    assert np.linalg.norm(out - wanted) <= tolerance * size


def assert_same_maps(one: onnx.ModelProto, other: onnx.ModelProto, **options: Any) -> None:
    """Both models have the same relevance by every method."""
    for method in METHODS:
        assert_near(
            relevance(one, method=method, **options), relevance(other, method=method, **options)
        )


# -- affine maps -------------------------------------------------------------------------------


def with_scaled_filters(scale: Floats, shift: Array) -> onnx.ModelProto:
    """The plain network, the output channels of its convolution scaled and shifted."""
    filters = WEIGHTS["w"] * scale.reshape(-1, 1, 1, 1)
    return network(w=filters, b=WEIGHTS["b"] * scale + shift)


NORM = "BatchNormalization(s, k, shift, mean, variance)"
FRONT = "g = Conv <pads=[1,1,1,1]> (x, w, b)"
BEHIND = {
    "directly": f"s = Identity(g) h = {NORM}",
    "through Transpose": f"s = Transpose <perm=[0,1,3,2]> (g) n = {NORM} "
    "h = Transpose <perm=[0,1,3,2]> (n)",
    "through Reshape": f"s = Reshape(g, rows) n = {NORM} h = Reshape(n, plane)",
    "through Dropout": f"s = Dropout(g) h = {NORM}",
}
SHAPES = {"rows": np.array([0, 6, SIZE**2]), "plane": np.array([0, 6, SIZE, SIZE])}


@pytest.mark.parametrize("way", BEHIND)
def test_a_norm_with_negative_scales_belongs_to_the_convolution_before_it(way: str) -> None:
    scale = MIXED / np.sqrt(WEIGHTS["variance"] + np.float32(1e-5))
    folded = with_scaled_filters(scale, WEIGHTS["shift"] - WEIGHTS["mean"] * scale)
    written = network(f"{FRONT} {BEHIND[way]} {HEAD} logits = Gemm(f, v, c)", k=MIXED, **SHAPES)
    assert_same_maps(written, folded)


AFFINE = {
    "Mul": ("h = Mul(g, k)", MIXED.reshape(-1, 1, 1), MIXED, 0),
    "Mul from the left": ("h = Mul(k, g)", MIXED.reshape(1, -1, 1, 1), MIXED, 0),
    "Mul by a number": ("h = Mul(g, k)", np.float32(-2), -2 * np.ones(6), 0),
    "Div": ("h = Div(g, k)", MIXED.reshape(-1, 1, 1), 1 / MIXED, 0),
    "Neg": ("h = Neg(g)", np.float32(0), -np.ones(6), 0),
    "Sub from a constant": ("h = Sub(k, g)", np.float32(0.5), -np.ones(6), 0.5),
    "Sub of a constant": ("h = Sub(g, k)", np.float32(0.5), np.ones(6), -0.5),
    "Mul of channels last": (
        "s = Transpose <perm=[0,2,3,1]> (g) n = Mul(s, k) h = Transpose <perm=[0,3,1,2]> (n)",
        MIXED,
        MIXED,
        0,
    ),
}
"""Nodes behind a convolution, their constant, and the scale and the shift that they amount to."""


@pytest.mark.parametrize("way", AFFINE)
def test_a_scale_behind_a_convolution_belongs_to_it(way: str) -> None:
    nodes, constant, scale, shift = AFFINE[way]
    written = network(f"{FRONT} {nodes} {HEAD} logits = Gemm(f, v, c)", k=np.asarray(constant))
    folded = with_scaled_filters(np.asarray(scale, np.float32), np.asarray(shift, np.float32))
    assert_same_maps(written, folded)


@pytest.mark.parametrize("rules", ["default", "epsilon", "alpha2_beta1"])
def test_signs_behind_scales_behind_a_convolution_belong_to_it(rules: str) -> None:
    """Also where the rule counts with the bias, and folds in what is affine right behind it."""
    scale, signs = MIXED.reshape(-1, 1, 1), np.sign(MIXED[::-1])
    nodes = "m = Mul(g, k) a = Add(m, k) s = Transpose <perm=[0,2,3,1]> (a) n = Mul(s, signs)"
    written = network(
        f"{FRONT} {nodes} h = Transpose <perm=[0,3,1,2]> (n) {HEAD} logits = Gemm(f, v, c)",
        k=scale,
        signs=signs,
    )
    assert_same_maps(written, with_scaled_filters(MIXED * signs, MIXED * signs), rules=rules)


@pytest.mark.parametrize("rules", ["default", "epsilon"])
def test_scales_behind_a_gemm_belong_to_it_whatever_its_alpha(rules: str) -> None:
    u, k, b = drawn(6 * 16, 8), drawn(8, seed=4), drawn(8, seed=5)
    body = BODY.replace("logits = Gemm(f, v, c)", "DENSE q = Relu(m) logits = Gemm(q, v, c)")
    written, folded = (
        network(body.replace("DENSE", dense), v=drawn(8, CLASSES), **weights)
        for dense, weights in (
            ("l = Gemm<alpha = 0.5>(f, u, d) m = Mul(l, k)", {"u": u * 2, "d": b, "k": k}),
            ("m = Gemm(f, u, d)", {"u": u * k, "d": b * k}),
        )
    )
    assert_same_maps(written, folded, rules=rules)


BIASED = {
    "Add": "l = MatMul(f, v) logits = Add(l, c)",
    "Add from the left": "l = MatMul(f, v) logits = Add(c, l)",
    "Sub": "l = MatMul(f, v) logits = Sub(l, less)",
    "Add to a Gemm": "l = Gemm(f, v) logits = Add(l, c)",
    "in two parts": "l = Gemm(f, v, rest) logits = Add(l, one)",
    "Add to a Gemm of twice the weights": "l = Gemm<alpha = 2.0, transB = 1>(f, turned, rest)"
    " logits = Add(l, one)",
    "Conv": "u = Unsqueeze(f, behind) l = Conv(u, rows) a = Add(l, column) logits = Flatten(a)",
}
"""Classifiers whose bias a node of its own adds."""


@pytest.mark.parametrize("rules", ["default", "epsilon", "alpha2_beta1"])
@pytest.mark.parametrize("way", BIASED)
def test_a_bias_behind_the_classifier_is_its_bias(way: str, rules: str) -> None:
    weights = {
        "less": -WEIGHTS["c"],
        "one": np.float32(1),
        "rest": WEIGHTS["c"] - 1,
        "turned": np.ascontiguousarray(WEIGHTS["v"].T) / 2,
        "rows": np.ascontiguousarray(WEIGHTS["v"].T)[..., None],
        "column": WEIGHTS["c"][:, None],
        "behind": np.array([2]),
    }
    body = BODY.replace("logits = Gemm(f, v, c)", BIASED[way])
    assert_same_maps(network(body, **weights), network(), rules=rules)


def test_a_picture_subtracted_from_white_turns_the_first_filters_round() -> None:
    body = BODY.replace("(x, w, b)", "(turned, w, b)").replace("pads=[1,1,1,1]", "pads=[0,0,0,0]")
    flat = {"v": drawn(6 * 9, CLASSES), "white": np.ones((), np.float32)}
    white = WEIGHTS["w"].sum(axis=(1, 2, 3))
    plain = network(
        body.replace("turned", "x"), w=-WEIGHTS["w"], b=WEIGHTS["b"] + white, v=flat["v"]
    )
    assert_same_maps(network(f"turned = Sub(white, x) {body}", **flat), plain)


@pytest.mark.parametrize("widths", [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 2, 0, 0, 0, 0, 2]])
def test_a_pad_in_front_is_the_same_as_pads_by_attribute(widths: list[int]) -> None:
    around = [widths[2], widths[3], widths[6], widths[7]]
    padded = BODY.replace(" <pads=[1,1,1,1]> (x", "(padded")
    assert_same_maps(
        network(f"padded = Pad(x, widths) {padded}", widths=np.array(widths)),
        network(BODY.replace("[1,1,1,1]", str(around).replace(" ", ""))),
    )


# -- inputs ------------------------------------------------------------------------------------


def test_channels_last_behind_a_transpose_gives_the_same_map_turned() -> None:
    turned = BODY.replace("(x,", "(t,")
    last = network(
        f"t = Transpose <perm=[0,3,1,2]> (x) {turned}", x=f"float[N,{SIZE},{SIZE},{CHANNELS}]"
    )
    out = relevance(last, PICTURES.transpose(0, 2, 3, 1))
    assert_near(out.transpose(0, 1, 4, 2, 3), relevance(network()))


def test_a_heatmap_of_channels_last_has_height_and_width() -> None:
    turned = BODY.replace("(x,", "(t,")
    last = network(
        f"t = Transpose <perm=[0,3,1,2]> (x) {turned}", x=f"float[N,{SIZE},{SIZE},{CHANNELS}]"
    )
    result = Explainer(last, device="cpu", input_range=RANGE).explain(
        PICTURES.transpose(0, 2, 3, 1), [0, 1]
    )
    assert result.heatmap().shape == (3, 2, SIZE, SIZE)


def test_an_integer_input_has_the_range_of_its_type() -> None:
    body = BODY.replace("(x,", "(u,")
    bytes_in = network(f"u = Cast <to=1> (x) {body}", x=f"uint8[N,{CHANNELS},{SIZE},{SIZE}]")
    batch = ((PICTURES + 1) * 127.5).astype(np.uint8)
    out = relevance(bytes_in, batch, input_range=None)
    assert out.dtype == np.float32
    assert_near(out, relevance(network(), batch.astype(np.float32), input_range=(0, 255)))


def test_a_float_batch_for_an_integer_input_is_refused() -> None:
    body = BODY.replace("(x,", "(u,")
    bytes_in = network(f"u = Cast <to=1> (x) {body}", x=f"uint8[N,{CHANNELS},{SIZE},{SIZE}]")
    with pytest.raises(UsageError, match="the model takes uint8, the batch is float32"):
        relevance(bytes_in, PICTURES, input_range=None)


def test_a_picture_of_0_to_255_for_a_normalised_model_is_refused_with_both_ranges() -> None:
    explainer = Explainer(network(), device="cpu")
    batch = np.linspace(0, 255, PICTURES.size, dtype=np.float32).reshape(PICTURES.shape)
    with pytest.raises(UsageError, match=r"0 … 255.*-2\.118 … 2\.64"):
        explainer.explain(batch)


def test_what_was_assumed_of_the_range_is_said() -> None:
    explainer = Explainer(network(), device="cpu")
    assert "ImageNet" in explainer.explain(PICTURES).notes[0]


def test_a_batch_that_is_not_finite_is_refused() -> None:
    explainer = Explainer(network(), device="cpu", input_range=(-np.inf, np.inf))
    with pytest.raises(UsageError, match="not finite"):
        explainer.explain(np.where(PICTURES > 0.9, np.nan, PICTURES))


# -- batches and sizes -------------------------------------------------------------------------


def test_a_fixed_batch_is_fed_in_pieces() -> None:
    fixed = network(x=f"float[2,{CHANNELS},{SIZE},{SIZE}]", outputs=f"float[2,{CLASSES}] logits")
    batch = pictures(5, CHANNELS, SIZE, SIZE)
    targets = np.array([[0, 1], [2, 3], [4, 0], [1, 1], [3, 2]])
    assert_near(relevance(fixed, batch, targets), relevance(network(), batch, targets))


OPEN = (
    "h = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w, b) r = Relu(h) "
    "p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (r) "
    "q = AveragePool <kernel_shape=[2,2]> (p) z = Conv(q, w1) o = Relu(z) "
    "m = GlobalAveragePool(o) f = Flatten(m) logits = Gemm(f, v, c)"
)
OPEN_WEIGHTS = {"w1": drawn(7, 6, 2, 2), "v": drawn(7, CLASSES)}


@pytest.mark.parametrize("size", [(19, 26), (32, 17)])
@pytest.mark.parametrize("method", METHODS)
def test_open_height_and_width_give_what_fixed_ones_do(method: str, size: tuple[int, int]) -> None:
    opened = network(OPEN, x=f"float[N,{CHANNELS},H,W]", **OPEN_WEIGHTS)
    height, width = size
    fixed = network(OPEN, x=f"float[N,{CHANNELS},{height},{width}]", **OPEN_WEIGHTS)
    batch = pictures(2, CHANNELS, *size)
    assert_near(relevance(opened, batch, method=method), relevance(fixed, batch, method=method))


# -- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_relevance_starts_in_front_of_what_makes_an_answer_of_logits(end: str) -> None:
    body = f"{BODY.replace('logits =', 'scores =')} logits = {end}(scores)"
    assert_same_maps(network(body), network())


def test_behind_a_softmax_the_result_still_holds_the_logits() -> None:
    body = f"{BODY.replace('logits =', 'scores =')} logits = Softmax(scores)"
    result = Explainer(network(body), device="cpu", input_range=RANGE).explain(PICTURES)
    plain = Explainer(network(), device="cpu", input_range=RANGE).explain(PICTURES)
    np.testing.assert_allclose(result.logits, plain.logits, rtol=1e-6)
    np.testing.assert_array_equal(result.target, plain.target)


def test_logits_with_a_plane_of_one_pixel_are_logits() -> None:
    plane = OPEN.replace("f = Flatten(m) logits = Gemm(f, v, c)", "logits = Conv(m, v1, c)")
    batch = pictures(2, CHANNELS, 20, 20)
    x = f"float[N,{CHANNELS},20,20]"
    filters = OPEN_WEIGHTS["v"].T.reshape(CLASSES, 7, 1, 1)
    with_plane = network(
        plane, x, f"float[N,{CLASSES},1,1] logits", v1=filters, w1=OPEN_WEIGHTS["w1"]
    )
    assert_same_maps(with_plane, network(OPEN, x, **OPEN_WEIGHTS), batch=batch)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_one_layer_starts_and_ends_with_it(method: str) -> None:
    weights, bias = drawn(6, CLASSES), drawn(CLASSES)
    one_layer = network("logits = Gemm(x, v, c)", x="float[N,6]", v=weights, c=bias)
    x = pictures(1, 6)
    logits = x @ weights + bias

    def handed(w: Floats, target: int) -> Floats:
        lowest, highest = (x - RANGE[0]).T * w.clip(min=0), (x - RANGE[1]).T * w.clip(max=0)
        parts = (lowest + highest)[:, target]
        return parts / parts.sum()

    others = np.mean([handed(weights, c) for c in range(CLASSES) if c != 2], axis=0)
    dual = {"lrp": 0.0, "clrp1": others, "clrp2": handed(-weights, 2)}[method]
    wanted = logits[0, 2] * (handed(weights, 2) - dual)
    out = relevance(one_layer, x, 2, method=method)
    assert_near(out[0, 0], wanted)


# -- targets -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    """The plain network's explainer."""
    return Explainer(network(), device="cpu", input_range=RANGE, signed=True)


def one_by_one(explainer: Explainer, targets: Array) -> Floats:
    """The relevance of targets `[N, k]`, each explained by itself."""
    return np.stack(
        [
            [explainer.explain(PICTURES[n : n + 1], int(t)).relevance[0, 0] for t in row]
            for n, row in enumerate(targets)
        ]
    )


TARGETS = {
    "one for each sample": (np.array([4, 0, 2]), [[4], [0], [2]]),
    "k for each sample": (np.array([[4, 1], [0, 3], [2, 2]]), [[4, 1], [0, 3], [2, 2]]),
    "a list for every sample": ([4, 1, 0, 2], [[4, 1, 0, 2]] * 3),
    "a list as long as the batch": ([4, 1, 0], [[4, 1, 0]] * 3),
    "a number": (3, [[3]] * 3),
}


@pytest.mark.parametrize("form", TARGETS)
def test_targets_mean(explainer: Explainer, form: str) -> None:
    target, wanted = TARGETS[form]
    result = explainer.explain(PICTURES, target)
    np.testing.assert_array_equal(result.target, wanted)
    np.testing.assert_array_equal(
        result.seed, np.take_along_axis(result.logits, np.array(wanted), axis=1)
    )
    assert_near(result.relevance, one_by_one(explainer, np.array(wanted)))


def test_no_target_means_the_top_class_of_each_sample(explainer: Explainer) -> None:
    result = explainer.explain(PICTURES)
    np.testing.assert_array_equal(result.target[:, 0], result.logits.argmax(axis=1))
    assert_near(result.relevance, one_by_one(explainer, result.target))


@pytest.mark.parametrize(
    "target", [np.array([0, 1]), np.zeros((2, 2), int), np.zeros((3, 1, 1), int), 0.5, "zebra"]
)
def test_targets_of_another_form_are_refused(explainer: Explainer, target: ArrayLike) -> None:
    with pytest.raises(UsageError):
        explainer.explain(PICTURES, target)


@pytest.mark.parametrize("target", [-1, CLASSES, [0, 99]])
def test_a_class_that_does_not_exist_is_refused(explainer: Explainer, target: ArrayLike) -> None:
    with pytest.raises(UsageError, match=f"is not in 0 … {CLASSES - 1}"):
        explainer.explain(PICTURES, target)


@pytest.mark.parametrize("method", METHODS)
def test_in_a_bare_session_a_class_that_does_not_exist_is_nan(method: str) -> None:
    proto = onnx_clrp.convert(network(), method=method, input_range=RANGE)
    session = open_session(proto, "cpu").session
    targets = np.array([[0, CLASSES], [-1, 4], [1, 2]])
    (maps,) = session.run(["relevance"], {"x": PICTURES, "target": targets})
    missing = (targets < 0) | (targets >= CLASSES)
    np.testing.assert_array_equal(np.isnan(maps).all(axis=(2, 3, 4)), missing)
    np.testing.assert_array_equal(np.isnan(maps).any(axis=(2, 3, 4)), missing)


COMPILED = {"a list": ([3, 1], [[3, 1]] * 3), "a number": (2, [[2]] * 3)}


@pytest.mark.parametrize("form", COMPILED)
def test_targets_may_be_compiled_in(explainer: Explainer, form: str) -> None:
    target, wanted = COMPILED[form]
    compiled = Explainer(network(), device="cpu", input_range=RANGE, signed=True, target=target)
    result = compiled.explain(PICTURES)
    np.testing.assert_array_equal(result.target, wanted)
    assert_near(result.relevance, explainer.explain(PICTURES, target).relevance)


def test_the_top_classes_may_be_compiled_in(explainer: Explainer) -> None:
    compiled = Explainer(network(), device="cpu", input_range=RANGE, signed=True, target="top:2")
    result = compiled.explain(PICTURES)
    np.testing.assert_array_equal(result.target, np.argsort(-result.logits, axis=1)[:, :2])
    assert_near(result.relevance, explainer.explain(PICTURES, result.target).relevance)


def test_with_targets_compiled_in_the_graph_has_no_input_for_them() -> None:
    proto = onnx_clrp.convert(network(), input_range=RANGE, target="top:2")
    assert [x.name for x in proto.graph.input] == ["x"]
    compiled = Explainer(proto, device="cpu")
    with pytest.raises(UsageError, match="compiled in"):
        compiled.explain(PICTURES, 0)


@pytest.mark.parametrize("target", ["top:0", "top:6", "first", [], [0, CLASSES], -1])
def test_targets_that_cannot_be_compiled_in_are_refused(target: Any) -> None:
    with pytest.raises(UsageError):
        onnx_clrp.convert(network(), input_range=RANGE, target=target)


# -- seeds and parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_negative_logit_is_explained_with_its_sign(method: str) -> None:
    proto = network(c=np.array([-1e3, 0, 0, 0, 0], np.float32))
    plain = network()
    result = Explainer(proto, device="cpu", method=method, input_range=RANGE, signed=True).explain(
        PICTURES, 0
    )
    unlike = Explainer(plain, device="cpu", method=method, input_range=RANGE, signed=True).explain(
        PICTURES, 0
    )
    assert (result.seed < 0).all()
    scale = result.seed / unlike.seed
    assert_near(result.relevance, unlike.relevance * scale[..., None, None, None])


@pytest.mark.parametrize("method", METHODS)
def test_a_logit_of_zero_has_an_empty_map(method: str) -> None:
    silent = {"v": WEIGHTS["v"] * (np.arange(CLASSES) != 1), "c": np.zeros(CLASSES, np.float32)}
    result = Explainer(network(**silent), device="cpu", method=method, input_range=RANGE).explain(
        PICTURES, [1]
    )
    assert not result.seed.any()
    assert not result.relevance.any()


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_the_signed_contrast_is_concept_minus_dual(method: str) -> None:
    result = Explainer(
        network(), device="cpu", method=method, input_range=RANGE, signed=True, parts=True
    ).explain(PICTURES, [0, 3])
    assert result.concept is not None
    assert result.dual is not None
    assert_near(result.relevance, result.concept - result.dual)
    assert_near(result.concept, relevance(network(), method="lrp"))


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_the_contrast_is_cut_at_zero_unless_it_is_signed(method: str) -> None:
    cut = relevance(network(), method=method, signed=False)
    np.testing.assert_array_equal(cut, relevance(network(), method=method).clip(min=0))


def test_without_parts_there_are_none(explainer: Explainer) -> None:
    result = explainer.explain(PICTURES, 0)
    assert result.concept is None
    assert result.dual is None


def test_clrp1_needs_a_second_class() -> None:
    lone = network(outputs="float[N,1] logits", v=drawn(96, 1), c=drawn(1))
    with pytest.raises(UsageError, match="clrp1 needs at least 2 classes, not 1"):
        onnx_clrp.convert(lone, method="clrp1", input_range=RANGE)
    assert onnx_clrp.convert(lone, method="clrp2", input_range=RANGE)


# -- the graph ---------------------------------------------------------------------------------


def test_names_that_are_taken_get_a_suffix_and_the_metadata_says_which() -> None:
    taken = {"h": "target", "r": "relevance", "b": "relevance_target", "w": "relevance_logits"}
    body = re.sub(r"\b[hrbw]\b", lambda name: taken[name[0]], BODY)
    weights = {taken[name]: WEIGHTS[name] for name in "bw"}
    proto = onnx_clrp.convert(network(body, **weights), input_range=RANGE, signed=True)
    names = json.loads(metadata(proto)[PREFIX + "names"])
    new = ("target", "relevance", "relevance_target")
    assert names == {"input": "x", "logits": "logits", **{name: f"{name}_2" for name in new}}
    assert [x.name for x in proto.graph.input] == ["x", "target_2"]
    result = Explainer(proto, device="cpu").explain(PICTURES, (0, 3))
    assert_near(result.relevance, relevance(network()))


def test_what_the_model_says_of_itself_is_kept() -> None:
    proto = network()
    proto.producer_name, proto.doc_string, proto.model_version = "a lab", "Zebras.", 7
    helper.set_model_props(proto, {"author": "Z. Ebra"})
    explainer = onnx_clrp.convert(proto, input_range=RANGE)
    assert metadata(explainer)["author"] == "Z. Ebra"
    kept = (explainer.producer_name, explainer.doc_string, explainer.model_version)
    assert kept == ("a lab", "Zebras.", 7)


def test_further_outputs_keep_their_names_and_places() -> None:
    proto = network(outputs=f"float[N,96] f, float[N,{CLASSES}] logits, float[N,6,8,8] r")
    explainer = onnx_clrp.convert(proto, input_range=RANGE, logits="logits")
    names = [y.name for y in explainer.graph.output]
    assert names == ["f", "logits", "r", "relevance", "relevance_target"]


def test_the_nodes_of_the_model_stand_unchanged_in_front() -> None:
    proto = network()
    explainer = onnx_clrp.convert(proto, input_range=RANGE)
    count = len(proto.graph.node)
    assert list(explainer.graph.node[:count]) == list(proto.graph.node)
    assert {node.domain for node in explainer.graph.node[count:]} == {""}


def test_the_inputs_and_outputs_that_are_added_have_types_and_shapes() -> None:
    explainer = onnx_clrp.convert(network(), input_range=RANGE)
    assert form(explainer.graph.input[-1]) == ("target", TensorProto.INT64, ["batch", "k"])
    shape = ["N", "k", CHANNELS, SIZE, SIZE]
    assert form(explainer.graph.output[1]) == ("relevance", TensorProto.FLOAT, shape)
    assert form(explainer.graph.output[2]) == ("relevance_target", TensorProto.INT64, ["N", "k"])


def form(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    """Name, element type and shape."""
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


def test_every_operator_without_a_rule_is_named_at_once() -> None:
    proto = network(
        BODY.replace("r = Relu(h)", "s = Sin(h) r = Relu(s)").replace(
            "f = Flatten(p)", "a = Cos(p) f = Flatten(a)"
        )
    )
    for node in proto.graph.node:
        node.name = f"/net/{node.op_type}"
    with pytest.raises(UnsupportedError) as caught:
        onnx_clrp.convert(proto, input_range=RANGE)
    reason = "no rule for this operator"
    assert caught.value.gaps == [("/net/Sin", "Sin", reason), ("/net/Cos", "Cos", reason)]
    for part in ("2 nodes", "/net/Sin", "/net/Cos", '@onnx_clrp.rule("Sin")'):
        assert part in str(caught.value)


def test_nodes_without_a_name_are_called_by_what_they_write() -> None:
    proto = network(BODY.replace("r = Relu(h)", "s = Sin(h) r = Relu(s)"))
    with pytest.raises(UnsupportedError, match="writes s"):
        onnx_clrp.convert(proto, input_range=RANGE)
