"""Every method beside LRP and CLRP, against the float64 reference on PyTorch's modules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from methods_support import (
    CLASSES,
    SMALL,
    Case,
    Subject,
    distance,
    of_builder,
    of_torchvision,
    plain,
    with_small_head,
)
from networks_support import EXPORTERS, Floats, report
from PIL import Image
from reference.attribution import METHODS, Asked, Question, attribute
from reference.attribution_gradient import count_differences
from reference.networks import BOUNDS
from scipy.stats import spearmanr
from torch import Tensor, nn

import onnx_clrp
from onnx_clrp import Explainer

AGREES = 1e-5
CONTRAST_AGREES = 1e-4

SMALL_CONTRAST = 1e-2
"""A contrast that is a smaller part of the concept's map is measured against this part of it."""

SUBTRACTED = 3e-6
"""How near a contrast of two finished maps must come, as a part of the concept's map."""

FEW = 1e-4
"""The share of the choices that float32 may make otherwise than float64."""

STABILISED = 1e-3
"""How near a map comes to that without a stabiliser of 1e-6 in every denominator."""

UNLIKE = 0.5
LOOKS_AT_THE_CLASS = ("clrp1", "clrp2", "guided_grad_cam")
"""Methods whose maps may not stay as they are when the classifier is another one."""

GRADIENTS = ("gradient", "gradient_x_input", "deconvnet", "guided_backprop")
SINGLE = (*GRADIENTS, "excitation_backprop", "grad_cam", "guided_grad_cam")
WRAPPED = ("lrp", *GRADIENTS, "excitation_backprop")
CONTRASTS = ("complement", "others", "negated")
DIFFERENCES = {"lrp": "plain", "excitation_backprop": "probabilities"}
"""How the dual is taken away, where that is not after both have been normalised."""

LIMITS = tuple(bound.tolist() for bound in BOUNDS)

DIGITS = Path(__file__).resolve().parents[1] / "exported_models" / "digits.onnx"

QUICK = (
    of_torchvision("resnet18", 64, "layer4_1_relu_1", *EXPORTERS),
    of_torchvision("squeezenet1_1", 64, "cat_7"),
)
SLOW = (
    with_small_head("alexnet"),
    with_small_head("vgg11_bn"),
    of_torchvision("googlenet", 64, "cat_8"),
    of_torchvision("densenet121", 64, "relu"),
    of_torchvision("mobilenet_v2", 64, "features_18_2"),
    of_torchvision("mobilenet_v3_small", 64, "features_12_2"),
    of_torchvision("efficientnet_b0", 64, "features_8_2"),
    of_torchvision("shufflenet_v2_x0_5", 64, "conv5_2"),
    of_torchvision("convnext_tiny", 64, "add_17"),
)
CASES = [
    *(pytest.param(case, id=case.name) for case in (*SMALL, *QUICK)),
    *(pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in SLOW),
]


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """One network after the other; what was made for one is gone when the next one comes."""
    case: Case = request.param
    return known(case.name) if case in (*SMALL, *QUICK) else Subject(case)


@cache
def known(name: str) -> Subject:
    """One of the networks that more than one test looks at."""
    return Subject(next(case for case in (*SMALL, *QUICK) if case.name == name))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch from waiting for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def skip_other_exporters(case: Case, exporter: str) -> None:
    """Only some networks are exported by both."""
    if exporter not in case.exporters:
        pytest.skip(f"{case.name} is exported by {' and '.join(case.exporters)} alone")


