"""The folder of the photographs and models that are no part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models and photographs: `ONNX_CLRP_DATA`, or `shared/data` next door."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ONNX_CLRP_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real models here: set ONNX_CLRP_DATA to their folder, not {folder}")
    return folder
