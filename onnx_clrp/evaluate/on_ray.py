"""The work of an evaluation on a Ray cluster: its parts as the rows of a dataset of Ray Data.

Errors of ours come back from workers as results. Raised there, they would reach the user in a
hundred lines of Ray's.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnx_clrp import sessions
from onnx_clrp.errors import ClrpError, UsageError
from onnx_clrp.evaluate import cluster
from onnx_clrp.evaluate.run import Part, Sum, Tables, decoding, sum_of, tables_of

if TYPE_CHECKING:
    import pyarrow as pa

    from onnx_clrp.evaluate.job import Job
    from onnx_clrp.evaluate.judge import Judge
    from onnx_clrp.image import Preprocessing

ATTEMPTS = 5
"""How often a part is begun that its workers do not survive; Ray itself would never give up."""

Found = TypeVar("Found")

Do = Callable[[Part], Any]
"""What a worker does with a part."""


@contextmanager
def opened(job: Job, workers: int | None) -> Iterator[OnRay]:
    """A Ray cluster that is ready for a job.

    Args:
        job: what workers have to know.
        workers: how many there are; None for as many as the cluster has CPUs, or GPUs on CUDA.

    Raises:
        UsageError: there is no cluster, or none with so much.
        ClrpError: the cluster failed, or a worker met a fault of the user's.
    """
    with cluster.connected() as ray, closing(OnRay(ray, job, workers)) as engine:
        yield engine


class OnRay:
    """A Ray cluster, each worker of which does a part at a time.

    One of them opens all sessions in advance, so that what is wrong with the job shows before
    anything is done.

    Attributes:
        notes: what was assumed about the model; and, afterwards, whether parts were done again.
    """

    def __init__(self, ray: Any, job: Job, workers: int | None) -> None:
        there = ray.cluster_resources()
        cpus, gpus = (int(there.get(kind, 0)) for kind in ("CPU", "GPU"))
        _check_room(1, cpus, "CPU")
        cuda = job.device == "cuda" or (job.device == "auto" and gpus > 0 and _knows_cuda())
        if cuda:
            _check_room(workers or 1, gpus, "GPU")
        self._ray, self._job = ray, ray.put(job)
        device = "cpu" if job.device == "auto" and not cuda else job.device
        look = ray.remote(max_calls=1, **_claim(cuda=cuda))(_first_look)
        found = ray.get(look.remote(self._job, device))
        # One device for all of them: parts are not to differ by where they were done.
        self._device, self._preprocessing, self.notes = _ours(found)
        self._cuda = self._device == "cuda"
        if not self._cuda:
            _check_room(workers or 1, cpus, "CPU")
        self._running: list[Generator[Any]] = []
        self._adders = min(workers or cpus, cpus)
        self._workers = workers or (gpus if self._cuda else cpus)

    def close(self) -> None:
        """Leave off, while there is a cluster."""
        for running in self._running:
            running.close()

    def sums(self, todo: Iterable[Part]) -> Iterator[Sum]:
        """What each part adds to the mean input, in the order of parts."""
        return self._kept(self._sums(todo))

    def tables(
        self, todo: Iterable[Part], mean: NDArray[np.float32] | None
    ) -> Iterator[tuple[int, Tables]]:
        """The number of each part and the rows of its tables, as they arrive."""
        make = partial(_explaining, [self._job, self._ray.put(mean)], self._device)
        return self._kept(self._done(todo, make, self._workers, cuda=self._cuda))

    def _kept(self, running: Generator[Found]) -> Iterator[Found]:
        self._running.append(running)
        return running

    def _sums(self, todo: Iterable[Part]) -> Generator[Sum]:
        options = self._ray.data.DataContext.get_current().execution_options
        before, options.preserve_order = options.preserve_order, True
        try:
            for _, found in self._done(todo, partial(_adding, self._preprocessing), self._adders):
                yield found
        finally:
            options.preserve_order = before

    def _done(
        self, todo: Iterable[Part], make: Callable[[], Do], workers: int, *, cuda: bool = False
    ) -> Generator[tuple[int, Any]]:
        """The number of each part and what came of it.

        A part is a block of the dataset, and so a task. Where its worker is lost, Ray Data starts
        another and gives it the part again. While results are not fetched it holds back work.
        """
        rows = [_row(part) for part in todo]
        if not rows:
            return
        ray = self._ray
        with cluster.without_stderr():  # where Ray reports, once, that such an actor has arguments
            count = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
            attempts = count.remote(ray.put(None))
        results = ray.data.from_arrow(rows).map_batches(
            Worker,
            fn_constructor_args=(make, attempts),
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(rows)),
                max_tasks_in_flight_per_actor=1,  # or parts wait for a worker while others idle
            ),
            batch_size=1,
            batch_format="pyarrow",
            **_claim(cuda=cuda),
        )
        how = {"batch_size": None, "batch_format": "pyarrow", "prefetch_batches": 0}
        for table in results.iter_batches(**how):
            for row in table.to_pylist():
                unseen, found = pickle.loads(row["found"])
                _check_view(unseen)
                yield row["number"], _ours(found)
        again = ray.get(attempts.again.remote())
        if again:
            self.notes.append(f"workers were lost; parts that were begun again: {again}")


def _knows_cuda() -> bool:
    return "CUDAExecutionProvider" in sessions.onnxruntime().get_available_providers()


def _check_room(workers: int, there: int, kind: str) -> None:
    """Refuse workers that would wait for ever to be started."""
    if workers > there:
        raise UsageError(
            f"each worker takes a {kind}: {workers} are asked for, this Ray cluster has {there}"
        )


def _check_view(unseen: Sequence[str]) -> None:
    """Refuse workers that lack pictures: these would count as pictures that cannot be read."""
    for path in unseen:
        if os.access(path, os.R_OK):
            raise UsageError(
                f"a worker cannot read {path!r}, which is here: all machines of the Ray cluster"
                " need the pictures under the same paths"
            )


def _claim(*, cuda: bool) -> dict[str, int]:
    """What a worker takes of the cluster."""
    return {"num_gpus": 1} if cuda else {"num_cpus": 1}


def _ours(found: Any) -> Any:
    """What a worker found, unless that is an error of ours."""
    if isinstance(found, ClrpError):
        raise found
    return found


def _row(part: Part) -> pa.Table:
    import pyarrow as pa

    return pa.table({"number": [part.number], "part": [zlib.compress(pickle.dumps(part))]})


# -- in workers --------------------------------------------------------------------------------


class Worker:
    """An actor that does parts, one after the other.

    Args:
        make: makes what is done with them, once, when the first of them is there.
        attempts: counts how often each was begun.
    """

    def __init__(self, make: Callable[[], Do], attempts: Any) -> None:
        self._make, self._attempts = make, attempts
        self._do: Do | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """What came of the part in a table of one row."""
        import pyarrow as pa

        (row,) = batch.to_pylist()
        part: Part = pickle.loads(zlib.decompress(row["part"]))
        unseen = [str(s.path) for s in part.samples if not os.access(s.path, os.R_OK)]
        found = pickle.dumps((unseen, self._found(part)))
        return pa.table({"number": [part.number], "found": [found]})

    def _found(self, part: Part) -> Any:
        if cluster.ray().get(self._attempts.begin.remote(part.number)) > ATTEMPTS:
            first, last = part.samples[0].key, part.samples[-1].key
            return ClrpError(
                f"{ATTEMPTS} workers were lost over the pictures {first!r} to {last!r}: is there"
                " too little memory?"
            )
        try:
            self._do = self._do or self._make()
            return self._do(part)
        except ClrpError as error:
            return error


class Attempts:
    """An actor that counts how often parts were begun, for workers that do not live to tell."""

    def __init__(self, _: Any = None) -> None:
        self._counts = Counter[int]()

    def begin(self, number: int) -> int:
        """How often a part was begun, with this time."""
        self._counts[number] += 1
        return self._counts[number]

    def again(self) -> int:
        """How many were begun more than once."""
        return sum(count > 1 for count in self._counts.values())


def _first_look(job: Job, device: str) -> tuple[str, Preprocessing, list[str]] | ClrpError:
    """What the sessions really run on, how pictures become their input, and what was assumed."""
    try:
        judge = job.judge(device)
    except ClrpError as error:
        return error
    got = {judge.scorer.device, *(explainer.device for explainer in judge.explainers.values())}
    return "cuda" if got == {"cuda"} else "cpu", judge.preprocessing, judge.notes


def _explaining(refs: Sequence[Any], device: str) -> Do:
    job, mean = cluster.ray().get([*refs])
    judge: Judge = job.judge(device)

    def explain(part: Part) -> Tables:
        (found,) = (tables_of(p, judge, mean) for p in decoding([part], judge.preprocessing))
        return found

    return explain


def _adding(preprocessing: Preprocessing) -> Do:
    def add(part: Part) -> Sum:
        (found,) = (sum_of(p, preprocessing) for p in decoding([part], preprocessing))
        return found

    return add