class HardSwish(nn.Module):
    """`x relu6(x + 3) / 6`, as exporters and older libraries write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.relu6(x + 3) / 6


def swishing(activation: nn.Module) -> Subject:
    """A network with an activation of that kind, and behind it a ReLU6 that is one."""

    def build() -> nn.Module:
        first, second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3)
        head = nn.Linear(8 * 13 * 13, CLASSES)
        return nn.Sequential(first, activation, second, nn.ReLU6(), nn.Flatten(), head)

    return Subject(of_builder(build))


# -- the methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_map_is_that_of_the_reference(subject: Subject, exporter: str, method: str) -> None:
    skip_other_exporters(subject.case, exporter)
    assert subject.off(exporter, METHODS[method], method=method) <= AGREES


@pytest.mark.parametrize("method", ["gradient", "deconvnet", "guided_backprop"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_hard_swish_written_out_is_no_relu(exporter: str, method: str) -> None:
    written, whole = swishing(HardSwish()), swishing(nn.Hardswish())
    found = written.explained(exporter, method=method).relevance
    asked = Asked(whole.net, np.repeat(whole.pictures, 2, axis=0), whole.targets.reshape(-1))
    assert distance(found, attribute(asked, METHODS[method])) <= AGREES


@pytest.mark.parametrize("method", ["sglrp", "contrastive_eb", "clrp1_authors", "clrp2_authors"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_contrast_is_that_of_the_reference(subject: Subject, exporter: str, method: str) -> None:
    skip_other_exporters(subject.case, exporter)
    if method == "clrp2_authors" and subject.case in SLOW:
        pytest.skip("of the two, large networks are judged by clrp1_authors alone")
    assert contrast_agrees(subject, exporter, METHODS[method], method=method)


def contrast_agrees(subject: Subject, exporter: str, question: Question, **options: Any) -> bool:
    """Does a contrast come as near to the reference as the way in which it is formed allows?"""
    if question.difference == "normalised":
        return subject.off(exporter, question, least=1, **options) <= SUBTRACTED
    return subject.off(exporter, question, least=SMALL_CONTRAST, **options) <= CONTRAST_AGREES


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_float32_chooses_nearly_as_float64_does(subject: Subject, exporter: str) -> None:
    skip_other_exporters(subject.case, exporter)
    asked = subject.ask(subject.explained(exporter, method="gradient").choices)
    assert asked.choices is not None
    different, choices = count_differences(asked.module, asked.x, asked.choices)
    report(f"{subject.case.name}: {different} of {choices} choices are other ones in float64")
    assert different <= FEW * choices


# -- contrasts around any method -----------------------------------------------------------------


@pytest.fixture(scope="module", params=[case.name for case in (*SMALL, *QUICK)])
def quick(request: pytest.FixtureRequest) -> Subject:
    """The networks that are judged by every contrast around every method."""
    return known(request.param)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("method", WRAPPED)
def test_a_method_with_a_contrast_is_the_reference(
    quick: Subject, method: str, contrast: str
) -> None:
    question = Question(method, contrast, DIFFERENCES.get(method, "normalised"))
    assert contrast_agrees(quick, "torchscript", question, method=method, contrast=contrast)


@pytest.mark.parametrize("difference", ["plain", "normalised"])
@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("method", WRAPPED)
def test_the_difference_may_be_chosen(method: str, contrast: str, difference: str) -> None:
    question = Question(method, contrast, difference)
    options: dict[str, Any] = {"method": method, "contrast": contrast, "difference": difference}
    assert contrast_agrees(known("convolutional"), "torchscript", question, **options)


@pytest.mark.parametrize(
    ("name", "method", "contrast"),
    [
        ("clrp1", "lrp", "complement"),
        ("clrp2", "lrp", "negated"),
        ("contrastive_eb", "excitation_backprop", "negated"),
    ],
)
def test_a_contrast_that_has_a_name(name: str, method: str, contrast: str) -> None:
    subject = known("convolutional")
    named = subject.explained("torchscript", method=name)
    spelled = subject.explained("torchscript", method=method, contrast=contrast)
    np.testing.assert_array_equal(named.relevance, spelled.relevance)


@pytest.mark.parametrize(
    "options",
    [
        *({"method": m} for m in ("clrp1", "sglrp", "clrp1_authors", "contrastive_eb")),
        *({"method": m, "contrast": "others"} for m in ("gradient", "excitation_backprop")),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_unsigned_a_contrast_is_its_positive_part(options: Mapping[str, str]) -> None:
    subject = known("plain")
    signed, unsigned = (
        subject.explained("torchscript", **options, signed=signed).relevance
        for signed in (True, False)
    )
    assert signed.min() < 0
    np.testing.assert_array_equal(np.maximum(signed, 0), unsigned)


# -- pools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "chosen"), [("default", "even"), ("paper", "proportional")])
@pytest.mark.parametrize("method", ["lrp", "clrp1", "clrp2"])
def test_average_pools_take_the_rule_that_is_chosen(
    quick: Subject, method: str, given: str, chosen: str
) -> None:
    other = {"even": "paper", "proportional": "default"}[chosen]
    question = replace(METHODS[method], rules=other)
    options: dict[str, Any] = {"method": method, "rules": given, "avg_pool": chosen}
    if question.contrast is None:
        assert quick.off("torchscript", question, **options) <= AGREES
    assert contrast_agrees(quick, "torchscript", question, **options)


def tied() -> nn.Module:
    """A network whose max pools have equal maxima, other than zeros, on a picture of few colours.

    Its weights are eighths and pictures quarters: float32 makes no errors in the features.
    """
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
        *(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(96, CLASSES)),
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randint(-4, 5, parameter.shape, generator=generator) / 8)
    return net.eval().requires_grad_(False)


def few_colours() -> Floats:
    """Pictures of 20x20 pixels in blocks of 5."""
    colours = np.random.default_rng(0).integers(-2, 3, (3, 3, 4, 4)) / 4
    return np.kron(colours, np.ones((5, 5))).astype(np.float32)


TIED = Case("tied", tied, few_colours, bounds=(np.full(3, -0.5), np.full(3, 0.5)))


@pytest.mark.parametrize("rules", ["default", "authors", "paper"])
@pytest.mark.parametrize("method", ["lrp", "clrp1", "clrp2", "clrp1_authors", "clrp2_authors"])
def test_equal_maxima_share_where_that_is_asked_for(method: str, rules: str) -> None:
    subject = Subject(TIED)
    options = {} if rules == "authors" else {"max_pool": "split"}
    question = replace(METHODS[method], split=True)
    out = subject.explained("torchscript", method=method, rules=rules, **options)
    asked = subject.ask(out.choices)
    wanted, first = (attribute(asked, q) for q in (question, replace(question, split=False)))
    assert distance(first.numpy(), wanted) > 0.1
    assert distance(out.relevance, wanted) <= CONTRAST_AGREES


def test_without_being_asked_the_first_of_equal_maxima_takes_all() -> None:
    subject = Subject(TIED)
    assert subject.off("torchscript", METHODS["lrp"], method="lrp") <= AGREES
    options: dict[str, Any] = {"method": "lrp", "rules": "authors", "max_pool": "first"}
    assert subject.off("torchscript", METHODS["lrp"], **options) <= AGREES


# -- Grad-CAM of another layer -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grad_cam", "guided_grad_cam"])
@pytest.mark.parametrize("kind", ["node", "tensor"])
def test_grad_cam_of_a_layer_that_is_named(method: str, kind: str) -> None:
    for case, relu, traced in ((QUICK[0], 12, "layer3_1_relu_1"), (SMALL[0], 0, "_2")):
        subject = Subject(replace(case, cam=traced), known(case.name).models)
        nodes = [n for n in subject.model("torchscript").graph.node if n.op_type == "Relu"]
        layer = nodes[relu].name if kind == "node" else nodes[relu].output[0]
        off = subject.off("torchscript", METHODS[method], method=method, cam_layer=layer)
        assert off <= AGREES


# -- what has to hold whatever the network --------------------------------------------------------


def two_classes() -> nn.Module:
    """The plain network with two classes."""
    net = plain()
    assert isinstance(net, nn.Sequential)
    return nn.Sequential(*net[:-1], nn.Linear(24, 2))


def test_of_two_classes_one_is_the_opposite_of_the_other() -> None:
    subject = Subject(of_builder(two_classes))
    model = subject.model("torchscript")
    made = onnx_clrp.convert(model, method="clrp1", signed=True, input_range=LIMITS)
    result = Explainer(made, device="cpu").explain(subject.pictures, [0, 1])
    by_logit = result.relevance / result.seed[:, :, None, None, None]
    wanted = torch.from_numpy(-by_logit[:, 1:].astype(np.float64))
    assert distance(by_logit[:, :1], wanted.flatten(0, 1)) <= AGREES


def without_biases() -> nn.Module:
    """A network of ReLUs and pools without biases."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(392, 24, bias=False), nn.ReLU(), nn.Linear(24, CLASSES, bias=False)),
    )


