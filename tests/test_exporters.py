"""Models as other exporters and older versions wrote them, each against a plain modern form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from exporters_support import Array, answers, assert_means, written
from onnx import helper, numpy_helper
from test_structures import (
    BODY,
    HEAD,
    MIXED,
    RANGE,
    WEIGHTS,
    drawn,
    pictures,
)

import onnx_clrp
from onnx_clrp import ModelError, UnsupportedError
from onnx_clrp.inspection import inspect
from onnx_clrp.modernise import modernise

NEWEST = min(onnx.defs.onnx_opset_version(), 28)
"""The newest opset that ONNX Runtime 1.32 runs."""

OPSETS = [*range(7, 14), 15, *range(17, NEWEST + 1)]


# -- versions ----------------------------------------------------------------------------------


def of_its_time(opset: int) -> str:
    """One network out of operators whose form has changed, as it is written in an opset."""
    old, one, axes = (opset < limit for limit in (10, 11, 13))
    pad = "padded = Pad<pads=[0,0,1,1,0,0,1,1]>(x)" if one else "padded = Pad(x, widths)"
    clip = "a = Clip<min=0.0, max=6.0>(n)" if one else "a = Clip(n, zero, six)"
    cut = "Slice<axes=[1], starts=[1], ends=[6]>(p)" if old else "Slice(p, i1, i6, i1)"
    split = "Split<axis=1, split=[2,3]>(s)" if axes else "Split<axis=1>(s, parts)"
    drop = "Dropout<ratio=0.25>(j)" if opset < 12 else "Dropout(j, half)"
    mean = "ReduceMean<axes=[2,3]>(d)" if opset < 18 else "ReduceMean(d, plane)"
    flat = "Squeeze<axes=[2,3]>(g)" if axes else "Squeeze(g, plane)"
    wide = "Unsqueeze<axes=[1]>(q)" if axes else "Unsqueeze(q, i1)"
    spatial = "<spatial=1>" if opset < 9 else ""
    return f"""
        {pad} h = Conv(padded, w, b)
        n = BatchNormalization{spatial}(h, k, shift, mean, variance)
        {clip} p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
        s = {cut} s1, s2 = {split} j = Concat<axis=1>(s2, s1)
        d = {drop} g = {mean} q = {flat} u = {wide} f = Flatten(u)
        scores = Gemm(f, v5, c) probabilities = Softmax<axis=1>(scores)
    """


ARGUMENTS: dict[str, Array] = {
    "k": MIXED,
    "v5": drawn(5, 5),
    "widths": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "zero": np.float32(0),
    "six": np.float32(6),
    "half": np.float32(0.5),
    "parts": np.array([2, 3]),
    "plane": np.array([2, 3]),
    "i1": np.array([1]),
    "i6": np.array([6]),
}
SCALE = MIXED / np.sqrt(WEIGHTS["variance"] + np.float32(1e-5))
FOLDED = {
    "w": WEIGHTS["w"] * SCALE.reshape(-1, 1, 1, 1),
    "b": WEIGHTS["b"] * SCALE + WEIGHTS["shift"] - WEIGHTS["mean"] * SCALE,
}
"""The first convolution with a normalisation of mixed signs in it."""

POOLED = "f0 = GlobalAveragePool(p) f = Flatten(f0) logits = Gemm(f, v, c)"


def in_few_words() -> onnx.ModelProto:
    """The network of `of_its_time` without its detours."""
    rows = np.zeros((6, 5), np.float32)
    rows[[3, 4, 5, 1, 2]] = ARGUMENTS["v5"]
    return written(
        "h = Conv<pads=[1,1,1,1]>(x, w, b) a = Clip(h, zero, six)"
        f"p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) {POOLED}",
        v=rows,
        zero=ARGUMENTS["zero"],
        six=ARGUMENTS["six"],
        **FOLDED,
    )


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_means_the_same(opset: int) -> None:
    body = of_its_time(opset)
    proto = written(body, opset=opset, outputs="float[N,5] probabilities", **ARGUMENTS)
    assert_means(proto, in_few_words())
    made = onnx_clrp.convert(proto, input_range=RANGE)
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version == max(opset, 18)


@pytest.mark.parametrize("ir", range(3, 15))
def test_initializers_may_be_inputs_too(ir: int) -> None:
    opset = 9 if ir < 5 else 18
    proto = written(ir=ir, opset=opset, listed=True)
    assert_means(proto, written(), methods=("clrp2",))
    made = onnx_clrp.convert(proto, input_range=RANGE)
    assert [x.name for x in made.graph.input] == ["x", "target"]
    assert made.ir_version == max(ir, 8)


@pytest.mark.parametrize("opset", [1, 6])
def test_an_opset_that_onnx_has_left_behind_is_refused(opset: int) -> None:
    with pytest.raises(ModelError, match=f"opset {opset}, .* export it with opset 7 or newer"):
        onnx_clrp.convert(written(opset=opset, ir=3, listed=True), input_range=RANGE)


# -- operators that mean something else today ---------------------------------------------------

GROW, SHRINK = np.float32([1, 1, 2, 1.5]), np.float32([1, 1, 0.5, 0.75])
RESIZING = {
    "Upsample 7": (7, "Upsample<scales=[1.0,1.0,2.0,1.5], mode=KIND>(p)"),
    "Upsample 9": (9, "Upsample<mode=KIND>(p, grow)"),
    "Resize 10": (10, "Resize<mode=KIND>(p, grow)"),
    "Resize 10 to less": (10, "Resize<mode=KIND>(p, shrink)"),
}


@pytest.mark.parametrize("kind", ["nearest", "linear"])
@pytest.mark.parametrize("form", RESIZING)
def test_resizing_keeps_the_place_of_every_pixel(form: str, kind: str) -> None:
    opset, node = RESIZING[form]
    body = f"p = Relu(x) y = {node}".replace("KIND", f'"{kind}"')
    proto = written(body, opset=opset, outputs="float[N,3,A,B] y", grow=GROW, shrink=SHRINK)
    batch = {"x": pictures(2, 3, 8, 8)}
    before, after = (answers(m, batch)["y"] for m in (proto, modernise(proto).proto))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["Upsample 7", "Upsample 9", "Resize 10"])
def test_relevance_comes_back_through_an_old_upsampling(form: str) -> None:
    opset, node = RESIZING[form]
    body = f"h = Conv<pads=[1,1,1,1]>(x, w, b) p = Relu(h) u = {node} f = Flatten(u)"
    twice = np.float32([1, 1, 2, 2])
    proto = written(
        f"{body} logits = Gemm(f, v, c)".replace("KIND", '"nearest"').replace("1.5", "2.0"),
        opset=opset,
        grow=twice,
        v=drawn(6 * 256, 5),
    )
    plain = written(
        "h = Conv<pads=[1,1,1,1]>(x, w, b) p = Relu(h) e = Unsqueeze(p, gaps)"
        "r = Expand(e, wide) f = Flatten(r) logits = Gemm(f, v, c)",
        gaps=np.array([3, 5]),
        wide=np.array([1, 1, 1, 2, 1, 2]),
        v=drawn(6 * 256, 5),
    )
    assert_means(proto, plain)


def test_a_nearest_resize_of_two_minds_is_refused() -> None:
    body = "r = Relu(x) u = Resize(r, scales) f = Flatten(u) logits = Gemm(f, v, c)"
    both = np.float32([1, 1, 2, 0.5])
    proto = written(body, opset=10, scales=both, v=drawn(3 * 64, 5))
    with pytest.raises(ModelError, match=r"Resize that writes 'u'.*opset 11 or newer"):
        onnx_clrp.convert(proto, input_range=RANGE)


def test_a_hardmax_over_several_axes_is_refused() -> None:
    body = f"{BODY.replace('logits =', 'scores =')} logits = Hardmax(scores)"
    with pytest.raises(ModelError, match="Hardmax that writes 'logits' may be over several axes"):
        onnx_clrp.convert(written(body, opset=12), input_range=RANGE)


@pytest.mark.parametrize("opset", [7, 11, 12])
@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
def test_an_old_softmax_takes_all_axes_behind_its_own(opset: int, end: str) -> None:
    plane = "h = Conv<pads=[1,1,1,1]>(x, w, b) p = Relu(h) g = GlobalAveragePool(p)"
    proto = written(
        f"{plane} scores = Conv(g, v1, c) y = {end}(scores)",
        opset=opset,
        outputs="float[N,5,1,1] y",
        v1=drawn(6, 5).T.reshape(5, 6, 1, 1),
    )
    plain = written(f"{plane} f = Flatten(g) logits = Gemm(f, v, c)", v=drawn(6, 5))
    assert_means(proto, plain)


# -- normalisation written out -------------------------------------------------------------------

FRONT = "g = Conv <pads=[1,1,1,1]> (x, w, b)"
TAIL = f"{HEAD} logits = Gemm(f, v, c)"
NORMS = {
    "Mul and Add of constants made wide": (
        9,
        """root = Sqrt(v1) s0 = Div(k, root) s = Unsqueeze<axes=[1,2]>(s0)
        o0 = Mul(mean, s0) o1 = Sub(shift, o0) o = Unsqueeze<axes=[1,2]>(o1)
        m = Mul(g, s) h = Add(m, o)""",
    ),
    "Sub, Div, Mul and Add": (
        13,
        """n1 = Unsqueeze(mean, plane) n2 = Unsqueeze(k, plane) n3 = Unsqueeze(shift, plane)
        root = Sqrt(v1) n4 = Unsqueeze(root, plane)
        q1 = Sub(g, n1) q2 = Div(q1, n4) q3 = Mul(q2, n2) h = Add(q3, n3)""",
    ),
    "by a reciprocal": (
        18,
        """root = Sqrt(v1) inverse = Reciprocal(root) s0 = Mul(k, inverse)
        s = Reshape(s0, laid) o0 = Reshape(shift, laid) m0 = Reshape(mean, laid)
        q = Sub(g, m0) m = Mul(s, q) h = Add(o0, m)""",
    ),
    "by a power": (
        18,
        """inverse = Pow(v1, minus_half) s0 = Mul(k, inverse) s = Reshape(s0, laid)
        o1 = Mul(mean, s0) o2 = Sub(shift, o1) o = Reshape(o2, laid)
        m = Mul(g, s) h = Add(m, o)""",
    ),
}


@pytest.mark.parametrize("form", NORMS)
def test_a_norm_written_out_is_one(form: str) -> None:
    opset, nodes = NORMS[form]
    proto = written(
        f"{FRONT} {nodes} {TAIL}",
        opset=opset,
        k=MIXED,
        v1=WEIGHTS["variance"] + np.float32(1e-5),
        plane=np.array([1, 2]),
        laid=np.array([1, 6, 1, 1]),
        minus_half=np.float32(-0.5),
    )
    assert_means(proto, written(**FOLDED))


def test_a_norm_that_is_still_training_is_refused() -> None:
    still = "h, m, s = BatchNormalization<training_mode=1>(g, k, shift, mean, variance)"
    with pytest.raises(UnsupportedError, match="training"):
        onnx_clrp.convert(written(f"{FRONT} {still} {TAIL}", k=MIXED), input_range=RANGE)


# -- activations written out ----------------------------------------------------------------------

ACTIVATIONS = {
    "Relu by Max": ("Relu(h)", "r = Max(h, zero)"),
    "Relu by Where": ("Relu(h)", "q = Greater(h, zero) r = Where(q, h, zero)"),
    "Relu by a mask": ("Relu(h)", "q = Greater(h, zero) q1 = Cast<to=1>(q) r = Mul(h, q1)"),
    "Relu by Clip": ("Relu(h)", "r = Clip(h, zero)"),
    "Relu6 by Min": ("Clip(h, zero, six)", "q = Relu(h) r = Min(q, six)"),
    "Relu6 by Min and Max": ("Clip(h, zero, six)", "q = Min(six, h) r = Max(zero, q)"),
    "LeakyRelu by Max": ("LeakyRelu<alpha=0.5>(h)", "q = Mul(h, half) r = Max(q, h)"),
    "LeakyRelu by PRelu": ("LeakyRelu<alpha=0.5>(h)", "r = PRelu(h, half)"),
    "LeakyRelu by Where": (
        "LeakyRelu<alpha=0.5>(h)",
        "q = Less(h, zero) q1 = Mul(half, h) r = Where(q, q1, h)",
    ),
}


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_an_activation_written_out_is_one(form: str) -> None:
    plainly, nodes = ACTIVATIONS[form]
    body, numbers = (
        f"{FRONT} h = Identity(g) NODES {TAIL.replace('r = Relu(h)', '')}",
        {
            "zero": np.float32(0),
            "six": np.float32(6),
            "half": np.float32(0.5),
        },
    )
    proto = written(body.replace("NODES", nodes), **numbers)
    assert_means(proto, written(body.replace("NODES", f"r = {plainly}"), **numbers))


# -- weights that are not initializers -----------------------------------------------------------


def with_constant_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a Constant node in place of each initializer."""
    nodes = [
        helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer
    ] + list(proto.graph.node)
    del proto.graph.initializer[:]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@pytest.mark.parametrize("opset", [7, 9, 12, 18, 21])
