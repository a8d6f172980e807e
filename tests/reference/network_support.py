"""What the tests of the reference share: small networks, loops over matrices, distances."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from . import network, networks
from .network_linear import Handed, Mode

SIZE = 64


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of a from b, relative to b."""
    return float((a - b).norm() / b.norm())


def drawn(net: nn.Module, *, size: int = SIZE) -> nn.Module:
    """Return the network in evaluation mode with seeded weights."""
    net = net.eval().requires_grad_(False)
    networks.initialise(net, size=size)
    return net


class Joined(nn.Module):
    """Two maps of one input, and an operator that joins them."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x: Tensor) -> Tensor:
        """Join both maps of x."""
        return self.join(self.first(x), self.second(x))


def at(module: nn.Module, x: Tensor, relevance: Tensor, rules: str = "default") -> Handed:
    """Hand relevance at the module's output to its input x; unbounded input."""
    trace = network.record(module, x, None, None)
    start = {trace.logits_node: relevance}
    arrived, absorbed = network.carry(trace, trace.nodes, start, Mode(rules))
    return Handed(list(arrived.items()), absorbed)


def unrolled(conv: nn.Conv2d, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the matrix [out * oh * ow, in * h * w] of a convolution on planes of `shape`."""
    channels, height, width = shape
    out, _, kernel, _ = conv.weight.shape
    stride, padding = conv.stride[0], conv.padding[0]
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
    matrix = np.zeros((out, rows, columns, channels, height, width))
    for o, r, c, i, y, x in np.ndindex(*matrix.shape):
        row, column = y - (r * stride - padding), x - (c * stride - padding)
        if 0 <= row < kernel and 0 <= column < kernel:
            matrix[o, r, c, i, y, x] = float(conv.weight[o, i, row, column])
    return matrix.reshape(out * rows * columns, -1)


def shared(matrix: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Share relevance [out] in proportion to the positive ones of matrix [out, in] * x [in]."""
    received = np.zeros(x.size)
    for row, arriving in zip(matrix, relevance, strict=True):
        positive = [max(float(w * v), 0.0) for w, v in zip(row, x.ravel(), strict=True)]
        total = math.fsum(positive)
        for i, contribution in enumerate(positive):
            received[i] += arriving * contribution / total if total else 0.0
    return received
