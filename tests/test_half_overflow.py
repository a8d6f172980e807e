"""A model in float16 as it runs on a device that has float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from test_quantised import distance

from onnx_clrp import Explainer, runtime

Array = np.ndarray[Any, Any]


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
