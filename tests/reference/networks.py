"""Networks of torchvision with seeded weights, and pictures to show them.

No weights are downloaded: they are drawn so that activations neither vanish nor explode,
with biases, and with BatchNorm scales of both signs.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

# Lowest and highest value of a normalised picture, in the arithmetic of `photographs`, so that
# a saturated pixel lies exactly at its bound.
BOUNDS = ((np.float32(0) - MEAN) / STD, (np.float32(1) - MEAN) / STD)

_CALIBRATION_SIZE = 128
_CALIBRATION_PICTURES = 2


def _googlenet(*, transform_input: bool) -> nn.Module:
    """GoogLeNet without its auxiliary classifiers."""
    return models.googlenet(
        weights=None, aux_logits=False, transform_input=transform_input, init_weights=False
    )


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": models.alexnet,
    "vgg16": models.vgg16,
    "vgg16_bn": models.vgg16_bn,
    "squeezenet1_1": models.squeezenet1_1,
    "googlenet": lambda: _googlenet(transform_input=False),
    "googlenet_transform": lambda: _googlenet(transform_input=True),
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "densenet121": models.densenet121,
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "mnasnet0_5": models.mnasnet0_5,
    "efficientnet_b0": models.efficientnet_b0,
}

NAMES = tuple(_BUILDERS)


def make(name: str, *, seed: int = 0) -> nn.Module:
    """Build the network `name` of `NAMES` in evaluation mode, float32, with seeded weights.

    It takes pictures [N, 3, H, W], H and W at least 64, and returns logits [N, 1000].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
        net = _BUILDERS[name]().eval().requires_grad_(False)
    initialise(net, seed=seed)
    return net


def initialise(net: nn.Module, *, seed: int = 0, size: int = _CALIBRATION_SIZE) -> None:
    """Draw every weight of a network of pictures [N, 3, size, size], in place.

    Convolutions and fully connected layers keep the second moment (He et al. 2015) and have
    biases; the statistics of BatchNorm are those of a few pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _draw_linear(module, generator)
            elif isinstance(module, nn.BatchNorm2d):
                _draw_norm(module, generator)
        _lift_rectified_classifier(net, generator)
        _calibrate(net, torch.from_numpy(photographs(_CALIBRATION_PICTURES, size, seed)))


def _draw_linear(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Weights of variance 2 / fan-in, biases in -0.1 ... 0.1."""
    deviation = (2 / layer.weight[0].numel()) ** 0.5
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * deviation)
    if layer.bias is not None:
        layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator) * 0.2 - 0.1)


def _draw_norm(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    """Scales of magnitude 0.5 ... 1.5, one in ten negative, and shifts in -0.5 ... 0.5."""
    channels = norm.num_features
    scale = 0.5 + torch.rand(channels, generator=generator)
    negative = torch.rand(channels, generator=generator) < 0.1
    norm.weight.copy_(torch.where(negative, -scale, scale))
    norm.bias.copy_(torch.rand(channels, generator=generator) - 0.5)


def _lift_rectified_classifier(net: nn.Module, generator: torch.Generator) -> None:
    """Raise the biases of SqueezeNet's classifier, whose ReLU would set half its logits to 0."""
    if isinstance(net, models.SqueezeNet):
        bias = net.classifier[1].bias
        bias.copy_(torch.rand(bias.shape, generator=generator) * 3 + 1)


def _calibrate(net: nn.Module, pictures: Tensor) -> None:
    """Set the statistics of every BatchNorm2d to those of its input, [n, 3, size, size] given.

    They are taken in float64 and rounded to eight bits, so that the order in which a machine
    adds does not show in them.
    """
    double = copy.deepcopy(net).double()
    norms = {name: m for name, m in double.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.register_forward_pre_hook(_take_statistics)
    double(pictures.double())
    for name, norm in norms.items():
        target = net.get_submodule(name)
        target.running_mean.copy_(norm.running_mean)
        target.running_var.copy_(norm.running_var)


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Store mean and variance of the input [N, C, H, W] in its BatchNorm, before it runs."""
    norm.running_mean.copy_(_round(inputs[0].mean((0, 2, 3))))
    # A channel that happens to be constant on these pictures must not be blown up on others.
    norm.running_var.copy_(_round(inputs[0].var((0, 2, 3), correction=0).clamp(min=1e-2)))


def _round(values: Tensor) -> Tensor:
    """Round to eight significant bits."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 256).round() / 256, exponent)


def photographs(n: int, size: int, seed: int) -> np.ndarray:
    """Smooth random pictures with ImageNet's normalisation, float32 [n, 3, size, size].

    Values are k / 255 before (v - MEAN) / STD, so all lie within `BOUNDS`; every picture has
    a black and a white corner, exactly at the bounds.
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(n, 3, size, size)
    for cells, weight in ((3, 1.0), (9, 0.5), (27, 0.25)):
        noise = torch.randn(n, 3, cells, cells, generator=generator) * weight
        picture += functional.interpolate(noise, (size, size), mode="bilinear")
    values = (torch.sigmoid(1.5 * picture) * 255).round() / 255
    corner = max(size // 16, 1)
    values[:, :, :corner, :corner] = 0
    values[:, :, -corner:, -corner:] = 1
    return (values.numpy() - MEAN[:, None, None]) / STD[:, None, None]
