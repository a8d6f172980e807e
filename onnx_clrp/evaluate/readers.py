"""The forms of labelled data sets, and how they are told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.annotations import (
    Annotation,
    Mark,
    Omission,
    counted,
    inside,
    read_voc,
)
from onnx_clrp.evaluate.catalogues import (
    Catalogue,
    read_coco,
    read_manifest,
    read_solution,
    read_truth,
)
from onnx_clrp.evaluate.classes import Classes, is_synset
from onnx_clrp.evaluate.dataset import Dataset
from onnx_clrp.evaluate.folders import XmlFiles, folders_in, kaggle_root, pictures
from onnx_clrp.evaluate.parsing import named, read_lines
from onnx_clrp.evaluate.recognise import recognised

_VALIDATION = re.compile(r"_val_([0-9]{8})(?![0-9])")


def open_dataset(
    path: Path | str,
    format: str | None = None,
    *,
    count: int,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    labels: Sequence[str] | None = None,
    synsets: Sequence[str] | None = None,
    **options: Any,
) -> Dataset:
    """A data set of labelled pictures, in whichever form it comes.

    Args:
        path: the folder or file of the data set.
        format: one of `READERS`; by default told from what is there.
        count: the number of the model's classes.
        classes: class numbers by what the data set calls things.
        labels: the model's names of its classes, in order.
        synsets: the WordNet ids of its classes, in order.
        options: those of the form's own function, `images`, `annotations`, `split` and `units`;
            None and () are as if not given.

    Raises:
        UsageError: the form is not known, or the data set is not in it, or holds nothing that the
            model knows.
    """
    path = Path(path)
    given = {name: _single(value) for name, value in options.items() if value not in (None, ())}
    if not path.exists():
        raise UsageError(f"the data set {str(path)!r} does not exist: check the name")
    if format is None:
        format = recognised(path, given, READERS)
    if format not in READERS:
        raise UsageError(f"no form of data sets is called {format!r}; there are {_listed(READERS)}")
    reader = READERS[format]
    for name in given:
        if name not in reader.options:
            takes = f"it takes {_listed(reader.options)}" if reader.options else "it takes none"
            raise UsageError(f"{name} is no option of data sets of the form {format!r}: {takes}")
    found = Classes(count, classes, labels, synsets)
    dataset: Dataset = reader.open(path, found, **given)
    return dataset


# -- a folder for each class -------------------------------------------------------------------


def folder(path: Path, classes: Classes) -> Dataset:
    """A folder for each class, with pictures at any depth, as torchvision's ImageFolder has it.

    If the model knows none of the folders' names, but has as many classes as there are folders,
    they are its classes in alphabetical order.

    Raises:
        UsageError: there are no such folders, or the model has none of the classes.
    """
    listing = pictures(path)
    folders = folders_in(path)
    keys = [key for key in listing.keys if "/" in key]
    if not keys:
        raise UsageError(f"{str(path)!r} has no folders with pictures, one for each class")
    notes = []
    known = [name for name in folders if classes.targets(name)]
    if not known and len(folders) == classes.count:
        classes = Classes(classes.count, {name: i for i, name in enumerate(folders)})
        notes.append("folders were taken for the model's classes in alphabetical order")
    elif known and all(name.isdecimal() for name in known) and _not_sorted(known, classes):
        notes.append(
            "folders were taken for the classes of their numbers, 10 after 9, though torchvision "
            "sorts them as text"
        )
    return Dataset(
        _name(path),
        path,
        keys,
        lambda key: Annotation([Mark(key.split("/", 1)[0])]),
        classes,
        at_hand=True,
        notes=notes,
        omitted=counted(
            {Omission.STRAY: len(listing.keys) - len(keys), Omission.OTHER: listing.others}
        ),
    )


def _not_sorted(names: Sequence[str], classes: Classes) -> bool:
    numbers = [classes.targets(name) for name in names]
    return numbers != sorted(numbers)


# -- ILSVRC ------------------------------------------------------------------------------------


def ilsvrc(
    path: Path,
    classes: Classes,
    *,
    annotations: Path | str | Sequence[Path | str] = (),
    split: str | None = None,
) -> Dataset:
    """ILSVRC's pictures, all in one folder or with a folder for each WordNet id.

    What is in a picture is told by the first of these that has it: its XML file of boxes; a list;
    the name of its folder.

    Args:
        path: the folder of pictures; or the whole data set as Kaggle has it, with
            `Data/CLS-LOC`, `Annotations/CLS-LOC` and maybe `ILSVRC` above them.
        classes: with the WordNet ids of the model's classes.
        annotations: a folder of XML files, at any depth; and lists of what is in the pictures,
            `LOC_val_solution.csv` or `ILSVRC2012_validation_ground_truth.txt`.
        split: of the whole data set, "val" by default.

    Raises:
        UsageError: there are no pictures, nothing tells what is in them, or the model has none of
            the classes.
    """
    given = [annotations] if isinstance(annotations, Path | str) else list(annotations)
    sources = [Path(source) for source in given]
    root = kaggle_root(path)
    if root is not None:
        path = root / "Data" / "CLS-LOC" / (split or "val")
        sources = sources or [root / "Annotations" / "CLS-LOC" / (split or "val")]
    elif split is not None:
        raise UsageError(f"{str(path)!r} has no splits: it has no folder Data/CLS-LOC")
    listing = pictures(path)
    boxes = XmlFiles(source for source in sources if source.is_dir())
    listed: dict[str, Annotation] = {}
    for source in sources:
        if not source.is_dir():
            listed |= _listed_by_stem(source, listing.keys)

    def read(key: str) -> Annotation:
        stem = PurePosixPath(key).stem
        file = boxes.of(key)
        if file is not None:
            return read_voc(file, first=0)
        parent = PurePosixPath(key).parent.name
        return listed.get(stem) or Annotation([Mark(parent)] if is_synset(parent) else [])

    told = [key for key in listing.keys if boxes.of(key) or read(key).marks]
    if not told:
        wanted = "name their XML files or a list, or sort them into folders by WordNet id"
        raise UsageError(f"nothing tells what is in the pictures of {str(path)!r}: {wanted}")
    return Dataset(
        _name(path),
        path,
        told,
        read,
        classes,
        at_hand=not any(boxes.of(key) for key in told),
        omitted=counted(
            {Omission.UNANNOTATED: len(listing.keys) - len(told), Omission.OTHER: listing.others}
        ),
    )


def _listed_by_stem(source: Path, keys: Iterable[str]) -> dict[str, Annotation]:
    """A list of annotations by the names of pictures without their endings."""
    if source.suffix.casefold() == ".csv":
        return dict(read_solution(source).pictures)
    truth = read_truth(source)
    found = {}
    for stem in (PurePosixPath(key).stem for key in keys):
        numbered = _VALIDATION.search(stem)
        # By the number in its name, not by its place: the folder may hold some of them only.
        if numbered and 1 <= int(numbered[1]) <= len(truth):
            found[stem] = Annotation([Mark(truth[int(numbered[1]) - 1])])
    return found


# -- Pascal VOC --------------------------------------------------------------------------------


def voc(path: Path, classes: Classes, *, split: str | None = None) -> Dataset:
    """Pascal VOC, with `JPEGImages`, `Annotations` and maybe `ImageSets/Main`.

    Args:
        path: the folder that holds these, as `VOCdevkit/VOC2012`.
        classes: finds the model's classes.
        split: a list in `ImageSets/Main`, "val" for `val.txt`; by default all annotated pictures.

    Raises:
        UsageError: a folder or the list is missing, or the model has none of the classes.
    """
    root = path / "JPEGImages"
    listing = pictures(root)
    boxes = XmlFiles([path / "Annotations"])
    omitted = {Omission.OTHER: listing.others}
    if split is None:
        keys = [key for key in listing.keys if boxes.of(key)]
        stems = {PurePosixPath(key).with_suffix("").as_posix() for key in keys}
        omitted[Omission.ABSENT] = len(boxes.names - stems)
        omitted[Omission.UNANNOTATED] = len(listing.keys) - len(keys)
    else:
        names = _split(path / "ImageSets" / "Main", split)
        present = {PurePosixPath(key).with_suffix("").as_posix(): key for key in listing.keys}
        listed = [present[name] for name in names if name in present]
        keys = [key for key in listed if boxes.of(key)]
        omitted[Omission.ABSENT] = len(names) - len(listed)
        omitted[Omission.UNANNOTATED] = len(listed) - len(keys)
    files = {key: file for key in keys if (file := boxes.of(key))}
    if not files:
        raise UsageError(f"no picture in {str(root)!r} has an annotation in {str(path)!r}")
    return Dataset(
        _name(path) + (f" {split}" if split else ""),
        root,
        files,
        lambda key: read_voc(files[key], first=1),
        classes,
        at_hand=False,
        omitted=counted(omitted),
    )


def _split(lists: Path, split: str) -> set[str]:
    """The names of the pictures in a list, without their endings."""
    file = lists / f"{split}.txt"
    if not file.is_file():
        there = sorted(entry.stem for entry in lists.glob("*.txt") if "_" not in entry.stem)
        raise UsageError(f"no list {str(file)!r}; there are {_listed(there) or 'none'}")
    lines = enumerate(read_lines(file), start=1)
    return {inside(line, named(file, number)) for number, line in lines if line}


# -- COCO --------------------------------------------------------------------------------------


def coco(
    path: Path,
    classes: Classes,
    *,
    images: Path | str | None = None,
    annotations: Path | str | Sequence[Path | str] | None = None,
    split: str | None = None,
) -> Dataset:
    """COCO's pictures with the JSON of its instances.

    Args:
        path: the JSON file; the folder of pictures, if `annotations` names the JSON file; or the
            whole data set, with `annotations/instances_val2017.json` and `val2017`.
        classes: finds the model's classes.
        images: the folder of pictures; by default the one beside `annotations`, or beside the JSON
            file, that is called like the split.
        annotations: the JSON file.
        split: of the whole data set, as "val2017"; may be left out where there is only one.

    Raises:
        UsageError: a folder or the file is missing, or the model has none of the classes.
    """
    if path.is_file():
        file = path
    elif annotations is not None:
        if not isinstance(annotations, Path | str):
            raise UsageError(f"{str(path)!r} goes with one JSON file, not {len(annotations)}")
        file = Path(annotations)
        images = path if images is None else images
    else:
        file = _instances(path, split)
    root = Path(images) if images is not None else _beside(file)
    return _catalogued(_name(file), root, file, read_coco(file), classes)


def _instances(path: Path, split: str | None) -> Path:
    files = {file.stem.split("_", 1)[1]: file for file in path.glob("annotations/instances_*.json")}
    if split is None and len(files) == 1:
        return next(iter(files.values()))
    if split not in files:
        fault = "has several splits" if split is None else f"has no split {split!r}"
        raise UsageError(f"{str(path)!r} {fault}; there are {_listed(sorted(files)) or 'none'}")
    return files[split]


def _beside(file: Path) -> Path:
    """The folder of pictures that goes with COCO's `annotations/instances_NAME.json`."""
    name = file.stem.rsplit("_", 1)[-1]
    around = [file.parent.parent, file.parent.parent / "images", file.parent]
    for root in (folder / name for folder in around):
        if root.is_dir():
            return root
    raise UsageError(f"no folder {name!r} of pictures lies beside {str(file)!r}: name it as images")


