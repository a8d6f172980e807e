"""Every command block of the README is run, as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- ci: (\w+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = [match.groups() for match in BLOCK.finditer(README)]


def blocks(language: str) -> list[str]:
    """The unmarked blocks of a language, in order."""
    return [code for mark, kind, code in BLOCKS if kind == language and mark is None]


def marked(mark: str) -> str:
    """The one block with a mark."""
    (code,) = [code for name, _, code in BLOCKS if name == mark]
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the blocks read, where they may write."""
    where = tmp_path_factory.mktemp("readme")
    for part in ("exported_models", "docs"):
        shutil.copytree(ROOT / part, where / part)
    return where


def run(command: list[str], folder: Path) -> str:
    """Run a command with this interpreter's scripts first on the path; its standard output."""
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {(kind, mark) for mark, kind, _ in BLOCKS} == {
        ("python", None),
        ("sh", None),
        ("sh", "explain"),
        ("sh", "test"),
    }


def test_the_blocks_run_one_after_the_other(folder: Path) -> None:
    pytest.importorskip("torchvision", reason="one block exports a network of torchvision's")
    first, later = blocks("python")
    assert "(1, 2, 64, 64)" in run([sys.executable, "-c", first], folder)
    for code in blocks("sh"):
        run(["bash", "-euc", code], folder)
    assert list((folder / "explanations").glob("*.sheet.png"))
    assert "(1, 2, 3, 224, 224)" in run([sys.executable, "-c", later], folder)


@pytest.mark.slow
def test_one_command_installs_and_explains(tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout, from which a clean copy is made")
    for name in filter(None, tracked.stdout.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(["bash", "-euc", marked("explain")], tmp_path)
    assert len(list((tmp_path / "explanations").glob("3-and-7.*.clrp2.png"))) == 2


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert "ci: test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert marked("test").strip().endswith("&& pytest")
