"""Neurons of hidden layers, and maps at hidden tensors, against formulas written out in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx import load_from_string as load
from quantised_support import RANGE, Kind, pictures, small
from test_half import float_network, retyped
from torch import Tensor
from torch.nn import functional

import onnx_clrp
from onnx_clrp import ClrpError, Explainer, ModelError, UsageError
from onnx_clrp.check import check
from onnx_clrp.inspection import layers_of
from onnx_clrp.methods import METHODS
from onnx_clrp.runtime import Result

Floats = NDArray[np.float32]
Maps = dict[str, Tensor]
Options = dict[str, Any]

LOW, HIGH = -0.5, 1.0
SIZE, CLASSES = 8, 4

RELEVANCE_AGREES = 1e-5
CONTRAST_AGREES = 1e-4


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: on arrays as small as these more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- small networks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A node that writes the tensor `name`; in the model it is called `net/name`."""

    name: str
    op: str
    inputs: tuple[str, ...]
    weights: tuple[Floats, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        return self.op in ("Conv", "Gemm")


@dataclass(frozen=True)
class Net:
    """A network; `makers` are the linear maps that the scores are made by."""

    nodes: tuple[Node, ...]
    makers: tuple[str, ...]

    def model(self, batch: int | str = "N") -> onnx.ModelProto:
        """The network in ONNX."""
        made, weights = [], []
        for node in self.nodes:
            known = {f"{node.name}.{i}": w for i, w in enumerate(node.weights)}
            weights += [numpy_helper.from_array(w, name) for name, w in known.items()]
            inputs = [*node.inputs, *known]
            made.append(
                helper.make_node(
                    node.op, inputs, [node.name], name=f"net/{node.name}", **node.attributes
                )
            )
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
        graph = helper.make_graph(made, "net", [x], [y], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model

    def until(self, name: str) -> list[Node]:
        """The nodes up to the one that writes a tensor."""
        names = [node.name for node in self.nodes]
        return [*self.nodes[: names.index(name) + 1]]


class Drawn:
    """Weights that are drawn one after the other."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def _normal(self, shape: Sequence[int], spread: float) -> Floats:
        return (self._rng.standard_normal(shape) * spread).astype(np.float32)

    def conv(self, name: str, x: str, inputs: int, outputs: int, kernel: int = 3) -> Node:
        w = self._normal((outputs, inputs, kernel, kernel), (2 / inputs) ** 0.5 / kernel)
        b = self._normal((outputs,), 0.1)
        return Node(name, "Conv", (x,), (w, b), {"pads": [kernel // 2] * 4})

    def gemm(self, name: str, x: str, inputs: int) -> Node:
        w = self._normal((CLASSES, inputs), inputs**-0.5)
        return Node(name, "Gemm", (x,), (w, self._normal((CLASSES,), 0.1)), {"transB": 1})

    def norm(self, name: str, x: str, channels: int) -> Node:
        signs = np.where(np.arange(channels) % 2, -1, 1)
        scale = (signs * self._rng.uniform(0.5, 1.5, channels)).astype(np.float32)
        shift, mean = self._normal((channels,), 0.1), self._normal((channels,), 0.1)
        variance = self._rng.uniform(0.2, 1, channels).astype(np.float32)
        return Node(name, "BatchNormalization", (x,), (scale, shift, mean, variance))


def relu(name: str, x: str) -> Node:
    return Node(name, "Relu", (x,))


def max_pool(name: str, x: str) -> Node:
    return Node(name, "MaxPool", (x,), (), {"kernel_shape": [2, 2], "strides": [2, 2]})


def average_pool(name: str, x: str) -> Node:
    return Node(name, "AveragePool", (x,), (), {"kernel_shape": [2, 2], "strides": [2, 2]})


def plain() -> Net:
    """One channel is switched on by its bias alone, so that it absorbs what comes to it."""
    draw = Drawn(1)
    second = draw.conv("conv2", "pool1", 5, 6)
    second.weights[0][0] = -np.abs(second.weights[0][0])
    second.weights[1][0] = 2
    return Net(
        (
            *(draw.conv("conv1", "x", 3, 5), relu("relu1", "conv1"), max_pool("pool1", "relu1")),
            *(second, relu("relu2", "conv2"), average_pool("pool2", "relu2")),
            *(Node("flat", "Flatten", ("pool2",)), draw.gemm("logits", "flat", 24)),
        ),
        ("logits",),
    )


def residual() -> Net:
    """A block with a projection, and one with the identity."""
    draw = Drawn(2)
    return Net(
        (
            *(draw.conv("conv1", "x", 3, 5), relu("relu1", "conv1")),
            *(draw.conv("conv2", "relu1", 5, 5), relu("relu2", "conv2")),
            *(draw.conv("conv3", "relu2", 5, 6), draw.conv("short", "relu1", 5, 6, kernel=1)),
            *(Node("sum1", "Add", ("conv3", "short")), relu("relu3", "sum1")),
            *(draw.conv("conv4", "relu3", 6, 6), Node("sum2", "Add", ("conv4", "relu3"))),
            *(relu("relu4", "sum2"), Node("pool", "GlobalAveragePool", ("relu4",))),
            *(Node("flat", "Flatten", ("pool",)), draw.gemm("logits", "flat", 6)),
        ),
        ("logits",),
    )


def normed() -> Net:
    """BatchNorm with scales of both signs behind every convolution."""
    draw = Drawn(3)
    return Net(
        (
            *(draw.conv("conv1", "x", 3, 6), draw.norm("norm1", "conv1", 6)),
            *(relu("relu1", "norm1"), draw.conv("conv2", "relu1", 6, 6)),
            *(draw.norm("norm2", "conv2", 6), relu("relu2", "norm2")),
            *(average_pool("pool", "relu2"), Node("flat", "Flatten", ("pool",))),
            draw.gemm("logits", "flat", 96),
        ),
        ("logits",),
    )


def convolutional() -> Net:
    """The classifier layer is a convolution, with an activation and a pool behind it."""
    draw = Drawn(4)
    return Net(
        (
            *(draw.conv("conv1", "x", 3, 5), relu("relu1", "conv1"), max_pool("pool1", "relu1")),
            *(draw.conv("conv2", "pool1", 5, CLASSES), relu("relu2", "conv2")),
            *(
                Node("pool2", "GlobalAveragePool", ("relu2",)),
                Node("logits", "Flatten", ("pool2",)),
            ),
        ),
        ("conv2",),
    )


NETS: Mapping[str, Callable[[], Net]] = {
    "plain": plain,
    "residual": residual,
    "normed": normed,
    "convolutional": convolutional,
}


def batch(n: int = 2, seed: int = 0) -> Floats:
    drawn = np.random.default_rng(seed).uniform(LOW, HIGH, (n, 3, SIZE, SIZE))
    return drawn.astype(np.float32)


# -- the same in float64, by formula -----------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """The dual of a walk: its seed, and whether weights of the makers are negated for it."""

    seed: Tensor
    negated: bool
    shares: bool = False


class Reference:
    """A network run in float64 with all values kept, and the walks back through it.

    Args:
        net: the network.
        x: its input.
        excited: whether excitation backprop is walked in place of LRP.
    """

    def __init__(self, net: Net, x: Floats, *, excited: bool = False) -> None:
        self.net, self.excited = net, excited
        self.absorbed: dict[str, Tensor] = {}
        self.values = {"x": torch.from_numpy(x).double().requires_grad_()}
        for node in net.nodes:
            self.values[node.name] = self._run(node, *(self.values[i] for i in node.inputs))

    def _run(self, node: Node, *xs: Tensor) -> Tensor:
        weights = [torch.from_numpy(w).double() for w in node.weights]
        if node.linear:
            bias = weights[1].reshape(-1, *[1] * (xs[0].dim() - 2))
            return self._map(node, xs[0], weights[0]) + bias
        if node.op == "BatchNormalization":
            scale, shift, mean, variance = (w.reshape(-1, 1, 1) for w in weights)
            return (xs[0] - mean) / (variance + 1e-5).sqrt() * scale + shift
        if node.op == "Add":
            return xs[0] + xs[1]
        simple: Mapping[str, Callable[[Tensor], Tensor]] = {
            "Relu": torch.relu,
            "MaxPool": lambda x: functional.max_pool2d(x, 2),
            "AveragePool": lambda x: functional.avg_pool2d(x, 2),
            "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
            "Flatten": lambda x: x.flatten(1),
        }
        return simple[node.op](xs[0])

    def _map(self, node: Node, x: Tensor, w: Tensor) -> Tensor:
        """The linear map without its bias."""
        return functional.conv2d(x, w, padding="same") if node.op == "Conv" else x @ w.T

    def gradients(self, layer: str, chosen: Tensor) -> Maps:
        """∂Σ(chosen · layer) / ∂(every tensor in front of it)."""
        names = ["x", *(node.name for node in self.net.until(layer))]
        score = (self.values[layer] * chosen).sum()
        tensors = [self.values[name] for name in names]
        found = torch.autograd.grad(score, tensors, retain_graph=True, allow_unused=True)
        return {name: g for name, g in zip(names, found, strict=True) if g is not None}

    def walk(
        self, layer: str, seed: Tensor, makers: Sequence[str] = (), dual: Contrast | None = None
    ) -> Maps:
        """The map at every tensor in front of a layer; that of a contrast with its sign."""
        with torch.no_grad():
            nodes = self.net.until(layer)
            if dual is None:
                found, left = self._down(nodes, {layer: seed})
                return {**found, **left}
            head = _downstream(nodes, makers)
            body = [node for node in nodes if node not in head]
            ours = self._down(head, {layer: seed})
            theirs = self._down(head, {layer: dual.seed}, makers if dual.negated else ())
            behind = {name: r - theirs[0][name] for name, r in ours[0].items()}
            ends = [_shares(end) if dual.shares else end for _, end in (ours, theirs)]
            difference = {name: r - ends[1][name] for name, r in ends[0].items()}
            below, left = self._down(body, difference)
            return {**behind, **below, **left}

    def _down(
        self, nodes: Sequence[Node], arriving: Maps, negated: Sequence[str] = ()
    ) -> tuple[Maps, Maps]:
        """What arrived at every tensor that these nodes write, and what is left at others."""
        left, found = dict(arriving), {}
        for node in reversed(nodes):
            if node.name not in left:
                continue
            found[node.name] = r = left.pop(node.name)
            if node.linear:
                weights = self._signed(node, nodes) * (-1 if node.name in negated else 1)
                shares = [self._linear(node, weights, r)]
            else:
                shares = self._hand(node, r, even=bool(negated))
            for name, share in zip(node.inputs, shares, strict=True):
                left[name] = left[name] + share if name in left else share
        return found, left

    def _hand(self, node: Node, r: Tensor, *, even: bool) -> list[Tensor]:
        xs = [self.values[name].detach() for name in node.inputs]
        x, y = xs[0], self.values[node.name].detach()
        if node.op in ("Relu", "BatchNormalization", "Flatten"):
            return [r.reshape(x.shape)]
        if node.op == "Add":
            sign = 1.0 if self.excited else y.sign()
            parts = [(a * sign).clamp(min=0) for a in xs]
            return [over(r * part, sum(parts)) for part in parts]
        if node.op == "MaxPool":
            return [_adjoint(lambda a: self._run(node, a), x, r)]
        # All that is averaged here is an activation of a ReLU, so that the sum is that of x⁺.
        weights = torch.ones_like(x) if even else x
        s = over(r, self._run(node, weights))
        return [weights * _adjoint(lambda a: self._run(node, a), x, s)]

    def _signed(self, node: Node, nodes: Sequence[Node]) -> Tensor:
        """The weights with the signs of the scales right behind, if these are on the way."""
        w = torch.from_numpy(node.weights[0]).double()
        for other in nodes:
            if other.op == "BatchNormalization" and other.inputs == (node.name,):
                scale = torch.from_numpy(other.weights[0]).double().sign()
                w = w * scale.reshape(-1, *[1] * (w.dim() - 1))
        return w

    def _linear(self, node: Node, w: Tensor, r: Tensor) -> Tensor:
        x = self.values[node.inputs[0]].detach()
        positive, negative = w.clamp(min=0), w.clamp(max=0)
        if node.inputs == ("x",):
            parts = [(x - LOW, positive), (x - HIGH, negative)]
        elif self.excited:
            parts = [(x.clamp(min=0), positive)]
        else:
            parts = [(x.clamp(min=0), positive), (x.clamp(max=0), negative)]
        z = torch.stack([self._map(node, a, v) for a, v in parts]).sum(0)
        self.absorbed[node.name] = (r * (z == 0)).flatten(1).sum(1)
        s = over(r, z)
        handed = [a * _adjoint(partial(self._map, node, w=v), a, s) for a, v in parts]
        return torch.stack(handed).sum(0)


def over(a: Tensor, b: Any) -> Tensor:
    """The quotient, 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def _adjoint(run: Callable[[Tensor], Tensor], x: Tensor, s: Tensor) -> Tensor:
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(run(at), at, s)
    return found


def _downstream(nodes: Sequence[Node], makers: Iterable[str]) -> list[Node]:
    reached, found = set(makers), []
    for node in nodes:
        if node.name in makers or reached.intersection(node.inputs):
            reached.add(node.name)
            found.append(node)
    return found


def _shares(maps: Maps) -> Maps:
    """Each over the sum of all, for every sample."""
    total = torch.stack([m.flatten(1).sum(1) for m in maps.values()]).sum(0)
    return {name: over(m, total.view(-1, *[1] * (m.dim() - 1))) for name, m in maps.items()}


# -- questions ---------------------------------------------------------------------------------


EXCITED = ("excitation_backprop", "contrastive_eb")


@cache
def _reference(name: str, excited: bool) -> Reference:
    return Reference(NETS[name](), batch(), excited=excited)


def reference(name: str, method: str = "lrp") -> Reference:
    """The run of a network, and the rules of a method."""
    return _reference(name, method in EXCITED)


def wanted(name: str, method: str, layer: str, chosen: Tensor, makers: Sequence[str] = ()) -> Maps:
    """What a method says of `chosen`, a part of a layer `[N, …]`, at every tensor before it."""
    run = reference(name, method)
    values = run.values[layer].detach()
    one = chosen.expand_as(values)
    if method in ("gradient", "gradient_x_input"):
        found = run.gradients(layer, one)
        if method == "gradient":
            return found
        return {n: g * run.values[n].detach() for n, g in found.items()}
    if method in ("lrp", "excitation_backprop"):
        return run.walk(layer, one * values if method == "lrp" else one)
    if method == "contrastive_eb":
        return run.walk(layer, one, makers, Contrast(one, negated=True, shares=True))
    seed = one * values
    if method == "clrp2":
        return run.walk(layer, seed, makers, Contrast(seed, negated=True))
    assert method == "clrp1"
    dual = (1 - one) * seed.sum(1, keepdim=True) / (CLASSES - 1)
    return run.walk(layer, seed, makers, Contrast(dual, negated=False))


def class_mask(target: int) -> Tensor:
    return functional.one_hot(torch.tensor([target]), CLASSES).double()


def channel(shape: Sequence[int], number: int) -> Tensor:
    mask = torch.zeros(1, *shape, dtype=torch.float64)
    mask[:, number] = 1
    return mask


def unit(shape: Sequence[int], number: int) -> Tensor:
    mask = torch.zeros(1, *shape, dtype=torch.float64)
    mask.view(-1)[number] = 1
    return mask


def explained(
    name: str, target: Any, *, x: Floats | None = None, compiled: Any = None, **options: Any
) -> Result:
    model = NETS[name]().model()
    options = {"target": compiled, **options}
    explainer = Explainer(model, device="cpu", input_range=(LOW, HIGH), **options)
    return explainer.explain(batch() if x is None else x, target)


def distance(out: Floats, ref: Tensor) -> float:
    """The largest ‖out - ref‖ / ‖ref‖ of all samples; a map that is zero has to be zero."""
    exact = ref.detach().flatten(1)
    off = (torch.from_numpy(out).double().reshape(exact.shape) - exact).norm(dim=1)
    size = exact.norm(dim=1)
    return float(torch.where(off == 0, 0.0, off / size).nan_to_num(torch.inf).max())


def agrees(method: str) -> float:
    return CONTRAST_AGREES if METHODS[method].dual is not None else RELEVANCE_AGREES


# -- neurons -----------------------------------------------------------------------------------

LAYERS = [
    *(("plain", layer, ("conv1",)) for layer in ("conv1", "relu1", "pool1")),
    *(("plain", layer, ("conv2",)) for layer in ("conv2", "relu2", "pool2", "flat")),
    ("plain", "logits", ("logits",)),
    ("residual", "relu1", ("conv1",)),
    ("residual", "conv3", ("conv3",)),
    *(("residual", layer, ("conv3", "short")) for layer in ("sum1", "relu3")),
    ("residual", "conv4", ("conv4",)),
    *(("normed", layer, ("conv1",)) for layer in ("conv1", "norm1", "relu1")),
    *(("normed", layer, ("conv2",)) for layer in ("norm2", "relu2", "pool", "flat")),
    *(("convolutional", layer, ("conv2",)) for layer in ("conv2", "relu2", "pool2")),
]
"""A network, a layer, and the linear maps that make its neurons."""

OF_NEURONS = ("lrp", "clrp2", "gradient", *EXCITED)
OF_UNITS = ("lrp", "clrp2", "gradient")


def busiest(values: Tensor) -> list[int]:
    """Two neurons that say something in all samples, and one that says the least."""
    rows = values.detach().flatten(1)
    order = rows.min(0).values.argsort(descending=True).tolist()
    return [order[0], order[1], order[-1]]


@pytest.mark.parametrize("kind", ["channels", "units"])
@pytest.mark.parametrize(("name", "layer", "makers"), LAYERS)
def test_a_neuron_is_explained_as_its_formula_says(
    name: str, layer: str, makers: Sequence[str], kind: str
) -> None:
    values = reference(name).values[layer]
    shape, mask = values.shape[1:], channel if kind == "channels" else unit
    said = values.flatten(1)
    if kind == "channels":
        said = values.reshape(*values.shape[:2], -1).sum(2)
    targets = busiest(said)
    for method in OF_NEURONS if kind == "channels" else OF_UNITS:
        options: Options = {"method": method, "layer": layer, "neurons": kind, "signed": True}
        found = explained(name, targets, **options)
        assert found.logits.shape == said.shape
        np.testing.assert_allclose(found.logits, said.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(found.seed, said[:, targets].detach().numpy(), atol=1e-5)
        assert found.target.tolist() == [targets] * 2
        for k, target in enumerate(targets):
            ref = wanted(name, method, layer, mask(shape, target), makers)["x"]
            assert distance(found.relevance[:, k], ref) <= agrees(method), (method, target)


def test_a_contrast_of_a_neuron_shows_what_speaks_for_it_unless_signed() -> None:
    options: Options = {"method": "clrp2", "layer": "relu2", "at": ["pool1"]}
    signed = explained("plain", [1, 2], signed=True, **options)
    found = explained("plain", [1, 2], **options)
    assert signed.relevance.min() < 0 < signed.relevance.max()
    np.testing.assert_array_equal(found.relevance, np.maximum(signed.relevance, 0))
    np.testing.assert_array_equal(found.at["pool1"], np.maximum(signed.at["pool1"], 0))


def test_the_parts_of_a_contrast_are_the_neuron_and_its_opposite() -> None:
    found = explained("plain", [1, 2], method="clrp2", layer="relu2", parts=True, signed=True)
    assert found.concept is not None
    assert found.dual is not None
    lrp = explained("plain", [1, 2], method="lrp", layer="relu2")
    np.testing.assert_allclose(found.concept, lrp.relevance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.concept - found.dual, found.relevance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", ["relu1", "conv2", "pool2"])
def test_the_units_of_a_channel_make_up_its_map(layer: str) -> None:
    size = reference("plain").values[layer][0, 0].numel()
    whole = explained("plain", [1, 3], method="lrp", layer=layer)
    for k, chosen in enumerate((1, 3)):
        units = [chosen * size + i for i in range(size)]
        parts = explained("plain", units, method="lrp", layer=layer, neurons="units")
        total = parts.relevance.astype(np.float64).sum(1)
        assert distance(whole.relevance[:, k], torch.from_numpy(total)) <= RELEVANCE_AGREES
        np.testing.assert_allclose(whole.seed[:, k], parts.seed.sum(1), rtol=1e-5)


def test_relevance_of_a_neuron_is_what_it_says_or_absorbed() -> None:
    found, run = (
        explained("residual", [0, 1, 2], method="lrp", layer="relu3"),
        reference("residual"),
    )
    for k, target in enumerate((0, 1, 2)):
        run.absorbed.clear()
        wanted("residual", "lrp", "relu3", channel((6, SIZE, SIZE), target))
        lost = torch.stack([*run.absorbed.values()]).sum(0).numpy()
        there = total(found.relevance)[:, k] + lost
        np.testing.assert_allclose(there, found.seed[:, k], rtol=1e-4, atol=1e-6)


def test_a_layer_of_single_positions_has_a_neuron_a_channel() -> None:
    options: Options = {"method": "lrp", "neurons": "units"}
    pooled = explained("residual", [0, 1, 5], layer="pool", **options)
    flat = explained("residual", [0, 1, 5], layer="flat", **options)
    channels = explained("residual", [0, 1, 5], layer="flat", method="lrp")
    assert pooled.logits.shape == flat.logits.shape == (2, 6)
    np.testing.assert_array_equal(pooled.relevance, flat.relevance)
    np.testing.assert_array_equal(channels.relevance, flat.relevance)


@pytest.mark.parametrize("kind", ["channels", "units"])
def test_the_logits_are_a_layer_like_others(kind: str) -> None:
    classes = explained("plain", [0, 1], method="clrp2")
    neurons = explained("plain", [0, 1], method="clrp2", layer="net/logits", neurons=kind)
    np.testing.assert_array_equal(classes.relevance, neurons.relevance)


def test_a_neuron_that_says_nothing_has_an_empty_map() -> None:
    silent = int((reference("plain").values["relu2"].detach().flatten(1).sum(0) == 0).nonzero()[0])
    for method in ("lrp", "clrp2"):
        found = explained("plain", silent, method=method, layer="relu2", neurons="units")
        assert not found.seed.any()
        assert not found.relevance.any()


# -- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channels", "units"])
def test_without_a_target_the_most_active_neuron_is_explained(kind: str) -> None:
    found = explained("plain", None, method="lrp", layer="relu2", neurons=kind)
    assert found.target.tolist() == found.logits.argmax(1)[:, None].tolist()
    np.testing.assert_array_equal(found.seed, found.logits.max(1, keepdims=True))


@pytest.mark.parametrize("kind", ["channels", "units"])
def test_the_most_active_neurons_can_be_compiled_in(kind: str) -> None:
    options: Options = {"method": "lrp", "layer": "relu2", "neurons": kind}
    found = explained("plain", None, compiled="top:3", **options)
    order = np.argsort(-found.logits, axis=1)[:, :3]
    assert found.target.tolist() == order.tolist()
    asked = explained("plain", order, **options)
    np.testing.assert_allclose(found.relevance, asked.relevance, rtol=1e-5, atol=1e-7)


def test_neurons_are_asked_for_in_every_form() -> None:
    options: Options = {"method": "lrp", "layer": "relu2", "neurons": "units"}
    both = explained("plain", [7, 40], **options)
    each = explained("plain", np.array([7, 40]), **options)
    pairs = explained("plain", np.array([[7, 40], [40, 7]]), **options)
    one = explained("plain", 40, **options)
    assert each.target.tolist() == [[7], [40]]
    np.testing.assert_array_equal(each.relevance[:, 0], both.relevance[[0, 1], [0, 1]])
    np.testing.assert_array_equal(pairs.relevance[1], both.relevance[1, ::-1])
    np.testing.assert_array_equal(one.relevance[:, 0], both.relevance[:, 1])
    compiled = explained("plain", None, compiled=[7, 40], **options)
    np.testing.assert_array_equal(compiled.relevance, both.relevance)


@pytest.mark.parametrize("size", [1, 3])
def test_pieces_of_a_batch_are_put_together(size: int) -> None:
    x = batch(10, seed=3)
    options: Options = {
        "method": "clrp2",
        "layer": "relu2",
        "at": ["pool1", "relu2"],
        "signed": True,
    }
    together = explained("plain", None, x=x, **options)
    model = NETS["plain"]().model(size)
    explainer = Explainer(model, device="cpu", input_range=(LOW, HIGH), **options)
    found = explainer.explain(x)
    assert found.target.tolist() == together.target.tolist()
    assert found.at["pool1"].shape == (10, 1, 5, 4, 4)
    close: Options = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(found.relevance, together.relevance, **close)
    for name in ("pool1", "relu2"):
        np.testing.assert_allclose(found.at[name], together.at[name], **close)
    assert explainer.layer == {"name": "relu2", "neurons": "channels", "shape": [size, 6, 4, 4]}


def test_an_explainer_of_neurons_is_read_again() -> None:
    model = NETS["plain"]().model()
    options: Options = {"layer": "net/relu2", "neurons": "units", "at": ["pool1"]}
    written = onnx_clrp.convert(model, input_range=(LOW, HIGH), **options)
    explainer = Explainer(written.SerializeToString(), device="cpu")
    assert explainer.layer == {"name": "relu2", "neurons": "units", "shape": [None, 6, 4, 4]}
    assert explainer.classes == 96
    assert explainer.labels is None
    found = explainer.explain(batch(), [3, 95])
    asked = explained("plain", [3, 95], **options)
    np.testing.assert_array_equal(found.relevance, asked.relevance)
    np.testing.assert_array_equal(found.at["pool1"], asked.at["pool1"])


def test_labels_of_classes_are_no_names_of_neurons() -> None:
    model = NETS["plain"]().model()
    model.metadata_props.add(key="onnx_clrp.labels", value='["a", "b", "c", "d", "e", "f"]')
    explainer = Explainer(model, device="cpu", input_range=(LOW, HIGH), layer="relu2")
    assert explainer.classes == 6
    assert explainer.labels is None
    assert explainer.notes == []


# -- maps at hidden tensors --------------------------------------------------------------------

INSIDE: Mapping[str, Sequence[str]] = {
    "plain": ("conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flat", "logits"),
    "residual": ("relu1", "relu2", "conv3", "short", "sum1", "relu3", "conv4", "sum2", "flat"),
    "normed": ("norm1", "relu1", "conv2", "norm2", "pool", "flat"),
    "convolutional": ("relu1", "pool1", "conv2", "relu2", "pool2", "logits"),
}

WITH_MAPS = (
    *("lrp", "clrp1", "clrp2", "gradient", "gradient_x_input"),
    *EXCITED,
)


@pytest.mark.parametrize("method", WITH_MAPS)
@pytest.mark.parametrize("name", NETS)
def test_maps_inside_are_those_of_the_walk(name: str, method: str) -> None:
    targets, inside = [0, 2], INSIDE[name]
    options: Options = {"method": method, "signed": True, "at": inside}
    found = explained(name, targets, **options)
    makers = NETS[name]().makers
    for k, target in enumerate(targets):
        ref = wanted(name, method, "logits", class_mask(target), makers)
        assert distance(found.relevance[:, k], ref["x"]) <= agrees(method)
        for tensor in inside:
            out = found.at[tensor][:, k]
            assert out.shape == tuple(ref[tensor].shape)
            assert distance(out, ref[tensor]) <= agrees(method), tensor
    assert [*found.at] == [*inside]


@pytest.mark.parametrize("method", ["lrp", "clrp2", "gradient"])
def test_maps_inside_in_front_of_a_neuron(method: str) -> None:
    inside = ("relu1", "relu2", "conv3", "short", "sum1")
    options: Options = {"method": method, "layer": "relu3", "signed": True, "at": inside}
    found = explained("residual", [1, 2], **options)
    for k, target in enumerate((1, 2)):
        mask = channel((6, SIZE, SIZE), target)
        ref = wanted("residual", method, "relu3", mask, ("conv3", "short"))
        for tensor in inside:
            assert distance(found.at[tensor][:, k], ref[tensor]) <= agrees(method), tensor


def total(maps: Floats) -> NDArray[np.float64]:
    """ΣR, `[N, k]`."""
    sums: NDArray[np.float64] = maps.reshape(*maps.shape[:2], -1).sum(2, dtype=np.float64)
    return sums


CUTS: Mapping[str, Sequence[Sequence[str]]] = {
    "plain": [[name] for name in INSIDE["plain"]],
    "residual": [["relu1"], ["conv3", "short"], ["sum1"], ["relu3"], ["sum2"], ["flat"]],
    "normed": [[name] for name in INSIDE["normed"]],
    "convolutional": [[name] for name in INSIDE["convolutional"]],
}
"""Tensors through which all relevance has to go."""


@pytest.mark.parametrize("name", NETS)
def test_all_relevance_is_accounted_for_at_every_tensor(name: str) -> None:
    found = explained(name, [0, 1], method="lrp", at=INSIDE[name])
    run, names = reference(name), [node.name for node in NETS[name]().nodes]
    for k, target in enumerate((0, 1)):
        wanted(name, "lrp", "logits", class_mask(target))
        seed = found.seed[:, k]
        for cut in CUTS[name]:
            behind = names[max(map(names.index, cut)) + 1 :]
            lost = sum(run.absorbed[node].numpy() for node in behind if node in run.absorbed)
            there = sum(total(found.at[tensor])[:, k] for tensor in cut)
            np.testing.assert_allclose(there + lost, seed, rtol=1e-4, atol=1e-5)
    if name == "plain":
        assert abs(run.absorbed["conv2"]).min() > 1e-3  # or the test would show less than it could


def test_maps_inside_are_what_the_ledger_says_arrived() -> None:
    model, x = NETS["plain"]().model(), batch(1)
    found = explained("plain", 0, x=x, method="lrp", at=INSIDE["plain"])
    report = check(model, x, device="cpu", input_range=(LOW, HIGH), method="lrp", target=0)
    assert report.faults == []
    arrived = {entry.node: entry.arrived * report.logit for entry in report.ledger}
    for tensor in INSIDE["plain"]:
        there = total(found.at[tensor]).item()
        assert there == pytest.approx(arrived[f"net/{tensor}"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
@pytest.mark.parametrize(
    ("name", "feeds"), [("plain", "flat"), ("residual", "flat"), ("convolutional", "pool1")]
)
def test_what_feeds_the_classifier_holds_the_difference_itself(
    name: str, feeds: str, method: str
) -> None:
    run, target, makers = reference(name), 1, NETS[name]().makers
    seed = run.values["logits"].detach() * class_mask(target)
    concept = run.walk("logits", seed)[feeds]
    if method == "clrp1":
        others = (1 - class_mask(target)) * seed.sum(1, keepdim=True) / (CLASSES - 1)
        dual = run.walk("logits", others)[feeds]
    else:
        with torch.no_grad():
            nodes = [node for node in run.net.nodes if node in _downstream(run.net.nodes, makers)]
            dual = run._down(nodes, {"logits": seed}, makers)[1][feeds]
    found = explained(name, target, method=method, signed=True, at=[feeds])
    assert distance(found.at[feeds][:, 0], concept - dual) <= CONTRAST_AGREES


@pytest.mark.parametrize("contrast", ["complement", "negated"])
@pytest.mark.parametrize("name", ["plain", "residual", "convolutional"])
def test_normalised_maps_are_normalised_at_every_tensor(name: str, contrast: str) -> None:
    run, target, inside = reference(name), 2, INSIDE[name]
    chosen = class_mask(target)
    seed = run.values["logits"].detach() * chosen
    others = (1 - chosen) * seed.sum(1, keepdim=True) / (CLASSES - 1)
    dual = Contrast(seed if contrast == "negated" else others, negated=contrast == "negated")
    ours = run.walk("logits", seed)
    # What a contrast is less than the concept, is the dual.
    difference = run.walk("logits", seed, run.net.makers, dual)
    theirs = {tensor: r - difference[tensor] for tensor, r in ours.items()}
    options: Options = {"contrast": contrast, "difference": "normalised", "signed": True}
    found = explained(name, target, method="lrp", at=inside, **options)
    for tensor, out in {**found.at, "x": found.relevance}.items():
        parts = [
            m / m.abs().flatten(1).sum(1).view(-1, *[1] * (m.dim() - 1))
            for m in (ours[tensor], theirs[tensor])
        ]
        assert distance(out[:, 0], parts[0] - parts[1]) <= CONTRAST_AGREES, tensor


def test_maps_inside_leave_the_map_at_the_input_alone() -> None:
    for method in ("clrp2", "gradient_x_input", "contrastive_eb"):
        alone = explained("residual", [0, 3], method=method)
        beside = explained("residual", [0, 3], method=method, at=INSIDE["residual"])
        np.testing.assert_array_equal(alone.relevance, beside.relevance)
        assert alone.at == {}


# -- names -------------------------------------------------------------------------------------


def test_a_layer_is_called_by_its_node_or_its_tensor() -> None:
    by_node = explained("plain", 1, layer="net/relu2", at=["net/pool1", "pool1"])
    by_tensor = explained("plain", 1, layer="relu2", at=["pool1"])
    np.testing.assert_array_equal(by_node.relevance, by_tensor.relevance)
    assert [*by_node.at] == ["net/pool1", "pool1"]
    np.testing.assert_array_equal(by_node.at["net/pool1"], by_tensor.at["pool1"])
    np.testing.assert_array_equal(by_node.at["pool1"], by_tensor.at["pool1"])


@pytest.mark.parametrize(
    "name", ["a/b/../c", "Ünï 狐", "#1", "*", "a\nb", " ", "relevance", "at/0"]
)
def test_a_name_may_be_anything(name: str) -> None:
    model = NETS["plain"]().model()
    model.graph.node[4].name = name
    options: Options = {"device": "cpu", "input_range": (LOW, HIGH)}
    found = Explainer(model, layer=name, at=[name], **options).explain(batch(), 1)
    asked = explained("plain", 1, layer="relu2")
    np.testing.assert_array_equal(found.relevance, asked.relevance)
    assert found.at[name].shape == (2, 1, 6, 4, 4)


@pytest.mark.parametrize("tensor", ["relevance", "target", "relevance_at_0", "relevance_logits"])
def test_a_tensor_of_one_of_our_names_is_told_apart(tensor: str) -> None:
    model = NETS["plain"]().model()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [tensor if name == "relu2" else name for name in names]
    options: Options = {"device": "cpu", "input_range": (LOW, HIGH)}
    found = Explainer(model, layer=tensor, at=["pool1"], **options).explain(batch(), 1)
    asked = explained("plain", 1, layer="relu2", at=["pool1"])
    np.testing.assert_array_equal(found.relevance, asked.relevance)
    np.testing.assert_array_equal(found.at["pool1"], asked.at["pool1"])


def test_layers_are_listed_by_the_names_that_are_taken() -> None:
    layers = layers_of(NETS["plain"]().model(), input_range=(LOW, HIGH))
    nodes = NETS["plain"]().nodes
    assert [(layer.node, layer.tensor, layer.operator) for layer in layers] == [
        (f"net/{node.name}", node.name, node.op) for node in nodes
    ]
    assert [layer.shape for layer in layers][3:7] == [[None, 6, 4, 4]] * 2 + [
        [None, 6, 2, 2],
        [None, 24],
    ]
    assert [layer.tensor for layer in layers if layer.cam] == ["relu2"]
    for layer in layers:
        for name in (layer.node, layer.tensor):
            assert explained("plain", None, method="gradient", layer=name).relevance.any()


def turned(*, equal: bool) -> onnx.ModelProto:
    """A convolution whose channels come last behind it, as many as there are rows and columns."""
    channels = SIZE if equal else 5
    rng = np.random.default_rng(0)
    w = rng.standard_normal((channels, 3, 3, 3)).astype(np.float32)
    v = rng.standard_normal((channels * SIZE * SIZE, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1] * 4),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Transpose", ["relu"], ["turned"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["turned"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")]
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model


@pytest.mark.parametrize("equal", [False, True])
def test_the_layer_of_a_cam_has_its_channels_where_a_convolution_has_them(equal: bool) -> None:
    layers = layers_of(turned(equal=equal), input_range=(LOW, HIGH))
    assert [layer.tensor for layer in layers if layer.cam] == ["relu"]


# -- odd networks ------------------------------------------------------------------------------


def open_sides() -> onnx.ModelProto:
    """A network that leaves height and width open."""
    model = NETS["residual"]().model()
    for axis, name in ((2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


@pytest.mark.parametrize("method", ["lrp", "clrp2", "gradient", "contrastive_eb"])
def test_height_and_width_may_be_open(method: str) -> None:
    options: Options = {"method": method, "layer": "relu3", "at": ["relu1"]}
    explainer = Explainer(open_sides(), device="cpu", input_range=(LOW, HIGH), **options)
    assert explainer.layer == {
        "name": "relu3",
        "neurons": "channels",
        "shape": [None, 6, None, None],
    }
    found = explainer.explain(batch(), [0, 2])
    fixed = explained("residual", [0, 2], **options)
    np.testing.assert_allclose(found.relevance, fixed.relevance, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.at["relu1"], fixed.at["relu1"], rtol=1e-4, atol=1e-7)
    wide = np.concatenate([batch(), batch()], axis=3)
    assert explainer.explain(wide, 1).at["relu1"].shape == (2, 1, 5, 8, 16)


def channels_last() -> onnx.ModelProto:
    """The plain network behind a Transpose of pictures `[N, H, W, C]`."""
    model = NETS["plain"]().model()
    model.graph.node[0].input[0] = "planes"
    turn = helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, turn)
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    sizes[1].dim_value, sizes[3].dim_value = SIZE, 3
    return model


@pytest.mark.parametrize("method", OF_NEURONS)
def test_channels_may_come_last_in_the_input(method: str) -> None:
    options: Options = {"method": method, "layer": "relu2", "at": ["planes", "pool1"]}
    explainer = Explainer(channels_last(), device="cpu", input_range=(LOW, HIGH), **options)
    found = explainer.explain(batch().transpose(0, 2, 3, 1), [1, 2])
    usual = explained("plain", [1, 2], method=method, layer="relu2", at=["pool1"])
    close: Options = {"rtol": 1e-4, "atol": 1e-6}
    turned = found.relevance.transpose(0, 1, 4, 2, 3)
    np.testing.assert_allclose(turned, usual.relevance, **close)
    np.testing.assert_allclose(found.at["planes"], usual.relevance, **close)
    np.testing.assert_allclose(found.at["pool1"], usual.at["pool1"], **close)
    np.testing.assert_allclose(found.heatmap(), usual.heatmap(), **close)


def of_bytes() -> onnx.ModelProto:
    """The plain network of pictures in uint8, scaled inside."""
    model = NETS["plain"]().model()
    model.graph.node[0].input[0] = "scaled"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "per"))
    model.graph.node.insert(0, helper.make_node("Mul", ["float", "per"], ["scaled"]))
    cast = helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def test_pictures_may_be_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE), dtype=np.uint8)
    scaled = (x / np.float32(255)).astype(np.float32)
    for method in ("lrp", "clrp2", "excitation_backprop"):
        options: Options = {"method": method, "layer": "relu2", "at": ["pool1"]}
        found = Explainer(of_bytes(), device="cpu", **options).explain(x, [1, 2])
        plain_model = NETS["plain"]().model()
        usual = Explainer(plain_model, device="cpu", input_range=(0, 1), **options)
        same = usual.explain(scaled, [1, 2])
        np.testing.assert_allclose(found.relevance, same.relevance, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.at["pool1"], same.at["pool1"], rtol=1e-3, atol=1e-5)


def of_rank(axes: int) -> onnx.ModelProto:
    """A network over one, two or three axes of positions."""
    rng = np.random.default_rng(axes)
    w = rng.standard_normal((5, 3, *[3] * axes)).astype(np.float32) / 3
    v = rng.standard_normal((4, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 2 * axes),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "v"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *[4] * axes])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")]
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_positions_have_any_number_of_axes(axes: int) -> None:
    model = of_rank(axes)
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, *[4] * axes)).astype(np.float32)
    for method in ("clrp2", "gradient_x_input", "guided_backprop", "contrastive_eb"):
        for kind, classes in (("channels", 5), ("units", 5 * 4**axes)):
            options: Options = {"method": method, "layer": "b", "neurons": kind}
            explainer = Explainer(model, device="cpu", input_range=(0, 1), at=["a"], **options)
            found = explainer.explain(x, [0, classes - 1])
            assert explainer.classes == classes
            assert found.relevance.shape == (2, 2, 3, *[4] * axes)
            assert found.at["a"].shape == (2, 2, 5, *[4] * axes)
            assert found.heatmap().shape == (2, 2, *[4] * axes)
            assert np.isfinite(found.relevance).all()


