"""Networks from both of PyTorch's exporters, against the float64 reference on the modules."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

import onnx_clrp
from onnx_clrp.sessions import open_session

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from reference.network import Reference, count_differences, explain
from reference.networks import BOUNDS, NAMES, initialise, make, photographs
from torch import Tensor, nn

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

EXPORTERS = ("dynamo", "torchscript")
METHODS = ("lrp", "clrp1", "clrp2")
RULES = ("default", "paper")

R_AGREES = 1e-5
CONTRAST_AGREES = 1e-4
VGG_CONTRAST_AGREES = 5e-3
"""Class maps of a VGG are collinear to 1e-4: its contrast has four digits less than R."""

CONSERVES = 1e-4
UNCHANGED = 1e-5
CLASSES = 50
"""Of the small networks: enough for two logits far from zero."""

FEW = 1e-4
"""The share of max-pool windows whose winner float32 may choose otherwise than float64."""


# -- what is explained -------------------------------------------------------------------------


class Joined(nn.Module):
    """Features, and the sum of two maps of them."""

    def __init__(self, left: nn.Module, right: nn.Module, behind: nn.Module) -> None:
        super().__init__()
        self.features = features()
        self.left, self.right, self.behind = left, right, behind

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both maps of the features, and what lies behind it."""
        f = self.features(x)
        return self.behind(self.left(f) + self.right(f))


def features() -> nn.Sequential:
    """`[N, 3, 32, 32]` to non-negative `[N, 8, 16, 16]`."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


def scores(channels: int, side: int) -> nn.Sequential:
    """A fully connected classifier."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, CLASSES))


def two_classifiers() -> nn.Module:
    """The logits are the sum of two classifiers, one of them behind a layer more."""
    further = (nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *scores(6, 14))
    return Joined(scores(8, 16), nn.Sequential(*further), nn.Identity())


def sum_of_both_signs() -> nn.Module:
    """Activations and a linear map of them, added without a ReLU behind."""
    further = (nn.AvgPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(), *scores(6, 6))
    return Joined(nn.Identity(), nn.Conv2d(8, 8, 1), nn.Sequential(*further))


def convolutional_classifier() -> nn.Module:
    """A convolution as classifier, a ReLU and an average pool behind it."""
    end = (nn.Conv2d(8, CLASSES, 3, padding=1), nn.ReLU(), nn.AvgPool2d(16), nn.Flatten())
    return nn.Sequential(features(), *end)


def one_layer() -> nn.Module:
    """A classifier straight on the picture."""
    return scores(3, 32)


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    build.__name__: build
    for build in (two_classifiers, sum_of_both_signs, convolutional_classifier, one_layer)
}


