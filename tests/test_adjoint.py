"""The adjoint of a convolution: by whatever operator, it is that of float64 autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_clrp import Explainer, convert

# kernel, channels in and out, groups, and what differs from the operator's defaults; the size
CASES: dict[str, tuple[tuple[int, ...], int, int, int, dict[str, Any], tuple[int, ...]]] = {
    "1x1": ((1, 1), 16, 32, 1, {}, (5, 6)),
    "3x3": ((3, 3), 8, 16, 1, {"pads": [1, 1, 1, 1]}, (5, 6)),
    "3x3 without pads": ((3, 3), 8, 16, 1, {}, (5, 6)),
    "uneven pads": ((3, 3), 8, 16, 1, {"pads": [0, 1, 2, 0]}, (5, 6)),
    "pads beyond the kernel": ((2, 2), 8, 16, 1, {"pads": [2, 2, 2, 2]}, (5, 6)),
    "dilated": ((3, 2), 8, 16, 1, {"pads": [2, 1, 2, 1], "dilations": [2, 3]}, (7, 8)),
    "to few channels": ((3, 3), 3, 16, 1, {"pads": [1, 1, 1, 1]}, (5, 6)),
    "of odd channels": ((3, 3), 8, 15, 1, {"pads": [1, 1, 1, 1]}, (5, 6)),
    "strides": ((3, 3), 8, 16, 1, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, (6, 7)),
    "strides along one axis": ((3, 3), 8, 16, 1, {"strides": [1, 2]}, (6, 7)),
    "groups": ((3, 3), 16, 32, 2, {"pads": [1, 1, 1, 1]}, (5, 6)),
    "depthwise": ((3, 3), 6, 6, 6, {"pads": [1, 1, 1, 1]}, (5, 6)),
    "depthwise, dilated": ((5, 3), 6, 6, 6, {"dilations": [1, 2], "pads": [2, 2, 2, 2]}, (7, 8)),
    "depthwise, more out than in": ((3, 3), 6, 12, 6, {"pads": [1, 1, 1, 1]}, (5, 6)),
    "depthwise with strides": ((3, 3), 6, 6, 6, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, (6, 7)),
    "depthwise with large windows": (
        (5, 4),
        *(6, 6, 6, {"pads": [2, 1, 2, 2], "strides": [2, 3]}, (34, 35)),
    ),
    "depthwise on a large plane": (
        (3, 3),
        *(6, 6, 6, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, (34, 35)),
    ),
    "depthwise with gaps": ((1, 2), 6, 6, 6, {"strides": [2, 3]}, (7, 8)),
    "depthwise along one axis": ((3,), 6, 6, 6, {"pads": [0, 1], "strides": [2]}, (9,)),
    "one axis": ((3,), 8, 16, 1, {"pads": [1, 0]}, (9,)),
    "three axes": ((2, 3, 2), 8, 16, 1, {"pads": [0, 1, 1, 1, 1, 0]}, (4, 5, 3)),
    "same upper": ((2, 4), 8, 16, 1, {"auto_pad": "SAME_UPPER"}, (5, 6)),
    "same lower": ((2, 4), 8, 16, 1, {"auto_pad": "SAME_LOWER"}, (5, 6)),
}


def model(case: str, *, known: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A convolution and a fully connected layer over it, of open or known height and width."""
    kernel, channels, m, group, attributes, size = CASES[case]
    rng = np.random.default_rng(len(case))
    weights = {"w": rng.normal(size=(m, channels // group, *kernel)).astype(np.float32)}
    n = len(kernel)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], group=group, **attributes),
        helper.make_node("Relu", ["y"], ["a"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["p"], keepdims=0),
        helper.make_node("Gemm", ["p", "v"], ["logits"]),
    ]
    weights["v"] = rng.normal(size=(m, 3)).astype(np.float32)
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    axes = np.arange(2, n + 2, dtype=np.int64)
    initializers.append(numpy_helper.from_array(axes, "axes"))
    shape = ["batch", channels, *(size if known else [f"d{i}" for i in range(n)])]
    graph = helper.make_graph(
        nodes,
        "adjoint",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        initializers,
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), weights


def autograd(case: str, weights: dict[str, np.ndarray], x: np.ndarray, target: int) -> np.ndarray:
    """The gradient of a score, in float64."""
    kernel, _, _, group, attributes, _ = CASES[case]
    n = len(kernel)
    pads = attributes.get("pads", [0] * (2 * n))
    if "auto_pad" in attributes:
        small, large = [(k - 1) // 2 for k in kernel], [k // 2 for k in kernel]
        upper = attributes["auto_pad"] == "SAME_UPPER"
        pads = small + large if upper else large + small
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    sides = [side for i in reversed(range(n)) for side in (pads[i], pads[i + n])]
    run = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
    made = run(
        torch.nn.functional.pad(leaf, sides),
        torch.tensor(weights["w"], dtype=torch.float64),
        stride=attributes.get("strides", [1] * n),
        dilation=attributes.get("dilations", [1] * n),
        groups=group,
    )
    pooled = made.relu().mean(dim=tuple(range(2, n + 2)))
    (pooled @ torch.tensor(weights["v"], dtype=torch.float64))[:, target].sum().backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


@pytest.mark.parametrize("known", [True, False], ids=["known size", "open size"])
@pytest.mark.parametrize("case", CASES)
def test_the_adjoint_is_that_of_autograd(case: str, known: bool) -> None:
    proto, weights = model(case, known=known)
    _, channels, *_, size = CASES[case]
    x = np.random.default_rng(1).normal(size=(2, channels, *size)).astype(np.float32)
    explainer = Explainer(proto, device="cpu", method="gradient", input_range=(-np.inf, np.inf))
    found = explainer.explain(x, [0, 2]).relevance
    for k, target in enumerate((0, 2)):
        wanted = autograd(case, weights, x, target)
        assert np.abs(found[:, k] - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("case", "operator"),
    [
        *((case, "Conv") for case in ("1x1", "3x3", "uneven pads", "dilated", "depthwise")),
        *((case, "Conv") for case in ("depthwise with strides", "depthwise with large windows")),
        *((case, "ConvTranspose") for case in ("to few channels", "of odd channels", "strides")),
        ("pads beyond the kernel", "ConvTranspose"),
        ("depthwise on a large plane", "ConvTranspose"),
        ("depthwise with gaps", "ConvTranspose"),
    ],
)
def test_a_convolution_takes_its_place_where_that_is_faster(case: str, operator: str) -> None:
    made = convert(model(case, known=True)[0], method="gradient", input_range=(-np.inf, np.inf))
    added = [n.op_type for n in made.graph.node if n.name.startswith("relevance/")]
    assert [op for op in added if op.startswith("Conv")] == [operator]
