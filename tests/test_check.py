"""`check` says whether an explainer keeps its promises, also of models that are broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import BACK, DIGITS, FRONT, PLAIN, SCENE, WEIGHTS, network, run, saved
from onnx import TensorProto

from onnx_clrp import comparison, rules
from onnx_clrp.check import AGREES, CLOSES, ONE_PASS, Report, check
from onnx_clrp.errors import ModelError, UsageError

X = np.random.default_rng(1).uniform(0, 1, (1, 3, 8, 8)).astype("f")
UNIT = ["--input-range", "0,1"]


@pytest.mark.parametrize("method", ["lrp", "clrp1", "clrp2"])
def test_the_shipped_model_keeps_its_promises(method: str) -> None:
    done = run("check", DIGITS, SCENE, "--method", method)
    assert done.status == 0
    assert "explained class 5 of the image" in done.out
    assert "together 1.000000" in done.out
    assert "output logits: " in done.out
    assert "from float64 on the same forward values" in done.out
    assert "from a forward pass in float64 too" in done.out
    assert ("difference of its two parts" in done.out) == (method != "lrp")
    assert "all is well" in done.out


def test_without_an_image_random_values_are_run() -> None:
    done = run("check", DIGITS)
    assert done.status == 0
    assert "of random values" in done.out


def test_all_shows_a_row_for_every_node() -> None:
    nodes = [node.name for node in onnx.load(DIGITS).graph.node if node.op_type == "Conv"]
    brief, full = run("check", DIGITS), run("check", DIGITS, "--all")
    assert not any(name in brief.out for name in nodes)
    assert "(--all shows them all)" in brief.out
    assert all(name in full.out for name in nodes)


def test_the_json_holds_the_whole_ledger() -> None:
    report = json.loads(run("check", DIGITS, "--json").out)
    assert report["faults"] == []
    assert set(report["outputs"]) == {"logits"}
    assert all(abs(entry["leaks"]) < CLOSES for entry in report["ledger"])
    assert {"Conv", "Gemm", "MaxPool", "Relu"} <= {e["operator"] for e in report["ledger"]}
    assert report["distance"] < AGREES
    assert report["contrast"] < ONE_PASS
    assert report["why_not"] == {}


def test_absorbed_relevance_is_told_apart_from_leaks_and_has_a_reason() -> None:
    weights = {"w": np.zeros((5, 3, 3, 3), "f"), "bias": np.ones(5, "f"), "v": np.ones((5, 4), "f")}
    model = network(f"{FRONT.replace('w)', 'w, bias)')} {BACK}", weights)
    report = check(model, np.ones((1, 3, 8, 8), "f"), input_range=(0, 1))
    assert report.absorbed == pytest.approx(1)
    assert report.arrived_at_input == pytest.approx(0)
    assert list(report.reasons.values()) == [pytest.approx(1)]
    assert "bias" in next(iter(report.reasons))
    (conv,) = [entry for entry in report.ledger if entry.operator == "Conv"]
    assert conv.reasons == report.reasons
    assert report.faults == []


def test_reasons_are_printed_beside_their_nodes(tmp_path: Path) -> None:
    weights = {"w": np.zeros((5, 3, 3, 3), "f"), "bias": np.ones(5, "f")}
    model = network(f"{FRONT.replace('w)', 'w, bias)')} {BACK}", weights)
    done = run("check", saved(tmp_path, model), *UNIT)
    assert "  absorbed (1) 1.000000: Z = 0: its bias alone made the output" in done.out
    assert [line.split()[-2] for line in done.out.splitlines() if " Conv " in line] == ["1"]


# -- what is checked ---------------------------------------------------------------------------


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    model = network(inputs="float[4, 3, 8, 8] x", outputs="float[4, 4] y")
    done = run("check", saved(tmp_path, model), *UNIT)
    assert (done.status, done.err) == (0, "")
    assert "all is well" in done.out
    one, four = (check(m, X, input_range=(0, 1)) for m in (network(), model))
    assert four.logit == pytest.approx(one.logit, rel=1e-5)


def test_several_outputs_are_all_compared(tmp_path: Path) -> None:
    outputs = "float[N, 4] y, float[N, 4] z, int64[N, 1] k, bool[N, 4] sure"
    ends = "z = Softmax(y) k = ArgMax<axis = 1>(z) sure = Greater(y, none)"
    model = network(f"{PLAIN} {ends}", {"none": np.zeros(1, "f")}, outputs=outputs)
    words = ["check", saved(tmp_path, model), "--json", "--logits", "y"]
    assert set(json.loads(run(*words).out)["outputs"]) == {"y", "z", "k", "sure"}


@pytest.mark.parametrize(
    ("words", "target"), [(["--target", "2"], 2), (["--target", "a horse, of course"], 3)]
)
def test_any_class_is_checked(tmp_path: Path, words: list[str], target: int) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\ncow\na horse, of course\n")
    model = saved(tmp_path, network())
    done = run("check", model, *UNIT, *words, "--labels", labels, "--json")
    report = json.loads(done.out)
    assert (done.status, report["target"], report["label"]) == (
        0,
        target,
        ["cat", "dog", "cow", "a horse, of course"][target],
    )


@pytest.mark.parametrize(
    ("target", "reason"),
    [("4", "not in 0 … 3"), ("1,2", "one class is checked at a time"), ("cat", "--labels FILE")],
)
def test_a_class_that_cannot_be_checked_is_one_line(
    tmp_path: Path, target: str, reason: str
) -> None:
    done = run("check", saved(tmp_path, network()), *UNIT, "--target", target)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    done = run("check", DIGITS, "--device", "cuda")
    assert (done.status, done.out) == (2, "")
    assert "no CUDA here" in done.complaint


@pytest.mark.parametrize("sign", [-1, 0])
def test_a_logit_that_is_not_positive_is_said(tmp_path: Path, sign: int) -> None:
    weights = {"v": sign * np.abs(WEIGHTS["v"])}
    done = run("check", saved(tmp_path, network(PLAIN, weights)), *UNIT)
    assert done.status == 0
    said = "evidence against the class" if sign else "the logit is 0"
    assert said in done.complaint
    assert "all is well" in done.out


def test_of_a_class_whose_logit_is_0_nothing_may_be_relevant() -> None:
    model = network(f"{FRONT} c = GlobalAveragePool(b) d = Flatten(c) e = Gemm(d, v) y = Relu(e)")
    logits = check(model, X, input_range=(0, 1), logits="y")
    assert logits.faults == []
    v = WEIGHTS["v"].copy()
    v[:, 1] = -np.abs(v[:, 1])
    dead = onnx.ModelProto.FromString(model.SerializeToString())
    (held,) = [t for t in dead.graph.initializer if t.name == "v"]
    held.CopyFrom(onnx.numpy_helper.from_array(v, "v"))
    report = check(dead, X, input_range=(0, 1), logits="y", target=1)
    assert (report.logit, report.arrived_at_input, report.faults) == (0, 0, [])
    assert len(report.remarks) == 1


def test_a_contrast_of_nothing_is_no_fault() -> None:
    alike = np.repeat(np.abs(WEIGHTS["v"][:, :1]), 4, axis=1)
    report = check(network(PLAIN, {"v": alike}), X, input_range=(0, 1), method="clrp1")
    assert report.logit > 0
    assert report.faults == []


# -- several inputs ----------------------------------------------------------------------------

TWO = {
    "body": f"{FRONT} {BACK.replace('y =', 'e =')} y = Add(e, z)",
    "inputs": "float[N, 3, 8, 8] x, float[N, 4] z",
}


def test_other_inputs_are_fed(tmp_path: Path) -> None:
    model = saved(tmp_path, network(**TWO))
    np.save(tmp_path / "z.npy", np.arange(4.0)[None])
    words = ["check", model, *UNIT, "--input", "x"]
    done = run(*words, "--feed", f"z={tmp_path / 'z.npy'}")
    assert done.status == 0
    report = check(network(**TWO), X, feeds={"z": [[0, 50, 0, 0]]}, input="x", input_range=(0, 1))
    assert (report.target, report.faults) == (1, [])
    refused = run(*words)
    assert (refused.status, refused.out) == (2, "")
    assert "the model also needs a feed for z" in refused.complaint


def test_other_inputs_of_a_fixed_batch_are_filled_too() -> None:
    inputs = {"inputs": "float[2, 3, 8, 8] x, float[2, 4] z", "outputs": "float[2, 4] y"}
    model = network(TWO["body"], **inputs)
    for rows in (1, 2):
        feeds = {"z": np.ones((rows, 4), "f")}
        assert check(model, X, feeds=feeds, input="x", input_range=(0, 1)).faults == []


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("z", "write NAME=FILE.npy"),
        ("=z.npy", "write NAME=FILE.npy"),
        ("z=absent.npy", "No such file"),
        ("z=.", "directory"),
        ("z=text.npy", "no .npy file of numbers"),
        ("z=empty.npy", "no .npy file of numbers"),
        ("z=objects.npy", "no .npy file of numbers"),
        ("z=many.npz", "an archive of arrays"),
        ("z=cut.npy", "no .npy file of numbers"),
        ("z=words.npy", "the input 'z' takes float32, not <U4"),
        ("q=z.npy", "the model also needs a feed for z"),
    ],
)
def test_a_bad_feed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("z.npy", np.zeros((1, 4)))
    Path("text.npy").write_text("1 2 3")
    Path("empty.npy").write_bytes(b"")
    Path("cut.npy").write_bytes(Path("z.npy").read_bytes()[:-8])
    np.save("objects.npy", np.array([{}], object))
    np.save("words.npy", np.array(["word"]))
    np.savez("many.npz", z=np.zeros(4))
    words = ["check", saved(tmp_path, network(**TWO)), *UNIT, "--input", "x"]
    done = run(*words, "--feed", word)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint


def test_an_input_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="no further input called q"):
        check(network(), X, feeds={"q": X}, input_range=(0, 1))
    body = f"f = Cast<to = 1>(x) {PLAIN.replace('(x,', '(f,')}"
    model = network(body, inputs="uint8[N, 3, 8, 8] x")
    with pytest.raises(UsageError, match="takes uint8, not float32"):
        check(model, X)


@pytest.mark.parametrize("batch", [X[0], X[:, :2], X[:0], X[..., :7]])
def test_a_batch_of_another_shape_is_refused(batch: Any) -> None:
    with pytest.raises(UsageError, match=r"the model takes \[N, 3, 8, 8\], the batch is \["):
        check(network(), batch, input_range=(0, 1))


# -- where float64 cannot follow ---------------------------------------------------------------


def foreign(body: str, **options: Any) -> onnx.ModelProto:
    """A model with operators of ONNX Runtime's own domain, and the shapes behind them."""
    model = network(body, domains=', "com.microsoft": 1', **options)
    for name in ("b", "e"):
        value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 5, 8, 8])
        model.graph.value_info.append(value)
    return model


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test registers are gone behind it."""
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))


@pytest.mark.usefixtures("registry")
def test_an_operator_without_float64_is_taken_from_the_model_s_own_run() -> None:
    rules.rule("QuickGelu", domain="com.microsoft")(lambda t, r, y, x, *, alpha=1.702: r)
    body = f"{FRONT} e = com.microsoft.QuickGelu(b) {BACK.replace('(b)', '(e)')}"
    report = check(foreign(body), X, input_range=(0, 1))
    assert report.faults == []
    assert report.distance is not None
    assert report.distance < AGREES
    assert report.whole_distance is None
    assert "com.microsoft.QuickGelu cannot be run in float64" in report.why_not["forward pass"]


@pytest.mark.usefixtures("registry")
def test_operators_off_the_path_are_no_obstacle() -> None:
    branch = "then_branch = t () => (float[N, 4] p) { p = Identity(y) }"
    other = branch.replace("then_branch = t", "else_branch = s").replace("Identity", "Neg")
    off = f"k = ReduceSum(x) g = Greater(k, nought) z = If(g) <{branch}, {other}>"
    extra = "h = com.microsoft.QuickGelu(y)"
    outputs = "float[N, 4] y, float[N, 4] z, float[N, 4] h"
    model = foreign(
        f"{PLAIN} {off.replace('ReduceSum(x)', 'ReduceSum<keepdims = 0>(x)')} {extra}",
        weights={"nought": np.array(0, "f")},
        outputs=outputs,
    )
    report = check(model, X, input_range=(0, 1), logits="y")
    assert report.faults == []
    assert set(report.outputs) == {"y", "z", "h"}
    assert report.whole_distance is not None


def test_half_precision_has_float64_from_its_own_forward_values() -> None:
    half = {name: WEIGHTS[name].astype(np.float16) for name in ("w", "v")}
    kinds = {"inputs": "float16[N, 3, 8, 8] x", "outputs": "float16[N, 4] y"}
    report = check(network(PLAIN, half, **kinds), X.astype(np.float16), input_range=(0, 1))
    assert report.faults == []
    assert (report.half_step, report.whole_distance) == (2**-10, None)
    assert "half precision" in report.why_not["forward pass"]
    assert report.distance is not None
    assert report.distance < 1e-6
    assert "outputs are held to 5e-03" in report.remarks[0]


def test_a_quantised_model_has_float64_from_its_own_forward_values(tmp_path: Path) -> None:
    scales = {"s": np.array(1 / 255, "f"), "z": np.array(0, np.uint8), "r": np.array(0.05, "f")}
    inside = "q = QuantizeLinear(x, s, z) u = DequantizeLinear(q, s, z)"
    behind = "g = QuantizeLinear(b, r, z) h = DequantizeLinear(g, r, z)"
    body = f"{inside} {FRONT.replace('(x,', '(u,')} {behind} {BACK.replace('(b)', '(h)')}"
    done = run("check", saved(tmp_path, network(body, scales)), *UNIT)
    assert done.status == 0
    assert "from float64 on the same forward values" in done.out
    assert "no float64 forward pass: the model is quantised (QuantizeLinear)" in done.out


def test_relevance_that_float64_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ModelError("node: Op cannot be run in float64: why")

    monkeypatch.setattr(comparison, "run_float64", fails)
    report = check(network(), X, input_range=(0, 1))
    assert (report.distance, report.whole_distance, report.contrast) == (None, None, None)
    assert report.why_not.keys() == {"relevance", "forward pass"}
    assert report.faults == []
    assert "no float64 relevance: node: Op cannot be run" in run("check", DIGITS).out


# -- broken on purpose -------------------------------------------------------------------------

Rule = Callable[..., Any]

NAMED = {
    "first": "a = Conv<pads=[1, 1, 1, 1]>(x, w)",
    "bend": "b = Relu(a)",
    "second": "e = Conv<pads=[1, 1, 1, 1]>(b, u)",
    "knee": "f = Relu(e)",
    "mean": "c = GlobalAveragePool(f)",
    "flat": "d = Flatten(c)",
    "head": "y = Gemm(d, v)",
}


def named() -> onnx.ModelProto:
    """Two convolutions, each node with a name."""
    u = np.random.default_rng(2).normal(size=(5, 5, 3, 3)).astype("f")
    model = network(" ".join(NAMED.values()), {"u": u, "v": np.abs(WEIGHTS["v"])})
    for node, name in zip(model.graph.node, NAMED, strict=True):
        node.name = name
    return model


def broken(rule: Rule, operator: str = "Flatten", **options: Any) -> Report:
    """The report on a model with one operator's rule replaced."""
    rules.rule(operator, replace=True)(rule)
    return check(named(), X, input_range=(0, 1), **options)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("factor", "found"),
    [
        (2.0, "flat (Flatten): its ledger is open by -1.0e+00 of the logit: 1.000000 arrived"),
        (0.0, "flat (Flatten): its ledger is open by 1.0e+00 of the logit: 1.000000 arrived"),
        (1.001, "flat (Flatten): its ledger is open by -1.0e-03 of the logit"),
        (math.nan, "flat (Flatten): what it hands on is not finite"),
        (math.inf, "flat (Flatten): what it hands on is not finite"),
    ],
)
def test_a_rule_that_makes_or_loses_relevance_is_named(factor: float, found: str) -> None:
    report = broken(lambda t, r, y, x, **_: t.Mul(t.like(r, x), factor))
    assert [entry.node for entry in report.open_nodes] == ["flat"]
    assert report.faults[0].startswith(found)
    assert report.faults[1].startswith("relevance is not conserved")


