"""Models as exporters write them, and comparing two that mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from test_structures import BODY, PICTURES, RANGE, WEIGHTS, assert_near

from onnx_clrp import Explainer, convert
from onnx_clrp.runtime import Result
from onnx_clrp.sessions import open_session

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

TARGETS = [0, 3]


def written(
    body: str = BODY,
    *,
    opset: int = 18,
    ir: int = 8,
    inputs: str = "float[N,3,8,8] x",
    outputs: str = "float[N,5] logits",
    domains: str = "",
    functions: str = "",
    listed: bool = False,
    **weights: Array,
) -> onnx.ModelProto:
    """A model of these nodes and functions, with the weights that they name.

    Args:
        body: the nodes in ONNX's own text.
        opset: that of its operators.
        ir: that of its form.
        inputs: their types and names, in ONNX's own text.
        outputs: likewise.
        domains: further operator sets, in ONNX's own text.
        functions: local functions, in ONNX's own text.
        listed: whether every initializer is an input too, as it had to be up to IR 3.
        weights: beside those of `WEIGHTS`.
    """
    header = f'<ir_version: {ir}, opset_import: ["": {opset}{domains}]>'
    text = f"{header} net ({inputs}) => ({outputs}) {{ {body} }} {functions}"
    proto: onnx.ModelProto = parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    for name, value in {**WEIGHTS, **weights}.items():
        if name in read:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    if listed:
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in proto.graph.initializer
        )
    return proto


def answers(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """The model's own outputs by name."""
    session = open_session(proto, "cpu").session
    names = [y.name for y in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_outputs_kept(
    proto: onnx.ModelProto, batch: Array, made: onnx.ModelProto | None = None, **options: Any
) -> None:
    """The explainer answers just what the model answers."""
    made = made or convert(proto, **{"input_range": RANGE, "method": "lrp", **options})
    feeds = {options.get("input") or proto.graph.input[0].name: batch}
    before = answers(proto, feeds)
    after = answers(made, {**feeds, "target": np.zeros((len(batch), 1), np.int64)})
    for key, value in before.items():
        for a, b in zip(_arrays(after[key]), _arrays(value), strict=True):
            if b.dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
            else:
                np.testing.assert_array_equal(a, b)


def _arrays(output: Any) -> list[Array]:
    """What an output holds: a tensor, or the dictionaries of a ZipMap, as arrays."""
    if isinstance(output, np.ndarray):
        return [output]
    return [np.array([*entry.items()], np.float64) for entry in output]


def explained(
    proto: onnx.ModelProto, batch: Array = PICTURES, target: Any = TARGETS, **options: Any
) -> Result:
    """The signed explanation of two classes."""
    settings = {"input_range": RANGE, "signed": True, **options}
    return Explainer(proto, device="cpu", **settings).explain(batch, target)


_explained: dict[tuple[bytes, bytes, str], Result] = {}


def explained_once(proto: onnx.ModelProto, batch: Array, **options: Any) -> Result:
    """The same, remembered: many models are compared with the same plain one."""
    key = (proto.SerializeToString(), batch.tobytes(), repr(options))
    if key not in _explained:
        _explained[key] = explained(proto, batch, **options)
    return _explained[key]


def assert_means(
    proto: onnx.ModelProto,
    plain: onnx.ModelProto,
    batch: Array = PICTURES,
    *,
    plain_batch: Array | None = None,
    plain_options: Mapping[str, Any] | None = None,
    move: Callable[[Floats], Floats] = lambda relevance: relevance,
    methods: Sequence[str] = ("lrp", "clrp2"),
    **options: Any,
) -> None:
    """Both models have the same logits and relevance, and the first keeps its outputs.

    Args:
        proto: the model in question.
        plain: the same in plain form.
        batch: what the first is explained with.
        plain_batch: what the other is explained with, where it takes another form.
        plain_options: how the other is explained, where that differs.
        move: brings the other's relevance to the form of the first's input.
        methods: by which.
        options: how the model is explained.
    """
    other = batch if plain_batch is None else plain_batch
    for method in methods:
        settings = {"input_range": RANGE, "signed": True, **options}
        made = convert(proto, method=method, **settings)
        if method == methods[0]:
            assert_outputs_kept(proto, batch, made, **options)
        found = Explainer(made, device="cpu").explain(batch, TARGETS)
        plainly = {**options, "method": method, **(plain_options or {})}
        wanted = explained_once(plain, other, **plainly)
        assert_near(found.logits, wanted.logits)
        assert_near(found.relevance, move(wanted.relevance))
