"""Files that say what is in many pictures: COCO's, ILSVRC's lists, and manifests of one's own."""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.annotations import (
    NOTHING,
    Annotation,
    Extent,
    Mark,
    Omission,
    Omitted,
    counted,
    inside,
    number,
)
from onnx_clrp.evaluate.classes import is_synset
from onnx_clrp.evaluate.header import Edges
from onnx_clrp.evaluate.parsing import (
    named,
    read_csv,
    read_json,
    read_json_keys,
    read_json_records,
    read_lines,
)

UNITS = ("pixels", "fractions")


class Catalogue(NamedTuple):
    """All that one file says of many pictures, which are called by their paths."""

    pictures: Mapping[str, Annotation]
    omitted: Omitted = NOTHING


# -- COCO --------------------------------------------------------------------------------------


class _Picture(msgspec.Struct, gc=False):
    id: int | str
    file_name: str
    width: float = 0
    height: float = 0


class _Category(msgspec.Struct, gc=False):
    id: int | str
    name: str


class _Instance(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int | str
    bbox: Edges | None = None
    iscrowd: int | bool = 0


class _Instances(msgspec.Struct):
    images: list[_Picture]
    annotations: list[_Instance]
    categories: list[_Category]


def is_coco(path: Path) -> bool:
    """Whether a JSON file has the keys of COCO's.

    Raises:
        UsageError: the file cannot be read.
    """
    return {"images", "annotations"} <= read_json_keys(path)


def read_coco(path: Path) -> Catalogue:
    """The objects of COCO's instances by the files of pictures, without those marked as a crowd.

    Raises:
        UsageError: the file cannot be read, is not COCO's JSON, or contradicts itself.
    """
    data = read_json(path, _Instances)
    where = named(path)
    names = {category.id: category.name for category in data.categories}
    files = {picture.id: inside(picture.file_name, where) for picture in data.images}
    if len(set(files.values())) < len(data.images):
        raise UsageError(f"{where}: {_twice(data.images)} is listed twice: leave one out")
    extents = {p.id: (p.width, p.height) for p in data.images if p.width > 0 and p.height > 0}
    marks: dict[int | str, list[Mark]] = defaultdict(list)
    crowds: Counter[int | str] = Counter()
    unlisted = 0
    for thing in data.annotations:
        if thing.category_id not in names:
            raise UsageError(f"{where}: no category has the id {thing.category_id!r}")
        if thing.image_id not in files:
            unlisted += 1
        elif thing.iscrowd:
            crowds[thing.image_id] += 1
        else:
            box = _edges(thing.bbox) if thing.bbox else None
            mark = Mark(names[thing.category_id], box, extents.get(thing.image_id))
            marks[thing.image_id].append(mark)
    return Catalogue(
        {
            file: Annotation(marks[key], counted({Omission.CROWD: crowds[key]}))
            for key, file in files.items()
        },
        counted({Omission.UNLISTED: unlisted}),
    )


def _edges(box: Edges) -> Edges:
    x, y, width, height = box
    return x, y, x + width, y + height


def _twice(pictures: Sequence[_Picture]) -> str:
    """The id or else the file that two pictures share."""
    ids = Counter(repr(picture.id) for picture in pictures).most_common(1)
    files = Counter(repr(picture.file_name) for picture in pictures).most_common(1)
    return f"the picture {(ids if ids[0][1] > 1 else files)[0][0]}"


# -- a manifest of one's own -------------------------------------------------------------------


class _Thing(msgspec.Struct):
    label: str | int
    boxes: list[Edges] = []


class _Record(msgspec.Struct):
    image: str
    objects: list[_Thing]
    units: Literal["pixels", "fractions"] | None = None
    size: Extent | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """What a line of a manifest says, with the units and the size of the picture if it has them."""

    where: str
    image: str
    label: str | None
    box: Edges | None
    units: str | None
    size: Extent | None


def read_manifest(path: Path, units: str | None = None) -> Catalogue:
    """The objects of a manifest in CSV or JSON by the paths of pictures.

    Args:
        path: the file; which of the two it is, its name's ending tells.
        units: of the boxes that do not say it themselves, "pixels" or "fractions"; by default
            pixels, but refused if all boxes would lie in the first pixel.

    Raises:
        UsageError: the file cannot be read, or is no such manifest.
    """
    if units not in (None, *UNITS):
        raise UsageError(f"boxes are in {' or '.join(UNITS)}, not in {units!r}")
    rows = _csv_rows(path) if path.suffix.casefold() == ".csv" else _json_rows(path)
    marks: dict[str, list[Mark]] = defaultdict(list)
    guessed: list[float] = []
    for row in rows:
        known = marks[inside(row.image, row.where)]
        if row.label is None:
            continue
        if not row.label:
            raise UsageError(f"{row.where}: no label")
        if row.box and not (row.units or units):
            guessed.append(max(row.box))
        fractions = (row.units or units) == "fractions"
        known.append(Mark(row.label, row.box, (1, 1) if fractions else row.size))
    if guessed and max(guessed) <= 1:
        cure = "say whether the units are fractions or pixels"
        raise UsageError(f"{named(path)}: no box reaches beyond 1: {cure}")
    return Catalogue({image: Annotation(found) for image, found in marks.items()})


def _csv_rows(path: Path) -> Iterator[_Row]:
    for where, row in read_csv(path, ("image", "label")):
        edges = _together(row, ("x0", "y0", "x1", "y1"), where)
        size = _together(row, ("width", "height"), where)
        said = row.get("units") or None
        if said not in (None, *UNITS):
            raise UsageError(f"{where}: the units are {said!r}, not {' or '.join(UNITS)}")
        box = (edges[0], edges[1], edges[2], edges[3]) if edges else None
        extent = _extent((size[0], size[1]), where) if size else None
        yield _Row(where, row["image"], row["label"], box, said, extent)


def _json_rows(path: Path) -> Iterator[_Row]:
    for where, record in read_json_records(path, _Record):
        size = _extent(record.size, where) if record.size else None
        if not record.objects:
            yield _Row(where, record.image, None, None, record.units, size)
        for thing in record.objects:
            boxes: Sequence[Edges | None] = thing.boxes or [None]
            for box in boxes:
                yield _Row(where, record.image, str(thing.label), box, record.units, size)


def _together(row: Mapping[str, str], columns: Sequence[str], where: str) -> list[float]:
    """The numbers of columns that have all of them or none."""
    cells = [row.get(column, "") for column in columns]
    if not any(cells):
        return []
    if not all(cells):
        raise UsageError(f"{where}: of {', '.join(columns)} some are missing: give all or none")
    return [number(cell, where) for cell in cells]


def _extent(size: Extent, where: str) -> Extent:
    if min(size) <= 0:
        raise UsageError(f"{where}: a picture of {size[0]:g} by {size[1]:g} pixels has none")
    return size


# -- ILSVRC's lists ----------------------------------------------------------------------------


def read_solution(path: Path) -> Catalogue:
    """Kaggle's `LOC_val_solution.csv`: objects by the names of pictures, without their endings.

    Raises:
        UsageError: the file cannot be read, or has another form.
    """
    pictures = {}
    for where, row in read_csv(path, ("imageid", "predictionstring")):
        words = row["predictionstring"].split()
        if len(words) % 5:
            raise UsageError(f"{where}: not an id and four numbers for every box")
        marks = []
        for i in range(0, len(words), 5):
            x0, y0, x1, y1 = (number(word, where) for word in words[i + 1 : i + 5])
            marks.append(Mark(words[i], (x0, y0, x1 + 1, y1 + 1)))
        pictures[inside(row["imageid"], where)] = Annotation(marks)
    return Catalogue(pictures)


def read_truth(path: Path) -> list[str]:
    """The WordNet id of every validation picture, in their order.

    Understands an id a line, and the development kit's numbers,
    `ILSVRC2012_validation_ground_truth.txt`. These are not class numbers: which ids they stand for
    is read from the kit's `meta.mat` or `map_clsloc.txt` in the same folder.

    Raises:
        UsageError: the file or the kit's list cannot be read, or a line is neither.
    """
    words = read_lines(path)
    while words and not words[-1]:
        words.pop()
    if all(is_synset(word) for word in words):
        return words
    ids = _kit(path.parent)
    for line, word in enumerate(words, start=1):
        if word not in ids:
            raise UsageError(f"{named(path, line)}: the development kit has no class {word!r}")
    return [ids[word] for word in words]


def _kit(folder: Path) -> dict[str, str]:
    """WordNet ids by the development kit's numbers."""
    listed, matlab = folder / "map_clsloc.txt", folder / "meta.mat"
    if listed.is_file():
        return {words[1]: words[0] for words in map(str.split, read_lines(listed)) if words[1:]}
    if not matlab.is_file():
        wanted = "the development kit's meta.mat or map_clsloc.txt tells what its numbers stand for"
        raise UsageError(f"{wanted}: put it into {str(folder)!r}")
    try:
        loadmat = importlib.import_module("scipy.io").loadmat  # needed here alone
        synsets = loadmat(matlab, squeeze_me=True, variable_names=["synsets"])["synsets"]
        numbers, ids = synsets["ILSVRC2012_ID"], synsets["WNID"]
        return {str(int(n)): str(name) for n, name in zip(numbers, ids, strict=True)}
    except ModuleNotFoundError as error:
        raise UsageError(f"{named(matlab)}: reading it needs SciPy: pip install scipy") from error
    except Exception as error:  # the library raises anything when fed another file
        reason = " ".join(str(error).split())
        raise UsageError(f"{named(matlab)}: not the development kit's ({reason})") from error
