"""Models in float16, bfloat16 and float64: the same answers, and relevance in float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantised_support import BODIES, CLASSES, RANGE, SIZE, Array, pictures, written
from reference.quantised import explain
from reference.quantised_run import session
from test_quantised import METHODS, TARGETS, answers, assert_agrees, distance, one_thread

from onnx_clrp import Explainer, ModelError, UsageError, convert
from onnx_clrp.check import check

__all__ = ["one_thread"]  # a fixture that holds for this file too

F16, BF16, F32, F64 = (
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
)
NUMPY = {F16: np.float16, F32: np.float32, F64: np.float64}

DENSE = """
    f = Flatten(x) h = MatMul(f, u1) a = Add(h, c1) r = Relu(a) n = MatMul(r, u2)
    b = Sub(n, c2) t = Tanh(b) logits = Gemm<transB=1, alpha=-0.5>(t, w5, b5)
"""
"""Fully connected, with weights of both signs and a negative alpha."""


def float_network(name: str, *, opset: int = 18, **weights: Array) -> onnx.ModelProto:
    """A small network in float32, of an opset that explainers keep.

    In another opset ONNX Runtime rounds the same float16 nodes at other places.
    """
    return written(BODIES[name], opset=opset, **weights)


# --- float32 models in another type -----------------------------------------------------------


def retyped(model: onnx.ModelProto, to: int, *, casts: bool = False) -> onnx.ModelProto:
    """The model with all its numbers in another type; with casts, its ends stay float32."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.initializer[:], made.graph.value_info[:]
    made.graph.initializer.extend(converted(t, to) for t in model.graph.initializer)
    for node in made.graph.node:
        if node.op_type == "Constant":
            (attribute,) = node.attribute
            value = converted(numpy_helper.from_array(np.float32(attribute.f)), to)
            attribute.CopyFrom(helper.make_attribute("value", value))
    (x,), (y,) = made.graph.input, made.graph.output
    if casts:
        between_casts(made.graph, to)
    else:
        x.type.tensor_type.elem_type = y.type.tensor_type.elem_type = to
    onnx.checker.check_model(made, full_check=True)
    return made


def converted(tensor: onnx.TensorProto, to: int) -> onnx.TensorProto:
    """A float constant in another type."""
    value = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(to))
    return numpy_helper.from_array(value, tensor.name)


def between_casts(graph: onnx.GraphProto, to: int) -> None:
    """Cast to another type behind the input and back in front of the output."""
    (x,), (y,) = graph.input, graph.output
    for node in graph.node:
        node.input[:] = [f"{n} inside" if n == x.name else n for n in node.input]
        node.output[:] = [f"{n} inside" if n == y.name else n for n in node.output]
    graph.node.insert(0, helper.make_node("Cast", [x.name], [f"{x.name} inside"], to=to))
    graph.node.append(helper.make_node("Cast", [f"{y.name} inside"], [y.name], to=F32))


def in_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every tensor in bfloat16, the nodes in float32 between casts.

    Of all that a classifier needs, ONNX Runtime's CPU provider has just data movement in bfloat16.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.initializer[:], made.graph.node[:]
    made.graph.initializer.extend(converted(t, BF16) for t in model.graph.initializer)
    for tensor in made.graph.initializer:
        cast = helper.make_node("Cast", [tensor.name], [f"{tensor.name} as float"], to=F32)
        made.graph.node.append(cast)
    for node in model.graph.node:
        made.graph.node.extend(around_bfloat16(node, made.graph.input[0].name))
    cast = helper.make_node("Cast", ["logits in bfloat16"], ["logits"], to=F32)
    made.graph.node.append(cast)
    onnx.checker.check_model(made, full_check=True)
    return made


def around_bfloat16(node: onnx.NodeProto, source: str) -> Iterator[onnx.NodeProto]:
    """A node in float32 and the casts of its result; movement in bfloat16 itself."""
    (y,) = node.output
    kept = onnx.NodeProto()
    kept.CopyFrom(node)
    if node.op_type in ("Concat", "Flatten"):
        kept.input[:] = [f"{name} in bfloat16" for name in node.input]
        kept.output[:] = [f"{y} in bfloat16"]
        yield kept
    else:
        kept.input[:] = [name if name == source else f"{name} as float" for name in node.input]
        kept.output[:] = [f"{y} exactly"]
        yield kept
        yield helper.make_node("Cast", [f"{y} exactly"], [f"{y} in bfloat16"], to=BF16)
    yield helper.make_node("Cast", [f"{y} in bfloat16"], [f"{y} as float"], to=F32)


