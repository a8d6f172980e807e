"""Float16 that overflows: squares are kept from it, and what overflows all the same is told of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import run
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from test_quantised import distance

from onnx_clrp import Explainer, convert, runtime
from onnx_clrp.errors import HalfOverflowError
from onnx_clrp.model import metadata, part_for
from onnx_clrp.sessions import Opened

Array = np.ndarray[Any, Any]

FEATURES, HIDDEN, CLASSES = 6, 8, 4

HEAD = "logits = MatMul(y, v)"

NORMS = {
    "layer norm": "m = ReduceMean<axes=[-1]>(h) c = Sub(h, m) q = Pow(c, two)"
    " v0 = ReduceMean<axes=[-1]>(q) e = Add(v0, tiny) s = Sqrt(e) y = Div(c, s)",
    "rms norm": "q = Mul(h, h) v0 = ReduceMean<axes=[-1]>(q) e = Add(v0, tiny) s = Sqrt(e)"
    " r = Reciprocal(s) y = Mul(h, r)",
    "power": "q = Pow(h, two) v0 = ReduceMean<axes=[-1]>(q) e = Add(v0, tiny) r = Pow(e, minus)"
    " y = Mul(h, r)",
    "sum of squares": "q = ReduceSumSquare<axes=[-1]>(h) s = Sqrt(q) y = Div(h, s)",
    "through shapes": "q = Mul(h, h) u0 = Unsqueeze(q, last) v0 = ReduceSum(u0, last)"
    " w0 = Expand(v0, shape) z0 = Squeeze(w0, last) p = ReduceSum(z0, axes) s = Sqrt(p)"
    " y = Div(h, s)",
    "sum of magnitudes": "l = Mul(h, many) a = Abs(l) s = ReduceSum(a, axes) y = Div(h, s)",
}
"""Ways to write a norm of which float16 could not hold the squares, or the sum."""

SWALLOWED = {
    "relu": "b = MatMul(big, falling) r = Relu(b) k = Relu(h) y = Add(k, r)",
    "divisor": "a = Abs(big) d = Add(a, two) y = Div(h, d)",
    "reciprocal": "a = Abs(big) d = Add(a, two) r = Reciprocal(d) y = Mul(h, r)",
    "gate": "b = MatMul(big, small) g = Sigmoid(b) y = Mul(h, g)",
    "clip": "b = MatMul(big, small) k = Clip(b, zero, one) y = Add(h, k)",
}
"""Ways to make something finite of an infinity, other than squares."""


def classifier(body: str) -> onnx.ModelProto:
    """A network whose hidden `h` is in the hundreds; what is `big` overflows for a large input."""
    rng = np.random.default_rng(5)
    positive = np.abs(rng.standard_normal((FEATURES, HIDDEN)))
    values = {
        "u": rng.standard_normal((FEATURES, HIDDEN)) * 300,
        "v": rng.standard_normal((HIDDEN, CLASSES)) / 30,
        "grown": positive * 400 + 400,
        "many": np.array(20.0),
        "falling": -np.abs(rng.standard_normal((HIDDEN, HIDDEN))) / 100,
        "small": rng.standard_normal((HIDDEN, HIDDEN)) * 1e-5,
        "two": np.array(2.0),
        "minus": np.array(-0.5),
        "tiny": np.array(1e-3),
        "zero": np.array(0.0),
        "one": np.array(1.0),
    }
    sizes = {"last": [2], "axes": [-1], "shape": [1, HIDDEN, 1]}
    front = "h = MatMul(x, u)" + ("big = MatMul(x, grown)" if "big" in body else "")
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 13]>
        g (float[N, {FEATURES}] x) => (float[N, {CLASSES}] logits) {{ {front} {body} {HEAD} }}"""
    )
    used = {x for node in model.graph.node for x in node.input}
    tensors = {name: np.asarray(v, np.float32) for name, v in values.items()}
    tensors |= {name: np.asarray(v, np.int64) for name, v in sizes.items()}
    model.graph.initializer.extend(
        numpy_helper.from_array(v, name) for name, v in tensors.items() if name in used
    )
    return model


