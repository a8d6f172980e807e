"""Where relevance starts: labels, probabilities, several outputs; and what must be refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import run, saved
from exporters_support import Array, assert_means, assert_outputs_kept, explained, written
from numpy.typing import NDArray
from test_structures import BODY, PICTURES, RANGE, assert_near, drawn

import onnx_clrp
from onnx_clrp import ClrpError, UnsupportedError, UsageError

Floats = NDArray[np.float32]

SCORES = BODY.replace("logits =", "s =")
NAMES = ["ant", "bee", "cat", "dog", "eel"]

# -- ends ----------------------------------------------------------------------------------------


def assert_starts_at_logits(
    body: str,
    outputs: str,
    plain: onnx.ModelProto | None = None,
    domains: str = "",
    **constants: Array,
) -> None:
    """Whatever `body` makes of the scores `s`, relevance is that of the plain classifier."""
    proto = written(f"{SCORES} {body}", outputs=outputs, domains=domains, **constants)
    assert_means(proto, plain or written())


PROBABILITIES = {
    "Softmax by exponents": "e = Exp(s) t = ReduceSum(e, one) y = Div(e, t)",
    "Softmax without its maximum": "m = ReduceMax(s, one) d = Sub(s, m) e = Exp(d)"
    "t = ReduceSum(e, one) y = Div(e, t)",
    "Softmax by a reciprocal": "m = ReduceMax(s, one) d = Sub(s, m) e = Exp(d)"
    "t = ReduceSum(e, one) i = Reciprocal(t) y = Mul(e, i)",
    "Softmax of a picture of one pixel": "u = Unsqueeze(s, plane) q = Softmax<axis=1>(u)"
    "y = Squeeze(q, plane)",
    "Softmax of one pixel, channels last": "u = Unsqueeze(s, middle) q = Softmax(u)"
    "y = Squeeze(q, middle)",
    "Sigmoid of one pixel, channels last": "u = Unsqueeze(s, middle) q = Sigmoid(u)"
    "y = Reshape(q, rows)",
    "LogSoftmax in full": "m = ReduceMax(s, one) d = Sub(s, m) e = Exp(d) t = ReduceSum(e, one)"
    "l = Log(t) y = Sub(d, l)",
    "LogSoftmax by LogSumExp": "l = ReduceLogSumExp(s, one) y = Sub(s, l)",
    "the logarithm of Softmax": "q = Softmax(s) y = Log(q)",
    "Softmax from its logarithm": "q = LogSoftmax(s) y = Exp(q)",
    "Sigmoid by exponents": "n = Neg(s) e = Exp(n) d = Add(e, unit) y = Div(unit, d)",
    "Softmax and Clip": "q = Softmax(s) y = Clip(q, small, unit)",
    "Softmax in percent": "q = Softmax(s) y = Mul(q, hundred)",
    "a mixture with chance": "q = Softmax(s) m = Mul(q, most) y = Add(m, small)",
    "a threshold for each class": "q = Sigmoid(s) g = Greater(q, most) y = Cast<to=1>(g)",
}

PARTS: dict[str, Array] = {
    "one": np.array([1]),
    "unit": np.float32(1),
    "plane": np.array([2, 3]),
    "middle": np.array([1, 2]),
    "rows": np.array([-1, 5]),
    "small": np.float32(1e-7),
    "hundred": np.float32(100),
    "most": np.float32(0.9),
}


@pytest.mark.parametrize("form", PROBABILITIES)
def test_what_makes_probabilities_of_logits_is_skipped(form: str) -> None:
    assert_starts_at_logits(PROBABILITIES[form], "float[N,5] y", **PARTS)


TURNED = {
    "less Softmax": "q = Softmax(s) y = Sub(unit, q)",
    "minus Softmax": "q = Softmax(s) y = Mul(q, minus)",
    "over Softmax": "q = Softmax(s) y = Div(unit, q)",
    "less Sigmoid": "q = Sigmoid(s) y = Sub(unit, q)",
    "minus Sigmoid and one": "q = Sigmoid(s) n = Mul(q, minus) y = Add(n, unit)",
}


@pytest.mark.parametrize("form", TURNED)
def test_what_falls_with_the_scores_is_not_explained_as_the_scores(form: str) -> None:
    parts = {**PARTS, "minus": np.float32(-1)}
    proto = written(f"{SCORES} {TURNED[form]}", outputs="float[N,5] y", **parts)
    with pytest.raises(UnsupportedError, match=r"no rule for this operator|turns a probability"):
        onnx_clrp.convert(proto, input_range=RANGE)


MIXED = {
    "a mean": "o = Sigmoid(s) q = Sigmoid(z) a = Add(o, q) y = Mul(a, half)",
    "a product": "o = Sigmoid(s) q = Sigmoid(z) y = Mul(o, q)",
    "the larger": "o = Sigmoid(s) q = Sigmoid(z) y = Max(o, q)",
    "a mean over both": "o = Sigmoid(s) q = Sigmoid(z) u = Unsqueeze(o, nil) k = Unsqueeze(q, nil)"
    "j = Concat<axis=0>(u, k) y = ReduceMean<keepdims=0>(j, nil)",
}


@pytest.mark.parametrize("form", MIXED)
def test_a_mixture_of_probabilities_is_not_explained_as_scores(form: str) -> None:
    parts = {**PARTS, "half": np.float32(0.5), "nil": np.array([0])}
    proto = written(f"{SCORES} z = Add(s, hundred) {MIXED[form]}", outputs="float[N,5] y", **parts)
    with pytest.raises(UnsupportedError, match="mixture of probabilities: name the scores"):
        onnx_clrp.convert(proto, input_range=RANGE)


def test_a_score_beside_a_probability_is_a_score() -> None:
    body = f"{SCORES} o = Sigmoid(s) y = Add(o, s)"
    onnx_clrp.convert(written(body, outputs="float[N,5] y"), input_range=RANGE)


def test_a_temperature_belongs_to_the_logits() -> None:
    head = {"v": drawn(96, 5) / 2, "c": drawn(5) / 2}
    assert_starts_at_logits(
        "q = Div(s, two) y = Softmax(q)", "float[N,5] y", written(**head), two=np.float32(2)
    )


ML = ', "ai.onnx.ml": 3'
ENCODED = "keys_int64s=[0,1,2,3,4], values_strings=[{}]".format(",".join(f'"{n}"' for n in NAMES))
LABELS = {
    "ArgMax": ("y = ArgMax<axis=1, keepdims=0>(s)", "int64[N] y", ""),
    "ArgMax of probabilities, as int32": (
        "q = Softmax(s) i = ArgMax<axis=1>(q) y = Cast<to=6>(i)",
        "int32[N,1] y",
        "",
    ),
    "a table of labels": (
        "q = Softmax(s) i = ArgMax<axis=1, keepdims=0>(q) y = Gather(names, i)",
        "string[N] y",
        "",
    ),
    "LabelEncoder": (
        f"i = ArgMax<axis=1, keepdims=0>(s) y = ai.onnx.ml.LabelEncoder<{ENCODED}>(i)",
        "string[N] y",
        ML,
    ),
    "ZipMap": (
        "q = Softmax(s) y = ai.onnx.ml.ZipMap<classlabels_int64s=[0,1,2,3,4]>(q)",
        "seq(map(int64, float)) y",
        ML,
    ),
    "label and ZipMap": (
        """q = Softmax(s) i = ArgMax<axis=1>(q) l0 = ai.onnx.ml.ArrayFeatureExtractor(ids, i)
        l1 = Cast<to=6>(l0) l = Reshape(l1, flat)
        y = ai.onnx.ml.ZipMap<classlabels_int64s=[0,1,2,3,4]>(q)""",
        "int32[N] l, seq(map(int64, float)) y",
        ML,
    ),
    "the best three": (
        "q = Softmax(s) best, which = TopK<axis=1>(q, three)",
        "float[N,3] best, int64[N,3] which",
        "",
    ),
    "the best three with names": (
        "best, which = TopK<axis=1>(s, three) names3 = Gather(names, which)",
        "float[N,3] best, string[N,3] names3",
        "",
    ),
    "label and probability": (
        "q = Softmax(s) i = ArgMax<axis=1, keepdims=0>(q) m = ReduceMax<keepdims=0>(q, one)",
        "int64[N] i, float[N] m",
        "",
    ),
}
LOOKED_UP: dict[str, Array] = {
    "names": np.array(NAMES, object),
    "ids": np.arange(5),
    "flat": np.array([-1]),
    "three": np.array([3]),
    "one": np.array([1]),
}


@pytest.mark.parametrize("form", LABELS)
def test_behind_a_label_stand_logits(form: str) -> None:
    body, outputs, domains = LABELS[form]
    assert_starts_at_logits(body, outputs, domains=domains, **LOOKED_UP)


CHOSEN = {
    "Gather": ("q = Softmax(s) y = Gather<axis=1>(q, picked)", [3, 1], ""),
    "Gather of Sigmoids": ("q = Sigmoid(s) y = Gather<axis=1>(q, picked)", [3, 1], ""),
    "Gather of one": ("q = Softmax(s) y = Gather<axis=1>(q, third)", [3], ""),
    "Gather in front": ("g = Gather<axis=1>(s, picked) y = Softmax(g)", [3, 1], ""),
    "Slice": ("q = Softmax(s) y = Slice(q, two, four, one)", [2, 3], ""),
    "Slice backwards": ("q = Softmax(s) y = Slice(q, last, front, one, last)", [4, 3, 2, 1, 0], ""),
    "Slice, ArgMax": (
        "q = Softmax(s) p0 = Slice(q, two, four, one) y = ArgMax<axis=1>(p0)",
        [2, 3],
        "",
    ),
    "ArrayFeatureExtractor": (
        "q = Softmax(s) y = ai.onnx.ml.ArrayFeatureExtractor(q, picked)",
        [3, 1],
        ML,
    ),
    "Transpose": ("q = Softmax(s) t = Transpose(q) y = Gather(t, third)", [3], ""),
}
CHOICES: dict[str, Array] = {
    "one": np.array([1]),
    "picked": np.array([3, 1]),
    "third": np.array(3),
    "two": np.array([2]),
    "four": np.array([4]),
    "last": np.array([-1]),
    "front": np.array([-9]),
}


@pytest.mark.parametrize("form", CHOSEN)
def test_classes_are_those_of_the_output_or_it_is_refused(form: str) -> None:
    body, classes, domains = CHOSEN[form]
    shape = "[N]" if form in ("Gather of one", "Transpose") else f"[N,{len(classes)}]"
    output = "int64[N,1] y" if "ArgMax" in form else f"float{shape} y"
    proto = written(f"{SCORES} {body}", outputs=output, domains=domains, **CHOICES)
    try:
        found = explained(proto, target=[0], method="lrp")
    except ClrpError:
        return
    assert found.logits.shape == (3, len(classes))
    assert_near(found.relevance, explained(written(), target=classes[:1], method="lrp").relevance)


# -- a single logit --------------------------------------------------------------------------------

LONE = {"v": drawn(96, 1), "c": drawn(1)}


def lone(end: str = "", outputs: str = "float[N,1] s") -> onnx.ModelProto:
    """A classifier of two classes by one score."""
    return written(
        f"{SCORES} {end}", outputs=outputs, **LONE, axis=np.array([1]), flat=np.array([-1])
    )


SINGLE = {
    "Sigmoid": ("y = Sigmoid(s)", "float[N,1] y"),
    "squeezed": ("y = Squeeze(s, axis)", "float[N] y"),
    "squeezed, Sigmoid": ("q = Squeeze(s, axis) y = Sigmoid(q)", "float[N] y"),
    "Sigmoid, squeezed": ("q = Sigmoid(s) y = Squeeze(q, axis)", "float[N] y"),
    "reshaped": ("y = Reshape(s, flat)", "float[N] y"),
}


@pytest.mark.parametrize("form", SINGLE)
def test_a_single_logit_is_a_class(form: str) -> None:
    proto, plain = lone(*SINGLE[form]), lone()
    assert_outputs_kept(proto, PICTURES)
    for method in ("lrp", "clrp2"):
        found, wanted = (explained(m, target=0, method=method) for m in (proto, plain))
        assert found.logits.shape == (3, 1)
        assert_near(found.logits, wanted.logits)
        assert_near(found.relevance, wanted.relevance)


def test_the_complement_of_a_probability_is_not_explained_as_the_probability() -> None:
    both = "q = Sigmoid(s) r0 = Sub(unit, q) y = Concat<axis=1>(r0, q)"
    proto = written(f"{SCORES} {both}", outputs="float[N,2] y", **LONE, **PARTS)
    with pytest.raises(UnsupportedError, match="turns a probability round"):
        onnx_clrp.convert(proto, input_range=RANGE)


def test_a_single_logit_has_no_others_to_compare_with() -> None:
    with pytest.raises(UsageError, match="clrp1 needs at least 2 classes, not 1"):
        onnx_clrp.convert(lone(*SINGLE["squeezed, Sigmoid"]), method="clrp1", input_range=RANGE)


# -- the batch -----------------------------------------------------------------------------------

UNBATCHED = {
    "Squeeze": "y = Squeeze(s, front)",
    "Squeeze of all": "y = Squeeze(s)",
    "Reshape": "y = Reshape(s, five)",
    "Squeeze, Softmax": "q = Squeeze(s, front) y = Softmax(q)",
    "Softmax, Squeeze": "q = Softmax(s) y = Squeeze(q)",
}


@pytest.mark.parametrize("form", UNBATCHED)
def test_scores_without_a_batch_axis_are_classes(form: str) -> None:
    proto = written(
        f"{SCORES} {UNBATCHED[form]}",
        inputs="float[1,3,8,8] x",
        outputs="float[5] y",
        front=np.array([0]),
        five=np.array([5]),
    )
    try:
        found = explained(proto, method="lrp")
    except ClrpError:
        return
    wanted = explained(written(), method="lrp")
    assert_near(found.logits, wanted.logits)
    assert_near(found.relevance, wanted.relevance)


WITHOUT = {
    "channels first": ("float[3,8,8] x", "u = Unsqueeze(x, front)"),
    "channels last": (
        "float[8,8,3] x",
        "t = Transpose<perm=[2,0,1]>(x) u = Unsqueeze(t, front)",
    ),
    "of any size": (
        "float[H,W,3] x",
        "t = Transpose<perm=[2,0,1]>(x) u0 = Unsqueeze(t, front) u = Resize(u0, , , sizes)",
    ),
}


@pytest.mark.parametrize("form", WITHOUT)
def test_an_input_without_a_batch_axis_is_refused(form: str) -> None:
    inputs, nodes = WITHOUT[form]
    proto = written(
        f"{nodes} {BODY.replace('(x,', '(u,')}",
        inputs=inputs,
        outputs="float[1,5] logits",
        front=np.array([0]),
        sizes=np.array([1, 3, 8, 8]),
    )
    sample = PICTURES[0] if form == "channels first" else PICTURES[0].transpose(1, 2, 0)
    with pytest.raises(ClrpError):
        explained(proto, sample, 0)


# -- several outputs -------------------------------------------------------------------------------

DEEP = """
    h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h) h2 = Conv<pads=[1,1,1,1]>(r, w2, b) r2 = Relu(h2)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2) f = Flatten(p)
    main = Gemm(f, v, c)
    g1 = GlobalAveragePool(r) f1 = Flatten(g1) early = Gemm(f1, v1, c)
    q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) g2 = GlobalAveragePool(q) f2 = Flatten(g2)
    late = Gemm(f2, v1, c)
