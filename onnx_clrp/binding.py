"""Runs a session on memory of its own on the device, which is kept from run to run.

What goes in is copied to the device once, what comes out is copied back once, and neither is
allocated anew. Since the addresses stay the same, a run may also be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.sessions import failures, onnxruntime, run_options

Array = NDArray[Any]

_MOST_FORMS = 8
"""So many sets of shapes are kept: a few sizes of batches, of a few sizes of pictures."""

_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"
"""The entry of a run's options that tells captured graphs apart, and its value for none."""

_FEW = 64
"""What ONNX Runtime reads on the CPU - shapes, bounds, scales - are no more numbers than that."""


@dataclass
class _Form:
    """What belongs to inputs of certain shapes: the memory, and from the second run the graph."""

    binding: Any
    inputs: dict[str, Any]
    graph: str | None = None


class Bound:
    """Runs a session for some outputs, always the same; one run at a time.

    Captured graphs use the same memory for what lies between inputs and outputs, and may write over
    what is kept of one another: every run writes all of its own inputs and outputs anew.

    Args:
        session: the session.
        device: where it runs, `"cpu"` or `"cuda"`.
        names: the outputs.
        graphs: capture runs as CUDA graphs? The session must have been opened for that. Each of
            the first sets of shapes that come twice gets one, with its second run; a shape beyond
            those is run without.
        on_device: the inputs that no node reads on the CPU. A graph repeats what such a node has
            read when it was captured, so that few numbers, or integers, of another input have to
            be the same for a graph to be replayed.
    """

    def __init__(
        self,
        session: Any,
        device: str,
        names: Sequence[str],
        *,
        graphs: bool = False,
        on_device: Collection[str] = (),
    ) -> None:
        self._session, self._device, self._names = session, device, [*names]
        self._graphs, self._on_device = graphs, on_device
        self._numbers = count()
        self._forms: dict[Hashable, _Form] = {}
        self._lock = Lock()

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The values of the outputs.

        Raises:
            MemoryShortageError: the device has not the memory for it.
            ModelError: the model cannot be run.
        """
        with self._lock, failures():
            key = tuple((name, *self._key(name, value)) for name, value in sorted(feeds.items()))
            form = self._forms.pop(key, None)
            if form is None:
                form = self._first(feeds)
            else:
                self._again(form, feeds)
            self._forms[key] = form  # the last one used is the last one given up
            while len(self._forms) > _MOST_FORMS:
                del self._forms[next(iter(self._forms))]
            return [_own(value.numpy()) for value in form.binding.get_outputs()]

    def clear(self) -> None:
        """Give the memory back, but for that of captured graphs."""
        with self._lock:
            self._forms.clear()

    def _key(self, name: str, value: Array) -> tuple[Hashable, ...]:
        """What must be the same of an input for a run to be like an earlier one."""
        may_be_read = value.size <= _FEW or value.dtype.kind != "f"
        if self._graphs and may_be_read and name not in self._on_device:
            return value.shape, value.tobytes()
        return (value.shape,)

    def _first(self, feeds: Mapping[str, Array]) -> _Form:
        """Run where ONNX Runtime puts the outputs; they stay there for the runs to come."""
        value_of = onnxruntime().OrtValue.ortvalue_from_numpy
        # On a CPU the value would be the caller's own array, and be written over.
        inputs = {n: value_of(np.array(v, order="C"), self._device, 0) for n, v in feeds.items()}
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, self._device, 0)
        self._go(binding, _NO_GRAPH)
        outputs = binding.get_outputs()
        binding.clear_binding_outputs()
        for name, value in zip(self._names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return _Form(binding, inputs)

    def _again(self, form: _Form, feeds: Mapping[str, Array]) -> None:
        for name, value in form.inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        if form.graph is None:
            number = next(self._numbers) if self._graphs else _MOST_FORMS
            form.graph = str(number) if number < _MOST_FORMS else _NO_GRAPH
        self._go(form.binding, form.graph)

    def _go(self, binding: Any, graph: str) -> None:
        options = run_options()
        if self._graphs:
            options.add_run_config_entry(_GRAPH_ID, graph)
        self._session.run_with_iobinding(binding, options)


def _own(values: Array) -> Array:
    """The values in memory of their own: on a CPU they are a view of what the next run writes."""
    return values if values.flags.owndata else values.copy()
