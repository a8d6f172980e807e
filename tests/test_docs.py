"""What the documentation says is so: its tables fit the code, its examples run as they stand."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from inspect import signature
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_clrp
from onnx_clrp import rules
from onnx_clrp.check import check
from onnx_clrp.cli import group
from onnx_clrp.composites import RULE_SETS, RULES, parse_rule
from onnx_clrp.evaluate.settings import EXPERIMENTS, Settings
from onnx_clrp.evaluate.store import schemas_of
from onnx_clrp.inspection import inspect
from onnx_clrp.methods import CONTRASTS, METHODS
from onnx_clrp.quantised_operators import READERS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(onnx_clrp.__file__).parent


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    lines = section.partition("\n|")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(\w[\w.]*)`", cell)


def blocks(page: str) -> list[str]:
    """The page's Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_every_operator_stands_in_the_table_of_rules_once() -> None:
    documented = [op for cells in rows("docs/rules.md", "Operators") for op in quoted(cells[0])]
    assert sorted(documented) == rules.operators()


@pytest.mark.parametrize("cells", rows("docs/rules.md", "Operators"), ids=lambda cells: cells[0])
def test_the_table_of_rules_calls_a_rule_by_its_name(cells: list[str]) -> None:
    found = {op: rules.find_rule(op) for op in quoted(cells[0])}
    assert {op: rule and rule.summary for op, rule in found.items()} == dict.fromkeys(
        found, cells[1]
    )


def test_the_examples_of_the_page_on_rules_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_registry", "_gradients"):
        monkeypatch.setattr(rules, table, dict(getattr(rules, table)))
    code = "\n".join(blocks("docs/rules.md"))
    assert "redistribute(model" in code
    exec(compile(code, "docs/rules.md", "exec"), {})
    assert rules.find_rule("CumSum") is not None
    assert rules.find_rule("Squash", "com.acme") is not None


def test_the_page_on_rules_shows_every_argument_of_the_decorator() -> None:
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    shown = re.findall(r"^`@onnx_clrp\.rule\((\*operators.*)\)`$", page, re.MULTILINE)
    arguments = list(signature(rules.rule).parameters.values())
    known = [f"{a.name}={a.default!r}".replace("'", '"') for a in arguments[1:]]
    assert shown == [", ".join(["*operators", *known])]
    assert all(f"\n- `{a.name}" in page for a in arguments[2:])  # the domain speaks for itself


def test_the_example_is_of_an_operator_without_a_rule() -> None:
    assert rules.find_rule("CumSum") is None


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("All methods", METHODS),
        ("A contrast around any of them", CONTRASTS),
        ("Rule sets", RULE_SETS),
    ],
)
def test_the_page_on_methods_names_each_once(heading: str, known: Mapping[str, object]) -> None:
    documented = [name for cells in rows("docs/methods.md", heading) for name in quoted(cells[0])]
    assert documented == [*known]


