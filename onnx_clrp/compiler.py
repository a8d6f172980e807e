"""The explainer graph: the model, and behind it the walk that hands relevance back to its input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_clrp.endpoints import channel_axis
from onnx_clrp.errors import UsageError
from onnx_clrp.image import Preprocessing
from onnx_clrp.methods import METHODS, Method, Seeds, relevance_maps, scores_of
from onnx_clrp.model import PREFIX, fingerprint, load, self_contained
from onnx_clrp.program import InputRange, Program, Reading, read_program
from onnx_clrp.redistribute import RULE_SETS, Composite
from onnx_clrp.tape import Tape, Tensor

Target = int | Sequence[int] | str | None
"""None for an input of the graph, a class, a list of classes, or `"top:5"`."""


class Options(Reading, total=False):
    """The options of `convert`, for whoever hands them on."""

    method: str
    rules: str
    target: Target
    signed: bool
    parts: bool


def convert(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    method: str = "clrp2",
    rules: str = "default",
    target: Target = None,
    input_range: InputRange | None = None,
    preprocessing: Preprocessing | str | None = None,
    logits: str | None = None,
    input: str | None = None,
    signed: bool = False,
    parts: bool = False,
) -> onnx.ModelProto:
    """Turn a classifier into an explainer: the same model with relevance as one more output.

    Added are the input `target` int64 `[batch, k]` (unless the targets are compiled in) and the
    outputs `relevance` float32 `[batch, k, *input.shape[1:]]`, `relevance_target` int64
    `[batch, k]` and `relevance_logits` `[batch, C]`; `relevance_concept` and `relevance_dual` with
    `parts`. A target outside of 0 … C-1 gives NaN.

    Args:
        model: a path, the bytes of a file, or a loaded model.
        method: `"lrp"`, `"clrp1"` or `"clrp2"` (spec. section 2).
        rules: `"default"` or `"paper"` (section 1).
        target: None for an input of the graph, a class, a list of classes, or `"top:5"`.
        input_range: `(low, high)` of the model's input, numbers or one per channel, for z^β.
        preprocessing: how pictures become the input; it gives the range too.
        logits: the name of the tensor of class scores, where it is not plain.
        input: the name of the input to explain, where there are several.
        signed: leave out the final `max(0, ·)`.
        parts: add the two maps of a contrast, at the price of a second pass.

    Returns:
        The explainer, with all its weights inside. Only where a model that has external data is
        too large for that, they stay in its files: write it with `onnx_clrp.save` then.

    Raises:
        ModelError: the model cannot be read or has a node without a rule.
        UsageError: an argument does not fit.
    """
    proto = load(model)
    program = read_program(
        proto, input_range=input_range, preprocessing=preprocessing, logits=logits, input=input
    )
    explainer = write(
        program,
        method_of(method, program.classes),
        composite_of(rules),
        parse_target(target, program.classes),
        signed=signed,
        parts=parts,
    )
    how = {"method": method, "rules": rules, "signed": json.dumps(signed)}
    _describe(explainer, {**how, **_known(program), "source_sha256": fingerprint(proto)})
    return explainer if isinstance(model, onnx.ModelProto) else self_contained(explainer)


def write(
    program: Program,
    method: Method,
    composite: Composite,
    target: list[int] | int | None,
    *,
    signed: bool = False,
    parts: bool = False,
) -> onnx.ModelProto:
    """Append the walk to the model; `target` is a list of classes, the k of `top:k`, or None."""
    t = Tape(program.model.names(), program.facts)
    scores = scores_of(t, program)
    targets = _targets(t, target, scores)
    seeds = Seeds.of(t, program, targets)
    maps = relevance_maps(t, program, method, composite, seeds, parts=parts)
    if method.dual is not None and not signed:
        maps["relevance"] = t.Relu(maps["relevance"])
    outputs = {
        name: _by_sample(t, r, program, targets, checked=target is not None)
        for name, r in maps.items()
    }
    outputs["relevance_target"] = targets
    plain = scores is program.logits and program.logits.name not in program.model.reals.views
    if not plain or program.logits.name not in {x.name for x in program.model.graph.outputs}:
        outputs["relevance_logits"] = scores
    finished = append(program.model.proto, t, outputs)
    if not targets.inputs:
        asked = onnx.helper.make_tensor_value_info(targets.name, TensorProto.INT64, ["batch", "k"])
        finished.graph.input.append(asked)
    names = {}
    for name, value in zip(outputs, finished.graph.output[-len(outputs) :], strict=True):
        names[name] = value.name
        form = _form(t, program, name)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, *form))
    names["logits"] = names.pop("relevance_logits", program.logits.name)
    names["input"] = program.input.name
    if not targets.inputs:
        names["target"] = targets.name
    _describe(finished, {"names": json.dumps(names)})
    return finished


def method_of(name: str, classes: int) -> Method:
    """The method of that name; a UsageError if there is none, or too few classes for it."""
    if name not in METHODS:
        raise UsageError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name]
    if classes < method.fewest_classes:
        raise UsageError(f"{name} needs at least {method.fewest_classes} classes, not {classes}")
    return method


def composite_of(rules: str) -> Composite:
    """The rule set of that name; a UsageError if there is none."""
    if rules not in RULE_SETS:
        raise UsageError(f"no rule set is called {rules!r}; there are {', '.join(RULE_SETS)}")
    return RULE_SETS[rules]


def parse_target(target: Target, classes: int) -> list[int] | int | None:
    """None, the k of `"top:k"`, or the classes of a list, each checked to be in 0 … C-1."""
    if target is None:
        return None
    if isinstance(target, str):
        kind, _, number = target.partition(":")
        if kind != "top" or not number.isdecimal() or not 1 <= int(number) <= classes:
            raise UsageError(f"{target!r} is no target: it is a class, or top:1 … top:{classes}")
        return int(number)
    chosen = list(target) if isinstance(target, Iterable) else [target]
    if not all(isinstance(c, int | np.integer) and not isinstance(c, bool) for c in chosen):
        raise UsageError(f"targets are class numbers, not {target!r}")
    chosen = [int(c) for c in chosen]
    outside = [c for c in chosen if not 0 <= c < classes]
    if outside or not chosen:
        raise UsageError(f"target {outside or chosen} is not in 0 … {classes - 1}")
    return chosen


def _targets(t: Tape, target: list[int] | int | None, scores: Tensor) -> Tensor:
    """The classes to explain, `[N, k]`; the tape learns how many there are."""
    if target is None:
        asked = gs.Variable(t.fresh("target"), np.dtype(np.int64), ["batch", "k"])
        t.targets = t.Shape(asked, start=1, end=2)
        return asked
    k = target if isinstance(target, int) else len(target)
    t.targets = np.array([k], np.int64)
    if isinstance(target, int):
        return t.node("TopK", [scores, [k]], {"axis": -1, "largest": 1, "sorted": 1}, 2)[1]
    batch = t.Shape(scores, start=0, end=1)
    return t.Expand(np.array([target], np.int64), t.Concat(batch, [k], axis=0))


def _by_sample(t: Tape, r: Tensor, program: Program, targets: Tensor, checked: bool) -> Tensor:
    """Relevance `[k, N, ...]` as `[N, k, ...]`; NaN for a class that does not exist."""
    rank = len(program.input.shape or ())
    sorted_by_sample = t.Transpose(r, perm=[1, 0, *range(2, rank + 1)])
    if checked:
        return sorted_by_sample
    there = t.And(t.GreaterOrEqual(targets, [0]), t.Less(targets, [program.classes]))
    return t.Where(t.Unsqueeze(there, [*range(2, rank + 1)]), sorted_by_sample, float("nan"))


def append(proto: onnx.ModelProto, t: Tape, outputs: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Append to the model what the tape wrote for these outputs, and the outputs by their names."""
    named = [t.named(tensor, name) for name, tensor in outputs.items()]
    wanted = {tensor.name for tensor in named}
    live = []
    for node in reversed(t.nodes):
        if any(y.name in wanted for y in node.outputs):
            live.append(node)
            wanted.update(x.name for x in node.inputs)
    proto.graph.node.extend(OnnxExporter.export_node(node) for node in reversed(live))
    constants = [c for c in t.constants if c.name in wanted]
    proto.graph.initializer.extend(OnnxExporter.export_tensor_proto(c) for c in constants)
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(y.name, TensorProto.FLOAT, None) for y in named
    )
    return proto


