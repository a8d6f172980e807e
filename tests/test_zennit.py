"""LRP by the rule sets and the rules that zennit has too, against zennit in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")
pytest.importorskip("zennit", reason="the maps are compared with zennit's")

from methods_support import (
    CLASSES,
    SMALL,
    Case,
    Run,
    Subject,
    Sum,
    distance,
    distances,
    of_builder,
    of_torchvision,
    with_small_head,
)
from networks_support import report
from reference.networks import BOUNDS
from torch import Tensor, nn
from torch.nn import functional
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    LayerMapComposite,
    layer_map_base,
)
from zennit.layer import Sum as Total
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Linear

from onnx_clrp.testing import redistribute

AGREES = 1e-5

AS_ZENNIT = 10
"""Where signed denominators, as logits are, come close to 0, rounding alone makes errors of 1e-4 to
1e-2: then so many times the usual error of zennit in float32."""

LOW, HIGH = (torch.from_numpy(bound).double().view(1, 3, 1, 1) for bound in BOUNDS)

Canonizer = Callable[[], Any]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch from waiting for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- zennit ------------------------------------------------------------------------------------


def everywhere(rule: Any, *first: tuple[type[nn.Module], Any]) -> Callable[[list[Any]], Any]:
    """The composite of a rule for every linear map, but for the first ones."""

    def made(canonizers: list[Any]) -> Any:
        layers = [*first, *layer_map_base(), (Linear, rule)]
        return LayerMapComposite(layers, canonizers=canonizers)

    return made


def box(canonizers: list[Any]) -> Any:
    """Epsilon, gamma, and the bounds of pictures."""
    return EpsilonGammaBox(LOW, HIGH, canonizers=canonizers)


RULE_SETS: Mapping[str, Callable[[list[Any]], Any]] = {
    "epsilon": everywhere(Epsilon()),
    "epsilon_plus": lambda canonizers: EpsilonPlus(canonizers=canonizers),
    "epsilon_gamma_box": box,
    "alpha2_beta1": everywhere(AlphaBeta(2, 1)),
    "epsilon_alpha2_beta1": lambda canonizers: EpsilonAlpha2Beta1(canonizers=canonizers),
}

EXACT = {"stabilizer": 1e-30, "zero_params": "bias"}
"""The package's own z-plus and z-beta have neither stabiliser nor bias."""

RULES: Mapping[str, Callable[[list[Any]], Any]] = {
    "epsilon(0.1)": everywhere(Epsilon(0.1)),
    "gamma(0.25)": everywhere(Gamma(0.25)),
    "gamma(2)": everywhere(Gamma(2)),
    "alpha_beta(2,1)": everywhere(AlphaBeta(2, 1)),
    "alpha_beta(1.5,0.5)": everywhere(AlphaBeta(1.5, 0.5)),
    "alpha_beta(1,0)": everywhere(ZPlus()),
    "zplus": everywhere(ZPlus(**EXACT)),
    "wsquare": everywhere(WSquare()),
    "flat": everywhere(Flat()),
}


class Chosen(nn.Module):
    """A max pool whose winners are known."""

    def __init__(self, winners: np.ndarray) -> None:
        super().__init__()
        self.winners = torch.from_numpy(winners)

    def forward(self, x: Tensor) -> Tensor:
        """Take the winners' values."""
        taken = x.flatten(2).gather(2, self.winners.flatten(2))
        return taken.view(self.winners.shape)


def choose(net: nn.Module, winners: Iterator[np.ndarray]) -> None:
    """Put those in the place of max pools, in order of execution."""
    for name, child in net.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(net, name, Chosen(next(winners)))
        else:
            choose(child, winners)


def with_totals() -> Any:
    """Lets zennit see the sums of the small networks, and merges their batch norms."""

    def forward(module: Any, x: Tensor) -> Tensor:
        total: Tensor = module.total(torch.stack([x, module.layers(x)], dim=-1))
        return total

    def attributes(_name: str, module: nn.Module) -> dict[str, Any] | None:
        if not isinstance(module, Sum):
            return None
        return {"forward": forward.__get__(module), "total": Total()}

    return CompositeCanonizer([SequentialMergeBatchNorm(), AttributeCanonizer(attributes)])


