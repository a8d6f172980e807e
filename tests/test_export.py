"""`export` writes torchvision's classifiers, and says plainly why it cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
from cli_support import leftovers, noise, run

from onnx_clrp.model import PREFIX, load, metadata


def test_without_pytorch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    done = run("export", "resnet18", tmp_path / "out.onnx")
    assert done.status == 1
    assert 'pip install "onnx-clrp[export]"' in done.complaint


def test_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    done = run("export", "no-such-model", tmp_path / "absent" / "out.onnx")
    assert done.status == 1
    assert "no such folder" in done.complaint


torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision").models

NAME, SIZE = "squeezenet1_1", ("--size", 64)
QUICK = (*SIZE, "--exporter", "torchscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dicts, and files that are none."""
    path = tmp_path_factory.mktemp("weights")
    net = models.get_model(NAME, weights=None, num_classes=7)
    state = net.state_dict()
    torch.save(state, path / "seven.pth")
    torch.save(net, path / "module.pth")
    torch.save([1], path / "list.pth")
    torch.save({1: torch.zeros(2, 2)}, path / "numbers.pth")
    torch.save({"a": 1}, path / "nothing.pth")
    (path / "plain").write_bytes((path / "seven.pth").read_bytes())
    (path / "short.pth").write_bytes((path / "seven.pth").read_bytes()[:9999])
    (path / "text.pth").write_text("no")
    (path / "empty.pth").write_bytes(b"")
    return path


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_random_weights_are_exported_and_explained(tmp_path: Path, exporter: str) -> None:
    out = tmp_path / "out.onnx"
    done = run("export", NAME, out, "--weights", "none", *SIZE, "--exporter", exporter)
    assert done.status == 0
    assert "the scores mean nothing" in done.err
    assert done.err.endswith(f"wrote {out}\n")
    noise(80, 90).save(tmp_path / "picture.png")
    done = run("explain", out, tmp_path / "picture.png", "-o", tmp_path / "maps", "--target", "999")
    assert done.status == 0
    assert load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_what_one_file_cannot_hold_gets_a_data_file(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    monkeypatch.setattr("onnx_clrp.model._FITS", 2**20)
    weights = ("--weights", folder / "seven.pth", *SIZE, "--exporter", exporter)
    assert run("export", NAME, tmp_path / "out.onnx", *weights).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert json.loads(run("inspect", tmp_path / "out.onnx", "--json").out)["classes"] == 7


@pytest.mark.parametrize("file", ["seven.pth", "plain"])
def test_a_state_dict_says_how_many_classes_there_are(
    tmp_path: Path, folder: Path, file: str
) -> None:
    out = tmp_path / "out.onnx"
    assert run("export", NAME, out, "--weights", folder / file, *QUICK).status == 0
    assert json.loads(run("inspect", out, "--json").out)["classes"] == 7


def test_known_weights_bring_labels_and_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = models.get_model(NAME, weights=None).state_dict()
    weights = type(models.get_model_weights(NAME).DEFAULT)
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: state)
    assert run("export", NAME, tmp_path / "out.onnx", *QUICK).status == 0
    known = metadata(load(tmp_path / "out.onnx"))
    assert json.loads(known[PREFIX + "labels"])[340] == "zebra"
    assert json.loads(known[PREFIX + "preprocessing"])["mean"] == [0.485, 0.456, 0.406]


def test_without_a_network_the_other_ways_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    done = run("export", "resnet18", tmp_path / "out.onnx")
    assert done.status == 1
    message = done.err.splitlines()[-1]
    assert "cannot be downloaded" in message
    assert "--weights FILE" in message
    assert "--weights none" in message
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("module.pth", "cannot be read as a state dict"),
        ("list.pth", "holds no state dict"),
        ("numbers.pth", "holds no state dict"),
        ("nothing.pth", "holds no weights"),
        ("short.pth", "cannot be read as a state dict"),
        ("text.pth", "cannot be read as a state dict"),
        ("empty.pth", "cannot be read as a state dict"),
        ("absent.pth", "No such file"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_line(
    tmp_path: Path, folder: Path, file: str, reason: str
) -> None:
    done = run("export", NAME, tmp_path / "out.onnx", "--weights", folder / file, *SIZE)
    assert done.status == 1
    assert reason in done.complaint
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_one_short_line(tmp_path: Path, folder: Path) -> None:
    done = run("export", "resnet18", tmp_path / "out.onnx", "--weights", folder / "seven.pth")
    assert done.status == 1
    assert "not the weights of a resnet18" in done.complaint
    assert len(done.complaint) < 500


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nope"], "no classifier called 'nope'"),
        (["fasterrcnn_resnet50_fpn"], "no classifier called"),
        ([NAME, "--weights", "NOPE"], "choose from IMAGENET1K_V1, DEFAULT, a state-dict file"),
        ([NAME, "--size", "0"], "--size"),
        ([NAME, "--exporter", "nope"], "--exporter"),
    ],
)
def test_wrong_words_are_a_usage_error(tmp_path: Path, words: list[str], reason: str) -> None:
    name, *options = words
    done = run("export", name, tmp_path / "out.onnx", *options)
    assert done.status == 2
    assert reason in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    done = run("export", NAME, tmp_path, "--weights", "none", *QUICK)
    assert done.status == 1
    assert "a folder has that name" in done.complaint
    assert leftovers(tmp_path.parent) == []
