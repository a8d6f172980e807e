"""Runs an evaluation over a data set: in a stream, which stops and goes on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.errors import ImageError, UsageError
from onnx_clrp.evaluate.cascade import Subjects, cascade
from onnx_clrp.evaluate.judge import Judge, Loaded, Row, loaded
from onnx_clrp.evaluate.settings import ENGINES, Settings, fingerprint
from onnx_clrp.evaluate.store import Store
from onnx_clrp.model import fingerprint as model_fingerprint
from onnx_clrp.model import load

if TYPE_CHECKING:
    from onnx_clrp.compiler import Options
    from onnx_clrp.evaluate.dataset import Dataset, Sample
    from onnx_clrp.image import Preprocessing

Watch = Callable[[str, int, int], None]
"""Told what is done, and how many pictures of how many it is done with."""

Tables = dict[str, list[Row]]
"""The rows of a part, by the name of their table."""

PART = 64
"""Pictures of a part: what is lost at most when an evaluation is broken off."""


@dataclass(frozen=True)
class Part:
    """Some pictures of a data set, in its order, whose results are written together."""

    number: int
    samples: Sequence[Sample]


class Sum(NamedTuple):
    """What a part adds to the mean input.

    Attributes:
        total: the sum of the inputs of its pictures; None if none can be read.
        readable: how many these are.
        pictures: how many there are.
    """

    total: NDArray[np.float64] | None
    readable: int
    pictures: int


class Engine(Protocol):
    """Where the work on parts is done."""

    @property
    def notes(self) -> list[str]:
        """What was assumed about the model."""

    def sums(self, todo: Iterable[Part]) -> Iterator[Sum]:
        """What each part adds to the mean input, in the order of parts."""

    def tables(
        self, todo: Iterable[Part], mean: NDArray[np.float32] | None
    ) -> Iterator[tuple[int, Tables]]:
        """The number of each part and the rows of its tables, in any order.

        Args:
            todo: the parts.
            mean: the mean input, which takes the place of pixels.
        """


def evaluate(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    device: str = "auto",
    options: Options | None = None,
    engine: str = "local",
    workers: int | None = None,
    watch: Watch = lambda *_: None,
) -> list[str]:
    """Explain every picture of a data set, and write what the maps are worth to a folder.

    Run again with the same arguments it goes on where it was broken off, with either engine;
    nothing is lost or repeated but the pictures of the parts that were being worked on.

    Args:
        model: the model itself, not an explainer.
        dataset: pictures with the classes of what is in them.
        folder: for the results: `maps/*.parquet` with a row for each picture, target and method,
            `pairs/*.parquet` for each pair of maps of one picture, `failed/*.parquet` for pictures
            that cannot be read, tables of further experiments, `arrays/*.npz` for maps that are
            kept, and `run.json` with all that they depend on.
        settings: what is measured.
        device: as for `Explainer`.
        options: those of `convert`.
        engine: `"local"`, or `"ray"` for the workers of a Ray cluster: that which this process is
            connected to, or RAY_ADDRESS names, or `ray start` began on this machine; or else one
            of this machine alone, for as long as it takes. Workers read pictures, and weights that
            lie beside the model, under the paths that they have here.
        workers: how many of these there are, each with sessions of its own on a CPU, or a GPU on
            CUDA; None for as many as the cluster has.
        watch: told of the progress.

    Returns:
        What was assumed about the model.

    Raises:
        UsageError: the folder holds the results of another evaluation, or an option does not fit.
        ModelError: the model cannot be read, converted or run.
        ClrpError: the Ray cluster failed.
    """
    settings, options = settings or Settings(), options or {}
    _check_engine(engine, workers)
    proto = load(model)
    store = Store(Path(folder), header_of(proto, dataset, settings, options), settings)
    with _opened(engine, workers, proto, settings, device, options) as chosen:
        mean = None
        if settings.needs_mean:
            mean = store.mean()
            if mean is None:
                mean = mean_input(chosen.sums(parts(dataset)), len(dataset), watch)
                store.keep_mean(mean)
        done, total = store.done, len(dataset)
        todo = (part for part in parts(dataset) if part.number not in done)
        seen = sum(_pictures_of(number, total) for number in done)
        for number, tables in chosen.tables(todo, mean):
            store.write(number, tables)
            seen += _pictures_of(number, total)
            watch("explaining", seen, total)
        if settings.wants("cascade"):
            some = dataset.subset(settings.shuffled_pictures, settings.seed)
            _shuffle(store, Subjects.of(proto, some, settings, device, options), watch)
        return chosen.notes


def _shuffle(store: Store, subjects: Subjects, watch: Watch) -> None:
    """Explain some pictures by models whose weights are shuffled, a stage after the other.

    Always in this process: each stage is a model of its own, and the pictures are few.
    """
    for stage, rows in cascade(subjects, store.stages):
        store.write_stage(stage.number, rows)
        watch("shuffling layers", stage.number, stage.of)


def _check_engine(engine: str, workers: int | None) -> None:
    if engine not in ENGINES:
        raise UsageError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    if workers is not None and engine == "local":
        raise UsageError("workers are those of a Ray cluster: choose the engine ray too")
    if workers is not None and workers < 1:
        raise UsageError(f"there must be at least one worker, not {workers}")


def _opened(
    engine: str,
    workers: int | None,
    proto: onnx.ModelProto,
    settings: Settings,
    device: str,
    options: Options,
) -> AbstractContextManager[Engine]:
    if engine == "local":
        return nullcontext(_Here(Judge(proto, settings, device, options)))
    from onnx_clrp.evaluate.job import Job
    from onnx_clrp.evaluate.on_ray import opened

    return opened(Job.of(proto, settings, device, options), workers)


class _Here:
    """This process, which decodes the pictures of the next part while it works on one."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def notes(self) -> list[str]:
        return self._judge.notes

    def sums(self, todo: Iterable[Part]) -> Iterator[Sum]:
        preprocessing = self._judge.preprocessing
        return (sum_of(pictures, preprocessing) for pictures in decoding(todo, preprocessing))

    def tables(
        self, todo: Iterable[Part], mean: NDArray[np.float32] | None
    ) -> Iterator[tuple[int, Tables]]:
        for pictures in decoding(todo, self._judge.preprocessing):
            yield pictures.part.number, tables_of(pictures, self._judge, mean)


