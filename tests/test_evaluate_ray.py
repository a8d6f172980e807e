"""An evaluation on a Ray cluster: the rows of one without, whatever becomes of its processes."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("pyarrow", reason="results are Parquet")

from test_evaluate import DIGITS, Pictures, Sample, many, rows_of, runs, scenes

from onnx_clrp import ModelError, UnsupportedError, UsageError, rules, sessions
from onnx_clrp.evaluate import cluster, on_ray
from onnx_clrp.evaluate.job import Job, Packed
from onnx_clrp.evaluate.run import Part, evaluate
from onnx_clrp.evaluate.settings import Settings
from onnx_clrp.external import array_of, is_external, with_initializers
from onnx_clrp.model import load

SETTINGS = Settings(methods=["lrp", "clrp2"], patches=[9])
TABLES = ("maps", "pairs", "failed")

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'onnx-clrp[ray]'"
)


def external(folder: Path) -> Path:
    """The digits' network with its weights in a file of their own."""
    path = folder / "digits.onnx"
    given = {"save_as_external_data": True, "location": "digits.bin", "size_threshold": 0}
    onnx.save_model(onnx.load(DIGITS), path, **given)
    return path


def job(model: onnx.ModelProto) -> Job:
    """What workers would be told."""
    return Job.of(model, SETTINGS, "cpu", {})


# -- what is sent to workers ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda _: DIGITS, external], ids=["inside", "beside"])
def test_a_model_arrives_as_it_was(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    model = load(make(tmp_path))
    there = pickle.loads(pickle.dumps(Packed.of(model), protocol=5)).unpacked()
    assert with_initializers(there, []) == with_initializers(model, [])
    for made, tensor in zip(there.graph.initializer, model.graph.initializer, strict=True):
        assert made.name == tensor.name
        assert is_external(made) == is_external(tensor)
        np.testing.assert_array_equal(array_of(made), array_of(tensor))


def test_weights_that_are_gone_are_an_error(tmp_path: Path) -> None:
    packed = Packed.of(load(external(tmp_path)))
    (tmp_path / "digits.bin").unlink()
    with pytest.raises(ModelError, match=r"lies in 'digits\.bin': No such file"):
        packed.unpacked()


def test_rules_of_ones_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setitem(rules._registry, ("my.domain", "Mine"), rules._registry["", "Relu"])
        with_mine = job(load(DIGITS))
    with pytest.raises(UsageError, match=r"registered \(the rule of my\.domain\.Mine, onnx_clrp"):
        with_mine.judge("cpu")


def test_another_version_is_refused() -> None:
    with pytest.raises(UsageError, match=r"onnx-clrp is 0\.0\.0 here, and .* on a worker"):
        replace(job(load(DIGITS)), version="0.0.0").judge("cpu")


def test_libraries_of_operators_are_taken_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "libraries", [])
    with pytest.raises(UsageError, match="no library of operators of that name"):
        replace(job(load(DIGITS)), libraries=("/none/here.so",)).judge("cpu")


# -- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"engine": "steam"}, "no engine is called 'steam'; there are local, ray"),
        ({"engine": "ray", "workers": 0}, "at least one worker, not 0"),
        ({"workers": 2}, "choose the engine ray too"),
    ],
)
def test_engines_that_make_no_sense_are_refused(
    tmp_path: Path, asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        evaluate(DIGITS, scenes(), tmp_path / "out", SETTINGS, **asked)
    assert not (tmp_path / "out").exists()


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'onnx-clrp\[ray\]'"):
        evaluate(DIGITS, scenes(), tmp_path, SETTINGS, engine="ray")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://localhost:1", "[::1]:1", "localhost:99999"]
)
def test_an_address_where_nobody_answers_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=r"no Ray cluster answers at .*, which RAY_ADDRESS names"):
        cluster._check_address()


# -- what a worker says --------------------------------------------------------------------------


class Alone:
    """Ray, and the actor that counts, for a worker in this process."""

    def __init__(self, begun: int) -> None:
        self.begin = self
        self.remote = lambda number: begun
        self.get = lambda ref: ref


def told(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, begun: int = 1) -> Any:
    """What a worker says of a part."""
    ray = Alone(begun)
    monkeypatch.setattr(cluster, "ray", lambda: ray)
    part = Part(3, [replace(scenes()[0], path=Path("/none/x.png")), scenes()[1]])
    table = on_ray.Worker(make, ray)(on_ray._row(part))
    assert table["number"].to_pylist() == [3]
    unseen, found = pickle.loads(table["found"][0].as_py())
    assert unseen == [str(Path("/none/x.png"))]
    return found


def test_errors_of_ours_are_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        raise UnsupportedError("it cannot be done", [("a", "B", "c")])

    found = told(make, monkeypatch)
    assert (str(found), found.gaps) == ("it cannot be done", [("a", "B", "c")])
    with pytest.raises(UnsupportedError, match="it cannot be done"):
        on_ray._ours(found)


