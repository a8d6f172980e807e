"""Float64 references of single operators: the forward map and the handing on of relevance.

Plain and slow on purpose, and free of any graph: the forward maps are torch's or a few
lines of indexing, adjoints come from automatic differentiation of those maps, windows are
visited one at a time. ``x`` is an operator's input, ``y`` its output, ``R_y`` the relevance
that arrives at ``y``, ``R_x`` what is handed on; ``a⁺ = max(a, 0)``, ``a⁻ = min(a, 0)`` and
0/0 is 0. Attributes that are missing take the defaults of opset 18.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product as positions_of
from typing import Any, Literal

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from reference import movements

Attributes = Mapping[str, Any]
Bounds = tuple[np.ndarray, np.ndarray]
Shares = dict[int, Tensor]
Index = tuple[slice | int | Tensor, ...]


@dataclass(frozen=True)
class Node:
    """One operator with its inputs in ONNX order; an omitted input is None."""

    op_type: str
    inputs: tuple[Tensor | None, ...]
    attributes: Attributes
    outputs: int = 1

    def given(self, index: int) -> Tensor | None:
        """The input at an index, None where it is omitted or empty."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None or value.numel() == 0 else value

    def needed(self, index: int) -> Tensor:
        """The input at an index that must be there."""
        value = self.inputs[index]
        if value is None:
            raise ValueError(f"{self.op_type} needs its input {index}")
        return value

    def integers(self, index: int) -> list[int] | None:
        """The input at an index as a flat list of ints, None where it is omitted."""
        value = self.given(index)
        return None if value is None else [int(entry) for entry in value.flatten().tolist()]

    def with_inputs(self, changes: Mapping[int, Tensor | None]) -> "Node":
        """The same node with some inputs exchanged."""
        inputs = tuple(changes.get(i, value) for i, value in enumerate(self.inputs))
        return replace(self, inputs=inputs)


@dataclass(frozen=True)
class Task:
    """A node, the relevance of its outputs, and what decides between the rules."""

    node: Node
    relevance: tuple[Tensor | None, ...]
    data: tuple[int, ...]
    rules: str
    bounds: Bounds | None

    @property
    def arrived(self) -> Tensor:
        """The relevance of the first output."""
        if self.relevance[0] is None:
            raise ValueError(f"no relevance arrives at the first output of {self.node.op_type}")
        return self.relevance[0]

    @property
    def only(self) -> int:
        """The index of the one input that depends on the explained input."""
        if len(self.data) != 1:
            raise NotImplementedError(f"{self.node.op_type} of the activations {self.data}")
        return self.data[0]


# --- Geometry of sliding windows -------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """One spatial axis under a sliding window."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int = 0
    end: int = 0
    ceil: bool = False

    @property
    def extent(self) -> int:
        """How many places a dilated kernel covers."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def outputs(self) -> int:
        """How many windows there are.

        With ``ceil_mode`` one more window may hang over the end, unless it would start
        behind the last real element.
        """
        room = self.size + self.begin + self.end - self.extent
        count = room // self.stride + 1
        overhangs = self.ceil and room % self.stride > 0
        return count + int(overhangs and count * self.stride < self.size + self.begin)

    def taps(self, window: int) -> list[int]:
        """The places that a window reads, padding included."""
        first = window * self.stride - self.begin
        return [first + step * self.dilation for step in range(self.kernel)]

    def real(self, window: int) -> list[int]:
        """The places that a window reads from the input itself."""
        return [place for place in self.taps(window) if 0 <= place < self.size]

    def padded(self, window: int) -> int:
        """How many places a window reads from the input and its declared padding."""
        limits = (-self.begin, self.size + self.end)
        return sum(limits[0] <= place < limits[1] for place in self.taps(window))


def _window_axes(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    """The spatial axes of a convolution or a pool, with their padding resolved."""
    rank = len(sizes)
    strides = node.attributes.get("strides", [1] * rank)
    dilations = node.attributes.get("dilations", [1] * rank)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    pads = node.attributes.get("pads", [0] * 2 * rank)
    automatic = node.attributes.get("auto_pad", "NOTSET")
    axes = [
        Axis(*spans, ceil=ceil) for spans in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    if automatic == "VALID":
        return axes
    if automatic == "NOTSET":
        return [replace(axis, begin=pads[i], end=pads[rank + i]) for i, axis in enumerate(axes)]
    return [_same(axis, upper=automatic == "SAME_UPPER") for axis in axes]


def _same(axis: Axis, *, upper: bool) -> Axis:
    """SAME padding: ``ceil(size / stride)`` windows, the odd place at the end for UPPER."""
    windows = math.ceil(axis.size / axis.stride)
    total = max(0, (windows - 1) * axis.stride + axis.extent - axis.size)
    begin = total // 2 if upper else total - total // 2
    return replace(axis, begin=begin, end=total - begin, ceil=False)


def _pool_axes(node: Node) -> list[Axis]:
    return _window_axes(node, node.needed(0).shape[2:], node.attributes["kernel_shape"])


def _windows(axes: Sequence[Axis]) -> Iterator[tuple[Index, Index]]:
    """The index of each output and that of its window's real elements in row-major order."""
    for position in positions_of(*(range(axis.outputs) for axis in axes)):
        places = [axis.real(window) for axis, window in zip(axes, position, strict=True)]
        grid = np.ix_(*(np.asarray(place, dtype=np.int64) for place in places))
        every = (slice(None), slice(None))
        yield (*every, *position), (*every, *(torch.from_numpy(part) for part in grid))


