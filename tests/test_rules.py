"""Every registered rule against the slow float64 reference of its operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from reference import operators as reference
from reference.cases import CASES, Case

from onnx_clrp import UnsupportedError
from onnx_clrp.rules import operators
from onnx_clrp.testing import redistribute

MINE = [case for case in CASES if case.op_type in operators()]
TARGETS = 2
GAPS = {
    "conv-2d-same-upper": "auto_pad",
    "gemm-left": "its weights depend on the input",
    "gemm-left-transposed": "its weights depend on the input",
    "gemm-first-left": "its weights depend on the input",
    "matmul-broadcast-data": "one that copies",
    "matmul-vector-weight": "a product with a vector",
    "mul-mixed": "both operands depend on the input",
    "mul-channel": "both operands depend on the input",
    "mul-rank": "both operands depend on the input",
    "maxpool-2d-no-late-start": "starts a window in the padding",
    "reducemax-all": "it reduces over the batch axis",
    "slice-dynamic": "is not known",
    "gather-matrix": "no constant list",
}
"""Cases that the package refuses, by what it says."""


def test_every_registered_operator_has_a_reference() -> None:
    assert set(operators()) <= reference.OPERATORS


def test_every_registered_operator_has_a_case() -> None:
    assert set(operators()) <= {case.op_type for case in CASES}


def forward(case: Case) -> list[np.ndarray]:
    """The case's outputs in float64."""
    return reference.forward(
        case.op_type, case.inputs, case.attributes, data=case.data, outputs=case.outputs
    )


def one_node_model(case: Case) -> onnx.ModelProto:
    """The case as a model: its data are inputs, all else is an initializer."""
    names = ["" if v is None else f"in{i}" for i, v in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op_type, names, outputs, name="it", **case.attributes)

    kind = case.attributes.get("to", TensorProto.FLOAT)

    def info(name: str, value: np.ndarray, kind: int) -> onnx.ValueInfoProto:
        shape = [f"{name}_{a}" for a in range(value.ndim)] if case.dynamic else value.shape
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [node],
        "case",
        [
            info(names[i], v, helper.np_dtype_to_tensor_dtype(v.dtype))
            for i, v in enumerate(case.inputs)
            if i in case.data
        ],
        [info(name, y, kind) for name, y in zip(outputs, forward(case), strict=True)],
        [
            numpy_helper.from_array(np.asarray(v), names[i])
            for i, v in enumerate(case.inputs)
            if v is not None and i not in case.data
        ],
    )
    opset = [helper.make_opsetid("", case.opset)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def relevance_for(case: Case) -> list[np.ndarray]:
    """Seeded relevance `[k, *y.shape]` for each output; halves, so that float32 holds it."""
    rng = np.random.default_rng(3)
    return [rng.integers(-6, 7, (TARGETS, *y.shape)) / 2 for y in forward(case)]


def expected(case: Case, relevance: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The reference's answer for each target, stacked."""
    per_target = [
        reference.redistribute(
            case.op_type,
            case.inputs,
            case.attributes,
            [r[k] for r in relevance],
            data=case.data,
            rules=case.rules,
            bounds=case.bounds,
        )
        for k in range(TARGETS)
    ]
    return {f"in{i}": np.stack([answer[i] for answer in per_target]) for i in case.data}


def bounds_of(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The case's own bounds; else of non-negative data just that, for the short form of z⁺."""
    if case.bounds is not None:
        return {f"in{i}": case.bounds for i in case.data}
    half_line = (np.zeros(()), np.full((), np.inf))
    return {f"in{i}": half_line for i in case.data if (case.inputs[i] >= 0).all()}


def found(case: Case, relevance: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The package's answer."""
    return redistribute(
        one_node_model(case),
        {f"in{i}": case.inputs[i] for i in case.data},
        {f"out{i}": r for i, r in enumerate(relevance)},
        rules=case.rules,
        bounds=bounds_of(case),
    )


@pytest.mark.parametrize("case", [c for c in MINE if c.id not in GAPS], ids=lambda case: case.id)
def test_rule_agrees_with_its_reference(case: Case) -> None:
    relevance = relevance_for(case)
    answer = found(case, relevance)
    for name, want in expected(case, relevance).items():
        scale = np.abs(want).max() or 1.0
        np.testing.assert_allclose(answer[name], want, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", [c for c in MINE if c.id in GAPS], ids=lambda case: case.id)
def test_what_a_rule_cannot_do_is_said(case: Case) -> None:
    with pytest.raises(UnsupportedError, match=GAPS[case.id]):
        found(case, relevance_for(case))
