"""An ONNX model as it comes in and goes out: load, check, find the input and the logits, save."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import checker

from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.files import write_whole

PREFIX = "onnx_clrp."
"""Keys of `metadata_props` that begin so are ours."""

ENDS = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "ArgMax"})
"""Operators that turn logits into an answer; relevance starts in front of them."""

_SHAPE_ONLY = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"})
_LARGEST_FILE = 2**31 - 1


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """Read a model from a path, from bytes, or take one that is loaded already.

    External data is read from the folder of the file. A `ModelProto` is not changed by anything
    that this package does with it.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, or not a valid graph.
    """
    if isinstance(source, onnx.ModelProto):
        model, name = source, "the model"
    elif isinstance(source, bytes):
        model, name = _parse(source, "the model"), "the model"
    else:
        name = os.fspath(source)
        model = _read(Path(source))
    _check(model, name)
    return model


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = _parse(path.read_bytes(), str(path))
        onnx.load_external_data_for_model(model, str(path.parent))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (checker.ValidationError, ValueError) as error:
        raise ModelError(
            f"{path}: its external data cannot be read: {first_line(error)}"
        ) from error
    return model


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        model: onnx.ModelProto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ModelError(f"{name}: not an ONNX model, or a truncated one") from error
    return model


def _check(model: onnx.ModelProto, name: str) -> None:
    if not model.graph.node:
        raise ModelError(f"{name}: not an ONNX model, or one without a single node")
    for tensor in model.graph.initializer:
        _check_size(tensor, name)
    try:
        checker.check_model(skeleton(model)[0])
    except checker.ValidationError as error:
        raise ModelError(f"{name}: not a valid ONNX model: {first_line(error)}") from error


def _check_size(tensor: onnx.TensorProto, name: str) -> None:
    if not tensor.HasField("raw_data"):
        return
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise ModelError(f"{name}: the weights {tensor.name!r} have an unknown type") from error
    # 4-bit types pack two values into a byte; their exact size is the runtime's to check.
    if item > 1 and len(tensor.raw_data) != math.prod(tensor.dims) * item:
        raise ModelError(f"{name}: the weights {tensor.name!r} are incomplete; is it truncated?")


def first_line(error: Exception) -> str:
    """What another library's exception says, in one line that is not too long."""
    return shorten(str(error), 300, placeholder=" …") or type(error).__name__


def skeleton(
    model: onnx.ModelProto, limit: int = 64
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """The model with its weights taken out, and the weights by name.

    Initializers of more than `limit` elements become typed inputs, so that checking, converting
    and inferring shapes never copies or serialises half a gigabyte. The small ones stay: axes and
    shapes decide what the graph means.
    """
    weights = {t.name: t for t in model.graph.initializer if math.prod(t.dims) > limit}
    given = {value.name for value in model.graph.input}
    graph = onnx.GraphProto(
        name=model.graph.name or "graph",
        node=model.graph.node,
        input=model.graph.input,
        output=model.graph.output,
        value_info=model.graph.value_info,
        initializer=[t for t in model.graph.initializer if t.name not in weights],
    )
    graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in weights.values()
        if t.name not in given
    )
    bare = onnx.ModelProto(
        ir_version=max(model.ir_version, 4),  # before 4 every initializer had to be an input
        opset_import=model.opset_import,
        functions=model.functions,
        graph=graph,
    )
    return bare, weights


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write the model as one self-contained file, whole or not at all."""
    if model.ByteSize() > _LARGEST_FILE:
        raise ModelError(f"{os.fspath(path)}: models above 2 GiB do not fit into one file")
    write_whole(os.fspath(path), model.SerializeToString())


def fingerprint(model: onnx.ModelProto) -> str:
    """SHA-256 of the model as it came, in hexadecimal."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own `metadata_props` as a dictionary."""
    return {entry.key: entry.value for entry in model.metadata_props}


def find_input(graph: gs.Graph, name: str | None = None) -> gs.Variable:
    """The input to explain: the one that is named, the only one, or the only picture.

    Raises:
        UsageError: there is no such input, or several and none was named.
    """
    inputs = {x.name: x for x in graph.inputs}
    if name is not None:
        if name not in inputs:
            raise UsageError(f"no input is called {name!r}; the model has {_names(inputs)}")
        return inputs[name]
    pictures = [x for x in graph.inputs if x.shape is not None and len(x.shape) == 4]
    if not inputs:
        raise ModelError("the model has no input")
    candidates = list(graph.inputs) if len(graph.inputs) == 1 else pictures
    if len(candidates) != 1:
        raise UsageError(f"say which input to explain with --input: {_names(inputs)}")
    return candidates[0]


def find_logits(graph: gs.Graph, name: str | None = None) -> gs.Variable:
    """The tensor of class scores: the one that is named, or what the output is made from.

    A Softmax, LogSoftmax, Sigmoid or ArgMax at the very end is skipped, since "the logit before
    softmax is taken" (paper, section 3).

    Raises:
        UsageError: there is no such tensor, or the outputs lead to different ones.
    """
    if name is not None:
        tensors = graph.tensors()
        if name not in tensors or not tensors[name].inputs:
            raise UsageError(f"no node writes a tensor called {name!r}")
        return tensors[name]
    if not graph.outputs:
        raise ModelError("the model has no output")
    found = {x.name: x for x in map(before_the_end, graph.outputs)}
    if len(found) > 1:
        raise UsageError(f"several outputs; say which holds the logits: --logits {_names(found)}")
    return next(iter(found.values()))


def before_the_end(tensor: gs.Variable) -> gs.Variable:
    """The tensor in front of a final Softmax and the like, or the tensor itself."""
    found = tensor
    for node in _spine(tensor):
        if node.op in ENDS:
            found = node.inputs[0]
    return found


def _spine(tensor: gs.Variable) -> Iterator[gs.Node]:
    """The nodes at the end that only normalise or reshape, last first."""
    while tensor.inputs and tensor.inputs[0].op in ENDS | _SHAPE_ONLY:
        yield tensor.inputs[0]
        tensor = tensor.inputs[0].inputs[0]


def _names(tensors: dict[str, gs.Variable]) -> str:
    return ", ".join(repr(name) for name in tensors)


def channel_axis(source: gs.Variable) -> int:
    """The axis of the channels of an input: 1, or the last one of a picture `[N, H, W, C]`."""
    shape = source.shape
    if shape is None or len(shape) != 4 or shape[1] in (1, 3, 4):
        return 1
    return 3 if shape[3] in (1, 3, 4) else 1