def _per_side(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Pairs of begin and end in torch's order of padding: the last axis first."""
    return [side for pair in reversed(pairs) for side in pair]


def _along(values: Tensor, rank: int) -> Tensor:
    """A vector over channels in a shape that broadcasts against [batch, channel, ...]."""
    return values.reshape([-1] + [1] * (rank - 2))


# --- Forward: linear maps --------------------------------------------------------------------


def _conv(node: Node) -> Tensor:
    x, weight, bias = node.needed(0), node.needed(1), node.given(2)
    axes = _window_axes(node, x.shape[2:], weight.shape[2:])
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(axes)]
    padded = functional.pad(x, _per_side([(axis.begin, axis.end) for axis in axes]))
    return convolve(
        padded,
        weight,
        bias,
        stride=[axis.stride for axis in axes],
        dilation=[axis.dilation for axis in axes],
        groups=node.attributes.get("group", 1),
    )


def _conv_transpose(node: Node) -> Tensor:
    """The unpadded transposed convolution, cropped by the pads or grown at its end."""
    x, weight, bias = node.needed(0), node.needed(1), node.given(2)
    rank = x.ndim - 2
    strides = node.attributes.get("strides", [1] * rank)
    dilations = node.attributes.get("dilations", [1] * rank)
    grown = node.attributes.get("output_padding", [0] * rank)
    transposed = {
        1: functional.conv_transpose1d,
        2: functional.conv_transpose2d,
        3: functional.conv_transpose3d,
    }[rank]
    groups = node.attributes.get("group", 1)
    full = transposed(x, weight, stride=strides, dilation=dilations, groups=groups)
    pads = _transposed_pads(node, [n + more for n, more in zip(full.shape[2:], grown, strict=True)])
    crops = [(-begin, more - end) for (begin, end), more in zip(pads, grown, strict=True)]
    y = functional.pad(full, _per_side(crops))
    return y if bias is None else y + _along(bias, y.ndim)


def _transposed_pads(node: Node, full: Sequence[int]) -> list[tuple[int, int]]:
    """The pads of a ConvTranspose whose unpadded output has the given sizes."""
    sizes = node.needed(0).shape[2:]
    automatic = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    if wanted is None and automatic in ("SAME_UPPER", "SAME_LOWER"):
        strides = node.attributes.get("strides", [1] * len(sizes))
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is not None:
        totals = [n - target for n, target in zip(full, wanted, strict=True)]
        small = [(total // 2, total - total // 2) for total in totals]
        return small if automatic == "SAME_UPPER" else [(end, begin) for begin, end in small]
    pads = node.attributes.get("pads", [0] * 2 * len(sizes))
    if automatic == "VALID":
        pads = [0] * 2 * len(sizes)
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))


def _gemm(node: Node) -> Tensor:
    left = node.needed(0).T if node.attributes.get("transA", 0) else node.needed(0)
    right = node.needed(1).T if node.attributes.get("transB", 0) else node.needed(1)
    alpha: float = node.attributes.get("alpha", 1.0)
    beta: float = node.attributes.get("beta", 1.0)
    bias = node.given(2)
    return alpha * (left @ right) + (0 if bias is None else beta * bias)


