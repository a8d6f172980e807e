"""The pictures and annotation files in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

from PIL import Image

from onnx_clrp.decoding import FORMATS
from onnx_clrp.errors import UsageError


@dataclass(frozen=True)
class Listing:
    """The pictures below a folder, as paths relative to it, and the number of other files."""

    keys: list[str] = field(default_factory=list)
    others: int = 0


def pictures(root: Path) -> Listing:
    """By their names' endings.

    Raises:
        UsageError: there are none, or the folder cannot be read.
    """
    Image.init()
    endings = {ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS}
    files = files_below(root)
    keys = [file for file in files if PurePosixPath(file).suffix.casefold() in endings]
    if not keys:
        raise UsageError(f"no pictures in the folder {str(root)!r}")
    return Listing(keys, len(files) - len(keys))


def files_below(root: Path) -> list[str]:
    """The files at any depth below a folder, relative to it, in order.

    Those whose names begin with a dot, which systems leave behind, do not count.

    Raises:
        UsageError: a folder cannot be read.
    """
    found = []
    ways = {str(root): [os.path.realpath(root)]}
    for at, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
        way = ways.pop(at)
        inner = {name: os.path.realpath(os.path.join(at, name)) for name in _shown(folders)}
        folders[:] = [name for name, real in inner.items() if not _leads_back(real, way)]
        ways |= {os.path.join(at, name): [*way, inner[name]] for name in folders}
        below = Path(at).relative_to(root)
        found += [(below / name).as_posix() for name in _shown(names)]
    return sorted(found)


def _leads_back(folder: str, way: Iterable[str]) -> bool:
    """Whether a link leads to a folder on the way to it, so that following it would never end."""
    return any(Path(passed).is_relative_to(folder) for passed in way)


def _shown(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def folders_in(path: Path) -> list[str]:
    """The names of the folders right in a folder, in order.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            return sorted(_shown(entry.name for entry in entries if entry.is_dir()))
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise UsageError(f"the folder {error.filename!r} cannot be read: {error.strerror}") from error


class XmlFiles:
    """XML files, found by the pictures that they are of.

    Attributes:
        names: of all files, by their paths below their folder, without ending.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
        stems: dict[str, list[Path]] = {}
        for root in folders:
            for file in files_below(root):
                name = PurePosixPath(file)
                if name.suffix.casefold() == ".xml":
                    self._files[name.with_suffix("").as_posix()] = root / file
                    stems.setdefault(name.stem, []).append(root / file)
        self.names = frozenset(self._files)
        self._stems = {stem: files[0] for stem, files in stems.items() if len(files) == 1}

    def of(self, key: str) -> Path | None:
        """At the same place, or else anywhere if only one has the name."""
        name = PurePosixPath(key)
        return self._files.get(name.with_suffix("").as_posix()) or self._stems.get(name.stem)


def kaggle_root(path: Path) -> Path | None:
    """Where Kaggle's data set of ILSVRC begins, if it is that."""
    roots = (path, path / "ILSVRC")
    return next((root for root in roots if (root / "Data" / "CLS-LOC").is_dir()), None)
