"""Proves and measures explainers on a GPU in one run, and writes docs/gpu.md.

python tools/gpu_check.py --json gpu.json       # on a machine with a GPU, under eight minutes
python tools/gpu_check.py --device cpu --quick --out page.md      # does the script still run?

It needs what tests need, and onnxruntime-gpu. The exit status is 1 if something is not as promised.
What the budget leaves no time for is named as skipped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from bench import MODELS, ROOT
from benchmark.gpu_page import Results, faults, page, tables
from benchmark.settings import Settings
from processes import OUT_OF_TIME, Row, json_rows
from rich.console import Console

from onnx_clrp.sessions import onnxruntime

PAGE = ROOT / "docs" / "gpu.md"

SMALL = 64
"""Pixels of a side where maps are compared with float64, which takes its time."""

LARGER = {"alexnet": 224, "vgg16": 224}
"""Those that are made for larger pictures."""

_MOST_TOGETHER, _THREADS = 4, 4
"""So many processes run at once, if there are so many threads for each."""

_LEAST = 15.0
"""Seconds that a process needs to tell anything."""


@dataclass(frozen=True)
class Task:
    """A process that proves or measures something of a network, and the words that start it."""

    network: str
    part: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.network}, {self.part}"


@dataclass
class Plan:
    """What is run, in this order, until the time is spent.

    Attributes:
        models: the networks that are proven and timed.
        wide: the network whose maps are counted.
        settings: of the times; those of proofs follow.
        budget: seconds in all.
        together: so many processes run at once. Those that measure take turns at it.
        rows, skipped: what was found, and what was not.
    """

    models: list[str]
    wide: str
    settings: Settings
    budget: float
    together: int
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def proofs(self) -> Iterator[Task]:
        """What is proven, which may all be at once."""
        usual = self.settings
        for name in self.models:
            size = min(usual.size, LARGER.get(name, SMALL))
            small = replace(usual, size=size, targets=[2])
            yield Task(name, "proofs", ["benchmark.gpu", "proofs", name, small.to_json()])

    def measurements(self, lock: Path) -> Iterator[Task]:
        """What is measured by one process at a time, while others get ready."""
        usual = replace(self.settings, lock=str(lock))
        batches = [1, 8, 16, 32, 64] if usual.device == "cuda" else usual.batches
        wide = replace(usual, batches=batches).to_json()
        yield Task(self.wide, "throughput", ["benchmark.gpu", "throughput", self.wide, wide])
        for name in self.models:
            yield Task(name, "speed", ["benchmark.speed", name, usual.to_json()])

    def run(self) -> None:
        """All tasks that there is time for."""
        with TemporaryDirectory() as folder:
            for tasks in (self.proofs(), self.measurements(Path(folder) / "lock")):
                with ThreadPoolExecutor(self.together) as pool:
                    for rows, skipped in pool.map(self._run, tasks):
                        self.rows += rows
                        self.skipped += skipped

    def _run(self, task: Task) -> tuple[list[Row], list[str]]:
        """What a task finds, and what it does not for want of time."""
        left = self.budget - self.spent
        if left < _LEAST:
            return [], [f"{task}: skipped, the budget of {self.budget:.0f} s is spent"]
        Console(stderr=True).print(f"{task} ({self.spent:.0f} s)", markup=False)
        folders = [ROOT, ROOT / "tools", ROOT / "tests"]
        with TemporaryDirectory() as folder:
            places = [folder] if task.part == "speed" else []
            found, failure = json_rows(["-m", *task.words, *places], folders, left)
        rows = [{"part": task.part, **row} for row in found]
        if failure == OUT_OF_TIME:
            return rows, [f"{task}: stopped, the budget of {self.budget:.0f} s is spent"]
        if failure is not None:
            rows.append({"model": task.network, "part": task.part, "failed": failure})
        return rows, []

    def results(self) -> Results:
        """What was found, for the page and for the file."""
        return {
            "settings": asdict(self.settings),
            "spent": self.spent,
            "rows": self.rows,
            "skipped": self.skipped,
        }


def _plan(models: str | None, device: str, quick: bool, threads: int, budget: float) -> Plan:
    together = min(_MOST_TOGETHER, max(1, threads // _THREADS))
    names = [name for name in (models or "").split(",") if name]
    names = names or (["squeezenet1_1"] if quick else [*MODELS])
    settings = Settings(
        method="clrp2",
        size=SMALL if quick else 224,
        exporter="dynamo",
        batches=[1, 2] if quick else [1, 8],
        targets=[1],
        rounds=1 if quick else 3,
        seconds=10,
        threads=max(1, threads // together),
        skipped=[],
        device=device,
        least=0.1,
    )
    return Plan(names, names[0] if quick else "vgg16", settings, budget, together)


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="One small network: does the script run?")
@click.option("--models", metavar="A,B,C", help="These networks; those of bench.py if left out.")
@click.option("--budget", default=450.0, show_default=True, help="Seconds, for all of it.")
@click.option("--threads", default=os.cpu_count(), help="Of ONNX Runtime and PyTorch on the CPU.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the raw numbers.")
@click.option("--out", type=click.Path(path_type=Path), default=PAGE, show_default=True)
def main(
    device: str,
    quick: bool,
    models: str | None,
    budget: float,
    threads: int,
    file: Path | None,
    out: Path,
) -> None:
    """Prove that explainers run on the GPU, that they are right there, and how fast they are."""
    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime().get_available_providers():
        sys.exit("no CUDA here: install onnxruntime-gpu, or say --device cpu --quick to try it out")
    plan = _plan(models, device, quick, threads, budget)
    plan.run()
    results = plan.results()
    if file is not None:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    out.write_text(page(results), encoding="utf-8")
    for table in tables(results).values():
        Console().print(f"\n{table.markdown()}", markup=False, soft_wrap=True)
    for line in (*plan.skipped, *(found := faults(results))):
        Console().print(line, markup=False, soft_wrap=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