def _matmul(node: Node) -> Tensor:
    return torch.matmul(node.needed(0), node.needed(1))


# --- Forward: elementwise --------------------------------------------------------------------


def _hard_sigmoid(x: Tensor, attributes: Attributes) -> Tensor:
    alpha: float = attributes.get("alpha", 0.2)
    beta: float = attributes.get("beta", 0.5)
    return (alpha * x + beta).clamp(0, 1)


def _selu(x: Tensor, attributes: Attributes) -> Tensor:
    alpha: float = attributes.get("alpha", 1.67326319217681884765625)
    gamma: float = attributes.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


def _thresholded_relu(x: Tensor, attributes: Attributes) -> Tensor:
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


def _cast(x: Tensor, attributes: Attributes) -> Tensor:
    """A cast to a float type keeps every digit here: the reference does not round."""
    target = attributes["to"]
    if target in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        return x
    return (x != 0).to(x.dtype) if target == TensorProto.BOOL else x.trunc()


ELEMENTWISE: dict[str, Callable[[Tensor, Attributes], Tensor]] = {
    "Abs": lambda x, _: x.abs(),
    "Atan": lambda x, _: torch.atan(x),
    "Cast": _cast,
    "Ceil": lambda x, _: torch.ceil(x),
    "Celu": lambda x, a: functional.celu(x, a.get("alpha", 1.0)),
    "Dropout": lambda x, _: x,
    "Elu": lambda x, a: functional.elu(x, a.get("alpha", 1.0)),
    "Erf": lambda x, _: torch.erf(x),
    "Exp": lambda x, _: torch.exp(x),
    "Floor": lambda x, _: torch.floor(x),
    "Gelu": lambda x, a: functional.gelu(x, approximate=a.get("approximate", "none")),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x, _: x * (x / 6 + 0.5).clamp(0, 1),
    "Identity": lambda x, _: x,
    "LeakyRelu": lambda x, a: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "Log": lambda x, _: torch.log(x),
    "Mish": lambda x, _: functional.mish(x),
    "Neg": lambda x, _: -x,
    "Reciprocal": lambda x, _: 1 / x,
    "Relu": lambda x, _: functional.relu(x),
    "Round": lambda x, _: torch.round(x),
    "Selu": _selu,
    "Sigmoid": lambda x, _: torch.sigmoid(x),
    "Softplus": lambda x, _: torch.log1p(torch.exp(-x.abs())) + functional.relu(x),
    "Softsign": lambda x, _: functional.softsign(x),
    "Sqrt": lambda x, _: torch.sqrt(x),
    "Swish": lambda x, a: x * torch.sigmoid(a.get("alpha", 1.0) * x),
    "Tanh": lambda x, _: torch.tanh(x),
    "ThresholdedRelu": _thresholded_relu,
}


def _elementwise(node: Node) -> Tensor:
    return ELEMENTWISE[node.op_type](node.needed(0), node.attributes)


def _clip(node: Node) -> Tensor:
    low, high = node.given(1), node.given(2)
    y = node.needed(0) if low is None else torch.maximum(node.needed(0), low)
    return y if high is None else torch.minimum(y, high)


def _prelu(node: Node) -> Tensor:
    x = node.needed(0)
    return torch.where(x < 0, x * node.needed(1), x)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Tensor]:
    """An operator that combines its operands one after another."""

    def forward_map(node: Node) -> Tensor:
        y = node.needed(0)
        for index in range(1, len(node.inputs)):
            y = function(y, node.needed(index))
        return y

    return forward_map


def _per_quantised_axis(node: Node, values: Tensor) -> Tensor:
    """A scale or zero point in a shape that broadcasts along the quantised axis."""
    rank = node.needed(0).ndim
    shape = [1] * rank
    if values.numel() > 1:
        shape[node.attributes.get("axis", 1) % rank] = values.numel()
    return values.reshape(shape)


def _quantize(node: Node) -> Tensor:
    zero = node.given(2)
    zero = torch.zeros(1, dtype=torch.uint8) if zero is None else zero
    limits = torch.iinfo(zero.dtype)
    steps = torch.round(node.needed(0) / _per_quantised_axis(node, node.needed(1)))
    return (steps + _per_quantised_axis(node, zero)).clamp(limits.min, limits.max)


