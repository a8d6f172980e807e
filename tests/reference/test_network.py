"""The reference judged by what it does not contain: loops, zennit, and networks rewritten."""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.rules import Norm, Pass, ZBox, ZPlus
from zennit.types import Activation, AvgPool, Linear

from . import network, networks
from .network_support import SIZE, Joined, at, drawn, relative, shared, unrolled
from .network_trace import first_maxima
from .networks import BOUNDS

SMALL = tuple(name for name in networks.NAMES if not name.startswith(("alexnet", "vgg")))

made = functools.cache(networks.make)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch from waiting for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def size_of(name: str) -> int:
    """A size that is small for a network."""
    return 80 if name == "inception_v3" else SIZE


def pictures(n: int = 2, size: int = SIZE) -> np.ndarray:
    """Return n pictures, [n, 3, size, size], other than those of the calibration."""
    return networks.photographs(n, size, seed=5)


def vgg(features: nn.Module, *, pool: int = 7) -> nn.Module:
    """Return a VGG of the given features with a small head, so that the tests stay quick."""
    head = (nn.Linear(512 * pool**2, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 10))
    return drawn(nn.Sequential(features, nn.AdaptiveAvgPool2d(pool), nn.Flatten(), *head), size=32)


def add_in_place(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b as residual networks write it."""
    a += b
    return a


# ---- dense loops -------------------------------------------------------------------------


def shared_in_box(matrix: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """z-beta as the paper writes it; x [3, h, w] within BOUNDS, matrix [out, 3 * h * w]."""
    low, high = (np.broadcast_to(b[:, None, None], x.shape).astype(float).ravel() for b in BOUNDS)
    received = np.zeros(x.size)
    for row, arriving in zip(matrix, relevance, strict=True):
        parts = row * x.ravel() - row.clip(min=0) * low - row.clip(max=0) * high
        received += arriving * parts / math.fsum(parts)
    return received


def unpooled(planes: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Give relevance [C, oh, ow] of 3x3 windows at stride 2 to their first maximum."""
    received = np.zeros_like(planes)
    height, width = planes.shape[1:]
    for c, r, s in np.ndindex(*relevance.shape):
        rows, columns = (range(2 * i, min(2 * i + 3, n)) for i, n in ((r, height), (s, width)))
        window = [(c, y, x) for y, x in itertools.product(rows, columns)]
        received[max(window, key=planes.__getitem__)] += relevance[c, r, s]
    return received


def tiny(activation: nn.Module) -> nn.Sequential:
    """Return a network of pictures of 12 x 12 with all that a VGG has."""
    first = (nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), activation)
    second = (nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 5, 3, padding=1))
    return drawn(nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(45, 4)), size=12)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU()])
def test_a_tiny_network_agrees_with_loops_over_unrolled_matrices(activation: nn.Module) -> None:
    net = tiny(activation)
    net[1].weight[0] = -net[1].weight[0].abs()  # At least one scale that turns the sign.
    x = networks.photographs(1, 12, seed=1)
    result = network.explain(net, x, [2], method="lrp", bounds=BOUNDS)

    conv, norm, _, pool, second, _, dense = net = copy.deepcopy(net).double()
    hidden = net[:3](torch.from_numpy(x).double())
    pooled = pool(hidden)
    seed = np.eye(4)[2] * float(result.logits[0, 2])
    relevance = shared(dense.weight.numpy(), second(pooled).numpy(), seed)
    relevance = shared(unrolled(second, (4, 3, 3)), pooled.numpy(), relevance)
    relevance = unpooled(hidden[0].numpy(), relevance.reshape(4, 3, 3)).ravel()
    conv.weight *= (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
    expected = shared_in_box(unrolled(conv, (3, 12, 12)), x[0].astype(float), relevance)
    assert relative(result.relevance.ravel(), torch.from_numpy(expected)) < 1e-11


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"stride": 2, "ceil_mode": True}),
        (3, {"stride": 1, "padding": 1, "ceil_mode": True}),
        ((2, 3), {"stride": (2, 1), "padding": (1, 0)}),
        (2, {"stride": 2, "dilation": 2}),
    ],
)
def test_of_equal_maxima_the_first_wins(kernel: int, options: dict[str, int]) -> None:
    x = torch.randint(-2, 2, (2, 3, 7, 8), generator=torch.Generator().manual_seed(0)).double()
    pool = nn.MaxPool2d(kernel, **options)
    winners = first_maxima(x, pool)
    assert torch.equal(x.flatten(2).gather(2, winners.flatten(2)).view(winners.shape), pool(x))

    # With what comes later made a little smaller there are no equals left.
    falling = x - torch.arange(56.0).view(7, 8) * 1e-6
    _, expected = nn.MaxPool2d(kernel, **options, return_indices=True)(falling)
    assert torch.equal(winners, expected)


