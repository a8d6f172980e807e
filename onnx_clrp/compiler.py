"""The explainer graph: the model, and behind it the walk that hands relevance back to its input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_clrp.composites import Composite, Overrides, as_pairs, composite_of, overridden
from onnx_clrp.endpoints import channel_axis
from onnx_clrp.errors import UsageError
from onnx_clrp.half import NOTE, halved
from onnx_clrp.image import Preprocessing
from onnx_clrp.layers import find_tensor
from onnx_clrp.maps import relevance_maps
from onnx_clrp.methods import METHODS, Method, method_of
from onnx_clrp.model import PREFIX, fingerprint, load, self_contained
from onnx_clrp.overflow import watched
from onnx_clrp.program import InputRange, Program, Reading, read_program
from onnx_clrp.seeds import Seeds, scores_of
from onnx_clrp.tape import Tape, Tensor

Target = int | Sequence[int] | str | None
"""None for an input of the graph, a class, a list of classes, or `"top:5"`."""


class Choices(Reading, total=False):
    """The options that say what is explained, and how."""

    method: str
    contrast: str | None
    difference: str | None
    rules: str
    rules_for: Overrides | None
    avg_pool: str | None
    max_pool: str | None
    at: Iterable[str] | None
    cam_layer: str | None


class Options(Choices, total=False):
    """The options of `convert`, for whoever hands them on."""

    target: Target
    signed: bool
    parts: bool
    half: bool


@dataclass(frozen=True)
class Plan:
    """What is to be written behind a program.

    Attributes:
        method: the method.
        composite: the rule set, with all overrides.
        at: the hidden tensors at which maps are wanted.
        cam_layer: that of a class activation map; None for the last one.
    """

    method: Method
    composite: Composite
    at: Sequence[Tensor] = ()
    cam_layer: Tensor | None = None


def fitting(options: Options, method: str, methods: Iterable[str]) -> Options:
    """The options of one of several methods: rules are for those among them that take rules.

    If none of them does, the rules stay, for `convert` to refuse.
    """
    fitted: Options = {**options, "method": method}
    if not METHODS[method].of_relevance and any(METHODS[name].of_relevance for name in methods):
        fitted |= {"rules": "default", "rules_for": None, "avg_pool": None, "max_pool": None}
    return fitted


def convert(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    method: str = "clrp2",
    contrast: str | None = None,
    difference: str | None = None,
    rules: str = "default",
    rules_for: Overrides | None = None,
    avg_pool: str | None = None,
    max_pool: str | None = None,
    target: Target = None,
    layer: str | None = None,
    neurons: str = "channels",
    at: Iterable[str] | None = None,
    cam_layer: str | None = None,
    input_range: InputRange | None = None,
    preprocessing: Preprocessing | str | None = None,
    logits: str | None = None,
    input: str | None = None,
    signed: bool = False,
    parts: bool = False,
    half: bool = False,
) -> onnx.ModelProto:
    """Turn a classifier into an explainer: the same model with relevance as one more output.

    Added are the input `target` int64 `[batch, k]` (unless the targets are compiled in) and the
    outputs `relevance` float32 `[batch, k, *input.shape[1:]]`, `relevance_target` int64
    `[batch, k]` and `relevance_logits` `[batch, C]`; `relevance_concept` and `relevance_dual` with
    `parts`, `relevance_at_0`, … for hidden tensors. A target outside of 0 … C-1 gives NaN.

    Args:
        model: a path, the bytes of a file, or a loaded model.
        method: one of `onnx_clrp.methods.METHODS` (docs/methods.md).
        contrast: `"complement"`, `"others"` or `"negated"`: what a method without a contrast of
            its own is compared with.
        difference: `"plain"` or `"normalised"`: how the dual is taken from the concept.
        rules: the rule set of LRP, one of `onnx_clrp.composites.RULE_SETS` (docs/methods.md).
        rules_for: other rules for some linear maps, `{"conv*": "gamma(0.25)"}`.
        avg_pool: `"even"` or `"proportional"`, other than the rule set has it.
        max_pool: `"first"` or `"split"`: who gets what, where several equal the maximum.
        target: None for an input of the graph, a class, a list of classes, or `"top:5"`.
        layer: the node or tensor whose neurons are explained in place of classes. C is their
            number then, a target a neuron, and a logit what it says.
        neurons: `"channels"`, each with all its positions, or `"units"`, every single one.
        at: nodes or tensors at which the map is wanted too.
        cam_layer: the node or tensor that a class activation map is made of.
        input_range: `(low, high)` of the model's input, numbers or one per channel, for z^β.
        preprocessing: how pictures become the input; it gives the range too.
        logits: the name of the tensor of class scores, where it is not plain.
        input: the name of the input to explain, where there are several.
        signed: leave out the final `max(0, ·)` of a contrast.
        parts: add the two maps of a contrast, at the price of a second pass.
        half: let the model itself run in float16, which pays on GPUs. Relevance stays
            float32, on the activations that float16 gives.

    Returns:
        The explainer, with all its weights inside. Only where a model that has external data is
        too large for that, they stay in its files: write it with `onnx_clrp.save` then.

    Raises:
        ModelError: the model cannot be read or has a node without a rule.
        UsageError: an argument does not fit.
    """
    proto = load(model)
    program = read_program(
        halved(proto) if half else proto,
        input_range=input_range,
        preprocessing=preprocessing,
        logits=logits,
        input=input,
        layer=layer,
        neurons=neurons,
    )
    choices: Choices = {
        "method": method,
        "contrast": contrast,
        "difference": difference,
        "rules": rules,
        "rules_for": as_pairs(rules_for or ()),
        "avg_pool": avg_pool,
        "max_pool": max_pool,
        "at": _names(at),
        "cam_layer": cam_layer,
    }
    plan = plan_of(program, choices)
    wanted = parse_target(target, program.classes)
    if half:
        program.notes.append(NOTE)
    explainer = write(program, plan, wanted, signed=signed, parts=parts, half=half)
    _describe(explainer, {**_chosen(choices, plan, signed), **_known(program)})
    _describe(explainer, {"source_sha256": fingerprint(proto)})
    if half:
        _describe(explainer, {"half": "true"})
    return explainer if isinstance(model, onnx.ModelProto) else self_contained(explainer)


def plan_of(program: Program, choices: Choices) -> Plan:
    """What the options ask for.

    Raises:
        UsageError: they name what is not there, or do not go together.
    """
    contrast, difference = choices.get("contrast"), choices.get("difference")
    method = method_of(choices.get("method", "clrp2"), program.classes, contrast, difference)
    rules, overrides = choices.get("rules", "default"), as_pairs(choices.get("rules_for") or ())
    avg_pool, max_pool = choices.get("avg_pool"), choices.get("max_pool")
    if not method.of_relevance and (rules != "default" or overrides or avg_pool or max_pool):
        raise UsageError(f"{method.name} takes no rules: they are those of LRP and its contrasts")
    named = method.rules if rules == "default" else rules
    composite = composite_of(named, avg_pool=avg_pool, max_pool=max_pool)
    layers = (_names(choices.get("at")), choices.get("cam_layer"))
    _refuse_layers(program, method, *layers)
    graph, facts = program.model.graph, program.facts
    return Plan(
        method,
        overridden(composite, overrides, program.steps),
        [find_tensor(graph, facts, name) for name in layers[0]],
        None if layers[1] is None else find_tensor(graph, facts, layers[1]),
    )


def _names(at: Iterable[str] | None) -> list[str]:
    """The hidden layers at which maps are wanted."""
    if isinstance(at, str):
        raise UsageError(f"at is a list of names, not {at!r}")
    names = [*(at or ())]
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"at is a list of names, not {names!r}")
    return names


def _refuse_layers(
    program: Program, method: Method, at: Sequence[str], cam_layer: str | None
) -> None:
    """What a method cannot say of hidden layers."""
    if at and (method.cam or method.noise):
        raise UsageError(f"{method.name} has a map at the input alone")
    if cam_layer is not None and not method.cam:
        raise UsageError(f"{method.name} makes no class activation map: no layer is chosen for it")
    if program.neurons is None:
        return
    if method.fewest_classes > 1:
        raise UsageError(
            f"{method.name} compares with all other classes, and the other neurons of a layer are"
            " no alternatives to one of them (paper, section 4): take lrp or clrp2"
        )
    if method.cam:
        raise UsageError(f"{method.name} explains classes, not neurons")


def write(
    program: Program,
    plan: Plan,
    target: list[int] | int | None,
    *,
    signed: bool = False,
    parts: bool = False,
    half: bool = False,
) -> onnx.ModelProto:
    """Append the walk to the model; `target` is a list of classes, the k of `top:k`, or None.

    With `half` it runs in float16, and an output is added that tells whether it overflowed.
    """
    t = Tape(program.model.names(), program.facts)
    scores = scores_of(t, program)
    targets = _targets(t, target, scores)
    seeds = Seeds.of(t, program, targets)
    maps = relevance_maps(
        t,
        program,
        plan.method,
        plan.composite,
        seeds,
        parts=parts,
        at=plan.at,
        cam_layer=plan.cam_layer,
    )
    if plan.method.dual is not None and not signed:
        positive = [name for name in maps if name == "relevance" or name.startswith("at/")]
        maps.update((name, t.Relu(maps[name])) for name in positive)
    tensors = {f"at/{i}": x for i, x in enumerate(plan.at)}
    outputs = {
        _output(name): _by_sample(
            t, r, tensors.get(name, program.input), targets, program, checked=target is not None
        )
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
    shapes = {_output(name): x for name, x in tensors.items()}
    names = {}
    for name, value in zip(outputs, finished.graph.output[-len(outputs) :], strict=True):
        names[name] = value.name
        form = _form(t, program, name, shapes.get(name, program.input))
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, *form))
    names["logits"] = names.pop("relevance_logits", program.logits.name)
    names["input"] = program.input.name
    if not targets.inputs:
        names["target"] = targets.name
    looked_at = watched(finished, names["logits"]) if half else []
    if looked_at:
        finished = append(finished, t, {"relevance_overflow": _means(t, program, looked_at)})
        value = finished.graph.output[-1]
        value.CopyFrom(
            onnx.helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [len(looked_at)])
        )
        names["overflow"] = value.name
    _describe(finished, {"names": json.dumps(names)})
    return finished


def _means(t: Tape, program: Program, names: Sequence[str]) -> Tensor:
    """The mean of each of the model's tensors, which is finite if all of its values are.

    It is taken in float32, since a device may add float16 up in float16.
    """
    tensors = program.model.graph.tensors()
    # As rules read them: a further reader might round what the forward pass does not.
    return t.Concat(
        *(t.Unsqueeze(t.ReduceMean(tensors[name], keepdims=0), [0]) for name in names), axis=0
    )


def _output(name: str) -> str:
    """What the output of a map is called."""
    return name.replace("at/", "relevance_at_")


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


def _by_sample(
    t: Tape, r: Tensor, x: Tensor, targets: Tensor, program: Program, *, checked: bool
) -> Tensor:
    """Relevance `[k, N, ...]` of `x` as `[N, k, ...]`; NaN for a class that does not exist."""
    rank = t.rank(x)
    sorted_by_sample = t.Transpose(r, perm=[1, 0, *range(2, rank + 1)])
    if checked:
        return sorted_by_sample
    there = t.And(t.GreaterOrEqual(targets, [0]), t.Less(targets, [program.classes]))
    if x is not program.input:  # whose first axis may be no batch: for all samples or for none
        every = t.ReduceMin(t.number(there), [0], keepdims=1)
        there = t.Greater(every, 0.0)
    return t.Where(t.Unsqueeze(there, [*range(2, rank + 1)]), sorted_by_sample, float("nan"))


def append(proto: onnx.ModelProto, t: Tape, outputs: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Append to the model what the tape wrote for these outputs, and the outputs by their names.

    What was appended before is not appended again.
    """
    named = [t.named(tensor, name) for name, tensor in outputs.items()]
    wanted = {tensor.name for tensor in named}
    there = {y for node in proto.graph.node for y in node.output}
    there.update(tensor.name for tensor in proto.graph.initializer)
    live = []
    for node in reversed(t.nodes):
        if any(y.name in wanted and y.name not in there for y in node.outputs):
            live.append(node)
            wanted.update(x.name for x in node.inputs)
    proto.graph.node.extend(OnnxExporter.export_node(node) for node in reversed(live))
    constants = [c for c in t.constants if c.name in wanted and c.name not in there]
    proto.graph.initializer.extend(OnnxExporter.export_tensor_proto(c) for c in constants)
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(y.name, TensorProto.FLOAT, None) for y in named
    )
    return proto


