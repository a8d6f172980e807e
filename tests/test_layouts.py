"""Inputs of other layouts, ranks and units, with the preprocessing that a graph may begin with."""

from __future__ import annotations

import numpy as np
import pytest
from exporters_support import Array, Floats, answers, assert_means, explained, written
from test_structures import BODY, MIXED, PICTURES, WEIGHTS, assert_near, drawn, pictures

# -- channels last ---------------------------------------------------------------------------------

LAST = "float[N,8,8,3] x"
PICTURES_LAST = PICTURES.transpose(0, 2, 3, 1).copy()


def last(relevance: Floats) -> Floats:
    """Relevance `[N, k, C, H, W]` of an input whose channels come last."""
    return relevance.transpose(0, 1, 3, 4, 2)


TO_FIRST, TO_LAST = "Transpose<perm=[0,3,1,2]>", "Transpose<perm=[0,2,3,1]>"
KERAS_FRONT = f"""
    padded = Pad(x, around) t = {TO_FIRST}(padded)
    c0 = Conv<strides=[2,2]>(t, w) c1 = {TO_LAST}(c0)
    m = Mul(c1, scale) n = Add(m, offset) r = Relu(n)
"""
KERAS: dict[str, tuple[str, str]] = {
    "tf2onnx, a mean over the plane": (
        f"{KERAS_FRONT} g = ReduceMean<keepdims=0>(r, plane) d = MatMul(g, v6) s = Add(d, c)",
        "p = GlobalAveragePool(r) f = Flatten(p) logits = Gemm(f, v6, c)",
    ),
    "tf2onnx, Flatten": (
        f"{KERAS_FRONT} f = Reshape(r, flat) d = MatMul(f, dense) s = Add(d, c)",
        "f = Flatten(r) logits = Gemm(f, dense_first, c)",
    ),
    "keras2onnx, every operator between Transposes": (
        f"""{KERAS_FRONT}
        t1 = {TO_FIRST}(r) p0 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t1) p = {TO_LAST}(p0)
        t2 = {TO_FIRST}(p) a0 = GlobalAveragePool(t2) a1 = {TO_LAST}(a0)
        a = Squeeze(a1, plane) d = MatMul(a, v6) s = Add(d, c)""",
        """p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) g = GlobalAveragePool(p)
        f = Flatten(g) logits = Gemm(f, v6, c)""",
    ),
    "a separable convolution": (
        f"""{KERAS_FRONT} t1 = {TO_FIRST}(r) k0 = Reshape(depth, deep)
        e0 = Conv<group=6, pads=[1,1,1,1]>(t1, k0) k1 = Transpose<perm=[3,2,0,1]>(point)
        e1 = Conv(e0, k1) e2 = {TO_LAST}(e1) e3 = Add(e2, offset) o = Relu(e3)
        g = ReduceMean<keepdims=0>(o, plane) d = MatMul(g, v6) s = Add(d, c)""",
        """e0 = Conv<group=6, pads=[1,1,1,1]>(r, depth_first)
        e1 = Conv(e0, point_first, offset) o = Relu(e1)
        g = GlobalAveragePool(o) f = Flatten(g) logits = Gemm(f, v6, c)""",
    ),
    "a dense layer at every place": (
        f"""{KERAS_FRONT} e0 = MatMul(r, square) e1 = Add(e0, offset) o = Relu(e1)
        g = ReduceMax<keepdims=0>(o, plane) d = MatMul(g, v6) s = Add(d, c)""",
        """e1 = Conv(r, square_first, offset) o = Relu(e1) g = GlobalMaxPool(o) f = Flatten(g)
        logits = Gemm(f, v6, c)""",
    ),
}
OFFSET = drawn(6, seed=9)
DENSE = drawn(96, 5, seed=1)
KERAS_WEIGHTS: dict[str, Array] = {
    "around": np.array([0, 0, 0, 0, 0, 1, 1, 0]),
    "scale": MIXED,
    "offset": OFFSET,
    "plane": np.array([1, 2]),
    "flat": np.array([-1, 96]),
    "v6": drawn(6, 5),
    "dense": DENSE,
    "dense_first": DENSE.reshape(4, 4, 6, 5).transpose(2, 0, 1, 3).reshape(96, 5),
    "depth": drawn(3, 3, 6, 1),
    "deep": np.array([6, 1, 3, 3]),
    "point": drawn(1, 1, 6, 6),
    "square": drawn(6, 6),
}
DEPTH_FIRST = KERAS_WEIGHTS["depth"].reshape(6, 1, 3, 3)
KERAS_WEIGHTS |= {
    "depth_first": DEPTH_FIRST,
    "point_first": KERAS_WEIGHTS["point"].transpose(3, 2, 0, 1).copy(),
    "square_first": KERAS_WEIGHTS["square"].T.reshape(6, 6, 1, 1),
}