def test_weights_may_be_constant_nodes(opset: int) -> None:
    assert_means(with_constant_nodes(written(opset=opset)), written())


W, V = WEIGHTS["w"], WEIGHTS["v"]
NORM = np.sqrt((W.astype(np.float64) ** 2).sum(axis=(1, 2, 3), keepdims=True)).astype(np.float32)
COMPUTED: dict[str, tuple[str, dict[str, Array]]] = {
    "Identity": ("w0 = Identity(w1) w = Identity(w0)", {"w1": W}),
    "Reshape": ("w = Reshape(w1, s)", {"w1": W.reshape(-1), "s": np.array(W.shape)}),
    "Transpose": ("w = Transpose<perm=[3,2,0,1]>(w1)", {"w1": W.transpose(2, 3, 1, 0).copy()}),
    "Mul": ("w = Mul(w1, two)", {"w1": W / 2, "two": np.float32(2)}),
    "Cast": ("w = Cast<to=1>(w1)", {"w1": W.astype(np.float64)}),
    "Neg": ("w = Neg(w1)", {"w1": -W}),
    "Concat": ("w = Concat<axis=0>(w1, w2)", {"w1": W[:2], "w2": W[2:]}),
    "Split": ("w, w2 = Split<axis=0>(w1, s)", {"w1": np.tile(W, (2, 1, 1, 1)), "s": [6, 6]}),
    "Gather": ("w = Gather(w1, i)", {"w1": W[::-1].copy(), "i": np.arange(6)[::-1].copy()}),
    "weight norm": (
        "n = ReduceL2(w1, a) d = Div(w1, n) w = Mul(d, size)",
        {"w1": 3 * W, "a": np.array([1, 2, 3]), "size": NORM},
    ),
    "Where": ("w = Where(mask, w1, zero)", {"w1": W, "mask": W == W, "zero": np.float32(0)}),
}


