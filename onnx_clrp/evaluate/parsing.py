"""Files of annotations, read by the libraries made for them; a fault is one line with its place."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from xml.etree.ElementTree import Element, ParseError

import msgspec
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from onnx_clrp.errors import UsageError

LARGEST_XML = 16 * 2**20
"""Bytes; the annotation of one picture takes a few thousand."""

_BOM = b"\xef\xbb\xbf"

T = TypeVar("T")


def read_json(path: Path, kind: type[T]) -> T:
    """A whole JSON file as `kind`, a type that msgspec understands.

    Raises:
        UsageError: the file cannot be read, is not JSON, or holds something else.
    """
    return _whole(path, read_bytes(path), kind)


def read_json_keys(path: Path) -> frozenset[str]:
    """The keys of a JSON object; none if the file holds anything else.

    Raises:
        UsageError: the file cannot be read.
    """
    data = read_bytes(path)
    try:
        return frozenset(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()


def read_json_records(path: Path, kind: type[T]) -> Iterator[tuple[str, T]]:
    """The objects of a JSON list, or of a file with an object a line, each with where it stands.

    Raises:
        UsageError: as for `read_json`.
    """
    data = read_bytes(path)
    if data.lstrip()[:1] == b"[":
        for number, entry in enumerate(_whole(path, data, list[msgspec.Raw]), start=1):
            where = f"{named(path)}, entry {number}"
            yield where, _decoded(bytes(entry), kind, where)
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            yield named(path, number), _decoded(line, kind, named(path, number))


def read_csv(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with where it stands; columns are called in small letters.

    Raises:
        UsageError: the file cannot be read, a column is missing or there twice, or a row has not
            as many cells as the header.
    """
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [cell.strip().casefold() for cell in next(rows, [])]
        _check_columns(header, needed, path)
        for cells in rows:
            where = named(path, rows.line_num)
            if len(cells) not in (0, len(header)):
                raise UsageError(f"{where}: {len(cells)} cells under a header of {len(header)}")
            if cells:
                yield where, dict(zip(header, map(str.strip, cells), strict=True))
    except csv.Error as error:
        raise UsageError(f"{named(path, rows.line_num)}: {error}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the blanks around them.

    Raises:
        UsageError: the file cannot be read, or is no text in UTF-8.
    """
    return [line.strip() for line in re.split("\r\n|\r|\n", _text(path))]


def read_xml(path: Path) -> Element:
    """The root of an XML file; one that defines entities is refused, for they can fill the memory.

    Raises:
        UsageError: the file cannot be read, is not XML, or is no annotation by its size or means.
    """
    data = read_bytes(path, LARGEST_XML)
    try:
        root: Element = SafeTree.fromstring(data)
    except DefusedXmlException as error:
        fault = "it defines entities or refers to other files: write it anew without"
        raise UsageError(f"{named(path)}: {fault}") from error
    except (ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{named(path)}: no XML that can be read, {error}") from error
    return root


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """A file without UTF-8's mark at its beginning.

    Raises:
        UsageError: it cannot be read, or has more than `most` bytes.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited on for ever
        raise UsageError(f"{named(path)}: name a file, not a folder or device")
    try:
        with open(path, "rb") as file:
            data = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise UsageError(f"{named(path)} cannot be read: {error.strerror}") from error
    if most is not None and len(data) > most:
        raise UsageError(f"{named(path)}: more than {most:,} bytes are no annotation of a picture")
    return data.removeprefix(_BOM)


def named(path: Path, line: int | None = None) -> str:
    """How errors name a file, and a line of it, of which the first is 1."""
    return f"annotations {str(path)!r}" + (f", line {line}" if line else "")


def _text(path: Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{named(path, line)}: not UTF-8; save it as that") from error


def _whole(path: Path, data: bytes, kind: type[T]) -> T:
    """As `_decoded`, with the line of what is malformed instead of the byte."""
    try:
        return _decoded(data, kind, named(path))
    except UsageError as error:
        place = re.search(r" \(byte (\d+)\)$", str(error))
        if place is None:
            raise
        line = data.count(b"\n", 0, int(place[1])) + 1
        fault = str(error)[: place.start()].removeprefix(named(path))
        raise UsageError(f"{named(path, line)}{fault}") from error


def _decoded(data: bytes, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: {error}") from error


def _check_columns(header: Sequence[str], needed: Sequence[str], path: Path) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        wanted = f"its first line must name {', '.join(needed)}, with commas between"
        raise UsageError(f"{named(path, 1)}: no column {missing[0]!r}; {wanted}")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UsageError(f"{named(path, 1)}: two columns are called {twice[0]!r}")
