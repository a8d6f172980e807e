"""What random graphs and reviewers found: each kept as the smallest graph that showed it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray

from onnx_clrp import UnsupportedError, convert
from onnx_clrp.testing import redistribute

Floats = NDArray[np.float32]
SIGNED = """<float[2,2,1] w = {1,1,-1,-2}, float[2,1] s = {1,-1}, int64[1] a = {3},
    int64[3] sh = {-1,2,3}>"""


def handed(form: str, constants: str, body: str, x: Floats, r: Floats, **options: object) -> Floats:
    """The relevance of `x` in a graph of opset 21."""
    text = f'<ir_version: 9, opset_import: ["": 21]> g {form} {constants} {{ {body} }}'
    return redistribute(onnx.parser.parse_model(text), {"x": x}, {"y": r}, **options)["x"]


def ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("low", [-1.0, -np.inf])
def test_a_square_may_be_zero(low: float) -> None:
    found = handed(
        "(float[1,3] x) => (float[1,3] y)",
        "<float[3,3] w = {-1,1,0,1,0,1,-1,-1,-1}, float c = {1}>",
        "q = Mul(x, x) s = Sub(q, c) y = MatMul(s, w)",
        np.float32([[0, -1, 2]]),
        ones(1, 1, 3),
        bounds={"x": (np.float32(low), np.float32(np.inf))},
    )
    np.testing.assert_allclose(found, [[[1, 0, 0]]], atol=1e-6)  # s = (-1, 0, 3)


@pytest.mark.parametrize("sizes", ["N,2,3", "1,2,3", "N,2,L"])
def test_signs_are_folded_behind_axes_that_come_and_go(sizes: str) -> None:
    found = handed(
        f"(float[{sizes}] x) => (float[p,q,r] y)",
        SIGNED,
        "h = Conv(x, w) u = Unsqueeze(h, a) t = Squeeze(u, a) y = Mul(t, s)",
        np.float32([[[1, 2, 3], [1, 1, 2]]]),
        ones(1, 1, 2, 3),
    )
    wanted = [[[[5 / 6, 7 / 6, 36 / 35], [7 / 6, 5 / 6, 34 / 35]]]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_signs_whose_channels_are_lost_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="where its channels lie is not known"):
        handed(
            "(float[N,2,3] x) => (float[p,q,r] y)",
            SIGNED,
            "h = Conv(x, w) u = Flatten<axis=2>(h) t = Reshape(u, sh) y = Mul(t, s)",
            np.float32([[[1, 2, 3], [1, 1, 2]]]),
            ones(1, 1, 2, 3),
        )


def test_a_broadcast_between_open_sizes_is_added_up() -> None:
    text = """<ir_version: 9, opset_import: ["": 19]> g (float[a,b,c] x, float[d,e,f] z) =>
        (float[g,h,i] y) { y = Add(z, x) }"""
    feeds = {"x": ones(1, 2, 2), "z": ones(1, 1, 1)}
    found = redistribute(onnx.parser.parse_model(text), feeds, {"y": ones(1, 1, 2, 2)})
    np.testing.assert_allclose(found["z"], np.full((1, 1, 1, 1), 2.0))
    np.testing.assert_allclose(found["x"], np.full((1, 1, 2, 2), 0.5))


def test_windows_that_leave_elements_out_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="leave out what it crops"):
        handed(
            "(float[1,1,6] x) => (float[1,1,2] y)",
            "",
            'y = AveragePool<auto_pad="SAME_UPPER", kernel_shape=[1], strides=[3]>(x)',
            np.arange(1, 7, dtype=np.float32).reshape(1, 1, 6),
            ones(1, 1, 1, 2),
        )


def test_a_slice_of_the_open_batch_keeps_the_bounds() -> None:
    found = handed(
        "(float[N,6,5] x) => (float[a,b,c] y)",
        "<int64[1] s={-2}, int64[1] e={-9999}, int64[1] ax={0}, int64[1] st={-1}>",
        "t = Slice(x, s, e, ax, st) y = GlobalMaxPool(t)",
        np.arange(90, dtype=np.float32).reshape(3, 6, 5),
        ones(1, 2, 6, 1),
        bounds={"x": (np.zeros((1, 6, 1)), np.full((1, 6, 1), 90.0))},
    )
    assert found.sum() == 12
    assert found[0, 2].sum() == 0


def test_bounds_go_through_a_dropout_channel_by_channel() -> None:
    x = np.float32([[[0.5], [1.5]]])
    found = handed(
        "(float[1,2,1] x) => (float[1,1,1] y)",
        "<float[1,2,1] w = {1,1}>",
        "d = Dropout(x) y = Conv(d, w)",
        x,
        ones(1, 1, 1, 1),
        bounds={"x": (np.float32([[[0], [1]]]), np.float32([[[1], [2]]]))},
    )
    np.testing.assert_allclose(found, [[[[0.5], [0.5]]]])


def test_integers_of_one_axis_are_read() -> None:
    found = handed(
        "(float[1,6] x) => (float[1] y)",
        "<int8[6] q = {-5,-4,-3,-3,-2,3}, float s = {0.5}>",
        "w = DequantizeLinear(q, s) y = MatMul(x, w)",
        ones(1, 6),
        ones(1, 1),
        bounds={"x": (np.float32(0), np.float32(np.inf))},
    )
    np.testing.assert_allclose(found, [[[0, 0, 0, 0, 0, 1]]])


def test_a_mean_that_rounding_makes_zero_is_shared_all_the_same() -> None:
    found = handed(
        "(float[1,1,1,2] x) => (float[a,b,c,d] y)",
        "<float s = {0.0625}, uint8 z = {3}>",
        """t = GlobalAveragePool(x) q = QuantizeLinear(t, s, z) d = DequantizeLinear(q, s, z)
        y = Neg(d)""",
        np.float32([[[[0.5, -0.475]]]]),
        ones(1, 1, 1, 1, 1),
    )
    np.testing.assert_allclose(found.reshape(-1), [1, 0])


def test_shapes_are_known_behind_a_group_norm() -> None:
    found = handed(
        "(float[1,4,2] x) => (float[a,b,c] y)",
        "<float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0}>",
        "h = GroupNormalization<num_groups=2>(x, s, b) y = GlobalAveragePool(h)",
        np.arange(8, dtype=np.float32).reshape(1, 4, 2),
        ones(1, 1, 4, 1),
    )
    assert found.sum() == pytest.approx(4)


def test_shapes_are_known_behind_a_group_norm_of_what_is_known_later() -> None:
    found = handed(
        "(float[1,4,2,2] x) => (float[a,b,c,d] y)",
        "<float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0}, int64[1] last = {-1}>",
        """axes = Identity(last) t = ReduceSum(x, axes)
        h = GroupNormalization<num_groups=2>(t, s, b)
        k = GroupNormalization<num_groups=1>(h, s, b) y = Min(k, k)""",
        np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2),
        ones(1, 1, 4, 2, 1),
    )
    assert found.sum() == pytest.approx(8)


def test_integers_without_a_zero_point_may_be_negative() -> None:
    body = "y = MatMul(d, w)"
    w = "<float[2,2] w = {1,-1,2,-3}, float s = {0.5}>"
    text = """<ir_version: 9, opset_import: ["": 21]> g (int8[1,2] x) => (float[1,2] y)
        %s { d = DequantizeLinear(x, s) y = MatMul(d, w) }"""
    given = {"x": np.int8([[-4, 2]])}
    found = redistribute(onnx.parser.parse_model(text % w), given, {"y": ones(1, 1, 2)})["x"]
    wanted = handed(
        "(float[1,2] d) => (float[1,2] y)".replace(" d)", " x)"),
        w,
        body.replace("(d,", "(x,"),
        np.float32([[-2, 1]]),
        ones(1, 1, 2),
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("form", ["y = Reciprocal(e)", "y = Div(one, e)", "y = Pow(e, minus)"])
def test_what_turns_a_sign_round_is_refused(form: str) -> None:
    with pytest.raises(UnsupportedError, match=r"no rule|no gate|not positive"):
        handed(
            "(float[1,2] x) => (float[1,2] y)",
            "<float one = {1}, float minus = {-1}>",
            f"n = Neg(x) p = Exp(n) e = Add(p, one) {form}",
            ones(1, 2),
            ones(1, 1, 2),
        )


def test_a_group_norm_keeps_its_signs_however_it_is_written() -> None:
    rng = np.random.default_rng(0)
    x, r = (rng.normal(size=s).astype(np.float32) for s in ((2, 2, 3, 3), (1, 2, 4, 3, 3)))
    constants = """<float[4,2,1,1] w = {1,2,-1,3,2,-2,1,1}, float[4] g = {1,-1,1,-2},
        float[4] nil = {0,0,0,0}, float[2] one = {1,1}, float[2] zero = {0,0},
        float[4,1,1] g3 = {1,-1,1,-2}, int64[3] apart = {2,2,-1}, int64[4] back = {2,4,3,3}>"""
    form = "(float[2,2,3,3] x) => (float[a,b,c,d] y)"
    whole = "h = Conv(x, w) y = GroupNormalization<num_groups=2>(h, g, nil)"
    parts = """h = Conv(x, w) u = Reshape(h, apart) v = InstanceNormalization(u, one, zero)
        t = Reshape(v, back) y = Mul(t, g3)"""
    one, other = (handed(form, constants, body, x, r) for body in (whole, parts))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_is_pooled_from_the_signal_is_its_gate_also_in_the_same_size() -> None:
    found = handed(
        "(float[1,1,2,2] x) => (float[a,b,c,d] y)",
        "<float[4] scales = {1,1,2,2}>",
        """p = MaxPool<kernel_shape=[2,2]>(x) u = Resize<mode="nearest">(p, , scales)
        y = Mul(x, u)""",
        np.float32([[[[1, 2], [3, 4]]]]),
        ones(1, 1, 1, 2, 2),
    )
    np.testing.assert_allclose(found.reshape(-1), [1, 1, 1, 1])


def test_a_gate_is_laid_out_by_the_sizes_of_its_signal() -> None:
    found = handed(
        "(float[N,2,2,1] x) => (float[a,b,c,d] y)",
        "<int64[1] one = {1}>",
        """p = GlobalAveragePool(x) n = Shape<end=2>(x) s = Concat<axis=0>(n, one, one)
        g = Reshape(p, s) y = Mul(x, g)""",
        np.float32([[[[1], [3]], [[0], [4]]]]),
        ones(1, 1, 2, 2, 1),
    )
    np.testing.assert_allclose(found.reshape(-1), [1, 1, 1, 1])


@pytest.mark.parametrize(
    ("body", "shares"),
    [
        ("m = ReduceMean(x, one) c = Sub(x, m) v = Mul(c, c) a = ReduceMean(v, two)", True),
        ("m = ReduceMean(x, one) c = Sub(x, m) v = Mul(c, c) a = ReduceMean(v, one)", False),
    ],
)
def test_only_moments_over_the_same_axes_make_a_norm(body: str, shares: bool) -> None:
    x = np.float32([[[1, 5], [2, -3]]])
    found = handed(
        "(float[1,2,2] x) => (float[a,b,c] y)",
        "<int64[1] one = {1}, int64[1] two = {2}>",
        f"{body} s = Sqrt(a) y = Div(c, s)",
        x,
        ones(1, 1, 2, 2),
    )
    assert bool(np.abs(found - 1).max() > 0.01) == shares


def test_a_scale_of_both_signs_behind_shuffled_channels_is_refused() -> None:
    shuffled = """h = Conv(x, w) u = Reshape(h, apart) v = Transpose<perm=[0,2,1,3,4]>(u)
        t = Reshape(v, back) y = Mul(t, g)"""
    with pytest.raises(UnsupportedError, match="both signs, and where its channels lie is not"):
        handed(
            "(float[1,2,3,3] x) => (float[a,b,c,d] y)",
            """<float[4,1,1] g = {1,-1,1,1}, int64[5] apart = {1,2,2,3,3},
            int64[4] back = {1,4,3,3}, float[4,2,1,1] w = {1,2,3,4,5,6,7,8}>""",
            shuffled,
            np.ones((1, 2, 3, 3), np.float32),
            ones(1, 1, 4, 3, 3),
        )


@pytest.mark.parametrize(
    ("behind", "turned"),
    [
        ("n = Neg(h) y = Concat<axis=1>(h, n)", "n"),
        ("i = Identity(h) n = Mul(i, g) a = Relu(n) y = Add(i, a)", "n"),
        ("n = Sub(one, h) y = Add(h, n)", "n"),
    ],
)
def test_a_negative_scale_on_one_branch_alone_is_refused(behind: str, turned: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"the scale .*writes {turned}\) behind one"):
        handed(
            "(float[N,2,3] x) => (float[p,q,r] y)",
            "<float[2,2,1] w = {1,1,-1,-2}, float[2,1] g = {1,-1}, float one = {1}>",
            f"h = Conv(x, w) {behind}",
            ones(1, 2, 3),
            ones(1, 1, 4 if "Concat" in behind else 2, 3),
        )


def test_a_positive_scale_on_one_branch_alone_is_fine() -> None:
    found = handed(
        "(float[N,2,1] x) => (float[p,q,r] y)",
        "<float[1,2,1] w = {1,3}, float two = {2}>",
        "h = Conv(x, w) n = Mul(h, two) y = Concat<axis=1>(h, n)",
        ones(1, 2, 1),
        ones(1, 1, 2, 1),
    )
    np.testing.assert_allclose(found.reshape(-1), [0.5, 1.5])


def test_scales_that_make_more_channels_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="make more channels of it"):
        handed(
            "(float[N,2,1] x) => (float[p,q,r] y)",
            "<float[1,2,1] w = {1,3}, float[2,1] g = {1,-1}>",
            "h = Conv(x, w) y = Mul(h, g)",
            ones(1, 2, 1),
            ones(1, 1, 2, 1),
        )


@pytest.mark.parametrize("dims", ["N,3,3,2", "N,H,W,2"])
def test_one_bound_may_be_a_number_and_the_other_one_a_channel(dims: str) -> None:
    x = np.linspace(0, 1, 18, dtype=np.float32).reshape(1, 3, 3, 2)
    low, high = np.zeros((1, 1, 1, 2)), np.float32([1, 2]).reshape(1, 1, 1, 2)
    by_form = [
        handed(
            f"(float[{dims}] x) => (float[a,b,c,d] y)",
            "<float[1,2,2,2] w = {1,-2,3,1,-1,2,0.5,-1}>",
            "t = Transpose<perm=[0,3,1,2]>(x) y = Conv(t, w)",
            x,
            ones(1, 1, 1, 2, 2),
            bounds={"x": (lo, high)},
        )
        for lo in (low, np.float32(0))
    ]
    np.testing.assert_array_equal(*by_form)


@pytest.mark.parametrize("dims", ["1,2,3,3", "N,2,H,W"])
def test_bounds_a_channel_pass_what_changes_nothing_at_any_size(dims: str) -> None:
    x = np.linspace(0, 1, 18, dtype=np.float32).reshape(1, 2, 3, 3)
    bounds = {"x": (np.zeros((1, 2, 1, 1)), np.float32([1, 2]).reshape(1, 2, 1, 1))}
    plain, behind = (
        handed(
            f"(float[{form}] x) => (float[a,b,c,d] y)",
            "<float[1,2,2,2] w = {1,-2,3,1,-1,2,0.5,-1}>",
            f"{front} y = Conv({'i' if front else 'x'}, w)",
            x,
            ones(1, 1, 1, 2, 2),
            bounds=bounds,
        )
        for form, front in (("1,2,3,3", ""), (dims, "i = Identity(x)"))
    )
    np.testing.assert_allclose(behind, plain, rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean(x, one) c = Sub(x, m) v = Mul(c, c) a = ReduceMean(v, one) s = Sqrt(a)"
        " d = Div(c, s) y = Mul(d, g)",
        "m = ReduceMean(x, one) c = Sub(x, m) v = Mul(c, c) a = ReduceMean(v, one)"
        " e = Add(a, g) s = Sqrt(e) y = Div(c, s)",
    ],
)
def test_what_is_broadcast_while_it_is_normalised_keeps_its_shape(body: str) -> None:
    found = handed(
        "(float[1,1,2] x) => (float[a,b,c] y)",
        "<int64[1] one = {2}, float[3,1] g = {1,2,3}>",
        body,
        np.float32([[[1, 5]]]),
        ones(1, 1, 3, 2),
    )
    assert found.shape == (1, 1, 1, 2)


def test_a_group_norm_in_front_of_a_resize_at_open_sizes() -> None:
    found = handed(
        "(float[N,C,H,W] x) => (float[a,b,c,d] y)",
        "<float[2] g = {2, 0.5}, int64[4] sizes = {1, 2, 1, 2}>",
        'n = GroupNormalization<num_groups=1>(x, g, g) y = Resize<mode="linear">(n, , , sizes)',
        np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2),
        ones(1, 1, 2, 1, 2),
    )
    np.testing.assert_allclose(found, np.full((1, 1, 2, 2, 2), 0.5), rtol=1e-6)


POOLS = {
    "side by side": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "padded": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "at every place": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "with holes": {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
}


def real_winners(x: Floats, r: Floats, pool: dict[str, list[int]], *, split: bool) -> Floats:
    """One plane's relevance: each window's to its first maximum, or in equal parts to all."""
    handed = np.zeros_like(x)
    strides, dilations = (pool.get(name, [1, 1]) for name in ("strides", "dilations"))
    begin = pool.get("pads", [0, 0])[:2]
    for position in np.ndindex(*r.shape):
        places = [
            tuple(
                p * s - b + i * d
                for p, s, b, i, d in zip(position, strides, begin, k, dilations, strict=True)
            )
            for k in np.ndindex(*pool["kernel_shape"])
        ]
        inside = [p for p in places if all(0 <= i < n for i, n in zip(p, x.shape, strict=True))]
        won = [p for p in inside if x[p] == max(x[q] for q in inside)]
        won = won if split else won[:1]
        for p in won:
            handed[p] += r[position] / len(won)
    return handed


@pytest.mark.parametrize("rules", ["default", "authors"])
@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_window_of_nothing_but_minus_infinity_has_a_real_winner(
    pool: str, kind: str, rules: str
) -> None:
    """As behind a mask, or a logarithm of 0: padding wins nothing."""
    x = np.float32([[-np.inf] * 3 + [2], [-np.inf] * 4, [-np.inf, -np.inf, 1, 1], [-1, 0, 1, 3]])
    attributes = ", ".join(f"{name} = {value}" for name, value in POOLS[pool].items())
    text = f"""<ir_version: 9, opset_import: ["": 21]> g ({kind}[1,1,4,4] x) =>
        ({kind}[a,b,c,d] y) {{ y = MaxPool<{attributes}>(x) }}"""
    model = onnx.parser.parse_model(text)
    feeds = {"x": x[None, None].astype(np.float16 if kind == "float16" else np.float32)}
    size = (2, 2) if "strides" in POOLS[pool] else (4, 4)
    r = np.arange(1, np.prod(size) + 1, dtype=np.float32).reshape(size)
    found = redistribute(model, feeds, {"y": r[None, None, None]}, rules=rules)["x"]
    wanted = real_winners(x, r, POOLS[pool], split=rules == "authors")
    np.testing.assert_allclose(found[0, 0, 0], wanted, rtol=1e-6)


def test_what_is_proven_to_be_above_is_not_raised_from_minus_infinity() -> None:
    """Behind a ReLU a pool takes the nodes that it took before."""
    text = """<ir_version: 9, opset_import: ["": 21]> g (float[1,3,8,8] x) => (float[1,3] y)
        <float[3,3,1,1] w = {1,2,3,4,5,6,7,8,9}> { c = Conv(x, w) BODY g = GlobalMaxPool(q)
        y = Flatten(g) }"""
    pool = "MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>"
    bodies = f"a = Relu(c) q = {pool}(a)", f"a = {pool}(c) q = Relu(a)"
    models = (onnx.parser.parse_model(text.replace("BODY", body)) for body in bodies)
    explainers = [convert(model, input_range=(0, 1)) for model in models]
    raised = [sum(n.op_type == "Clip" for n in e.graph.node) for e in explainers]
    assert raised[1] - raised[0] == 2  # the input, and the output
