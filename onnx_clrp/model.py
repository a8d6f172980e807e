"""An ONNX model as it comes in and goes out: load, check, save."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import shorten
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, checker

from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.external import (
    Reference,
    embedded,
    is_external,
    pointing,
    reference,
    references,
    refuse_unchecked,
    resolve,
    seen_from,
    size,
    unmarked,
    with_initializers,
)
from onnx_clrp.files import open_together, write_whole

PREFIX = "onnx_clrp."
"""Keys of `metadata_props` that begin so are ours."""

_LARGEST_FILE = 2**31 - 1
_FITS = _LARGEST_FILE - 2**26
"""Weights of so many bytes fit into one file, with room for the nodes."""

_LONG_NAME = "ai.onnx"

_WORTH = 2**10
"""Weights of fewer bytes stay in the model where others go into a file of their own."""

_LARGE, _PAGE, _WORD = 2**20, 2**16, 2**6
"""Where weights begin in such a file: large ones so that every system can map them."""


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """Read a model from a path, from bytes, or take one that is loaded already.

    External data stays where it is, in the folder of the file; that it is all there is checked. A
    `ModelProto` is not changed by anything that this package does with it.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, or not a valid graph; its external
            data is not complete, or lies outside of its folder.
    """
    if isinstance(source, onnx.ModelProto | bytes):
        name = "the model"
        model = _parse(source, name) if isinstance(source, bytes) else source
        refuse_unchecked(model)
    else:
        name = os.fspath(source)
        model = _read(Path(source))
    model = _in_order(model)
    _check(model, name)
    return model


def _in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each node behind those that it reads, which some converters forget."""
    makers = {y: i for i, node in enumerate(model.graph.node) for y in node.output if y}
    before = {
        i: {makers[x] for x in all_inputs(node) if x in makers}
        for i, node in enumerate(model.graph.node)
    }
    if all(j < i for i, others in before.items() for j in others):
        return model
    try:
        order = [*TopologicalSorter(before).static_order()]
    except CycleError:  # the checker says so
        return model
    sorted_model = onnx.ModelProto()
    sorted_model.CopyFrom(model)
    del sorted_model.graph.node[:]
    sorted_model.graph.node.extend(model.graph.node[i] for i in order)
    return sorted_model


def all_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, also from within the graphs inside it."""
    waiting = [node]
    while waiting:
        inner = waiting.pop()
        yield from inner.input
        waiting.extend(n for a in inner.attribute for n in a.g.node)


def part_for(model: onnx.ModelProto, outputs: Collection[str]) -> onnx.ModelProto:
    """The part of a model that makes some of its outputs, which then are the only ones."""
    needed, nodes = {*outputs}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(all_inputs(node))
    part = with_initializers(model, (t for t in model.graph.initializer if t.name in needed))
    graph = part.graph
    for field, kept in (
        (graph.node, nodes[::-1]),
        (graph.input, [x for x in graph.input if x.name in needed]),
        (graph.output, [x for x in graph.output if x.name in outputs]),
    ):
        copies = [type(x).FromString(x.SerializeToString()) for x in kept]
        del field[:]
        field.extend(copies)
    return part


def _read(path: Path) -> onnx.ModelProto:
    try:
        with open(path, "rb") as file:
            # A pipe or a device has no size, and may have no end either.
            known = os.fstat(file.fileno()).st_size > _LARGEST_FILE
            data = b"" if known else file.read(_LARGEST_FILE + 1)
        if known or len(data) > _LARGEST_FILE:
            raise ModelError(f"{path}: not an ONNX model, which takes 2 GiB at most")
        model = _parse(data, str(path))
        resolve(model, path)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
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
    if model.graph.sparse_initializer:
        raise ModelError(f"{name}: its weights are sparse: make them dense before")
    for tensor in model.graph.initializer:
        _check_size(tensor, name)
    bare, _ = skeleton(model)
    if not all(y.type.tensor_type.HasField("shape") for y in bare.graph.output):
        bare = onnx.shape_inference.infer_shapes(bare)  # which only the checker insists on
    try:
        checker.check_model(bare)
    except checker.ValidationError as error:
        raise ModelError(f"{name}: not a valid ONNX model: {first_line(error)}") from error


def _check_size(tensor: TensorProto, name: str) -> None:
    if not tensor.HasField("raw_data"):
        return
    try:
        complete = len(tensor.raw_data) == size(tensor)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    if not complete:
        raise ModelError(f"{name}: the weights {tensor.name!r} are incomplete; is it truncated?")


def first_line(error: Exception) -> str:
    """What another library's exception says, in one line that is not too long."""
    return shorten(str(error), 300, placeholder=" …") or type(error).__name__


def is_standard(node: onnx.NodeProto) -> bool:
    """Is its operator one of ONNX's own?"""
    return node.domain in ("", "ai.onnx")


def constant_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The initializers, and what is written as a Constant of a tensor, by name."""
    return {tensor.name: tensor for tensor in graph.initializer} | {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The types of the elements of all tensors of which they are known."""
    bare, _ = skeleton(model)
    graph = onnx.shape_inference.infer_shapes(bare).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return kinds | {value.name: value.type.tensor_type.elem_type for value in values}


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
        initializer=[embedded(t) for t in model.graph.initializer if t.name not in weights],
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
    if any(o.domain == _LONG_NAME for o in bare.opset_import):
        _shorten_domains(bare)
    return bare, weights


