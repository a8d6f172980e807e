"""What the workers of a cluster have to know of an evaluation, in a form that can be sent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp import rules, sessions
from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.judge import Judge
from onnx_clrp.external import references, resolve, seen_from, with_initializers
from onnx_clrp.model import serialised

if TYPE_CHECKING:
    from onnx_clrp.compiler import Options
    from onnx_clrp.evaluate.settings import Settings

_DISTRIBUTION = "onnx-clrp"


@dataclass(frozen=True)
class Job:
    """What an evaluation depends on.

    Attributes:
        model: the model.
        settings: what is measured.
        device: as for `Explainer`.
        options: those of `convert`.
        version: that of this package.
        registered: the rules that are known.
        libraries: those of operators.
    """

    model: Packed
    settings: Settings
    device: str
    options: Options
    version: str
    registered: frozenset[str]
    libraries: tuple[str, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto, settings: Settings, device: str, options: Options) -> Job:
        """The job as it is in this process."""
        ours = version(_DISTRIBUTION), _registered(), tuple(sessions.libraries)
        return cls(Packed.of(model), settings, device, options, *ours)

    def judge(self, device: str) -> Judge:
        """Open the sessions on a device, in a process that does nothing else.

        Raises:
            UsageError: the process has not what the job was made with.
            ModelError, UsageError: as for `Judge`.
        """
        theirs = version(_DISTRIBUTION)
        if theirs != self.version:
            raise UsageError(
                f"{_DISTRIBUTION} is {self.version} here, and {theirs} on a worker: install the"
                " same everywhere"
            )
        other = sorted(_registered() ^ self.registered)
        if other:
            raise UsageError(
                f"workers do not know the rules that you have registered ({other[0]}): evaluate"
                " with the engine local, or register them in a worker_process_setup_hook as well"
            )
        for library in self.libraries:
            sessions.custom_operators(library)
        # Affinity would not do: ONNX Runtime binds its threads itself.
        sessions.limit_threads(1)
        return Judge(self.model.unpacked(), self.settings, device, self.options)


@dataclass(frozen=True)
class Packed:
    """A model of any size, in pieces that each fit into a protobuf.

    Attributes:
        graph: the model without its initializers.
        weights: the initializers; arrays, since the workers of a machine share their memory.
        folder: where the files lie that initializers refer to.
    """

    graph: bytes
    weights: Sequence[NDArray[np.uint8]]
    folder: Path | None

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Packed:
        """Weights in files beside the model stay there."""
        folders = [found.file.parent for found in references(model)]
        folder = Path(os.path.commonpath(folders)) if folders else None
        model = model if folder is None else seen_from(model, folder)
        weights = [np.frombuffer(serialised(t), np.uint8) for t in model.graph.initializer]
        return cls(serialised(with_initializers(model, [])), weights, folder)

    def unpacked(self) -> onnx.ModelProto:
        """The model.

        Raises:
            ModelError: its files are not there, or do not hold its weights.
        """
        model = onnx.ModelProto()
        model.ParseFromString(self.graph)
        for weight in self.weights:
            model.graph.initializer.add().ParseFromString(weight.data)
        if self.folder is not None:
            resolve(model, self.folder / "model.onnx")
        return model


def _registered() -> frozenset[str]:
    """All rules, gradients and bounds: each with its operator, and where it is defined."""
    return frozenset(
        (
            *_entries("rule", rules._registry),
            *_entries("gradient", rules._gradients),
            *_entries("bounds", rules._bounds),
        )
    )


def _entries(kind: str, registry: Mapping[tuple[str, str], Any]) -> Iterator[str]:
    for (domain, operator), entry in registry.items():
        made = entry.redistribute if isinstance(entry, rules.Rule) else entry
        name = getattr(made, "__qualname__", str(made))
        place = f"{getattr(made, '__module__', '')}.{name}"
        yield f"the {kind} of {domain}{'.' * bool(domain)}{operator}, {place}"