@pytest.mark.parametrize("form", KERAS)
def test_channels_last_as_keras_writes_them(form: str) -> None:
    nodes, plainly = KERAS[form]
    proto = written(
        f"{nodes} probabilities = Softmax(s)",
        inputs=LAST,
        outputs="float[N,5] probabilities",
        **KERAS_WEIGHTS,
    )
    plain = written(
        f"q = Conv<strides=[2,2], pads=[0,0,1,1]>(x, w, b) r = Relu(q) {plainly}",
        **{**KERAS_WEIGHTS, "w": WEIGHTS["w"] * MIXED.reshape(-1, 1, 1, 1), "b": OFFSET},
    )
    assert_means(proto, plain, PICTURES_LAST, plain_batch=PICTURES, move=last)
    assert explained(proto, PICTURES_LAST).heatmap().shape == (3, 2, 8, 8)


# -- preprocessing in the graph --------------------------------------------------------------------

BYTES = np.random.default_rng(7).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
MEAN, STD = np.float32([123, 116, 103]), np.float32([58, 57, 56])
PREPARED: dict[str, tuple[str, str, Floats, Floats]] = {
    "Cast, Sub, Div, Transpose": (
        "uint8",
        f"f1 = Cast<to=1>(x) f2 = Sub(f1, mean3) f3 = Div(f2, std3) t = {TO_FIRST}(f3)",
        1 / STD,
        -MEAN / STD,
    ),
    "Transpose, Cast, Div, Sub, Div": (
        "uint8",
        f"f1 = {TO_FIRST}(x) f2 = Cast<to=1>(f1) f3 = Div(f2, most) f4 = Sub(f3, mean1)"
        "t = Div(f4, std1)",
        1 / STD,
        -MEAN / STD,
    ),
    "Mul and Sub as in Keras": (
        "float",
        f"f1 = Mul(x, half) f2 = Sub(f1, one) t = {TO_FIRST}(f2)",
        np.full(3, 1 / 127.5, np.float32),
        np.full(3, -1, np.float32),
    ),
    "inverted": (
        "uint8",
        f"f1 = Cast<to=1>(x) f2 = Sub(most, f1) f3 = Div(f2, std3) t = {TO_FIRST}(f3)",
        -1 / STD,
        255 / STD,
    ),
    "Clip behind it": (
        "float",
        f"f1 = Div(x, std3) f2 = Clip(f1, zero, hundred) t = {TO_FIRST}(f2)",
        1 / STD,
        np.zeros(3, np.float32),
    ),
    "a normalisation": (
        "uint8",
        f"f1 = Cast<to=1>(x) f2 = {TO_FIRST}(f1) t = BatchNormalization<epsilon=0.0>"
        "(f2, ones, zeros, mean3, std_squared)",
        1 / STD,
        -MEAN / STD,
    ),
}
PREPARING: dict[str, Array] = {
    "mean3": MEAN,
    "std3": STD,
    "most": np.float32(255),
    "mean1": (MEAN / 255).reshape(1, 3, 1, 1),
    "std1": (STD / 255).reshape(1, 3, 1, 1),
    "half": np.float32(1 / 127.5),
    "one": np.float32(1),
    "zero": np.float32(0),
    "hundred": np.float32(100),
    "ones": np.ones(3, np.float32),
    "zeros": np.zeros(3, np.float32),
    "std_squared": STD**2,
    "turned": np.array([2, 1, 0]),
    "last": np.array([3]),
    "minus": np.array([-1]),
    "behind": np.array([-9]),
    "thirds": np.array([1, 1, 1]),
    "swapped": MEAN[::-1].copy(),
}


def assert_prepared(kind: str, nodes: str, scale: Floats, shift: Floats, order: list[int]) -> None:
    """The model explained at its raw pixels is the plain one explained at the prepared ones."""
    proto = written(
        f"{nodes} {BODY.replace('(x,', '(t,')}", inputs=f"{kind}[N,8,8,3] x", **PREPARING
    )
    batch = BYTES if kind == "uint8" else BYTES.astype(np.float32)
    prepared = (batch * scale + shift)[..., order].transpose(0, 3, 1, 2).astype(np.float32)
    ends = np.stack([shift, 255 * scale + shift])[:, order]
    assert_means(
        proto,
        written(),
        batch,
        plain_batch=prepared,
        move=lambda r: r.transpose(0, 1, 3, 4, 2)[..., order],  # each order is its own inverse
        input_range=None if kind == "uint8" else (0, 255),
        plain_options={"input_range": (ends.min(axis=0).tolist(), ends.max(axis=0).tolist())},
    )