def dense(to: int, *, casts: bool = False) -> onnx.ModelProto:
    """The fully connected network in a type."""
    rng = np.random.default_rng(3)
    inputs = 3 * SIZE * SIZE
    sizes = {"u1": (inputs, 24), "u2": (24, 16), "c1": (24,), "c2": (16,)}
    drawn = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in sizes.items()
    }
    return retyped(written(DENSE, opset=18, **drawn), to, casts=casts)


def halves(n: int, seed: int = 0, *, single: bool = False) -> Array:
    """Random pictures of numbers that float16 can hold, in float16 or in float32.

    Whether a Cast to float16 rounds what is calculated in float32 behind it is up to the runtime:
    ONNX Runtime's CPU provider leaves it out. With these numbers it makes no difference.
    """
    drawn = pictures(n, seed).astype(np.float16)
    return drawn.astype(np.float32) if single else drawn


# --- float16 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("casts", [False, True], ids=["throughout", "between casts"])
@pytest.mark.parametrize("name", BODIES)
def test_float16_is_explained_in_float32(name: str, casts: bool) -> None:
    proto = retyped(float_network(name), F16, casts=casts)
    x = halves(2, single=casts)
    for method in METHODS:
        assert_agrees(proto, x, method)


@pytest.mark.parametrize("casts", [False, True], ids=["throughout", "between casts"])
@pytest.mark.parametrize("name", BODIES)
def test_float16_keeps_its_answers_when_optimised(name: str, casts: bool) -> None:
    proto = retyped(float_network(name), F16, casts=casts)
    x = halves(8, 7, single=casts)
    before = answers(proto, x, optimised=True)["logits"]
    made = convert(proto, input_range=RANGE, target="top:2")
    after = answers(made, x, optimised=True)["logits"]
    np.testing.assert_array_equal(after, before, strict=True)


def test_float16_is_conserved() -> None:
    proto = retyped(float_network("residual"), F16)
    x = halves(1)
    report = check(proto, x, input_range=RANGE, target=1, method="lrp")
    assert report.faults == []
    wanted = explain(proto, x, [1], method="lrp", bounds=RANGE)
    assert report.absorbed == pytest.approx(wanted.absorbed[0] / wanted.seed[0], abs=1e-4)


def test_an_explainer_of_float16_answers_in_its_types() -> None:
    proto = retyped(float_network("residual"), F16)
    x = halves(2)
    result = Explainer(proto, device="cpu", input_range=RANGE, signed=True).explain(x, [1, 3])
    assert result.relevance.dtype == np.float32
    assert result.relevance.shape == (2, 2, *x.shape[1:])
    logits = answers(proto, x, optimised=True)["logits"]
    # What is explained may be the logit as it was before it was rounded to float16.
    rounding = float(np.finfo(np.float16).eps)
    np.testing.assert_allclose(result.logits, logits, rtol=rounding)
    np.testing.assert_array_equal(result.seed, result.logits[:, [1, 3]])


def test_float16_changes_a_map_little() -> None:
    x = halves(2, single=True)
    single, half = (
        explain(m, x, TARGETS, method="lrp", bounds=RANGE).relevance
        for m in (
            float_network("gated"),
            retyped(float_network("gated"), F16, casts=True),
        )
    )
    assert 0 < distance(half, single) < 1e-2


def test_tiny_relevance_does_not_vanish() -> None:
    """Relevance of a small logit lies below what float16 can hold."""
    weights = {"w5": np.full((CLASSES, 16), 3e-5, np.float32)}
    weights["w5"][:, ::2] *= -1
    proto = retyped(float_network("residual", b5=np.zeros(CLASSES, np.float32), **weights), F16)
    assert_agrees(proto, halves(2), "lrp")


# --- bfloat16 ---------------------------------------------------------------------------------