def test_a_part_that_no_worker_survives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        return lambda part: part.number

    assert told(make, monkeypatch, on_ray.ATTEMPTS) == 3
    found = told(make, monkeypatch, on_ray.ATTEMPTS + 1)
    first, second = scenes()[:2]
    assert str(found).startswith(
        f"5 workers were lost over the pictures {first.key!r} to {second.key!r}: "
    )


def test_workers_without_the_pictures_are_refused() -> None:
    on_ray._check_view(["/none/x.png"])
    with pytest.raises(UsageError, match=r"a worker cannot read '.*', which is here"):
        on_ray._check_view(["/none/x.png", str(DIGITS)])


# -- on a cluster --------------------------------------------------------------------------------

BEGIN = """
import json, signal, sys
from pathlib import Path
from test_evaluate_ray import SETTINGS, evaluate, runs, samples
from onnx_clrp import ClrpError
from onnx_clrp.evaluate import cluster

runs.PART = 8
data, out, model = samples(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])

def on_ray(model, out, watch=lambda *_: None):
    return evaluate(model, data, out, SETTINGS, device="cpu", engine="ray", watch=watch)
"""

LOST = """
killed = []

def kill(work, done, total):
    if work != "explaining" or killed:
        return
    import psutil  # which Ray brings along
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words and words[0].startswith("ray::") and "Map" in words[0]:
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)

notes = on_ray(model, out, kill)
print(json.dumps([len(killed), notes, cluster.ray().is_initialized()]))
"""

BROKEN_OFF = """
ray = cluster.ray()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
weights = Path(sys.argv[4]).parent / "digits.bin"

def remove(work, done, total):
    if done == total:
        weights.unlink()

try:
    on_ray(sys.argv[4], out.with_name("gone"), remove)
except ClrpError as error:
    print(json.dumps([str(error), ray.is_initialized()]), flush=True)
on_ray(model, out)
"""


def environment() -> dict[str, str]:
    """That of a process that imports what tests import."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def begun(script: str, *words: Path) -> subprocess.Popen[str]:
    """A process of its own: Ray in this one would leave threads, handlers and warnings."""
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, *map(str, words)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def samples(folder: Path) -> Pictures:
    """A data set of copies of the scenes."""
    known = {sample.key: sample.objects for sample in scenes()}
    return Pictures(
        Sample(path.name, path, known[path.name[4:]]) for path in sorted(folder.iterdir())
    )


def copied(source: Path, folder: Path, parts: int) -> None:
    """What an evaluation would have left that was broken off after some parts."""
    shutil.copytree(source, folder)
    for path in folder.glob("*/*.parquet"):
        if int(path.stem) >= parts:
            path.unlink()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of which two cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    data = many(folder, 7)
    data[10].path.write_bytes(b"no picture")
    data[30].path.write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network, with a file beside it."""
    return external(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def local(pictures: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of this process alone, in six parts."""
    folder = tmp_path_factory.mktemp("local") / "out"
    with pytest.MonkeyPatch.context() as here:
        here.setattr(runs, "PART", 8)
        evaluate(model, samples(pictures), folder, SETTINGS, device="cpu")
    return folder


@needs_ray
@pytest.mark.slow
def test_workers_that_are_killed_change_nothing(
    pictures: Path, model: Path, local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copied(local, out, 1)  # and so it goes on with what another engine began
    (out / "mean.npy").unlink()
    with begun(LOST, pictures, out, model) as process:
        answer, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    killed, notes, still = json.loads(answer)
    assert killed > 0
    assert any(note.startswith("workers were lost; parts that were begun again") for note in notes)
    assert not still
    assert (out / "mean.npy").read_bytes() == (local / "mean.npy").read_bytes()
    assert len(rows_of(out, "failed")) == 2
    for table in TABLES:
        assert rows_of(out, table) == rows_of(local, table)


@needs_ray
@pytest.mark.slow
def test_an_error_is_one_line_and_what_is_killed_goes_on_without_ray(
    pictures: Path, model: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    copied(local, out, 0)
    with begun(BROKEN_OFF, pictures, out, model, external(tmp_path)) as process:
        while not [*(out / "maps").glob("*.parquet")]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        answer, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGKILL, "")
    error, still = json.loads(answer)
    assert error.endswith("lies in 'digits.bin': No such file or directory")
    assert still
    done = {path: path.stat().st_mtime_ns for path in (out / "maps").glob("*.parquet")}
    assert 1 <= len(done) < 6
    monkeypatch.setattr(runs, "PART", 8)
    evaluate(model, samples(pictures), out, SETTINGS, device="cpu")
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    for table in TABLES:
        assert rows_of(out, table) == rows_of(local, table)
