"""`inspect` says what an explainer does with each node, and what it costs, as it is written."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import BACK, DIGITS, FRONT, RNG, network, run, saved
from onnx import TensorProto

from onnx_clrp import convert, rules
from onnx_clrp.cli.table import Column, print_nodes
from onnx_clrp.inspection import Inspection, Row, inspect

UNIT = ["--input-range", "0,1"]


def found(model: onnx.ModelProto, **options: Any) -> Inspection:
    return inspect(model, **{"input_range": (0, 1), **options})


def row(of: Inspection, operator: str) -> Row:
    (only,) = [row for row in of.nodes if row.operator == operator]
    return only


# -- cost --------------------------------------------------------------------------------------


def test_a_linear_map_costs_its_multiply_adds_as_often_as_it_runs() -> None:
    lrp = found(network(), method="lrp")
    conv, gemm = row(lrp, "Conv"), row(lrp, "Gemm")
    assert (conv.multiply_adds, conv.runs) == (
        5 * 8 * 8 * 3 * 3 * 3,
        4,
    )  # z^β: two parts, both ways
    assert (gemm.multiply_adds, gemm.runs) == (5 * 4, 0)  # of it the row of the class is enough
    assert lrp.forward == 5 * 8 * 8 * 27 + 20
    assert lrp.explanation == 4 * 5 * 8 * 8 * 27
    assert row(found(network(), method="clrp2"), "Gemm").runs == 0  # for the opposite as well
    assert row(found(network(), method="clrp1"), "Gemm").runs == 2  # its dual is of all others


@pytest.mark.parametrize(
    ("body", "weights", "operator", "cost"),
    [
        ("a = Conv<group = 3, strides = [2, 2]>(x, k)", {"k": (6, 1, 2, 2)}, "Conv", 6 * 16 * 4),
        ("a = ConvTranspose(x, k)", {"k": (3, 5, 2, 2)}, "ConvTranspose", 3 * 64 * 5 * 4),
        ("a = MatMul(x, k)", {"k": (8, 7)}, "MatMul", 3 * 8 * 8 * 7),
        ("a = MatMul(k, x)", {"k": (7, 8)}, "MatMul", 3 * 7 * 8 * 8),
    ],
)
def test_every_linear_map_is_counted(
    body: str, weights: dict[str, Sequence[int]], operator: str, cost: int
) -> None:
    values = {name: RNG.normal(size=shape).astype("f") for name, shape in weights.items()}
    made = found(network(f"{body} y = GlobalAveragePool(a)", values), method="lrp", logits="y")
    assert row(made, operator).multiply_adds == cost
    assert row(made, operator).runs > 0


def test_the_cost_is_that_of_the_explainer_which_is_written() -> None:
    of = inspect(onnx.load(DIGITS))
    nodes = convert(onnx.load(DIGITS), target=0).graph.node
    # Two convolutions side by side, of the two signs, are one of twice as many inputs.
    parts = {node.output[0]: len(node.input) for node in nodes if node.op_type == "Concat"}
    written: Counter[str] = Counter()
    for node in nodes:
        linear = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        if linear and node.name.startswith("relevance/"):
            written[node.name.split("/")[1]] += parts.get(node.input[1], 1)
    rows = [row for row in of.nodes if row.linear]
    assert {row.node: row.runs for row in rows if row.runs}.items() <= written.items()
    assert [row.operator for row in rows if not row.runs] == ["Gemm"]  # that of the classes
    assert len(rows) == 6


def test_nodes_without_a_name_are_told_apart() -> None:
    body = "a = Conv(x, w) b = Relu(a) e = Conv(b, u) f = Relu(e)"
    weights = {"u": RNG.normal(size=(5, 5, 3, 3)).astype("f")}
    model = network(f"{body} {BACK.replace('(b)', '(f)')}", weights)
    unnamed = [row for row in found(model, method="lrp").nodes if row.operator == "Conv"]
    assert [row.runs for row in unnamed] == [4, 2]
    for node in model.graph.node:
        node.name = "same"
    same = [row for row in found(model, method="lrp").nodes if row.operator == "Conv"]
    assert [row.runs for row in same] == [4, 2]
    assert len({row.node for row in found(model).nodes}) == len(model.graph.node)


def test_sizes_that_the_model_leaves_open_are_said_and_not_guessed(tmp_path: Path) -> None:
    model = network(inputs="float[N, 3, H, W] x")
    of = found(model)
    assert row(of, "Conv").multiply_adds is None
    assert row(of, "Gemm").multiply_adds == 20
    assert (of.forward, of.explanation) == (None, None)
    done = run("inspect", saved(tmp_path, model), *UNIT)
    assert "4 × ?" in done.out
    assert "5×?×?" in done.out
    assert "multiply-adds, forward pass: ?" in done.out
    assert "(?: the model leaves sizes open)" in done.out


def test_the_command_prints_the_cost(tmp_path: Path) -> None:
    done = run("inspect", saved(tmp_path, network()), *UNIT)
    assert "4 × 8.6 k" in done.out
    assert "multiply-adds, forward pass: 8.7 k" in done.out
    assert "multiply-adds, clrp2 of one class: 34.6 k more, 4.0 times the forward pass" in done.out
    cost = json.loads(run("inspect", saved(tmp_path, network()), *UNIT, "--json").out)
    assert cost["multiply_adds"] == {"forward": 8660, "explanation": 34560}


# -- rules -------------------------------------------------------------------------------------


def test_a_sum_with_a_constant_is_no_sum_to_share() -> None:
    weights = {"one": np.ones((1, 5, 1, 1), "f")}
    model = network(f"{FRONT} e = Add(b, one) {BACK.replace('(b)', '(e)')}", weights)
    assert row(found(model), "Add").rule == "R_x = R_y"
    both = network(f"{FRONT} e = Add(b, a) {BACK.replace('(b)', '(e)')}")
    assert row(found(both), "Add").rule == "by contribution"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test registers are gone behind it."""
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))


