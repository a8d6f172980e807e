"""Operators of the user's own, as a user meets them: the how-to page, and a library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from cli_support import run as run_here
from test_found import handed
from test_structures import BODY, PICTURES, RANGE, WEIGHTS, network

import onnx_clrp
from onnx_clrp import UnsupportedError, UsageError, rules, sessions
from onnx_clrp.redistribute import LinearMap
from onnx_clrp.tape import Tape, Tensor

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "custom-operators.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's model and rules, as a reader has them."""
    where = tmp_path_factory.mktemp("custom")
    shutil.copytree(ROOT / "exported_models", where / "exported_models")
    make, rule = blocks("python")
    subprocess.run([sys.executable, "-c", make], cwd=where, check=True)
    (where / "my_rules.py").write_text(rule, encoding="utf-8")
    return where


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "COLUMNS": "120",
    }
    return subprocess.run(
        ["bash", "-euc", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_the_rule_the_node_is_named(folder: Path) -> None:
    done = command("onnx-clrp inspect custom.onnx", folder)
    assert done.returncode == 1
    (said,) = re.findall(r"^MISSING.*$", PAGE, re.MULTILINE)
    assert " ".join(said.split()) in " ".join(done.stdout.split())


def test_the_commands_of_the_page_run_as_they_stand(folder: Path) -> None:
    for line in blocks("sh")[0].splitlines():
        done = command(line, folder)
        assert done.returncode == 0, done.stderr + done.stdout
        if "check" in line:
            assert "all is well" in done.stdout
    assert len(list((folder / "explanations").glob("3-and-7*.png"))) == 2


def test_the_explainer_needs_the_file_no_more(folder: Path) -> None:
    explainer = onnx_clrp.Explainer(folder / "custom.clrp.onnx", device="cpu")
    assert explainer.preprocessing is not None
    batch = explainer.preprocessing.load(folder / "exported_models" / "scenes" / "3-and-7.png")
    result = explainer.explain(batch, [3, 7])
    assert np.abs(result.relevance).max(axis=(0, 2, 3, 4)).all()


# -- a library of operators ------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> str:
    """A library of operators that are in nobody's domain but its own."""
    extensions = pytest.importorskip(
        "onnxruntime_extensions", reason="a library of custom operators is needed"
    )
    monkeypatch.setattr(sessions, "libraries", [])
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))
    return str(extensions.get_library_path())


NEGPOS = BODY.replace("r = Relu(h)", "n, r = ai.onnx.contrib.NegPos(h)")
RULES = """
import onnx_clrp

onnx_clrp.custom_operators({library!r})


@onnx_clrp.rule("NegPos", domain="ai.onnx.contrib", variadic=True)
def split_by_sign(t, r, y, x):
    \"\"\"adjoint: each part back to where it came from.\"\"\"
    parts = [t.Mul(a, t.number(t.Not(t.Equal(b, 0.0)))) for a, b in zip(r, y) if a is not None]
    return t.sum(parts)
"""


def custom() -> onnx.ModelProto:
    """`NegPos` puts the negative and the positive part of its input out; one is a Relu."""
    form = "(float[N,3,8,8] x) => (float[N,5] logits) <float[N,6,8,8] r>"
    opsets = '["": 18, "ai.onnx.contrib": 1]'
    model = onnx.parser.parse_model(
        f"<ir_version: 8, opset_import: {opsets}> g {form} {{ {NEGPOS} }}"
    )
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(WEIGHTS[name], name) for name in ("w", "b", "v", "c")
    )
    return model


def test_a_library_and_its_rule_explain_what_the_standard_operator_does(
    library: str, tmp_path: Path
) -> None:
    (tmp_path / "my_rules.py").write_text(RULES.format(library=library), encoding="utf-8")
    onnx.save(custom(), tmp_path / "model.onnx")
    made = tmp_path / "explainer.onnx"
    words = ["--extension", str(tmp_path / "my_rules.py"), "--input-range=-1,1"]
    done = run_here("convert", str(tmp_path / "model.onnx"), str(made), *words)
    assert done.status == 0, done.err
    found = onnx_clrp.Explainer(made, device="cpu").explain(PICTURES, [1, 2])
    wanted = onnx_clrp.Explainer(network(), device="cpu", input_range=RANGE)
    np.testing.assert_allclose(
        found.relevance, wanted.explain(PICTURES, [1, 2]).relevance, rtol=0, atol=1e-5
    )


def test_a_library_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no library"):
        onnx_clrp.custom_operators("nowhere.so")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("pass", "its rule returns None, which is no relevance"),
        ("return 5", "its rule returns 5, which is no relevance"),
        ("return [r, r]", "its rule returns relevance for 2 inputs, it has 1"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "check", "convert"])
def test_a_rule_that_returns_no_relevance_is_one_line(
    folder: Path, tmp_path: Path, verb: str, body: str, reason: str
) -> None:
    rule = (folder / "my_rules.py").read_text(encoding="utf-8")
    (tmp_path / "bad.py").write_text(rule.replace("return r", body), encoding="utf-8")
    out = f"{tmp_path}/out.onnx" if verb == "convert" else ""
    done = command(f"onnx-clrp {verb} custom.onnx {out} --extension {tmp_path}/bad.py", folder)
    assert done.returncode == 1
    assert reason in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# -- scales behind a linear map of the user's own ------------------------------------------------


def own_convolution(**known: int) -> Callable[..., Tensor]:
    def rule(t: Tape, r: Tensor, y: Tensor, x: Tensor, w: Tensor, **_: object) -> Tensor:
        def transpose(s: Tensor, weight: Tensor) -> Tensor:
            return t.like(t.ConvTranspose(t.flat(s, y), weight), x)

        return t.redistribute(LinearMap(x, y, w, t.Conv, transpose, **known), r)

    return rule


def behind_scales(scales: str) -> np.ndarray:
    """The relevance of `x` in front of a convolution and a scale for each of its two channels."""
    return handed(
        "(float[1,1,3,3] x) => (float[1,2,2,2] y)",
        f"<float[2,1,2,2] w = {{1,-2,3,-4,-1,2,1,-3}}, float[2,1,1] scales = {{{scales}}}>",
        "h = Conv(x, w) y = Mul(h, scales)",
        np.random.default_rng(2).normal(size=(1, 1, 3, 3)).astype(np.float32),
        np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 2, 2),
    )


@pytest.mark.parametrize(
    ("scales", "known"), [("1, -2", {"outputs": 0}), ("-1, -2", {}), ("1, 2", {})]
)
def test_scales_behind_a_rule_of_ones_own_belong_to_its_weights(
    scales: str, known: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = behind_scales(scales)
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))
    rules.rule("Conv", linear=True, replace=True)(own_convolution(**known))
    np.testing.assert_allclose(behind_scales(scales), wanted, rtol=1e-6)


def test_scales_that_a_rule_of_ones_own_does_not_heed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))
    rules.rule("Conv", linear=True, replace=True)(own_convolution())
    with pytest.raises(UnsupportedError, match=r"names no axis .*LinearMap\.outputs"):
        behind_scales("1, -2")

    def alone(t: Tape, r: Tensor, y: Tensor, x: Tensor, w: Tensor, **_: object) -> Tensor:
        return t.ConvTranspose(t.flat(r, y), w)

    rules.rule("Conv", linear=True, replace=True)(alone)
    with pytest.raises(UnsupportedError, match=r"does not hand on by Tape\.redistribute"):
        behind_scales("-1, -2")
