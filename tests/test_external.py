"""Weights in files beside the model: shared where they lie, copied whole, and never trusted."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import PLAIN, WEIGHTS, Outcome, leftovers, network, run, saved
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_clrp
from onnx_clrp import ClrpError, Explainer, ModelError, UsageError, check, external, model
from onnx_clrp.external import array_of, is_external
from onnx_clrp.model import PREFIX, fingerprint, load, metadata

RANGE = ("--input-range", "-1,1")
BATCH = np.random.default_rng(3).uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)

Layout = Callable[[Path], Path]
Maps = tuple[NDArray[np.float32], NDArray[np.float32]]


def explained(source: Path | onnx.ModelProto) -> Maps:
    """The relevance and the logits of a model, or of an explainer."""
    proto = load(source)
    known = {} if PREFIX + "method" in metadata(proto) else {"input_range": (-1, 1)}
    result = Explainer(source, device="cpu", **known).explain(BATCH, [1, 3])
    return result.relevance, result.logits


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    """What the same model says with its weights inside."""
    return explained(saved(tmp_path_factory.mktemp("inline"), network()))


def same(found: Maps, wanted: Maps) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refer(
    path: Path,
    name: str = "w",
    location: str = "w.bin",
    source: onnx.ModelProto | None = None,
    **entries: object,
) -> Path:
    """The model as a file in which one tensor only refers to its values."""
    proto = source or network()
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    return path


# -- every way to lay them out -----------------------------------------------------------------


def one_file(folder: Path, **options: Any) -> Path:
    return stored(network(), folder, **options)


def stored(proto: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    given = {"save_as_external_data": True, "location": "in.data", "size_threshold": 0}
    onnx.save_model(proto, folder / "in.onnx", **{**given, **options})
    return folder / "in.onnx"


def above_a_threshold(folder: Path) -> Path:
    return one_file(folder, size_threshold=300)


def a_file_for_each(folder: Path) -> Path:
    return one_file(folder, all_tensors_to_one_file=False, location=None)


def sub_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "w.bin").write_bytes(WEIGHTS["w"].tobytes())
    return refer(folder / "in.onnx", location="data/w.bin")


def folders(folder: Path) -> Path:
    bold = network(PLAIN.replace("Flatten(c)", "Flatten(c) q = Identity(z)"), {"z": np.ones(99)})
    for name, values in (("w", WEIGHTS["w"]), ("z", np.ones(99))):
        (folder / name).mkdir()
        (folder / name / "data").write_bytes(values.tobytes())
    half = refer(folder / "half", "w", "w/data", bold)
    return refer(folder / "in.onnx", "z", "z/data", onnx.load_model(half, load_external_data=False))


def offset_without_length(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(b"\1" * 13 + WEIGHTS["w"].tobytes() + b"rest")
    return refer(folder / "in.onnx", offset=13, checksum="0" * 40)


def constant_node(folder: Path) -> Path:
    """Its values are no initializer, and are read at once."""
    proto = network(f"w = Constant() {PLAIN}")
    attribute = helper.make_attribute("value", numpy_helper.from_array(WEIGHTS["w"], "w"))
    proto.graph.node[0].attribute.append(attribute)
    del proto.graph.initializer[1:]
    return stored(proto, folder, convert_attribute=True)


def links_into_a_store(folder: Path) -> Path:
    """As the caches of model hubs do it: the model is a link, and so is its data."""
    store, shown = folder / "store", folder / "shown"
    store.mkdir()
    shown.mkdir()
    refer(store / "1234")
    (store / "5678").write_bytes(WEIGHTS["w"].tobytes())
    (shown / "in.onnx").symlink_to("../store/1234")
    (shown / "w.bin").symlink_to("../store/5678")
    return shown / "in.onnx"


LAYOUTS = [
    *(one_file, above_a_threshold, a_file_for_each, sub_folder, folders),
    *(offset_without_length, constant_node, links_into_a_store),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_by_path_every_verb_reads_them(tmp_path: Path, layout: Layout, maps: Maps) -> None:
    path = layout(tmp_path)
    before = tree(tmp_path)
    assert same(explained(path), maps)
    assert run("inspect", path, *RANGE).status == 0
    assert not check.check(path, BATCH, device="cpu", input_range=(-1, 1)).faults
    assert tree(tmp_path) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_convert_returns_has_them_inside(tmp_path: Path, layout: Layout, maps: Maps) -> None:
    made = onnx_clrp.convert(layout(tmp_path), input_range=(-1, 1))
    assert not any(map(is_external, made.graph.initializer))
    shutil.rmtree(tmp_path)
    assert same(explained(made), maps)
    tmp_path.mkdir()
    onnx.save(made, tmp_path / "out.onnx")
    assert same(explained(tmp_path / "out.onnx"), maps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_beside_the_model_they_are_shared(tmp_path: Path, layout: Layout, maps: Maps) -> None:
    path = layout(tmp_path)
    before, out = tree(tmp_path), path.with_name("out.onnx")
    assert run("convert", path, out, *RANGE).status == 0
    made = {name for name in tree(tmp_path) if name not in before}
    copied = {"shown/out.onnx.data"} if layout is links_into_a_store else set()
    assert made == {str(out.relative_to(tmp_path)), *copied}
    assert {name: tree(tmp_path)[name] for name in before} == before
    assert same(explained(out), maps)
    assert WEIGHTS["w"].tobytes() not in out.read_bytes() or layout is constant_node
    onnx.checker.check_model(out)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_elsewhere_they_are_copied(tmp_path: Path, layout: Layout, maps: Maps) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    path = layout(source)
    before = tree(source)
    assert run("convert", path, out / "a.onnx", *RANGE).status == 0
    assert tree(source) == before
    shutil.rmtree(source)
    data = [] if layout is constant_node else ["a.onnx.data"]
    assert sorted(os.listdir(out)) == ["a.onnx", *data]
    out.rename(tmp_path / "moved")
    assert same(explained(tmp_path / "moved" / "a.onnx"), maps)
    onnx.checker.check_model(tmp_path / "moved" / "a.onnx")


def test_a_folder_above_shares_them_too(tmp_path: Path, maps: Maps) -> None:
    (tmp_path / "models").mkdir()
    path = one_file(tmp_path / "models")
    assert run("convert", path, tmp_path / "out.onnx", *RANGE).status == 0
    assert sorted(os.listdir(tmp_path)) == ["models", "out.onnx"]
    assert same(explained(tmp_path / "out.onnx"), maps)


@pytest.mark.parametrize(
    "dtype",
    [
        "FLOAT",
        "DOUBLE",
        "FLOAT16",
        "BFLOAT16",
        "INT8",
        "UINT4",
        "INT4",
        "INT64",
        "BOOL",
        "FLOAT8E5M2",
    ],
)
@pytest.mark.parametrize("shape", [(3, 4), (2,), (0, 2)])
def test_values_are_those_of_the_tensor(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    kind = TensorProto.DataType.Value(dtype)
    numbers = np.random.default_rng(0).integers(0, 2, shape)
    inline = helper.make_tensor("w", kind, shape, numbers.reshape(-1).tolist())
    inline = numpy_helper.from_array(numpy_helper.to_array(inline), "w")
    assert external.size(inline) == len(inline.raw_data)
    (tmp_path / "w.bin").write_bytes(b"\7" * 3 + inline.raw_data)
    proto = network()
    proto.graph.initializer.append(inline)
    del proto.graph.initializer[:-1]
    refer(tmp_path / "in.onnx", source=proto, offset=3)
    proto = onnx.load_model(tmp_path / "in.onnx", load_external_data=False)
    external.resolve(proto, tmp_path / "in.onnx")
    found = array_of(proto.graph.initializer[0])
    assert found.dtype == numpy_helper.to_array(inline).dtype
    assert found.shape == shape
    assert found.tobytes() == numpy_helper.to_array(inline).tobytes()


# -- what must not be followed -----------------------------------------------------------------


def nothing(folder: Path) -> None:
    """The data file is as it should be."""


def outside(folder: Path) -> None:
    (folder.parent / "out.bin").write_bytes(WEIGHTS["w"].tobytes())
    (folder / "link").symlink_to("../out.bin")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")


def special(folder: Path) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")


def memory(folder: Path) -> None:
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(WEIGHTS["w"].tobytes())
    (folder / "innocent").symlink_to("*/_ORT_MEM_ADDR_")


def short(folder: Path) -> None:
    (folder / "w.bin").write_bytes(WEIGHTS["w"].tobytes()[:-1])


SIZE = WEIGHTS["w"].nbytes
BAD = [
    (nothing, {"location": "/etc/passwd"}, "'/etc/passwd', an absolute path or none"),
    (
        nothing,
        {"location": "../../etc/passwd"},
        "points outside of the model's folder: '../../etc/passwd'",
    ),
    (nothing, {"location": "/dev/zero"}, "an absolute path or none"),
    (nothing, {"location": ""}, "which is no file"),
    (nothing, {"location": "."}, "which is no file"),
    (nothing, {"location": "a\0b"}, "an absolute path or none"),
    (nothing, {"location": "w\nbin"}, "No such file"),
    (nothing, {"location": "x" * 5000}, "'xxx"),
    (nothing, {"location": "absent.bin"}, "'absent.bin': No such file"),
    (nothing, {"location": "w.bin/more"}, "Not a directory"),
    (nothing, {"location": "file://w.bin"}, "No such file"),
    (outside, {"location": "../out.bin"}, "points outside of the model's folder"),
    (outside, {"location": "link"}, "points outside of the model's folder"),
    (outside, {"location": "up/out.bin"}, "points outside of the model's folder"),
    (outside, {"location": "loop"}, "loop"),
    (outside, {"location": "gone"}, "No such file"),
    (special, {"location": "folder"}, "which is no file"),
    (special, {"location": "pipe"}, "which is no file"),
    (memory, {"location": "*/_ORT_MEM_ADDR_/*"}, "stands for memory"),
    (memory, {"location": "innocent/*"}, "stands for memory"),
    (short, {}, "beyond the end of 'w.bin'"),
    (nothing, {"offset": 1}, "beyond the end"),
    (nothing, {"offset": 10**17}, "beyond the end"),
    (nothing, {"offset": -4}, "has the offset '-4'"),
    (nothing, {"offset": "0x10"}, "has the offset '0x10'"),
    (nothing, {"offset": ""}, "has the offset ''"),
    (nothing, {"offset": "٣"}, "has the offset"),
    (nothing, {"offset": "9" * 400}, "has the offset '999"),
    (nothing, {"length": SIZE - 4}, f"has {SIZE - 4} bytes in 'w.bin', and needs {SIZE}"),
    (nothing, {"length": 0}, "has 0 bytes"),
    (nothing, {"length": "many"}, "has the length 'many'"),
    (nothing, {"onnx_clrp.file": "/etc/passwd", "onnx_clrp.token": "0"}, "onnx_clrp.save"),
]


def is_one_line(done: Outcome, path: Path, reason: str) -> bool:
    assert done.status == 1
    assert done.complaint.startswith(f"onnx-clrp: {path}: its external data cannot be read: 'w' ")
    assert reason in done.complaint
    return len(done.complaint) < 600


@pytest.mark.parametrize(("prepare", "entries", "reason"), BAD)
def test_a_bad_reference_is_one_line(
    tmp_path: Path, prepare: Callable[[Path], None], entries: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(WEIGHTS["w"].tobytes())
    prepare(folder)
    path = refer(folder / "in.onnx", **entries)
    before = sorted(tmp_path.rglob("*"))
    assert is_one_line(run("inspect", path, *RANGE), path, reason)
    assert is_one_line(run("convert", path, tmp_path / "out.onnx", *RANGE), path, reason)
    with pytest.raises(ModelError, match="external data"):
        Explainer(path, input_range=(-1, 1))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "dims"),
    [(TensorProto.STRING, [5]), (77, [5]), (TensorProto.UNDEFINED, [5]), (1, [-5, 3]), (1, [-1])],
)
def test_a_tensor_without_a_size_is_one_line(tmp_path: Path, kind: int, dims: list[int]) -> None:
    proto = network()
    proto.graph.initializer[1].data_type = kind
    proto.graph.initializer[1].dims[:] = dims
    (tmp_path / "w.bin").write_bytes(b"0" * 999)
    done = run("inspect", refer(tmp_path / "in.onnx", source=proto))
    assert done.status == 1
    assert "unknown type or a negative size" in done.complaint


def huge(folder: Path, elements: int) -> Path:
    """A file that claims to be large and takes no room on the disk."""
    proto = network()
    proto.graph.initializer[1].dims[:] = [elements]
    with open(folder / "w.bin", "wb") as file:
        file.truncate(4 * elements)
    return refer(folder / "in.onnx", source=proto)


def test_an_absurd_size_meets_a_limit_that_says_so(tmp_path: Path) -> None:
    done = run("convert", huge(tmp_path, 2**38), tmp_path / "out.onnx")
    assert done.status == 1
    assert done.complaint.endswith("1,024.0 GiB in other files, the limit is 64 GiB")


def test_dims_that_overflow_64_bits_are_refused(tmp_path: Path) -> None:
    path = huge(tmp_path, 64)
    proto = onnx.load_model(path, load_external_data=False)
    proto.graph.initializer[1].dims[:] = [2**32, 2**32, 2**2]
    path.write_bytes(proto.SerializeToString())
    assert "beyond the end" in run("inspect", path).complaint


def test_a_huge_constant_in_a_node_is_not_read(tmp_path: Path) -> None:
    path = constant_node(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    tensor = proto.graph.node[0].attribute[0].t
    tensor.dims[:] = [2**28 + 1]
    del tensor.external_data[1:]
    os.truncate(tmp_path / "in.data", 2**31)
    path.write_bytes(proto.SerializeToString())
    assert run("inspect", path).complaint.endswith("in other files, the limit is 1 GiB")


def test_weights_beyond_the_memory_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_file(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda _: 16)
    with pytest.raises(ModelError, match=r"take 0\.0 GiB, this machine has 0\.0 GiB of memory"):
        Explainer(path, input_range=(-1, 1))


def test_a_runtime_that_would_look_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.9.1")
    with pytest.raises(ModelError, match=r"need ONNX Runtime 1\.21, not 1\.9\.1"):
        Explainer(one_file(tmp_path), input_range=(-1, 1))


@pytest.mark.parametrize("layout", [one_file, constant_node])
def test_without_a_path_nothing_is_followed(tmp_path: Path, layout: Layout) -> None:
    path = layout(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    for source in (proto, path.read_bytes()):
        with pytest.raises(ModelError, match="give the model's path"):
            onnx_clrp.convert(source, input_range=(-1, 1))
    with pytest.raises(ModelError, match="give the model's path"):
        onnx_clrp.save(proto, tmp_path / "out.onnx")
    assert same(explained(onnx.load_model(path)), explained(network()))


def test_a_file_that_shrinks_later_is_one_line(tmp_path: Path) -> None:
    proto = load(one_file(tmp_path))
    os.truncate(tmp_path / "in.data", 100)
    weights = proto.graph.initializer[1]
    with pytest.raises(ModelError, match="cannot be read any more"):
        array_of(weights)
    with pytest.raises(ModelError, match="has become shorter"):
        external.embedded(weights)
    (tmp_path / "in.data").unlink()
    with pytest.raises(ModelError, match="No such file"):
        external.embedded(weights)


# -- whole or not at all -----------------------------------------------------------------------


def elsewhere(tmp_path: Path) -> tuple[onnx.ModelProto, Path]:
    """A model with external data, and a path in another folder, where other files lie."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "a.onnx").write_bytes(b"old model")
    (tmp_path / "out" / "a.onnx.data").write_bytes(b"old data")
    return load(one_file(tmp_path / "in")), tmp_path / "out" / "a.onnx"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failing_rename_undoes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, fails_at: int
) -> None:
    proto, out = elsewhere(tmp_path)
    if not kept:
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    before, replace, calls = tree(tmp_path), os.replace, iter(range(1, 9))

    def refuse(*paths: Path) -> None:
        if next(calls) == fails_at:
            raise PermissionError(13, "Permission denied")
        replace(*paths)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ClrpError, match=r"cannot write '.*a\.onnx': Permission denied"):
        onnx_clrp.save(proto, out)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    proto, out = elsewhere(tmp_path)
    before = tree(tmp_path)

    def refuse(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises((ClrpError, KeyboardInterrupt)):
        onnx_clrp.save(proto, out)
    assert tree(tmp_path) == before


def test_data_that_vanishes_leaves_nothing(tmp_path: Path) -> None:
    proto, out = elsewhere(tmp_path)
    (tmp_path / "in" / "in.data").unlink()
    before = tree(tmp_path)
    with pytest.raises(ModelError, match="No such file"):
        onnx_clrp.save(proto, out)
    assert tree(tmp_path) == before


def test_old_files_are_replaced_together(tmp_path: Path, maps: Maps) -> None:
    proto, out = elsewhere(tmp_path)
    onnx_clrp.save(proto, out)
    assert sorted(os.listdir(out.parent)) == ["a.onnx", "a.onnx.data"]
    assert same(explained(out), maps)


def test_the_models_own_data_is_never_replaced(tmp_path: Path) -> None:
    path = one_file(tmp_path, location="out.onnx.data")
    (tmp_path / "link.onnx").symlink_to("out.onnx.data")
    before = tree(tmp_path)
    for name in ("out.onnx.data", "link.onnx"):
        done = run("convert", path, tmp_path / name, *RANGE)
        assert done.status == 2
        assert "holds weights of the model itself" in done.err
    assert tree(tmp_path) == before


def test_of_two_folders_neither_is_written_to_where_its_data_lies(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    proto = load(one_file(tmp_path, location="out.onnx.data"))
    other = load(one_file(tmp_path / "more", location="out.onnx.data"))
    proto.graph.initializer[0].CopyFrom(other.graph.initializer[0])
    with pytest.raises(UsageError, match=r"more/out\.onnx\.data holds weights"):
        onnx_clrp.save(proto, tmp_path / "more" / "out.onnx")


def test_the_model_is_not_replaced_by_the_data_of_its_explainer(tmp_path: Path) -> None:
    path = saved(tmp_path, network(), "out.onnx.data")
    done = run("convert", path, tmp_path / "out.onnx", *RANGE)
    assert done.status == 2
    assert "would replace the model" in done.err
    assert os.listdir(tmp_path) == ["out.onnx.data"]


def test_weights_that_are_shared_are_copied_once(tmp_path: Path, maps: Maps) -> None:
    body = PLAIN.replace("Flatten(c)", "Flatten(c) q = Identity(z)")
    (tmp_path / "w.bin").write_bytes(WEIGHTS["w"].tobytes())
    half = refer(tmp_path / "half", source=network(body, {"z": WEIGHTS["w"]}))
    proto = onnx.load_model(half, load_external_data=False)
    path = refer(tmp_path / "in.onnx", "z", source=proto)
    (tmp_path / "out").mkdir()
    onnx_clrp.save(load(path), tmp_path / "out" / "a.onnx")
    assert (tmp_path / "out" / "a.onnx.data").stat().st_size == SIZE
    assert same(explained(tmp_path / "out" / "a.onnx"), maps)


# -- what one file cannot hold -----------------------------------------------------------------


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a file holds no more than a few hundred bytes of weights."""
    monkeypatch.setattr(model, "_FITS", 500)
    monkeypatch.setattr(model, "_WORTH", 100)


@pytest.mark.usefixtures("cramped")
def test_a_large_model_is_written_with_a_data_file(tmp_path: Path, maps: Maps) -> None:
    made = onnx_clrp.convert(network(), input_range=(-1, 1))
    assert same(explained(made), maps)
    onnx_clrp.save(made, tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]
    assert same(explained(tmp_path / "out.onnx"), maps)
    onnx.checker.check_model(tmp_path / "out.onnx")


@pytest.mark.usefixtures("cramped")
def test_of_a_large_model_convert_leaves_the_data_where_it_is(tmp_path: Path, maps: Maps) -> None:
    path = one_file(tmp_path)
    made = onnx_clrp.convert(path, input_range=(-1, 1))
    assert [t.name for t in made.graph.initializer if is_external(t)] == ["w"]
    assert same(explained(made), maps)
    onnx_clrp.save(made, tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["in.data", "in.onnx", "out.onnx"]
    assert same(explained(tmp_path / "out.onnx"), maps)
    onnx.save(made, tmp_path / "by-mistake.onnx")
    with pytest.raises(ModelError, match=r"write it with onnx_clrp\.save"):
        load(tmp_path / "by-mistake.onnx")


def test_a_file_that_is_larger_than_any_model_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "in.onnx", "wb") as file:
        file.truncate(2**43)
    done = run("inspect", tmp_path / "in.onnx")
    assert done.status == 1
    assert "takes 2 GiB at most" in done.complaint


# -- the fingerprint ---------------------------------------------------------------------------


def test_the_fingerprint_is_the_hash_of_the_files(tmp_path: Path) -> None:
    inline = saved(tmp_path, network())
    assert fingerprint(load(inline)) == hashlib.sha256(inline.read_bytes()).hexdigest()
    path = one_file(tmp_path)
    both = path.read_bytes() + (tmp_path / "in.data").read_bytes()
    assert fingerprint(load(path)) == hashlib.sha256(both).hexdigest()
    made = onnx_clrp.convert(path, input_range=(-1, 1))
    assert metadata(made)[PREFIX + "source_sha256"] == hashlib.sha256(both).hexdigest()


@pytest.mark.parametrize("most", [2**30, 200, 10])
def test_the_fingerprint_knows_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    (tmp_path / "a").mkdir()
    path = above_a_threshold(tmp_path / "a")
    monkeypatch.setattr(model, "_FITS", most)
    first = fingerprint(load(path))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(external, "_SECRET", "another process")
    assert fingerprint(load(tmp_path / "b" / "in.onnx")) == first
    data = bytearray((tmp_path / "b" / "in.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "b" / "in.data").write_bytes(data)
    assert fingerprint(load(tmp_path / "b" / "in.onnx")) != first


# -- a real one --------------------------------------------------------------------------------

ROWS, COLUMNS = 8192, 70_000
"""Of a matrix of 2.3 GB."""


def two_gigabytes(folder: Path) -> tuple[Path, onnx.ModelProto]:
    """A model with a matrix that no protobuf holds, and the same without the zeros in it."""
    rng = np.random.default_rng(0)
    rows, columns = (np.sort(rng.choice(n, 40, replace=False)) for n in (ROWS, COLUMNS))
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((12, 40), (40, 40), (40, 3)))
    wide_a, wide_c = np.zeros((12, ROWS), np.float32), np.zeros((COLUMNS, 3), np.float32)
    wide_a[:, rows], wide_c[columns] = a, c
    with open(folder / "b.bin", "wb") as file:
        file.truncate(4 * ROWS * COLUMNS)
        for row, values in zip(rows, b, strict=True):
            for column, value in zip(columns, values, strict=True):
                file.seek(4 * (int(row) * COLUMNS + int(column)))
                file.write(value.tobytes())
    body = "p = Gemm(x, a) q = Relu(p) r = Gemm(q, b) s = Relu(r) y = Gemm(s, c)"
    form = {"inputs": "float[N, 12] x", "outputs": "float[N, 3] y"}
    proto = network(body, {"a": wide_a, "b": np.zeros(1, np.float32), "c": wide_c}, **form)
    proto.graph.initializer[1].dims[:] = [ROWS, COLUMNS]
    path = refer(folder / "in.onnx", "b", "b.bin", proto, offset=0, length=4 * ROWS * COLUMNS)
    return path, network(body, {"a": a, "b": b, "c": c}, **form)


@pytest.mark.slow
def test_a_model_above_two_gigabytes(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < 12 * 2**30:
        pytest.skip("its explainer takes 7 GiB of memory")
    path, small = two_gigabytes(tmp_path)
    if (tmp_path / "b.bin").stat().st_blocks * 512 > 2**28:
        pytest.skip("the file system knows no sparse files")
    try:
        assert run("convert", path, tmp_path / "out.onnx", *RANGE).status == 0
        assert sorted(os.listdir(tmp_path)) == ["b.bin", "in.onnx", "out.onnx"]
        added = (tmp_path / "out.onnx").stat().st_size - path.stat().st_size
        assert added < 2**16
        onnx.checker.check_model(tmp_path / "out.onnx")
        batch = np.random.default_rng(1).uniform(-1, 1, (2, 12)).astype(np.float32)
        found = Explainer(tmp_path / "out.onnx", device="cpu").explain(batch, [0, 2])
        wanted = Explainer(small, device="cpu", input_range=(-1, 1)).explain(batch, [0, 2])
        np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-4)
        off = np.linalg.norm(found.relevance - wanted.relevance)
        assert off <= 1e-5 * np.linalg.norm(wanted.relevance)
    finally:
        (tmp_path / "b.bin").unlink()
