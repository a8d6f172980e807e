"""Draws linear maps, pools and reductions."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from reference.drawing import Sketch, rank, strategy
from reference.operators import Axis

_SAME = ("SAME_UPPER", "SAME_LOWER")


def _window(s: Sketch, sizes: Sequence[int], *, pool: bool = False) -> dict[str, Any]:
    """Attributes of a sliding window that fits into these sizes."""
    n = len(sizes)
    automatic = s.one_of("NOTSET", "NOTSET", "NOTSET", "VALID", *_SAME)
    pads = [0] * 2 * n
    if automatic == "NOTSET" and s.often():
        pads = [s.number(0, 2) for _ in pads]
    # The runtime takes no dilations with SAME.
    dilations = [1 if automatic in _SAME else s.one_of(1, 1, 2, 3) for _ in sizes]
    room = [size + pads[i] + pads[n + i] - 1 for i, size in enumerate(sizes)]
    kernel = [s.number(1, min(4, r // d + 1)) for r, d in zip(room, dilations, strict=True)]
    if pool:  # wider pads are not allowed
        pads = [min(p, kernel[i % n] - 1) for i, p in enumerate(pads)]
    more = {"strides": [s.one_of(1, 2, 3) for _ in sizes], "dilations": dilations, "pads": pads}
    made = {key: value for key, value in more.items() if any(v != (key != "pads") for v in value)}
    named = {} if automatic == "NOTSET" else {"auto_pad": automatic}
    return {"kernel_shape": kernel, **made, **named}


@strategy("Conv", fits=rank(3, 5))
def conv(s: Sketch, op: str, x: str) -> None:
    _, channels, *sizes = s.values[x].shape
    attributes = _window(s, sizes)
    group = s.one_of(1, *(g for g in (channels, 2, 3) if channels % g == 0 and g > 1))
    filters = group * s.number(1, 4 if group == 1 else 2)
    inputs = [x, s.weight([filters, channels // group, *attributes["kernel_shape"]])]
    if s.often():
        inputs.append(s.floats([filters]))
    if s.often():
        del attributes["kernel_shape"]
    s.add(op, inputs, group=group, **attributes)


@strategy("ConvTranspose", fits=rank(3, 5))
def conv_transpose(s: Sketch, op: str, x: str) -> None:
    _, channels, *sizes = s.values[x].shape
    group = s.one_of(1, *(g for g in (channels, 2) if channels % g == 0 and g > 1))
    each = s.number(1, 3 if group == 1 else 2)
    kernel = [s.number(1, 3) for _ in sizes]
    strides, dilations = [s.one_of(1, 2, 3) for _ in sizes], [s.one_of(1, 1, 2) for _ in sizes]
    full = [
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    inputs = [x, s.weight([channels, each, *kernel])]
    if s.often():
        inputs.append(s.floats([each * group]))
    more = _cropping(s, sizes, strides, full)
    s.add(op, inputs, group=group, strides=strides, dilations=dilations, **more)


def _cropping(
    s: Sketch, sizes: Sequence[int], strides: Sequence[int], full: Sequence[int]
) -> dict[str, Any]:
    """How the unpadded output of a transposed convolution is cropped or grown."""
    n, form = len(sizes), s.one_of("", "pads", "grown", "auto_pad", "output_shape")
    pads = [s.number(0, min(2, (full[i % n] - 1) // 2)) for i in range(2 * n)]
    if form == "pads":
        return {"pads": pads}
    if form == "grown":
        return {"pads": pads, "output_padding": [s.number(0, stride - 1) for stride in strides]}
    automatic = {"auto_pad": s.one_of(*_SAME)} if s.often() else {}
    if form == "output_shape":  # none smaller than the input, of which onnx infers no shape
        shape = [s.number(min(f, max(m, f - 2)), f) for f, m in zip(full, sizes, strict=True)]
        return {"output_shape": shape, **automatic}
    enough = all(f >= m * a for f, m, a in zip(full, sizes, strides, strict=True))
    return automatic if form == "auto_pad" and enough else {}


@strategy("Gemm", fits=rank(2, 2))
def gemm(s: Sketch, op: str, x: str) -> None:
    batch, features = s.values[x].shape
    units, turned = s.number(1, 5), s.one_of(0, 1)
    left = s.rarely(32)  # the data turned: refused
    inner = batch if left else features
    inputs = [x, s.floats([units, inner] if turned else [inner, units])]
    attributes: dict[str, Any] = {"alpha": s.one_of(1.0, 0.5, 2.0, -1.0)}
    if s.often() and not left:
        shapes = ((units,), (1, units), (batch, units), (batch, 1), (1,))
        inputs.append(s.floats(s.one_of(*shapes)))
        attributes["beta"] = s.one_of(1.0, 0.5)
    s.add(op, inputs, transB=turned, **({"transA": 1} if left else {}), **attributes)


@strategy("MatMul", fits=rank(2))
def matmul(s: Sketch, op: str, x: str) -> None:
    shape = s.values[x].shape
    units, left = s.number(1, 4), len(shape) > 2 and s.often()
    batch = [s.one_of(1, n) for n in shape[1:-2]] if s.rarely(4) else []
    if s.rarely(24):  # one that repeats the data
        batch = [2, *[1] * (len(shape) - 2)]
    if s.rarely(24):
        s.add(op, [x, s.floats([shape[-1]])])
    elif left:
        s.add(op, [s.floats([*batch, units, shape[-2]]), x])
    else:
        s.add(op, [x, s.floats([*batch, shape[-1], units])])


# --- Pools and reductions --------------------------------------------------------------------


@strategy("MaxPool", "AveragePool", fits=rank(3, 5))
def pool(s: Sketch, op: str, x: str) -> None:
    sizes = s.values[x].shape[2:]
    attributes = _window(s, sizes, pool=True)
    if op == "AveragePool" and s.graph.opset < 19:
        attributes.pop("dilations", None)
    if attributes.get("auto_pad") not in _SAME:
        attributes["ceil_mode"] = s.one_of(0, 1)
    if op == "AveragePool":
        attributes["count_include_pad"] = s.one_of(0, 1)
    elif s.rarely(8):
        attributes["storage_order"] = 1
    if _legal(sizes, attributes):
        s.add(op, [x], **attributes)


def _legal(sizes: Sequence[int], attributes: Mapping[str, Any]) -> bool:
    """Has every window a real element, and does SAME crop nothing, of which runtimes disagree?"""
    n = len(sizes)
    pads = attributes.get("pads", [0] * 2 * n)
    spans = zip(
        sizes,
        attributes["kernel_shape"],
        *(attributes.get(key, [1] * n) for key in ("strides", "dilations")),
        pads[:n],
        pads[n:],
        strict=True,
    )
    axes = [Axis(*span, ceil=bool(attributes.get("ceil_mode"))) for span in spans]
    if attributes.get("auto_pad") in _SAME:
        return all((ceil(a.size / a.stride) - 1) * a.stride + a.extent >= a.size for a in axes)
    return all(a.outputs > 0 and all(map(a.real, range(a.outputs))) for a in axes)


@strategy("GlobalAveragePool", "GlobalMaxPool", fits=rank(3, 5))
def global_pool(s: Sketch, op: str, x: str) -> None:
    s.add(op, [x])


@strategy("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", fits=rank(2))
def reduction(s: Sketch, op: str, x: str) -> None:
    n = s.values[x].ndim
    kept = {} if s.often() else {"keepdims": s.one_of(1, 0)}
    if s.rarely(48):
        s.add(op, [x], noop_with_empty_axes=1)
        return
    axes = s.one_of([*range(2, n)] or [1], s.some(range(1, n), 1))
    if s.rarely(48):  # over the batch: refused
        axes = [0]
    s.add(op, [x, s.list_of([a - n if s.often() else a for a in axes])], **kept)
