"""The command as a user runs it, and small models and pictures to give to it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from PIL import Image

from onnx_clrp.cli import main

SHIPPED = Path(__file__).resolve().parents[1] / "exported_models"
DIGITS = SHIPPED / "digits.onnx"
SCENE = SHIPPED / "scenes" / "2-and-5.png"

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(5, 3, 3, 3)).astype("f"),
    "v": RNG.normal(size=(5, 4)).astype("f"),
    "one": np.array(1),
}
FRONT = "a = Conv<pads=[1, 1, 1, 1]>(x, w) b = Relu(a)"
BACK = "c = GlobalAveragePool(b) d = Flatten(c) y = Gemm(d, v)"
PLAIN = f"{FRONT} {BACK}"


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What it printed on standard error, which must be a single line of ours."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("onnx-clrp: ")
        return lines[0]


def run(*words: object) -> Outcome:
    """Run the command in this process; any exception but its exit fails the test."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv = ["onnx-clrp", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def spawn(
    *words: object, code: str = "main()", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    program = f"import sys; from onnx_clrp.cli import main; {code}"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, errors="replace"
    )


def network(
    body: str = PLAIN,
    weights: Mapping[str, NDArray[np.generic]] | None = None,
    *,
    inputs: str = "float[N, 3, 8, 8] x",
    outputs: str = "float[N, 4] y",
    domains: str = "",
) -> onnx.ModelProto:
    """A model in ONNX's own text, with the weights that it names."""
    header = f'<ir_version: 8, opset_import: ["": 18{domains}]>'
    model = parser.parse_model(f"{header} net ({inputs}) => ({outputs}) {{ {body} }}")
    known = WEIGHTS | dict(weights or {})
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(known[name]), name) for name in sorted(read & set(known))
    )
    return model


def saved(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    """The model as a file."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def noise(height: int = 40, width: int = 50) -> Image.Image:
    """A picture."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def leftovers(folder: Path) -> list[Path]:
    """Files that were begun and not finished."""
    return list(folder.rglob(".onnx-clrp-*"))