@pytest.mark.parametrize("rules", network.RULES)
@pytest.mark.parametrize("options", [{}, {"ceil_mode": True}, {"count_include_pad": False}])
def test_average_pools_share_over_the_real_elements(rules: str, options: dict[str, bool]) -> None:
    pool = nn.AvgPool2d(3, 2, padding=1, **options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (1, 1, 6, 6), generator=generator).double()
    y = pool(x)[0, 0]
    relevance = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    handed = at(pool, x, relevance[None, None], rules)

    expected, absorbed = torch.zeros(6, 6, dtype=torch.float64), 0.0
    for r, s in np.ndindex(*y.shape):
        rows, columns = ([i for i in range(2 * k - 1, 2 * k + 2) if 0 <= i < 6] for k in (r, s))
        window = x[0, 0][rows][:, columns]
        parts = (window * y[r, s].sign()).clamp(min=0) if rules == "default" else window * 0 + 1
        if float(parts.sum()) == 0:
            absorbed += float(relevance[r, s])
            continue
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            expected[row, column] += relevance[r, s] * parts[i, j] / parts.sum()
    assert relative(handed.shares[0][1][0, 0], expected) < 1e-14
    assert float(handed.absorbed) == pytest.approx(absorbed, abs=1e-14)


@pytest.mark.parametrize("join", [torch.add, add_in_place])
def test_sums_share_by_their_sign(join: Callable[..., Tensor]) -> None:
    a = torch.tensor([3.0, 3.0, -3.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    b = torch.tensor([1.0, -1.0, 1.0, -2.0, 0.0, -3.0], dtype=torch.float64)
    join = Joined(nn.Identity(), nn.Flatten(), join)
    trace = network.record(join, a[None], None, None)
    total = next(node for node in trace.nodes if node.op == "call_function")
    trace.values[total.args[1]], trace.values[total] = b[None], (a + b)[None]
    start = {total: torch.full((1, 6), 4.0, dtype=torch.float64)}
    arrived, absorbed = network.carry(trace, [total], start, network.Mode("default"))
    assert arrived[total.args[0]].tolist() == [[3, 4, 4, 0, 0, 1]]
    assert arrived[total.args[1]].tolist() == [[1, 0, 0, 0, 0, 3]]
    assert absorbed.tolist() == [8]


# ---- zennit ------------------------------------------------------------------------------


def zennit_relevance(net: nn.Module, x: np.ndarray, target: int) -> Tensor:
    """z-plus, and z-beta at the first layer, as zennit finds them; [N, 3, H, W]."""
    low, high = (torch.from_numpy(bound).double().view(1, 3, 1, 1) for bound in BOUNDS)
    composite = SpecialFirstLayerMapComposite(
        [
            ((Activation,), Pass()),
            ((AvgPool,), Norm(stabilizer=1e-30)),
            ((Linear,), ZPlus(stabilizer=1e-30, zero_params="bias")),
        ],
        [((Linear,), ZBox(low, high, stabilizer=1e-30, zero_params="bias"))],
    )
    leaf = torch.from_numpy(x).double().requires_grad_()
    # zennit's own way of folding leaves a factor of 1 / sqrt(1 + eps) behind every BatchNorm.
    net = folded(copy.deepcopy(net).double())
    with composite.context(net) as explained:
        logits = explained(leaf)
        seed = torch.zeros_like(logits)
        seed[:, target] = logits[:, target].detach()
        return torch.autograd.grad(logits, leaf, seed)[0]


def folded(net: nn.Module) -> nn.Module:
    """Fold every BatchNorm of a network of nested sequences into the convolution before it."""
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(folded(layer) if isinstance(layer, nn.Sequential) else layer)
    return nn.Sequential(*layers)


def vgg16_features(*, norm: bool, activation: type[nn.Module]) -> nn.Module:
    """Return the features of VGG16 with the given activation."""
    features = models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=norm)
    layers = [activation() if isinstance(layer, nn.ReLU) else layer for layer in features]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("norm", "activation"), [(True, nn.ReLU), (False, nn.ReLU), (True, nn.SiLU)]
)
def test_vgg16_agrees_with_zennit(norm: bool, activation: type[nn.Module]) -> None:
    # Averages of both signs are another matter to zennit; a pool of 1 x 1 changes nothing.
    pool = 7 if activation is nn.ReLU else 1
    net = vgg(vgg16_features(norm=norm, activation=activation), pool=pool)
    x = pictures(2, 32)
    result = network.explain(net, x, [4, 4], method="lrp", bounds=BOUNDS)
    assert relative(result.relevance, zennit_relevance(net, x, 4)) < 1e-8