COARSE: Mapping[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "qdq": (lambda: load(small("residual", Kind("qdq", "us", True))), "c2"),
    "qoperator": (lambda: load(small("residual", Kind("qoperator", "us", True))), "c2_quantized"),
    "dynamic": (lambda: load(small("residual", Kind("dynamic", "us", False))), "c2"),
    "float16": (lambda: retyped(float_network("residual"), TensorProto.FLOAT16), "c2"),
}
"""A network in coarser numbers, and what the layer `c2` of the float32 one is called there."""


@pytest.mark.parametrize("form", COARSE)
def test_neurons_may_be_coarse_numbers(form: str) -> None:
    make, layer = COARSE[form]
    model, x = make(), pictures(2)
    asked: Options = {"device": "cpu", "input_range": RANGE, "signed": True}
    given = x.astype(np.float16) if form == "float16" else x
    for method in ("lrp", "clrp2", "excitation_backprop"):
        exact = Explainer(load(small("residual", None)), layer="c2", method=method, **asked)
        wanted = exact.explain(x, [2, 5])
        coarse = Explainer(model, layer=layer, method=method, at=[layer], **asked)
        found = coarse.explain(given, [2, 5])
        assert found.logits.dtype == found.relevance.dtype == np.float32
        np.testing.assert_allclose(found.seed, wanted.seed, rtol=0.1)
        off = distance(found.relevance, torch.from_numpy(wanted.relevance).double())
        assert off < 0.2, method
        if method == "lrp":
            np.testing.assert_allclose(total(found.relevance), found.seed, rtol=1e-3)
            np.testing.assert_allclose(total(found.at[layer]), found.seed, rtol=1e-5)
    options: Options = {"device": "cpu", "input_range": RANGE, "layer": layer}
    assert check(model, given[:1], method="clrp2", **options).faults == []