@pytest.mark.parametrize("form", PREPARED)
def test_preprocessing_in_the_graph_hands_its_bounds_on(form: str) -> None:
    assert_prepared(*PREPARED[form], order=[0, 1, 2])


SWAPS = {
    "Gather": "f2 = Gather<axis=3>(f1, turned)",
    "Split and Concat": "s1, s2, s3 = Split<axis=3>(f1, thirds) f2 = Concat<axis=3>(s3, s2, s1)",
    "Slice backwards": "f2 = Slice(f1, minus, behind, last, minus)",
}


@pytest.mark.parametrize("form", SWAPS)
def test_channels_may_be_swapped_in_the_graph(form: str) -> None:
    nodes = f"f1 = Cast<to=1>(x) {SWAPS[form]} f3 = Sub(f2, swapped) t = {TO_FIRST}(f3)"
    assert_prepared("uint8", nodes, np.ones(3, np.float32), -MEAN, order=[2, 1, 0])


def test_what_is_cropped_away_takes_nothing() -> None:
    cut = f"t0 = {TO_FIRST}(x) f1 = Cast<to=1>(t0) t = Slice(f1, starts, ends, axes)"
    proto = written(
        f"{cut} {BODY.replace('(x,', '(t,')}",
        inputs="uint8[N,12,10,3] x",
        starts=np.array([2, 1]),
        ends=np.array([10, 9]),
        axes=np.array([2, 3]),
    )
    batch = np.pad(BYTES, [(0, 0), (2, 2), (1, 1), (0, 0)], mode="reflect")
    assert_means(
        proto,
        written(),
        batch,
        plain_batch=BYTES.transpose(0, 3, 1, 2).astype(np.float32),
        move=lambda r: np.pad(last(r), [(0, 0), (0, 0), (2, 2), (1, 1), (0, 0)]),
        input_range=None,
        plain_options={"input_range": (0, 255)},
    )


def resizing(node: str, height: int, width: int) -> Floats:
    """The matrix `[height * width, 64]` of a resize to 8 x 8: what each pixel becomes."""
    proto = written(
        f"y = {node}(x, , , sizes)",
        inputs="float[N,1,A,B] x",
        outputs="float[N,1,8,8] y",
        sizes=np.array([height * width, 1, 8, 8]),
    )
    pixels = np.eye(height * width, dtype=np.float32).reshape(-1, 1, height, width)
    return np.asarray(answers(proto, {"x": pixels})["y"].reshape(height * width, 64))


RESIZES = {
    "bilinear": '<mode="linear", coordinate_transformation_mode="half_pixel">',
    "bilinear, corners aligned": '<mode="linear", coordinate_transformation_mode="align_corners">',
    "nearest": '<mode="nearest", coordinate_transformation_mode="asymmetric", '
    'nearest_mode="floor">',
}


@pytest.mark.parametrize("size", [(5, 12), (4, 4)])
@pytest.mark.parametrize("form", RESIZES)
def test_a_picture_may_be_resized_in_the_graph(form: str, size: tuple[int, int]) -> None:
    node = f"Resize{RESIZES[form]}"
    nodes = f"f1 = Cast<to=1>(x) f2 = {TO_FIRST}(f1) f3 = {node}(f2, , , sizes) t = Div(f3, std1)"
    proto = written(
        f"{nodes} {BODY.replace('(x,', '(t,')}",
        inputs=f"uint8[3,{size[0]},{size[1]},3] x",
        outputs="float[3,5] logits",
        std1=STD.reshape(1, 3, 1, 1),
        sizes=np.array([3, 3, 8, 8]),
    )
    matrix = resizing(node, *size)
    batch = np.random.default_rng(8).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    rows = batch.transpose(0, 3, 1, 2).reshape(3, 3, -1).astype(np.float32)
    prepared = (rows @ matrix).reshape(3, 3, 8, 8) / STD.reshape(1, 3, 1, 1)
    assert_means(
        proto,
        written(),
        batch,
        plain_batch=prepared,
        move=lambda r: last((r.reshape(3, 2, 3, 64) @ matrix.T).reshape(3, 2, 3, *size)),
        input_range=None,
        plain_options={"input_range": (0, (255 / STD).tolist())},
    )


