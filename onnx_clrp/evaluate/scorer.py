"""The scores of a model by themselves, for pictures that experiments have changed."""

from __future__ import annotations

import os
from typing import Any, Unpack

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.compiler import append
from onnx_clrp.errors import UsageError
from onnx_clrp.inputs import pieces
from onnx_clrp.model import load
from onnx_clrp.program import Reading, read_program
from onnx_clrp.seeds import scores_of
from onnx_clrp.sessions import open_session, run
from onnx_clrp.tape import Tape

Floats = NDArray[np.float32]


class Scorer:
    """A model that is asked for its class scores alone.

    A session of its own: ONNX Runtime runs every node of a graph, whichever outputs are asked for,
    so that the scores of an explainer cost as much as its maps.

    Args:
        model: the model, as for `convert`.
        device: as for `Explainer`.
        options: how the model is read: those of `convert` that say so.

    Raises:
        ModelError, UsageError: as for `convert`.
        UsageError: the model has further inputs, whose values would differ from picture to picture.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        device: str = "auto",
        **options: Unpack[Reading],
    ) -> None:
        program = read_program(load(model), **options)
        t = Tape(program.model.names(), program.facts)
        proto = append(program.model.proto, t, {"scores": scores_of(t, program)})
        del proto.graph.output[:-1]
        self._session, self.device, _ = open_session(proto, device)
        source, *others = self._session.get_inputs()
        if others:
            names = ", ".join(x.name for x in (source, *others))
            raise UsageError(f"evaluate takes models of one input, this one has {names}")
        self._source, self._output = source, proto.graph.output[0].name
        self.classes = program.classes

    def logits(self, batch: NDArray[Any]) -> Floats:
        """The class scores `[N, C]` of inputs `[N, ...]`."""
        parts = [
            run(self._session, [self._output], {self._source.name: piece})[0]
            for _, piece in pieces(batch, self._source.shape[0])
        ]
        scores: Floats = np.concatenate(parts)[: len(batch)].astype(np.float32, copy=False)
        return scores