# ---- what must hold of every network -------------------------------------------------------


@pytest.mark.parametrize("rules", network.RULES)
@pytest.mark.parametrize("name", SMALL)
def test_relevance_is_conserved_and_the_forward_pass_is_the_modules(name: str, rules: str) -> None:
    net, x = made(name), pictures(size=size_of(name))
    result = network.explain(net, x, [7, 301], method="lrp", bounds=BOUNDS, rules=rules)
    total = result.relevance.flatten(1).sum(1) + result.absorbed
    assert float(((total - result.seed) / result.seed).abs().max()) < 1e-9
    expected = copy.deepcopy(net).double()(torch.from_numpy(x).double())
    assert torch.allclose(result.logits, expected, rtol=1e-12, atol=0)
    assert torch.equal(result.seed, result.logits[[0, 1], [7, 301]])


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "clrp2") for name in SMALL), ("squeezenet1_1", "clrp1")]
)
def test_the_contrast_carried_down_is_the_difference_of_both_maps(name: str, method: str) -> None:
    net, x = made(name), pictures(1, size_of(name))
    result = network.explain(net, x, [7], method=method, bounds=BOUNDS)
    plain = network.explain(net, x, [7], method="lrp", bounds=BOUNDS)
    assert torch.equal(result.concept, plain.relevance)
    assert relative(result.relevance, result.concept - result.dual) < 1e-8
    assert torch.equal(result.contrast, result.relevance.clamp(min=0))


@pytest.mark.parametrize("build", [models.SqueezeNet, models.GoogLeNet])
def test_the_dual_of_clrp1_is_the_mean_of_the_other_classes(
    build: Callable[..., nn.Module],
) -> None:
    options = {} if build is models.SqueezeNet else {"aux_logits": False, "init_weights": False}
    net, x = drawn(build(num_classes=5, **options)), pictures(1)
    result = network.explain(net, x, [3], method="clrp1", bounds=BOUNDS)
    expected = torch.zeros_like(result.dual)
    for other in (0, 1, 2, 4):
        single = network.explain(net, x, [other], method="lrp", bounds=BOUNDS)
        expected += single.relevance / single.seed * result.seed / 4
    assert relative(result.dual, expected) < 1e-10


