"""Gradients of a vision transformer: relevance has no rule for attention, gradients pass it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_clrp
from onnx_clrp import UnsupportedError

torch = pytest.importorskip("torch", reason="the network is PyTorch's")
models = pytest.importorskip("torchvision.models", reason="the network is torchvision's")

from networks_support import EXPORTERS, exported

SIDE = 32
TARGET = 3


@pytest.fixture(scope="module")
def transformer() -> torch.nn.Module:
    """Two blocks of two heads, on 16 patches and the class token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
        net = models.VisionTransformer(SIDE, 8, num_classes=10, **sizes)
        torch.nn.init.normal_(net.heads.head.weight)  # it starts at zero
    return net.eval()  # with weights that take gradients, or a fused operator is exported


@pytest.fixture(scope="module", params=EXPORTERS)
def model(request: pytest.FixtureRequest, transformer: torch.nn.Module) -> onnx.ModelProto:
    return exported(transformer, np.zeros((1, 3, SIDE, SIDE), np.float32), request.param)


def test_the_gradient_of_a_vision_transformer_is_autograds(
    model: onnx.ModelProto, transformer: torch.nn.Module
) -> None:
    x = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)
    explainer = onnx_clrp.Explainer(model, method="gradient", input_range=(0, 1))
    found = explainer.explain(x, TARGET).relevance[:, 0]
    wide = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    transformer.double()(wide)[:, TARGET].sum().backward()
    transformer.float()
    assert wide.grad is not None
    want = wide.grad.numpy()
    assert np.linalg.norm(found - want) <= 1e-5 * np.linalg.norm(want)


def test_relevance_refuses_attention_by_name(model: onnx.ModelProto) -> None:
    with pytest.raises(UnsupportedError, match=r"MatMul .*both operands depend on the input"):
        onnx_clrp.Explainer(model, method="lrp", input_range=(0, 1))
