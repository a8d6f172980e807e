"""Runs an evaluation over a data set: in a stream, which stops and goes on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.errors import ImageError, UsageError
from onnx_clrp.evaluate.judge import Judge, Loaded, Row, loaded
from onnx_clrp.evaluate.settings import Settings, fingerprint
from onnx_clrp.evaluate.store import Store
from onnx_clrp.model import fingerprint as model_fingerprint
from onnx_clrp.model import load

if TYPE_CHECKING:
    from onnx_clrp.compiler import Options
    from onnx_clrp.evaluate.dataset import Dataset, Sample
    from onnx_clrp.image import Preprocessing

Watch = Callable[[str, int, int], None]
"""Told what is done, and how many pictures of how many it is done with."""

PART = 64
"""Pictures of a part: what is lost at most when an evaluation is broken off."""


@dataclass(frozen=True)
class Part:
    """Some pictures of a data set, in its order, whose results are written together."""

    number: int
    samples: Sequence[Sample]


def evaluate(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    device: str = "auto",
    options: Options | None = None,
    watch: Watch = lambda *_: None,
) -> list[str]:
    """Explain every picture of a data set, and write what the maps are worth to a folder.

    Run again with the same arguments it goes on where it was broken off; nothing is lost or
    repeated but the pictures of the last part.

    Args:
        model: the model itself, not an explainer.
        dataset: pictures with the classes of what is in them.
        folder: for the results: `maps/*.parquet` with a row for each picture, target and method,
            `pairs/*.parquet` for each pair of maps of one picture, `failed/*.parquet` for pictures
            that cannot be read, and `run.json` with all that they depend on.
        settings: what is measured.
        device: as for `Explainer`.
        options: those of `convert`.
        watch: told of the progress.

    Returns:
        What was assumed about the model.

    Raises:
        UsageError: the folder holds the results of another evaluation, or an option does not fit.
        ModelError: the model cannot be read, converted or run.
    """
    settings, options = settings or Settings(), options or {}
    proto = load(model)
    header = _header(proto, dataset, settings, options)
    store = Store(Path(folder), header, settings)
    judge = Judge(proto, settings, device, options)
    mean = None
    if settings.wants("ablation") or settings.wants("deletion"):
        mean = store.mean()
        if mean is None:
            mean = mean_input(dataset, judge.preprocessing, watch)
            store.keep_mean(mean)
    work = Work(judge, mean)
    done, total = store.done, len(dataset)
    todo = (part for part in parts(dataset) if part.number not in done)
    for part, pictures, failed in _read_ahead(todo, judge.preprocessing):
        store.write(part.number, {**work(pictures), "failed": failed})
        watch("explaining", part.number * PART + len(part.samples), total)
    return judge.notes


class Work:
    """What is done with the pictures of a part: the tables of their rows."""

    def __init__(self, judge: Judge, mean: NDArray[np.float32] | None) -> None:
        self._judge, self._mean = judge, mean

    def __call__(self, pictures: Sequence[Loaded]) -> dict[str, list[Row]]:
        """The rows of their maps, and of their pairs of maps."""
        maps: list[Row] = []
        pairs: list[Row] = []
        size = self._judge.settings.batch
        for start in range(0, len(pictures), size):
            found = self._judge.rows(pictures[start : start + size], self._mean)
            maps += found[0]
            pairs += found[1]
        return {"maps": maps, "pairs": pairs}


def parts(dataset: Dataset) -> Iterator[Part]:
    """The data set in parts."""
    waiting: list[Sample] = []
    number = 0
    for sample in dataset:
        waiting.append(sample)
        if len(waiting) == PART:
            yield Part(number, waiting)
            number, waiting = number + 1, []
    if waiting:
        yield Part(number, waiting)


def mean_input(
    dataset: Dataset, preprocessing: Preprocessing, watch: Watch = lambda *_: None
) -> NDArray[np.float32]:
    """The mean input of a data set, at every place and channel; unreadable pictures are left out.

    Raises:
        UsageError: no picture can be read.
    """
    total: NDArray[np.float64] | None = None
    count, seen = 0, 0
    for _, pictures, failed in _read_ahead(parts(dataset), preprocessing):
        for one in pictures:
            wide = preprocessing.batch([one.picture])[0].astype(np.float64)
            total = wide if total is None else total + wide
        count += len(pictures)
        seen += len(pictures) + len(failed)
        watch("averaging", seen, len(dataset))
    if total is None:
        raise UsageError("no picture of the data set can be read")
    mean: NDArray[np.float32] = (total / count).astype(np.float32)
    return mean


Read = tuple[Part, list[Loaded], list[Row]]


def _read_ahead(todo: Iterator[Part], preprocessing: Preprocessing) -> Iterator[Read]:
    """The parts with their pictures, of which the next is decoded while one is worked on."""
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:
        ahead: deque[tuple[Part, list[Future[Loaded]]]] = deque()
        try:
            for part in todo:
                ahead.append((part, [pool.submit(loaded, s, preprocessing) for s in part.samples]))
                if len(ahead) > 1:
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(part: Part, futures: Sequence[Future[Loaded]]) -> Read:
    pictures: list[Loaded] = []
    failed: list[Row] = []
    for sample, future in zip(part.samples, futures, strict=True):
        try:
            pictures.append(future.result())
        except ImageError as error:
            failed.append({"image": sample.key, "reason": str(error)})
    return part, pictures, failed


def _header(
    proto: onnx.ModelProto, dataset: Dataset, settings: Settings, options: Options
) -> dict[str, Any]:
    """All that the results depend on, so that nobody goes on with other things."""
    keys = (f"{s.key} {s.objects}" for s in dataset)
    return {
        "version": version("onnx-clrp"),
        "model": model_fingerprint(proto),
        "dataset": {
            "name": dataset.name,
            "pictures": len(dataset),
            "fingerprint": fingerprint(*keys),
        },
        "settings": settings.to_json(),
        "options": {key: str(value) for key, value in sorted(options.items())},
        "part": PART,
    }