@pytest.mark.parametrize("rules", network.RULES)
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v3_small"])
def test_the_dual_of_clrp2_belongs_to_a_classifier_that_is_negated(name: str, rules: str) -> None:
    net, x = made(name), pictures()
    result = network.explain(net, x, [7, 301], method="clrp2", bounds=BOUNDS, rules=rules)
    negated = copy.deepcopy(net)
    # The last linear map; SqueezeNet has it before its last pool, where the dual goes evenly.
    layer = [m for m in negated.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
    layer.weight.neg_()
    even = "paper" if name == "squeezenet1_1" else rules
    opposite = network.explain(negated, x, [7, 301], method="lrp", bounds=BOUNDS, rules=even)
    expected = opposite.relevance * (result.seed / opposite.seed).view(-1, 1, 1, 1)
    assert relative(result.dual, expected) < 1e-10


def test_the_dual_of_clrp2_is_even_where_the_logit_is_negative_too() -> None:
    head = (nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = drawn(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *head), size=12)
    net[2].bias -= 5
    x = pictures(1, 12)
    result = network.explain(net, x, [1], method="clrp2", bounds=BOUNDS)
    hidden = net.double()[:2](torch.from_numpy(x).double())
    seed = torch.zeros(1, 3, 10, 10, dtype=torch.float64)
    seed[:, 1] = result.seed / 100
    top = at(nn.Sequential(negated(net[2])), hidden, seed).shares[0][1]
    trace = network.record(net, x, BOUNDS, None)
    first = {trace.nodes[2]: top}
    arrived, _ = network.carry(trace, trace.nodes[:3], first, network.Mode("default"))
    assert float(result.seed) < 0
    assert relative(result.dual, arrived[trace.input_node]) < 1e-12


def test_two_branches_that_are_added_are_both_the_classifier_layer() -> None:
    branches = Joined(nn.Linear(96, 3), nn.Linear(96, 3), torch.add)
    net = drawn(nn.Sequential(nn.Conv2d(3, 6, 3, 3), nn.SiLU(), nn.Flatten(), branches), size=12)
    opposite = copy.deepcopy(net)
    for layer in (opposite[3].first, opposite[3].second):
        layer.weight.neg_()
        layer.bias.neg_()  # So that the sum turns its sign, and its shares stay the same.
    x = pictures(1, 12)
    result = network.explain(net, x, [1], method="clrp2", bounds=BOUNDS)
    expected = network.explain(opposite, x, [1], method="lrp", bounds=BOUNDS)
    assert relative(result.dual, -expected.relevance) < 1e-12


def negated(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer with its weights negated."""
    layer = copy.deepcopy(layer)
    layer.weight.neg_()
    return layer


def test_the_transform_of_googlenet_moves_the_bounds_with_the_picture() -> None:
    net, x = copy.deepcopy(made("googlenet_transform")), pictures(1)
    plain = copy.deepcopy(net)
    plain.transform_input = False
    moved = net.double()._transform_input(torch.from_numpy(x).double())
    bounds = [net._transform_input(torch.from_numpy(b).double().view(1, 3, 1, 1)) for b in BOUNDS]
    result = network.explain(net, x, [9], method="clrp2", bounds=BOUNDS)
    bounds = tuple(bound.ravel() for bound in bounds)
    expected = network.explain(plain, moved, [9], method="clrp2", bounds=bounds)
    assert relative(result.relevance, expected.relevance) < 1e-9


def test_without_finite_bounds_the_first_map_takes_z_plus() -> None:
    net = drawn(nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten()), size=5)
    x = pictures(1, 5)
    infinite = (np.full(3, -np.inf), np.full(3, np.inf))
    result = network.explain(net, x, [1], method="lrp", bounds=infinite)
    weight = net[0].weight.double().flatten(1).numpy()
    expected = shared(weight, x.astype(float), np.array([0, float(result.seed)]))
    assert relative(result.relevance.ravel(), torch.from_numpy(expected)) < 1e-12


# ---- winners, refusals ---------------------------------------------------------------------


def test_given_winners_are_followed_forward_and_backward() -> None:
    net, x = made("squeezenet1_1"), pictures(1)
    own = [winner.numpy() for winner in network.record(net, x, None, None).winners.values()]
    assert network.count_differences(net, x, own) == (0, sum(winner.size for winner in own))
    free = network.explain(net, x, [7], method="clrp2", bounds=BOUNDS)
    bound = network.explain(net, x, [7], method="clrp2", bounds=BOUNDS, winners=own)
    assert torch.equal(free.relevance, bound.relevance)

    other = [winner.copy() for winner in own]
    other[0][0, :, 0, 0] = 0
    changed = int((own[0][0, :, 0, 0] != 0).sum())
    assert changed > 0
    assert network.count_differences(net, x, other)[0] == changed
    trace = network.record(net, x, None, other)
    pool = next(iter(trace.winners))
    corner = trace.values[pool.args[0]][0, :, 0, 0]
    assert torch.equal(trace.values[pool][0, :, 0, 0], corner)


def test_winners_of_another_network_are_refused() -> None:
    net, x = made("resnet18"), pictures(1)
    own = [winner.numpy() for winner in network.record(net, x, None, None).winners.values()]
    for wrong in ([own[0][:, :, 1:]], own * 2):
        with pytest.raises(ValueError, match="winners"):
            network.explain(net, x, [7], method="lrp", bounds=BOUNDS, winners=wrong)
        with pytest.raises(ValueError, match="winners"):
            network.count_differences(net, x, wrong)


def test_an_unknown_operator_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 5), nn.PixelShuffle(1), nn.Flatten())
    with pytest.raises(NotImplementedError, match="PixelShuffle"):
        network.explain(net, pictures(1, 5), [0], method="lrp", bounds=BOUNDS)
    net = Joined(nn.Conv2d(3, 2, 5), nn.Conv2d(3, 2, 5), torch.maximum)
    with pytest.raises(NotImplementedError, match="maximum"):
        network.explain(net, pictures(1, 5), [0], method="lrp", bounds=BOUNDS)


@pytest.mark.parametrize("target", [[1000], [-1], [1, 2], 3])
def test_wrong_targets_are_refused(target: list[int]) -> None:
    with pytest.raises(ValueError, match="target"):
        network.explain(made("resnet18"), pictures(1), target, method="lrp", bounds=BOUNDS)


def test_two_classifier_layers_in_a_row_are_refused() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(75, 4))
    net = nn.Sequential(layers, Joined(nn.Identity(), nn.Linear(4, 4), torch.add))
    with pytest.raises(NotImplementedError, match="classifier"):
        network.explain(net, pictures(1, 5), [0], method="clrp2", bounds=BOUNDS)


# ---- the networks and pictures themselves ------------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_networks_are_repeatable(name: str) -> None:
    states = [networks.make(name, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(
        torch.equal(states[0][key], states[2][key]) for key in states[0] if key.endswith("weight")
    )


@pytest.mark.parametrize("name", SMALL)
def test_activations_and_logits_are_of_ordinary_size(name: str) -> None:
    net = copy.deepcopy(made(name))
    largest = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _i, out: largest.append(float(out.abs().max())))
    logits = net(torch.from_numpy(pictures(size=size_of(name))))
    assert min(largest) > 1e-3
    assert max(largest) < 1e3
    # Among a thousand float32 numbers two may well be equal, but not many.
    assert all(len(row.unique()) > 990 for row in logits)


def test_norms_have_scales_of_both_signs() -> None:
    for norm in made("resnet50").modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert float(norm.weight.min()) < 0 < float(norm.weight.max())


def test_pictures_keep_within_the_bounds_and_reach_them() -> None:
    x = pictures()
    low, high = (bound[:, None, None] for bound in BOUNDS)
    assert x.dtype == np.float32
    assert bool(((x >= low) & (x <= high)).all())
    assert bool((x == low).any((2, 3)).all())
    assert bool((x == high).any((2, 3)).all())
    assert np.array_equal(x, pictures())