@pytest.mark.usefixtures("registry")
def test_gates_and_nodes_that_no_relevance_comes_to_are_no_rules(tmp_path: Path) -> None:
    def gated(t: Any, r: Any, y: Any, x: Any, gate: Any) -> list[Any]:
        """All to the signal: R_x = R_y."""
        return [r, None]

    rules.rule("Gated", domain="custom")(gated)
    body = f"{FRONT} g = Conv<pads=[1, 1, 1, 1]>(b, u) h = Sigmoid(g) e = custom.Gated(b, h)"
    weights = {"u": RNG.normal(size=(5, 5, 3, 3)).astype("f")}
    model = network(f"{body} {BACK.replace('(b)', '(e)')}", weights, domains=', "custom": 1')
    for name in ("b", "e", "h"):
        value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 5, 8, 8])
        model.graph.value_info.append(value)
    for node, name in zip(model.graph.node, ["one", "", "two", "gate", "product"], strict=False):
        node.name = name
    of = {row.node: row for row in found(model).nodes}
    assert (of["product"].rule, of["product"].gates) == ("All to the signal", ["gate"])
    assert of["gate"].rule == of["two"].rule == ""
    assert (of["two"].runs, of["two"].nodes) == (0, 0)
    lines = run("inspect", saved(tmp_path, model), *UNIT).out.splitlines()
    said = {line.split()[0]: line for line in lines if line}
    assert "(gate: takes none)" in said["gate"]
    assert "(feeds a gate)" in said["two"]
    assert "×" not in said["two"].replace("5×8×8", "")
    assert found(model).forward == 5 * 64 * 27 + 5 * 64 * 45 + 20  # it runs all the same


def test_a_quantised_model_is_shown_with_its_own_operators() -> None:
    scales = {"s": np.array(1 / 255, "f"), "z": np.array(0, np.uint8), "k": np.array(0.02, "f")}
    weights = {"t": np.array(0, np.int8), "w": RNG.integers(-99, 99, (5, 3, 3, 3)).astype("i1")}
    inside = "q = QuantizeLinear(x, s, z) p = QLinearConv(q, s, z, w, s, t, k, z)"
    behind = BACK.replace("(b)", "(e)")
    model = network(f"{inside} e = DequantizeLinear(p, k, z) {behind}", {**scales, **weights})
    conv = row(found(model, method="lrp"), "QLinearConv")
    assert (conv.rule, conv.runs, conv.multiply_adds) == ("z^β", 4, 5 * 6 * 6 * 27)


