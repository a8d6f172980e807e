"""tools/bench.py at its smallest: is what it tells complete? Times are never judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark import spent

pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")
pytest.importorskip("zennit", reason="explanations are compared with zennit's")
pytest.importorskip("onnxscript", reason="PyTorch exports with it")

ROOT = Path(__file__).resolve().parents[1]
SAME = 1e-4

pytestmark = pytest.mark.slow


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process, since it changes how a process treats small numbers."""
    script = str(ROOT / "tools" / "bench.py")
    return subprocess.run(
        [sys.executable, script, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network, measured once, with its page, picture and numbers."""
    made = tmp_path_factory.mktemp("bench")
    done = bench(
        *("--models", "squeezenet1_1", "--conversions", "squeezenet1_1", "--size", "64"),
        *("--batches", "1,2", "--targets", "1,2", "--rounds", "1", "--threads", "1"),
        *("--json", str(made / "bench.json"), "--out", str(made / "page.md")),
    )
    assert done.returncode == 0, done.stderr
    (made / "stdout").write_text(done.stdout, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def results(folder: Path) -> Any:
    return json.loads((folder / "bench.json").read_text(encoding="utf-8"))


KINDS = [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_every_contestant_is_timed_in_every_setting(results: Any) -> None:
    assert [(row["batch"], row["targets"]) for row in results["speed"]] == KINDS
    for row in results["speed"]:
        assert list(row["seconds"]) == ["forward", "logits", "explain", "torch", "zennit"]
        assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in row["seconds"].values())


def test_zennit_makes_the_same_map(results: Any) -> None:
    assert results["speed"][0]["agreement"]["zennit"]["agrees"] <= SAME


def test_memory_loading_and_conversion_are_there(results: Any) -> None:
    ways = ["forward", "explain", "package"]
    asked = [(row["batch"], row["targets"], row["what"]) for row in results["memory"]]
    assert asked == [(*kind, way) for kind in KINDS for way in ways]
    assert all(row["running"] >= row["opening"] > 0 for row in results["memory"])
    assert [list(row["seconds"]) for row in results["loading"]] == [ways]
    assert [row["model"] for row in results["conversion"]] == ["squeezenet1_1"]


def test_the_time_is_shared_out_among_the_kinds_of_nodes(results: Any) -> None:
    (row,) = results["spent"]
    assert all(row[kind] > 0 for kind in ("forward", *spent.KINDS))
    assert row["own"] < 3 * row["forward"]  # the model's nodes are told from those added


@pytest.mark.parametrize(
    ("name", "operator", "kind"),
    [
        ("relevance/node_Conv_1/Conv_output_0_nchwc", "Conv", "products"),
        ("relevance/features/pool/Mul", "Mul", "pools"),
        ("relevance/features/pool/ConvTranspose_2", "ConvTranspose", "pools"),
        ("relevance/node_Conv_1/Div", "Div", "elementwise"),
        ("ReorderOutput_token_3", "ReorderOutput", "reorders"),
        ("relu_2_nchwc", "Conv", "own"),
        ("features/pool", "MaxPool", "own"),
    ],
)
def test_a_node_is_of_one_kind(name: str, operator: str, kind: str) -> None:
    assert spent.kind_of(name, operator, ["features/pool"]) == kind


def test_the_machine_is_named(results: Any, folder: Path) -> None:
    page = (folder / "page.md").read_text(encoding="utf-8")
    told = {key: value for key, value in results["machine"].items() if key != "load"}
    assert all(value in page for value in told.values())


def test_the_page_holds_every_table_and_the_picture(folder: Path) -> None:
    page = (folder / "page.md").read_text(encoding="utf-8")
    told = [line for line in page.splitlines() if line.startswith("| squeezenet1_1 ")]
    assert len(told) == len(KINDS) + 1 + 1 + len(KINDS) + 1 + 1
    assert all(line in (folder / "stdout").read_text(encoding="utf-8") for line in told)
    assert "](images/page.png)" in page
    assert (folder / "images" / "page.png").is_file()


def test_a_page_is_drawn_anew_from_its_numbers(folder: Path) -> None:
    done = bench("--redraw", "--json", str(folder / "bench.json"), "--out", str(folder / "new.md"))
    assert done.returncode == 0, done.stderr
    first, again = (
        (folder / name).read_text(encoding="utf-8").replace(f"images/{stem}", "")
        for name, stem in (("page.md", "page"), ("new.md", "new"))
    )
    assert first == again


def test_a_network_that_cannot_be_measured_is_named(tmp_path: Path) -> None:
    options = ("--models", "no_such_net", "--conversions", "", "--out", str(tmp_path / "page.md"))
    done = bench(*options)
    assert done.returncode == 0, done.stderr
    assert "no_such_net, speed: " in (tmp_path / "page.md").read_text(encoding="utf-8")
