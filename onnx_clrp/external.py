"""Weights that lie in files beside the model: which of them are followed, and how they are read.

A reference is followed only if this process has checked it. To those of a model that was read from
a path, `resolve` adds the file that was found and a secret of the process. ONNX Runtime refuses
such entries, so that a reference cannot get past `pointing` unnoticed.
"""

from __future__ import annotations

import hmac
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnx_clrp.errors import ModelError

LARGEST = 64 * 2**30
"""No more bytes than these are read from the files of one model; a few classifiers have 10 GB."""

_LARGEST_NESTED = 2**30
"""Of constants inside nodes and subgraphs, which are read at once."""

_PIECE = 2**20

_FILE, _TOKEN = "onnx_clrp.file", "onnx_clrp.token"
_SECRET = secrets.token_hex(16)

_MEMORY_TAG = "_ORT_MEM_ADDR_"
"""ONNX Runtime takes the offset behind a location with this name for an address in memory."""

_BITS = {
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ"), 8),
    **dict.fromkeys(("FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("INT32", "UINT32", "FLOAT"), 32),
    **dict.fromkeys(("INT64", "UINT64", "DOUBLE", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
"""By name, since older versions of ONNX do not have all of them."""


@dataclass(frozen=True)
class Reference:
    """Where the bytes of a tensor lie: in a file that was checked to hold them."""

    file: Path
    offset: int
    length: int

    def pieces(self) -> Iterator[bytes]:
        """The bytes, a piece at a time."""
        missing = self.length
        try:
            with open(self.file, "rb") as file:
                file.seek(self.offset)
                while missing and (piece := file.read(min(_PIECE, missing))):
                    yield piece
                    missing -= len(piece)
        except OSError as error:
            raise ModelError(f"{self.file}: {error.strerror or error}") from error
        if missing:
            raise ModelError(f"{self.file}: the file has become shorter")


# -- tensors -----------------------------------------------------------------------------------


def is_external(tensor: TensorProto) -> bool:
    """Do the tensor's values lie in a file of their own?"""
    return tensor.data_location == TensorProto.EXTERNAL


def size(tensor: TensorProto) -> int:
    """How many bytes the tensor's type and shape ask for.

    Raises:
        ModelError: it has no such size.
    """
    bits = _bits(tensor)
    if bits is None or any(d < 0 for d in tensor.dims):
        raise ModelError(f"the weights {_name(tensor)} have an unknown type or a negative size")
    elements: int = math.prod(tensor.dims)
    return (elements * bits + 7) // 8


def reference(tensor: TensorProto) -> Reference:
    """Where the values of an external tensor lie.

    Raises:
        ModelError: nobody has checked that.
    """
    entries = _entries(tensor)
    if not hmac.compare_digest(entries.get(_TOKEN, "").encode(), _SECRET.encode()):
        raise ModelError(
            f"the weights {_name(tensor)} lie in a file beside the model: give the model's path,"
            " or load it together with its external data"
        )
    return Reference(Path(entries[_FILE]), int(entries.get("offset", "0")), size(tensor))


def array_of(tensor: TensorProto) -> NDArray[Any]:
    """The values of a tensor, wherever they lie; those in files are mapped and not copied."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    plain = dtype.itemsize * 8 == _bits(tensor) and sys.byteorder == "little"
    if not plain or 0 in tensor.dims:
        return numpy_helper.to_array(embedded(tensor))
    found = reference(tensor)
    try:
        stored = np.memmap(found.file, np.uint8, "r", found.offset, (found.length,))
        return np.asarray(stored).view(dtype).reshape(tuple(tensor.dims))
    except (OSError, ValueError) as error:
        raise ModelError(f"{found.file}: cannot be read any more: {error}") from error


def embedded(tensor: TensorProto) -> TensorProto:
    """The tensor with its values inside: itself, or a copy of one whose values lie in a file."""
    if not is_external(tensor):
        return tensor
    return TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        doc_string=tensor.doc_string,
        raw_data=b"".join(reference(tensor).pieces()),
    )


def pointing(tensor: TensorProto, location: str, offset: int) -> TensorProto:
    """The tensor without values, as one whose values lie at that place: for others to read."""
    entries = {"location": location, "offset": str(offset), "length": str(size(tensor))}
    return TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        doc_string=tensor.doc_string,
        data_location=TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items()],
    )


def unmarked(tensor: TensorProto) -> TensorProto:
    """The tensor without what `resolve` added to it."""
    if not is_external(tensor):
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    del copy.external_data[:]
    copy.external_data.extend(e for e in tensor.external_data if e.key not in (_FILE, _TOKEN))
    return copy


# -- models ------------------------------------------------------------------------------------


def references(model: onnx.ModelProto) -> list[Reference]:
    """Where the weights lie that are not in the model itself, each place once."""
    found = [reference(t) for t in model.graph.initializer if is_external(t)]
    return list(dict.fromkeys(found))


def refuse_unchecked(model: onnx.ModelProto) -> None:
    """A ModelError if any tensor refers to a file that this process has not checked."""
    references(model)
    for tensor in _nested(model):
        raise ModelError(f"the tensor {_name(tensor)} lies in a file: give the model's path")


def resolve(model: onnx.ModelProto, path: Path) -> None:
    """Check where every external tensor of a model read from `path` lies, and enter it there.

    Of initializers the values stay where they are. Others, of constants in nodes and in subgraphs,
    are read at once: they are small, and nothing else knows how to find them.

    Raises:
        ModelError: a reference leaves the model's folder, or its file does not hold the tensor.
    """
    kept = [t for t in model.graph.initializer if is_external(t)]
    nested = [*_nested(model)]
    # A model may be a link itself, into a folder where its data lies too.
    folders = [*dict.fromkeys((path.parent.resolve(), path.resolve().parent))]
    for tensor in (*kept, *nested):
        file = _checked(tensor, folders)
        for key, value in ((_FILE, str(file)), (_TOKEN, _SECRET)):
            tensor.external_data.add(key=key, value=value)
    _limit(kept, LARGEST)
    _limit(nested, _LARGEST_NESTED)
    for tensor in nested:
        tensor.CopyFrom(embedded(tensor))


def with_initializers(
    model: onnx.ModelProto, initializers: Iterable[TensorProto]
) -> onnx.ModelProto:
    """A copy of the model with these initializers; its own are not even copied."""
    rest = {f.name: value for f, value in model.graph.ListFields() if f.name != "initializer"}
    about = {f.name: value for f, value in model.ListFields() if f.name != "graph"}
    copy = onnx.ModelProto(**about, graph=onnx.GraphProto(**rest))
    copy.graph.initializer.extend(initializers)
    return copy


def seen_from(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy of the model that refers to its files relative to the folder that they lie in."""
    return with_initializers(model, (_relative(t, folder) for t in model.graph.initializer))


def _relative(tensor: TensorProto, folder: Path) -> TensorProto:
    if not is_external(tensor):
        return tensor
    found = reference(tensor)
    return pointing(tensor, found.file.relative_to(folder).as_posix(), found.offset)


# -- checks ------------------------------------------------------------------------------------


def _nested(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every external tensor anywhere in the model but those among the graph's initializers."""
    yield from _external_within(model, "graph")
    yield from _external_within(model.graph, "initializer")


def _external_within(message: Message, left_out: str = "") -> Iterator[TensorProto]:
    if isinstance(message, TensorProto):
        if is_external(message):
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.name != left_out:
            for part in [value] if isinstance(value, Message) else value:
                yield from _external_within(part)


def _checked(tensor: TensorProto, folders: Iterable[Path]) -> Path:
    """The file that holds the tensor, below one of the folders."""
    entries = _entries(tensor)
    if {_FILE, _TOKEN} & {*entries}:
        raise _refused(tensor, "was written to a file by mistake: write it with onnx_clrp.save")
    location = entries.get("location", "")
    file, about = _found(tensor, location, folders)
    if not stat.S_ISREG(about.st_mode):
        raise _refused(tensor, f"lies in {location!r}, which is no file")
    offset, length = (_number(tensor, entries, key) for key in ("offset", "length"))
    if length not in (None, size(tensor)):
        raise _refused(tensor, f"has {length} bytes in {location!r}, and needs {size(tensor)}")
    if (offset or 0) + size(tensor) > about.st_size:
        raise _refused(tensor, f"lies beyond the end of {location!r}; is that incomplete?")
    return file


def _found(
    tensor: TensorProto, location: str, folders: Iterable[Path]
) -> tuple[Path, os.stat_result]:
    """The location as a path without links, and what is there; it must lie below a folder."""
    if Path(location).anchor or "\0" in location:
        raise _refused(tensor, f"lies in {location!r}, an absolute path or none at all")
    for folder in folders:
        try:
            file = (folder / location).resolve()
            if not any(file.is_relative_to(f) for f in folders):
                problem = f"points outside of the model's folder: {location!r}"
            elif _MEMORY_TAG in str(file):
                problem = f"lies in {location!r}, a name that stands for memory"
            else:
                return file, os.stat(file)
        except OSError as error:
            problem = f"lies in {location!r}: {error.strerror}"
        except RuntimeError:  # up to Python 3.12
            problem = f"lies in {location!r}, a loop of links"
    raise _refused(tensor, problem)


def _number(tensor: TensorProto, entries: dict[str, str], key: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _refused(tensor, f"has the {key} {text[:40]!r}")
    return int(text)


def _limit(external: Iterable[TensorProto], most: int) -> None:
    total = sum(map(size, external))
    if total > most:
        raise ModelError(
            f"it refers to {total / 2**30:,.1f} GiB in other files, the limit is"
            f" {most / 2**30:,.0f} GiB"
        )


def _bits(tensor: TensorProto) -> int | None:
    kind = TensorProto.DataType.DESCRIPTOR.values_by_number.get(tensor.data_type)
    return _BITS.get(kind.name) if kind is not None else None


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _refused(tensor: TensorProto, problem: str) -> ModelError:
    return ModelError(f"its external data cannot be read: {_name(tensor)} {problem[:300]}")


def _name(tensor: TensorProto) -> str:
    return repr(tensor.name[:80])
