"""What the numbers are measured on and with: a process for bench.py that prints a line of JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("onnx-clrp", "onnxruntime", "torch", "torchvision", "zennit")


def processor() -> str:
    """The processor's name."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(found), platform.processor() or platform.machine())


def build() -> str:
    """How PyTorch was built, as far as it matters here."""
    parts = {"MKL": torch.backends.mkl, "oneDNN": torch.backends.mkldnn}
    there = [name for name, part in parts.items() if part.is_available()]
    return ", ".join([torch.__version__, *there, torch.backends.cpu.get_cpu_capability()])


def main() -> None:
    """Print it."""
    versions = {name: version(name) for name in PACKAGES}
    told = {"processor": processor(), "python": platform.python_version(), "build": build()}
    sys.stdout.write(json.dumps({**told, **versions, "load": os.getloadavg()[0]}) + "\n")


if __name__ == "__main__":
    main()
