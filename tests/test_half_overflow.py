"""Float16 that overflows: squares are kept from it, and what overflows all the same is told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from test_quantised import distance

from onnx_clrp import Explainer, convert, runtime

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

    def opened(proto: onnx.ModelProto, *args: Any, **options: Any) -> tuple[Any, str]:
        session, device = really(proto, *args, **options)
        models[id(session)] = proto
        return session, device

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