def test_the_rules_of_the_page_on_methods_are_there() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    table = page.split("| rule | R_x = | from |\n|---|---|---|\n", 1)[1].partition("\n\n")[0]
    documented = [line.split("`")[1] for line in table.splitlines()]
    assert [parse_rule(rule).name for rule in documented]
    assert {rule.partition("(")[0] for rule in documented} == {*RULES}


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands and then the Python of a page, where the shipped models are."""
    shutil.copytree(ROOT / "exported_models", folder / "exported_models")
    monkeypatch.chdir(folder)
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            program, *words = line.split()
            assert program == "onnx-clrp"
            group(words, standalone_mode=False)
    exec(compile("\n".join(blocks(page)), page, "exec"), {})


def test_the_examples_of_the_page_on_methods_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page("docs/methods.md", tmp_path, monkeypatch)
    assert (tmp_path / "comparison.png").is_file()
    assert (tmp_path / "explanations" / "3-and-7.relu_3.clrp2.png").is_file()
    assert "(1, 8) (1, 8)\n(1, 2, 64, 8, 8)" in capsys.readouterr().out


def test_the_examples_of_the_page_on_evaluate_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="results are Parquet")
    run_page("docs/evaluate.md", tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert "6 pictures, 78 maps; in evaluation" in out
    assert "Paired(mean=" in out
    assert "clrp2 6 node_Conv_65" in out


def test_the_examples_of_the_page_on_quantus_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("quantus", reason="an optional judge of the saved maps")
    run_page("docs/quantus.md", tmp_path, monkeypatch)
    assert "clrp2 relevance rank 0." in capsys.readouterr().out


def test_the_examples_of_the_page_on_cuda_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = "\n".join(blocks("docs/cuda.md")).replace(", cuda_graph=True", "")
    assert code.count('device="cuda"') == 3
    known: dict[str, object] = {}
    exec(compile(code.replace('"cuda"', '"cpu"'), "docs/cuda.md", "exec"), known)
    assert np.shape(known["maps"]) == (100, 2, 1, 64, 64)


def test_the_page_on_evaluate_names_each_once() -> None:
    readers = pytest.importorskip("onnx_clrp.evaluate.readers", reason="its libraries are an extra")
    for heading, known in (("Experiments", EXPERIMENTS), ("Data", readers.READERS)):
        table = rows("docs/evaluate.md", heading)
        assert [quoted(cells[0])[0] for cells in table] == [*known]


def test_the_page_on_evaluate_names_every_column(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="results are Parquet")
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    settings = Settings(experiments=EXPERIMENTS, patches=[7], layer="relu")
    for name, schema in schemas_of(settings).items():
        assert f"`{name}/*.parquet`" in page
        if name != "failed":
            assert {c.replace("_7", "_N") for c in schema.names} <= {*quoted(page)}


def test_every_quantised_operator_stands_in_the_table_of_what_is_read_as_another() -> None:
    table = rows("docs/rules.md", "What is read as something else")
    documented = [op for cells in table for op in quoted(cells[0])]
    assert sorted(documented) == sorted(READERS)


def test_every_module_stands_in_the_table_of_the_house_once() -> None:
    documented = [quoted(cells[0])[0] for cells in rows("CONTRIBUTING.md", "The house")]
    modules = [p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")]
    packages = [p.parent.name for p in PACKAGE.glob("*/__init__.py")]
    assert sorted(documented) == sorted([*modules, *packages])


@pytest.mark.parametrize("verb", ["inspect", "check"])
def test_every_field_of_a_report_is_explained(verb: str) -> None:
    model = ROOT / "exported_models" / "digits.onnx"
    fields = inspect(model).as_dict() if verb == "inspect" else check(model).as_dict()
    page = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {verb}\n", 1)[1].split("\n## ", 1)[0]
    explained = {name for line in section.splitlines() if "|" in line for name in quoted(line)}
    rows_of = fields["nodes" if verb == "inspect" else "ledger"]
    # The command adds the label, which the library does not know.
    assert {*fields, *rows_of[0]} <= explained


@pytest.fixture(scope="module")
def explainer() -> onnx.ModelProto:
    model = ROOT / "exported_models" / "digits.onnx"
    return onnx_clrp.convert(
        model,
        method="clrp1",
        parts=True,
        layer=None,
        at=["relu"],
        difference="plain",
        rules_for={"#1": "flat"},
        avg_pool="even",
        max_pool="first",
    )


def test_the_table_of_the_file_names_its_inputs_and_outputs(explainer: onnx.ModelProto) -> None:
    cells = rows("docs/how-it-works.md", "What the file contains")
    documented = {name for row in cells for name in quoted(row[0])}
    known = {value.name for value in [*explainer.graph.input, *explainer.graph.output]}
    # Logits are mostly there already, and float16 is not asked for.
    assert documented - {"relevance_logits", "relevance_overflow"} == known - {"image", "logits"}


def test_the_table_of_metadata_names_its_keys(explainer: onnx.ModelProto) -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| .*?\|", page, re.MULTILINE))
    keys = {key for row in documented for key in re.findall(r"`(onnx_clrp\.\w+)`", row)}
    written = {e.key for e in explainer.metadata_props if e.key.startswith("onnx_clrp.")}
    # Other methods have a contrast to choose, neurons a layer, and not every model runs in float16.
    others = {f"onnx_clrp.{key}" for key in ("contrast", "layer", "cam_layer", "half")}
    assert keys == written | others


@pytest.mark.parametrize("folder", ["onnx_clrp", "tests", "tools"])
def test_nothing_is_suppressed(folder: str) -> None:
    marks = re.compile("#.*(no" + "qa|type: " + "ignore)")
    files = (ROOT / folder).rglob("*.py")
    assert [path for path in files if marks.search(path.read_text(encoding="utf-8"))] == []