@pytest.fixture
def in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explainers run in the types that their graphs say, as on a device that has float16.

    ONNX Runtime's CPU provider keeps float32 between most nodes, and does not overflow.
    """
    models: dict[int, onnx.ModelProto] = {}
    really = runtime.open_session

    def opened(proto: onnx.ModelProto, *args: Any, **options: Any) -> Opened:
        made = really(proto, *args, **options)
        models[id(made.session)] = proto
        return made

    def evaluated(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(models[id(session)]).run([*names], {**feeds}))

    monkeypatch.setattr(runtime, "open_session", opened)
    monkeypatch.setattr(runtime, "run", evaluated)


def explainer(body: str, **options: Any) -> Explainer:
    return Explainer(
        classifier(body), device="cpu", input_range=(-100, 100), signed=True, **options
    )


def samples(scale: float = 1.0) -> Array:
    return np.random.default_rng(6).uniform(0.5, 1, (2, FEATURES)).astype(np.float32) * scale


@pytest.mark.usefixtures("in_float16")
@pytest.mark.parametrize("form", NORMS)
def test_norms_that_are_written_out_hold_squares(form: str) -> None:
    x = samples(3)
    wanted, found = (
        explainer(NORMS[form], method="gradient", half=half).explain(x, [0, 2])
        for half in (False, True)
    )
    assert np.abs(found.logits - wanted.logits).max() < 5e-3 * np.abs(wanted.logits).max()
    assert distance(found.relevance, wanted.relevance) < 1e-2


RMS = "q = Mul(h, h) m = ReduceMean<axes=[-1]>(q) s = Sqrt(m) y = Div(h, s) logits = MatMul(y, v)"

SCORES = "k = MatMul(x, u) t = Transpose<perm=[0,2,1]>(k) s = MatMul(x, t)"
ATTENDED = "p = Softmax<axis=-1>(m) a = MatMul(p, x) f = Flatten(a) logits = MatMul(f, v)"

HELD = {
    "types of weights": ("float[N, 6] x", f"h = Add(x, tiny) {RMS}"),
    "pictures in bytes": ("uint8[N, 6] x", f"h = Cast<to=1>(x) {RMS}"),
    "a number of pixels": (
        "float[N, 6, 260, 260] x",
        "r = Relu(x) s = ReduceSum<keepdims=0>(r, planes) n = Shape(x) d = Gather(n, planes)"
        " c = ReduceProd<keepdims=0>(d) k = Cast<to=1>(c) y = Div(s, k) logits = MatMul(y, v)",
    ),
    "norms of weights": (
        "float[N, 6] x",
        "q = Mul(big, big) w = ReduceSum<keepdims=1>(q, rows) s = Sqrt(w) n = Div(big, s)"
        " y = MatMul(x, n) logits = MatMul(y, v)",
    ),
    "a mask that is added": ("float[N, 6, 6] x", f"{SCORES} m = Add(s, mask) {ATTENDED}"),
    "a mask that chooses": ("float[N, 6, 6] x", f"{SCORES} m = Where(seen, s, least) {ATTENDED}"),
    "padding that never wins": (
        "float[N, 6, 4, 4] x",
        "h = Mul(x, tiny) p = Pad(h, border, least)"
        " m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(p)"
        " r = Relu(m) a = GlobalAveragePool(r) f = Flatten(a) logits = MatMul(f, v)",
    ),
}
"""Inputs and bodies that float16 holds if norms and counts stay float32, some with infinities that
are meant."""


@pytest.mark.parametrize("exactly", [False, True], ids=["on a CPU", "in float16"])
@pytest.mark.parametrize("form", HELD)
def test_what_float16_holds_is_not_refused(
    form: str, exactly: bool, request: pytest.FixtureRequest
) -> None:
    if exactly and "Pad" in HELD[form][1]:
        pytest.skip("ONNX's reference evaluator knows no negative pads, by which relevance is cut")
    if exactly:
        request.getfixturevalue("in_float16")
    source, body = HELD[form]
    rng = np.random.default_rng(8)
    floats = {
        "v": rng.uniform(0.1, 1, (36 if "Softmax" in body else 6, CLASSES)),
        "u": rng.standard_normal((6, 6)),
        "big": rng.standard_normal((6, 6)) * 300,
        "tiny": np.array(0.5),
        "mask": np.triu(np.full((6, 6), -np.inf), 1),
        "least": np.array(-np.inf),
    }
    others = {
        "planes": np.array([2, 3]),
        "rows": np.array([0]),
        "border": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "seen": np.tri(6, dtype=bool),
    }
    tensors = {name: np.asarray(v, np.float32) for name, v in floats.items()} | others
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 13]>
        g ({source}) => (float[N, {CLASSES}] logits) {{ {body} }}"""
    )
    read = {x for node in model.graph.node for x in node.input}
    for name, values in tensors.items():
        if name in read:
            tensor = numpy_helper.from_array(values, name)
            typed = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            model.graph.initializer.append(tensor)
            model.graph.value_info.append(typed)  # as PyTorch does
    shape = [2, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = rng.uniform(0, 1, shape).astype(np.float32)
    x = (255 * x).astype(np.uint8) if "uint8" in source else x
    options: dict[str, Any] = {"device": "cpu", "input_range": (0, 255), "method": "gradient"}
    wanted, found = (Explainer(model, half=half, **options).explain(x, 0) for half in (False, True))
    assert np.abs(found.logits - wanted.logits).max() < 5e-3 * np.abs(wanted.logits).max()
    assert distance(found.relevance, wanted.relevance) < 1e-2


POOLED = {
    "the input": "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
    "a norm": "q = Mul(x, x) m = ReduceMean<axes=[1,2,3]>(q) s = Sqrt(m) y = Div(x, s)"
    " p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(y)",
}


@pytest.mark.parametrize("exactly", [False, True], ids=["on a CPU", "in float16"])
@pytest.mark.parametrize("behind", POOLED)
def test_a_maximum_is_found_among_rounded_values(
    behind: str, exactly: bool, request: pytest.FixtureRequest
) -> None:
    """In float32 none of the values would be the maximum of what was rounded to float16."""
    if exactly:
        request.getfixturevalue("in_float16")
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 13]>
        g (float[N, 3, 4, 4] x) => (float[N, 2] logits)
        {{ {POOLED[behind]} f = Flatten(p) logits = MatMul(f, w) }}"""
    )
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((12, 2)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    x = rng.uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)
    options = {"device": "cpu", "input_range": (-1, 1), "method": "gradient"}
    wanted, found = (
        Explainer(model, half=half, **options).explain(x, 0).relevance for half in (False, True)
    )
    assert distance(found, wanted) < 1e-3


def test_nodes_have_their_names_back() -> None:
    model = classifier(NORMS["rms norm"])
    model.graph.node[1].name = "the square"
    made = convert(model, input_range=(-1, 1), half=True)
    names = [node.name for node in made.graph.node if node.op_type in ("Mul", "Sqrt")]
    ours = [name for name in names if not name.startswith("relevance")]
    assert sorted(ours) == ["", "", "the square"]


@pytest.mark.usefixtures("in_float16")
@pytest.mark.parametrize("form", SWALLOWED)
def test_an_infinity_that_comes_to_nothing_is_told_of(form: str) -> None:
    made = explainer(SWALLOWED[form], half=True)
    made.explain(samples(), 0)
    made.logits(samples())
    with pytest.raises(HalfOverflowError, match="without half") as caught:
        made.explain(samples(40), 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(HalfOverflowError, match="without half"):
        made.logits(samples(40))


@pytest.mark.usefixtures("in_float16")
@pytest.mark.parametrize("form", ["g = Sigmoid(big)", "g = Clip(big, zero, one)"])
def test_an_infinity_that_is_as_good_as_any_large_number_does_no_harm(form: str) -> None:
    body, x = f"{form} y = Mul(h, g)", samples(40)
    wanted, found = (explainer(body, half=half).explain(x, 0) for half in (False, True))
    assert distance(found.relevance, wanted.relevance) < 1e-2


def test_where_the_logits_tell_nothing_else_is_looked_at() -> None:
    made = convert(classifier("y = Mul(h, h)"), input_range=(-1, 1), half=True)
    assert "overflow" not in json.loads(metadata(made)["onnx_clrp.names"])
    assert [y.name for y in made.graph.output] == ["logits", "relevance", "relevance_target"]


@pytest.mark.parametrize("half", [False, True])
def test_the_output_is_there_with_half_alone(half: bool) -> None:
    made = convert(classifier(SWALLOWED["relu"]), input_range=(-1, 1), half=half)
    names = json.loads(metadata(made)["onnx_clrp.names"])
    assert ("overflow" in names) == half
    if half:
        part = part_for(made, [names["logits"], names["overflow"]])
        assert len(part.graph.node) < len(made.graph.node) / 2


@pytest.mark.parametrize("output", ["logits", "relevance", "concept", "dual", "at"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_every_output_is_looked_at(
    output: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"method": "clrp1", "parts": True, "at": ["k"]}
    made = explainer("k = Relu(h) y = Mul(k, two)", half=True, **options)
    names = json.loads(metadata(made._made())["onnx_clrp.names"])
    keys = {"concept": "relevance_concept", "dual": "relevance_dual", "at": "relevance_at_0"}
    broken(monkeypatch, names[keys.get(output, output)], value)
    with pytest.raises(HalfOverflowError, match="without half"):
        made.explain(samples(), 0)


def test_the_scores_alone_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    made = explainer("y = Relu(h)", half=True)
    made.logits(samples())
    broken(monkeypatch, "logits", np.inf)
    with pytest.raises(HalfOverflowError, match="without half"):
        made.logits(samples())
    explainer("y = Relu(h)").logits(samples())


def broken(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    """One number of an output is something else."""
    really = runtime.run

    def run_on(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        values = really(session, names, feeds)
        values[list(names).index(name)].flat[0] = value
        return values

    monkeypatch.setattr(runtime, "run", run_on)


# -- the command line --------------------------------------------------------------------------

PICTURES = {"a": 40, "b": 250, "c": 42}
"""How bright each is: what is bright overflows."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, and a model for them whose float16 cannot hold the bright one."""
    inside = tmp_path / "pictures"
    inside.mkdir()
    for name, grey in PICTURES.items():
        Image.new("RGB", (4, 4), (grey, grey, grey)).save(inside / f"{name}.png")
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 3, 4, 4] x) => (float[N, 2] logits)
        <float[2, 48] w, float scale = {1500.0}> {
            s = Mul(x, scale) r = Relu(s) f = Flatten(r) logits = Gemm<transB=1>(f, w)
        }"""
    )
    weights = np.random.default_rng(1).uniform(0.002, 0.004, (2, 48)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


@pytest.mark.usefixtures("in_float16")
@pytest.mark.parametrize("methods", [["lrp"], ["lrp", "gradient"]])
def test_a_picture_that_overflows_fails_alone(folder: Path, methods: list[str]) -> None:
    words = [word for method in methods for word in ("--method", method)]
    model, maps = folder / "model.onnx", folder / "maps"
    options = ["--preset", "raw", "--half", "--json"]
    done = run("explain", model, folder / "pictures", "-o", maps, *options, *words)
    assert done.status == 1, done.err
    told = json.loads(done.out)
    explained = [(Path(row["image"]).stem, row["method"]) for row in told["explanations"]]
    assert explained == [(name, method) for method in methods for name in ("a", "c")]
    bright = repr(str(folder / "pictures" / "b.png"))
    assert len(told["errors"]) == len(methods)
    for error in told["errors"]:
        assert error.startswith(f"image {bright}: float16 is not wide enough")
        assert f"onnx-clrp: {error}" in done.err.splitlines()
    assert len(list(maps.iterdir())) == 2 * len(methods)


@pytest.mark.usefixtures("in_float16")
def test_a_comparison_leaves_out_a_picture_that_overflows(folder: Path) -> None:
    made, out = folder / "explainer.onnx", folder / "out.png"
    words = ["--preset", "raw", "--half", "--method", "lrp", "--target", "0"]
    assert run("convert", folder / "model.onnx", made, *words).status == 0
    done = run("compare", made, folder / "pictures", "-o", out)
    assert done.status == 1
    assert "b.png': float16 is not wide enough" in done.err
    assert out.exists()
