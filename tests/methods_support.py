"""Networks explained by every method, what float32 chose on the way, and the reference's word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from networks_support import (
    CALIBRATION,
    EXPORTERS,
    Floats,
    Integers,
    exported,
    first_maxima,
    report,
    same,
)
from onnx import TensorProto, helper
from reference.attribution import Asked, Question, parts
from reference.attribution_gradient import Choices
from reference.networks import BOUNDS, initialise, make, photographs
from torch import Tensor, nn
from torchvision import models

import onnx_clrp
from onnx_clrp.sessions import open_session

_KINKS = ("Relu", "Clip")


@dataclass(frozen=True)
class Run:
    """One float32 run of an explainer.

    Attributes:
        relevance: `[N, k, C, ...]`.
        choices: the winners of its max pools, and which of its ReLUs were open.
    """

    relevance: Floats
    choices: Choices


@dataclass(frozen=True)
class Case:
    """A network and what it is shown.

    Attributes:
        name: what a test calls it.
        make: builds it with seeded weights.
        show: its inputs `[N, C, ...]`.
        cam: the name that torch.fx gives the node whose output Grad-CAM takes by default.
        exporters: by whom it is exported.
        targets: how many of its top classes are explained.
        bounds: lowest and highest input, for each channel.
    """

    name: str
    make: Callable[[], nn.Module]
    show: Callable[[], Floats]
    cam: str | None = None
    exporters: tuple[str, ...] = EXPORTERS
    targets: int = 2
    bounds: tuple[Floats, Floats] = BOUNDS


@dataclass
class Subject:
    """A network with its exports, and what the reference was asked of it."""

    case: Case
    models: dict[str, onnx.ModelProto] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

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
        """Its top classes, `[N, k]`, in another order for every other picture."""
        scores = self.net(torch.from_numpy(self.pictures))
        top = scores.topk(self.case.targets).indices.numpy()
        top[1::2] = top[1::2, ::-1]
        return np.asarray(top, np.int64)

    def model(self, exporter: str) -> onnx.ModelProto:
        """The network as that exporter writes it."""
        if exporter not in self.models:
            self.models[exporter] = exported(self.net, self.pictures[:1], exporter)
        return self.models[exporter]

    def explained(self, exporter: str, **options: Any) -> Run:
        """The signed map of a method, and what float32 chose."""
        model = self.model(exporter)
        low, high = (bound.tolist() for bound in self.case.bounds)
        made = onnx_clrp.convert(model, **{"input_range": (low, high), "signed": True, **options})
        return run(model, made, self.pictures, self.targets)

    def ask(self, choices: Choices) -> Asked:
        """The reference, for it to choose the same."""
        for known in self.asked:
            if alike(known.choices, choices):
                return known
        case, target = self.case, self.targets.reshape(-1)
        pictures = np.repeat(self.pictures, case.targets, axis=0)
        self.asked.append(Asked(self.net, pictures, target, case.bounds, choices, case.cam))
        return self.asked[-1]

    def off(
        self, exporter: str, question: Question, *, least: float = 0.0, **options: Any
    ) -> float:
        """The largest ‖out - ref‖ / ‖ref‖ of all pictures and targets.

        A contrast that is smaller than the `least` part of the concept's map counts as that large.
        """
        out = self.explained(exporter, **options)
        concept, dual = parts(self.ask(out.choices), question)
        wanted = concept if dual is None else concept - dual
        size = torch.maximum(norms(wanted), least * norms(concept))
        found = distance(out.relevance, wanted, size)
        report(
            f"{self.case.name} {exporter} {options}: {found:.1e}"
            f" (of the map itself {distance(out.relevance, wanted, norms(wanted)):.1e})"
        )
        return found


def norms(maps: Tensor) -> Tensor:
    """The norm of each map."""
    sizes: Tensor = torch.linalg.vector_norm(maps.flatten(1), dim=1)
    return sizes


def distances(out: Floats, wanted: Tensor, size: Tensor | None = None) -> Tensor:
    """‖out - ref‖ / ‖ref‖ of each of the maps `[N, k, C, ...]`; a NaN counts as infinite.

    size: what to divide by instead. A map that is zero in the reference has to be zero.
    """
    off = norms(torch.from_numpy(out).double().reshape(wanted.shape) - wanted)
    relative = off / (norms(wanted) if size is None else size)
    return torch.where(off == 0, 0.0, relative).nan_to_num(torch.inf)


def distance(out: Floats, wanted: Tensor, size: Tensor | None = None) -> float:
    """The largest of these distances."""
    return float(distances(out, wanted, size).max())


def alike(a: Choices | None, b: Choices) -> bool:
    """Are these the same choices?"""
    return a is not None and same(a.winners, b.winners) and same(a.opened, b.opened)


def run(
    model: onnx.ModelProto, explainer: onnx.ModelProto, pictures: Floats, targets: Integers
) -> Run:
    """Run an explainer, and look at its forward pass where the gradient jumps.

    Every choice is made for each target, as the reference sees a picture once for each.
    """
    forward = {name for node in model.graph.node for name in node.output}
    nodes = [node for node in explainer.graph.node if forward.intersection(node.output)]
    pools = [node for node in nodes if node.op_type == "MaxPool"]
    kinks = [node for node in nodes if node.op_type in _KINKS]
    watched = {name for pool in pools for name in (pool.input[0], pool.output[0])}
    watched |= {kink.output[0] for kink in kinks}
    known = [y.name for y in explainer.graph.output]
    watching = onnx.ModelProto()
    watching.CopyFrom(explainer)
    watching.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in sorted(watched.difference(known))
    )
    session = open_session(watching, "cpu").session
    names = ["relevance", *sorted(watched)]
    values = dict(zip(names, session.run(names, {"x": pictures, "target": targets}), strict=True))
    winners = [first_maxima(pool, values[pool.input[0]], values[pool.output[0]]) for pool in pools]
    opened = [_open(kink, values[kink.output[0]]) for kink in kinks]
    k = targets.shape[1]
    repeated = ([np.repeat(v, k, axis=0) for v in chosen] for chosen in (winners, opened))
    return Run(values["relevance"], Choices(*repeated))


def _open(kink: onnx.NodeProto, y: Floats) -> np.ndarray:
    """Where a ReLU or a ReLU6 let its input pass, by its output."""
    return (y > 0) & (y < (6 if kink.op_type == "Clip" else np.inf))


# -- networks ----------------------------------------------------------------------------------

CLASSES = 10


def of_torchvision(name: str, size: int, cam: str, *exporters: str, samples: int = 2) -> Case:
    """A classifier of torchvision; its batch norms' statistics are those of its pictures."""

    def pictures() -> Floats:
        return np.asarray(photographs(CALIBRATION, size, seed=5))

    def made() -> nn.Module:
        return make(name, samples=pictures())

    return Case(name, made, lambda: pictures()[:samples], cam, exporters or ("torchscript",))


