"""What is to be explained: the model in modern form, its input, its logits and the way between."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_clrp.endpoints import channel_axis, find_input, find_logits
from onnx_clrp.errors import ModelError, UsageError
from onnx_clrp.facts import Facts
from onnx_clrp.image import CHANNELS, Preprocessing
from onnx_clrp.intervals import Interval, between, per_channel
from onnx_clrp.layers import find_tensor, neurons_of
from onnx_clrp.model import PREFIX, metadata
from onnx_clrp.modernise import Model, modernise
from onnx_clrp.normalise import normalised_steps, plain_steps
from onnx_clrp.probabilities import doubted
from onnx_clrp.steps import Step

InputRange = tuple[float | Sequence[float], float | Sequence[float]]
"""`(low, high)`, each a number or one number per channel, in the units of the model's input."""


class Reading(TypedDict, total=False):
    """The options that say how a model is read."""

    input_range: InputRange | None
    preprocessing: Preprocessing | str | None
    logits: str | None
    input: str | None
    layer: str | None
    neurons: str


def reading(options: Reading) -> Reading:
    """Those of some options that say how a model is read, and no others."""
    return Reading(
        input_range=options.get("input_range"),
        preprocessing=options.get("preprocessing"),
        logits=options.get("logits"),
        input=options.get("input"),
        layer=options.get("layer"),
        neurons=options.get("neurons", "channels"),
    )


@dataclass(frozen=True)
class Program:
    """A model, read and understood; nothing is written yet.

    Attributes:
        model: the model in modern form.
        input: the input that is explained.
        logits: the tensor of class scores, `[N, C]`, with further axes of size 1, or `[N]`.
        classes: C.
        facts: what is known of each tensor.
        steps: the nodes from input to logits, in the order in which they run, as relevance
            passes them.
        plain_steps: the same as gradients pass them: nothing is bypassed, a gate gets its own.
        preprocessing: how pictures become the input, where that is known.
        labels: the classes' names, where they are known.
        notes: what was assumed, for the user to read.
        neurons: where no class is explained but neurons of a layer, what counts as one of them:
            `"channels"` or `"units"`. The layer's tensor stands in the place of the logits then.
    """

    model: Model
    input: gs.Variable
    logits: gs.Variable
    classes: int
    facts: Facts
    steps: list[Step]
    plain_steps: list[Step]
    preprocessing: Preprocessing | None
    labels: list[str] | None
    notes: list[str]
    neurons: str | None = None


@contextmanager
def _of_limited_depth() -> Iterator[None]:
    """One line for a formula that overflows the stack."""
    try:
        yield
    except RecursionError as error:
        raise ModelError("a formula in the model is too long to follow, node by node") from error


@_of_limited_depth()
def read_program(
    proto: onnx.ModelProto,
    *,
    input_range: InputRange | None = None,
    preprocessing: Preprocessing | str | None = None,
    logits: str | None = None,
    input: str | None = None,
    layer: str | None = None,
    neurons: str = "channels",
) -> Program:
    """Find out what there is to explain: classes, or the neurons of a layer.

    Raises:
        ModelError: the model has no logits of the form that is needed.
        UsageError: the input or the logits must be named, or the input's range given.
    """
    if PREFIX + "method" in metadata(proto):
        raise UsageError("the model is an explainer already: give the model that it was made from")
    model = modernise(proto)
    source = find_input(model.graph, input)
    _refuse_bfloat16(model.proto, source.name)
    if len(source.shape or ()) < 2:
        raise ModelError(f"the input {source.name!r} has no axis beside the batch's")
    notes: list[str] = []
    if isinstance(preprocessing, str):
        preprocessing = Preprocessing.preset(preprocessing)
    prepared = preprocessing or chosen_preprocessing(proto) or _assumed(source, input_range, notes)
    prepared = None if prepared is None else bound(prepared, source)
    interval = _range(source, input_range, prepared)
    facts = Facts(model.graph, model.weights, {source.name: interval}, model.reals)
    if layer is None and neurons != "channels":
        raise UsageError("neurons are those of a layer: give it by its name")
    if layer is None:
        scores, remarks = find_logits(model.graph, facts, logits)
        notes += remarks
        if not facts.carries(scores):
            raise ModelError(
                f"the logits {scores.name!r} do not depend on the input {source.name!r}"
            )
        classes = _classes(facts, scores)
    else:
        scores = find_tensor(model.graph, facts, layer)
        classes = neurons_of(facts, scores, neurons)
    _refuse_other_batch(facts, source, scores)
    made = normalised_steps(model.graph, facts, [scores])
    if layer is None:  # a neuron is no probability of a class
        made = doubted(made, {scores.name}, facts)
    notes += _lost_bounds(made, facts, interval)
    return Program(
        model=model,
        input=source,
        logits=scores,
        classes=classes,
        facts=facts,
        steps=made,
        plain_steps=plain_steps(model.graph, facts, [scores], made),
        preprocessing=prepared,
        labels=_labels(proto, classes, notes) if layer is None else None,
        notes=notes,
        neurons=None if layer is None else neurons,
    )


def _refuse_bfloat16(proto: onnx.ModelProto, name: str) -> None:
    kinds = {x.name: x.type.tensor_type.elem_type for x in proto.graph.input}
    if kinds[name] == onnx.TensorProto.BFLOAT16:  # a type that NumPy does not have
        raise ModelError(f"the input {name!r} is bfloat16: put a Cast from float in front")