def _form(t: Tape, program: Program, name: str, x: Tensor) -> tuple[int, list[int | str | None]]:
    """The type and the shape of one of our outputs, a map of `x` unless its name says otherwise."""
    batch, *rest = x.shape or [None]
    k = int(t.targets[0]) if isinstance(t.targets, np.ndarray) else "k"
    if name == "relevance_target":
        return TensorProto.INT64, [batch, k]
    if name == "relevance_logits":
        return TensorProto.FLOAT, [batch, program.classes]
    return TensorProto.FLOAT, [batch, k, *rest]


def _chosen(choices: Choices, plan: Plan, signed: bool) -> dict[str, str]:
    """What was asked for, as texts for the metadata."""
    chosen = ("contrast", "difference", "avg_pool", "max_pool", "cam_layer")
    texts = {key: choices.get(key) for key in chosen}
    written = [f"{pattern}={rule}" for pattern, rule in as_pairs(choices.get("rules_for") or ())]
    rules = choices.get("rules", "default")
    return {
        "method": plan.method.name,
        "rules": plan.method.rules if rules == "default" else rules,
        "signed": json.dumps(signed),
        "at": json.dumps(_names(choices.get("at"))),
        **({"rules_for": json.dumps(written)} if written else {}),
        **{key: str(value) for key, value in texts.items() if value is not None},
    }


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
    if program.neurons is not None:
        shape = program.facts.shape(program.logits) or ()
        layer = {"name": program.logits.name, "neurons": program.neurons, "shape": shape}
        known["layer"] = json.dumps(layer)
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
