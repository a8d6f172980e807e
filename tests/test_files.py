"""Files are whole or absent, and names made of labels stay in their folder."""

import os
import stat
from pathlib import Path

import pytest

from onnx_clrp.errors import ClrpError
from onnx_clrp.files import open_together, open_whole, safe_name, write_whole


def write_half(path: Path, failure: BaseException) -> None:
    with open_whole(path) as file:
        file.write(b"half")
        raise failure


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"one")
    write_whole(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_takes_the_umask_like_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")}
    assert len(modes) == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: BaseException
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises((ClrpError, KeyboardInterrupt)):
        write_half(path, failure)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ClrpError, match=r"cannot write '.*a\.bin': Permission denied"):
        write_whole(tmp_path / "a.bin", b"new")
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [
        ("absent/a.bin", "No such file or directory"),
        ("folder", "a folder has that name"),
        ("pipe", "a device or pipe has that name"),
        ("a\0b", "a file name cannot hold the character NUL"),
        ("x" * 300, "File name too long"),
    ]:
        with pytest.raises(ClrpError, match=reason) as caught:
            write_whole(tmp_path / name, b"")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_status == 1
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def write_both(first: Path, second: Path) -> None:
    with open_together(first, second) as (a, b):
        b.write(b"new second")
        a.write(b"new first")


def test_two_files_are_written_together(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    write_both(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"new first"
    assert (tmp_path / "b").read_bytes() == b"new second"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("spoilt", ["a", "b"])
def test_of_two_files_none_is_written_if_one_cannot_be(tmp_path: Path, spoilt: str) -> None:
    (tmp_path / spoilt).mkdir()
    with pytest.raises(ClrpError, match=r"cannot write '.*b': a folder has that name"):
        write_both(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == [spoilt]


@pytest.mark.parametrize("links", [True, False])
def test_what_was_put_in_place_first_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target.name == "b":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    (tmp_path / "kept").write_bytes(b"old")
    if links:
        (tmp_path / "a").symlink_to("kept")
    with pytest.raises(ClrpError, match="Permission denied"):
        write_both(tmp_path / "a", tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == [*["a"] * links, "kept"]
    assert (tmp_path / "kept").read_bytes() == b"old"
    assert not links or os.readlink(tmp_path / "a") == "kept"


def test_where_files_have_one_name_only_they_are_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"old")
    write_both(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"new first"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("zebra", "zebra"),
        ("African elephant, Loxodonta africana", "African_elephant_Loxodonta_africana"),
        ("../../etc/passwd", "etc_passwd"),
        ("/", "unnamed"),
        ("", "unnamed"),
        (".", "unnamed"),
        ("..", "unnamed"),
        ("-rf", "rf"),
        ("a\0b\nc\\d:e", "a_b_c_d_e"),
        ("\ud800", "unnamed"),
        ("Füchse 狐 हिन्दी", "Füchse_狐_हिन्दी"),
        ("e\u0301", "\u00e9"),
        ("IMG_0001.v2", "IMG_0001.v2"),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_long_names_are_cut_and_stay_apart() -> None:
    names = [safe_name(letter * 500 + tail) for letter in ("x", "狐") for tail in ("1", "2")]
    assert len(set(names)) == 4
    assert all(20 < len(name.encode()) <= 60 for name in names)


@pytest.mark.parametrize(
    "text", ["../" * 50 + "x", "a/b", "\0" * 9, "." * 99, "\u202e", "~", "$HOME"]
)
def test_a_safe_name_is_one_step_down(tmp_path: Path, text: str) -> None:
    path = tmp_path / safe_name(text)
    path.write_bytes(b"")
    assert path.resolve().parent == tmp_path.resolve()
    assert os.listdir(tmp_path) == [path.name]
