"""Class names: read from the usual files, and found again by what a user types."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx_clrp.errors import UsageError

_WORDNET = re.compile(r"^n\d{8}\s+")


def read_labels(path: Path, classes: int) -> list[str]:
    """The names of the classes, in order.

    Understands a name a line (a WordNet id in front is dropped), a JSON list of names, and a
    JSON object from class number to name or to `[id, name]`, as Keras has it.

    Raises:
        UsageError: the file cannot be read, or does not hold one name for each class.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"labels {str(path)!r} cannot be read: {error}") from error
    try:
        labels = _from_json(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else _lines(text)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UsageError(f"labels {str(path)!r} are not in a form that is known") from error
    if len(labels) != classes:
        raise UsageError(f"{str(path)!r} has {len(labels)} labels, the model {classes} classes")
    return labels


def _lines(text: str) -> list[str]:
    return [_WORDNET.sub("", line).strip() for line in text.splitlines() if line.strip()]


def _from_json(data: Any) -> list[str]:
    entries = data if isinstance(data, list) else [data[str(i)] for i in range(len(data))]
    return [str(entry[-1] if isinstance(entry, list) else entry) for entry in entries]


def parse_targets(given: Sequence[str], labels: Sequence[str] | None, classes: int) -> list[int]:
    """Class numbers from numbers and labels, several with commas between, each once.

    Raises:
        UsageError: a number out of range, or a label that is unknown or not unique.
    """
    found: list[int] = []
    for text in given:
        # A label may hold commas itself ("zebra, Equus quagga"): the whole is tried first.
        whole = _matches(text, labels)
        parts = [text] if len(whole) == 1 else text.split(",")
        found += [_class(part.strip(), labels, classes) for part in parts]
    return list(dict.fromkeys(found))


def _class(text: str, labels: Sequence[str] | None, classes: int) -> int:
    named = _matches(text, labels)
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise UsageError(f"several classes are called {text!r}: {', '.join(map(str, named))}")
    if re.fullmatch(r"-?\d+", text):
        if not 0 <= int(text) < classes:
            raise UsageError(f"target {text} is not in 0 … {classes - 1}")
        return int(text)
    if labels is None:
        raise UsageError(f"no class names are known for {text!r}: give --labels FILE, or a number")
    names = [name for label in labels for name in spellings(label)]
    close = difflib.get_close_matches(plain(text), names, n=3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise UsageError(f"no class is called {text!r}{hint}")


def _matches(text: str, labels: Sequence[str] | None) -> list[int]:
    wanted = plain(text)
    return [i for i, label in enumerate(labels or ()) if wanted in spellings(label)]


def spellings(label: str) -> list[str]:
    """The label, and each of the synonyms that it lists."""
    return [plain(label), *(plain(part) for part in label.split(",") if "," in label)]


def plain(text: str) -> str:
    """The text in small letters, with a blank for each run of blanks and underscores."""
    return " ".join(text.replace("_", " ").casefold().split())
