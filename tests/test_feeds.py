"""Models of several inputs: one is explained, the others are fed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import noise, run, saved
from exporters_support import Array, Floats, written
from onnx import helper, numpy_helper
from test_structures import BODY, PICTURES, RANGE, assert_near, drawn, pictures

import onnx_clrp
from onnx_clrp import ClrpError, Explainer, UnsupportedError, UsageError
from onnx_clrp.check import check

SCORES = BODY.replace("logits =", "s =")


def frozen(proto: onnx.ModelProto, **values: Array) -> onnx.ModelProto:
    """The model with some of its inputs replaced by constants."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    kept = [x for x in made.graph.input if x.name not in values]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()
    )
    return made


def assert_fed(
    proto: onnx.ModelProto,
    feeds: dict[str, Array],
    *,
    batch: Floats = PICTURES,
    whole: Sequence[str] = (),
    methods: Sequence[str] = ("lrp", "clrp2"),
    **options: Any,
) -> None:
    """Each sample's relevance is that of the model with that sample's other inputs built in."""
    settings: dict[str, Any] = {"input_range": RANGE, "signed": True, "device": "cpu", **options}
    for method in methods:
        explainer = Explainer(proto, method=method, **settings)
        found = explainer.explain(batch, [0, 3], feeds=feeds)
        np.testing.assert_array_equal(found.logits, explainer.logits(batch, feeds=feeds))
        for n in range(len(batch)):
            one = {k: v if k in whole else v[n : n + 1] for k, v in feeds.items()}
            plain = Explainer(frozen(proto, **one), method=method, **settings)
            wanted = plain.explain(batch[n : n + 1], [0, 3])
            assert_near(found.logits[n], wanted.logits[0])
            assert_near(found.relevance[n], wanted.relevance[0])


JOINED = BODY.replace("logits =", "j = Concat<axis=1>(f, meta) logits =").replace("(f, v", "(j, v")


def with_metadata(batch: str = "N") -> onnx.ModelProto:
    """A picture and five numbers about it."""
    return written(
        JOINED,
        inputs=f"float[{batch},3,8,8] x, float[{batch},5] meta",
        outputs=f"float[{batch},5] logits",
        v=drawn(101, 5),
    )


def test_metadata_beside_a_picture_is_fed() -> None:
    assert_fed(with_metadata(), {"meta": drawn(3, 5)})


def test_the_metadata_may_be_explained_and_the_picture_fed() -> None:
    unbounded = (-np.inf, np.inf)
    feeds: dict[str, Array] = {"x": PICTURES}
    assert_fed(with_metadata(), feeds, batch=drawn(3, 5), input="meta", input_range=unbounded)


def test_bounds_that_what_is_fed_takes_away_are_missed_aloud() -> None:
    explainer = Explainer(with_metadata(), device="cpu", input="meta", input_range=RANGE)
    notes = explainer.explain(pictures(3, 5), 0, feeds={"x": PICTURES}).notes
    assert any("z⁺ in place of z^β" in note for note in notes)


def test_without_a_target_the_top_class_is_found_with_the_feeds() -> None:
    feeds: dict[str, Array] = {"meta": 9 * drawn(3, 5)}
    explainer = Explainer(with_metadata(), device="cpu", input_range=RANGE)
    result = explainer.explain(PICTURES, feeds=feeds)
    np.testing.assert_array_equal(result.target[:, 0], result.logits.argmax(axis=1))
    np.testing.assert_array_equal(result.logits, explainer.logits(PICTURES, feeds=feeds))


def test_an_input_of_the_model_may_be_called_target() -> None:
    renamed = written(
        JOINED.replace("meta", "target"),
        inputs="float[N,3,8,8] x, float[N,5] target",
        v=drawn(101, 5),
    )
    found = explained_with(renamed, PICTURES, {"target": drawn(3, 5)})
    assert_near(
        found.relevance,
        explained_with(with_metadata(), PICTURES, {"meta": drawn(3, 5)}).relevance,
    )


GATED = BODY.replace("r = Relu(h)", "NODES r = Relu(m)")
CONDITIONED = {
    "a gate": "g0 = Gemm(meta, gw) g1 = Sigmoid(g0) g = Unsqueeze(g1, plane) m = Mul(h, g)",
    "a shift": "g0 = Gemm(meta, gw) g = Unsqueeze(g0, plane) m = Add(g, h)",
    "a maximum": "g0 = Gemm(meta, gw) g = Unsqueeze(g0, plane) m = Max(h, g)",
    "a choice": "g0 = Gemm(meta, gw) g1 = Greater(g0, none) g = Unsqueeze(g1, plane)"
    "m = Where(g, h, none)",
}


