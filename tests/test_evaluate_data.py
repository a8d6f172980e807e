"""Labelled data sets of every form are read as they are meant, and nothing in them is trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from onnx_clrp.decoding import decoded
from onnx_clrp.errors import UsageError

pytest.importorskip("msgspec")
pytest.importorskip("defusedxml")

from onnx_clrp.evaluate.classes import Classes, read_classes, read_synsets
from onnx_clrp.evaluate.dataset import Box, Dataset, Object
from onnx_clrp.evaluate.header import read_header
from onnx_clrp.evaluate.readers import open_dataset

SYNSETS = ["n01440764", "n01443537", "n02391049"]
TENCH, GOLDFISH, ZEBRA = SYNSETS
LABELS = ["tench, Tinca tinca", "goldfish, Carassius auratus", "zebra"]
SIZE = (100, 50)
Edges = tuple[float, float, float, float]


def picture(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "white").save(
        path, Image.registered_extensions()[path.suffix.lower()], exif=exif
    )
    return path


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def thing(name: str, box: Edges | None = (11, 6, 60, 30), extra: str = "") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False)
    inner = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    place = f"<bndbox>{inner}</bndbox>" if box else ""
    return f"<object><name>{name}</name>{extra}{place}</object>"


def xml(path: Path, *things: str, size: tuple[int, int] | None = SIZE) -> Path:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return written(path, f"<annotation>{sides}{''.join(things)}</annotation>")


def opened(path: Path, format: str | None = None, **options: Any) -> Dataset:
    given = {"count": 3, "labels": LABELS, "synsets": SYNSETS, **options}
    return open_dataset(path, format, **given)


def found(dataset: Dataset) -> dict[str, dict[str, tuple[int, ...]]]:
    return {s.key: {o.name: o.targets for o in s.objects} for s in dataset}


def edges(dataset: Dataset, key: str) -> list[Edges]:
    sample = dataset.sample(key)
    assert sample is not None
    return [(b.x0, b.y0, b.x1, b.y1) for o in sample.objects for b in o.boxes]


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value)


# -- what the data set calls a thing -----------------------------------------------------------


def test_names_are_looked_up_in_order() -> None:
    labels = ["tench, Tinca tinca", "2", "zebra", "crane", "crane", "jay, bird", "kite, bird"]
    synsets = [*SYNSETS, "", "", "n01580077", "n01608432"]
    classes = Classes(7, {"zebra": 5, "fish": [1, 0, 1], "none": []}, labels, synsets)
    assert classes.targets("zebra") == (5,)
    assert classes.targets("fish") == (1, 0)
    assert classes.targets("none") == ()
    assert classes.targets(ZEBRA) == (2,)
    assert classes.targets("Tench,  tinca_TINCA") == (0,)
    assert classes.targets("tinca tinca") == (0,)
    assert classes.targets("2") == (1,)
    assert classes.targets("06") == (6,)
    assert classes.targets("n99999999") == classes.targets("horse") == classes.targets("") == ()
    assert not classes.notes()
    assert classes.targets("crane") == classes.targets("bird") == ()
    assert "'crane' is the label of the classes 3, 4" in classes.notes()[1]


def test_a_whole_label_comes_before_a_synonym() -> None:
    classes = Classes(2, labels=["maillot, tank suit", "Maillot"])
    assert classes.targets("maillot") == (1,)


def test_one_id_may_be_that_of_two_classes() -> None:
    assert Classes(2, synsets=[ZEBRA, ZEBRA]).targets(ZEBRA) == (0, 1)


@pytest.mark.parametrize("name", ["3", "-1", "9" * 5000])
def test_numbers_beyond_the_classes_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"is not in 0 … 2") as error:
        Classes(3).targets(name)
    one_line(error)


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match="class 3 for 'zebra' is not in 0 … 2"):
        Classes(3, {"zebra": [1, 3]})
    with pytest.raises(UsageError, match="2 labels, but 3 classes"):
        Classes(3, labels=["a", "b"])
    with pytest.raises(UsageError, match="1 WordNet ids, but 3 classes"):
        Classes(3, synsets=[ZEBRA])


def test_class_numbers_are_read(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", '\ufeff{"zebra": 340, "elephant": [386, 101]}')
    assert read_classes(file) == {"zebra": (340,), "elephant": (386, 101)}
    for wrong in ('{"zebra": true}', '{"zebra": "340"}', "[1]", '{"zebra"', '{"a": [1.5]}', ""):
        with pytest.raises(UsageError, match=r"annotations '.*c\.json'"):
            read_classes(written(file, wrong))


@pytest.mark.parametrize(
    "text",
    [
        "n01440764 tench, Tinca tinca\nn01443537 goldfish\n\nn02391049 zebra\n",
        "\ufeffn01440764\r\nn01443537\r\nn02391049",
        '{"0": ["n01440764", "tench"], "2": ["n02391049", "zebra"], "1": ["n01443537", "fish"]}',
        '["n01440764", ["n01443537", "goldfish"], "n02391049"]',
    ],
)
def test_wordnet_ids_are_read(tmp_path: Path, text: str) -> None:
    assert read_synsets(written(tmp_path / "s", text)) == SYNSETS


def test_files_without_wordnet_ids_have_none(tmp_path: Path) -> None:
    for text in ("tench\ngoldfish", '["tench"]', "", "{}"):
        assert read_synsets(written(tmp_path / "s", text)) is None
    assert read_synsets(written(tmp_path / "s", f"background\n{ZEBRA} zebra")) == ["", ZEBRA]
    with pytest.raises(UsageError, match="numbers 1 classes, but none 0"):
        read_synsets(written(tmp_path / "s", '{"1": "n02391049"}'))


# -- a folder for each class -------------------------------------------------------------------


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in (
        "zebra/b.JPEG",
        "zebra/deep/a.png",
        "n01440764/é ü.jpg",
        "horse/a.jpg",
        "stray.jpg",
    ):
        picture(tmp_path / name)
    written(tmp_path / "zebra/readme.txt", "")
    written(tmp_path / "zebra/.DS_Store", "")
    picture(tmp_path / ".trash/a.jpg")
    dataset = opened(tmp_path)
    assert found(dataset) == {
        "n01440764/é ü.jpg": {TENCH: (0,)},
        "zebra/b.JPEG": {"zebra": (2,)},
        "zebra/deep/a.png": {"zebra": (2,)},
    }
    assert len(dataset) == 3
    assert dataset.name == tmp_path.name
    assert all(sample.path.is_file() for sample in dataset)
    assert dataset.notes == [
        "1 picture without an object of any class that the model has",
        "1 object of a class that the model does not have (horse 1)",
        "1 picture outside of the folders of classes",
        "1 file without the ending of a picture",
    ]


def test_folders_that_nobody_knows_are_the_classes_in_order(tmp_path: Path) -> None:
    for name in ("b", "B", "a"):
        picture(tmp_path / name / "1.jpg")
    dataset = opened(tmp_path, labels=None, synsets=None)
    assert found(dataset) == {
        "B/1.jpg": {"B": (0,)},
        "a/1.jpg": {"a": (1,)},
        "b/1.jpg": {"b": (2,)},
    }
    assert dataset.notes == ["folders were taken for the model's classes in alphabetical order"]
    with pytest.raises(
        UsageError, match=r'model has none of its classes \(B 1, a 1, b 1\): .*"B": '
    ):
        opened(tmp_path, count=4, labels=None, synsets=None)


def test_folders_with_numbers_are_those_classes(tmp_path: Path) -> None:
    for number in range(11):
        picture(tmp_path / str(number) / "1.jpg")
    dataset = opened(tmp_path, count=11, labels=None, synsets=None)
    assert found(dataset)["10/1.jpg"] == {"10": (10,)}
    assert "torchvision sorts them as text" in dataset.notes[0]
    picture(tmp_path / "11" / "1.jpg")
    with pytest.raises(UsageError, match="class 11 is not in 0 … 10"):
        opened(tmp_path, count=11, labels=None, synsets=None)


def test_folders_by_wordnet_id_ask_for_the_list(tmp_path: Path) -> None:
    picture(tmp_path / ZEBRA / "1.jpg")
    with pytest.raises(UsageError, match="give the list of WordNet ids"):
        opened(tmp_path, labels=None, synsets=None)


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the form of the data set .* cannot be told"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="no pictures in the folder"):
        opened(tmp_path, "folder")
    (tmp_path / "zebra").mkdir()
    with pytest.raises(UsageError, match="no pictures in the folder"):
        opened(tmp_path)
    picture(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="no folders with pictures"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        opened(tmp_path / "absent")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/zebra").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere/self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to("/")
    assert list(found(opened(tmp_path / "data"))) == ["zebra/a.jpg"]


# -- ILSVRC ------------------------------------------------------------------------------------


def validation(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def test_ilsvrc_with_boxes(tmp_path: Path) -> None:
    images, boxes = tmp_path / "val", tmp_path / "boxes/val"
    for number in range(1, 5):
        picture(images / f"{validation(number)}.JPEG")
    xml(boxes / f"{validation(1)}.xml", thing(ZEBRA, (10, 5, 59, 29)), thing(ZEBRA, (0, 0, 99, 49)))
    xml(boxes / f"{validation(2)}.xml", thing("n00000001"), thing(TENCH, None))
    xml(boxes / f"{validation(3)}.xml", thing("n00000001"))
    dataset = opened(images, annotations=tmp_path / "boxes")
    assert next(iter(dataset)).objects == (
        Object(ZEBRA, (2,), (Box(0.1, 0.1, 0.6, 0.6), Box(0, 0, 1, 1))),
    )
    assert list(dataset)[1].objects == (Object(TENCH, (0,)),)
    assert len(dataset) == len(list(dataset)) == 2
    assert len(dataset.keys) == 3
    assert dataset.notes == [
        "1 picture without an object of any class that the model has",
        "2 objects of a class that the model does not have (n00000001 2)",
        "1 picture without annotation",
    ]


def test_annotations_are_read_when_their_turn_comes(tmp_path: Path) -> None:
    images = tmp_path / "val"
    for number in (1, 2):
        picture(images / f"{validation(number)}.JPEG")
    xml(tmp_path / "boxes" / f"{validation(1)}.xml", thing(ZEBRA))
    written(tmp_path / "boxes" / f"{validation(2)}.xml", "<annotation>\n<object>")
    dataset = opened(images, annotations=tmp_path / "boxes")
    assert dataset.sample(dataset.keys[0])
    with pytest.raises(UsageError, match=rf"{validation(2)}\.xml': no XML .*line 2"):
        list(dataset)


def test_ilsvrc_by_folders_and_by_lists(tmp_path: Path) -> None:
    picture(tmp_path / "val" / ZEBRA / f"{validation(1)}.JPEG")
    assert found(opened(tmp_path / "val", "ilsvrc")) == {
        f"{ZEBRA}/{validation(1)}.JPEG": {ZEBRA: (2,)}
    }
    for number in (2, 3):
        picture(tmp_path / "val" / f"{validation(number)}.JPEG")
    solution = written(
        tmp_path / "LOC_val_solution.csv",
        f"ImageId,PredictionString\r\n{validation(2)},{TENCH} 10 5 59 29 {TENCH} 0 0 9 9 \r\n"
        f"{validation(9)},{TENCH} 1 2 3 4\r\n",
    )
    xml(tmp_path / "boxes" / f"{validation(3)}.xml", thing(GOLDFISH, (0, 0, 49, 49)), size=None)
    dataset = opened(tmp_path / "val", annotations=[tmp_path / "boxes", solution])
    assert [sample.objects[0].targets[0] for sample in dataset] == [1 - 1, 1, 2]
    assert edges(dataset, f"{validation(2)}.JPEG") == [(0.1, 0.1, 0.6, 0.6), (0, 0, 0.1, 0.2)]
    assert edges(dataset, f"{validation(3)}.JPEG") == [(0, 0, 0.5, 1)]
    for broken in (f"{TENCH} 1 2 3", f"{TENCH} 1 2 3 x", f"{TENCH} 1 2 3 nan"):
        written(solution, f"ImageId,PredictionString\n{validation(2)},{broken}\n")
        with pytest.raises(UsageError, match=r"LOC_val_solution\.csv', line 2: "):
            opened(tmp_path / "val", annotations=[solution])


def test_the_ground_truth_is_in_the_order_of_the_development_kit(tmp_path: Path) -> None:
    images, truth = tmp_path / "val", tmp_path / "kit/ILSVRC2012_validation_ground_truth.txt"
    picture(images / f"{validation(3)}.JPEG")
    picture(images / f"{validation(1)}.JPEG")
    picture(images / "other.JPEG")
    written(truth, "2\n1\n3\n")
    with pytest.raises(UsageError, match=r"meta\.mat or map_clsloc\.txt tells .*: put it into"):
        opened(images, annotations=truth)
    written(tmp_path / "kit/map_clsloc.txt", f"{ZEBRA} 1 zebra\n{TENCH} 2 tench\n{GOLDFISH} 3 g\n")
    right = {f"{validation(1)}.JPEG": {TENCH: (0,)}, f"{validation(3)}.JPEG": {GOLDFISH: (1,)}}
    dataset = opened(images, annotations=truth)
    assert found(dataset) == right
    assert dataset.notes == ["1 picture without annotation"]
    assert found(opened(images, annotations=written(tmp_path / "ids.txt", "\n".join(SYNSETS)))) == {
        f"{validation(1)}.JPEG": {TENCH: (0,)},
        f"{validation(3)}.JPEG": {ZEBRA: (2,)},
    }
    for text, fault in (
        ("2\n1\n4\n", "line 3: .* no class '4'"),
        ("2\n\n3", "line 2: .* class ''"),
    ):
        written(truth, text)
        with pytest.raises(UsageError, match=fault):
            opened(images, annotations=truth)


def test_the_development_kit_of_2012_is_read(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    kind = [("ILSVRC2012_ID", "u2"), ("WNID", object)]
    rows = np.array([(1, ZEBRA), (2, TENCH), (3, GOLDFISH)], dtype=kind)
    scipy_io.savemat(tmp_path / "meta.mat", {"synsets": rows})
    truth = written(tmp_path / "ILSVRC2012_validation_ground_truth.txt", "3\n1\n")
    picture(tmp_path / "val" / f"{validation(2)}.JPEG")
    dataset = opened(tmp_path / "val", annotations=truth)
    assert found(dataset) == {f"{validation(2)}.JPEG": {ZEBRA: (2,)}}
    written(tmp_path / "meta.mat", "something else")
    with pytest.raises(UsageError, match=r"meta\.mat': not the development kit's"):
        opened(tmp_path / "val", annotations=truth)


def test_ilsvrc_as_kaggle_has_it(tmp_path: Path) -> None:
    for split, name in (("val", ZEBRA), ("train", TENCH)):
        picture(tmp_path / f"ILSVRC/Data/CLS-LOC/{split}/a.JPEG")
        xml(tmp_path / f"ILSVRC/Annotations/CLS-LOC/{split}/a.xml", thing(name))
    assert found(opened(tmp_path)) == {"a.JPEG": {ZEBRA: (2,)}}
    assert found(opened(tmp_path, split="train")) == {"a.JPEG": {TENCH: (0,)}}


def test_ilsvrc_without_annotations_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.JPEG")
    with pytest.raises(UsageError, match="nothing tells what is in the pictures"):
        opened(tmp_path, "ilsvrc")
    with pytest.raises(UsageError, match="absent' cannot be read: No such file"):
        opened(tmp_path, annotations=tmp_path / "absent")
    with pytest.raises(UsageError, match="has no splits"):
        opened(tmp_path, "ilsvrc", split="val")


# -- Pascal VOC --------------------------------------------------------------------------------


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    difficult = "<difficult>1</difficult>"
    for name in ("a", "b", "c", "d", "lone"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
    folder = tmp_path / "Annotations"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    xml(
        folder / "a.xml",
        thing("zebra", extra=part),
        thing("person"),
        thing("zebra", extra=difficult),
    )
    xml(folder / "b.xml", thing("zebra", extra=difficult))
    xml(folder / "c.xml", thing("person"), size=(0, 0))
    xml(folder / "d.xml", thing("goldfish", (1.0, 1.0, 100.0, 50.0)), size=None)
    xml(folder / "absent.xml", thing("zebra"))
    written(tmp_path / "ImageSets/Main/val.txt", "a\r\nb\nabsent\nlone\n\n")
    written(tmp_path / "ImageSets/Main/train.txt", "d")
    written(tmp_path / "ImageSets/Main/zebra_val.txt", "a 1")
    return tmp_path


def test_pascal_voc(pascal: Path) -> None:
    dataset = opened(pascal)
    assert found(dataset) == {"a.jpg": {"zebra": (2,)}, "d.jpg": {"goldfish": (1,)}}
    assert edges(dataset, "a.jpg") == [(0.1, 0.1, 0.6, 0.6)]
    assert edges(dataset, "d.jpg") == [(0, 0, 1, 1)]
    assert dataset.root == pascal / "JPEGImages"
    assert dataset.notes == [
        "2 pictures without an object of any class that the model has",
        "2 objects of a class that the model does not have (person 2)",
        "1 picture that the annotations name but the folder does not hold",
        "1 picture without annotation",
        "2 objects marked as difficult",
    ]


def test_a_split_of_pascal_voc(pascal: Path) -> None:
    dataset = opened(pascal, split="val")
    assert list(found(dataset)) == ["a.jpg"]
    assert dataset.name == f"{pascal.name} val"
    assert "1 picture that the annotations name but the folder does not hold" in dataset.notes
    with pytest.raises(UsageError, match=r"no list .*test\.txt'; there are train, val$"):
        opened(pascal, split="test")
    written(pascal / "ImageSets/Main/val.txt", "a\n../../b\n")
    with pytest.raises(UsageError, match=r"line 2: '\.\./\.\./b' leads out of the folder"):
        opened(pascal, split="val")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<annotation>", "no XML that can be read"),
        ("", "no XML that can be read"),
        ("\0", "no XML that can be read"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "no XML that can be read"),
        ("<html></html>", "its root is called 'html'"),
        (f"<annotation>{thing(' ')}</annotation>", "an object has no name"),
        (f"<annotation>{thing('zebra', (1, 2, 3))}</annotation>", "'' is not a number"),
        (f"<annotation>{thing('zebra', (1, 2, 3, float('inf')))}</annotation>", "'inf' is not a"),
        (f"<annotation>{' ' * 2**24}</annotation>", "more than 16,777,216 bytes"),
        (
            '<!DOCTYPE b [<!ENTITY a "zebra"><!ENTITY b "&a;&a;&a;&a;">]>'
            "<annotation><object><name>&b;</name></object></annotation>",
            "it defines entities",
        ),
        (
            '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
            "it defines entities",
        ),
    ],
    ids=range(11),
)
def test_broken_and_hostile_xml_is_refused(pascal: Path, text: str, fault: str) -> None:
    written(pascal / "Annotations/a.xml", text)
    with pytest.raises(UsageError, match=rf"a\.xml': {fault}") as error:
        opened(pascal)
    one_line(error)


def test_objects_that_are_all_left_out_are_named(pascal: Path) -> None:
    for name in "acd":
        xml(pascal / f"Annotations/{name}.xml", thing("person"), thing("car\n[red]"))
    with pytest.raises(
        UsageError, match=r"none of its classes \(car \[red\] 3, person 3\): give"
    ) as e:
        opened(pascal)
    one_line(e)
    for name in "acd":
        xml(pascal / f"Annotations/{name}.xml")
    with pytest.raises(
        UsageError, match="no object is in any of its pictures; 4 pictures without"
    ) as e:
        opened(pascal)
    one_line(e)


# -- COCO --------------------------------------------------------------------------------------


def instances(**changes: Any) -> dict[str, Any]:
    return {
        "info": {"year": float("1e3")},
        "categories": [{"id": 22, "name": "zebra"}, {"id": 1, "name": "person"}],
        "images": [
            {"id": 7, "file_name": "7.jpg", "width": 200, "height": 100},
            {"id": 8, "file_name": "8.jpg"},
            {"id": 9, "file_name": "9.jpg"},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 22, "bbox": [20, 10.0, 100, 50], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [[1, 2]]},
            {"image_id": 7, "category_id": 22, "bbox": [0, 0, 200, 100], "iscrowd": 1},
            {"image_id": 7, "category_id": 22, "bbox": [0, 0, 20, 10]},
            {"image_id": 8, "category_id": 22},
            {"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]},
        ],
        **changes,
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for name in ("7", "8", "9"):
        picture(tmp_path / f"val2017/{name}.jpg")
    written(tmp_path / "annotations/instances_val2017.json", json.dumps(instances()))
    return tmp_path


def test_coco(coco: Path) -> None:
    file = coco / "annotations/instances_val2017.json"
    for dataset in (
        opened(coco),
        opened(coco, split="val2017"),
        opened(file),
        opened(file, images=coco / "val2017"),
        opened(coco / "val2017", annotations=file),
        opened(coco / "val2017", annotations=(file,), images=None, split=None, units=None),
    ):
        assert found(dataset) == {"7.jpg": {"zebra": (2,)}, "8.jpg": {"zebra": (2,)}}
        assert edges(dataset, "7.jpg") == [(0.1, 0.1, 0.6, 0.6), (0, 0, 0.1, 0.1)]
        assert edges(dataset, "8.jpg") == []
        assert len(dataset) == 2
        assert dataset.notes == [
            "1 picture without an object of any class that the model has",
            "2 objects of a class that the model does not have (person 2)",
            "1 object marked as a crowd",
        ]


def test_coco_with_class_numbers(coco: Path) -> None:
    dataset = opened(coco, classes={"person": [0, 1], "zebra": [0, 1]}, labels=None)
    assert [(o.name, o.targets) for s in dataset for o in s.objects] == [
        ("zebra", (0, 1)),
        ("zebra", (0, 1)),
        ("person", (0, 1)),
    ]
    assert len(edges(dataset, "7.jpg")) == 3


def test_pictures_that_are_not_there_are_counted(coco: Path) -> None:
    (coco / "val2017/7.jpg").unlink()
    (coco / "val2017/9.jpg").unlink()
    dataset = opened(coco)
    assert list(found(dataset)) == ["8.jpg"]
    assert dataset.notes == ["2 pictures that the annotations name but the folder does not hold"]
    (coco / "val2017/8.jpg").unlink()
    with pytest.raises(UsageError, match=r"none of the pictures is in .*val2017', not '7\.jpg'"):
        opened(coco)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"images": {}}, r"Expected `array`, got `object` - at `\$\.images`"),
        ({"annotations": [{"image_id": 7, "category_id": 22, "bbox": [1, 2, 3]}]}, "length 4"),
        (
            {"annotations": [{"image_id": 7, "category_id": 22, "bbox": [1, 2, 3, "4"]}]},
            "got `str`",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 5}]}, "no category has the id 5"),
        ({"annotations": [{"image_id": 7}]}, "missing required field `category_id`"),
        ({"categories": [{"id": 22}]}, "missing required field `name`"),
        (
            {"images": [{"id": 7, "file_name": "/etc/7.jpg"}]},
            "'/etc/7.jpg' leads out of the folder",
        ),
        ({"images": [{"id": 7, "file_name": "a/../../7.jpg"}]}, "leads out of the folder"),
        ({"images": [{"id": 7, "file_name": "..\\7.jpg"}]}, "leads out of the folder"),
        ({"images": [{"id": 7, "file_name": "C:\\7.jpg"}]}, "leads out of the folder"),
        ({"images": [{"id": 7, "file_name": "7.jpg\0"}]}, "leads out of the folder"),
        ({"images": [{"id": 7, "file_name": ""}]}, "no picture is named"),
        ({"images": [{"id": 7, "file_name": "a"}] * 2}, "the picture 7 is listed twice"),
        (
            {"images": [{"id": 7, "file_name": "a"}, {"id": 8, "file_name": "./a"}]},
            "the picture 'a' is listed twice",
        ),
        ({"images": []}, "no picture is listed"),
    ],
    ids=range(15),
)
def test_broken_coco_is_refused(coco: Path, changes: dict[str, Any], fault: str) -> None:
    file = coco / "annotations/instances_val2017.json"
    written(file, json.dumps(instances(**changes)))
    with pytest.raises(UsageError, match=rf"instances_val2017\.json'.*{fault}") as error:
        opened(coco)
    one_line(error)


def test_annotations_of_other_pictures_are_counted(coco: Path) -> None:
    changed = instances(images=instances()["images"][:1])
    written(coco / "annotations/instances_val2017.json", json.dumps(changed))
    assert opened(coco).notes[-1] == "2 objects in pictures that the annotations do not list"


def test_malformed_json_is_refused_with_its_line(coco: Path) -> None:
    file = coco / "annotations/instances_val2017.json"
    for text in ('{"images":\n\n[}', '{"images":\n\n"\\x"}'):
        written(file, text)
        with pytest.raises(
            UsageError, match=r"instances_val2017\.json', line 3: JSON is malformed"
        ):
            opened(coco)
    for raw in ("[" * 99999, '{"images": ' + "[" * 99999, b"\xff\xfe", '{"a": "\xff"', ""):
        written(file, raw)
        with pytest.raises(UsageError, match=r"instances_val2017\.json'") as error:
            opened(coco)
        one_line(error)


def test_coco_asks_for_what_it_does_not_find(coco: Path) -> None:
    file = coco / "annotations/instances_val2017.json"
    with pytest.raises(UsageError, match="no split 'val'; there are val2017"):
        opened(coco, split="val")
    written(coco / "annotations/instances_train2017.json", "{}")
    with pytest.raises(UsageError, match="several splits; there are train2017, val2017"):
        opened(coco)
    with pytest.raises(UsageError, match="goes with one JSON file, not 2"):
        opened(coco, "coco", annotations=[file, file])
    file.rename(coco / "annotations/mine.json")
    with pytest.raises(UsageError, match=r"no folder 'mine' of pictures .*name it as images"):
        opened(coco / "annotations/mine.json")


# -- a manifest of one's own -------------------------------------------------------------------


def test_a_manifest_in_csv(tmp_path: Path) -> None:
    for name in ("a.jpg", "é ü/b.PNG"):
        picture(tmp_path / "images" / name)
    file = written(
        tmp_path / "m.csv",
        "\ufeffimage, Label,x0,y0,x1,y1,units,width,height,comment\r\n"
        "a.jpg,zebra,10,5,60,30,,,,\r\n"
        '"./a.jpg","Tench, Tinca tinca",.1,.1,.6,.6,fractions,,,\r\n'
        "\r\n"
        "a.jpg,2,20,10,120,60,pixels,200,100,\r\n"
        "é ü/b.PNG,1,,,,,,,,\r\n"
        "absent.jpg,zebra,,,,,,,,",
    )
    dataset = opened(file, images=tmp_path / "images")
    box = Box(0.1, 0.1, 0.6, 0.6)
    assert [sample.objects for sample in dataset] == [
        (Object("zebra", (2,), (box, box)), Object("Tench, Tinca tinca", (0,), (box,))),
        (Object("1", (1,)),),
    ]
    assert dataset.keys == ["a.jpg", "é ü/b.PNG"]
    assert dataset.name == "m.csv"
    assert dataset.notes == ["1 picture that the annotations name but the folder does not hold"]


RECORDS: list[dict[str, Any]] = [
    {"image": "a.jpg", "objects": [{"label": "zebra", "boxes": [[10, 5, 60, 30], [0, 0, 50, 50]]}]},
    {"image": "b.jpg", "objects": [{"label": 0}, {"label": "x"}], "units": "fractions"},
    {"image": "c.jpg", "objects": []},
    {
        "image": "b.jpg",
        "objects": [{"label": "goldfish", "boxes": [[20, 10, 120, 60]]}],
        "size": [200, 100],
    },
]


@pytest.mark.parametrize("name", ["m.json", "m.jsonl", "m.ndjson", "lines.json"])
def test_a_manifest_in_json(tmp_path: Path, name: str) -> None:
    for image in "abc":
        picture(tmp_path / f"{image}.jpg")
    lines = "\r\n\r\n".join(json.dumps(record) for record in RECORDS)
    text = json.dumps(RECORDS, indent=1) if name == "m.json" else lines
    dataset = opened(written(tmp_path / name, f"\ufeff{text}"))
    assert found(dataset) == {
        "a.jpg": {"zebra": (2,)},
        "b.jpg": {"0": (0,), "goldfish": (1,)},
    }
    assert edges(dataset, "a.jpg") == [(0.1, 0.1, 0.6, 0.6), (0, 0, 0.5, 1)]
    assert edges(dataset, "b.jpg") == [(0.1, 0.1, 0.6, 0.6)]
    assert dataset.notes == [
        "1 picture without an object of any class that the model has",
        "1 object of a class that the model does not have (x 1)",
    ]


def test_units_are_never_guessed(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    file = written(tmp_path / "m.csv", "image,label,x0,y0,x1,y1\na.jpg,zebra,0,0,.5,1\n")
    with pytest.raises(UsageError, match="no box reaches beyond 1: say whether the units are"):
        opened(file)
    assert edges(opened(file, units="fractions"), "a.jpg") == [(0, 0, 0.5, 1)]
    assert edges(opened(file, units="pixels"), "a.jpg") == [(0, 0, 0.005, 0.02)]
    with pytest.raises(UsageError, match="in pixels or fractions, not in 'inches'"):
        opened(file, units="inches")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "line 1: no column 'image'"),
        ("picture,label\n", "line 1: no column 'image'; its first line must name image, label"),
        ("image;label\na.jpg;zebra\n", "line 1: no column 'image'"),
        ("image,label,LABEL\n", "line 1: two columns are called 'label'"),
        ("image,label\na.jpg\n", "line 2: 1 cells under a header of 2"),
        ("image,label\n\na.jpg,zebra,1\n", "line 3: 3 cells under a header of 2"),
        ("image,label\na.jpg,\n", "line 2: no label"),
        ("image,label\n,zebra\n", "line 2: no picture is named"),
        ("image,label\n/a.jpg,zebra\n", "line 2: '/a.jpg' leads out of the folder"),
        ("image,label\nb/../../a.jpg,zebra\n", "line 2: .* leads out of the folder"),
        ("image,label\n\\\\host\\a.jpg,zebra\n", "line 2: .* leads out of the folder"),
        ('image,label\n"a.jpg,zebra\n\n', "line 3: unexpected end of data"),
        ("image,label\na.jpg,\xe9\n".encode("latin-1"), "line 2: not UTF-8"),
        ("image,label,x0,y0,x1,y1\na.jpg,zebra,1,2,3,\n", "line 2: of x0, .* some are missing"),
        ("image,label,x0\na.jpg,zebra,1\n", "line 2: of x0, .* some are missing"),
        ("image,label,x0,y0,x1,y1\na.jpg,zebra,1,2,3,x\n", "line 2: 'x' is not a number"),
        ("image,label,x0,y0,x1,y1\na.jpg,zebra,1,2,3,nan\n", "line 2: 'nan' is not a number"),
        ("image,label,units\na.jpg,zebra,cm\n", "line 2: the units are 'cm', not pixels or"),
        ("image,label,width,height\na.jpg,zebra,0,9\n", "line 2: a picture of 0 by 9 pixels"),
        ("image,label\n", "no picture is listed"),
        ("image,label\na.jpg,7\n", None),
    ],
    ids=range(21),
)
def test_broken_csv_is_refused(tmp_path: Path, text: str | bytes, fault: str | None) -> None:
    picture(tmp_path / "a.jpg")
    wanted = "class 7 is not in 0 … 2" if fault is None else rf"m\.csv',? ?.*{fault}"
    with pytest.raises(UsageError, match=wanted) as error:
        opened(written(tmp_path / "m.csv", text))
    one_line(error)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[{"image": "a.jpg"}]', "entry 1: Object missing required field `objects`"),
        ('[{"image": "a.jpg", "objects": {}}]', r"entry 1: Expected `array`.*\$\.objects"),
        ('[\n\n{"image": }]', "line 3: JSON is malformed"),
        ('[{"image": 1, "objects": []}]', r"entry 1: Expected `str`, got `int` - at `\$\.image`"),
        ('[{"image": "a.jpg", "objects": [{"label": ""}]}]', "entry 1: no label"),
        ('[{"image": "a.jpg", "objects": [], "units": "cm"}]', "entry 1: Invalid enum value 'cm'"),
        ('[{"image": "a.jpg", "objects": [], "size": [0, 1]}]', "entry 1: a picture of 0 by 1"),
        ('[{"image": "../a.jpg", "objects": []}]', "entry 1: '../a.jpg' leads out"),
        ('[{"image": "a.jpg", "objects": [{"label": "zebra", "boxes": [[1, 2]]}]}]', "length 4"),
        ('{"image": "a.jpg", "objects": []}\n[]', "line 2: Expected `object`, got `array`"),
        ('{"image": "a.jpg", "objects": []}\n{"image', "line 2: Input data was truncated"),
        ('"a.jpg"', "line 1: Expected `object`, got `str`"),
        ("[]", "no picture is listed"),
        ("", "no picture is listed"),
        ("[" * 99999, "Input data was truncated|maximum recursion"),
    ],
    ids=range(15),
)
def test_broken_json_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    picture(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=rf"m\.json'.*({fault})") as error:
        opened(written(tmp_path / "m.json", text))
    one_line(error)


def test_pipes_are_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(UsageError, match="name a file, not a folder or device"):
        opened(tmp_path / "m.csv", "manifest")


# -- boxes -------------------------------------------------------------------------------------


def boxed(tmp_path: Path, *boxes: Edges, image: str = "a.jpg", **record: Any) -> Dataset:
    objects = [{"label": "zebra", "boxes": boxes}]
    records = [{"image": image, "objects": objects, **record}]
    return opened(written(tmp_path / "m.json", json.dumps(records)))


def test_boxes_are_cut_to_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    outside, empty, swapped = (100, 0, 120, 50), (10, 10, 10, 20), (60, 10, 50, 20)
    dataset = boxed(tmp_path, (-20, -5, 50, 25), outside, empty, swapped, (50, 25, 100.4, 50))
    assert edges(dataset, "a.jpg") == [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)]
    for _ in dataset:  # a second time, which must not count twice
        pass
    assert dataset.notes == [
        "3 boxes without area inside the picture",
        "1 box reaching out of the picture, and cut off there",
    ]
    huge = 1.7e308
    assert edges(boxed(tmp_path, (-huge, -huge, huge, huge)), "a.jpg") == [(0, 0, 1, 1)]


def test_an_object_stays_where_its_box_does_not(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    assert next(iter(boxed(tmp_path, (200, 0, 300, 50)))).objects == (Object("zebra", (2,)),)


def test_pictures_that_cannot_be_read_have_no_boxes(tmp_path: Path) -> None:
    written(tmp_path / "a.jpg", "no picture")
    dataset = boxed(tmp_path, (10, 10, 20, 20))
    assert next(iter(dataset)).objects == (Object("zebra", (2,)),)
    assert dataset.notes == ["1 box in pictures whose size cannot be read"]


def test_a_box_lies_in_the_picture() -> None:
    for wrong in (
        (0, 0, 0, 1),
        (0.5, 0, 0.4, 1),
        (-0.1, 0, 1, 1),
        (0, 0, 1, 1.1),
        (0, 0, 1, np.nan),
    ):
        with pytest.raises(UsageError, match="is not within 0 … 1"):
            Box(*wrong)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_boxes_turn_with_the_picture(tmp_path: Path, suffix: str, orientation: int) -> None:
    box = (16, 8, 64, 24)
    stored = np.full((48, 96, 3), 255, np.uint8)
    stored[box[1] : box[3], box[0] : box[2]] = 0
    file = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored)
    if suffix == "tiff":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112] = orientation
        image.save(file, tiffinfo=tags)
    else:
        image.save(file, exif=exif)
    upright = np.asarray(decoded(file).convert("L"))
    dark = np.argwhere(upright < 128)
    (y0, x0), (y1, x1) = dark.min(axis=0), dark.max(axis=0) + 1
    height, width = upright.shape
    expected = (x0 / width, y0 / height, x1 / width, y1 / height)
    assert read_header(file).size == (96, 48)
    inputs: list[dict[str, Any]] = [{}, {"size": [192, 96]}, {"units": "fractions"}]
    for factor, record in zip((1, 2, None), inputs, strict=True):
        given = [v * factor if factor else v / (96, 48)[i % 2] for i, v in enumerate(box)]
        dataset = boxed(tmp_path, tuple(given), image=file.name, **record)
        assert edges(dataset, file.name)[0] == pytest.approx(expected)


@pytest.mark.parametrize("orientation", [6, 8])
def test_boxes_of_the_upright_picture_stay(tmp_path: Path, orientation: int) -> None:
    picture(tmp_path / "a.jpg", orientation=orientation)
    dataset = boxed(tmp_path, (10, 20, 20, 60), size=[50, 100])
    assert edges(dataset, "a.jpg") == [(0.2, 0.2, 0.4, 0.6)]


def test_damaged_metadata_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decoded(tmp_path / "a.jpg").size == SIZE
    assert edges(boxed(tmp_path, (10, 5, 60, 30)), "a.jpg") == [(0.1, 0.1, 0.6, 0.6)]


# -- some of a data set ------------------------------------------------------------------------


def numbered(tmp_path: Path, count: int) -> Dataset:
    data = picture(tmp_path / "zebra/0.jpg").read_bytes()
    for number in range(1, count):
        written(tmp_path / f"zebra/{number}.jpg", data)
    return opened(tmp_path)


def test_a_subset_is_drawn_in_order_and_again_the_same(tmp_path: Path) -> None:
    dataset = numbered(tmp_path, 40)
    some = dataset.subset(10, seed=1)
    assert len(some) == len(list(some)) == 10
    assert list(some.keys) == sorted(some.keys)
    assert some.keys == opened(tmp_path).subset(10, seed=1).keys
    assert some.keys != dataset.subset(10, seed=2).keys
    assert set(some.keys) < set(dataset.subset(20, seed=1).keys)
    assert some.notes == ["of 40 pictures 10 were drawn with the seed 1"]
    assert len(dataset) == 40
    assert not dataset.notes
    assert dataset.subset(99).keys == dataset.keys


def test_a_subset_can_be_chosen(tmp_path: Path) -> None:
    dataset = numbered(tmp_path, 4)
    assert [s.key for s in dataset.subset([3, 1, 1])] == ["zebra/1.jpg", "zebra/3.jpg"]
    for wrong in ([4], [-1]):
        with pytest.raises(UsageError, match="is not in 0 … 3"):
            dataset.subset(wrong)
    with pytest.raises(UsageError, match="at least one picture, not 0"):
        dataset.subset(0)
    with pytest.raises(UsageError, match="no object is in any"):
        dataset.subset([])


def test_a_subset_is_drawn_from_pictures_with_objects(tmp_path: Path) -> None:
    for number in range(20):
        picture(tmp_path / f"JPEGImages/{number}.jpg")
        xml(tmp_path / f"Annotations/{number}.xml", thing("person" if number % 2 else "zebra"))
    some = opened(tmp_path).subset(8)
    assert len(some) == len(list(some)) == 8
    assert all(int(Path(key).stem) % 2 == 0 for key in some.keys)
    assert len(list(opened(tmp_path).subset(15))) == 10


# -- which form it is --------------------------------------------------------------------------


def test_what_could_be_two_forms_is_asked_for(pascal: Path) -> None:
    written(pascal / "annotations/instances_val.json", "{}")
    with pytest.raises(UsageError, match=r"cannot be told: say which of voc, coco$"):
        opened(pascal)
    assert len(opened(pascal, "voc")) == 2


def test_unknown_forms_and_options_are_refused(pascal: Path) -> None:
    with pytest.raises(UsageError, match="is called 'kitti'; there are folder, ilsvrc, voc"):
        opened(pascal, "kitti")
    with pytest.raises(UsageError, match=r"units is no option .* 'voc': it takes split"):
        opened(pascal, units="pixels")
    with pytest.raises(UsageError, match=r"split is no option .* 'folder': it takes none"):
        opened(pascal, "folder", split="val")
    with pytest.raises(
        UsageError, match="cannot be told: say which of folder, ilsvrc, voc, coco, m"
    ):
        opened(written(pascal / "notes.txt", ""))


# -- real pictures -----------------------------------------------------------------------------


@pytest.mark.data
def test_ilsvrc_photographs_as_a_manifest(tmp_path: Path, data: Path) -> None:
    photographs = json.loads((data / "boxes/ilsvrc2012_val_650.json").read_text())
    records = [
        {
            "image": Path(p["file"]).name,
            "size": p["orig_size"],
            "objects": [{"label": p["wnid"], "boxes": p["boxes_orig"]}],
        }
        for p in photographs
    ]
    file = written(tmp_path / "m.json", json.dumps(records))
    synsets = read_synsets(data / "labels/synset_words.txt")
    assert synsets == read_synsets(data / "labels/imagenet_class_index.json")
    images = data / "images/ilsvrc2012_val"
    dataset = open_dataset(file, count=1000, synsets=synsets, images=images)
    assert len(dataset) == 650
    by_name = {Path(p["file"]).name: p for p in photographs}
    for sample in dataset:
        photograph = by_name[sample.key]
        assert [o.targets for o in sample.objects] == [(photograph["label"],)]
        there = [[b.x0, b.y0, b.x1, b.y1] for b in sample.objects[0].boxes]
        wanted = np.array(photograph["boxes_227"]) / 227
        np.testing.assert_allclose(there, wanted, atol=1e-4)
    assert not dataset.notes


@pytest.mark.data
def test_coco_photographs(data: Path) -> None:
    dataset = open_dataset(
        data / "images/coco128/train2017",
        count=1000,
        annotations=data / "boxes/coco128_instances_train2017.json",
        classes=read_classes(data / "boxes/coco_to_imagenet.json"),
    )
    samples = list(dataset)
    assert 0 < len(samples) == len(dataset) <= 69
    assert any(len(sample.objects) > 1 for sample in samples)
    assert all(o.boxes and o.targets for sample in samples for o in sample.objects)
    assert any("that the annotations name but the folder does not hold" in n for n in dataset.notes)
    assert any("(person " in note for note in dataset.notes)