@pytest.mark.parametrize("kind", ["channels", "units"])
def test_noise_of_a_neuron_is_as_much_its_own_as_that_of_a_class(kind: str) -> None:
    options: Options = {"method": "random", "layer": "relu2", "neurons": kind}
    found = explained("plain", [1, 2], **options)
    assert found.relevance.shape == (2, 2, 3, SIZE, SIZE)
    assert ((found.relevance >= 0) & (found.relevance < 1)).all()
    again = explained("plain", [2], x=batch()[1:], **options)
    np.testing.assert_array_equal(again.relevance[0, 0], found.relevance[1, 1])
    assert (found.relevance[:, 0] != found.relevance[:, 1]).mean() > 0.99


# -- refusals ----------------------------------------------------------------------------------


def refusal(error: type[Exception] = UsageError, name: str = "plain", **options: Any) -> str:
    """What is said of options that do not go together: a line."""
    model = options.pop("model", None) or NETS[name]().model()
    with pytest.raises(error) as caught:
        onnx_clrp.convert(model, **{"input_range": (LOW, HIGH), **options})
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("option", ["layer", "at", "cam_layer"])
def test_a_layer_that_is_not_there_comes_with_a_hint(option: str) -> None:
    asked: Any = ["net/relu"] if option == "at" else "net/relu"
    said = refusal(**{option: asked}, method="grad_cam" if option == "cam_layer" else "lrp")
    assert "no layer is called 'net/relu'" in said
    assert "inspect --layers" in said
    assert "did you mean 'net/relu2', 'net/relu1'" in said