_HEADS = {
    "alexnet": (95, 1, 256, "features_11"),
    "vgg11_bn": (64, 0, 512, "features_27"),
    "vgg16_bn": (64, 0, 512, "features_42"),
}
"""Pictures of that size leave 2x2 features; the place of the first fully connected layer, the
channels that it reads, and what Grad-CAM takes."""


def with_small_head(name: str) -> Case:
    """A classifier of torchvision that reads 2x2 features in place of 6x6 or 7x7."""
    size, first, channels, cam = _HEADS[name]

    def samples() -> Floats:
        return np.asarray(photographs(CALIBRATION, size, seed=5))

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
            net: Any = models.get_model(name, weights=None)
            net.avgpool = nn.Identity()
            net.classifier[first] = nn.Linear(channels * 4, 4096)
        made: nn.Module = net.eval().requires_grad_(False)
        initialise(made, samples=torch.from_numpy(samples()))
        return made

    return Case(name, build, lambda: samples()[:2], cam, ("torchscript",))


def of_builder(build: Callable[[], nn.Module], cam: str | None = None, samples: int = 3) -> Case:
    """A small network of pictures `[N, 3, 32, 32]`."""

    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
            net = build().eval().requires_grad_(False)
        initialise(net, size=32)
        return net

    return Case(build.__name__, made, lambda: np.asarray(photographs(samples, 32, seed=5)), cam)


class Sum(nn.Module):
    """An activation, and layers of it, added."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        y: Tensor = x + self.layers(x)
        return y


class Gated(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel."""
        return x * torch.sigmoid(self.scale(x))


def plain() -> nn.Module:
    """Convolutions, pools of both kinds, and two fully connected layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(288, 24), nn.ReLU(), nn.Linear(24, CLASSES)),
    )


def residual() -> nn.Module:
    """Sums with a ReLU behind them, and without one."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU()),
        *(Sum(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), nn.ReLU()),
        *(nn.AvgPool2d(3), Sum(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 12, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(108, CLASSES)),
    )


def capped() -> nn.Module:
    """ReLUs that end at 6, a depthwise layer, a global average pool."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), Larger(), nn.ReLU6()),
        *(nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, CLASSES)),
    )


class Larger(nn.Module):
    """Four times as much, so that many a ReLU6 is at its top."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * 4


def convolutional() -> nn.Module:
    """A convolution as classifier, a ReLU and an average pool behind it."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 12, 3)),
        *(nn.ReLU(), nn.Conv2d(12, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def smooth() -> nn.Module:
    """Activations of every other kind, and a gate."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), Gated(8), nn.Conv2d(8, 8, 3), nn.GELU()),
        *(nn.Conv2d(8, 8, 3, stride=2), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 1), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(288, CLASSES)),
    )


SMALL = (
    of_builder(plain, "_5"),
    of_builder(residual, "_7"),
    of_builder(capped, "_7"),
    of_builder(convolutional, "_4"),
    of_builder(smooth, "_8"),
)