def _form(t: Tape, program: Program, name: str) -> tuple[int, list[int | str | None]]:
    """The type and the shape of one of our outputs."""
    batch, *rest = program.input.shape or [None]
    k = int(t.targets[0]) if isinstance(t.targets, np.ndarray) else "k"
    if name == "relevance_target":
        return TensorProto.INT64, [batch, k]
    if name == "relevance_logits":
        return TensorProto.FLOAT, [batch, program.classes]
    return TensorProto.FLOAT, [batch, k, *rest]


def _known(program: Program) -> dict[str, str]:
    """What a program knows of its model, as texts for the metadata."""
    interval = program.facts.interval(program.input)
    low, high = (
        [b if np.isfinite(b) else None for b in end.reshape(-1).tolist()]
        for end in (interval.lo, interval.hi)
    )
    known = {
        "version": version("onnx-clrp"),
        "classes": str(program.classes),
        "notes": json.dumps(program.notes),
        "input_range": json.dumps({"low": low, "high": high, "axis": channel_axis(program.input)}),
    }
    if program.preprocessing is not None:
        known["preprocessing"] = program.preprocessing.to_json()
    if program.labels is not None:
        known["labels"] = json.dumps(program.labels, ensure_ascii=False)
    return known


def _describe(explainer: onnx.ModelProto, facts: dict[str, str]) -> None:
    """Write facts into the metadata, beside what the model says of itself."""
    kept = [e for e in explainer.metadata_props if e.key.removeprefix(PREFIX) not in facts]
    del explainer.metadata_props[:]
    explainer.metadata_props.extend(kept)
    for key, value in facts.items():
        explainer.metadata_props.add(key=PREFIX + key, value=value)