@pytest.mark.parametrize("name", ["", "zzzzzz", "conv1.0"])
def test_a_layer_that_is_nowhere_near_is_one_line(name: str) -> None:
    assert f"no layer is called {name!r}" in refusal(layer=name)


def beside() -> onnx.ModelProto:
    """The plain network with nodes that have nothing to do with the input's values."""
    model = NETS["plain"]().model()
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.float32), "some"))
    model.graph.node.append(helper.make_node("Relu", ["some"], ["aside"]))
    model.graph.node.append(helper.make_node("Shape", ["x"], ["sizes"]))
    for name, kind in (("aside", TensorProto.FLOAT), ("sizes", TensorProto.INT64)):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return model


@pytest.mark.parametrize("name", ["aside", "sizes"])
def test_a_layer_that_the_input_does_not_reach_is_refused(name: str) -> None:
    for options in ({"layer": name}, {"at": [name]}):
        said = refusal(model=beside(), logits="logits", **options)
        assert f"the layer {name!r} does not depend on the explained input" in said


@pytest.mark.parametrize("method", ["clrp1", "sglrp", "clrp1_authors"])
def test_other_neurons_are_no_alternatives(method: str) -> None:
    said = refusal(method=method, layer="relu2")
    assert method in said
    assert "no alternatives to one of them (paper, section 4): take lrp or clrp2" in said