@dataclass(frozen=True)
class Case:
    """A network, what it is shown and asked, and how near its contrast must come."""

    name: str
    size: int
    samples: int = 1
    targets: int = 2
    rules: tuple[str, ...] = ("default",)
    contrast_agrees: float = CONTRAST_AGREES

    def build(self) -> nn.Module:
        """The network with seeded weights."""
        if self.name in NAMES:
            return make(self.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
            net = BUILDERS[self.name]().eval().requires_grad_(False)
        initialise(net, size=self.size)
        return net


SMALL = (
    *(Case(name, 32, samples=3, rules=RULES) for name in BUILDERS),
    Case("alexnet", 224),
    Case("squeezenet1_1", 96, samples=2),
    Case("googlenet", 64, rules=RULES),
    Case("googlenet_transform", 64),
    Case("resnet18", 64, samples=2, rules=RULES),
)
LARGE = (
    Case("resnet50", 96),
    Case("vgg16", 224, targets=1, contrast_agrees=VGG_CONTRAST_AGREES),
    Case("vgg16_bn", 224, targets=1, contrast_agrees=VGG_CONTRAST_AGREES),
)
CASES = [
    *(pytest.param(case, id=case.name) for case in SMALL),
    *(pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in LARGE),
]


@dataclass(frozen=True)
class Run:
    """One float32 run of an explainer.

    Attributes:
        logits: the model's own output.
        maps: relevance `[N, k, 3, H, W]` by the name of its output.
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
        return self.case.build()

    @cached_property
    def pictures(self) -> Floats:
        """The pictures `[N, 3, H, W]`, other ones than BatchNorm's statistics come from."""
        return photographs(self.case.samples, self.case.size, seed=5)

    @cached_property
    def targets(self) -> Integers:
        """The top classes of each picture, `[N, k]`: their logits are far from zero."""
        return self.net(torch.from_numpy(self.pictures)).topk(self.case.targets).indices.numpy()

    def model(self, exporter: str) -> onnx.ModelProto:
        """The network as that exporter writes it."""
        if exporter not in self.models:
            self.models[exporter] = exported(self.net, self.pictures[:1], exporter)
        return self.models[exporter]

    def explainer(self, exporter: str, method: str, rules: str) -> onnx.ModelProto:
        """The network's explainer, with the signed contrast and its parts."""
        return onnx_clrp.convert(
            self.model(exporter),
            method=method,
            rules=rules,
            input_range=BOUNDS,
            signed=True,
            parts=method != "lrp",
        )

    def run(self, exporter: str, method: str, rules: str) -> Run:
        """The maps of the top classes in float32."""
        key = (exporter, method, rules)
        if key not in self.runs:
            self.runs[key] = run(self.explainer(*key), self.pictures, self.targets)
        return self.runs[key]

    def reference(self, method: str, rules: str, winners: list[Integers]) -> Reference:
        """The float64 maps `[N k, 3, H, W]` for these max-pool winners.

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
            bounds=BOUNDS,
            rules=rules,
            winners=[np.repeat(w, self.case.targets, axis=0) for w in winners],
        )


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """One network after the other; what was made for one is gone when the next one comes."""
    return Subject(request.param)


@pytest.fixture(autouse=True, scope="module")
def _two_threads() -> Iterator[None]:
    """Keep torch from waiting for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# -- exporting and running ---------------------------------------------------------------------


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
    file = io.BytesIO()
    torch.onnx.export(net, pair, file, dynamo=False, input_names=["x"], dynamic_axes={"x": names})
    return onnx.load_model_from_string(file.getvalue())


def run(explainer: onnx.ModelProto, pictures: Floats, targets: Integers) -> Run:
    """Run an explainer, with what its forward max pools take and give as further outputs."""
    known = [y.name for y in explainer.graph.output]
    maps = [n for n in known if n.startswith("relevance") and n != "relevance_target"]
    pools = [node for node in explainer.graph.node if node.op_type == "MaxPool"]
    watched = sorted({name for pool in pools for name in (pool.input[0], pool.output[0])})
    explainer.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in watched
        if name not in known
    )
    session, _ = open_session(explainer, "cpu")
    names = [known[0], *maps, *watched]
    values = dict(zip(names, session.run(names, {"x": pictures, "target": targets}), strict=True))
    winners = [first_maxima(pool, values[pool.input[0]], values[pool.output[0]]) for pool in pools]
    return Run(values[known[0]], {name: values[name] for name in maps}, winners)


def first_maxima(pool: onnx.NodeProto, x: Floats, y: Floats) -> Integers:
    """For each window of a two-dimensional max pool the flat index of its first maximum in `x`."""
    known = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
    assert set(known.get("dilations", [1])) == {1}
    kernel, strides = known["kernel_shape"], known.get("strides", [1, 1])
    begin = known.get("pads", [0, 0])[:2]
    # Behind, room for a window that ceil_mode lets hang over.
    room = [(b, k + s) for b, k, s in zip(begin, kernel, strides, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *room], constant_values=-np.inf)
    row, column = np.ogrid[: y.shape[2], : y.shape[3]]
    row, column = row * strides[0], column * strides[1]
    best = np.full_like(y, -np.inf)
    winner = np.zeros(y.shape, np.int64)
    for i, j in np.ndindex(*kernel):
        value = padded[:, :, row + i, column + j]
        leads = value > best
        np.copyto(best, value, where=leads)
        flat = (row + i - begin[0]) * x.shape[3] + column + j - begin[1]
        np.copyto(winner, flat, where=leads)
    np.testing.assert_array_equal(best, y)
    return winner


def same(a: Sequence[Integers], b: Sequence[Integers]) -> bool:
    """Are these the same winners?"""
    return all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))


