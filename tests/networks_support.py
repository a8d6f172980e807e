"""Networks from both of PyTorch's exporters, their runs, and what the reference says of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper
from reference.network import Reference, explain
from reference.networks import BOUNDS, make, photographs
from torch import Tensor, nn

import onnx_clrp
from onnx_clrp.comparison import Comparison
from onnx_clrp.compiler import Options
from onnx_clrp.ledger import Entry
from onnx_clrp.sessions import open_session

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

EXPORTERS = ("dynamo", "torchscript")
METHODS = ("lrp", "clrp1", "clrp2")
RULES = ("default", "paper")

R_AGREES = 1e-5
CONTRAST_AGREES = 1e-4
CONSERVES = 1e-4
CLOSES = 1e-4
"""How far the ledger of a node may be open, as a part of the explained logit."""

UNCHANGED = 1e-5

CALIBRATION = 4
"""So many pictures give the statistics of BatchNorm, the explained ones first."""


@dataclass(frozen=True)
class Case:
    """A network, what it is shown and asked, and how near its contrast must come.

    Attributes:
        name: what a test calls it.
        make: builds it with seeded weights.
        show: its inputs `[N, C, ...]`.
        targets: how many of the top classes are asked for.
        rules: the rule sets that judge it.
        contrast_agrees: how near the contrast must come.
        contrast_least: a contrast that is a smaller part of R is measured against this part of it.
        bounds: lowest and highest input, for each channel.
    """

    name: str
    make: Callable[[], nn.Module]
    show: Callable[[], Floats]
    targets: int = 2
    rules: tuple[str, ...] = ("default",)
    contrast_agrees: float = CONTRAST_AGREES
    contrast_least: float = 0.0
    bounds: tuple[Floats, Floats] = BOUNDS


@dataclass(frozen=True)
class Run:
    """One float32 run of an explainer.

    Attributes:
        logits: the model's own output.
        maps: relevance `[N, k, C, ...]` by the name of its output.
        winners: of every max pool, as the reference takes them.
    """

    logits: Floats
    maps: dict[str, Floats]
    winners: list[Integers]


@dataclass
class Subject:
    """A network with its exports, its pictures and what the reference says of them."""

    case: Case
    models: dict[str, onnx.ModelProto] = field(default_factory=dict)
    runs: dict[tuple[str, str, str], Run] = field(default_factory=dict)
    references: dict[tuple[str, str], list[tuple[list[Integers], Reference]]] = field(
        default_factory=dict
    )

    @cached_property
    def net(self) -> nn.Module:
        """The network in float32."""
        return self.case.make()

    @cached_property
    def pictures(self) -> Floats:
        """What it is shown, `[N, C, ...]`."""
        return self.case.show()

    @cached_property
    def targets(self) -> Integers:
        """The top classes of each picture, `[N, k]`: their logits are far from zero."""
        return self.net(torch.from_numpy(self.pictures)).topk(self.case.targets).indices.numpy()

    def model(self, exporter: str) -> onnx.ModelProto:
        """The network as that exporter writes it."""
        if exporter not in self.models:
            self.models[exporter] = exported(self.net, self.pictures[:1], exporter)
        return self.models[exporter]

    def explainer(
        self, exporter: str, method: str, rules: str, *, parts: bool = True
    ) -> onnx.ModelProto:
        """The network's explainer, with the signed contrast and its parts."""
        return onnx_clrp.convert(
            self.model(exporter),
            method=method,
            rules=rules,
            input_range=self.case.bounds,
            signed=True,
            parts=parts and method != "lrp",
        )

    def run(self, exporter: str, method: str, rules: str) -> Run:
        """The maps of the top classes in float32."""
        key = (exporter, method, rules)
        if key not in self.runs:
            self.runs[key] = run(self.explainer(*key), self.pictures, self.targets)
        return self.runs[key]

    def reference(self, method: str, rules: str, winners: list[Integers]) -> Reference:
        """The float64 maps `[N k, C, ...]` for these max-pool winners.

        LRP's map is the concept of either contrast, and not calculated again.
        """
        key = ("clrp2" if method == "lrp" else method, rules)
        known = self.references.setdefault(key, [])
        for seen, answer in known:
            if same(seen, winners):
                return answer
        known.append((winners, self._explained(*key, winners)))
        return known[-1][1]

    def _explained(self, method: str, rules: str, winners: list[Integers]) -> Reference:
        return explain(
            self.net,
            np.repeat(self.pictures, self.case.targets, axis=0),
            self.targets.reshape(-1),
            method=method,
            bounds=self.case.bounds,
            rules=rules,
            winners=[np.repeat(w, self.case.targets, axis=0) for w in winners],
        )


