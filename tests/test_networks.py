"""Networks from both of PyTorch's exporters, against the float64 reference on the modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import onnx_clrp

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from networks_support import (
    CONSERVES,
    CONTRAST_AGREES,
    EXPORTERS,
    METHODS,
    RULES,
    UNCHANGED,
    Case,
    Subject,
    change_of_logits,
    distance,
    exported,
    open_part,
    outputs,
    report,
    run,
    same,
    too_far,
)
from reference.network import count_differences
from reference.networks import NAMES, initialise, make, photographs
from torch import Tensor, nn

VGG_CONTRAST_AGREES = 5e-3
"""Class maps of a VGG are collinear to 1e-4: its contrast has four digits less than R."""

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


def built(name: str, size: int) -> nn.Module:
    """The network with seeded weights."""
    if name in NAMES:
        return make(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
        net = BUILDERS[name]().eval().requires_grad_(False)
    initialise(net, size=size)
    return net


def case(name: str, size: int, samples: int = 1, **options: Any) -> Case:
    """A network and pictures, other ones than BatchNorm's statistics come from."""
    return Case(
        name,
        make=lambda: built(name, size),
        show=lambda: photographs(samples, size, seed=5),
        **options,
    )


SMALL = (
    *(case(name, 32, samples=3, rules=RULES) for name in BUILDERS),
    case("alexnet", 224),
    case("squeezenet1_1", 96, samples=2),
    case("googlenet", 64, rules=RULES),
    case("googlenet_transform", 64),
    case("resnet18", 64, samples=2, rules=RULES),
)
LARGE = (
    case("resnet50", 96),
    case("vgg16", 224, targets=1, contrast_agrees=VGG_CONTRAST_AGREES),
    case("vgg16_bn", 224, targets=1, contrast_agrees=VGG_CONTRAST_AGREES),
)
CASES = [
    *(pytest.param(c, id=c.name) for c in SMALL),
    *(pytest.param(c, id=c.name, marks=pytest.mark.slow) for c in LARGE),
]


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
    assert too_far(subject, exporter, method, rules) == {}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_lrp_hands_on_or_absorbs_the_whole_logit(
    subject: Subject, exporter: str, rules: str
) -> None:
    skip_other_rules(subject.case, rules)
    assert open_part(subject, exporter, rules) <= CONSERVES


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
    assert change_of_logits(subject, exporter, "clrp2") <= UNCHANGED


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