def explain(
    subject: Subject, out: Run, composite: Any, method: str, dtype: Any = torch.float64
) -> Tensor:
    """Zennit's signed map `[N k, C, ...]`, with the winners that the package had."""
    net: Any = copy.deepcopy(subject.net).to(dtype)
    choose(net, iter(out.choices.winners))
    x = torch.from_numpy(np.repeat(subject.pictures, subject.case.targets, axis=0)).to(dtype)
    x.requires_grad_()
    with composite.context(net) as hooked:
        for module in hooked.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eps = 0  # Merged, it would still divide by sqrt(1 + eps).
        scores = hooked(x)
        logits = scores.detach()
        chosen = functional.one_hot(torch.from_numpy(subject.targets.reshape(-1)), logits.shape[1])
        seed = chosen * logits
        relevance: Tensor = torch.autograd.grad(scores, x, seed, retain_graph=True)[0]
        if method == "lrp":
            return relevance
        dual_seed = (1 - chosen) * seed.sum(1, keepdim=True) / (logits.shape[1] - 1)
        dual: Tensor = torch.autograd.grad(scores, x, dual_seed)[0]
    return relevance - dual


def agrees(subject: Subject, exporter: str, canonizer: Canonizer, method: str, rules: str) -> bool:
    """Is the package's map as near to zennit's in float64 as can be asked of float32?"""
    out = subject.explained(exporter, method=method, rules=rules)
    composite = RULE_SETS[rules]
    wanted = explain(subject, out, composite([canonizer()]), method)
    off = distances(out.relevance, wanted)
    report(f"{subject.case.name} {rules} {method}: {float(off.max()):.1e}")
    if float(off.max()) <= AGREES:
        return True
    narrow = explain(subject, out, composite([canonizer()]), method, torch.float32)
    mean, rounding = geometric_mean(off), geometric_mean(distances(narrow.numpy(), wanted))
    report(
        f"{subject.case.name} {rules} {method}: mean {mean:.1e}, float32 zennit's {rounding:.1e}"
    )
    return mean <= AS_ZENNIT * rounding


def geometric_mean(values: Tensor) -> float:
    """What is usual among values of many magnitudes."""
    return float(values.log().mean().exp())


# -- whole networks ----------------------------------------------------------------------------


NETWORKS: Mapping[str, tuple[Case, Canonizer]] = {
    "vgg16_bn": (with_small_head("vgg16_bn"), VGGCanonizer),
    "resnet50": (of_torchvision("resnet50", 64, "layer4_2_relu_2", samples=4), ResNetCanonizer),
}


SAMPLES = {"vgg16_bn": 1, "resnet50": 4}
"""One in a few of ResNet-50 has a denominator so near to 0 that it alone makes the error."""


