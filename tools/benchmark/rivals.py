"""Other ways to the same maps, and whether their maps are the same."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmark import layerwise, zennit_lrp
from benchmark.networks import HIGH, LOW, top_classes
from benchmark.settings import Settings
from onnx_clrp import Explainer

Rivals = Mapping[str, ModuleType]


def rivals_for(net: nn.Module, settings: Settings) -> Rivals:
    """Those that know the method, and the kind of network."""
    there = {"zennit": zennit_lrp, "layerwise": layerwise}
    if not layerwise.applies(net):
        del there["layerwise"]
    return {
        name: module
        for name, module in there.items()
        if name not in settings.skipped and settings.method in module.METHODS
    }


def explainer_of(
    rival: ModuleType, net: nn.Module, method: str, dtype: torch.dtype = torch.float32
) -> Any:
    """The rival's explainer of a copy of the network, where that is."""
    device = next(net.parameters()).device
    low, high = (bound.to(device, dtype) for bound in (LOW, HIGH))
    return rival.Explainer(copy.deepcopy(net).to(dtype), low, high, method)


def agreement(
    rivals: Rivals,
    net: nn.Module,
    model: onnx.ModelProto,
    method: str,
    picture: NDArray[np.float32],
) -> dict[str, dict[str, Any]]:
    """How far the package's signed map is from each rival's, or why a rival has none.

    `agrees` is measured against the rival in float64, and shows whether both calculate the same
    thing; `float32` is how far the rival is from itself in float64 when it runs as it is timed.
    """
    if not rivals:
        return {}
    x = torch.from_numpy(picture)
    targets = top_classes(net, x, 1)
    explainer = Explainer(model, device="cpu", method=method, signed=True)
    ours = torch.from_numpy(explainer.explain(picture, targets.numpy()).relevance)
    del explainer

    def measure(rival: ModuleType) -> dict[str, Any]:
        timed, exact = (
            explainer_of(rival, net, method, dtype).explain(x.to(dtype), targets, signed=True)
            for dtype in (torch.float32, torch.float64)
        )
        return {"agrees": _off(ours, exact), "float32": _off(timed, exact)}

    return _tried(rivals, measure)


def working(
    rivals: Rivals, net: nn.Module, method: str, picture: NDArray[np.float32]
) -> dict[str, dict[str, Any]]:
    """Why a rival has no map of the network where it is, if it has none."""
    x = torch.from_numpy(picture).to(next(net.parameters()).device)

    def measure(rival: ModuleType) -> dict[str, Any]:
        explainer_of(rival, net, method).explain(x, top_classes(net, x, 1))
        return {}

    return _tried(rivals, measure)


def _tried(
    rivals: Rivals, measure: Callable[[ModuleType], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What is measured of each rival, or why it fails."""
    found: dict[str, dict[str, Any]] = {}
    for name, rival in rivals.items():
        try:
            found[name] = measure(rival)
        except Exception as error:  # whatever another library stumbles over in a network
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        gc.collect()  # hooks and their modules know each other; large networks need the memory
    return found


def _off(out: Tensor, wanted: Tensor) -> float:
    """The largest ‖out − wanted‖ / ‖wanted‖ of the maps `[N, k, ...]`."""
    off, size = (maps.double().flatten(2).norm(dim=2) for maps in (out - wanted, wanted))
    return float((off / size).max())
