"""Labelled pictures: what is in each, where, and which of the model's classes stand for it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from itertools import islice
from pathlib import Path

from onnx_clrp.errors import ImageError, UsageError
from onnx_clrp.evaluate.annotations import NOTHING, Annotation, Mark, Omission, Omitted
from onnx_clrp.evaluate.classes import Classes
from onnx_clrp.evaluate.header import Edges, Header, read_header

Omissions = Counter[tuple[Omission, str]]

_SLACK = 0.01
"""Of the picture's side: what a box may reach beyond it by rounding, without a word about it."""

_NAMES = 10
"""So many names stand in a note or an error."""


@dataclass(frozen=True)
class Box:
    """A part of the upright picture, in fractions of its width and height.

    Raises:
        UsageError: it has no area, or leaves the picture.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        """Refuses what is no part of a picture."""
        if not (0 <= self.x0 < self.x1 <= 1 and 0 <= self.y0 < self.y1 <= 1):
            raise UsageError(f"{self} is not within 0 … 1, or has no area")


@dataclass(frozen=True)
class Object:
    """Something that a picture is labelled with.

    Attributes:
        name: what the data set calls it: "n02391049", "zebra", "17".
        targets: the model's classes that stand for it; usually one. Of several, the one with the
            highest score is explained.
        boxes: where it is, each of its kind in a box; empty where that is not known.
    """

    name: str
    targets: tuple[int, ...]
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A picture with what is in it.

    Attributes:
        key: its path below the data set's folder of pictures, with slashes: unique, and the same
            wherever the data set lies.
        path: where it lies.
        objects: of classes that the model has, each class once; at least one.
    """

    key: str
    path: Path
    objects: tuple[Object, ...]


