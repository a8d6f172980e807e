"""Tells the forms of data sets apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.catalogues import is_coco
from onnx_clrp.evaluate.folders import folders_in, kaggle_root


def recognised(path: Path, options: Mapping[str, Any], forms: Iterable[str]) -> str:
    """The form of a data set, by what is there and by the options that are given.

    Raises:
        UsageError: it is none, or more than one, of the forms.
    """
    possible = _possible_file(path) if path.is_file() else _possible_folder(path, options)
    if len(possible) == 1:
        return possible[0]
    choice = ", ".join(possible or forms)
    raise UsageError(
        f"the form of the data set {str(path)!r} cannot be told: say which of {choice}"
    )


def _possible_file(path: Path) -> list[str]:
    suffix = path.suffix.casefold()
    if suffix == ".json":
        return ["coco" if is_coco(path) else "manifest"]
    return ["manifest"] if suffix in (".csv", ".jsonl", ".ndjson") else []


def _possible_folder(path: Path, options: Mapping[str, Any]) -> list[str]:
    signs = {
        "voc": (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir(),
        "coco": any(path.glob("annotations/instances_*.json")),
        "ilsvrc": kaggle_root(path) is not None,
    }
    if "annotations" in options:
        given = options["annotations"]
        single = isinstance(given, Path | str) and Path(given).suffix.casefold() == ".json"
        signs["coco" if single else "ilsvrc"] = True
    possible = [name for name, there in signs.items() if there]
    if not possible and folders_in(path):
        return ["folder"]
    return possible