@pytest.mark.usefixtures("registry")
def test_a_rule_of_too_few_digits_is_found() -> None:
    def rounded(t: Any, r: Any, y: Any, x: Any, **_: Any) -> Any:
        return t.Cast(t.Cast(t.like(r, x), to=TensorProto.FLOAT16), to=TensorProto.FLOAT)

    report = broken(rounded)
    assert report.distance is not None
    assert AGREES < report.distance < 1e-2
    assert any("from float64" in fault for fault in report.faults)


@pytest.mark.usefixtures("registry")
def test_a_rule_that_is_not_linear_in_relevance_is_found() -> None:
    def cut_off(t: Any, r: Any, y: Any, x: Any, **_: Any) -> Any:
        return t.Relu(t.like(r, x))  # right for LRP, and wrong for what is below zero

    assert broken(cut_off, method="lrp").faults == []
    report = broken(cut_off, method="clrp1")
    assert [f for f in report.faults if "difference of its parts" in f] == report.faults != []


@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_a_changed_weight_changes_an_output(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    genuine = comparison.convert

    def tampered(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        made = genuine(proto, **options)
        (weight,) = [t for t in made.graph.initializer if t.name == "v"]
        values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, "v"))
        return made

    monkeypatch.setattr(comparison, "convert", tampered)
    report = check(named(), X, input_range=(0, 1))
    assert any(fault.startswith("the output y changed by") for fault in report.faults)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"distance": 2e-4}, "the relevance is 2.0e-04 from float64"),
        ({"distance": math.nan}, "the relevance is nan from float64"),
        ({"repeated": 2e-4}, "the relevance changes by 2.0e-04 as a ledger is added"),
        ({"repeated": 2e-4, "half_step": 2**-10}, None),
        ({"outputs": {"y": 2e-5}}, "the output y changed by 2.0e-05"),
        ({"outputs": {"y": 2e-5}, "half_step": 2**-10}, None),
        ({"outputs": {"y": math.nan}, "half_step": 2**-10}, "the output y changed by nan"),
        ({"whole_distance": 0.5}, None),
    ],
)
def test_what_counts_as_a_fault(changes: dict[str, Any], fault: str | None) -> None:
    report = replace(check(network(), X, input_range=(0, 1)), **changes)
    assert report.faults == ([] if fault is None else [fault])
    assert report.as_dict()["faults"] == report.faults
    uncertain = [remark for remark in report.remarks if "last digits" in remark]
    assert len(uncertain) == ("whole_distance" in changes)


