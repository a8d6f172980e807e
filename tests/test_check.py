"""`check` says whether an explainer keeps its promises, also of models that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import BACK, DIGITS, FRONT, PLAIN, SCENE, WEIGHTS, network, run, saved

from onnx_clrp.check import CLOSES, check


@pytest.mark.parametrize("method", ["lrp", "clrp1", "clrp2"])
def test_the_shipped_model_keeps_its_promises(method: str) -> None:
    done = run("check", DIGITS, SCENE, "--method", method)
    assert done.status == 0
    assert "explained class 5" in done.out
    assert "together 1.000000" in done.out
    assert "output logits: " in done.out
    assert "from a float64 run" in done.out
    assert "all is well" in done.out


def test_without_an_image_random_values_are_run() -> None:
    assert run("check", DIGITS).status == 0


def test_all_shows_a_row_for_every_node() -> None:
    nodes = [node.name for node in onnx.load(DIGITS).graph.node if node.op_type == "Conv"]
    brief, full = run("check", DIGITS), run("check", DIGITS, "--all")
    assert not any(name in brief.out for name in nodes)
    assert all(name in full.out for name in nodes)


def test_the_json_holds_the_whole_ledger() -> None:
    report = json.loads(run("check", DIGITS, "--json").out)
    assert report["faults"] == []
    assert set(report["outputs"]) == {"logits"}
    assert all(abs(entry["leaks"]) < CLOSES for entry in report["ledger"])
    assert {"Conv", "Gemm", "MaxPool", "Relu"} <= {e["operator"] for e in report["ledger"]}


def test_absorbed_relevance_is_told_apart_from_leaks() -> None:
    weights = {"w": np.zeros((5, 3, 3, 3), "f"), "bias": np.ones(5, "f"), "v": np.ones((5, 4), "f")}
    model = network(f"{FRONT.replace('w)', 'w, bias)')} {BACK}", weights)
    report = check(model, np.ones((1, 3, 8, 8), "f"), input_range=(0, 1))
    assert report.absorbed == pytest.approx(1)
    assert report.arrived_at_input == pytest.approx(0)
    assert report.faults == []


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    model = network(inputs="float[4, 3, 8, 8] x", outputs="float[4, 4] y")
    done = run("check", saved(tmp_path, model), "--input-range", "0,1")
    assert (done.status, done.err) == (0, "")
    assert "all is well" in done.out


def test_several_outputs_are_all_compared(tmp_path: Path) -> None:
    outputs = "float[N, 4] y, float[N, 4] z"
    model = network(f"{PLAIN} z = Softmax(y)", outputs=outputs)
    report = json.loads(run("check", saved(tmp_path, model), "--json").out)
    assert set(report["outputs"]) == {"y", "z"}


def test_weights_that_are_no_numbers_are_faults(tmp_path: Path) -> None:
    model = saved(tmp_path, network(PLAIN, {"w": WEIGHTS["w"] * np.nan}))
    done = run("check", model, "--input-range", "0,1")
    assert done.status == 1
    assert "FAULT: relevance is not conserved" in done.out
    assert "all is well" not in done.out
    assert json.loads(run("check", model, "--input-range", "0,1", "--json").out)["logit"] is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (network(PLAIN, {"w": np.zeros((5, 3, 3, 3), "f")}), "the explained logit is 0"),
        (network(PLAIN, {"w": np.ones((5, 2, 3, 3), "f")}), "cannot run the model"),
    ],
    ids=["a logit of zero", "weights of a wrong shape"],
)
def test_a_broken_model_is_one_line(tmp_path: Path, model: onnx.ModelProto, reason: str) -> None:
    done = run("check", saved(tmp_path, model), "--input-range", "0,1")
    assert done.status == 1
    assert reason in done.complaint


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        ([SCENE, "--input-range", "0,0.1"], 2, "give the right input range"),
        (["absent.png"], 1, "'absent.png' does not exist: check the name"),
        ([DIGITS], 1, "save it as PNG or JPEG first"),
        ([DIGITS.parent], 1, "is a folder: name the files in it"),
    ],
)
def test_an_image_that_does_not_fit_is_one_line(
    words: list[object], status: int, reason: str
) -> None:
    done = run("check", DIGITS, *words)
    assert (done.status, done.out) == (status, "")
    assert reason in done.complaint


def test_a_model_that_is_no_picture_s_takes_no_image(tmp_path: Path) -> None:
    model = saved(tmp_path, network("y = Gemm(x, v)", inputs="float[N, 5] x"))
    assert run("check", model, "--input-range", "0,1").status == 0
    done = run("check", model, SCENE, "--input-range", "0,1")
    assert done.status == 2
    assert "--preset" in done.complaint