def of_torchvision(name: str, size: int, **options: Any) -> Case:
    """A case of a classifier of torchvision."""

    def samples() -> Floats:
        return photographs(CALIBRATION, size, seed=5)

    options = {"targets": 1, **options}
    return Case(name, lambda: make(name, samples=samples()), lambda: samples()[:1], **options)


def exported(
    net: nn.Module, example: Floats, exporter: str, dynamic: Mapping[int, str] | None = None
) -> onnx.ModelProto:
    """The network as ONNX from one of PyTorch's two exporters, the batch dynamic or more."""
    names = {0: "batch"} if dynamic is None else dict(dynamic)
    pair = (torch.from_numpy(np.repeat(example, 2, axis=0)),)
    if exporter == "dynamo":
        shapes = ({axis: torch.export.Dim(name) for axis, name in names.items()},)
        program = torch.onnx.export(
            net, pair, dynamo=True, input_names=["x"], dynamic_shapes=shapes, verbose=False
        )
        return program.model_proto
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says what it takes for constants, and for training
        path = Path(folder) / "model.onnx"  # beside it what does not fit into one file
        torch.onnx.export(
            net, pair, str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": names}
        )
        return onnx.load(path)


def run(
    explainer: onnx.ModelProto, pictures: Floats, targets: Integers, device: str = "cpu"
) -> Run:
    """Run an explainer, with what its forward max pools take and give as further outputs."""
    known = [y.name for y in explainer.graph.output]
    maps = [n for n in known if n.startswith("relevance") and n != "relevance_target"]
    own = (node for node in explainer.graph.node if not node.name.startswith("relevance/"))
    pools = [node for node in own if node.op_type == "MaxPool"]
    watched = sorted({name for pool in pools for name in (pool.input[0], pool.output[0])})
    explainer.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in watched
        if name not in known
    )
    session = open_session(explainer, device).session
    names = [known[0], *maps, *watched]
    values = dict(zip(names, session.run(names, {"x": pictures, "target": targets}), strict=True))
    winners = [first_maxima(pool, values[pool.input[0]], values[pool.output[0]]) for pool in pools]
    return Run(values[known[0]], {name: values[name] for name in maps}, winners)


def first_maxima(pool: onnx.NodeProto, x: Floats, y: Floats) -> Integers:
    """For each window of a max pool the flat index of its first maximum in `x` `[N, C, ...]`."""
    known = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
    kernel = known["kernel_shape"]
    ones = [1] * len(kernel)
    strides, dilations = known.get("strides", ones), known.get("dilations", ones)
    begin = known.get("pads", [0] * len(kernel))[: len(kernel)]
    # Behind, room for a window that ceil_mode lets hang over.
    room = [(b, d * k + s) for b, d, k, s in zip(begin, dilations, kernel, strides, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *room], constant_values=-np.inf)
    corners = [o * s for o, s in zip(np.ogrid[*map(slice, y.shape[2:])], strides, strict=True)]
    best = np.full_like(y, -np.inf)
    winner = np.zeros(y.shape, np.int64)
    for cell in np.ndindex(*kernel):
        places = [c + i * d for c, i, d in zip(corners, cell, dilations, strict=True)]
        value = padded[:, :, *places]
        leads = value > best
        np.copyto(best, value, where=leads)
        flat = np.zeros(y.shape[2:], np.int64)
        for size, place, padding in zip(x.shape[2:], places, begin, strict=True):
            flat = flat * size + place - padding
        np.copyto(winner, flat, where=leads)
    np.testing.assert_array_equal(best, y)
    return winner