# -- a manifest of one's own -------------------------------------------------------------------


def manifest(
    path: Path,
    classes: Classes,
    *,
    images: Path | str | None = None,
    units: str | None = None,
) -> Dataset:
    """A table or list of one's own.

    A CSV file has the columns `image` and `label`, and may have `x0`, `y0`, `x1`, `y1`, `units`,
    `width` and `height`, with a line for each box. JSON is a list, or has an object a line, of
    `{"image": "a.jpg", "objects": [{"label": "zebra", "boxes": [[x0, y0, x1, y1]]}]}`, and may
    have `units` and `size`, the width and height. Units are "pixels" or "fractions"; `x1` and `y1`
    are where the box ends, so that a box over a whole picture of 640 pixels ends at 640. The size
    is that of the picture which the boxes were drawn on, if the picture is now of another.

    Args:
        path: the file.
        classes: finds the model's classes.
        images: the folder that its paths are relative to; by default its own.
        units: of the boxes that have none of their own.

    Raises:
        UsageError: the file is not such a one, no picture is there, or the model has none of the
            classes.
    """
    root = Path(images) if images is not None else path.parent
    return _catalogued(_name(path), root, path, read_manifest(path, units), classes)


# -- what they have in common ------------------------------------------------------------------


def _catalogued(
    name: str, root: Path, file: Path, catalogue: Catalogue, classes: Classes
) -> Dataset:
    """A data set whose annotations are all known, of the pictures that are there."""
    if not catalogue.pictures:
        raise UsageError(f"{named(file)}: no picture is listed")
    keys = [key for key in catalogue.pictures if (root / key).is_file()]
    if not keys:
        first = min(catalogue.pictures)
        fault = f"none of the pictures is in {str(root)!r}, not {first!r}"
        raise UsageError(f"{named(file)}: {fault}: name their folder as images")
    absent = counted({Omission.ABSENT: len(catalogue.pictures) - len(keys)})
    return Dataset(
        name,
        root,
        keys,
        catalogue.pictures.__getitem__,
        classes,
        at_hand=True,
        omitted={**catalogue.omitted, **absent},
    )


def _name(path: Path) -> str:
    return path.resolve().name or str(path)


def _single(value: Any) -> Any:
    """What stands alone in a list, as an option of the command that may be repeated gives it."""
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# -- all of them -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A form of data sets.

    Attributes:
        open: makes the data set, of a path, classes and options.
        options: what else it takes.
    """

    open: Callable[..., Dataset]
    options: Collection[str] = ()


READERS: Mapping[str, Reader] = {
    "folder": Reader(folder),
    "ilsvrc": Reader(ilsvrc, ("annotations", "split")),
    "voc": Reader(voc, ("split",)),
    "coco": Reader(coco, ("images", "annotations", "split")),
    "manifest": Reader(manifest, ("images", "units")),
}
"""The forms of data sets by name."""
