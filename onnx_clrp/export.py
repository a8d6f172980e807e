"""A torchvision classifier as an ONNX file; PyTorch is imported here and nowhere else."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import onnx

from onnx_clrp.errors import ClrpError, UsageError
from onnx_clrp.image import Preprocessing
from onnx_clrp.model import PREFIX

if TYPE_CHECKING:
    from torch import nn


def export(
    name: str,
    *,
    weights: str = "DEFAULT",
    size: int | None = None,
    exporter: str = "dynamo",
) -> onnx.ModelProto:
    """Export one of torchvision's classifiers, with a batch that is open.

    Args:
        name: as in `torchvision.models.list_models`, for instance `"resnet18"`.
        weights: a name of torchvision's weights (`"DEFAULT"`, `"IMAGENET1K_V1"`), the path of a
            file with a state dict, or `"none"` for random ones.
        size: height and width of the input; None for what the weights were trained with.
        exporter: `"torchscript"` or `"dynamo"`, PyTorch's two ways to ONNX.

    Returns:
        The model; labels and preprocessing are in its metadata where the weights know them.

    Raises:
        UsageError: no such model, weights or exporter.
        ClrpError: PyTorch is missing, the weights cannot be had, or the export fails.
    """
    _torchvision()
    if exporter not in _EXPORTERS:
        raise UsageError(f"unknown exporter {exporter!r}: choose from {', '.join(_EXPORTERS)}")
    known = _known_weights(name, weights)
    net = _network(name, weights, known)
    side = size or _trained_size(known)
    model = _exported(net.eval(), side, exporter)
    for key, value in _about(known).items():
        model.metadata_props.add(key=PREFIX + key, value=value)
    return model


def names() -> list[str]:
    """The classifiers that torchvision has."""
    models = _torchvision().models
    return [str(n) for n in models.list_models(module=models)]


def _torchvision() -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise ClrpError('PyTorch is missing: pip install "onnx-clrp[export]"') from error
    return torchvision


def _known_weights(name: str, weights: str) -> Any:
    """What torchvision knows of the weights; None for a file of weights, or none."""
    if name not in names():
        raise UsageError(f"torchvision has no classifier called {name!r}; resnet18 is one")
    choices = _torchvision().models.get_model_weights(name)
    if weights == "none" or Path(weights).suffix or Path(weights).is_file():
        return None
    if weights not in choices.__members__:
        raise UsageError(
            f"{name} has no weights {weights!r}: choose from {', '.join(choices.__members__)},"
            " a state-dict file, or none"
        )
    return choices[weights]


def _network(name: str, weights: str, known: Any) -> nn.Module:
    import torch

    models = _torchvision().models
    if weights == "none":
        return _built(name, {})
    if known is None:
        state = _state(torch, weights)
        net = _built(name, {"num_classes": _classes(state)})
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            reason = shorten(str(error).partition("\n")[2], 200, placeholder=" …")
            raise ClrpError(f"{weights}: not the weights of a {name}: {reason}") from error
        return net
    try:
        net = models.get_model(name, weights=known)
    except (OSError, RuntimeError) as error:  # no network, no such host, a broken download
        raise ClrpError(
            f"the weights of {name} cannot be downloaded ({error}): give a state-dict file with"
            " --weights FILE, or --weights none for random ones"
        ) from error
    return _typed(net)


def _built(name: str, options: dict[str, Any]) -> nn.Module:
    """The network without weights, and without the second head that only training needs."""
    if name in ("googlenet", "inception_v3"):
        options = {**options, "aux_logits": False, "init_weights": True}
    return _typed(_torchvision().models.get_model(name, weights=None, **options))


def _typed(net: nn.Module) -> nn.Module:
    return net


def _state(torch: Any, path: str) -> dict[str, Any]:
    """A state dict from a file; only tensors are read, no code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and file errors have no common base
        reason = error.strerror if isinstance(error, OSError) else "save model.state_dict() anew"
        raise ClrpError(f"{path}: cannot be read as a state dict: {reason}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(k, str) for k in state):
        raise ClrpError(f"{path}: holds no state dict")
    return {k: v for k, v in state.items() if not k.startswith(("aux", "AuxLogits"))}


def _classes(state: dict[str, Any]) -> int:
    """How many classes the last matrix of a state dict tells apart."""
    matrices = [v for v in state.values() if getattr(v, "ndim", 0) >= 2]
    if not matrices:
        raise ClrpError("the state dict holds no weights")
    return int(matrices[-1].shape[0])


def _exported(net: nn.Module, side: int, exporter: str) -> onnx.ModelProto:
    try:
        with warnings.catch_warnings(), TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # the exporters warn of their own deprecations
            file = Path(folder) / "model.onnx"
            _EXPORTERS[exporter](net, side, file)
            return onnx.load(file)
    except Exception as error:  # both exporters raise whatever a network makes them stumble over
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ClrpError(f"PyTorch cannot export the network: {reason}") from error


def _by_dynamo(net: nn.Module, side: int, file: Path) -> None:
    import torch

    torch.onnx.export(
        net,
        (torch.zeros(1, 3, side, side),),
        file,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["image"],
        output_names=["logits"],
        external_data=True,  # or it refuses more than 2 GiB; `onnx.load` reads them back
        verbose=False,
    )


def _by_torchscript(net: nn.Module, side: int, file: Path) -> None:
    import torch

    torch.onnx.export(
        net,
        (torch.zeros(1, 3, side, side),),
        str(file),  # above 2 GiB it takes no Path
        dynamo=False,
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
    )


_EXPORTERS = {"dynamo": _by_dynamo, "torchscript": _by_torchscript}
"""PyTorch's two ways to ONNX."""


def _trained_size(known: Any) -> int:
    return 224 if known is None else int(known.transforms().crop_size[0])


def _about(known: Any) -> dict[str, str]:
    """Labels and preprocessing, where the weights are torchvision's own."""
    if known is None:
        return {}
    transforms = known.transforms()
    preprocessing = Preprocessing.preset(
        "imagenet",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=int(transforms.resize_size[0]),
    )
    return {
        "labels": json.dumps(known.meta["categories"]),
        "preprocessing": preprocessing.to_json(),
    }