@pytest.mark.parametrize(
    ("options", "agrees"),
    [({"rules_for": {"*": "epsilon(0)"}}, AGREES), ({"rules": "epsilon"}, STABILISED)],
    ids=["epsilon(0)", "epsilon"],
)
def test_without_biases_lrp_0_is_gradient_times_input(
    options: Mapping[str, Any], agrees: float
) -> None:
    subject = Subject(of_builder(without_biases))
    question = METHODS["gradient_x_input"]
    assert subject.off("torchscript", question, method="lrp", **options) <= agrees


# -- a map has to change with the classifier (Adebayo et al. 2018) ---------------------------------


def scenes() -> tuple[Floats, list[list[int]]]:
    """The shipped scenes of digits, and which digits are in each."""
    folder = DIGITS.parent / "scenes"
    index = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    grey = np.stack([np.asarray(Image.open(folder / name)) for name in index])
    return (grey[:, None] / 255).astype(np.float32), [
        entry["labels"][:2] for entry in index.values()
    ]


def with_another_classifier(seed: int) -> onnx.ModelProto:
    """The digit model with noise for the weights of its last layer, as large as they were."""
    model = onnx.load(DIGITS)
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    (tensor,) = (t for t in model.graph.initializer if t.name == last.input[1])
    weight = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(seed).normal(0, weight.std(), weight.shape)
    tensor.CopyFrom(numpy_helper.from_array(noise.astype(np.float32), tensor.name))
    return model


@pytest.mark.parametrize("method", ["clrp1", "clrp2", "guided_grad_cam", "lrp", "guided_backprop"])
def test_another_classifier_makes_another_map(method: str) -> None:
    pictures, labels = scenes()

    def maps(model: onnx.ModelProto) -> Floats:
        found = Explainer(model, device="cpu", method=method).explain(pictures, np.array(labels))
        return found.heatmap().reshape(12, -1)

    before = maps(onnx.load(DIGITS))
    pairs = [
        (a, b)
        for seed in range(3)
        for a, b in zip(before, maps(with_another_classifier(seed)), strict=True)
    ]
    # A class activation map without a positive part is zero, and says nothing of the other.
    alike = np.array([spearmanr(a, b).statistic if a.any() and b.any() else 0.0 for a, b in pairs])
    report(f"{method}: rank correlation {alike.mean():.2f}, its magnitude {abs(alike).mean():.2f}")
    if method in LOOKS_AT_THE_CLASS:
        assert alike.mean() < UNLIKE
