"""Running an explainer: batches in, the result of an explanation out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar, Unpack

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from onnx_clrp.batches import MOST, Batches
from onnx_clrp.binding import Bound
from onnx_clrp.compiler import Options, convert, parse_target
from onnx_clrp.errors import HalfOverflowError, MemoryShortageError, ModelError, UsageError
from onnx_clrp.image import Preprocessing
from onnx_clrp.inputs import (
    as_array,
    fed,
    filled,
    numpy_type,
    pieces,
    rows_of_samples,
    with_piece,
)
from onnx_clrp.methods import METHODS
from onnx_clrp.model import PREFIX, load, metadata, part_for
from onnx_clrp.sessions import open_session, run

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
T = TypeVar("T")

_SLACK = 1e-3
"""How far outside its range a batch may lie, as a part of the range's width."""


_NO_BATCH = "the layer {!r} has no batch axis in front: for {} samples it has {} rows"

_STAYS = (
    "part of it runs on the CPU: the model has {}, so that it stays in an opset of which CUDA lacks"
    " some operators"
)

_NEEDED = frozenset({"input", "logits", "relevance", "relevance_target"})
"""The ends of an explainer that its metadata has to name."""


@dataclass(frozen=True)
class Result:
    """What an explanation gives, for N samples and k targets.

    Attributes:
        logits: `[N, C]` float32.
        target: `[N, k]` int64, the explained classes.
        seed: `[N, k]` float32, their logits: what the relevance started from.
        relevance: `[N, k, *input.shape[1:]]` float32, in units of the logit; of gradients and
            normalised contrasts in their own.
        concept, dual: the two maps of a contrast, where `parts=True` asked for them.
        at: the maps at hidden tensors, `[N, k, *tensor.shape[1:]]` each, by the name asked for.
        method: what made the maps.
        notes: what was assumed.
        channel_axis: the axis of the channels in the model's input.

    Where neurons of a layer are explained, they stand in the place of classes, and what they say
    in that of logits.
    """

    logits: Floats
    target: Integers
    seed: Floats
    relevance: Floats
    concept: Floats | None = None
    dual: Floats | None = None
    at: Mapping[str, Floats] = field(default_factory=dict)
    method: str = "lrp"
    notes: tuple[str, ...] = field(default=(), repr=False)
    channel_axis: int = 1

    def heatmap(self, reduce: str | None = None) -> Floats:
        """One number for each position, `[N, k, H, W]`.

        Args:
            reduce: `"sum"` of the channels, as for relevance and class activation maps, or
                `"abs-max"`, the largest magnitude among them, as for gradients; None for what is
                usual for the method.

        Raises:
            UsageError: there is no such reduction.
        """
        kind = METHODS[self.method].reduce if reduce is None else reduce
        if kind not in ("sum", "abs-max"):
            raise UsageError(f"a heatmap is reduced by sum or abs-max, not {reduce!r}")
        axis = self.channel_axis + 1
        reduced: Floats = (
            self.relevance.sum(axis) if kind == "sum" else np.abs(self.relevance).max(axis)
        )
        return reduced