@cache
def network(name: str) -> Subject:
    """A sample or a few, and the top class of each."""
    case, samples = NETWORKS[name][0], SAMPLES[name]
    return Subject(replace(case, show=lambda: case.show()[:samples], targets=1))


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_rule_set_is_zennits(name: str, rules: str) -> None:
    assert agrees(network(name), "torchscript", NETWORKS[name][1], "lrp", rules)


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["epsilon_plus", "alpha2_beta1"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_contrast_is_that_of_two_maps_of_zennit(name: str, rules: str) -> None:
    assert agrees(network(name), "torchscript", NETWORKS[name][1], "clrp1", rules)


# -- small networks ----------------------------------------------------------------------------


@cache
def small_one(name: str) -> Subject:
    """A small network of `methods_support`."""
    return Subject(next(case for case in SMALL if case.name == name))


@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize("method", ["lrp", "clrp1"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["plain", "residual", "convolutional"])
def test_a_rule_set_is_zennits_on_small_networks(
    name: str, exporter: str, method: str, rules: str
) -> None:
    assert agrees(small_one(name), exporter, with_totals, method, rules)


def of_both_signs() -> nn.Module:
    """Layers of all kinds whose inputs have both signs, as do the scales behind them."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(12), nn.Tanh()),
        *(nn.MaxPool2d(3, 2), nn.ConvTranspose2d(12, 6, 3, stride=2), nn.BatchNorm2d(6)),
        *(nn.ELU(), nn.Conv2d(6, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()),
        *(nn.Linear(676, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.3), nn.Linear(16, CLASSES)),
    )


def as_it_is(subject: Subject) -> onnx.ModelProto:
    """The network exported with its batch norms, which the exporter else folds away."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            subject.net,
            (torch.from_numpy(subject.pictures),),
            path,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE,
        )
        return onnx.load(path)


@cache
def signed() -> Subject:
    """A small network of values of both signs, exported in two ways."""
    subject = Subject(of_builder(of_both_signs))
    subject.models["as it is"] = as_it_is(subject)
    operators = [node.op_type for node in subject.models["as it is"].graph.node]
    assert operators.count("BatchNormalization") == 4
    return subject


@pytest.mark.parametrize("rules", ["default", "epsilon"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("exporter", ["torchscript", "as it is"])
def test_a_rule_for_every_layer_is_zennits(exporter: str, rule: str, rules: str) -> None:
    options = {"method": "lrp", "rules": rules, "rules_for": {"*": rule}}
    out = signed().explained(exporter, **options)
    wanted = explain(signed(), out, RULES[rule]([SequentialMergeBatchNorm()]), "lrp")
    off = distance(out.relevance, wanted)
    report(f"{rule} {exporter} {rules}: {off:.1e}")
    assert off <= AGREES


def test_rules_for_some_layers_are_zennits() -> None:
    options = {"rules": "epsilon", "rules_for": ["*=gamma(0.5)", "#1=zbeta", "gemm=epsilon(0.1)"]}
    out = signed().explained("torchscript", method="lrp", **options)
    composite = EpsilonGammaBox(
        LOW, HIGH, epsilon=0.1, gamma=0.5, canonizers=[SequentialMergeBatchNorm()]
    )
    wanted = explain(signed(), out, composite, "lrp")
    assert distance(out.relevance, wanted) <= AGREES


# -- means behind a Pad ------------------------------------------------------------------------


MEANS: Mapping[str, tuple[list[int], dict[str, Any]]] = {
    "within a window": ([1, 1, 1, 1], {"kernel_size": 3}),
    "a window wide": ([2, 0, 1, 0], {"kernel_size": 2, "stride": 2}),
    "wider than a window": ([3, 3, 3, 3], {"kernel_size": 2}),
    "with padding": ([1, 1, 1, 1], {"kernel_size": 3, "padding": 1}),
    "with padding left out": (
        [1, 1, 1, 1],
        {"kernel_size": 3, "padding": 1, "count_include_pad": False},
    ),
    "hanging over": ([1, 1, 1, 1], {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    "hanging over padding": (
        [1, 0, 0, 1],
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    ),
}


@pytest.mark.parametrize("sizes", ["1,2,5,5", "N,2,H,W"])
@pytest.mark.parametrize("mean", MEANS)
def test_a_mean_behind_a_pad_is_zennits(mean: str, sizes: str) -> None:
    """Of numbers as small as the stabiliser, beside which it matters how many are counted."""
    around, options = MEANS[mean]
    pool = nn.AvgPool2d(**options)
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1e-6, (1, 2, 5, 5)).astype(np.float32)
    exact = torch.from_numpy(x).double().requires_grad_()
    with everywhere(Epsilon())([]).context(nn.Sequential(nn.ZeroPad2d(around), pool)) as hooked:
        y = hooked(exact)
        r = rng.normal(size=y.shape).astype(np.float32)
        (wanted,) = torch.autograd.grad(y, exact, torch.from_numpy(r).double())
    left, right, above, below = around
    kernel, stride = options["kernel_size"], options.get("stride", options["kernel_size"])
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 19]>
        g (float[{sizes}] x) => (float[a,b,c,d] y)
        <int64[8] w = {{0, 0, {above}, {left}, 0, 0, {below}, {right}}}> {{ p = Pad(x, w)
        y = AveragePool<kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}],
            pads = {[options.get("padding", 0)] * 4},
            ceil_mode = {int(options.get("ceil_mode", False))},
            count_include_pad = {int(options.get("count_include_pad", True))}>(p) }}""")
    found = redistribute(model, {"x": x}, {"y": r[None]}, rules="epsilon")["x"]
    assert distance(found[0], wanted) <= AGREES
