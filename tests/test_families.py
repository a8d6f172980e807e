"""One model of each family of torchvision's classifiers, and forms that none of them has.

Each by both of PyTorch's exporters and by every method, against the float64 reference on the
modules. Squeezenet, googlenet, resnet and alexnet are in `test_networks`; here is their ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from networks_support import (
    CALIBRATION,
    CLOSES,
    CONSERVES,
    EXPORTERS,
    METHODS,
    UNCHANGED,
    Case,
    Floats,
    Subject,
    change_of_logits,
    ledger,
    of_torchvision,
    open_part,
    too_far,
    widest,
)
from reference.networks import initialise, photographs
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import SqueezeExcitation

from onnx_clrp.check import check

SIZES: Mapping[str, int] = {
    "densenet121": 64,
    "inception_v3": 128,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 128,
    "mnasnet0_5": 96,
    "shufflenet_v2_x0_5": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "efficientnet_b0": 128,
    "convnext_tiny": 64,
}
"""One of each family, and a size at which the class maps are not collinear."""

ELSEWHERE: Mapping[str, int] = {
    "alexnet": 224,
    "squeezenet1_1": 96,
    "googlenet": 64,
    "resnet18": 64,
    "resnet50": 96,
    "vgg16": 224,
    "vgg16_bn": 224,
}
"""What `test_networks` judges."""


# -- forms that no model of torchvision has ------------------------------------------------------


def sensor() -> nn.Module:
    """A classifier of signals `[N, 6, 128]`: everything in one dimension."""
    return nn.Sequential(
        *(nn.BatchNorm1d(6), nn.Conv1d(6, 16, 7, stride=2, padding=3), nn.BatchNorm1d(16)),
        *(nn.ReLU(), nn.MaxPool1d(3, 2, padding=1)),
        *(nn.Conv1d(16, 16, 3, padding=2, dilation=2, groups=16), nn.LeakyReLU(0.1)),
        *(nn.Conv1d(16, 24, 1), nn.BatchNorm1d(24), nn.PReLU(24), nn.AvgPool1d(2)),
        *(nn.Conv1d(24, 24, 5, padding=2, groups=4), nn.ReLU(), nn.AdaptiveAvgPool1d(1)),
        *(nn.Flatten(), nn.Linear(24, 12)),
    )


def video() -> nn.Module:
    """A classifier of clips `[N, 3, 8, 32, 32]`: everything in three dimensions."""
    return nn.Sequential(
        *(nn.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)), nn.BatchNorm3d(8)),
        *(nn.ReLU(), nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))),
        *(nn.Conv3d(8, 16, 3, padding=1, groups=2, bias=False), nn.BatchNorm3d(16), nn.ReLU()),
        *(nn.MaxPool3d(2), nn.Conv3d(16, 24, 1), nn.ReLU(), nn.AvgPool3d((2, 1, 1))),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 12)),
    )


class Residual(nn.Module):
    """Features and their input, added."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return x + self.layers(x)


def signed() -> nn.Module:
    """No ReLU: every activation has both signs, and so have the sums and the means."""
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(0.2)),
        Residual(nn.Conv2d(12, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ELU()),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Mish(), nn.AvgPool2d(2)),
        Residual(nn.Conv2d(16, 16, 1), nn.GELU(), nn.Conv2d(16, 16, 1)),
        *(nn.Conv2d(16, 16, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )


def gated() -> nn.Module:
    """Hard-swish, and a squeeze-and-excite gate within a residual sum."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.Hardswish()),
        Residual(
            *(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.Hardswish()),
            *(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.SiLU()),
            SqueezeExcitation(32, 8, scale_activation=nn.Hardsigmoid),
            *(nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16)),
        ),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.Hardswish()),
        nn.Linear(10, 10),
    )


def upsampled() -> nn.Module:
    """Back to a larger plane by a transposed convolution and by interpolation."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.SiLU()),
        *(nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=2),),
        *(nn.BatchNorm2d(12), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(12, 8, 3)),
        *(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


def narrow_vgg() -> nn.Module:
    """VGG11 with a small head, for small pictures."""
    features = models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 50))


def signals(n: int) -> Floats:
    """Smooth random signals of six sensors, `[n, 6, 128]`, within `SENSOR_BOUNDS`."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(n, 6, 24, generator=generator)
    low, high = (torch.from_numpy(bound)[:, None] for bound in SENSOR_BOUNDS)
    return nn.functional.interpolate(coarse, 128, mode="linear").clamp(low, high).numpy()


def clips(n: int) -> Floats:
    """Clips of eight pictures, `[n, 3, 8, 32, 32]`."""
    pictures = photographs(n * 8, 32, seed=5).reshape(n, 8, 3, 32, 32)
    return np.ascontiguousarray(pictures.transpose(0, 2, 1, 3, 4))


SENSOR_BOUNDS = (
    np.array([-2, -1, -1.5, -2, -1, -0.5], np.float32),
    np.array([2, 1, 1, 0.5, 1.5, 2], np.float32),
)


# -- the cases -----------------------------------------------------------------------------------


def built(build: Callable[[], nn.Module], samples: Floats) -> nn.Module:
    """A small network with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
        net = build().eval().requires_grad_(False)
    initialise(net, samples=torch.from_numpy(samples))
    return net


def small(build: Callable[[], nn.Module], samples: Floats, **options: Any) -> Case:
    """A case of a small network."""
    return Case(build.__name__, lambda: built(build, samples), lambda: samples[:2], **options)


CASES = (
    small(sensor, signals(CALIBRATION), bounds=SENSOR_BOUNDS),
    small(video, clips(CALIBRATION)),
    *(small(build, photographs(CALIBRATION, 32, seed=5)) for build in (signed, gated, upsampled)),
    small(narrow_vgg, photographs(CALIBRATION, 64, seed=5)),
    *(of_torchvision(name, size) for name, size in SIZES.items()),
)


@pytest.fixture(scope="module", params=[pytest.param(case, id=case.name) for case in CASES])
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


# -- the promises --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_maps_agree_with_float64(subject: Subject, exporter: str, method: str) -> None:
    assert too_far(subject, exporter, method, "default") == {}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_lrp_hands_on_or_absorbs_the_whole_logit(subject: Subject, exporter: str) -> None:
    assert open_part(subject, exporter, "default") <= CONSERVES


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_logits_are_unchanged(subject: Subject, exporter: str) -> None:
    assert change_of_logits(subject, exporter, "clrp2") <= UNCHANGED


def test_check_finds_nothing(subject: Subject) -> None:
    model = subject.model("torchscript")
    found = check(model, subject.pictures[:1], input_range=subject.case.bounds)
    assert widest(found.ledger) <= CLOSES
    assert found.faults == []


def test_the_ledger_closes_at_every_node(subject: Subject) -> None:
    assert widest(ledger(subject, "dynamo")) <= CLOSES


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "resnet18", "alexnet"])
def test_the_ledger_closes_of_what_is_judged_elsewhere(name: str, exporter: str) -> None:
    subject = Subject(of_torchvision(name, ELSEWHERE[name]))
    assert widest(ledger(subject, exporter)) <= CLOSES
