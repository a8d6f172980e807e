"""The runs that `check` compares: the model's own, its explainer's, and the same in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from onnx_clrp.compiler import Options, convert, parse_target, plan_of
from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.float64 import half_step, other_pass, run_float64
from onnx_clrp.ledger import Books, keep_books
from onnx_clrp.model import PREFIX, metadata
from onnx_clrp.program import read_program, reading
from onnx_clrp.runtime import Range
from onnx_clrp.sessions import open_session, run

Arrays = dict[str, NDArray[Any]]

_OPEN_SIDE = 64
"""The size of a drawn input where the model leaves one open."""


@dataclass(frozen=True)
class Account:
    """What a run of an explainer with a ledger found.

    Attributes:
        books: the explainer.
        sums: the sums of its ledger.
        relevance: the map, `[1, N, *input.shape[1:]]`.
        forward: the model's own tensors that it was made from.
    """

    books: Books
    sums: dict[str, float]
    relevance: NDArray[np.float32]
    forward: Arrays


class Comparison:
    """A model with its explainer on one input; each session is gone before the next is opened.

    Args:
        proto: the model.
        device: as for `Explainer`.
        batch: one sample `[1, ...]`; None for random values within the input's range.
        feeds: values of the model's other inputs, by name.
        options: those of `convert`.

    Attributes:
        program: the model as it was read.
        method: the method.
        target: the explained class.
        device: where it ran.
        outputs: the model's outputs as its explainer gives them, by name.
        relevance: the map, `[N, 1, *input.shape[1:]]`.
        half_step: between two numbers of the half precision that it calculates in; else 0.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        device: str,
        batch: ArrayLike | None,
        feeds: Mapping[str, ArrayLike],
        options: Options,
    ) -> None:
        self.program = read_program(proto, **reading(options))
        self._plan = plan_of(self.program, options)
        self.method = self._plan.method
        asked = parse_target(options.get("target"), self.program.classes)
        self._proto = proto
        bare: Options = {**options, "signed": True, "parts": False, "target": None}
        self._made = convert(proto, **bare)
        self._names: dict[str, str] = json.loads(metadata(self._made)[PREFIX + "names"])
        self._inputs = self._prepared(batch, feeds)
        self.half_step = half_step(self._made, [self._names["relevance"]])
        self._explain(device, asked)

    # -- what is fed ---------------------------------------------------------------------------

    def _prepared(self, batch: ArrayLike | None, feeds: Mapping[str, ArrayLike]) -> Arrays:
        """The model's inputs: one sample, as often as a fixed batch asks for, and the others."""
        known = {value.name: value for value in self._made.graph.input}
        source = self._names["input"]
        others = known.keys() - {source, self._names["target"]}
        if missing := sorted(others - feeds.keys()):
            raise UsageError(f"the model also needs a feed for {', '.join(missing)}")
        if unknown := sorted(feeds.keys() - others):
            raise UsageError(f"the model has no further input called {', '.join(unknown)}")
        bounds = Range.from_json(metadata(self._made)[PREFIX + "input_range"])
        sample = _random(bounds, known[source]) if batch is None else _one(known[source], batch)
        bounds.check(sample)
        found = {name: _typed(known[name], x) for name, x in {**feeds, source: sample}.items()}
        size = _dims(known[source])[0]
        fixed = [name for name in found if size and _dims(known[name])[:1] == [size]]
        more = {name: found[name].repeat(size or 1, 0) for name in fixed if len(found[name]) == 1}
        return {**found, **more}

    def _asked(self, target: int) -> Arrays:
        """What the explainer is fed."""
        rows = len(self._inputs[self._names["input"]])
        return {**self._inputs, self._names["target"]: np.full((rows, 1), target)}

    # -- what is run ---------------------------------------------------------------------------

    def _explain(self, device: str, asked: list[int] | int | None) -> None:
        """Run the explainer for the class that was asked for, or the top one."""
        session, self.device, _ = open_session(self._made, device)
        if asked is None or asked == 1:
            scores = run(session, [self._names["logits"]], self._asked(0))[0]
            asked = [int(scores[0].argmax())]
        if not isinstance(asked, list) or len(asked) != 1:
            raise UsageError("one class is checked at a time")
        self.target = asked[0]
        names = [y.name for y in self._proto.graph.output]
        *own, found = run(session, [*names, self._names["relevance"]], self._asked(self.target))
        self.outputs: dict[str, Any] = dict(zip(names, own, strict=True))
        self.relevance: NDArray[np.float32] = found

    def own_outputs(self) -> dict[str, Any]:
        """The outputs of the model itself."""
        session = open_session(self._proto, self.device).session
        return dict(zip(self.outputs, run(session, list(self.outputs), self._inputs), strict=True))

    def keep_books(self) -> Account:
        """Run the explainer with a ledger; it can be written only once."""
        books = keep_books(self.program, self._plan, self.target)
        session = open_session(books.model, self.device).session
        taken = [x for x in books.cut if x not in self._inputs]
        names = [*books.sums.values(), books.maps["relevance"], *taken]
        values = run(session, names, self._inputs)
        sums = {name: float(np.sum(v)) for name, v in zip(books.sums, values, strict=False)}
        relevance, *forward = values[len(sums) :]
        return Account(books, sums, relevance, dict(zip(taken, forward, strict=True)))

    def from_cut(self, account: Account) -> tuple[Arrays, str | None]:
        """The maps in float64 on the forward values of a run; nothing, and why, if that fails."""
        feeds = {**self._inputs, **account.forward}
        return _in_float64(account.books.model, feeds, account.books.maps)

    def from_input(self) -> tuple[NDArray[Any] | None, str | None]:
        """The map of a run that is float64 from the input on; or why there is none."""
        name = self._names["relevance"]
        why = other_pass(self._made, [name])
        if why is not None:
            return None, why
        found, why = _in_float64(self._made, self._asked(self.target), {"": name})
        return found.get(""), why


