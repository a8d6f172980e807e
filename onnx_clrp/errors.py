"""Every mistake a user can make, as an exception whose text is one clear line or list."""

from collections.abc import Sequence
from typing import ClassVar


class ClrpError(Exception):
    """Anything a user can cause or cure; the command prints it without a traceback."""

    exit_status: ClassVar[int] = 1


class ModelError(ClrpError):
    """The model cannot be read, or is not one that can be explained."""


class MemoryShortageError(ModelError):
    """The device has not the memory that a run takes."""


class HalfOverflowError(ModelError):
    """Float16 does not reach far enough for what the model makes of these inputs."""


class UnsupportedError(ModelError):
    """Nodes between input and logits cannot hand relevance on.

    A rule raises it with the reason alone; who compiles the model hears of all nodes at once.

    Attributes:
        gaps: the name, the operator and the reason of each.
        follows: whether it may only follow from another gap, as a shape that nobody knows does.
    """

    def __init__(
        self, message: str, gaps: Sequence[tuple[str, str, str]] = (), *, follows: bool = False
    ) -> None:
        super().__init__(message)
        self.gaps = list(gaps)
        self.follows = follows


class ImageError(ClrpError):
    """The image cannot be read."""


class UsageError(ClrpError, ValueError):
    """An argument is not one that the call or the command accepts."""

    exit_status: ClassVar[int] = 2


class DeviceError(UsageError):
    """The device that was asked for is not there."""
