"""One network from both of PyTorch's exporters, in the opsets of eight years: the same map."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_structures import RANGE, assert_near, pictures

from onnx_clrp import Explainer

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn
from torch.nn import functional

# The older exporter warns of sizes that it takes for constants, of what it does not fold, and that
# Upsample is not always what Resize is; by a factor of two, nearest, it is.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are trying to export the model with onnx:UserWarning"),
]

BATCH = pictures(3, 3, 20, 18)


class Odds(nn.Module):
    """What exporters write in different ways: views, gates, shuffles, pads, resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.slopes = nn.PReLU(8)
        self.group = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8 * 5 * 5, 6)

    def forward(self, x: Any) -> Any:
        x = functional.hardswish(self.norm(self.stem(x)))
        gate = self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1))))
        x = x * functional.hardsigmoid(gate)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        a, b = self.deep(x).chunk(2, dim=1)
        x = self.slopes(torch.cat([b, functional.silu(a)], dim=1)) + x
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        x = functional.max_pool2d(functional.pad(x, [1, 0, 0, 1]), 3, stride=2, ceil_mode=True)
        x = functional.gelu(self.group(x))
        x = functional.avg_pool2d(x, 2, stride=2, padding=1, count_include_pad=False)
        x = x[:, :, :5, :5].flip(1)
        return functional.log_softmax(self.head(x.reshape(x.size(0), -1)), dim=1)


@pytest.fixture(scope="module")
def network() -> Any:
    """The network with statistics and biases that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = Odds().eval()
        for name, values in [*made.named_parameters(), *made.named_buffers()]:
            if "running_var" in name:
                values.data.uniform_(0.5, 2)
            elif any(part in name for part in ("running_mean", "norm.w", "group.w", "bias")):
                values.data.normal_()
    return made


def exported(network: Any, opset: int, dynamo: bool, folder: Path, opened: bool) -> onnx.ModelProto:
    """The network as an ONNX model of that opset."""
    example = torch.from_numpy(BATCH[:2])
    options: dict[str, Any] = {"opset_version": opset, "input_names": ["x"]}
    if opened and dynamo:
        options["dynamic_shapes"] = {"x": {0: torch.export.Dim("batch")}}
    elif opened:
        options["dynamic_axes"] = {"x": {0: "batch"}}
    if dynamo:
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False, **options)
        program.save(str(folder / "model.onnx"))
        return onnx.load(folder / "model.onnx")
    buffer = io.BytesIO()
    torch.onnx.export(network, (example,), buffer, dynamo=False, **options)
    return onnx.load_model_from_string(buffer.getvalue())


def maps(proto: onnx.ModelProto) -> Any:
    """The signed maps of three classes."""
    explainer = Explainer(proto, device="cpu", input_range=RANGE, signed=True)
    return explainer.explain(BATCH, [0, 2, 5])


@pytest.fixture(scope="module")
def usual(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The maps of the usual export."""
    return maps(exported(network, 17, False, tmp_path_factory.mktemp("usual"), True))


def test_the_logits_are_those_of_the_network(network: Any, usual: Any) -> None:
    with torch.no_grad():
        wanted = network(torch.from_numpy(BATCH)).numpy()
    shifted = usual.logits - np.log(np.exp(usual.logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(shifted, wanted, atol=1e-4)


OLDER = [(opset, False) for opset in (10, 11, 12, 13, 14, 15, 16, 17, 18, 20)]
NEWER = [(opset, True) for opset in (18, 19, 20, 21, 22, 23, 24)]
ALWAYS = {(10, False), (13, False), (20, True)}
"""Those that every run tries."""

EXPORTS = [
    pytest.param(opset, dynamo, opened, marks=[] if quick and opened else pytest.mark.slow)
    for opset, dynamo in OLDER + NEWER
    for quick in [(opset, dynamo) in ALWAYS]
    for opened in (True, False)
]


@pytest.mark.parametrize(("opset", "dynamo", "opened"), EXPORTS)
def test_every_export_means_the_same(
    network: Any, usual: Any, opset: int, dynamo: bool, opened: bool, tmp_path: Path
) -> None:
    found = maps(exported(network, opset, dynamo, tmp_path, opened))
    assert_near(found.logits, usual.logits)
    assert_near(found.relevance, usual.relevance)