@pytest.mark.parametrize("contrast", ["complement", "others"])
@pytest.mark.parametrize("method", ["lrp", "gradient", "excitation_backprop"])
def test_a_contrast_with_other_neurons_is_refused(method: str, contrast: str) -> None:
    said = refusal(method=method, contrast=contrast, layer="relu2")
    assert "no alternatives to one of them (paper, section 4)" in said


@pytest.mark.parametrize("method", ["grad_cam", "guided_grad_cam"])
def test_a_cam_is_of_classes(method: str) -> None:
    assert f"{method} explains classes, not neurons" in refusal(method=method, layer="relu2")


@pytest.mark.parametrize(("kind", "most"), [("channels", 5), ("units", 95)])
def test_a_neuron_out_of_range_is_refused(kind: str, most: int) -> None:
    options: Options = {"layer": "relu2", "neurons": kind}
    for target in (most + 1, -1, [0, most + 1]):
        assert f"is not in 0 … {most}" in refusal(**options, target=target)
        with pytest.raises(UsageError, match=f"is not in 0 … {most}"):
            explained("plain", target, **options)
    said = refusal(**options, target=f"top:{most + 2}")
    assert f"it is a class, or top:1 … top:{most + 1}" in said
    nobody: list[Any] = [[], np.zeros((2, 0), np.int64)]
    for none in nobody:
        with pytest.raises(UsageError):
            explained("plain", none, **options)