MADE_AT_LOAD = {
    "identity": "t = Identity(w) y = Gemm<transB=1>(x, t)",
    "cast": "t = Cast<to=10>(single) y = Gemm<transB=1>(x, t)",
    "transpose": "t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t)",
    "reshape": "t = Reshape(w, sizes) y = Gemm<transB=1>(x, t)",
}
"""Ways in which exporters put the same weights behind a node that is run once, at load."""


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant"])
@pytest.mark.parametrize("features", [6, 60])
@pytest.mark.parametrize("form", MADE_AT_LOAD)
def test_weights_made_at_load_are_those_that_are_stored(
    form: str, features: int, constant: bool
) -> None:
    x = np.random.default_rng(8).standard_normal((2, features)).astype(np.float16)
    weights = np.random.default_rng(7).standard_normal((5, features)).astype(np.float16)
    # Float32 weights that the model itself rounds to these, where it has a Cast.
    tensors = {"w": weights, "single": weights * np.float32(1 + 2**-13)}
    made = linear_in_float16(MADE_AT_LOAD[form], tensors, constant=constant)
    plain = linear_in_float16("y = Gemm<transB=1>(x, w)", {"w": weights})
    found, want = (
        Explainer(m, device="cpu", method="clrp2", input_range=(-9, 9), signed=True).explain(x, 0)
        for m in (made, plain)
    )
    assert distance(found.relevance, want.relevance) < 1e-6


def linear_in_float16(
    body: str, tensors: dict[str, Array], *, constant: bool = False
) -> onnx.ModelProto:
    """A linear classifier of 5 classes; its weights as initializers or as Constant nodes."""
    features = tensors["w"].shape[1]
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float16[N, {features}] x) => (float16[N, 5] y) {{ {body} }}"""
    )
    sizes = numpy_helper.from_array(np.array([5, features]), "sizes")
    model.graph.initializer.append(sizes)
    for name, values in tensors.items():
        tensor = numpy_helper.from_array(values, name)
        if constant:
            model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        else:
            model.graph.initializer.append(tensor)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("name", BODIES)
def test_bfloat16_between_casts_is_explained(name: str) -> None:
    proto = in_bfloat16(constants_stored(float_network(name)))
    for method in METHODS:
        assert_agrees(proto, pictures(2), method)


@pytest.mark.parametrize("name", BODIES)
def test_bfloat16_keeps_its_answers_when_optimised(name: str) -> None:
    proto, x = in_bfloat16(constants_stored(float_network(name))), pictures(8, seed=7)
    before = answers(proto, x, optimised=True)["logits"]
    after = answers(convert(proto, input_range=RANGE, target=0), x, optimised=True)["logits"]
    np.testing.assert_array_equal(after, before, strict=True)


def constants_stored(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with initializers in the place of Constant nodes."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = numpy_helper.from_array(np.float32(node.attribute[0].f), node.output[0])
            made.graph.initializer.append(value)
        else:
            made.graph.node.append(node)
    return made


def test_a_bfloat16_model_that_cannot_run_is_one_clear_error() -> None:
    """There is no Conv of bfloat16 for the CPU; the model itself does not load there."""
    proto = retyped(float_network("residual", opset=22), BF16, casts=True)
    with pytest.raises(Exception, match="Conv"):
        session(proto, optimised=True)
    with pytest.raises(ModelError, match="Conv") as caught:
        Explainer(proto, device="cpu", input_range=RANGE)
    assert "\n" not in str(caught.value)


def test_a_bfloat16_input_is_refused_with_the_cure() -> None:
    proto = retyped(float_network("residual", opset=22), BF16)
    with pytest.raises((ModelError, UsageError), match="put a Cast from float in front"):
        convert(proto, input_range=RANGE)


# --- float64 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("to", "casts"),
    [(F32, False), (F16, False), (F16, True), (F64, False), (F64, True)],
    ids=["float32", "float16", "float16 between casts", "float64", "float64 between casts"],
)
def test_fully_connected_networks_of_every_type(to: int, casts: bool, method: str) -> None:
    x = halves(3).astype(np.float32 if casts else NUMPY[to])
    assert_agrees(dense(to, casts=casts), x, method, target=[0, 2, 4])


def test_float64_is_conserved() -> None:
    report = check(dense(F64), pictures(1).astype(np.float64), input_range=RANGE, method="lrp")
    assert report.faults == []
    assert set(report.outputs.values()) == {0.0}