def test_a_gate_that_is_also_a_signal_is_both(tmp_path: Path) -> None:
    body = f"{FRONT} s = Sigmoid(b) p = Mul(b, s) e = Add(p, s) {BACK.replace('(b)', '(e)')}"
    model = network(body)
    of = {row.operator: row for row in found(model).nodes}
    assert (of["Mul"].gates, of["Sigmoid"].role, of["Relu"].role) == (["s"], "both", "step")
    assert "R_x = R_y, also a gate" in run("inspect", saved(tmp_path, model), *UNIT).out


def test_a_pad_that_is_folded_is_part_of_another_node(tmp_path: Path) -> None:
    pads = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    model = network(f"p = Pad(x, pads) a = Conv(p, w) b = Relu(a) {BACK}", pads)
    assert row(found(model), "Pad").role == "part"
    assert "(part of another)" in run("inspect", saved(tmp_path, model), *UNIT).out


def test_every_gap_is_named_at_once(tmp_path: Path) -> None:
    body = f"{FRONT} e = Det(s) f = Hardmax(b) {BACK.replace('(b)', '(g)')}"
    body = body.replace("e = Det(s)", "e = CumSum(b, one)").replace("c =", "g = Add(e, f) c =")
    done = run("inspect", saved(tmp_path, network(body)), *UNIT)
    assert done.status == 1
    assert "MISSING  (unnamed, writes e): CumSum: no rule for this operator" in done.out
    assert "MISSING  (unnamed, writes f): Hardmax: no rule for this operator" in done.out
    assert "2 of 8 nodes cannot hand relevance on" in done.complaint
    assert "multiply-adds, clrp2" not in done.out
    report = json.loads(run("inspect", saved(tmp_path, network(body)), *UNIT, "--json").out)
    assert [row["operator"] for row in report["nodes"] if row["missing"]] == ["CumSum", "Hardmax"]
    assert report["multiply_adds"]["explanation"] is None


def test_a_contrast_that_cannot_be_formed_is_said_below_the_table(tmp_path: Path) -> None:
    model = saved(tmp_path, network("y = GlobalAveragePool(x)", outputs="float[N, 3, 1, 1] y"))
    done = run("inspect", model, *UNIT)
    assert done.status == 1
    assert "rule for means" in done.out
    assert "no contrast: there is no linear map" in done.complaint
    assert run("inspect", model, *UNIT, "--method", "lrp").status == 0


# -- terminals ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """What is printed, as if somebody watched."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("wide", [40, 60, 200])
def test_a_node_is_a_line_whatever_its_name(monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    monkeypatch.setenv("COLUMNS", str(wide))
    names = ["a/very/long/scope/of/an/exporter/conv_1/Conv", "short"]
    columns = [
        Column("operator", ["Conv", "Relu"], spare=True),
        Column("rule", ["z⁺, classifier layer", "R_x = R_y"]),
        Column("cost", ["4 × 8.6 k", "1 node"], right=True),
    ]
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    print_nodes(names, columns)
    header, rule, *lines = screen.getvalue().strip().splitlines()
    assert max(map(len, (header, rule, *lines))) <= max(wide, 49)
    assert [line.split()[-1] for line in lines] == ["k", "node"]
    assert ("operator" in header) == (wide > 40)
    assert lines[0].startswith(names[0] if wide == 200 else "…")
    assert "onv_1/Conv" in lines[0]
    assert lines[1].startswith("short ")


def test_a_column_makes_room_for_names_that_differ_far_from_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "32")
    names = [f"the/very/long/scope/of/block_{i}/depthwise/Conv" for i in range(12)]
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    print_nodes(names, [Column("operator", ["Conv"] * 12, spare=True), Column("rule", ["z"] * 12)])
    header, _, *lines = screen.getvalue().strip().splitlines()
    assert header.split() == ["node", "rule"]
    assert len(set(lines)) == 12
    assert max(map(len, lines)) <= 32


def test_nothing_is_cut_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    print_nodes(["x" * 100], [Column("operator", ["Conv"], spare=True)])
    assert f"{'x' * 100}  Conv" in out.getvalue()