# -- inputs that are no colour pictures ----------------------------------------------------------

SIGNAL = pictures(3, 4, 20)
LINE = {"w": drawn(6, 4, 5), "u": drawn(7, 6, 3), "e": drawn(7), "v": drawn(7, 5)}
SENSOR = """
    h = Conv<pads=[2,2], strides=[2]>({0}, w, b) n = BatchNormalization(h, k, shift, mean, variance)
    r = Relu(n) p = MaxPool<kernel_shape=[2], strides=[2]>(r)
    q = Conv<pads=[1,1]>(p, u, e) o = LeakyRelu<alpha=0.1>(q)
    a = AveragePool<kernel_shape=[2], strides=[1]>(o) g = GlobalAveragePool(a)
    f = Flatten(g) logits = Gemm(f, v, c)
"""
FLAT_SENSOR = (
    SENSOR.replace("[2,2], strides=[2]", "[0,2,0,2], strides=[1,2]")
    .replace("kernel_shape=[2], strides=[2]", "kernel_shape=[1,2], strides=[1,2]")
    .replace("pads=[1,1]", "pads=[0,1,0,1]")
    .replace("kernel_shape=[2], strides=[1]", "kernel_shape=[1,2], strides=[1,1]")
)


def test_a_signal_is_a_picture_of_one_row() -> None:
    flat = {name: LINE[name][:, :, None] for name in "wu"}
    assert_means(
        written(SENSOR.format("x"), inputs="float[N,4,20] x", k=MIXED, **LINE),
        written(FLAT_SENSOR.format("x"), inputs="float[N,4,1,20] x", k=MIXED, **{**LINE, **flat}),
        SIGNAL,
        plain_batch=SIGNAL[:, :, None],
        move=lambda r: r[:, :, :, 0],
    )


def test_a_signal_may_have_its_channels_last() -> None:
    turned = "t = Transpose<perm=[0,2,1]>(x)"
    assert_means(
        written(turned + SENSOR.format("t"), inputs="float[N,20,4] x", k=MIXED, **LINE),
        written(SENSOR.format("x"), inputs="float[N,4,20] x", k=MIXED, **LINE),
        SIGNAL.transpose(0, 2, 1).copy(),
        plain_batch=SIGNAL,
        move=lambda r: r.transpose(0, 1, 3, 2),
    )


def test_a_video_through_filters_as_long_as_it_is_a_picture_of_all_frames() -> None:
    video, filters = pictures(2, 3, 4, 6, 6), drawn(6, 3, 4, 3, 3)
    tail = "f = Flatten(g) logits = Gemm(f, v, c)"
    proto = written(
        f"""h = Conv<pads=[0,1,1,0,1,1]>(x, w, b) r = Relu(h)
        p = MaxPool<kernel_shape=[1,2,2], strides=[1,2,2]>(r) q = Conv(p, u, b) o = Relu(q)
        a = AveragePool<kernel_shape=[1,2,2]>(o) g = GlobalAveragePool(a) {tail}""",
        inputs="float[N,3,4,6,6] x",
        w=filters,
        u=drawn(6, 6, 1, 1, 1),
        v=drawn(6, 5),
    )
    plain = written(
        f"""h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) q = Conv(p, u, b) o = Relu(q)
        a = AveragePool<kernel_shape=[2,2], strides=[1,1]>(o) g = GlobalAveragePool(a) {tail}""",
        inputs="float[N,12,6,6] x",
        w=filters.reshape(6, 12, 3, 3),
        u=drawn(6, 6, 1, 1, 1)[..., 0],
        v=drawn(6, 5),
    )
    assert_means(
        proto,
        plain,
        video,
        plain_batch=video.reshape(2, 12, 6, 6),
        move=lambda r: r.reshape(2, 2, 3, 4, 6, 6),
    )