def _in_float64(
    model: onnx.ModelProto, feeds: Arrays, wanted: Mapping[str, str]
) -> tuple[Arrays, str | None]:
    """The tensors that are wanted, by what they are; nothing, and why, if that fails."""
    try:
        found = run_float64(model, feeds, list(wanted.values()))
    except ModelError as error:
        return {}, str(error)
    return {key: found[name] for key, name in wanted.items()}, None


def _random(bounds: Range, value: onnx.ValueInfoProto) -> NDArray[Any]:
    """A seeded random sample within the range of the input, near its one end where it is open."""
    shape = [1, *(_OPEN_SIDE if side is None else side for side in _dims(value)[1:])]
    per_channel = [-1 if i == bounds.axis else 1 for i in range(len(shape))]
    low, high = (np.reshape(end, per_channel) for end in (bounds.low, bounds.high))
    least = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - 1, -1))
    most = np.where(np.isfinite(high), high, np.where(np.isfinite(low), low + 1, 1))
    drawn = np.random.default_rng(0).uniform(least, most, shape)
    return drawn.astype(_dtype(value))


def _one(value: onnx.ValueInfoProto, batch: ArrayLike) -> NDArray[Any]:
    """The first sample of a batch for an input."""
    samples, wanted = _typed(value, batch), _dims(value)
    sizes = list(samples.shape)
    if (
        len(sizes) != len(wanted)
        or not sizes[0]
        or any(w not in (None, n) for w, n in zip(wanted[1:], sizes[1:], strict=True))
    ):
        form = ", ".join("N" if i == 0 else str(w or "?") for i, w in enumerate(wanted))
        raise UsageError(f"the model takes [{form}], the batch is {sizes}")
    return samples[:1]


def _typed(value: onnx.ValueInfoProto, given: ArrayLike) -> NDArray[Any]:
    """The values in the type of the model's input."""
    array, dtype = np.asarray(given), _dtype(value)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(f"the input {value.name!r} takes {dtype}, not {array.dtype}")
    return array.astype(dtype, copy=False)


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """The sizes of an input, None for one that is open."""
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]
