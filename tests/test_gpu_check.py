"""tools/gpu_check.py, as far as a machine without a GPU can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark.gpu_page import Results, faults, limit_of, page
from benchmark.placed import summary

ROOT = Path(__file__).resolve().parents[1]


def gpu_check(*options: object) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu_check.py"), *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


# -- what a run is judged by -------------------------------------------------------------------


def event(op: str, provider: str, kind: str) -> dict[str, Any]:
    types = [{kind: [4]}]
    args = {
        "op_name": op,
        "provider": provider,
        "input_type_shape": types,
        "output_type_shape": types,
    }
    return {"cat": "Node", "name": f"relevance/{op}_kernel_time", "args": args}


def test_a_profile_tells_strays_and_copies_from_arithmetic_on_shapes() -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    found = summary(
        [
            {"cat": "Session", "name": "model_run", "args": {}},
            {"cat": "Node", "name": "relevance/Conv_fence_before", "args": {"op_name": "Conv"}},
            event("Conv", cuda, "float"),
            event("Concat", cpu, "int64"),
            event("Equal", cpu, "float"),
            event("MemcpyToHost", cuda, "float"),
        ]
    )
    assert (found.nodes, found.on_cpu) == (4, 2)
    assert found.strays == ["Equal relevance/Equal"]
    assert found.copies == ["MemcpyToHost relevance/MemcpyToHost"]


def results(*rows: dict[str, Any], device: str = "cuda", skipped: tuple[str, ...] = ()) -> Results:
    settings = {"device": device, "method": "clrp2", "size": 224}
    told = [{"model": "vgg16", **row} for row in rows]
    return {"settings": settings, "spent": 1.0, "rows": told, "skipped": [*skipped]}


PLACED = {"part": "placement", "method": "lrp", "nodes": 9, "on_cpu": 2, "strays": 0, "copies": 0}
PARITY = {
    "part": "parity",
    "method": "clrp2",
    "logits": 0,
    "relevance": 1e-6,
    "relevance_cpu": 1e-6,
}
PARITY |= {"contrast": 1e-4, "contrast_cpu": 1e-4}
RATES = {"part": "rates", "matmul": 3e13, "conv": 5e13, "forward": 15e9, "device": "a device"}
RATES |= {"onnxruntime": "1", "torch": "2"}
COUNTED = {
    "part": "throughput",
    "kind": "float32",
    "graph": True,
    "batch": 8,
    "seconds": [0.02, 0.04],
}


def test_what_is_as_promised_is_no_fault() -> None:
    found = results(PLACED, PARITY, RATES, COUNTED, {"part": "graph", "off": 0.0})
    assert faults(found) == []
    assert "All as promised" in page(found)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({**PLACED, "strays": 7, "some strays": ["Equal a"]}, "vgg16, lrp: 7 strays, among them"),
        ({**PLACED, "copies": 1, "some copies": ["MemcpyToHost b"]}, "1 copies, among them Memcpy"),
        ({**PARITY, "relevance": 1e-2}, "relevance is 1e-02 from float64"),
        ({**PARITY, "contrast": float("nan")}, "contrast is nan from float64"),
        ({"part": "graph", "off": 0.5}, "a replayed run is 5e-01 from a plain one"),
        ({"part": "speed", "failed": "broken"}, "vgg16, speed: broken"),
        ({"part": "throughput", "failed": "broken"}, "vgg16, throughput: broken"),
        ({"part": "precision", "failed": "broken"}, "vgg16, precision: broken"),
    ],
)
def test_what_is_not_as_promised_is_named(row: dict[str, Any], fault: str) -> None:
    found = results(row, RATES, PLACED, PARITY)
    assert len(faults(found)) == 1
    assert fault in faults(found)[0]
    assert fault in page(found)


def test_the_limit_is_arithmetic_over_the_measured_rate() -> None:
    found = results(RATES, COUNTED)
    assert limit_of(found) == pytest.approx(3e13 / (3 * 15e9))
    row = next(line for line in page(found).splitlines() if line.startswith("| vgg16, float32 "))
    assert [cell.strip() for cell in row.split("|")[4:7]] == ["266.7", "48.6", "40 %"]


def test_what_there_was_no_time_for_is_named() -> None:
    text = page(results(RATES, skipped=("resnet50, speed: skipped, the budget is spent",)))
    assert "- resnet50, speed: skipped" in text


def test_a_shortage_of_memory_is_told_and_no_fault() -> None:
    short = {"part": "throughput", "kind": "float32", "graph": True, "batch": 8}
    found = results(RATES, PARITY, {**short, "shortage": "not enough memory"})
    assert faults(found) == []
    assert "vgg16, throughput at batch 8: not enough memory" in page(found)


def test_an_overflow_is_told_and_no_fault() -> None:
    found = results(RATES, PARITY, {"part": "precision", "overflow": "float16 is not wide enough"})
    assert faults(found) == []
    assert "vgg16, precision: float16 is not wide enough" in page(found)


def test_nothing_proven_is_not_as_promised() -> None:
    assert faults(results(RATES)) == ["nothing was proven"]
    assert "All as promised" not in page(results(RATES))


# -- the script itself -------------------------------------------------------------------------


def test_without_cuda_it_says_so_in_one_line(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    done = gpu_check("--out", tmp_path / "page.md")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "--device cpu --quick" in done.stderr
    assert not (tmp_path / "page.md").exists()


def test_a_spent_budget_skips_everything_by_name(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    done = gpu_check("--device", "cpu", "--quick", "--budget", 1, "--out", out)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "nothing was proven"
    left = [line for line in out.read_text(encoding="utf-8").splitlines() if "skipped" in line]
    assert [line.partition(": ")[0] for line in left] == [
        f"- squeezenet1_1, {part}" for part in ("proofs", "throughput", "speed")
    ]


@pytest.mark.slow
def test_it_runs_to_its_end_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the networks are torchvision's")
    pytest.importorskip("zennit", reason="explanations are compared with zennit's")
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    out, file = tmp_path / "page.md", tmp_path / "gpu.json"
    options = ("--device", "cpu", "--quick", "--threads", 1, "--out", out, "--json", file)
    done = gpu_check(*options)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["skipped"] == []
    parts = [row["part"] for row in found["rows"]]
    once = {"rates": 1, "throughput": 4, "placement": 3, "parity": 3, "graph": 1, "precision": 1}
    assert {part: parts.count(part) for part in parts} == {**once, "speed": 2}
    text = out.read_text(encoding="utf-8")
    assert "On the CPU this proves nothing" in text
    assert sum(line.startswith("| squeezenet1_1") for line in text.splitlines()) == 13