class Dataset:
    """Labelled pictures in a fixed order, by their paths.

    What is in a picture is read when its turn comes. Those without an object of any class that
    the model has are left out; where each picture has an annotation file of its own, only reading
    it tells which these are.

    Boxes are taken to be of the picture as stored, and turned with it where EXIF says that it is
    shown otherwise, unless their annotation gives the size of the upright picture. If a picture's
    size cannot be read, its objects have no boxes: whoever decodes it meets the fault.

    Attributes:
        name: what the data set is called.
        root: the folder that keys are relative to.
        keys: of its pictures in order, with those that may turn out to be left out.

    Args:
        name: what it is called.
        root: the folder of pictures.
        keys: paths of pictures below `root`, with slashes.
        read: gives what is annotated to one of them.
        classes: finds the model's classes.
        at_hand: whether `read` takes no time, so that pictures can be left out right now.
        notes: lines on how the data set was understood.
        omitted: what was left out before.

    Raises:
        UsageError: no picture has an object of a class that the model has.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        keys: Iterable[str],
        read: Callable[[str], Annotation],
        classes: Classes,
        *,
        at_hand: bool,
        notes: Sequence[str] = (),
        omitted: Omitted = NOTHING,
    ) -> None:
        self.name, self.root = name, root
        self.keys: Sequence[str] = sorted(set(keys))
        self._read, self._classes = read, classes
        self._notes, self._before = list(notes), omitted
        # Under their keys, so that nothing counts twice when a picture is looked at again.
        self._omitted: dict[str, Omitted] = {}
        self._faults: dict[str, Omitted] = {}
        self._headers: dict[str, Header | None] = {}
        self._length: int | None = None
        if at_hand:
            self.keys = [key for key in self.keys if self._known(key)]
            self._length = len(self.keys)
        if not any(self._known(key) for key in self.keys):
            raise UsageError(self._nothing())

    def __len__(self) -> int:
        """How many pictures there are; the first time it may have to read their annotations."""
        if self._length is None:
            self._length = sum(1 for key in self.keys if self._known(key))
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        return (sample for sample in map(self.sample, self.keys) if sample is not None)

    def sample(self, key: str) -> Sample | None:
        """The picture of a key; None if it is left out.

        Raises:
            UsageError: its annotation is broken.
        """
        names: dict[tuple[int, ...], str] = {}
        boxes: dict[tuple[int, ...], list[Box]] = {}
        faults: Omissions = Counter()
        for targets, mark in self._known(key):
            names.setdefault(targets, mark.name)
            box = self._box(key, mark, faults)
            boxes.setdefault(targets, []).extend([box] if box else [])
        if faults:
            self._faults[key] = faults
        objects = tuple(Object(name, to, tuple(boxes[to])) for to, name in names.items())
        return Sample(key, self.root / key, objects) if objects else None

    def subset(self, pictures: int | Iterable[int], seed: int = 0) -> Dataset:
        """Some of the pictures, in the order of the data set.

        Args:
            pictures: how many to draw at random; or which to take, by their places in `keys`.
            seed: another one draws others. The same draws the same from the same data set, on any
                machine; of one that has grown, mostly the same.

        Raises:
            UsageError: the number is less than 1, a place is not one of a picture, or nothing that
                the model knows is in the pictures.
        """
        chosen = copy.copy(self)
        chosen._omitted, chosen._faults, chosen._length = {}, {}, None
        if isinstance(pictures, int):
            if pictures < 1:
                raise UsageError(f"a subset takes at least one picture, not {pictures}")
            if pictures >= len(self.keys):
                return self
            order = sorted(self.keys, key=lambda key: _drawn(seed, key))
            drawn = set(islice((key for key in order if chosen._known(key)), pictures))
            how = f"of {len(self.keys):,} pictures {len(drawn):,} were drawn with the seed {seed}"
        else:
            drawn = {self._place(place) for place in pictures}
            how = f"of {len(self.keys):,} pictures {len(drawn):,} were chosen"
        chosen.keys = [key for key in self.keys if key in drawn]
        chosen._notes = [*self._notes, how]
        if not any(chosen._known(key) for key in chosen.keys):
            raise UsageError(chosen._nothing())
        return chosen

    @property
    def notes(self) -> list[str]:
        """How the data set was understood, and what was left out so far, counted.

        It is complete once every picture has had its turn.
        """
        total = Counter(self._before)
        for omitted in (*self._omitted.values(), *self._faults.values()):
            total.update(omitted)
        lines = []
        for omission in Omission:
            names = {name: n for (kind, name), n in total.items() if kind is omission}
            if names:
                lines.append(omission.said(sum(names.values())) + _most(names))
        return [*self._notes, *self._classes.notes(), *lines]

    def _known(self, key: str) -> list[tuple[tuple[int, ...], Mark]]:
        """What is in a picture of classes that the model has; the rest is counted."""
        annotation = self._read(key)
        omitted = Counter(annotation.omitted)
        known = []
        for mark in annotation.marks:
            targets = self._classes.targets(mark.name)
            if targets:
                known.append((targets, mark))
            else:
                omitted[Omission.OBJECT, mark.name] += 1
        if not known:
            omitted[Omission.PICTURE, ""] = 1
        if omitted:
            self._omitted[key] = omitted
        return known

    def _box(self, key: str, mark: Mark, faults: Omissions) -> Box | None:
        """Where a thing is in the upright picture; None if that is not known, or nowhere in it."""
        if mark.box is None:
            return None
        header = self._header(key)
        if header is None:
            faults[Omission.UNPLACED, ""] += 1
            return None
        width, height = extent = mark.extent or header.size
        x0, y0, x1, y1 = mark.box
        whole = x0 / width, y0 / height, x1 / width, y1 / height
        x0, y0, x1, y1 = header.upright(_cut(whole), extent)
        if not (x0 < x1 and y0 < y1):
            faults[Omission.EMPTY, ""] += 1
            return None
        if min(whole) < -_SLACK or max(whole) > 1 + _SLACK:
            faults[Omission.CUT, ""] += 1
        return Box(x0, y0, x1, y1)

    def _header(self, key: str) -> Header | None:
        if key not in self._headers:
            try:
                self._headers[key] = read_header(self.root / key)
            except ImageError:  # who decodes the picture says so, for that one and for all others
                self._headers[key] = None
        return self._headers[key]

    def _place(self, place: int) -> str:
        if not 0 <= place < len(self.keys):
            raise UsageError(f"picture {place} is not in 0 … {len(self.keys) - 1}")
        return self.keys[place]

    def _nothing(self) -> str:
        """That no object was found, what there was instead, and the cure."""
        names: Counter[str] = Counter()
        for omitted in self._omitted.values():
            names.update({name: n for (_, name), n in omitted.items() if name})
        if not names:
            return "; ".join([f"{self.name}: no object is in any of its pictures", *self.notes])
        common = [name for name, _ in names.most_common(_NAMES)]
        cure = self._classes.cure(common)
        return f"{self.name}: the model has none of its classes{_most(names)}: {cure}"


def _cut(edges: Edges) -> Edges:
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) for edge in edges)
    return x0, y0, x1, y1


def _drawn(seed: int, key: str) -> bytes:
    """Where a picture stands in a random order that depends on nothing else."""
    return blake2s(f"{seed} {key}".encode(errors="surrogatepass"), digest_size=16).digest()


def _most(names: Mapping[str, int]) -> str:
    """The commonest names in brackets, with their counts; nothing for the name ""."""
    common = sorted((name for name in names if name), key=lambda name: (-names[name], name))
    shown = [f"{' '.join(name.split())} {names[name]:,}" for name in common[:_NAMES]]
    if len(common) > _NAMES:
        shown.append(f"and {len(common) - _NAMES:,} others")
    return f" ({', '.join(shown)})" if shown else ""