@pytest.mark.parametrize("form", COMPUTED)
def test_weights_may_be_computed(form: str) -> None:
    nodes, arrays = COMPUTED[form]
    proto = written(f"{nodes} {BODY}", **{k: np.asarray(a) for k, a in arrays.items()})
    computed = [t for t in proto.graph.initializer if t.name == "w"]
    for tensor in computed:
        proto.graph.initializer.remove(tensor)
    assert_means(proto, written())


def test_weights_may_be_constants_of_a_shape() -> None:
    body = "b = ConstantOfShape(six) v = ConstantOfShape<value=float[1]{0.25}>(wide)"
    proto = written(f"{body} {BODY.replace('x, w, b', 'x, w, b')}")
    keep = [t for t in proto.graph.initializer if t.name not in ("b", "v")]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(keep)
    for name, value in {"six": np.array([6]), "wide": np.array(V.shape)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    plain = written(b=np.zeros(6, np.float32), v=np.full(V.shape, 0.25, np.float32))
    assert_means(proto, plain, methods=("lrp",))


def test_shared_weights_behind_identities_are_used_twice() -> None:
    body = """
        h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h)
        h2 = Conv<pads=[1,1,1,1]>(r, {0}, {1}) r2 = Relu(h2) h3 = Conv<pads=[1,1,1,1]>(r2, {2}, {3})
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h3) f = Flatten(p) logits = Gemm(f, v, c)
    """
    shared = {"u": drawn(6, 6, 3, 3), "e": drawn(6)}
    proto = written(
        "u1 = Identity(u) e1 = Identity(e) u2 = Identity(u1)" + body.format("u1", "e1", "u2", "e"),
        **shared,
    )
    assert_means(proto, written(body.format("u", "e", "u", "e"), **shared))


# -- functions -----------------------------------------------------------------------------------

LIB = ', "lib": 1'
BLOCK = """<domain: "lib", opset_import: ["": 18, "lib": 1]>
block <pads, size: int = 3> (x, w, b) => (y) {
    a = Conv<pads: ints = @pads, group: int = 1>(x, w, b)
    y = lib.active(a)
}"""
ACTIVE = """<domain: "lib", opset_import: ["": 18]>
active (x) => (y) { y = Relu(x) }"""
CALLING = "p0 = lib.block<pads=[1,1,1,1]>(x, w, b) p1 = lib.block<pads=[1,1,1,1]>(p0, u, b)"
CALLED = "q0 = Conv<pads=[1,1,1,1]>(x, w, b) p0 = Relu(q0) q1 = Conv<pads=[1,1,1,1]>(p0, u, b)"
END = "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(p1) f = Flatten(m) logits = Gemm(f, v, c)"
U = {"u": drawn(6, 6, 3, 3)}


def test_functions_are_opened_also_within_each_other() -> None:
    proto = written(f"{CALLING} {END}", domains=LIB, functions=f"{BLOCK} {ACTIVE}", ir=9, **U)
    assert_means(proto, written(f"{CALLED} p1 = Relu(q1) {END}", **U))


@pytest.mark.parametrize("opset", [14, 17, 21])
def test_a_function_may_ask_for_another_opset_that_has_the_same_operators(opset: int) -> None:
    other = ACTIVE.replace("18", str(opset))
    proto = written(f"{CALLING} {END}", domains=LIB, functions=f"{BLOCK} {other}", ir=9, **U)
    assert_means(proto, written(f"{CALLED} p1 = Relu(q1) {END}", **U), methods=("clrp2",))


# -- shapes that the graph computes --------------------------------------------------------------

BEFORE = (
    "h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h)p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)"
)
SHAPED = {
    "x.view(x.size(0), -1), 2018": (
        9,
        """s = Shape(p) z = Constant<value=int64{0}>() n = Gather<axis=0>(s, z)
        m = Constant<value=int64{-1}>() n1 = Unsqueeze<axes=[0]>(n) m1 = Unsqueeze<axes=[0]>(m)
        t = Concat<axis=0>(n1, m1) f = Reshape(p, t)""",
    ),
    "x.view(x.size(0), -1), 2022": (
        13,
        """s = Shape(p) z = Constant<value_int=0>() n = Gather<axis=0>(s, z)
        z1 = Constant<value_ints=[0]>() n1 = Unsqueeze(n, z1)
        m1 = Constant<value_ints=[-1]>() t = Concat<axis=0>(n1, m1) f = Reshape(p, t)""",
    ),
    "x.view(x.size(0), c * h * w)": (
        13,
        """s = Shape(p) z1 = Constant<value_ints=[0]>()
        i = Constant<value_ints=[1]>() j = Constant<value_ints=[4]>() e = Slice(s, i, j, z1)
        l = ReduceProd<axes=[0]>(e) n = Slice(s, z1, i) t = Concat<axis=0>(n, l)
        f = Reshape(p, t)""",
    ),
    "Keras's Flatten": (
        13,
        """s = Shape(p) c1 = Cast<to=6>(s) i = Constant<value=int64[1]{0}>()
        j = Constant<value=int64[1]{1}>() n = Slice(c1, i, j) q = Squeeze(n, i)
        z = Constant<value=int64[1]{0}>() u = Unsqueeze(q, z) m = Constant<value=int32[1]{-1}>()
        t = Concat<axis=0>(u, m) w64 = Cast<to=7>(t) f = Reshape(p, w64)""",
    ),
    "Shape with ends": (
        18,
        """s = Shape<start=0, end=1>(p) m = Constant<value_ints=[-1]>()
        t = Concat<axis=0>(s, m) f = Reshape(p, t)""",
    ),
    "a channel shuffle": (
        11,
        """s = Shape(p) i0 = Constant<value=int64{0}>() i1 = Constant<value=int64{1}>()
        i2 = Constant<value=int64{2}>() i3 = Constant<value=int64{3}>()
        n = Gather(s, i0) ch = Gather(s, i1) hh = Gather(s, i2) ww = Gather(s, i3)
        two = Constant<value=int64{2}>() three = Div(ch, two)
        n1 = Unsqueeze<axes=[0]>(n) g1 = Unsqueeze<axes=[0]>(two) t1 = Unsqueeze<axes=[0]>(three)
        h1 = Unsqueeze<axes=[0]>(hh) w1 = Unsqueeze<axes=[0]>(ww)
        apart = Concat<axis=0>(n1, g1, t1, h1, w1) a = Reshape(p, apart)
        b1 = Transpose<perm=[0,2,1,3,4]>(a) d1 = Constant<value=int64[1]{-1}>()
        back = Concat<axis=0>(n1, d1, h1, w1) e = Reshape(b1, back)
        apart3 = Concat<axis=0>(n1, t1, g1, h1, w1) a1 = Reshape(e, apart3)
        q1 = Transpose<perm=[0,2,1,3,4]>(a1) o = Reshape(q1, back) f = Flatten(o)""",
    ),
}


@pytest.mark.parametrize("batch", ["N", "3", "-1"])
@pytest.mark.parametrize("form", SHAPED)
def test_a_shape_may_be_computed(form: str, batch: str) -> None:
    opset, nodes = SHAPED[form]
    size = "3" if batch == "3" else "N"
    body = f"{BEFORE} {nodes} logits = Gemm(f, v, c)"
    proto = written(body, opset=opset, inputs=f"float[{size},3,8,8] x")
    if batch == "-1":  # what some exporters write for an open size
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = -1
    assert_means(proto, written(), methods=("clrp2",))


def test_nodes_may_stand_in_any_order() -> None:
    proto = written()
    nodes = [*proto.graph.node][::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    before = proto.SerializeToString()
    assert_means(proto, written(), methods=("clrp2",))
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    "grown",
    [
        "z = ConstantOfShape(huge)",
        "z = Expand(one, huge)",
        "z = Tile(four, huge)",
    ],
)
def test_a_constant_of_any_size_is_not_made_to_look_at_it(grown: str) -> None:
    proto = written(
        f"{grown} n = Size(z) s = Sub(n, n) k = Cast<to=1>(s) h = Add(x, k)"
        "f = Flatten(h) logits = Gemm(f, v, c)",
        v=drawn(192, 5),
        huge=np.array([2**20, 2**20, 2**4, 2**4]),
        one=np.float32(1),
        four=np.ones((1, 1, 1, 1), np.float32),
    )
    assert inspect(proto, input_range=RANGE).classes == 5