@pytest.mark.parametrize("form", CONDITIONED)
def test_what_is_fed_may_act_on_features(form: str) -> None:
    proto = written(
        GATED.replace("NODES", CONDITIONED[form]),
        inputs="float[N,3,8,8] x, float[N,5] meta",
        gw=drawn(5, 6),
        plane=np.array([2, 3]),
        none=np.float32(0),
    )
    assert_fed(proto, {"meta": drawn(3, 5)}, methods=("lrp",))


def test_a_scale_of_either_sign_that_is_fed_is_refused() -> None:
    scaled = "g0 = Gemm(meta, gw) g = Unsqueeze(g0, plane) m = Mul(h, g)"
    proto = written(
        GATED.replace("NODES", scaled),
        inputs="float[N,3,8,8] x, float[N,5] meta",
        gw=drawn(5, 6),
        plane=np.array([2, 3]),
    )
    with pytest.raises(UnsupportedError, match="known only at run time, and so is its sign"):
        onnx_clrp.convert(proto, input_range=RANGE)


def test_feeds_are_cut_into_pieces_with_the_batch() -> None:
    batch, meta = pictures(11, 3, 8, 8), drawn(11, 5, seed=4)
    assert_fed(with_metadata(), {"meta": meta}, batch=batch, methods=("lrp",))


def test_feeds_fill_up_a_fixed_batch_as_the_samples_do() -> None:
    batch, meta = pictures(5, 3, 8, 8), drawn(5, 5, seed=4)
    opened = explained_with(with_metadata(), batch, {"meta": meta})
    fixed = explained_with(with_metadata("2"), batch, {"meta": meta})
    assert_near(fixed.relevance, opened.relevance)


def explained_with(proto: onnx.ModelProto, batch: Array, feeds: dict[str, Array]) -> Any:
    return Explainer(proto, device="cpu", input_range=RANGE).explain(batch, 1, feeds=feeds)


SIAMESE = """
    h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) f = Flatten(p)
    h2 = Conv<pads=[1,1,1,1]>(other, w, b) r2 = Relu(h2)
    p2 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2) f2 = Flatten(p2)
    d = Sub(f, f2) logits = Gemm(d, v, c)
"""


def siamese() -> onnx.ModelProto:
    """Two pictures through the same network, and their difference."""
    return written(SIAMESE, inputs="float[N,3,8,8] x, float[N,3,8,8] other")


@pytest.mark.parametrize(("chosen", "fed"), [("x", "other"), ("other", "x")])
def test_of_two_pictures_one_is_explained(chosen: str, fed: str) -> None:
    assert_fed(siamese(), {fed: np.roll(PICTURES, 1, axis=0)}, input=chosen)


def test_of_two_pictures_one_must_be_chosen() -> None:
    with pytest.raises(UsageError, match="'x', 'other'"):
        onnx_clrp.convert(siamese(), input_range=RANGE)


@pytest.mark.parametrize("shape", ["", "1"])
def test_a_temperature_may_be_fed(shape: str) -> None:
    proto = written(
        f"{SCORES} q = Div(s, temperature) y = Softmax(q)",
        inputs="float[N,3,8,8] x",
        outputs="float[N,5] y",
    )
    value = np.full([1] if shape else [], 2, np.float32)
    kind = helper.make_tensor_value_info("temperature", onnx.TensorProto.FLOAT, value.shape)
    proto.graph.input.append(kind)
    assert_fed(proto, {"temperature": value}, whole=["temperature"])


def masked() -> onnx.ModelProto:
    """Features that a mask lets through."""
    return written(
        BODY.replace("(r) f", "(k) f").replace("p = MaxPool", "k = Mul(r, mask) p = MaxPool"),
        inputs="float[N,3,8,8] x, float[M,1,8,8] mask",
    )


def test_a_mask_for_each_sample_is_fed() -> None:
    assert_fed(masked(), {"mask": (drawn(3, 1, 8, 8) > 0).astype(np.float32)}, input="x")


