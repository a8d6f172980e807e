"""How many samples run at once on a device: more and more, until its memory is used up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from onnx_clrp.errors import MemoryShortageError

T = TypeVar("T")

FIRST = 8
"""Samples that the first run takes."""

MOST = 32
"""Maps that a run makes at most. A device gains nothing by more: of VGG16 an H200 makes 408 a
second in runs of 32, and 346 in runs of 64."""

_NO_ROOM = (
    "the device has not the memory for a single sample: ask for fewer targets at once, show it a"
    " smaller picture, or take device='cpu'"
)


class Batches:
    """The sizes of the runs of one session, which it learns by running.

    They double while there are samples and memory. What did not fit is halved, and never tried
    again.

    Args:
        most: no run takes more samples.
    """

    def __init__(self, most: int = MOST) -> None:
        self.size, self.most = min(FIRST, most), most

    def run(self, samples: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """The results of `work(start, size)` over all samples, in their order.

        Raises:
            MemoryShortageError: a single sample does not fit.
        """
        start = 0
        while start < samples:
            size = min(self.size, samples - start)
            try:
                result = work(start, size)
            except MemoryShortageError as error:
                if size == 1:
                    raise MemoryShortageError(_NO_ROOM) from error
                self.size = self.most = size // 2
                continue
            start += size
            if size == self.size:
                self.size = min(2 * size, self.most)
            yield result
