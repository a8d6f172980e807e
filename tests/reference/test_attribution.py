"""The attributions judged by what they do not contain: plain autograd, hooks, zennit, loops."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zennit.composites import COMPOSITES, LayerMapComposite
from zennit.rules import ReLUDeconvNet, ReLUGuidedBackprop
from zennit.torchvision import VGGCanonizer

from . import network, networks
from .attribution import METHODS, Asked, Question, attribute, seeds
from .attribution_gradient import Choices
from .attribution_rules import split_max_pool
from .network_linear import Mode
from .network_support import SIZE, drawn, relative, shared, unrolled
from .networks import BOUNDS

EXACT = 1e-10


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch from waiting for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(n: int = 2, size: int = SIZE) -> np.ndarray:
    return networks.photographs(n, size, seed=5)


def asked(net: nn.Module, x: Any, *target: int, **options: Any) -> Asked:
    return Asked(net, x, target, **options)


def small() -> Any:
    """A small network with one of every kind of layer."""
    return drawn(
        nn.Sequential(
            *(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
            *(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, 1)),
            *(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5)),
        ),
        size=16,
    )


def double(net: nn.Module) -> Any:
    """The network in float64."""
    return copy.deepcopy(net).double()


# ---- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "densenet121"]
)
def test_the_gradient_is_that_of_autograd(name: str) -> None:
    net = networks.make(name)
    x = torch.from_numpy(pictures()).double().requires_grad_()
    scores = double(net)(x)
    (wanted,) = torch.autograd.grad(scores[0, 3] + scores[1, 7], x)
    question = asked(net, x.detach(), 3, 7)
    assert relative(attribute(question, METHODS["gradient"]), wanted) <= EXACT
    assert relative(attribute(question, METHODS["gradient_x_input"]), wanted * x.detach()) <= EXACT


@pytest.mark.parametrize(
    ("method", "rule"), [("deconvnet", ReLUDeconvNet), ("guided_backprop", ReLUGuidedBackprop)]
)
@pytest.mark.parametrize("net", [small(), networks.make("resnet18")], ids=["small", "resnet18"])
def test_other_rectifiers_are_those_of_zennit(net: nn.Module, method: str, rule: Any) -> None:
    size = 16 if isinstance(net, nn.Sequential) else SIZE
    x = torch.from_numpy(pictures(size=size)).double().requires_grad_()
    composite = LayerMapComposite([(nn.ReLU, rule())])
    with composite.context(double(net)) as hooked:
        scores = hooked(x)
        (wanted,) = torch.autograd.grad(scores[0, 3] + scores[1, 2], x)
    assert relative(attribute(asked(net, x.detach(), 3, 2), METHODS[method]), wanted) <= EXACT


def test_a_relu6_is_shut_above_its_top() -> None:
    net: Any = nn.Sequential(nn.Flatten(), nn.ReLU6(), nn.Linear(4, 1))
    net[2].weight.data[:] = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    x = torch.tensor([[[[-1.0, 2.0, 3.0, 7.0]]]])

    def found(method: str) -> list[float]:
        return attribute(asked(net, x, 0), METHODS[method]).flatten().tolist()

    assert found("gradient") == [0, -1, 1, 0]
    assert found("guided_backprop") == [0, 0, 1, 0]
    assert found("deconvnet") == [1, 0, 1, 1]


def test_choices_are_taken_over() -> None:
    net: Any = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1))
    net[3].weight.data[:] = 1
    x = torch.tensor([[[[1.0, 2.0], [-1e-9, 2.0]]]])
    opened = np.array([[[[True, True], [True, True]]]])
    for winner in range(4):
        choices = Choices([np.full((1, 1, 1, 1), winner)], [opened])
        found = attribute(asked(net, x, 0, choices=choices), METHODS["gradient"])
        assert found.flatten().tolist() == [float(i == winner) for i in range(4)]


# ---- excitation backprop -------------------------------------------------------------------


def test_excitation_backprop_is_what_loops_say() -> None:
    conv, norm, last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(16, 3)
    net = drawn(nn.Sequential(conv, norm, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), last), size=8)
    norm.weight[:2].neg_()
    x = pictures(1, 8)
    exact = double(net)
    hidden = exact[2](exact[1](exact[0](torch.from_numpy(x).double())))
    pooled = exact[3](hidden).flatten()
    p = shared(exact[5].weight.numpy(), pooled.numpy(), np.array([0.0, 1.0, 0.0]))
    spread = np.zeros_like(hidden.numpy())
    for c, i, j in np.ndindex(4, 8, 8):
        window = hidden[0, c, i // 4 * 4 : i // 4 * 4 + 4, j // 4 * 4 : j // 4 * 4 + 4]
        if window.sum() > 0:
            spread[0, c, i, j] = p[c * 4 + i // 4 * 2 + j // 4] * hidden[0, c, i, j] / window.sum()
    signs = exact[1].weight.sign().repeat_interleave(64).numpy()
    matrix = unrolled(conv, (3, 8, 8)) * signs[:, None]
    wanted = np.zeros(x.size)
    for row, arriving in zip(matrix.clip(min=0), spread.ravel(), strict=True):
        parts = row * x.ravel().clip(min=0)
        total = math.fsum(parts)
        wanted += arriving * parts / total if total else 0
    found = attribute(asked(net, x, 1), METHODS["excitation_backprop"])
    assert relative(found.flatten(), torch.from_numpy(wanted)) <= EXACT


def test_excitation_backprop_is_that_of_zennit() -> None:
    net = small()
    x = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(0)).double().requires_grad_()
    composite = COMPOSITES["excitation_backprop"](
        stabilizer=1e-30, zero_params="bias", canonizers=[VGGCanonizer()]
    )
    with composite.context(double(net)) as hooked:
        hooked[1].eps = 0  # Merged, the batch norm would still divide by sqrt(1 + eps).
        scores = hooked(x)
        (wanted,) = torch.autograd.grad(scores, x, at(3, 2))
    found = attribute(asked(net, x.detach(), 3, 2), METHODS["excitation_backprop"])
    assert relative(found, wanted) <= EXACT


def at(*classes: int, of: int = 5) -> Tensor:
    """1 at a class of each sample."""
    return functional.one_hot(torch.tensor(classes), of).double()


class Residual(nn.Module):
    """Features and a linear map of them, added without a ReLU behind the map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Add, and classify."""
        f = torch.relu(self.first(x))
        y: Tensor = self.last(torch.relu(f + self.inner(f)))
        return y


def test_a_sum_excites_by_its_positive_parts() -> None:
    net = drawn_dense(Residual())
    x = torch.randn(1, 6, generator=torch.manual_seed(1)).double()
    exact = double(net)
    f = exact.first(x).relu()
    g = exact.inner(f)
    assert bool(((g < 0) & (f + g > 0)).any())
    assert bool((f + g < 0).any())
    y = (f + g).relu()

    def excited(layer: nn.Linear, values: Tensor, p: np.ndarray) -> np.ndarray:
        return shared(layer.weight.numpy().clip(min=0), values.clamp(min=0).numpy(), p)

    p = excited(exact.last, y, at(2, of=6).numpy()[0])
    total = (f + g.clamp(min=0)).numpy()[0]
    share = np.divide(p, total, out=np.zeros(6), where=total > 0)
    p = share * f.numpy()[0] + excited(exact.inner, f, share * g.clamp(min=0).numpy()[0])
    wanted = torch.from_numpy(excited(exact.first, x, p))
    found = attribute(asked(net, x, 2), METHODS["excitation_backprop"])
    assert relative(found[0], wanted) <= EXACT


def drawn_dense(net: nn.Module) -> nn.Module:
    """The network with seeded weights and biases."""
    generator = torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return net.eval().requires_grad_(False)


def test_contrastive_excitation_backprop_contrasts_two_probabilities() -> None:
    net = small()
    x = pictures(1, 16)
    last = net[-1]
    concept = attribute(asked(net[:-1], x, 0), Question("excitation_backprop"))
    assert concept.shape == (1, 3, 16, 16)
    hidden = double(net[:-1])(torch.from_numpy(x).double())[0]
    weight = last.weight[3].double()
    chances = [(w.clamp(min=0) * hidden) for w in (weight, -weight)]
    difference = sum(sign * c / c.sum() for sign, c in zip((1, -1), chances, strict=True))
    # Below the classifier every rule is linear: hidden units' maps add up.
    maps = [attribute(asked(net[:-1], x, j), Question("excitation_backprop")) for j in range(12)]
    wanted = sum(d * m for d, m in zip(difference, maps, strict=True))
    assert relative(attribute(asked(net, x, 3), METHODS["contrastive_eb"]), wanted) <= EXACT


# ---- Grad-CAM ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "node"),
    [
        ("resnet18", "layer4", "layer4_1_relu_1"),
        ("mobilenet_v3_small", "features.12", "features_12_2"),
    ],
)
def test_grad_cam_is_that_of_a_hooked_layer(name: str, layer: str, node: str) -> None:
    net = double(networks.make(name))
    kept: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2]))
    x = torch.from_numpy(pictures()).double().requires_grad_()
    scores = net(x)
    hook.remove()
    (a,) = kept
    (slope,) = torch.autograd.grad(scores[0, 3] + scores[1, 7], a)
    heat = (slope.mean((2, 3))[:, :, None, None] * a).sum(1, keepdim=True).relu()
    heat = functional.interpolate(heat, (SIZE, SIZE), mode="bilinear").detach()
    question = asked(net, x.detach(), 3, 7, cam=node)
    found = attribute(question, METHODS["grad_cam"])
    assert relative(found.sum(1, keepdim=True), heat) <= EXACT
    assert torch.equal(found[:, 0], found[:, 2])
    guided = attribute(question, METHODS["guided_backprop"])
    assert relative(attribute(question, METHODS["guided_grad_cam"]), guided * heat) <= EXACT


# ---- seeds and contrasts ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lrp", "clrp1", "clrp2"])
@pytest.mark.parametrize("rules", network.RULES)
def test_lrp_and_its_contrasts_are_those_of_the_network_reference(method: str, rules: str) -> None:
    net, x = small(), pictures(2, 16)
    question = METHODS[method]
    question = Question(question.method, question.contrast, rules=rules)
    wanted = network.explain(net, x, [3, 2], method=method, bounds=BOUNDS, rules=rules)
    found = attribute(asked(net, x, 3, 2, bounds=BOUNDS), question)
    assert relative(found, wanted.relevance) <= EXACT


def linear_net() -> Any:
    """Logits 1, 2 and -1 of the picture 1."""
    net: Any = nn.Sequential(nn.Flatten(), nn.Linear(1, 3, bias=False))
    net[1].weight.data[:] = torch.tensor([[1.0], [2.0], [-1.0]])
    return net.requires_grad_(False)


@pytest.mark.parametrize(
    ("question", "seed", "dual"),
    [
        (METHODS["lrp"], [0, 2, 0], None),
        (METHODS["gradient"], [0, 1, 0], None),
        (METHODS["clrp1"], [0, 2, 0], [1, 0, 1]),
        (METHODS["clrp2"], [0, 2, 0], [0, 2, 0]),
        (METHODS["clrp1_authors"], [0, 2, 0], [1, 0, 1]),
        (METHODS["contrastive_eb"], [0, 1, 0], [0, 1, 0]),
        (Question("gradient", "complement"), [0, 1, 0], [0.5, 0, 0.5]),
        (Question("gradient", "others"), [0, 1, 0], [1, 0, 1]),
    ],
)
def test_seeds(question: Question, seed: list[float], dual: list[float] | None) -> None:
    found = seeds(asked(linear_net(), torch.ones(1, 1, 1, 1), 1), question)
    assert found[0].tolist() == [seed]
    assert (None if found[1] is None else found[1].flatten().tolist()) == dual


def test_the_seeds_of_sglrp_are_the_gradients_of_the_softmax() -> None:
    question = asked(linear_net(), torch.ones(1, 1, 1, 1), 1)
    logits = question.logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(logits.softmax(1)[0, 1], logits)
    seed, dual = seeds(question, METHODS["sglrp"])
    assert dual is not None
    assert relative(seed - dual, slope) <= EXACT
    assert dual[0, 1] == 0


def test_normalised_maps_both_have_the_sum_one() -> None:
    net, x = small(), pictures(1, 16)
    concept = attribute(asked(net, x, 3), METHODS["guided_backprop"])
    net[-1].weight.neg_()
    dual = attribute(asked(net, x, 3), METHODS["guided_backprop"])
    net[-1].weight.neg_()
    wanted = concept / concept.abs().sum() - dual / dual.abs().sum()
    question = Question("guided_backprop", "negated", "normalised")
    assert relative(attribute(asked(net, x, 3), question), wanted) <= EXACT


def test_ties_of_a_max_pool_share() -> None:
    x = torch.tensor([[[[1.0, 3.0, 0.0], [3.0, 3.0, 2.0], [0.0, 0.0, 0.0]]]])
    net = nn.MaxPool2d(2, 1)
    trace = network.record(net, x, None, None)
    arriving = torch.tensor([[[[3.0, 4.0], [8.0, 6.0]]]], dtype=torch.float64)
    handed = split_max_pool(trace, trace.logits_node, arriving, Mode("default"))
    # 3 to three; 4 to two; 8 to two; 6 to one.
    assert handed.shares[0][1].tolist() == [[[[0, 1 + 2, 0], [1 + 4, 1 + 2 + 4 + 6, 0], [0, 0, 0]]]]


def test_padding_takes_no_part_in_ties() -> None:
    trace = network.record(nn.MaxPool2d(3, 2, 1), -torch.ones(1, 1, 4, 4), None, None)
    arriving = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    handed = split_max_pool(trace, trace.logits_node, arriving, Mode("default"))
    assert relative(handed.shares[0][1].sum(), torch.tensor(4.0)) <= EXACT
    assert float(handed.shares[0][1][0, 0, 0, 0]) == 1 / 4


def test_windows_of_a_split_max_pool_may_hang_over() -> None:
    x = torch.tensor([[[[1.0, 2.0, 5.0], [2.0, 0.0, 5.0], [7.0, 7.0, -1.0]]]])
    trace = network.record(nn.MaxPool2d(2, 2, ceil_mode=True), x, None, None)
    arriving = torch.tensor([[[[2.0, 4.0], [6.0, 3.0]]]], dtype=torch.float64)
    handed = split_max_pool(trace, trace.logits_node, arriving, Mode("default"))
    assert handed.shares[0][1].tolist() == [[[[0, 1, 2], [1, 0, 2], [3, 3, 3]]]]
