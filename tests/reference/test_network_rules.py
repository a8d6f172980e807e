"""The rules of the reference for what VGG and ResNet have not, each against plain bookkeeping."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.shufflenetv2 import channel_shuffle
from torchvision.ops import SqueezeExcitation
from torchvision.ops.misc import Permute
from zennit.composites import LayerMapComposite
from zennit.rules import Pass, ZPlus
from zennit.types import Activation, Linear

from . import network, networks
from .network_gates import gate_of
from .network_support import Joined, at, drawn, relative, shared
from .network_trace import first_maxima

INFINITE = (-np.inf, np.inf)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Let layers draw the same weights in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch from waiting for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return seeded normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def arrived(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Return what reaches the input x of a module; all the rest must have been absorbed."""
    handed = at(nn.Sequential(module.eval().requires_grad_(False)), x, relevance)
    ((_, received),) = handed.shares
    total = received.sum() + handed.absorbed.sum()
    assert float(total) == pytest.approx(float(relevance.sum()), rel=1e-12)
    return received


class Written(nn.Module):
    """A function of the input, and of modules and parameters that it may use."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                setattr(self, name, nn.Parameter(part, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(self, x)


# ---- the signs of scales behind a linear map ---------------------------------------------------

GAMMA = torch.tensor([0.5, -1.5, 1.0, -0.7, 2.0, -0.3])
SIGNS = GAMMA.sign().numpy()


def with_scale(norm: nn.Module) -> nn.Module:
    """Give a norm of six channels the scales GAMMA, and some shift."""
    with torch.no_grad():
        norm.weight.copy_(GAMMA)
        norm.bias.copy_(torch.linspace(-1, 1, 6))
    return norm


def scale(shape: tuple[int, ...], function: Callable[..., Tensor]) -> nn.Module:
    """A function of the input and of GAMMA in a shape."""
    return Written(function, gamma=GAMMA.view(shape).double())


BEHIND_A_CONVOLUTION = {
    "batch norm": [with_scale(nn.BatchNorm2d(6))],
    "group norm": [with_scale(nn.GroupNorm(3, 6))],
    "instance norm": [with_scale(nn.InstanceNorm2d(6, affine=True))],
    "layer norm of ConvNeXt": [with_scale(LayerNorm2d(6))],
    "layer norm": [Permute([0, 2, 3, 1]), with_scale(nn.LayerNorm(6)), Permute([0, 3, 1, 2])],
    "factor": [scale((6, 1, 1), lambda m, x: m.gamma * x)],
    "factor on the right": [scale((1, 6, 1, 1), lambda m, x: torch.mul(x, m.gamma))],
    "divisor": [scale((6, 1, 1), lambda m, x: x / m.gamma)],
    "behind a sum": [scale((6, 1, 1), lambda m, x: (x + 0.5) * m.gamma - m.gamma)],
    "behind a negative": [scale((6, 1, 1), lambda m, x: -x * -m.gamma)],
    "subtracted": [scale((6, 1, 1), lambda m, x: (1 - x) * m.gamma * -2)],
    "behind dropout": [nn.Dropout(), with_scale(nn.BatchNorm2d(6)), nn.Identity()],
    "flattened": [
        nn.Flatten(2),
        scale((6, 1), lambda m, x: x * m.gamma),
        nn.Unflatten(2, (4, 4)),
    ],
}


@pytest.mark.parametrize("behind", BEHIND_A_CONVOLUTION.values(), ids=BEHIND_A_CONVOLUTION.keys())
def test_the_signs_behind_a_convolution_are_those_of_its_weights(behind: list[nn.Module]) -> None:
    conv = nn.Conv2d(2, 6, 3, padding=1).double().requires_grad_(False)
    x, relevance = normal(1, 2, 4, 4), normal(1, 6, 4, 4, seed=1)
    matrix = torch.autograd.functional.jacobian(conv, x).reshape(96, 32).numpy()
    expected = shared(matrix * SIGNS.repeat(16)[:, None], x.numpy(), relevance.ravel().numpy())
    received = arrived(nn.Sequential(conv, *behind), x, relevance)
    assert relative(received.ravel(), torch.from_numpy(expected)) < 1e-13


def test_scales_that_differ_within_a_channel_are_bypassed_and_end_the_chain() -> None:
    conv, x, relevance = nn.Conv2d(2, 6, 3, padding=1), normal(1, 2, 4, 4), normal(1, 6, 4, 4)
    uneven = Written(lambda m, x: x * m.factor, factor=normal(6, 4, 4, seed=2))
    norm = with_scale(nn.BatchNorm2d(6))
    plain = arrived(conv, x, relevance)
    assert torch.equal(arrived(nn.Sequential(conv, uneven, norm), x, relevance), plain)
    folded = arrived(nn.Sequential(conv, norm), x, relevance)
    assert torch.equal(arrived(nn.Sequential(conv, norm, uneven), x, relevance), folded)


def test_a_scale_behind_a_fork_or_an_activation_is_bypassed() -> None:
    conv, x, relevance = nn.Conv2d(2, 6, 3, padding=1), normal(1, 2, 4, 4), normal(1, 6, 4, 4)
    norm = with_scale(nn.BatchNorm2d(6))
    forked = nn.Sequential(conv, Joined(norm, nn.Identity(), lambda a, _: a))
    assert torch.equal(arrived(forked, x, relevance), arrived(conv, x, relevance))
    active = arrived(nn.Sequential(conv, nn.GELU(), norm), x, relevance)
    assert torch.equal(active, arrived(conv, x, relevance))


@pytest.mark.parametrize("behind", [nn.BatchNorm1d(6), nn.LayerNorm(6)])
def test_the_signs_behind_a_fully_connected_layer(behind: nn.Module) -> None:
    layer = nn.Linear(5, 6).double().requires_grad_(False)
    x, relevance = normal(1, 5), normal(1, 6, seed=1)
    expected = shared(layer.weight.numpy() * SIGNS[:, None], x.numpy(), relevance[0].numpy())
    received = arrived(nn.Sequential(layer, with_scale(behind)), x, relevance)
    assert relative(received.ravel(), torch.from_numpy(expected)) < 1e-13


def test_a_layer_scale_behind_a_linear_map_of_channels_last() -> None:
    layer = nn.Linear(5, 6).double().requires_grad_(False)
    x, relevance = normal(2, 5, 3, 4), normal(2, 6, 3, 4, seed=1)
    behind = (Permute([0, 3, 1, 2]), scale((6, 1, 1), lambda m, x: m.gamma * x))
    received = arrived(nn.Sequential(Permute([0, 2, 3, 1]), layer, *behind), x, relevance)
    for n, i, j in np.ndindex(2, 3, 4):
        weight, arriving = layer.weight.numpy() * SIGNS[:, None], relevance[n, :, i, j].numpy()
        expected = torch.from_numpy(shared(weight, x[n, :, i, j].numpy(), arriving))
        assert relative(received[n, :, i, j], expected) < 1e-13


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_and_the_signs_behind_it(groups: int) -> None:
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups}
    conv = nn.ConvTranspose2d(4, 6, 3, **options).double().requires_grad_(False)
    x = normal(1, 4, 3, 3)
    relevance = normal(1, *conv(x).shape[1:], seed=1)
    matrix = torch.autograd.functional.jacobian(conv, x).reshape(-1, 36).numpy()
    signs = SIGNS.repeat(len(matrix) // 6)
    expected = shared(matrix * signs[:, None], x.numpy(), relevance.ravel().numpy())
    received = arrived(nn.Sequential(conv, with_scale(nn.BatchNorm2d(6))), x, relevance)
    assert relative(received.ravel(), torch.from_numpy(expected)) < 1e-13


# ---- gates ---------------------------------------------------------------------------------------

PASSING_GATES = {
    "sigmoid": lambda m, x: x * torch.sigmoid(x),
    "hard-swish": lambda m, x: x * functional.relu6(x + 3) / 6,
    "squeeze and excite": lambda m, x: m.gate(x),
    "pooled, though not bounded": lambda m, x: x * m.conv(x.mean((2, 3), keepdim=True)),
    "both bounded, one pooled": lambda m, x: x.tanh() * x.tanh().mean((2, 3), keepdim=True),
    "both bounded, one in [0, 1]": lambda m, x: torch.tanh(m.conv(x)).sigmoid() * x.tanh(),
    "itself": lambda m, x: x * x,
}


@pytest.mark.parametrize("function", PASSING_GATES.values(), ids=PASSING_GATES.keys())
def test_the_signal_takes_all_and_the_gate_nothing(function: Callable[..., Tensor]) -> None:
    parts = {"gate": SqueezeExcitation(4, 2), "conv": nn.Conv2d(4, 4, 1)}
    x, relevance = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    assert torch.equal(arrived(Written(function, **parts), x, relevance), relevance)


def test_two_plain_activations_take_half_each() -> None:
    net = Joined(nn.Flatten(), nn.LeakyReLU(), torch.mul)
    x, relevance = normal(2, 7), normal(2, 7, seed=1)
    assert relative(arrived(net, x, relevance), relevance) < 1e-15
    trace = network.record(net, x, None, None)
    product = trace.logits_node
    handed, _ = network.carry(trace, [product], {product: relevance}, network.Mode("default"))
    assert all(torch.equal(share, relevance / 2) for share in handed.values())
    assert gate_of(trace, product) is None


def test_gates_that_cannot_be_told_apart_are_refused() -> None:
    net = Joined(nn.Sigmoid(), nn.Sigmoid(), torch.mul)
    with pytest.raises(NotImplementedError, match="gate"):
        arrived(net, normal(1, 4), normal(1, 4))


# ---- moving, adding ------------------------------------------------------------------------------


def swapped(_m: nn.Module, x: Tensor) -> Tensor:
    """Swap both halves of the channels and shuffle them, as ShuffleNet does."""
    left, right = x.chunk(2, dim=1)
    return channel_shuffle(torch.cat((right, left), dim=1), 2)


MOVES = {
    "shuffle": swapped,
    "permute": lambda m, x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1),
    "slice and stack": lambda m, x: torch.cat([x[:, 1:3], x[:, 1:2]], 1).flatten(1),
    "transpose": lambda m, x: x.transpose(1, 3).contiguous().view(x.size(0), 3, -1).squeeze(),
}


@pytest.mark.parametrize("function", MOVES.values(), ids=MOVES.keys())
def test_moved_values_hand_their_relevance_back(function: Callable[..., Tensor]) -> None:
    places = torch.arange(2.0 * 8 * 3 * 3, dtype=torch.float64).view(2, 8, 3, 3)
    sources = function(nn.Identity(), places).long()
    relevance = normal(*sources.shape)
    expected = torch.zeros(places.numel(), dtype=torch.float64)
    for source, share in zip(sources.ravel(), relevance.ravel(), strict=True):
        expected[source] += share
    received = arrived(Written(function), places + 1, relevance)
    assert torch.allclose(received.ravel(), expected, rtol=1e-15, atol=0)


def test_a_chunk_that_is_used_twice_adds_up() -> None:
    def twice(_m: nn.Module, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat((a, b, a), dim=1)

    received = arrived(Written(twice), normal(1, 2), torch.tensor([[1.0, 2, 4]]).double())
    assert received.tolist() == [[5, 2]]


def test_interpolation_hands_back_what_its_weights_say() -> None:
    relevance = normal(1, 1, 4, 4)
    nearest = arrived(nn.Upsample(scale_factor=2), normal(1, 1, 2, 2), relevance)
    expected = relevance.view(2, 2, 2, 2).sum((1, 3))
    assert torch.allclose(nearest[0, 0], expected, rtol=1e-14)

    weights = torch.tensor([[1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1]]).double()
    bilinear = arrived(nn.Upsample(scale_factor=2, mode="bilinear"), normal(1, 1, 2, 2), relevance)
    assert torch.allclose(bilinear[0, 0], weights @ relevance[0, 0] @ weights.T, rtol=1e-14)


def test_a_difference_shares_as_a_sum_of_the_negative() -> None:
    a = torch.tensor([[3.0, 3.0, -3.0, 2.0, -1.0]]).double()
    b = torch.tensor([[-1.0, 1.0, -1.0, 2.0, 3.0]]).double()
    net = Written(lambda m, x: torch.sub(x[:, :5], x[:, 5:]))
    handed = at(net, torch.cat((a, b), 1), torch.full((1, 5), 4.0).double())
    ((_, received),) = handed.shares
    assert received.tolist() == [[3, 4, 4, 0, 1, 1, 0, 0, 0, 3]]
    assert handed.absorbed.tolist() == [4]


@pytest.mark.parametrize("rules", network.RULES)
def test_means_over_axes_are_average_pools(rules: str) -> None:
    x, relevance = normal(2, 3, 4, 5), normal(2, 3, seed=1)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for mean in (
        Written(lambda m, x: x.mean((2, 3))),
        Written(lambda m, x: torch.mean(x, dim=[-1, -2])),
        Written(lambda m, x: x.permute(0, 2, 3, 1).mean(dim=(1, 2))),
        Written(lambda m, x: x.sum(dim=(2, 3))),
    ):
        ((_, received),) = at(mean, x, relevance, rules).shares
        ((_, expected),) = at(pool, x, relevance, rules).shares
        assert relative(received, expected) < 1e-14


def test_a_mean_over_the_batch_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="mean"):
        arrived(Written(lambda m, x: x.mean(0, keepdim=True)), normal(2, 3), normal(1, 3))


# ---- one and three dimensions ------------------------------------------------------------------


def line(channels: int) -> nn.Sequential:
    """A network of signals `[N, 4, 20]`."""
    return nn.Sequential(
        *(nn.Conv1d(4, channels, 3, stride=2, dilation=2, padding=1), nn.BatchNorm1d(channels)),
        *(nn.SiLU(), nn.MaxPool1d(3, 2, padding=1), nn.Conv1d(channels, 6, 2, groups=2)),
        *(nn.LeakyReLU(), nn.AvgPool1d(2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        nn.Linear(6, 3),
    )


def raised(net: nn.Sequential) -> nn.Sequential:
    """The same network for pictures of one row, [N, 4, 1, 20]."""
    channels = net[0].out_channels
    plane = nn.Sequential(
        nn.Conv2d(4, channels, (1, 3), stride=(1, 2), dilation=(1, 2), padding=(0, 1)),
        *(nn.BatchNorm2d(channels), nn.SiLU(), nn.MaxPool2d((1, 3), (1, 2), padding=(0, 1))),
        *(nn.Conv2d(channels, 6, (1, 2), groups=2), nn.LeakyReLU(), nn.AvgPool2d((1, 2), 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    state = {
        key: value.unsqueeze(2) if value.dim() == 3 else value
        for key, value in net.state_dict().items()
    }
    plane.load_state_dict(state)
    return plane.eval().requires_grad_(False)


@pytest.mark.parametrize("method", network.METHODS)
def test_signals_are_explained_as_pictures_of_one_row(method: str) -> None:
    x = normal(2, 4, 20).clamp(-2, 2)
    net = line(8).eval().requires_grad_(False)
    networks.initialise(net, samples=x.float())
    options = {"method": method, "bounds": (np.full(4, -2.0), np.full(4, 2.0))}
    result = network.explain(net, x, [0, 2], **options)
    expected = network.explain(raised(net), x[:, :, None], [0, 2], **options)
    assert relative(result.relevance, expected.relevance[:, :, 0]) < 1e-12
    total = result.concept.flatten(1).sum(1) + result.absorbed
    assert torch.allclose(total, result.seed, rtol=1e-12)


def test_clips_of_one_picture_are_explained_as_pictures() -> None:
    flat = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    )
    flat = drawn(flat, size=20)
    deep = nn.Sequential(
        *(nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 2, 2)), nn.BatchNorm3d(4), nn.ReLU()),
        *(nn.MaxPool3d((1, 2, 2)), nn.AvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(16, 3)),
    )
    state = flat.state_dict()
    deep.load_state_dict({k: v.unsqueeze(2) if v.dim() == 4 else v for k, v in state.items()})
    x = torch.from_numpy(networks.photographs(2, 20, seed=3))
    options = {"method": "clrp2", "bounds": networks.BOUNDS}
    result = network.explain(deep.eval().requires_grad_(False), x[:, :, None], [0, 2], **options)
    expected = network.explain(flat, x, [0, 2], **options)
    assert relative(result.relevance[:, :, 0], expected.relevance) < 1e-13


@pytest.mark.parametrize(
    ("pool", "shape"),
    [(nn.MaxPool1d, (9,)), (nn.MaxPool2d, (9, 7)), (nn.MaxPool3d, (5, 9, 7))],
)
def test_winners_in_any_number_of_dimensions(pool: type[nn.Module], shape: tuple[int]) -> None:
    x = normal(2, 3, *shape)
    for options in ({}, {"stride": 2, "padding": 1}, {"stride": 2, "ceil_mode": True}):
        _, expected = pool(3, **options, return_indices=True)(x)
        assert torch.equal(first_maxima(x, pool(3, **options)), expected)


def test_a_pool_written_as_a_function_is_the_module() -> None:
    x = normal(1, 2, 7, 7)
    module = nn.MaxPool2d(3, stride=2, padding=1)
    relevance = normal(*module(x).shape, seed=1)
    written = Written(lambda m, x: functional.max_pool2d(x, 3, 2, padding=1))
    assert torch.equal(arrived(written, x, relevance), arrived(module, x, relevance))


# ---- zennit --------------------------------------------------------------------------------------


def test_transposed_and_three_dimensional_convolutions_agree_with_zennit() -> None:
    net = nn.Sequential(
        *(
            nn.Conv3d(3, 8, 3, padding=1, groups=1),
            nn.LeakyReLU(0.3),
            nn.Conv3d(8, 6, 2),
            nn.Mish(),
        ),
        *(nn.ConvTranspose3d(6, 8, 2, stride=2, groups=2), nn.ELU(), nn.Conv3d(8, 8, 3, groups=4)),
        *(nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 4**3, 5)),
    )
    net = net.double().eval().requires_grad_(False)
    x = normal(2, 3, 4, 4, 4)
    result = network.explain(net, x, [1, 1], method="lrp", bounds=INFINITE)

    leaf = x.clone().requires_grad_()
    rules = [((Activation,), Pass()), ((Linear,), ZPlus(stabilizer=1e-30, zero_params="bias"))]
    passing = [((nn.LeakyReLU, nn.Mish, nn.ELU, nn.Hardswish), Pass())]
    with LayerMapComposite(passing + rules).context(net) as explained:
        logits = explained(leaf)
        seed = torch.zeros_like(logits)
        seed[:, 1] = logits[:, 1].detach()
        (expected,) = torch.autograd.grad(logits, leaf, seed)
    assert relative(result.relevance, expected) < 1e-8


# ---- bounds --------------------------------------------------------------------------------------


def test_nothing_is_known_behind_a_norm_of_the_sample() -> None:
    head = (nn.Conv2d(3, 2, 5), nn.Flatten())
    net = drawn(nn.Sequential(nn.InstanceNorm2d(3, affine=True), *head), size=5)
    x = torch.from_numpy(networks.photographs(1, 5, seed=1)).double()
    result = network.explain(net, x, [1], method="lrp", bounds=networks.BOUNDS)
    normed = copy.deepcopy(net[0]).double()(x)
    expected = network.explain(net[1:], normed, [1], method="lrp", bounds=INFINITE)
    assert relative(result.relevance, expected.relevance) < 1e-13


def test_bounds_go_through_constants_and_rising_functions() -> None:
    head = drawn(nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten()), size=5)
    x = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    front = Written(lambda m, x: torch.relu(0.7 - x) / m.std, std=normal(3, 1, 1).abs() + 0.1)
    net = nn.Sequential(front, nn.Sequential(nn.ReLU(), head))
    result = network.explain(net, x, [0], method="lrp", bounds=(0, 1))
    bounds = (torch.zeros(3), 0.7 / front.std.ravel())
    expected = network.explain(head, front(x), [0], method="lrp", bounds=bounds)
    assert relative(result.relevance, expected.relevance) < 1e-13