"""
DEEP_WEIGHTS: dict[str, Array] = {"w2": drawn(6, 6, 3, 3), "v1": drawn(6, 5)}


def deep(outputs: Sequence[str], extra: str = "") -> onnx.ModelProto:
    """A network of three heads with these outputs."""
    forms = {"f": "float[N,96]", "p": "float[N,6,4,4]", "r2": "float[N,6,8,8]"}
    named = ", ".join(f"{forms.get(name, 'float[N,5]')} {name}" for name in outputs)
    return written(f"{DEEP} {extra}", outputs=named, **DEEP_WEIGHTS)


def assert_guesses(proto: onnx.ModelProto, name: str, plain: onnx.ModelProto | None = None) -> None:
    """Without a word it explains the output of that name, and says so."""
    assert_means(proto, plain or deep([name]))
    notes = explained(proto).notes
    assert any(repr(name) in note for note in notes), notes


def turned_round(names: Sequence[str]) -> list[list[str]]:
    """The outputs in both orders: which comes first says nothing."""
    return [list(names), list(reversed(names))]


@pytest.mark.parametrize("outputs", turned_round(["main", "probabilities"]))
def test_logits_and_their_probabilities_are_no_question(outputs: list[str]) -> None:
    proto = deep(outputs, "probabilities = Softmax(main)")
    assert_means(proto, deep(["main"]))
    assert explained(proto).notes == explained(deep(["main"])).notes


@pytest.mark.parametrize("features", ["f", "p", "r2"])
@pytest.mark.parametrize("first", [True, False], ids=["features first", "logits first"])
def test_features_that_the_logits_are_made_from_are_out(features: str, first: bool) -> None:
    proto = deep([features, "main"] if first else ["main", features])
    assert_means(proto, deep(["main"]))
    if features == "f":  # the others are no scores by their form, so that nothing is guessed
        assert_guesses(proto, "main")


BESIDE = {
    "its maximum": ("extra = ReduceMax<keepdims=0>(main, i1)", "float[N] extra"),
    "its maximum, wide": ("extra = ReduceMax(main, i1)", "float[N,1] extra"),
    "a normalised embedding": ("n = ReduceL2(f, i1) extra = Div(f, n)", "float[N,96] extra"),
    "a class activation map": ("extra = Conv(r2, maps)", "float[N,5,8,8] extra"),
}


@pytest.mark.parametrize("form", BESIDE)
def test_what_is_made_of_scores_or_beside_them_is_not_taken_for_them(form: str) -> None:
    nodes, output = BESIDE[form]
    more: dict[str, Array] = {"i1": np.array([1]), "maps": drawn(5, 6, 1, 1)}
    body, outputs = f"{DEEP} {nodes}", f"float[N,5] main, {output}"
    proto = written(body, outputs=outputs, **more, **DEEP_WEIGHTS)
    assert_means(proto, deep(["main"]), methods=("lrp",))


@pytest.mark.parametrize("outputs", turned_round(["main", "late", "early"]))
def test_of_auxiliary_heads_the_deepest_is_the_classifier(outputs: list[str]) -> None:
    assert_guesses(deep(outputs), "main")


@pytest.mark.parametrize("outputs", turned_round(["p_main", "p_late", "p_early"]))
def test_auxiliary_heads_may_all_end_in_softmax(outputs: list[str]) -> None:
    ends = "p_main = Softmax(main) p_late = Softmax(late) p_early = Softmax(early)"
    assert_means(deep(outputs, ends), deep(["main"]))
    assert any("main" in note for note in explained(deep(outputs, ends)).notes)


@pytest.mark.parametrize("outputs", turned_round(["main", "class_logits"]))
def test_a_name_that_says_logits_wins(outputs: list[str]) -> None:
    proto = deep(outputs, "class_logits = Identity(early)")
    assert_guesses(proto, "class_logits", deep(["early"]))


@pytest.mark.parametrize("name", ["main", "late", "early"])
def test_the_logits_may_be_named(name: str) -> None:
    proto = deep(["main", "late", "early"])
    assert_means(proto, deep([name]), logits=name)
    assert explained(proto, logits=name).notes == explained(deep([name])).notes


def test_a_named_output_of_probabilities_stands_for_its_logits() -> None:
    ends = "p_main = Softmax(main) p_late = Softmax(late)"
    proto = deep(["p_main", "p_late"], ends)
    assert_means(proto, deep(["late"]), logits="p_late", plain_options={"logits": None})


TWINS = "age = Gemm(f, va, c) gender0 = Gemm(f, vb, c2) gender = Softmax(gender0)"
TWIN_WEIGHTS: dict[str, Array] = {"va": drawn(96, 5), "vb": drawn(96, 2), "c2": drawn(2)}


def twins(outputs: str = "float[N,5] age, float[N,2] gender") -> onnx.ModelProto:
    """Two heads of the same depth."""
    body = BODY.replace("logits = Gemm(f, v, c)", TWINS)
    return written(body, outputs=outputs, **TWIN_WEIGHTS)


def test_two_equal_heads_are_a_question() -> None:
    with pytest.raises(UsageError, match=r"'age'.*'gender0?'|'gender0?'.*'age'"):
        onnx_clrp.convert(twins(), input_range=RANGE)


def test_of_two_equal_heads_each_may_be_named() -> None:
    assert_means(twins(), twins("float[N,5] age"), logits="age", plain_options={"logits": None})
    found = explained(twins(), target=[0, 1], logits="gender0")
    wanted = explained(twins("float[N,2] gender"), target=[0, 1])
    assert_near(found.relevance, wanted.relevance)


# -- refused ---------------------------------------------------------------------------------------

LSTM = """
    t = Transpose<perm=[1,0,2]>(x)
    [rnn_LSTM] states, last, cell = LSTM<hidden_size=4>(t, lw, lr)
    q = Squeeze(last, first) logits = Gemm(q, lv, c)