def _dequantize(node: Node) -> Tensor:
    zero = node.given(2)
    x = node.needed(0)
    x = x if zero is None else x - _per_quantised_axis(node, zero)
    return x * _per_quantised_axis(node, node.needed(1))


# --- Forward: normalisation ------------------------------------------------------------------


def _batch_normalization(node: Node) -> Tensor:
    scale, bias, mean, variance = (node.needed(i) for i in range(1, 5))
    epsilon = node.attributes.get("epsilon", 1e-5)
    return functional.batch_norm(node.needed(0), mean, variance, scale, bias, eps=epsilon)


def _lrn(node: Node) -> Tensor:
    """``x / (bias + alpha / size · Σ x²)^beta`` over a window of neighbouring channels."""
    x, size = node.needed(0), node.attributes["size"]
    before, behind = (size - 1) // 2, size // 2
    channels = x.shape[1]
    squares = torch.zeros_like(x)
    for c in range(channels):
        near = x[:, max(0, c - before) : min(channels, c + behind + 1)]
        squares[:, c] = (near * near).sum(1)
    alpha: float = node.attributes.get("alpha", 1e-4)
    beta: float = node.attributes.get("beta", 0.75)
    bias: float = node.attributes.get("bias", 1.0)
    return x / torch.pow(bias + alpha / size * squares, beta)


def _lp_normalization(node: Node) -> Tensor:
    x, p = node.needed(0), node.attributes.get("p", 2)
    return x / x.norm(p, node.attributes.get("axis", -1), keepdim=True)


def _mean_variance_normalization(node: Node) -> Tensor:
    return _standardised(node.needed(0), list(node.attributes.get("axes", [0, 2, 3])), 1e-9)


def _rms_normalization(node: Node) -> Tensor:
    x, epsilon = node.needed(0), node.attributes.get("epsilon", 1e-5)
    axes = list(range(node.attributes.get("axis", -1) % x.ndim, x.ndim))
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + epsilon) * node.needed(1)


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + epsilon)


def _instance_normalization(node: Node) -> Tensor:
    x = node.needed(0)
    y = _standardised(x, list(range(2, x.ndim)), node.attributes.get("epsilon", 1e-5))
    return y * _along(node.needed(1), x.ndim) + _along(node.needed(2), x.ndim)


def _layer_normalization(node: Node) -> Tensor:
    x = node.needed(0)
    axes = list(range(node.attributes.get("axis", -1) % x.ndim, x.ndim))
    y = _standardised(x, axes, node.attributes.get("epsilon", 1e-5)) * node.needed(1)
    bias = node.given(2)
    return y if bias is None else y + bias


def _group_normalization(node: Node) -> Tensor:
    """Scale and bias count the groups in opset 18 and the channels from opset 21 on."""
    x, groups = node.needed(0), node.attributes["num_groups"]
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _standardised(grouped, [2], node.attributes.get("epsilon", 1e-5)).reshape(x.shape)
    each = x.shape[1] // node.needed(1).numel()
    scale, bias = (node.needed(i).repeat_interleave(each) for i in (1, 2))
    return y * _along(scale, x.ndim) + _along(bias, x.ndim)


# --- Forward: pooling and reduction ----------------------------------------------------------


def _max_pool(node: Node) -> Tensor:
    x, axes = node.needed(0), _pool_axes(node)
    y = x.new_zeros([*x.shape[:2], *(axis.outputs for axis in axes)])
    for output, window in _windows(axes):
        y[output] = x[window].flatten(2).amax(2)
    return y


def _average_pool(node: Node) -> Tensor:
    """The padding counts with ``count_include_pad``, what hangs over its end never does."""
    x, axes = node.needed(0), _pool_axes(node)
    y = x.new_zeros([*x.shape[:2], *(axis.outputs for axis in axes)])
    spans = [[axis.padded(window) for window in range(axis.outputs)] for axis in axes]
    included = [math.prod(counts) for counts in positions_of(*spans)]
    for (output, window), with_padding in zip(_windows(axes), included, strict=True):
        cells = x[window].flatten(2)
        count = with_padding if node.attributes.get("count_include_pad", 0) else cells.shape[2]
        y[output] = cells.sum(2) / count
    return y


