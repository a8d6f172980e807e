"""Networks of torchvision with seeded weights, and pictures to show them.

No weights are downloaded: they are drawn so that activations neither vanish nor explode,
with biases, and with scales of both signs in norms and layer scales.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from .network_affine import BATCH_NORMS, OTHER_NORMS
from .network_linear import LINEAR_MODULES

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

# Lowest and highest value of a normalised picture, in the arithmetic of `photographs`, so that
# a saturated pixel lies exactly at its bound.
BOUNDS = ((np.float32(0) - MEAN) / STD, (np.float32(1) - MEAN) / STD)

_CALIBRATION_SIZE = 128
_CALIBRATION_PICTURES = 2
_CALM = 1.0

_TRANSFORMERS = ("vit", "swin", "maxvit")
CLASSIFIERS = tuple(
    name for name in models.list_models(module=models) if not name.startswith(_TRANSFORMERS)
)
"""The convolutional classifiers of torchvision."""

NAMES = (
    *("alexnet", "vgg16", "vgg16_bn", "squeezenet1_1", "googlenet", "googlenet_transform"),
    *("inception_v3", "resnet18", "resnet50", "densenet121", "mobilenet_v2"),
    *("mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf"),
    *("regnet_y_400mf", "efficientnet_b0", "convnext_tiny"),
)
"""One classifier or two of every family."""


def _build(name: str) -> nn.Module:
    """A classifier without the auxiliary ones that only training needs."""
    if name == "googlenet_transform":
        return models.googlenet(transform_input=True, aux_logits=False, init_weights=False)
    second_head = name in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": False} if second_head else {}
    return models.get_model(name, weights=None, **options)


def make(name: str, *, seed: int = 0, samples: np.ndarray | None = None) -> nn.Module:
    """Build a network of `CLASSIFIERS` or `NAMES` in evaluation mode, with seeded weights.

    It takes pictures [N, 3, H, W], H and W at least 64 (of inception_v3 75), float32, and returns
    logits [N, 1000]. samples: pictures for the statistics of its norms, see `initialise`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # The constructors draw too; what they draw is overwritten.
        net = _build(name).eval().requires_grad_(False)
    initialise(net, seed=seed, samples=None if samples is None else torch.from_numpy(samples))
    return net


def initialise(
    net: nn.Module, *, seed: int = 0, size: int = _CALIBRATION_SIZE, samples: Tensor | None = None
) -> None:
    """Draw every weight of a network of pictures [N, 3, size, size], or of samples, in place.

    Convolutions and fully connected layers keep the second moment (He et al. 2015) and have
    biases; the statistics of BatchNorm are those of a few pictures.

    Networks of many layers are chaotic with such weights: the activations of efficientnet_b7
    explode on any pictures but those of the statistics, and rounding to float32 alone moves the
    logits of regnet_x_400mf by 2e-5. So samples [n, C, ...] may be given, among them those that
    will be explained; then BatchNorm also shifts more of what it gives into the open half of a
    ReLU, which leaves 1e-7 of those 2e-5.
    """
    generator = torch.Generator().manual_seed(seed)
    lift = 0.0 if samples is None else _CALM
    if samples is None:
        samples = torch.from_numpy(photographs(_CALIBRATION_PICTURES, size, seed))
    with torch.no_grad():
        for module in net.modules():
            _draw(module, generator)
            if isinstance(module, BATCH_NORMS) and module.bias is not None:
                module.bias += lift
        _lift_rectified_classifier(net, generator)
        _calibrate(net, samples)


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights that a module has itself."""
    if isinstance(module, LINEAR_MODULES):
        _draw_linear(module, generator)
    elif isinstance(module, (*BATCH_NORMS, *OTHER_NORMS)) and module.weight is not None:
        _draw_norm(module, generator)
    elif isinstance(module, nn.PReLU):
        module.weight.copy_(torch.rand(module.weight.shape, generator=generator) / 2)
    scale = getattr(module, "layer_scale", None)
    if isinstance(scale, Tensor):
        scale.copy_(_scales(scale.numel(), generator).view(scale.shape) / 2)


def _draw_linear(layer: nn.Module, generator: torch.Generator) -> None:
    """Weights of variance 2 / fan-in, biases in -0.1 ... 0.1."""
    deviation = (2 / layer.weight[0].numel()) ** 0.5
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * deviation)
    if layer.bias is not None:
        layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator) * 0.2 - 0.1)


def _draw_norm(norm: nn.Module, generator: torch.Generator) -> None:
    """Scales as below, and shifts in -0.5 ... 0.5."""
    shape = norm.weight.shape
    norm.weight.copy_(_scales(norm.weight.numel(), generator).view(shape))
    norm.bias.copy_(torch.rand(shape, generator=generator) - 0.5)


def _scales(channels: int, generator: torch.Generator) -> Tensor:
    """Scales of magnitude 0.5 ... 1.5, one in ten negative."""
    scale = 0.5 + torch.rand(channels, generator=generator)
    negative = torch.rand(channels, generator=generator) < 0.1
    return torch.where(negative, -scale, scale)


def _lift_rectified_classifier(net: nn.Module, generator: torch.Generator) -> None:
    """Raise the biases of SqueezeNet's classifier, whose ReLU would set half its logits to 0."""
    if isinstance(net, models.SqueezeNet):
        bias = net.classifier[1].bias
        bias.copy_(torch.rand(bias.shape, generator=generator) * 3 + 1)


def _calibrate(net: nn.Module, samples: Tensor) -> None:
    """Set the statistics of every BatchNorm to those of its input, samples [n, C, ...] given.

    They are taken in float64 and rounded to eight bits, so that the order in which a machine
    adds does not show in them.
    """
    if not any(isinstance(module, BATCH_NORMS) for module in net.modules()):
        return
    double = copy.deepcopy(net).double()
    norms = {name: m for name, m in double.named_modules() if isinstance(m, BATCH_NORMS)}
    for norm in norms.values():
        norm.register_forward_pre_hook(_take_statistics)
    double(samples.double())
    for name, norm in norms.items():
        target = net.get_submodule(name)
        target.running_mean.copy_(norm.running_mean)
        target.running_var.copy_(norm.running_var)


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Store mean and variance of the input [N, C, ...] in its BatchNorm, before it runs."""
    x = inputs[0].transpose(0, 1).flatten(1)
    norm.running_mean.copy_(_round(x.mean(1)))
    # A channel that happens to be constant on these pictures must not be blown up on others.
    norm.running_var.copy_(_round(x.var(1, correction=0).clamp(min=1e-2)))


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