def distance(out: Floats, wanted: Tensor) -> float:
    """The largest ‖out - ref‖ / ‖ref‖ of the maps `[3, H, W]` in `out` `[N, k, 3, H, W]`."""
    reference = wanted.numpy()
    off = (out.reshape(reference.shape) - reference).reshape(len(reference), -1)
    size = np.linalg.norm(reference.reshape(len(reference), -1), axis=1)
    return float((np.linalg.norm(off, axis=1) / size).max())


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


def skip_other_rules(case: Case, rules: str) -> None:
    """Only some networks are judged by both rule sets."""
    if rules not in case.rules:
        pytest.skip(f"{case.name} is judged by the rule set {' and '.join(case.rules)} alone")


# -- the promises ------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_maps_agree_with_float64(subject: Subject, exporter: str, method: str, rules: str) -> None:
    skip_other_rules(subject.case, rules)
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
    off = {name: distance(out.maps[name], tensor) for name, (tensor, _) in wanted.items()}
    report(", ".join(f"{name} {value:.1e}" for name, value in off.items()))
    assert {name for name, value in off.items() if value > wanted[name][1]} == set()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_lrp_hands_on_or_absorbs_the_whole_logit(
    subject: Subject, exporter: str, rules: str
) -> None:
    skip_other_rules(subject.case, rules)
    out = subject.run(exporter, "lrp", rules)
    reference = subject.reference("lrp", rules, out.winners)
    arrived = out.maps["relevance"].sum(axis=(2, 3, 4), dtype=np.float64).reshape(-1)
    open_part = (arrived + reference.absorbed.numpy()) / reference.seed.numpy() - 1
    report(f"open by {np.abs(open_part).max():.1e}")
    assert np.abs(open_part).max() <= CONSERVES


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_float32_chooses_nearly_the_same_winners(subject: Subject, exporter: str) -> None:
    winners = subject.run(exporter, "lrp", "default").winners
    if not winners:
        pytest.skip("the network has no max pool")
    different, windows = count_differences(subject.net, subject.pictures, winners)
    report(f"{different} of {windows} windows have another winner in float64")
    assert different <= FEW * windows


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_method_sees_the_same_winners(subject: Subject, exporter: str) -> None:
    first, *others = (subject.run(exporter, method, "default").winners for method in METHODS)
    assert all(same(first, winners) for winners in others)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_logits_are_bit_equal_where_nothing_is_optimised(
    subject: Subject, exporter: str
) -> None:
    feeds = {"x": subject.pictures}
    before = outputs(subject.model(exporter), feeds)
    explainer = subject.explainer(exporter, "clrp2", "default")
    after = outputs(explainer, {**feeds, "target": subject.targets})
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_logits_are_unchanged_by_optimisation(subject: Subject, exporter: str) -> None:
    session, _ = open_session(subject.model(exporter), "cpu")
    (before,) = session.run(None, {"x": subject.pictures})
    after = subject.run(exporter, "clrp2", "default").logits
    assert np.abs(after - before).max() <= UNCHANGED * np.abs(before).max()


# -- sizes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_net() -> nn.Module:
    """A network that takes pictures of any size."""
    body = (nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU())
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))
    net = nn.Sequential(features(), *body, *end).eval().requires_grad_(False)
    initialise(net, size=32)
    return net


@pytest.mark.parametrize("size", [33, 64])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_export_with_open_sizes_explains_what_a_fixed_one_does(
    open_net: nn.Module, exporter: str, size: int
) -> None:
    pictures = photographs(2, size, seed=5)[:, :, :, : size - 7]
    sizes = {0: "batch", 2: "height", 3: "width"}
    opened = exported(open_net, photographs(1, 40, seed=5)[:, :, :, :36], exporter, sizes)
    fixed = exported(open_net, pictures[:1], exporter)
    targets = np.array([[0, 1], [2, 3]])
    one, other = (
        run(onnx_clrp.convert(model, signed=True), pictures, targets) for model in (opened, fixed)
    )
    wanted = torch.from_numpy(other.maps["relevance"]).flatten(0, 1)
    assert distance(one.maps["relevance"], wanted) <= CONTRAST_AGREES
