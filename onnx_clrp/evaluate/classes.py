"""What a data set calls a thing, as class numbers of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.parsing import named, read_json, read_lines
from onnx_clrp.labels import plain, spellings

_WORDNET = re.compile(r"n[0-9]{8}")
_NUMBER = re.compile(r"-?[0-9]+")


class Classes:
    """Finds the classes that stand for a name, each name once.

    It looks, in this order, for the name in `mapping`, among `synsets`, among the whole `labels`,
    among the synonyms that labels list with commas, and takes a number for itself. Labels are the
    same in small and capital letters.

    Args:
        count: how many classes the model has.
        mapping: class numbers by name.
        labels: the model's names of its classes, in order.
        synsets: WordNet ids of its classes, in order; empty for a class that has none.

    Attributes:
        ambiguous: names that several classes have as their label, and that stand for none.

    Raises:
        UsageError: a number is not one of a class, or a list has not one entry for each class.
    """

    def __init__(
        self,
        count: int,
        mapping: Mapping[str, int | Sequence[int]] | None = None,
        labels: Sequence[str] | None = None,
        synsets: Sequence[str] | None = None,
    ) -> None:
        for what, given in (("labels", labels), ("WordNet ids", synsets)):
            if given is not None and len(given) != count:
                raise UsageError(f"there are {len(given)} {what}, but {count} classes")
        self.count = count
        self.ambiguous: dict[str, list[int]] = {}
        self._mapping = {name: self._several(name, to) for name, to in (mapping or {}).items()}
        self._synsets = _places([[name] if is_synset(name) else [] for name in synsets or ()])
        known = [spellings(label) for label in labels or ()]
        self._whole = _places([names[:1] for names in known])
        self._synonyms = _places([names[1:] for names in known])
        self._found: dict[str, tuple[int, ...]] = {}

    def targets(self, name: str) -> tuple[int, ...]:
        """The classes that stand for a name; none where the model has none.

        Raises:
            UsageError: the name is a number, but not one of a class.
        """
        if name not in self._found:
            self._found[name] = tuple(self._look_up(name))
        return self._found[name]

    def cure(self, names: Sequence[str]) -> str:
        """What to do if the model has no class for any of the names, of which there is one."""
        if self.ambiguous:
            return self.notes()[0]
        if any(map(is_synset, names)) and not self._synsets:
            return "give the list of WordNet ids in the order of the model's classes"
        example = json.dumps({names[0]: [0]}, ensure_ascii=False)
        return f"give the model's labels, or class numbers by name as JSON, {example}"

    def notes(self) -> list[str]:
        """A line for each name that several classes have."""
        return [
            f"{name!r} is the label of the classes {', '.join(map(str, numbers))}, and was left "
            "out: give class numbers by name"
            for name, numbers in sorted(self.ambiguous.items())
        ]

    def _look_up(self, name: str) -> Sequence[int]:
        if name in self._mapping:
            return self._mapping[name]
        if name in self._synsets:
            return self._synsets[name]
        for table in (self._whole, self._synonyms):
            labelled = table.get(plain(name), [])
            if len(labelled) > 1:
                self.ambiguous[name] = labelled
                return ()
            if labelled:
                return labelled
        if _NUMBER.fullmatch(name):
            number = int(name) if len(name) < 10 else -1
            return (self._one(number, f"class {name}"),)
        return ()

    def _several(self, name: str, given: int | Sequence[int]) -> list[int]:
        numbers = [given] if isinstance(given, int) else given
        return list(dict.fromkeys(self._one(n, f"class {n} for {name!r}") for n in numbers))

    def _one(self, number: int, what: str) -> int:
        if not 0 <= number < self.count:
            raise UsageError(f"{what} is not in 0 … {self.count - 1}, the classes of the model")
        return number


def is_synset(name: str) -> bool:
    """Whether a name is a WordNet id, like n02391049."""
    return _WORDNET.fullmatch(name) is not None


def read_classes(path: Path) -> dict[str, tuple[int, ...]]:
    """Class numbers by name from JSON, `{"zebra": 340, "elephant": [386, 101]}`.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    given = read_json(path, dict[str, int | list[int]])
    return {name: (to,) if isinstance(to, int) else tuple(to) for name, to in given.items()}


def read_synsets(path: Path) -> list[str] | None:
    """The WordNet ids of the classes, in order, "" for a class without; None if there are none.

    Understands lines that begin with an id (synset_words.txt, LOC_synset_mapping.txt), and JSON as
    Keras has it, `{"0": ["n01440764", "tench"], …}`, or a list of the like.

    Raises:
        UsageError: the file cannot be read, or is JSON of another form.
    """
    ids = [entry if is_synset(entry) else "" for entry in _first_words(path)]
    return ids if any(ids) else None


def _first_words(path: Path) -> list[str]:
    lines = [line for line in read_lines(path) if line]
    if lines and lines[0].startswith("["):
        return [_first(entry) for entry in read_json(path, list[str | list[str]])]
    if lines and lines[0].startswith("{"):
        given = read_json(path, dict[str, str | list[str]])
        missing = next((i for i in range(len(given)) if str(i) not in given), None)
        if missing is not None:
            raise UsageError(f"{named(path)}: it numbers {len(given)} classes, but none {missing}")
        return [_first(given[str(number)]) for number in range(len(given))]
    return [line.split()[0] for line in lines]


def _first(entry: str | list[str]) -> str:
    return entry if isinstance(entry, str) else "".join(entry[:1])


def _places(spellings: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """By spelling, the numbers of the classes that have it."""
    found: dict[str, list[int]] = {}
    for number, names in enumerate(spellings):
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(number)
    return found