def chosen_preprocessing(
    proto: onnx.ModelProto, preset: str | None = None, **overrides: Any
) -> Preprocessing | None:
    """A preprocessing from a preset and overrides; the model's own, or None, if none is given.

    Args:
        proto: the model, whose metadata may hold a preprocessing.
        preset: the name of a preset.
        overrides: fields of `Preprocessing`; None leaves what preset or metadata say.

    Raises:
        UsageError: a field makes no sense.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if preset is not None:
        return Preprocessing.preset(preset, **given)
    stored = metadata(proto).get(PREFIX + "preprocessing")
    if stored is not None:
        return replace(Preprocessing.from_json(stored), **given)
    return Preprocessing.preset("imagenet", **given) if given else None


def bound(preprocessing: Preprocessing, source: gs.Variable) -> Preprocessing:
    """The preprocessing with the size, the layout and the type of the model's input.

    Raises:
        UsageError: the input is no picture, or has another number of channels.
    """
    shape = source.shape
    if shape is None or len(shape) != 4:
        raise UsageError(f"the input {source.name!r} is no picture [N, C, H, W] or [N, H, W, C]")
    axis, channels = channel_axis(source), _channels(source)
    wanted = CHANNELS[preprocessing.channels]
    if channels not in (None, wanted):
        raise UsageError(
            f"the input {source.name!r} has {channels} channel{'s' * (channels != 1)}, not the"
            f" {wanted} of {preprocessing.channels}: choose with --channels {', '.join(CHANNELS)}"
        )
    size = [d for i, d in enumerate(shape) if i not in (0, axis) and isinstance(d, int)]
    known = (size[0], size[1]) if len(size) == 2 else None
    return preprocessing.bind(known, "NCHW" if axis == 1 else "NHWC", np.dtype(source.dtype).name)


def _lost_bounds(made: Sequence[Step], facts: Facts, interval: Interval) -> list[str]:
    """A remark on each first linear map that has no bounds, or coarser ones, than the input."""
    if not interval.finite:
        return []
    notes = []
    for step in made:
        read = [x for x in step.inputs if x is not None and facts.carries(x)] if step.linear else []
        for known in (facts.interval(x) for x in read if not facts.behind_linear(x)):
            if not known.finite:
                notes.append(
                    f"the input's bounds are not known to hold at {step}: it takes z⁺ in place"
                    " of z^β"
                )
            elif known.uniform and not interval.uniform:
                notes.append(
                    f"z^β at {step} takes the same bounds for all channels,"
                    f" {known.lo.item():g} to {known.hi.item():g}"
                )
    return notes


def _assumed(
    source: gs.Variable, given: InputRange | None, notes: list[str]
) -> Preprocessing | None:
    """What pictures are taken to go through where nobody says: the usual for such an input."""
    if _picture_channels(source) != 3 or given is not None:
        return None
    if np.dtype(source.dtype).kind in "iu":
        return Preprocessing.preset("raw")
    notes.append("no input range given: taken for ImageNet's, (0 - mean)/std to (1 - mean)/std")
    return Preprocessing.preset("imagenet")


def _range(
    source: gs.Variable, given: InputRange | None, preprocessing: Preprocessing | None
) -> Interval:
    rank, axis = len(source.shape or ()), channel_axis(source)
    if given is not None:
        if not isinstance(given, list | tuple) or len(given) != 2:
            raise UsageError(f"an input range is a pair (low, high), not {given!r}")
        return per_channel(*given, rank, axis, _channels(source))
    dtype = np.dtype(source.dtype)
    if dtype.kind in "iu":
        return between(float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    if preprocessing is None:
        raise UsageError(
            f"the range of the input {source.name!r} is not known: give --input-range LO,HI"
            " or a --preset; -inf,inf if it has none"
        )
    return per_channel(*preprocessing.input_range, rank, axis, _channels(source))


def _picture_channels(source: gs.Variable) -> int | None:
    return _channels(source) if len(source.shape or ()) == 4 else None


def _channels(source: gs.Variable) -> int | None:
    shape = source.shape
    channels = shape[channel_axis(source)] if shape is not None else None
    return channels if isinstance(channels, int) else None


def _classes(facts: Facts, logits: gs.Variable) -> int:
    shape = facts.shape(logits)
    if shape is None or not shape or None in shape[1:]:
        raise ModelError(f"the logits {logits.name!r} must be [N, C] with C known, not {shape}")
    sizes = [d for d in shape[1:] if d is not None and d != 1]
    if len(sizes) > 1:
        raise ModelError(
            f"the logits {logits.name!r} have more than one position per class: {list(shape)}"
        )
    return sizes[0] if sizes else 1


def _refuse_other_batch(facts: Facts, source: gs.Variable, logits: gs.Variable) -> None:
    """The first axis of the input is taken for the batch; so must be that of the logits."""
    samples, rows = ((facts.shape(x) or (None,))[0] for x in (source, logits))
    if samples is not None and rows is not None and samples != rows:
        raise ModelError(
            f"the input {source.name!r} has no batch axis in front: for {samples} samples there"
            f" are {rows} rows of logits; put an axis in front of the model's input"
        )


def _labels(proto: onnx.ModelProto, classes: int, notes: list[str]) -> list[str] | None:
    stored = metadata(proto).get(PREFIX + "labels")
    if stored is None:
        return None
    try:
        labels = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the labels in the model's metadata are no JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise ModelError("the labels in the model's metadata are no list of names")
    if len(labels) != classes:
        notes.append(f"the metadata's {len(labels)} labels for {classes} classes are left out")
        return None
    return labels