def _shorten_domains(model: onnx.ModelProto) -> None:
    """ONNX's own domain has two names; the checker knows the short one, which is none."""
    imports = {o.domain: o for o in model.opset_import}
    if "" in imports:
        model.opset_import.remove(imports[_LONG_NAME])
    else:
        imports[_LONG_NAME].domain = ""
    waiting = [*model.graph.node]
    while waiting:
        node = waiting.pop()
        node.domain = "" if node.domain == _LONG_NAME else node.domain
        waiting.extend(inner for a in node.attribute for inner in a.g.node)


def self_contained(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its weights inside, if it stays below the 2 GiB of a protobuf."""
    if any(map(is_external, model.graph.initializer)) and fits(model):
        for tensor in model.graph.initializer:
            if is_external(tensor):
                tensor.CopyFrom(embedded(tensor))
    return model


def fits(model: onnx.ModelProto) -> bool:
    """Would one file hold the model with all its weights?"""
    return _fit(model.graph.initializer)


def _fit(tensors: Iterable[TensorProto]) -> bool:
    return sum(map(_bytes, tensors)) <= _FITS


def _bytes(tensor: TensorProto) -> int:
    """How many bytes the values take."""
    counted = is_external(tensor) or tensor.HasField("raw_data")
    return size(tensor) if counted else int(tensor.ByteSize())


def serialised(message: onnx.ModelProto | TensorProto) -> bytes:
    """The bytes of a file that holds the model, or of a tensor.

    Raises:
        ModelError: it would be larger than 2 GiB.
    """
    try:
        data: bytes = message.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError("the model without its weights does not fit into 2 GiB") from error
    return data


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model, whole or not at all.

    It becomes one file. Weights that lie in files beside the model stay there if `path` is in their
    folder, or above it. Else, and where they are more than one file can hold, they are written to a
    second file beside the first, which is called like it with `.data` behind.

    Raises:
        ClrpError: it cannot be written.
        UsageError: it would replace weights of the model itself.
    """
    target, data = Path(path), Path(f"{os.fspath(path)}.data")
    files = {found.file for found in references(model)}
    inline = _fit(t for t in model.graph.initializer if not is_external(t))
    if (inline and not files) or "\0" in str(target):  # the latter is for `write_whole` to say
        write_whole(target, serialised(model))
        return
    folder = target.parent.resolve()
    beside = inline and all(file.is_relative_to(folder) for file in files)
    replaced = [
        file for file in ([target] if beside else [target, data]) if file.resolve() in files
    ]
    if replaced:
        raise UsageError(f"{replaced[0]} holds weights of the model itself: name another file")
    if beside:
        write_whole(target, serialised(seen_from(model, folder)))
    else:
        _save_in_two(model, data, target)


class _DataFile:
    """Weights that go into a file beside the model, and where in it they will lie.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._end = 0
        self._places: dict[Reference | str, tuple[int, TensorProto]] = {}

    def take(self, tensor: TensorProto) -> TensorProto:
        """The tensor with its values in this file, or as it is if it is not worth it.

        Weights that several tensors refer to are stored once.
        """
        if not is_external(tensor) and not (tensor.HasField("raw_data") and size(tensor) >= _WORTH):
            return tensor
        key = reference(tensor) if is_external(tensor) else tensor.name
        if key not in self._places:
            aligned = _PAGE if size(tensor) >= _LARGE else _WORD
            offset = -(-self._end // aligned) * aligned
            self._places[key] = (offset, tensor)
            self._end = offset + size(tensor)
        return pointing(tensor, self.name, self._places[key][0])

    def write(self, file: BinaryIO) -> None:
        """Write them, each at its place."""
        for offset, tensor in self._places.values():
            file.seek(offset)
            external = is_external(tensor)
            file.writelines(reference(tensor).pieces() if external else [tensor.raw_data])


def _save_in_two(model: onnx.ModelProto, data: Path, target: Path) -> None:
    weights = _DataFile(data.name)
    graph = with_initializers(model, map(weights.take, model.graph.initializer))
    with open_together(data, target) as (data_file, model_file):
        weights.write(data_file)
        model_file.write(serialised(graph))


def fingerprint(model: onnx.ModelProto) -> str:
    """SHA-256 of the model as it came, in hexadecimal.

    That is the SHA-256 of its file, if that was written as protobuf writes it. Where weights lie in
    other files, what is referred to follows, each place once.
    """
    digest, found = hashlib.sha256(), references(model)
    initializers = map(unmarked, model.graph.initializer)
    if not _fit(t for t in model.graph.initializer if not is_external(t)):
        digest.update(serialised(with_initializers(model, [])))
        for tensor in initializers:
            digest.update(serialised(tensor))
    elif found:
        digest.update(serialised(with_initializers(model, initializers)))
    else:
        digest.update(serialised(model))
    for place in found:
        for piece in place.pieces():
            digest.update(piece)
    return digest.hexdigest()


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own `metadata_props` as a dictionary."""
    return {entry.key: entry.value for entry in model.metadata_props}
