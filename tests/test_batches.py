"""Batches that grow until a device has no memory for them; a device that pretends to be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from quantised_support import RANGE, pictures
from test_cuda_kernels import network

from onnx_clrp import Explainer, ModelError
from onnx_clrp.batches import MOST, Batches
from onnx_clrp.errors import MemoryShortageError
from onnx_clrp.sessions import failures


class Device:
    """Has memory for so many samples at once, and remembers what was tried."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def work(self, start: int, size: int) -> list[int]:
        self.tried.append(size)
        if size > self.room:
            raise MemoryShortageError("no room")
        return [*range(start, start + size)]


def runs(batches: Batches, device: Device, samples: int) -> list[int]:
    return [n for part in batches.run(samples, device.work) for n in part]


def test_batches_double_while_there_are_samples() -> None:
    device, batches = Device(room=1000), Batches()
    assert runs(batches, device, 150) == [*range(150)]
    assert device.tried == [8, 16, 32, 32, 32, 30]
    assert runs(batches, device, 70) == [*range(70)]
    assert device.tried[6:] == [32, 32, 6]
    assert max(device.tried) == MOST


def test_what_does_not_fit_is_halved_and_remembered() -> None:
    device, batches = Device(room=20), Batches()
    assert runs(batches, device, 70) == [*range(70)]
    assert device.tried == [8, 16, 32, 16, 16, 14]
    assert runs(batches, device, 40) == [*range(40)]
    assert device.tried[6:] == [16, 16, 8]


def test_small_calls_do_not_make_batches_grow_for_nothing() -> None:
    device, batches = Device(room=1000), Batches()
    for _ in range(3):
        runs(batches, device, 3)
    assert device.tried == [3, 3, 3]
    assert batches.size == 8


@pytest.mark.parametrize("room", range(1, 9))
def test_a_single_sample_is_enough(room: int) -> None:
    device = Device(room)
    assert runs(Batches(), device, 21) == [*range(21)]


def test_no_room_for_one_sample_is_said_with_the_cure() -> None:
    device = Device(room=0)
    with pytest.raises(MemoryShortageError, match=r"fewer targets.*smaller picture") as caught:
        runs(Batches(), device, 10)
    assert device.tried == [8, 4, 2, 1]
    assert "\n" not in str(caught.value)


def test_few_samples_are_the_most_where_each_has_many_maps() -> None:
    device = Device(room=1000)
    assert runs(Batches(3), device, 10) == [*range(10)]
    assert device.tried == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("text", "shortage"),
    [
        ("Non-zero status code: Failed to allocate memory for requested buffer of size 77", True),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=a", True),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("std::bad_alloc", True),
        ("The input tensor cannot be reshaped to the requested shape", False),
    ],
)
def test_a_shortage_is_known_by_what_the_runtime_says(text: str, shortage: bool) -> None:
    with pytest.raises(ModelError) as caught, failures():
        raise RuntimeError(text)
    assert isinstance(caught.value, MemoryShortageError) == shortage


class Small:
    """A session on a device with memory for so many samples."""

    def __init__(self, session: Any, room: int) -> None:
        self._session, self.room = session, room
        self.tried: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, feeds: Any, options: Any = None) -> Any:
        n = len(feeds["x"])
        self.tried.append(n)
        if n > self.room:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return self._session.run(names, feeds, options)


def on_a_device(explainer: Explainer, room: int) -> Small:
    """As if it ran on a GPU, with plain runs."""
    session = Small(explainer._session, room)
    explainer._session = session
    explainer.device = "cuda"
    return session


def test_an_explainer_makes_do_with_a_small_device() -> None:
    plain, small = (Explainer(network("residual"), device="cpu", input_range=RANGE) for _ in "ab")
    session = on_a_device(small, room=12)
    x = pictures(30)
    target = np.arange(30)[:, None] % 5
    got, wanted = small.explain(x, target), plain.explain(x, target)
    np.testing.assert_allclose(got.relevance, wanted.relevance, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(got.target, wanted.target)
    assert session.tried == [8, 16, 8, 8, 6]


def test_an_explainer_counts_the_maps_of_each_sample() -> None:
    explainer = Explainer(network("residual"), device="cpu", input_range=RANGE)
    session = on_a_device(explainer, room=100)
    explainer.explain(pictures(30), [0, 1])
    assert session.tried == [8, 16, 6]
    explainer.explain(pictures(40), [0, 1, 2, 3])
    assert session.tried[3:] == [8, 8, 8, 8, 8]


def test_a_fixed_batch_is_never_halved() -> None:
    explainer = Explainer(network("residual", batch=4), device="cpu", input_range=RANGE)
    session = on_a_device(explainer, room=2)
    with pytest.raises(MemoryShortageError, match="not enough memory"):
        explainer.explain(pictures(5), 0)
    assert session.tried == [4]