@pytest.mark.usefixtures("registry")
def test_the_command_says_what_is_broken(tmp_path: Path) -> None:
    rules.rule("Flatten", replace=True)(lambda t, r, y, x, **_: t.Mul(t.like(r, x), 2.0))
    done = run("check", saved(tmp_path, named()), *UNIT)
    assert done.status == 1
    assert "FAULT: flat (Flatten): its ledger is open" in done.out
    assert "all is well" not in done.out
    (row,) = [line for line in done.out.splitlines() if line.startswith("flat ")]
    assert row.endswith("-1e+00")


def test_weights_that_are_no_numbers_are_faults(tmp_path: Path) -> None:
    model = saved(tmp_path, network(PLAIN, {"w": WEIGHTS["w"] * np.nan}))
    done = run("check", model, *UNIT)
    assert done.status == 1
    assert "FAULT: the explained logit is nan" in done.out
    assert "FAULT: relevance is not conserved" in done.out
    assert "all is well" not in done.out
    assert json.loads(run("check", model, *UNIT, "--json").out)["logit"] is None


# -- what cannot be checked --------------------------------------------------------------------


def test_a_broken_model_is_one_line(tmp_path: Path) -> None:
    model = network(PLAIN, {"w": np.ones((5, 2, 3, 3), "f")})
    done = run("check", saved(tmp_path, model), *UNIT)
    assert done.status == 1
    assert "cannot run the model" in done.complaint


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


@pytest.mark.parametrize("ends", ["0,inf", "-inf,0", "5,inf"])
def test_random_values_lie_in_a_range_with_one_end(tmp_path: Path, ends: str) -> None:
    found = run("check", saved(tmp_path, network()), "--input-range", ends)
    assert found.status == 0, found.err


@pytest.mark.parametrize("ends", ["inf,inf", "1e39,1e300", "-inf,-inf"])
def test_a_range_without_a_number_is_a_usage_error(tmp_path: Path, ends: str) -> None:
    found = run("check", saved(tmp_path, network()), "--input-range", ends)
    assert found.status == 2
    assert "no number of float32 lies between" in found.err
