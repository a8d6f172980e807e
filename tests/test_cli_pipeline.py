"""What overlaps gives what it gives one after the other, within bounds, and ends cleanly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import DIGITS, SCENE, Outcome, leftovers, run

from onnx_clrp.cli import explain
from onnx_clrp.cli.pipeline import ahead, in_turn, processes
from onnx_clrp.errors import ClrpError
from onnx_clrp.image import Preprocessing
from onnx_clrp.runtime import Explainer, Result

MANY = explain.AT_ONCE + 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """More pictures than are explained at once, two of them broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    scenes = sorted(SCENE.parent.glob("*.png"))
    for i in range(MANY):
        shutil.copy(scenes[i % len(scenes)], folder / f"{i:02}.png")
    (folder / "03.png").write_text("no picture")
    (folder / "11.png").write_bytes(SCENE.read_bytes()[:300])
    return folder


class AtOnce(Executor):
    """No thread at all."""

    def submit(self, work: Any, /, *given: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*given, **options))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
def one_by_one() -> Iterator[pytest.MonkeyPatch]:
    """Nothing overlaps for as long as this is not undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "threads", lambda: nullcontext(AtOnce()))
        patch.setattr(explain, "processes", lambda: nullcontext(in_turn))
        patch.setattr(explain, "AHEAD", 1)
        yield patch


# -- the same as one after the other -----------------------------------------------------------


def made(folder: Path) -> dict[str, Any]:
    """The content of the files in a folder, and the folder is gone."""
    content: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                content[path.name] = {name: arrays[name].tobytes() for name in arrays}
        else:
            content[path.name] = path.read_bytes()
    shutil.rmtree(folder)
    return content


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "lrp", "--method", "clrp2", "--target", "3,7", "--sheet"],
        ["--save-arrays", "--json"],
        ["--at", "node_relu_3", "--json"],
        ["--layer", "node_relu_3", "--top-neurons", "2"],
    ],
    ids=["methods and a sheet", "arrays", "hidden layers", "neurons"],
)
def test_a_folder_gives_what_its_pictures_give_one_by_one(
    folder: Path, tmp_path: Path, words: list[str], one_by_one: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    wanted = run("explain", DIGITS, folder, "-o", maps, *words)
    files = made(maps)
    one_by_one.undo()
    assert run("explain", DIGITS, folder, "-o", maps, *words) == wanted
    assert made(maps) == files
    assert wanted.status == 1
    assert [line.split("'")[1] for line in complaints(wanted)] == [
        str(folder / name) for name in ("03.png", "11.png")
    ]


def complaints(done: Outcome) -> list[str]:
    """The lines about pictures that cannot be read."""
    return [line for line in done.err.splitlines() if "below zero" not in line]


def test_rows_are_in_the_order_of_the_images(folder: Path, tmp_path: Path) -> None:
    words = ["--json", "--method", "lrp", "--method", "clrp1"]
    found = json.loads(run("explain", DIGITS, folder, "-o", tmp_path / "maps", *words).out)
    rows = [(Path(row["image"]).stem, row["method"]) for row in found["explanations"]]
    names = [f"{i:02}" for i in range(MANY) if i not in (3, 11)]
    parts = [names[:7], names[7:]]  # of eight images, less a broken one
    assert rows == [(name, m) for part in parts for m in ("lrp", "clrp1") for name in part]


def test_few_pictures_are_not_worth_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr(explain, "processes", refuse)
    assert run("explain", DIGITS, *[SCENE] * explain.AT_ONCE, "-o", tmp_path).status == 0


# -- bounds ------------------------------------------------------------------------------------


def test_so_much_is_begun_ahead_and_no_more() -> None:
    begun: list[int] = []
    for taken, (item, given) in enumerate(
        ahead(iter(range(50)), lambda i: begun.append(i) or i, 5)
    ):
        assert item == given == taken
        assert len(begun) == min(50, taken + 5)


def test_what_comes_before_an_error_comes_first() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError

    taking = ahead(items(), float, 10)
    assert [next(taking)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(taking)


def test_pictures_are_decoded_only_so_far_ahead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    picture, explained = Preprocessing.picture, Explainer.explain

    def counted(self: Preprocessing, path: Path) -> Any:
        decoded.append(path)
        return picture(self, path)

    def watched(self: Explainer, *given: Any) -> Result:
        runs.append(len(decoded))
        return explained(self, *given)

    runs: list[int] = []
    monkeypatch.setattr(Preprocessing, "picture", counted)
    monkeypatch.setattr(Explainer, "explain", watched)
    monkeypatch.setattr(explain, "AT_ONCE", 2)
    monkeypatch.setattr(explain, "AHEAD", 4)
    run("explain", DIGITS, folder, "-o", tmp_path / "maps")
    assert len(decoded) == MANY
    assert all(there <= 2 * (i + 1) + 4 for i, there in enumerate(runs))


# -- failures ----------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    for name in ("03.png", "11.png"):
        (folder / name).unlink()
    first = json.loads(run("explain", DIGITS, folder, "-o", maps, "--json").out)
    file = Path(first["explanations"][9]["picture"])
    file.unlink()
    file.mkdir()
    done = run("explain", DIGITS, folder, "-o", maps)
    assert (done.status, done.out) == (1, "")
    assert done.complaint == f"onnx-clrp: cannot write {str(file)!r}: a folder has that name"
    assert leftovers(maps) == []


def test_what_came_before_a_fault_of_the_model_is_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained, runs = Explainer.explain, iter(range(9))

    def stumble(self: Explainer, *given: Any) -> Result:
        if next(runs) == 1:
            raise ClrpError("the model is tired")
        return explained(self, *given)

    monkeypatch.setattr(Explainer, "explain", stumble)
    done = run("explain", DIGITS, folder, "-o", tmp_path / "maps")
    assert done.status == 1
    assert done.err.splitlines()[-1] == "onnx-clrp: the model is tired"
    assert len(complaints(done)) == 3
    assert len(list((tmp_path / "maps").iterdir())) == 7


def test_a_process_that_is_ended_from_outside_is_one_line() -> None:
    reason = "was ended from outside: is there enough memory"
    with pytest.raises(ClrpError, match=reason), processes() as begin:
        begin(partial(os._exit, 3))()


def started(folder: Path, maps: Path) -> subprocess.Popen[str]:
    """The command over many pictures, which has drawn the first."""
    words = ["explain", DIGITS, *[folder] * 200, "-o", maps]
    code = "from onnx_clrp.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (maps.is_dir() and any(maps.glob("*.png"))):
        time.sleep(0.01)
    assert process.poll() is None
    return process


@pytest.mark.skipif(os.name != "posix", reason="needs groups of processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_whole_files(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    maps = tmp_path / "maps"
    process = started(folder, maps)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert out == ""
    assert "Traceback" not in err
    assert leftovers(maps) == []


@pytest.mark.skipif(os.name != "posix", reason="needs pipes that processes share")
def test_nobody_outlives_a_command_that_is_killed(folder: Path, tmp_path: Path) -> None:
    process = started(folder, tmp_path / "maps")
    process.kill()
    process.communicate(timeout=30)  # ends when the last of them closes the pipe