"""
TRANSFORMER = """
    t = Transpose<perm=[0,2,1]>(x)
    q = MatMul(t, wq) k0 = MatMul(t, wk) k = Transpose<perm=[0,2,1]>(k0) u = MatMul(t, wv)
    [attention_scores] s = MatMul(q, k) [attention_softmax] a = Softmax(s)
    [attention_mix] o = MatMul(a, u)
    m = ReduceMean<keepdims=0>(o, first1) logits = Gemm(m, lv, c)
"""
SEVERAL = """
    h = Conv<pads=[1,1,1,1]>(x, w, b) z = Sin(h) [odd] r = com.acme.Odd(z)
    [conditional] i = If(yes) <then_branch = then () => (float[N,6,8,8] d) { d = Relu(r) },
        else_branch = other () => (float[N,6,8,8] e) { e = Neg(r) }>
    g = GlobalAveragePool(i) f = Flatten(g) logits = Gemm(f, v1, c)
"""
SEQUENCE = "float[N,6,4] x"
REFUSED: dict[str, tuple[str, str, dict[str, str]]] = {
    "an LSTM": (LSTM, SEQUENCE, {"rnn_LSTM": "LSTM"}),
    "a transformer": (
        TRANSFORMER,
        SEQUENCE,
        {
            "attention_scores": "MatMul",
            "attention_softmax": "Softmax",
            "attention_mix": "MatMul",
        },
    ),
    "unnamed, custom and conditional": (
        SEVERAL,
        "float[N,3,8,8] x",
        {"(unnamed, writes z)": "Sin", "odd": "com.acme.Odd", "conditional": "If"},
    ),
}
ODD: dict[str, Array] = {
    "lw": drawn(1, 16, 4),
    "lr": drawn(1, 16, 4, seed=1),
    "lv": drawn(4, 5),
    "wq": drawn(6, 4, seed=1),
    "wk": drawn(6, 4, seed=2),
    "wv": drawn(6, 4, seed=3),
    "first": np.array([0]),
    "first1": np.array([1]),
    "yes": np.array(True),
    "v1": drawn(6, 5),
}


def refused(form: str) -> onnx.ModelProto:
    """The model that must be refused."""
    body, inputs, _ = REFUSED[form]
    return written(body, inputs=inputs, domains=', "com.acme": 1', **ODD)


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_explained_is_refused_with_all_its_gaps(form: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        onnx_clrp.convert(refused(form), input_range=RANGE)
    assert {name: operator for name, operator, _ in caught.value.gaps} == REFUSED[form][2]
    for name, operator, reason in caught.value.gaps:
        assert reason
        assert any(
            name in line and operator in line and reason in line
            for line in str(caught.value).splitlines()
        )


@pytest.mark.parametrize("form", REFUSED)
def test_the_command_writes_nothing_of_a_model_that_is_refused(form: str, tmp_path: Path) -> None:
    model = saved(tmp_path, refused(form))
    outcome = run("convert", model, tmp_path / "out.onnx", "--input-range", "-1,1")
    assert outcome.status == 1
    assert all(name in outcome.err for name in REFUSED[form][2])
    assert "Traceback" not in outcome.err
    assert sorted(tmp_path.iterdir()) == [model]