def test_a_mask_for_all_samples_is_passed_whole() -> None:
    mask = (drawn(1, 1, 8, 8) > 0).astype(np.float32)
    batch = pictures(11, 3, 8, 8)
    given = {"mask": mask}
    assert_fed(masked(), given, batch=batch, whole=["mask"], methods=("lrp",), input="x")


BAD_FEEDS: dict[str, tuple[dict[str, Array] | None, str]] = {
    "none": (None, "'?meta'?"),
    "empty": ({}, "'?meta'?"),
    "unknown": ({"meta": drawn(3, 5), "mtea": drawn(3, 5)}, "'?mtea'?"),
    "misspelt": ({"mtea": drawn(3, 5)}, "meta|mtea"),
    "the explained input": ({"meta": drawn(3, 5), "x": PICTURES}, "'?x'?"),
    "the target": ({"meta": drawn(3, 5), "target": np.zeros((3, 1), np.int64)}, "'?target'?"),
    "another width": ({"meta": drawn(3, 4)}, "meta"),
    "not finite": ({"meta": np.full((3, 5), np.nan, np.float32)}, "meta"),
    "another type": ({"meta": np.array([["a"] * 5] * 3)}, "meta"),
}


@pytest.mark.parametrize("form", BAD_FEEDS)
def test_feeds_that_do_not_fit_are_refused_by_name(form: str) -> None:
    feeds, named = BAD_FEEDS[form]
    explainer = Explainer(with_metadata(), device="cpu", input_range=RANGE)
    for call in (explainer.logits, explainer.explain):
        with pytest.raises(UsageError, match=named):
            call(PICTURES, feeds=feeds)


def test_a_feed_of_another_batch_does_not_crash() -> None:
    explainer = Explainer(with_metadata(), device="cpu", input_range=RANGE)
    for call in (explainer.logits, explainer.explain):
        with pytest.raises(ClrpError):  # passed whole, as a table for all samples would be
            call(PICTURES, feeds={"meta": drawn(2, 5)})


def test_a_model_of_one_input_takes_no_feeds() -> None:
    explainer = Explainer(written(), device="cpu", input_range=RANGE)
    with pytest.raises(UsageError, match="meta"):
        explainer.explain(PICTURES, feeds={"meta": drawn(3, 5)})


def test_a_converted_model_takes_feeds_too() -> None:
    made = onnx_clrp.convert(with_metadata(), input_range=RANGE)
    assert [x.name for x in made.graph.input] == ["x", "meta", "target"]
    feeds = {"meta": drawn(3, 5)}
    found = Explainer(made, device="cpu").explain(PICTURES, 1, feeds=feeds)
    assert_near(found.relevance, explained_with(with_metadata(), PICTURES, feeds).relevance)


def test_check_takes_feeds() -> None:
    feeds = {"meta": drawn(1, 5)}
    report = check(
        with_metadata(), PICTURES[:1], feeds=feeds, device="cpu", input_range=RANGE, method="lrp"
    )
    assert not report.faults


def test_the_command_takes_feeds_from_files(tmp_path: Path) -> None:
    model, meta = saved(tmp_path, with_metadata()), tmp_path / "meta.npy"
    np.save(meta, drawn(1, 5))
    told = ("--input-range", "-1,1", "--device", "cpu")
    checked = run("check", model, "--feed", f"meta={meta}", *told)
    assert checked.status == 0, checked.err + checked.out
    missing = run("check", model, *told)
    assert missing.status == 2
    assert "meta" in missing.complaint
    assert run("check", model, "--feed", f"mtea={meta}", *told).status == 2
    for word in ("meta", f"meta={tmp_path}/none.npy", f"meta={model}"):
        outcome = run("check", model, "--feed", word, *told)
        assert outcome.status in (1, 2)
        assert outcome.complaint


def test_explain_takes_feeds_from_files(tmp_path: Path) -> None:
    model, meta, out = saved(tmp_path, with_metadata()), tmp_path / "meta.npy", tmp_path / "out"
    np.save(meta, drawn(1, 5))
    noise().save(tmp_path / "a.png")
    told = ("--preset", "unit", "--device", "cpu", "-o", out, "--save-arrays")
    done = run("explain", model, tmp_path / "a.png", "--feed", f"meta={meta}", *told)
    assert done.status == 0, done.err
    assert list(out.glob("*.npz"))