def test_neurons_are_channels_or_units() -> None:
    said = refusal(layer="relu2", neurons="pixels")
    assert said == "neurons are channels or units, not 'pixels'"


def gated() -> onnx.ModelProto:
    """The plain network with its second activation scaled by a gate."""
    model = NETS["plain"]().model()
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 6, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "squeeze.0"))
    nodes = [
        helper.make_node("GlobalAveragePool", ["relu2"], ["mean"]),
        helper.make_node("Conv", ["mean", "squeeze.0"], ["squeeze"]),
        helper.make_node("Sigmoid", ["squeeze"], ["gate"]),
        helper.make_node("Mul", ["relu2", "gate"], ["scaled"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(5, node)
    model.graph.node[9].input[0] = "scaled"
    return model


def test_no_relevance_comes_to_a_gate_but_a_gradient_does() -> None:
    for method in ("lrp", "clrp2", "excitation_backprop"):
        said = refusal(model=gated(), method=method, at=["gate"])
        assert said == "no relevance comes to 'gate': it may be a gate"
    options: Options = {"device": "cpu", "input_range": (LOW, HIGH)}
    explainer = Explainer(gated(), method="gradient", at=["gate"], **options)
    assert explainer.explain(batch(), 0).at["gate"].any()
    lrp = Explainer(gated(), method="lrp", layer="gate", **options)  # as a layer it has neurons
    assert lrp.explain(batch(), 0).relevance.any()


def test_no_relevance_comes_to_what_lies_behind_the_scores() -> None:
    model = NETS["plain"]().model()
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["p"]))
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    assert "no relevance comes to 'p'" in refusal(model=model, logits="logits", at=["p"])
    assert "no relevance comes to 'relu2'" in refusal(layer="pool1", at=["relu2"])


@pytest.mark.parametrize("method", ["grad_cam", "guided_grad_cam", "random"])
def test_a_method_without_hidden_maps_says_so(method: str) -> None:
    assert refusal(method=method, at=["relu2"]) == f"{method} has a map at the input alone"


def test_names_of_tensors_are_a_list() -> None:
    assert refusal(at="relu2") == "at is a list of names, not 'relu2'"


def test_a_name_that_is_given_by_an_iterator_is_kept() -> None:
    found = explained("plain", 0, method="lrp", at=iter(["relu2", "pool1"]))
    assert [*found.at] == ["relu2", "pool1"]


def test_a_layer_for_a_cam_is_for_a_cam_alone() -> None:
    assert "lrp makes no class activation map" in refusal(method="lrp", cam_layer="relu2")


def test_units_cannot_be_counted_where_sizes_are_open() -> None:
    said = refusal(model=open_sides(), layer="relu3", neurons="units")
    assert said == "how many units the layer 'relu3' has is not known: (None, 6, None, None)"


def reshaped() -> tuple[onnx.ModelProto, dict[str, Floats]]:
    """A network with a layer whose shape only the run will tell, by another input."""
    model = NETS["plain"]().model()
    nodes = [
        helper.make_node("Shape", ["like"], ["sizes"]),
        helper.make_node("Reshape", ["relu2", "sizes"], ["somehow"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(5, node)
    model.graph.node[7].input[0] = "somehow"
    sizes = ["A", "B", "C", "D"]
    model.graph.input.append(helper.make_tensor_value_info("like", TensorProto.FLOAT, sizes))
    return model, {"like": np.zeros((2, 6, 4, 4), np.float32)}


def test_a_layer_of_unknown_shape_has_no_neurons_but_a_map() -> None:
    model, feeds = reshaped()
    for kind in ("channels", "units"):
        said = refusal(model=model, input="x", layer="somehow", neurons=kind)
        assert said.startswith(f"how many {kind} the layer 'somehow' has is not known")
    options: Options = {"device": "cpu", "input_range": (LOW, HIGH), "input": "x"}
    explainer = Explainer(model, method="lrp", at=["somehow", "relu2"], **options)
    at = explainer.explain(batch(), 0, feeds).at
    np.testing.assert_array_equal(at["somehow"], at["relu2"])
    assert at["somehow"].any()


def test_a_layer_without_an_axis_of_neurons_is_refused() -> None:
    model = NETS["plain"]().model()
    weights = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    model.graph.initializer.append(weights)
    mean = helper.make_node("ReduceMean", ["relu2", "axes"], ["mean"], keepdims=0)
    model.graph.node.append(mean)
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N"]))
    said = refusal(model=model, logits="logits", layer="mean")
    assert "the layer 'mean' has no neurons: its shape is (None,)" in said


def test_neurons_are_those_of_a_layer() -> None:
    assert "neurons are those of a layer" in refusal(neurons="units")


def windowed() -> onnx.ModelProto:
    """The plain network with a layer that counts its windows along the batch's axis."""
    model = NETS["plain"]().model()
    for name, shape in (("windows", [-1, 6, 2, 2]), ("whole", [-1, 6, 4, 4])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), name))
    nodes = [
        helper.make_node("Reshape", ["relu2", "windows"], ["split"]),
        helper.make_node("Relu", ["split"], ["inside"]),
        helper.make_node("Reshape", ["inside", "whole"], ["joined"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(5, node)
    model.graph.node[8].input[0] = "joined"
    return model


@pytest.mark.parametrize("target", [None, 0])
@pytest.mark.parametrize("option", ["layer", "at"])
def test_a_layer_without_the_batch_in_front_is_refused_by_name(option: str, target: Any) -> None:
    asked: Any = ["inside"] if option == "at" else "inside"
    options: Options = {"method": "lrp", option: asked, "target": target}
    with pytest.raises(ClrpError, match="inside") as caught:
        Explainer(windowed(), device="cpu", input_range=(LOW, HIGH), **options).explain(batch())
    assert "ONNX Runtime" not in str(caught.value)


@pytest.mark.parametrize("method", ["lrp", "gradient"])
@pytest.mark.parametrize("layer", ["whole", "larger"])
def test_a_layer_that_is_no_number_is_refused_by_name(layer: str, method: str) -> None:
    model = NETS["plain"]().model()
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    cast = helper.make_node("Cast", ["relu2"], ["whole"], to=TensorProto.INT64)
    model.graph.node.extend([cast, helper.make_node("Greater", ["relu2", "half"], ["larger"])])
    for name, kind in (("whole", TensorProto.INT64), ("larger", TensorProto.BOOL)):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    options: Options = {"method": method, "layer": layer, "logits": "logits"}
    with pytest.raises(ClrpError, match=layer) as caught:
        Explainer(model, device="cpu", input_range=(LOW, HIGH), **options)
    assert "ONNX Runtime" not in str(caught.value)


def test_neurons_without_a_linear_map_have_no_opposite() -> None:
    model = channels_last()
    said = refusal(ModelError, model=model, method="clrp2", layer="planes")
    assert "no contrast: there is no linear map" in said
    lrp = Explainer(model, device="cpu", input_range=(LOW, HIGH), method="lrp", layer="planes")
    pictures = batch().transpose(0, 2, 3, 1)
    kept = np.zeros_like(pictures)
    kept[..., 1] = pictures[..., 1]
    np.testing.assert_allclose(lrp.explain(pictures, 1).relevance[:, 0], kept, atol=1e-6)


def test_a_neuron_behind_a_short_cut_has_no_opposite() -> None:
    said = refusal(ModelError, "residual", method="clrp2", layer="sum2")
    assert "no contrast" in said
    for method in ("lrp", "gradient", "excitation_backprop"):
        found = explained("residual", [1, 2], method=method, layer="sum2")
        for k, target in enumerate((1, 2)):
            mask = channel((6, SIZE, SIZE), target)
            ref = wanted("residual", method, "sum2", mask)["x"]
            assert distance(found.relevance[:, k], ref) <= RELEVANCE_AGREES