def same(a: Sequence[Integers], b: Sequence[Integers]) -> bool:
    """Are these the same winners?"""
    return all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))


def distance(out: Floats, wanted: Tensor, least: Tensor | float = 0.0) -> float:
    """The largest ‖out - ref‖ / ‖ref‖ of the maps `[C, ...]` in `out` `[N, k, C, ...]`.

    A reference whose norm is below `least` counts as that large.
    """
    reference = wanted.flatten(1)
    off = torch.from_numpy(out).double().reshape(reference.shape) - reference
    size = torch.maximum(reference.norm(dim=1), torch.as_tensor(least, dtype=torch.float64))
    return float((off.norm(dim=1) / size).max())


def outputs(model: onnx.ModelProto, feeds: dict[str, NDArray[np.generic]]) -> Floats:
    """The model's first output, every node run as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    run_options = onnxruntime.RunOptions()
    run_options.only_execute_path_to_fetches = True
    return session.run([model.graph.output[0].name], feeds, run_options)[0]


def report(line: str) -> None:
    """Say it in the captured output of the test, where `pytest -rP` shows it."""
    sys.stdout.write(f"{line}\n")


def too_far(subject: Subject, exporter: str, method: str, rules: str) -> dict[str, float]:
    """The maps that are farther from the reference than they may be, and how far that is."""
    out = subject.run(exporter, method, rules)
    reference = subject.reference(method, rules, out.winners)
    if method == "lrp":
        wanted = {"relevance": (reference.concept, R_AGREES)}
    else:
        wanted = {
            "relevance": (reference.relevance, subject.case.contrast_agrees),
            "relevance_concept": (reference.concept, R_AGREES),
            "relevance_dual": (reference.dual, R_AGREES),
        }
    least = subject.case.contrast_least * reference.concept.flatten(1).norm(dim=1)
    off = {name: distance(out.maps[name], tensor, least) for name, (tensor, _) in wanted.items()}
    report(", ".join(f"{name} {value:.1e}" for name, value in off.items()))
    return {name: value for name, value in off.items() if not value <= wanted[name][1]}


def open_part(subject: Subject, exporter: str, rules: str) -> float:
    """What LRP neither hands on to the input nor absorbs, over the logit; the largest of all."""
    out = subject.run(exporter, "lrp", rules)
    reference = subject.reference("lrp", rules, out.winners)
    maps = out.maps["relevance"]
    arrived = maps.reshape(-1, *maps.shape[2:]).astype(np.float64)
    total = arrived.reshape(len(arrived), -1).sum(1) + reference.absorbed.numpy()
    off = float(np.abs(total / reference.seed.numpy() - 1).max())
    report(f"open by {off:.1e}")
    return off


def change_of_logits(subject: Subject, exporter: str, method: str) -> float:
    """How far the explainer's logits are from the model's, over the largest of them."""
    session = open_session(subject.model(exporter), "cpu").session
    (before,) = session.run(None, {"x": subject.pictures})
    after = subject.run(exporter, method, "default").logits
    return float(np.abs(after - before).max() / np.abs(before).max())


def ledger(subject: Subject, exporter: str) -> list[Entry]:
    """The ledger of LRP, without the float64 runs of `check`."""
    options: Options = {"input_range": subject.case.bounds}
    run = Comparison(subject.model(exporter), "cpu", subject.pictures[:1], {}, options)
    account = run.keep_books()
    return account.books.entries(account.sums, account.sums["logit"])


def widest(entries: Sequence[Entry]) -> float:
    """By how much the ledger of a node is open, that of the worst."""
    worst = max(entries, key=lambda entry: abs(entry.leaks))
    report(f"{worst.node} ({worst.operator}) is open by {worst.leaks:.1e}")
    return abs(worst.leaks)