def _reduced_axes(node: Node) -> list[int]:
    """The reduced axes in ascending order; the global pools reduce all spatial ones."""
    rank = node.needed(0).ndim
    if node.op_type.startswith("Global"):
        return list(range(2, rank))
    axes = node.integers(1)
    if axes is None:
        return [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def _reduction(function: Callable[..., Tensor]) -> Callable[[Node], Tensor]:
    def forward_map(node: Node) -> Tensor:
        axes = _reduced_axes(node)
        keep = node.op_type.startswith("Global") or bool(node.attributes.get("keepdims", 1))
        return function(node.needed(0), axes, keepdim=keep) if axes else node.needed(0)

    return forward_map


# --- Forward: data movement ------------------------------------------------------------------


def _concat(node: Node) -> Tensor:
    parts = [node.needed(index) for index in range(len(node.inputs))]
    return torch.cat(parts, node.attributes["axis"])


def _split(node: Node) -> list[Tensor]:
    x, axis = node.needed(0), node.attributes.get("axis", 0)
    sizes = node.integers(1)
    if sizes is None:
        count = node.attributes.get("num_outputs", node.outputs)
        each = math.ceil(x.shape[axis] / count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return list(torch.split(x, sizes, axis))


def _taken(x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))


def _slice(node: Node) -> Tensor:
    y = node.needed(0)
    starts, ends = node.integers(1) or [], node.integers(2) or []
    axes = node.integers(3) or list(range(len(starts)))
    steps = node.integers(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(*slice(start, end, step).indices(y.shape[axis]))
        y = _taken(y, axis, places)
    return y


def _pad(node: Node) -> Tensor:
    x, pads = node.needed(0), node.integers(1) or []
    axes = [axis % x.ndim for axis in node.integers(3) or range(x.ndim)]
    spans = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    mode = node.attributes.get("mode", "constant")
    if mode == "constant":
        value = node.given(2)
        every = [spans.get(axis, (0, 0)) for axis in range(x.ndim)]
        return functional.pad(x, _per_side(every), value=0.0 if value is None else float(value))
    for axis, (begin, end) in spans.items():
        x = _taken(x, axis, _mirrored(x.shape[axis], begin, end, mode))
    return x


def _mirrored(size: int, begin: int, end: int, mode: str) -> list[int]:
    """The places that fill an axis padded by its own elements; negative pads crop."""
    modes: dict[str, Literal["reflect", "edge", "wrap"]]
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    places = np.arange(size)[max(0, -begin) : size - max(0, -end)]
    padded = np.pad(places, (max(0, begin), max(0, end)), mode=modes[mode])
    return [int(place) for place in padded]


def _reshape(node: Node) -> Tensor:
    x, shape = node.needed(0), node.integers(1) or []
    if not node.attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(node: Node) -> Tensor:
    x, axis = node.needed(0), node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(node: Node) -> Tensor:
    x = node.needed(0)
    return x.permute(node.attributes.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(node: Node) -> Tensor:
    x, axes = node.needed(0), node.integers(1)
    if axes is None:
        return x.squeeze()
    gone = {axis % x.ndim for axis in axes}
    return x.reshape([size for i, size in enumerate(x.shape) if i not in gone])


def _unsqueeze(node: Node) -> Tensor:
    x, axes = node.needed(0), node.integers(1) or []
    rank = x.ndim + len(axes)
    new, old = {axis % rank for axis in axes}, iter(x.shape)
    return x.reshape([1 if i in new else next(old) for i in range(rank)])


def _gather(node: Node) -> Tensor:
    x, index = node.needed(0), node.needed(1)
    axis = node.attributes.get("axis", 0) % x.ndim
    places = [int(place) % x.shape[axis] for place in index.flatten().tolist()]
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
    return _taken(x, axis, places).reshape(shape)


def _expand(node: Node) -> Tensor:
    x, shape = node.needed(0), node.integers(1) or []
    return torch.broadcast_to(x, np.broadcast_shapes(x.shape, shape))


def _tile(node: Node) -> Tensor:
    return node.needed(0).repeat(node.integers(1) or [])


def _depth_to_space(node: Node) -> Tensor:
    x, block = node.needed(0), node.attributes["blocksize"]
    n, c, h, w = x.shape
    if node.attributes.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: Node) -> Tensor:
    x, block = node.needed(0), node.attributes["blocksize"]
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


FORWARD: dict[str, Callable[[Node], Tensor]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Add": _folded(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Compress": movements.compress,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": _folded(torch.div),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": movements.gather_elements,
    "GatherND": movements.gather_nd,
    "Gemm": _gemm,
    "GlobalAveragePool": _reduction(torch.mean),
    "GlobalMaxPool": _reduction(torch.amax),
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "MatMul": _matmul,
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "Min": _folded(torch.minimum),
    "Mul": _folded(torch.mul),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _folded(torch.pow),
    "QuantizeLinear": _quantize,
    "RMSNormalization": _rms_normalization,
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Reshape": _reshape,
    "Resize": movements.resize,
    "ReverseSequence": movements.reverse_sequence,
    "ScatterElements": movements.scatter_elements,
    "ScatterND": movements.scatter_nd,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Squeeze": _squeeze,
    "Sub": _folded(torch.sub),
    "Sum": _folded(torch.add),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda node: torch.where(*(node.needed(i) for i in range(3))),
}


def _run(node: Node) -> list[Tensor]:
    return _split(node) if node.op_type == "Split" else [FORWARD[node.op_type](node)]


# --- How relevance is shared among cells -----------------------------------------------------
#
# Pools, reductions and operators over several activations all share the relevance of one
# output among a few cells. Cells lie along the last axis, relevance has the axes before it.


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 wherever the denominator is 0."""
    zero = denominator == 0
    ratio = numerator / denominator.masked_fill(zero, 1.0)
    return ratio.masked_fill(zero, 0.0)


def _to_first_maximum(cells: Tensor, relevance: Tensor) -> Tensor:
    """Winner takes all, and the first of several equal cells is the winner."""
    shares = torch.zeros_like(cells)
    for place in np.ndindex(*cells.shape[:-1]):
        values = cells[place].tolist()
        shares[place][values.index(max(values))] = relevance[place]
    return shares


def _evenly(cells: Tensor, relevance: Tensor) -> Tensor:
    """The same share to every cell."""
    count = cells.shape[-1]
    return (relevance / count).unsqueeze(-1).expand(cells.shape)


def _by_contribution(cells: Tensor, relevance: Tensor) -> Tensor:
    """``x⁺/Σx⁺ · R_y`` where ``y > 0``, ``x⁻/Σx⁻ · R_y`` where ``y < 0``, nothing where it is 0."""
    y = cells.sum(-1, keepdim=True)
    with_sign = torch.where(y > 0, cells.clamp(min=0), cells.clamp(max=0))
    fraction = _quotient(with_sign, with_sign.sum(-1, keepdim=True))
    return torch.where(y == 0, torch.zeros_like(cells), fraction * relevance.unsqueeze(-1))


def _average_sharing(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    return _evenly if task.rules == "paper" else _by_contribution


# --- Rules -----------------------------------------------------------------------------------


def _adjoint(forward_map: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """``Jᵀ · cotangent`` for the Jacobian of a map at ``x``."""
    variable = x.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(forward_map(variable), variable, cotangent)
    return gradient


def _linear(task: Task) -> Shares:
    """z^β for the first linear map where its bounds are finite, else z⁺; no bias takes part.

    z⁺: ``Z = W⁺x⁺ + W⁻x⁻``, ``s = R_y / Z``, ``R_x = x⁺⊙W⁺ᵀs + x⁻⊙W⁻ᵀs``.
    z^β: the same with ``x − l`` in the place of ``x⁺`` and ``x − h`` in that of ``x⁻``.
    """
    x, weight = task.node.needed(task.only), _weight(task.node, task.only)
    above, below = _linear_operands(x, task.bounds)
    positive = _product(task.node, task.only, weight.clamp(min=0))
    negative = _product(task.node, task.only, weight.clamp(max=0))
    s = _quotient(task.arrived, positive(above) + negative(below))
    return {task.only: above * _adjoint(positive, x, s) + below * _adjoint(negative, x, s)}


def _linear_operands(x: Tensor, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    """What meets the positive and what meets the negative weights."""
    if bounds is None or not all(np.isfinite(bound).all() for bound in bounds):
        return x.clamp(min=0), x.clamp(max=0)
    low, high = (torch.from_numpy(np.asarray(bound, dtype=np.float64)) for bound in bounds)
    return x - low, x - high


def _weight(node: Node, index: int) -> Tensor:
    """The constant factor; Gemm's alpha belongs to it, since a negative one turns its sign."""
    if index > 1 or (index == 1 and node.op_type.startswith("Conv")):
        raise NotImplementedError(f"{node.op_type} with an activation as its input {index}")
    alpha: float = node.attributes.get("alpha", 1.0)
    return alpha * node.needed(1 - index)


def _product(node: Node, index: int, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map with another weight and without bias and alpha."""
    bare = replace(node, attributes={**node.attributes, "alpha": 1.0})
    bare = bare.with_inputs({1 - index: weight, 2: None})
    return lambda x: FORWARD[node.op_type](bare.with_inputs({index: x}))


def _bypass(task: Task) -> Shares:
    """``R_x = R_y``, summed over the axes along which the operator broadcast ``x``."""
    shape = task.node.needed(task.only).shape
    return {task.only: task.arrived.sum_to_size(shape)}


def _division(task: Task) -> Shares:
    """Bypassed when one operand is a constant; the quotient of two activations has no rule."""
    return _bypass(task)


def _among_operands(task: Task, share: Callable[[Tensor, Tensor], Tensor]) -> Shares:
    """Shares the relevance among the operands that depend on the explained input.

    The cells of one output element are the (broadcast) operands. With a single such
    operand the constants make an affine map or a clipping of it, which is bypassed.
    """
    if len(task.data) == 1:
        return _bypass(task)
    shape = task.arrived.shape
    operands = [task.node.needed(index) for index in task.data]
    cells = torch.stack([operand.broadcast_to(shape) for operand in operands], -1)
    shares = share(cells, task.arrived)
    return {
        index: shares[..., i].sum_to_size(operands[i].shape) for i, index in enumerate(task.data)
    }


def _sum(task: Task) -> Shares:
    return _among_operands(task, _by_contribution)


def _difference(task: Task) -> Shares:
    """A sum in which ``b`` stands for ``−b``."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return _among_operands(task, lambda cells, r: _by_contribution(cells * signs, r))


def _maximum(task: Task) -> Shares:
    return _among_operands(task, _to_first_maximum)


def _minimum(task: Task) -> Shares:
    return _among_operands(task, lambda cells, r: _to_first_maximum(-cells, r))


def _multiplication(task: Task) -> Shares:
    """Half each."""
    return _among_operands(task, _evenly)


def _chosen(task: Task) -> Shares:
    """All to the operand whose value was taken."""
    condition, *operands = (task.node.needed(i) for i in range(3))
    taken = (condition, ~condition)
    return {
        i + 1: torch.where(taken[i], task.arrived, 0.0).sum_to_size(operands[i].shape)
        for i in range(2)
        if i + 1 in task.data
    }


def _pooled(task: Task, share: Callable[[Tensor, Tensor], Tensor]) -> Shares:
    """Shares each window's relevance among its real elements; overlapping windows add."""
    x, axes = task.node.needed(0), _pool_axes(task.node)
    if list(task.arrived.shape[2:]) != [axis.outputs for axis in axes]:
        raise ValueError(f"relevance of shape {tuple(task.arrived.shape)} does not fit the windows")
    total = torch.zeros_like(x)
    for output, window in _windows(axes):
        cells = x[window]
        if cells.numel():
            shares = share(cells.flatten(2), task.arrived[output])
            total[window] += shares.reshape(cells.shape)
    return {task.only: total}


def _max_pooled(task: Task) -> Shares:
    return _pooled(task, _to_first_maximum)


def _average_pooled(task: Task) -> Shares:
    return _pooled(task, _average_sharing(task))


def _reduced(task: Task, share: Callable[[Tensor, Tensor], Tensor]) -> Shares:
    """Shares the relevance over the reduced axes, read in row-major order."""
    x, axes = task.node.needed(task.only), _reduced_axes(task.node)
    if not axes:
        return _bypass(task)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.permute(kept + axes)
    cells = moved.reshape([x.shape[axis] for axis in kept] + [-1])
    shares = share(cells, task.arrived.reshape(cells.shape[:-1])).reshape(moved.shape)
    return {task.only: shares.permute([(kept + axes).index(axis) for axis in range(x.ndim)])}


def _max_reduced(task: Task) -> Shares:
    return _reduced(task, _to_first_maximum)


def _min_reduced(task: Task) -> Shares:
    return _reduced(task, lambda cells, r: _to_first_maximum(-cells, r))


def _average_reduced(task: Task) -> Shares:
    return _reduced(task, _average_sharing(task))


def _movement(task: Task) -> Shares:
    """The adjoint of the data movement, from every output that has relevance."""
    arrived = [(i, r) for i, r in enumerate(task.relevance) if r is not None]
    variables = {i: task.node.needed(i).detach().clone().requires_grad_(True) for i in task.data}
    outputs = _run(task.node.with_inputs(variables))
    gradients = torch.autograd.grad(
        [outputs[i] for i, _ in arrived], list(variables.values()), [r for _, r in arrived]
    )
    return dict(zip(variables, gradients, strict=True))


LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BYPASSED = frozenset(ELEMENTWISE) | {
    "BatchNormalization",
    "Clip",
    "DequantizeLinear",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "PRelu",
    "Pow",
    "QuantizeLinear",
    "RMSNormalization",
}
MOVEMENTS = frozenset(
    {
        "Compress",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Pad",
        "Reshape",
        "Resize",
        "ReverseSequence",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
RULES: dict[str, Callable[[Task], Shares]] = {
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(BYPASSED, _bypass),
    **dict.fromkeys(MOVEMENTS, _movement),
    "Add": _sum,
    "AveragePool": _average_pooled,
    "Div": _division,
    "GlobalAveragePool": _average_reduced,
    "GlobalMaxPool": _max_reduced,
    "Max": _maximum,
    "MaxPool": _max_pooled,
    "Min": _minimum,
    "Mul": _multiplication,
    "ReduceMax": _max_reduced,
    "ReduceMean": _average_reduced,
    "ReduceMin": _min_reduced,
    "ReduceSum": _average_reduced,
    "Sub": _difference,
    "Sum": _sum,
    "Where": _chosen,
}
OPERATORS: frozenset[str] = frozenset(RULES)


# --- What tests call -------------------------------------------------------------------------


def _tensor(value: np.ndarray | None, *, floating: bool) -> Tensor | None:
    """Floats and data become float64; other constants keep their integer type."""
    if value is None:
        return None
    array = np.asarray(value)
    floating = floating or np.issubdtype(array.dtype, np.floating)
    return torch.from_numpy(array.astype(np.float64) if floating else array.copy())


def _node(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    attributes: Attributes,
    data: Sequence[int],
    outputs: int,
) -> Node:
    if op_type not in OPERATORS:
        raise NotImplementedError(f"no reference for {op_type}")
    tensors = tuple(_tensor(value, floating=i in data) for i, value in enumerate(inputs))
    plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    return Node(op_type, tensors, plain, outputs)


def forward(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    attributes: Attributes,
    *,
    data: Sequence[int] = (0,),
    outputs: int = 1,
) -> list[np.ndarray]:
    """The operator's outputs in float64 (the first one only, except for Split)."""
    node = _node(op_type, inputs, attributes, data, outputs)
    return [np.asarray(y.numpy(), dtype=np.float64) for y in _run(node)]


def redistribute(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    attributes: Attributes,
    relevance: Sequence[np.ndarray | None],
    *,
    data: Sequence[int],
    rules: str = "default",
    bounds: Bounds | None = None,
) -> list[np.ndarray | None]:
    """The relevance of every input in ``data``, None for the constants.

    ``relevance`` has one entry per output, None where none arrives. ``bounds`` marks the
    first linear map: arrays ``l ≤ x ≤ h`` that broadcast against its data input.
    """
    if rules not in ("default", "paper"):
        raise ValueError(f"no rule set is called {rules!r}")
    if bounds is not None and op_type not in LINEAR:
        raise ValueError(f"bounds are for linear maps, not for {op_type}")
    node = _node(op_type, inputs, attributes, data, len(relevance))
    arrived = tuple(_tensor(r, floating=True) for r in relevance)
    task = Task(node, arrived, tuple(data), rules, bounds)
    if all(r is None for r in arrived):
        shares = {i: torch.zeros_like(node.needed(i)) for i in task.data}
    else:
        shares = RULES[op_type](task)
    return [shares[i].numpy() if i in shares else None for i in range(len(inputs))]
