"""Class names are read from the usual files and found again by what a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnx_clrp.errors import UsageError
from onnx_clrp.labels import parse_targets, read_labels

LABELS = ["zebra, Equus quagga", "African elephant", "crane", "crane, derrick", "7"]


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\nemu\n",
        "cat\r\n\r\ndog\r\nemu",
        "\ufeffcat\n dog \nemu",
        "n02123045 cat\nn02084071 dog\nn01518878 emu\n",
        '["cat", "dog", "emu"]',
        '{"0": "cat", "2": "emu", "1": "dog"}',
        '{"0": ["n02123045", "cat"], "1": ["n02084071", "dog"], "2": ["n01518878", "emu"]}',
    ],
)
def test_the_usual_files_are_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "labels"
    file.write_text(text, encoding="utf-8", newline="")
    assert read_labels(file, 3) == ["cat", "dog", "emu"]


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}',
        b'["cat"',
        b"[[], [], []]",
        b'{"0": "cat", "2": "emu"}',
        b"\xff\xfe",
        b"[" * 9999,
    ],
    ids=["no numbers", "cut off", "empty lists", "a gap", "no UTF-8", "too deep"],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "labels"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"labels '.*labels' ") as caught:
        read_labels(file, 3)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_labels(path, 3)


def test_the_number_of_labels_must_be_that_of_the_classes(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("cat\ndog\n")
    with pytest.raises(UsageError, match="has 2 labels, the model 3 classes"):
        read_labels(file, 3)


def test_labels_of_every_script_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    names = ["Füchse", "狐", "[bold]x[/]"]
    file.write_text(json.dumps(names), encoding="utf-8")
    assert read_labels(file, 3) == names


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["zebra"], [0]),
        (["ZEBRA"], [0]),
        (["equus  quagga"], [0]),
        (["zebra, Equus quagga"], [0]),
        (["african_elephant,zebra"], [1, 0]),
        (["1", "0"], [1, 0]),
        (["3, 2"], [3, 2]),
        (["crane, derrick"], [3]),
        (["7"], [4]),
        (["1,zebra", "0"], [1, 0]),
    ],
)
def test_targets_are_numbers_or_labels(given: list[str], found: list[int]) -> None:
    assert parse_targets(given, LABELS, 5) == found


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("5", r"target 5 is not in 0 … 4"),
        ("-1", r"target -1 is not in 0 … 4"),
        ("9" * 30, r"is not in 0 … 4"),
        ("crane", r"several classes are called 'crane': 2, 3"),
        ("zebre", r"no class is called 'zebre'; did you mean 'zebra'\?"),
        ("qqqq", r"no class is called 'qqqq'$"),
        ("1.0", r"no class is called '1.0'"),
        ("1,", r"no class is called ''"),
        ("", r"no class is called ''"),
        ("²", r"no class is called '²'"),
    ],
)
def test_other_targets_are_refused_with_a_hint(given: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_targets([given], LABELS, 5)


def test_a_label_without_labels_names_the_cure() -> None:
    with pytest.raises(UsageError, match="give --labels FILE, or a number"):
        parse_targets(["zebra"], None, 5)
