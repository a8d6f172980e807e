"""What is measured, as bench.py hands it to the processes that measure."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

from filelock import FileLock


@dataclass(frozen=True)
class Settings:
    """The same for every network.

    Attributes:
        method: what makes the maps.
        size: pixels of a side of a picture.
        exporter: which of PyTorch's exporters writes the ONNX file.
        batches, targets: how many pictures, and how many classes of each, are explained at once.
        rounds: so often everything is timed.
        seconds: no round begins later.
        threads: of ONNX Runtime and of PyTorch.
        skipped: rivals that are left out.
        device: where everything runs, `"cpu"` or `"cuda"`.
        least: seconds that each contestant runs in a round, over and over if need be.
        lock: a file that one process at a time locks, which then has the device to itself; None
            where no others run.
    """

    method: str
    size: int
    exporter: str
    batches: list[int]
    targets: list[int]
    rounds: int
    seconds: float
    threads: int
    skipped: list[str]
    device: str = "cpu"
    least: float = 0.2
    lock: str | None = None

    def alone(self) -> AbstractContextManager[object]:
        """In which no other process measures."""
        return nullcontext() if self.lock is None else FileLock(self.lock)

    def to_json(self) -> str:
        """As an argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What `to_json` gave."""
        return cls(**json.loads(text))