class Explainer:
    """A model with its explanations: converts it if need be and owns the session that runs it.

    Args:
        model: a model as for `convert`, or one that `convert` wrote.
        device: `"cpu"`, `"cuda"`, or `"auto"` for CUDA where it is there; see `device` afterwards.
        cuda_graph: on CUDA, capture the runs on the first eight sets of input shapes that come
            twice as CUDA graphs, and replay them: for many small runs, which wait for launches.
        options: those of `convert`.

    Attributes:
        device: where it runs, `"cpu"` or `"cuda"`.
        method: the method.
        classes: C, the number of classes, or of a layer's neurons.
        layer: the layer whose neurons are explained: its tensor's `name`, what counts as one of
            its `neurons`, and its `shape`; or None.
        labels: the classes' names, or None.
        notes: what was assumed about the model.
        preprocessing: how pictures become the input, bound to the model's size; or None.

    Raises:
        ModelError: the model cannot be read, converted or loaded by ONNX Runtime.
        DeviceError: the device is not there, or has no CUDA graphs.
        UsageError: an option does not fit.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        device: str = "auto",
        cuda_graph: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._made = partial(_explainer_of, model, options)
        proto = self._made()
        self._session, self.device, stays = open_session(proto, device, cuda_graph=cuda_graph)
        try:
            self._read(proto)
        except (
            *(KeyError, ValueError, TypeError, AttributeError),
            *(StopIteration, RecursionError, OverflowError),
        ) as error:
            raise ModelError(
                "the explainer's metadata is damaged: convert the original model again"
            ) from error
        self._batches: dict[object, Batches] = {}
        self._bound: Bound | None = None
        if self.device == "cuda":
            ours = [self._names[end] for end in ("input", "target") if end in self._names]
            self._bound = Bound(
                self._session, "cuda", self._asked, graphs=cuda_graph, on_device=ours
            )
        self.notes += [] if stays is None else [_STAYS.format(stays)]

    def _read(self, proto: onnx.ModelProto) -> None:
        """What `convert` wrote into the metadata."""
        self._metadata = metadata(proto)
        known = {k.removeprefix(PREFIX): v for k, v in self._metadata.items()}
        self.method = known["method"]
        METHODS[self.method]
        self.classes = int(known["classes"])
        self.layer: dict[str, Any] | None = json.loads(known.get("layer", "null"))
        self._at: list[str] = json.loads(known.get("at", "[]"))
        usual = METHODS[self.method].rules
        chosen = (known.get("contrast"), known.get("rules", usual))
        self._beside = [name for name in chosen if name not in (None, usual)]
        if self.classes < 1:
            raise ValueError(f"{self.classes} classes")
        labels = json.loads(known.get("labels", "null")) or []
        labels = labels if self.layer is None else []
        self.labels: list[str] | None = labels if len(labels) == self.classes else None
        self.notes: list[str] = json.loads(known["notes"])
        self._names: dict[str, str] = json.loads(known["names"])
        _refuse_other_forms(self.notes, labels, self._at, [*self._names.values()])
        there = {x.name for x in (*self._session.get_inputs(), *self._session.get_outputs())}
        if not there.issuperset(self._names.values()) or not self._names.keys() >= _NEEDED:
            raise KeyError(f"of {there}, {self._names} are named")
        self._half = known.get("half") == "true"
        self._range = Range.from_json(known["input_range"])
        self._source = next(i for i in self._session.get_inputs() if i.name == self._names["input"])
        ours = (self._names["input"], self._names.get("target"))
        self._others = {i.name: i for i in self._session.get_inputs() if i.name not in ours}
        stored = known.get("preprocessing")
        self.preprocessing = Preprocessing.from_json(stored) if stored else None

    def explain(
        self,
        batch: ArrayLike,
        target: ArrayLike | None = None,
        feeds: Mapping[str, ArrayLike] | None = None,
    ) -> Result:
        """Explain the scores of some classes for a batch of inputs.

        Args:
            batch: the model's own input, `[N, ...]`.
            target: None for the top class of each sample; a class; a list of k classes for every
                sample; a 1-D array of one class per sample; an array `[N, k]`. Always None where
                the targets were compiled in.
            feeds: values of the model's other inputs, by name; an array with a row for each
                sample goes with the samples where these run in pieces, any other goes whole.

        Raises:
            UsageError: the batch has not the form or the range of the model's input, a target is
                out of range, or a feed is missing or of no use.
            HalfOverflowError: the model runs in float16, which does not reach far enough.
        """
        samples = self._samples(batch)
        others = self._fed(samples, feeds)
        wanted = self._wanted(samples, target, others)
        by_row = rows_of_samples(self._others, others, self._source, len(samples))

        def run_on(start: int, piece: NDArray[Any]) -> dict[str, NDArray[Any]]:
            given = {self._source.name: piece, **with_piece(others, by_row, start, piece)}
            if wanted is not None:
                given[self._names["target"]] = filled(wanted[start : start + len(piece)], piece)
            return self._run(given)

        found = self._in_pieces(samples, self._maps(wanted), run_on)
        joined = {n: np.concatenate([f[n] for f in found])[: len(samples)] for n in found[0]}
        return self._result(joined)

    def logits(self, batch: ArrayLike, feeds: Mapping[str, ArrayLike] | None = None) -> Floats:
        """The model's class scores alone, `[N, C]`, at the cost of the model alone.

        The first call opens a session of their own, with weights of its own.
        """
        samples = self._samples(batch)
        return self._scores(samples, self._fed(samples, feeds))

    @property
    def title(self) -> str:
        """What pictures call the method: its name, and what was chosen beside it."""
        return ", ".join([METHODS[self.method].title, *self._beside])

    @property
    def input_form(self) -> tuple[list[int], str]:
        """The shape of a single sample, 64 for a side that the model leaves open, and its type."""
        sizes = [d if isinstance(d, int) else 64 for d in self._source.shape[1:]]
        return [1, *sizes], numpy_type(self._source).name

    @property
    def input_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest value of the input, to broadcast to a batch."""
        shape = [-1 if i == self._range.axis else 1 for i in range(len(self._source.shape))]
        return np.array(self._range.low).reshape(shape), np.array(self._range.high).reshape(shape)

    def _scores(self, samples: NDArray[Any], others: Mapping[str, NDArray[Any]]) -> Floats:
        by_row = rows_of_samples(self._others, others, self._source, len(samples))

        def run_on(start: int, piece: NDArray[Any]) -> Floats:
            given = {self._source.name: piece, **with_piece(others, by_row, start, piece)}
            return self._scored(given)

        return np.concatenate(self._in_pieces(samples, 0, run_on))[: len(samples)]

    def _in_pieces(
        self, samples: NDArray[Any], maps: int, run_on: Callable[[int, NDArray[Any]], T]
    ) -> list[T]:
        """What `run_on(start, piece)` gives for all samples; 0 maps where it makes scores alone.

        On a CPU samples one by one take no longer than together, and a fraction of the memory. A
        GPU wants many at once, as many as it has memory for.
        """
        batch, each = self._source.shape[0], max(1, maps)
        if self.device == "cpu" or isinstance(batch, int):
            return [run_on(start, piece) for start, piece in pieces(samples, batch, each)]
        form = (maps, samples.shape[1:])
        sizes = self._batches.setdefault(form, Batches(max(1, MOST // each)))
        return [
            *sizes.run(len(samples), lambda start, n: run_on(start, samples[start : start + n]))
        ]

    def _scored(self, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        taken = {x.name: feeds[x.name] for x in self._scoring.get_inputs()}
        values = run(self._scoring, self._telling, taken)
        scores: Floats = values[0]
        self._refuse_other_rows(len(scores), len(feeds[self._source.name]))
        self._refuse_overflow(values)
        return scores

    @cached_property
    def _scoring(self) -> Any:
        """A session for the scores: of a larger graph ONNX Runtime runs every node, asked or not.

        A model that came as a path is read once more for it, since one that is kept would double
        the memory; one that came from memory is the caller's, and is kept.
        """
        proto = self._made()
        if metadata(proto) != self._metadata:
            raise ModelError("the file of the model is not the one any more that was loaded")
        return open_session(part_for(proto, self._telling), self.device).session

    def _fed(
        self, samples: NDArray[Any], feeds: Mapping[str, ArrayLike] | None
    ) -> dict[str, NDArray[Any]]:
        together = self._source.shape[0]
        return fed(self._others, feeds or {}, {together: len(samples)})

    def _samples(self, batch: ArrayLike) -> NDArray[Any]:
        samples = as_array(batch, "the batch")
        dtype = numpy_type(self._source)
        if not np.can_cast(samples.dtype, dtype, "same_kind"):
            raise UsageError(f"the model takes {dtype}, the batch is {samples.dtype}")
        wanted = [d if isinstance(d, int) else None for d in self._source.shape]
        fits = samples.ndim == len(wanted) and len(samples) > 0
        if not fits or any(
            w not in (None, d) for w, d in zip(wanted[1:], samples.shape[1:], strict=True)
        ):
            form = ", ".join("N" if i == 0 else str(d) for i, d in enumerate(self._source.shape))
            raise UsageError(f"the model takes [{form}], the batch is {list(samples.shape)}")
        self._range.check(samples)
        return samples.astype(dtype, copy=False)

    def _wanted(
        self,
        samples: NDArray[Any],
        target: ArrayLike | None,
        others: Mapping[str, NDArray[Any]],
    ) -> Integers | None:
        """The targets `[N, k]`; None where they are compiled in."""
        if "target" not in self._names:
            if target is not None:
                raise UsageError("the targets of this explainer were compiled in")
            return None
        if target is None:
            best: Integers = self._scores(samples, others).argmax(axis=1)[:, None]
            return best
        asked = _per_sample(target, len(samples))
        parse_target([int(c) for c in asked.reshape(-1)], self.classes)
        return asked

    def _maps(self, wanted: Integers | None) -> int:
        """How many maps are made of each sample."""
        if wanted is not None:
            return len(wanted[0])
        shape = next(
            x.shape
            for x in self._session.get_outputs()
            if x.name == self._names["relevance_target"]
        )
        return shape[1] if isinstance(shape[1], int) else 1

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            if self._bound is None:
                values = run(self._session, self._asked, feeds)
            else:
                values = self._bound.run(feeds)
        except MemoryShortageError:
            if self._bound is not None:
                self._bound.clear()
            raise
        except ModelError:
            if self.layer is not None:  # it may have failed for what this says
                self._scored(feeds)
            raise
        found = dict(zip(self._results, values, strict=True))
        samples = len(feeds[self._source.name])
        for i, layer in enumerate(self._at):
            rows = len(found.get(f"relevance_at_{i}", feeds[self._source.name]))
            if rows != samples:
                raise ModelError(_NO_BATCH.format(layer, samples, rows))
        self._refuse_other_rows(len(found["logits"]), samples)
        self._refuse_overflow(values)
        return found

    @property
    def _telling(self) -> list[str]:
        """The outputs of the model alone: the scores, and what tells whether they overflowed."""
        return [self._names[name] for name in ("logits", "overflow") if name in self._names]

    @property
    def _results(self) -> list[str]:
        """What the outputs are, and below what they are called, in the same order."""
        return [name for name in self._names if name not in ("input", "target")]

    @property
    def _asked(self) -> list[str]:
        return [self._names[name] for name in self._results]

    def _refuse_other_rows(self, rows: int, samples: int) -> None:
        """Scores that are not those of samples, each for itself."""
        if rows != samples and self.layer is not None:
            raise ModelError(_NO_BATCH.format(self.layer["name"], samples, rows))
        if rows != samples:
            raise ModelError(
                f"for {samples} samples the model gives {rows} rows of logits:"
                f" the first axis of {self._source.name!r} is no batch axis"
            )

    def _refuse_overflow(self, values: Sequence[NDArray[Any]]) -> None:
        """Outputs of a float16 forward pass that was not wide enough, each and every one."""
        if self._half and not all(np.isfinite(value).all() for value in values):
            raise HalfOverflowError(
                "float16 is not wide enough for the model: explain it without half"
            )

    def _result(self, outputs: dict[str, NDArray[Any]]) -> Result:
        logits, target = outputs["logits"], outputs["relevance_target"]
        return Result(
            logits=logits,
            target=target,
            seed=np.take_along_axis(logits, target, axis=1),
            relevance=outputs["relevance"],
            concept=outputs.get("relevance_concept"),
            dual=outputs.get("relevance_dual"),
            at={name: outputs[f"relevance_at_{i}"] for i, name in enumerate(self._at)},
            method=self.method,
            notes=tuple(self.notes),
            channel_axis=self._range.axis,
        )


def _explainer_of(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, options: Options
) -> onnx.ModelProto:
    """The model if it is an explainer, or else the one that is made of it."""
    proto = load(model)
    if PREFIX + "method" not in metadata(proto):
        return convert(proto, **options)
    if options:
        raise UsageError(f"the model is an explainer already: {', '.join(options)} is settled")
    return proto


@dataclass(frozen=True)
class Range:
    """The range of the model's input: numbers, or one a channel along `axis`."""

    low: list[float]
    high: list[float]
    axis: int

    @classmethod
    def from_json(cls, text: str) -> Range:
        """The range as `convert` wrote it: an infinite bound is null."""
        known = json.loads(text)
        low, high = (
            [sign * np.inf if bound is None else float(bound) for bound in known[end]]
            for end, sign in (("low", -1), ("high", 1))
        )
        return cls(low, high, int(known["axis"]))

    def check(self, samples: NDArray[Any]) -> None:
        """Refuse what no picture of this model's can be: the commonest mistake there is."""
        if not samples.size:
            raise UsageError(f"the batch is empty: {list(samples.shape)}")
        others = tuple(i for i in range(samples.ndim) if i != self.axis)
        least, most = samples.min(axis=others), samples.max(axis=others)
        low, high = np.array(self.low), np.array(self.high)
        slack = np.nan_to_num(_SLACK * (high - low), posinf=0.0)
        if not (np.isfinite(least).all() and np.isfinite(most).all()):
            raise UsageError("the batch holds values that are not finite")
        if (least < low - slack).any() or (most > high + slack).any():
            raise UsageError(
                f"the batch lies in {_span(least, most)}, the model's input in {_span(low, high)}:"
                " prepare it as the model expects, or give the right input range"
            )


def _span(low: NDArray[Any], high: NDArray[Any]) -> str:
    return f"{low.min():.4g} … {high.max():.4g}"


def _per_sample(target: ArrayLike, n: int) -> Integers:
    """The targets as `[N, k]`."""
    given = as_array(target, "targets")
    if given.dtype.kind not in "iu":
        raise UsageError(f"targets are class numbers, not {target!r}")
    if given.ndim == 0 or (given.ndim == 1 and not isinstance(target, np.ndarray)):
        return np.tile(given.reshape(1, -1).astype(np.int64), (n, 1))
    if given.ndim > 2 or len(given) != n:
        raise UsageError(f"targets of the shape {list(given.shape)} do not fit {n} samples")
    return given.reshape(n, -1).astype(np.int64)


def _refuse_other_forms(*lists: object) -> None:
    """A TypeError for what is no list of texts."""
    for texts in lists:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{texts!r} is no list of texts")