def test_a_video_is_pooled_over_time_as_a_picture_over_rows() -> None:
    body = """h = Conv<pads=PADS>(x, w, b) r = Relu(h)
        p = MaxPool<kernel_shape=KERNEL, strides=KERNEL>(r)
        a = AveragePool<kernel_shape=KERNEL, pads=PADS>(p)
        f = Flatten(a) logits = Gemm(f, v, c)"""
    video, filters = pictures(2, 3, 8, 8), drawn(6, 3, 3, 3)
    assert_means(
        written(
            body.replace("PADS", "[1,1,0,1,1,0]").replace("KERNEL", "[2,2,1]"),
            inputs="float[N,3,8,8,1] x",
            w=filters[..., None],
            v=drawn(150, 5),
        ),
        written(
            body.replace("PADS", "[1,1,1,1]").replace("KERNEL", "[2,2]"), w=filters, v=drawn(150, 5)
        ),
        video[..., None],
        plain_batch=video,
        move=lambda r: r[..., None],
    )


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_picture_may_have_any_number_of_channels(channels: int) -> None:
    filters, batch = drawn(6, channels, 3, 3), pictures(3, channels, 8, 8)
    none = np.zeros((6, 5 - channels, 3, 3), np.float32)
    proto = written(inputs=f"float[N,{channels},8,8] x", w=filters)
    plain = written(inputs="float[N,5,8,8] x", w=np.concatenate([filters, none], axis=1))
    wide = np.concatenate([batch, np.zeros((3, 5 - channels, 8, 8), np.float32)], axis=1)
    assert_means(proto, plain, batch, plain_batch=wide, move=lambda r: r[:, :, :channels])


TABLE = {"w": drawn(9, 6), "u": drawn(6, 7), "e": drawn(7), "v": drawn(7, 5)}
MLPS = {
    "Gemm": "h = Gemm(x, w, b) r = Relu(h) q = Gemm(r, u, e) o = Tanh(q) logits = Gemm(o, v, c)",
    "Gemm of turned weights": """h = Gemm<transB=1>(x, wt, b) r = Relu(h)
        q = Gemm<transB=1>(r, ut, e) o = Tanh(q) logits = Gemm<transB=1>(o, vt, c)""",
    "MatMul and Add": """h0 = MatMul(x, w) h = Add(h0, b) r = Relu(h)
        q0 = MatMul(r, u) q = Add(e, q0) o = Tanh(q) l0 = MatMul(o, v) logits = Add(l0, c)""",
    "MatMul with a batch norm": """h0 = MatMul(x, wd) h1 = Mul(h0, k) h = Add(h1, b) r = Relu(h)
        q = Gemm(r, u, e) o = Tanh(q) logits = Gemm(o, v, c)""",
}


@pytest.mark.parametrize("form", MLPS)
def test_a_table_is_a_picture_of_one_pixel(form: str) -> None:
    turned = {f"{name}t": TABLE[name].T.copy() for name in "wuv"}
    arrays = {**TABLE, **turned, "k": MIXED, "wd": TABLE["w"] / MIXED}
    filters = {name: TABLE[name].T[:, :, None, None].copy() for name in "wuv"}
    plain = written(
        "h = Conv(x, w, b) r = Relu(h) q = Conv(r, u, e) o = Tanh(q) logits = Conv(o, v, c)",
        inputs="float[N,9,1,1] x",
        outputs="float[N,5,1,1] logits",
        **{**TABLE, **filters},
    )
    batch = pictures(3, 9)
    assert_means(
        written(MLPS[form], inputs="float[N,9] x", **arrays),
        plain,
        batch,
        plain_batch=batch[:, :, None, None],
        move=lambda r: r[..., 0, 0],
    )


# -- open sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bilinear", "nearest"])
def test_pictures_of_any_size_may_be_brought_to_one_in_the_graph(form: str) -> None:
    node = f"Resize{RESIZES[form]}"
    proto = written(
        f"""f1 = Cast<to=1>(x) f2 = {TO_FIRST}(f1) s = Shape(f2) front = Slice(s, i0, i2)
        sizes = Concat<axis=0>(front, side) f3 = {node}(f2, , , sizes) t = Div(f3, std1)
        {BODY.replace("(x,", "(t,")}""",
        inputs="uint8[N,H,W,3] x",
        i0=np.array([0]),
        i2=np.array([2]),
        side=np.array([8, 8]),
        std1=STD.reshape(1, 3, 1, 1),
    )
    for size in ((5, 12), (16, 16)):
        matrix = resizing(node, *size)
        batch = np.random.default_rng(8).integers(0, 256, (3, *size, 3), dtype=np.uint8)
        rows = batch.transpose(0, 3, 1, 2).reshape(3, 3, -1).astype(np.float32)
        prepared = (rows @ matrix).reshape(3, 3, 8, 8) / STD.reshape(1, 3, 1, 1)
        found = explained(proto, batch, input_range=None)
        wanted = explained(written(), prepared, input_range=(0, (255 / STD).tolist()))
        handed = (wanted.relevance.reshape(3, 2, 3, 64) @ matrix.T).reshape(3, 2, 3, *size)
        assert_near(found.relevance, last(handed))
