"""Quantised graphs written by hand: what other quantisers write, and what is easily misread."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from quantised_support import GATED, RANGE, Array, Kind, pictures, quantised, small, written
from test_quantised import assert_agrees, one_thread

from onnx_clrp import Explainer, UnsupportedError, convert
from onnx_clrp.inspection import inspect

__all__ = ["one_thread"]  # a fixture that holds for this file too

_RNG = np.random.default_rng(1)

PARAMETERS: dict[str, Array] = {
    "fine": np.array(0.05, np.float32),
    "coarse": np.array(0.5, np.float32),
    "tiny": np.array(1e-3, np.float32),
    "pixel": np.array(2 / 127, np.float32),
    "mid": np.array(128, np.uint8),
    "low": np.array(0, np.uint8),
    "other": np.array(100, np.uint8),
    "high": np.array(200, np.uint8),
    "bottom": np.array(-128, np.int8),
    "few": np.array(3, np.int8),
    "wide": np.array(32768, np.uint16),
    "eighths": np.full(8, 1 / 128, np.float32),
    "zeros": np.array([3, -7, 0, 5, -2, 0, 9, -9], np.int8),
    "kernel": _RNG.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
    "w44": (_RNG.standard_normal((8, 4, 3, 3)) * 0.3).astype(np.float32),
    "from0": np.array([0]),
    "to4": np.array([4]),
    "axis1": np.array([1]),
}


def rounded(x: str, y: str, scale: str = "fine", zero: str = "mid") -> str:
    """Nodes that quantise and dequantise `x` to `y`, with integers `y`q in between."""
    quantise = f"{y}q = QuantizeLinear({x}, {scale}, {zero})"
    return f"{quantise} {y} = DequantizeLinear({y}q, {scale}, {zero}) "


def head(x: str) -> str:
    return f" g = GlobalAveragePool({x}) f = Flatten(g) h = MatMul(f, v8) logits = Add(h, b5)"


INPUT = rounded("x", "x0", "pixel")
FIRST = INPUT + " c = Conv<pads=[1,1,1,1]>(x0, w1, b1) r = Relu(c) "
LAST = " e = Conv(d, w2, b2)" + head("e")

FORMS = {
    "ties among uint8": FIRST
    + "q = QuantizeLinear(r, coarse, low) p = MaxPool<kernel_shape=[3,3], strides=[2,2]>(q)"
    + "d = DequantizeLinear(p, coarse, low)"
    + LAST,
    "ties among int8": FIRST
    + "q = QuantizeLinear(r, coarse, bottom) p = MaxPool<kernel_shape=[3,3], strides=[2,2]>(q)"
    + "d = DequantizeLinear(p, coarse, bottom)"
    + LAST,
    "a maximum of what is not rounded": FIRST
    + "p = MaxPool<kernel_shape=[3,3], strides=[2,2]>(r)"
    + rounded("p", "d", "coarse", "low")
    + LAST,
    "a product of plain activations": INPUT
    + "c = Conv<pads=[1,1,1,1]>(x0, w1, b1)"
    + rounded("c", "a")
    + "k = Conv<pads=[1,1,1,1]>(a, w2, b2)"
    + rounded("k", "b")
    + "m = Mul(a, b)"
    + rounded("m", "d")
    + LAST,
    "Silu written out": INPUT
    + "c = Conv<pads=[1,1,1,1]>(x0, w1, b1)"
    + rounded("c", "a")
    + "s = Sigmoid(a)"
    + rounded("s", "b", "pixel", "low")
    + "m = Mul(a, b)"
    + rounded("m", "d")
    + LAST,
    "one float rounded twice": FIRST
    + rounded("r", "a", "coarse", "low")
    + rounded("r", "b")
    + "k = Conv<pads=[1,1,1,1]>(a, w2, b2) d = Add(k, b)"
    + LAST,
    "the input rounded twice": INPUT
    + rounded("x", "x1")
    + "c = Conv<pads=[1,1,1,1]>(x0, w1, b1) k = Conv<pads=[1,1,1,1]>(x1, w1, b1)"
    + "a = Add(c, k) d = Relu(a)"
    + LAST,
    "no zero point": "q = QuantizeLinear(x, fine) x0 = DequantizeLinear(q, fine)"
    + "c = Conv(x0, w1, b1) r = Relu(c) p = QuantizeLinear(r, fine) d = DequantizeLinear(p, fine)"
    + LAST,
    "padding, then rounded": "xp = Pad(x, border)"
    + rounded("xp", "x0", "pixel")
    + "c = Conv(x0, w1, b1) r = Relu(c) rp = Pad(r, border)"
    + rounded("rp", "d", "fine", "low")
    + LAST,
    "padding of integers": FIRST
    + "q = QuantizeLinear(r, fine, mid) p = Pad(q, border, mid) d = DequantizeLinear(p, fine, mid)"
    + LAST,
    "padding of the first integers": "q = QuantizeLinear(x, pixel, mid) p = Pad(q, border, mid)"
    + "x0 = DequantizeLinear(p, pixel, mid) c = Conv(x0, w1, b1) d = Relu(c)"
    + LAST,
    "a clip of integers": FIRST
    + "q = QuantizeLinear(c, fine, mid) p = Clip(q, other, high)"
    + "d = DequantizeLinear(p, fine, mid)"
    + LAST,
    "a maximum with an integer": FIRST
    + "q = QuantizeLinear(c, fine, mid) p = Max(q, other) d = DequantizeLinear(p, fine, mid)"
    + LAST,
    "weights with zero points": INPUT
    + "w = DequantizeLinear<axis=0>(kernel, eighths, zeros) c = Conv(x0, w, b1) d = Relu(c)"
    + LAST,
    "nothing but weights": "w = DequantizeLinear<axis=0>(kernel, eighths, zeros)"
    + "c = Conv(x, w, b1) d = Relu(c)"
    + LAST,
    "weights rounded in the graph": rounded("w1", "w", "fine", "few")
    + "c = Conv(x, w, b1) d = Relu(c)"
    + LAST,
    "movement of integers": FIRST
    + "q = QuantizeLinear(c, fine, mid) t = Transpose<perm=[0,2,3,1]>(q)"
    + "u = Transpose<perm=[0,3,1,2]>(t) a, b = Split<axis=1>(u, halves)"
    + "j = Concat<axis=1>(b, a) s = Slice(j, from0, to4, axis1)"
    + "k = DequantizeLinear(s, fine, mid) d = Conv(k, w44, b2)"
    + LAST,
    "saturation": FIRST + rounded("c", "d", "pixel", "low") + LAST,
    "a negated activation": INPUT
    + "c = Conv<pads=[1,1,1,1]>(x0, w1, b1)"
    + rounded("c", "a")
    + "n = Neg(a)"
    + rounded("n", "b")
    + "d = Relu(b)"
    + LAST,
    "rounded anew": FIRST + rounded("c", "a") + rounded("a", "d", "coarse", "other") + LAST,
    "a rounded mean": FIRST
    + rounded("c", "a", "coarse")
    + "m = GlobalAveragePool(a)"
    + rounded("m", "b")
    + "f = Flatten(b) h = MatMul(f, v8) logits = Add(h, b5)",
    "a sum": FIRST
    + rounded("c", "a", "coarse")
    + "k = Conv<pads=[1,1,1,1]>(a, w2, b2)"
    + rounded("k", "b", "coarse")
    + "s = Add(a, b)"
    + rounded("s", "d", "coarse")
    + head("d"),
    "a sum of integers": FIRST
    + rounded("c", "a", "coarse")
    + "k = Conv<pads=[1,1,1,1]>(a, w2, b2) bq = QuantizeLinear(k, coarse, mid)"
    + "s = com.microsoft.QLinearAdd(aq, coarse, mid, bq, coarse, mid, coarse, mid)"
    + "d = DequantizeLinear(s, coarse, mid)"
    + head("d"),
}


def form(body: str, opset: int = 17) -> onnx.ModelProto:
    domains = ', "com.microsoft": 1' if "com.microsoft" in body else ""
    return written(body, opset=opset, domains=domains, **PARAMETERS)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_that_of_the_real_numbers(name: str) -> None:
    assert_agrees(form(FORMS[name]), pictures(2), "clrp2")


@pytest.mark.parametrize("name", ["a sum", "a sum of integers", "a rounded mean"])
def test_sums_that_are_rounded_to_zero_hold_by_the_rules_of_the_paper_too(name: str) -> None:
    assert_agrees(form(FORMS[name]), pictures(2), "lrp", rules="paper")


def test_integers_of_sixteen_bits() -> None:
    body = rounded("x", "x0", "tiny", "wide") + "c = Conv(x0, w1, b1) r = Relu(c)"
    assert_agrees(form(body + rounded("r", "d", "tiny", "wide") + LAST, 21), pictures(2), "clrp2")


def test_integers_read_with_another_scale_are_refused() -> None:
    body = FIRST + "q = QuantizeLinear(c, fine, mid) d = DequantizeLinear(q, coarse, other)" + LAST
    with pytest.raises(UnsupportedError, match="DequantizeLinear"):
        convert(form(body), input_range=(-2, 2))


@pytest.mark.parametrize("zero", ["low", "bottom"], ids=["uint8 at 0", "int8 at -128"])
def test_a_zero_point_at_the_lowest_integer_proves_the_sign(zero: str) -> None:
    body = INPUT + "c = Conv<pads=[1,1,1,1]>(x0, w1, b1)" + rounded("c", "d", "fine", zero) + LAST
    assert_agrees(form(body), pictures(2), "clrp2")
    rows = inspect(form(body), input_range=(-2, 2)).nodes
    assert [row.sign for row in rows if row.linear] == ["±", ">= 0", "±"]


@pytest.mark.parametrize("form_of", ["qdq", "qoperator", "dynamic"])
def test_inspect_names_the_operators_that_the_model_has(form_of: str) -> None:
    proto = quantised(written(GATED), Kind(form_of, "us", False))
    rows = inspect(proto, input_range=(-2, 2)).nodes
    assert not any(row.missing for row in rows)
    own = {".".join(filter(None, (node.domain, node.op_type))) for node in proto.graph.node}
    assert {row.operator for row in rows} <= own
    float_rows = inspect(small("gated", None), input_range=(-2, 2)).nodes
    assert [r.rule for r in rows if r.linear] == [r.rule for r in float_rows if r.linear]


@pytest.mark.parametrize("order", ["a, u", "u, a"])
def test_a_gate_is_one_without_the_clip_that_a_quantiser_leaves_out(order: str) -> None:
    constants = {
        **PARAMETERS,
        "sixth": np.array(6 / 255, np.float32),
        "w1g": np.random.default_rng(3).standard_normal((1, 8, 1, 1)).astype(np.float32),
        "three": np.float32(3),
        "nil": np.float32(0),
        "six": np.float32(6),
    }

    def made(clip: str) -> onnx.ModelProto:
        body = (
            f"{FIRST} k = Conv<pads=[1,1,1,1]>(r, w2, b2) {rounded('k', 'a')} z = Conv(r, w1g)"
            f" s = Add(z, three) {rounded('s', 't', 'sixth', 'low')} {clip}"
            f" u = Div(l, six) m = Mul({order})"
        )
        return written(body + head("m"), opset=17, **constants)

    x = pictures(2)
    found, wanted = (
        Explainer(made(clip), device="cpu", method="clrp2", signed=True, input_range=RANGE)
        .explain(x, [0, 3])
        .relevance
        for clip in ("l = Identity(t)", "l = Clip(t, nil, six)")
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_weights_that_are_rounded_and_turned_keep_the_answers_when_optimised() -> None:
    weights = _RNG.standard_normal((5, 8)).astype(np.float32)
    body = (
        f"{FIRST} g = GlobalAveragePool(r) f = Flatten(g)"
        f"{rounded('turned', 'u', 'tiny', 'even')} t = Transpose(u) logits = MatMul(f, t)"
    )
    constants = {**PARAMETERS, "turned": weights, "even": np.array(0, np.int8)}
    model = written(body, opset=17, **{**constants, "tiny": np.array(0.03, np.float32)})
    x = pictures(3)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = Explainer(model, device="cpu", input_range=RANGE).explain(x, 0)
    wanted = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(found.logits, wanted, rtol=0, atol=1e-5 * abs(wanted).max())