# -- parts -------------------------------------------------------------------------------------


def parts(dataset: Dataset) -> Iterator[Part]:
    """The data set in parts."""
    waiting: list[Sample] = []
    number = 0
    for sample in dataset:
        # Absolute, since a worker may have been started in another folder.
        waiting.append(replace(sample, path=Path(os.path.abspath(sample.path))))
        if len(waiting) == PART:
            yield Part(number, waiting)
            number, waiting = number + 1, []
    if waiting:
        yield Part(number, waiting)


def _pictures_of(number: int, total: int) -> int:
    """How many pictures a part has, of a data set of so many."""
    return min(PART, total - number * PART)


class Pictures:
    """The pictures of a part, once, in order, while threads decode those that follow.

    Attributes:
        part: the part.
        failed: rows of those that cannot be read; all of them once every picture had its turn.
    """

    def __init__(self, part: Part, decoded: Sequence[Future[Loaded]]) -> None:
        self.part, self.failed = part, list[Row]()
        self._decoded = decoded

    def __iter__(self) -> Iterator[Loaded]:
        for sample, future in zip(self.part.samples, self._decoded, strict=True):
            try:
                picture = future.result()
            except ImageError as error:
                self.failed.append({"image": sample.key, "reason": str(error)})
            else:
                yield picture


def decoding(todo: Iterable[Part], preprocessing: Preprocessing) -> Iterator[Pictures]:
    """The pictures of parts, of which the next is decoded while one is worked on."""
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:
        ahead: deque[Pictures] = deque()
        try:
            for part in todo:
                begun = [pool.submit(loaded, s, preprocessing) for s in part.samples]
                ahead.append(Pictures(part, begun))
                if len(ahead) > 1:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# -- what is done with a part ------------------------------------------------------------------


def tables_of(pictures: Pictures, judge: Judge, mean: NDArray[np.float32] | None) -> Tables:
    """The rows of a part: of its maps, its pairs of maps, and the pictures that cannot be read."""
    made: Tables = {}
    waiting = iter(pictures)
    while batch := [*islice(waiting, judge.settings.batch)]:
        for name, rows in judge.rows(batch, mean).items():
            made.setdefault(name, []).extend(rows)
    return {**made, "failed": pictures.failed}


def sum_of(pictures: Pictures, preprocessing: Preprocessing) -> Sum:
    """What a part adds to the mean input."""
    total: NDArray[np.float64] | None = None
    readable = 0
    for one in pictures:
        wide = preprocessing.batch([one.picture])[0].astype(np.float64)
        total = wide if total is None else total + wide
        readable += 1
    return Sum(total, readable, len(pictures.part.samples))


def mean_input(
    sums: Iterable[Sum], pictures: int, watch: Watch = lambda *_: None
) -> NDArray[np.float32]:
    """The mean input of a data set, at every place and channel; unreadable pictures are left out.

    Args:
        sums: what each part adds, always in the same order: rounding depends on it.
        pictures: how many there are.
        watch: told of the progress.

    Raises:
        UsageError: no picture can be read.
    """
    total: NDArray[np.float64] | None = None
    readable, seen = 0, 0
    for part in sums:
        if part.total is not None:
            total = part.total if total is None else total + part.total
        readable += part.readable
        seen += part.pictures
        watch("averaging", seen, pictures)
    if total is None:
        raise UsageError("no picture of the data set can be read")
    mean: NDArray[np.float32] = (total / readable).astype(np.float32)
    return mean


def header_of(
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
