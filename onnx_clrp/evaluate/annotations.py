"""What files of annotations say is in a picture, before the model's classes come into it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath, PureWindowsPath
from types import MappingProxyType
from typing import NamedTuple
from xml.etree.ElementTree import Element

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.header import Edges
from onnx_clrp.evaluate.parsing import named, read_xml

Extent = tuple[float, float]
"""The width and height of a picture, in the units of a box."""


class Omission(Enum):
    """What a data set holds and an evaluation does not see, as a noun and what is wrong with it."""

    PICTURE = ("picture", "without an object of any class that the model has")
    OBJECT = ("object", "of a class that the model does not have")
    ABSENT = ("picture", "that the annotations name but the folder does not hold")
    UNANNOTATED = ("picture", "without annotation")
    STRAY = ("picture", "outside of the folders of classes")
    OTHER = ("file", "without the ending of a picture")
    DIFFICULT = ("object", "marked as difficult")
    CROWD = ("object", "marked as a crowd")
    UNLISTED = ("object", "in pictures that the annotations do not list")
    EMPTY = ("box", "without area inside the picture")
    CUT = ("box", "reaching out of the picture, and cut off there")
    UNPLACED = ("box", "in pictures whose size cannot be read")

    def said(self, count: int) -> str:
        """How often it happened, in words."""
        noun, fault = self.value
        plural = "" if count == 1 else "es" if noun.endswith("x") else "s"
        return f"{count:,} {noun}{plural} {fault}"


Omitted = Mapping[tuple[Omission, str], int]
"""How often each omission happened, by the name of the object where that matters, else by ""."""

NOTHING: Omitted = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Mark:
    """A thing in a picture.

    Attributes:
        name: what the data set calls it.
        box: its edges in the picture as stored; None where they are not known.
        extent: the picture's width and height in the units of `box`, so 1 and 1 for fractions;
            None where these are pixels, and only the picture itself tells how many it has.
    """

    name: str
    box: Edges | None = None
    extent: Extent | None = None


class Annotation(NamedTuple):
    """All that is said of one picture."""

    marks: Sequence[Mark]
    omitted: Omitted = NOTHING


def inside(text: str, where: str) -> str:
    """The path of a picture below the folder of pictures, in its one form, with slashes.

    Raises:
        UsageError: it leads out of the folder, or to the folder itself.
    """
    here, windows = PurePath(text), PureWindowsPath(text)
    if here.anchor or windows.anchor or ".." in windows.parts or "\0" in text:
        raise UsageError(f"{where}: {text!r} leads out of the folder of pictures: name one in it")
    if not here.parts:
        raise UsageError(f"{where}: no picture is named")
    return here.as_posix()


def number(text: str, where: str) -> float:
    """A finite number.

    Raises:
        UsageError: the text is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: {text!r} is not a number")
    return value


def counted(counts: Mapping[Omission, int]) -> Omitted:
    """What was left out, by kind alone; kinds that did not happen are not there."""
    return {(omission, ""): count for omission, count in counts.items() if count}


# -- Pascal VOC's XML, which ILSVRC has as well ------------------------------------------------


def read_voc(path: Path, first: int) -> Annotation:
    """The objects of one picture, without those marked as difficult.

    Boxes name their first and their last pixel; the leftmost has the number `first`.

    Raises:
        UsageError: the file cannot be read, or is no such annotation.
    """
    root = read_xml(path)
    if root.tag != "annotation":
        raise UsageError(f"{named(path)}: its root is called {root.tag!r}, not 'annotation'")
    extent = _voc_extent(root, path)
    marks = []
    difficult = 0
    for thing in root.findall("object"):
        if (thing.findtext("difficult") or "").strip().casefold() in ("1", "true"):
            difficult += 1
            continue
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise UsageError(f"{named(path)}: an object has no name")
        marks.append(Mark(name, _voc_box(thing.find("bndbox"), path, first), extent))
    return Annotation(marks, counted({Omission.DIFFICULT: difficult}))


def _voc_extent(root: Element, path: Path) -> Extent | None:
    """None also where a program wrote zeros, because it did not know."""
    sides = [root.findtext(f"size/{side}") for side in ("width", "height")]
    width, height = (number(side or "0", named(path)) for side in sides)
    return (width, height) if width > 0 and height > 0 else None


def _voc_box(box: Element | None, path: Path, first: int) -> Edges | None:
    if box is None:
        return None
    texts = [box.findtext(edge) or "" for edge in ("xmin", "ymin", "xmax", "ymax")]
    x0, y0, x1, y1 = (number(text, named(path)) - first for text in texts)
    return x0, y0, x1 + 1, y1 + 1
