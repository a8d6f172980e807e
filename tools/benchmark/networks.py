"""The networks that are measured: torchvision's, with seeded weights, and as ONNX."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import torch
from networks_support import CALIBRATION, exported
from numpy.typing import NDArray
from reference.networks import BOUNDS, make, photographs
from torch import Tensor, nn

_SEED = 5

LOW, HIGH = (torch.from_numpy(bound).view(1, 3, 1, 1) for bound in BOUNDS)


def build(name: str, size: int, batch: int) -> tuple[nn.Module, NDArray[np.float32]]:
    """A classifier with biases and calibrated norms, and its pictures `[batch, 3, size, size]`.

    The pictures are among those that give the norms their statistics: with random weights the
    activations of deep networks explode on others.
    """
    samples = photographs(max(batch, CALIBRATION), size, seed=_SEED)
    return make(name, samples=samples), samples[:batch]


def to_onnx(net: nn.Module, pictures: NDArray[np.float32], exporter: str) -> onnx.ModelProto:
    """The network as one of PyTorch's exporters writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own deprecations
        return exported(net, pictures[:1], exporter)


def top_classes(net: nn.Module, pictures: Tensor, k: int) -> Tensor:
    """The classes `[N, k]` that are asked for: their logits are far from zero."""
    with torch.no_grad():
        return net(pictures).topk(k).indices
