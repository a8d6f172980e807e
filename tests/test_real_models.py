"""Trained models and photographs: what the maps point at, and what every explainer must keep."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_clrp import Explainer, Preprocessing
from onnx_clrp.check import check

pytestmark = pytest.mark.data

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as parts of the picture's sides."""

PHOTOGRAPHS = ("ze1", "ze2", "ze3", "ze4")
ANIMALS = {"zebra": 340, "elephant": 386}
CONTRASTS = ("clrp1", "clrp2")

POINTERS = ("resnet18", "mobilenet_v2")
SPILLING_POINTER = "squeezenet1_1"
SPILLS = {(method, photograph) for method in CONTRASTS for photograph in ("ze1", "ze4")}
"""Where SqueezeNet's elephant map reaches into the zebra's boxes; its zebra map is held to all."""

IN_ITS_OWN = 0.9
LIKENESS = 0.1

FLOAT_MODELS = {
    "resnet18": Preprocessing.preset("imagenet"),
    "mobilenet_v2": Preprocessing.preset("imagenet"),
    "squeezenet1_1": Preprocessing.preset("imagenet"),
    "squeezenet1_0_caffe": Preprocessing.preset("caffe"),
    "darknet_tiny": Preprocessing.preset("unit"),
    "mobilenet_v1_025_keras_nhwc": Preprocessing.preset("tf"),
    "cifar10_resnet20": Preprocessing.preset("imagenet"),
    "doodlenet": Preprocessing.preset("unit", channels="grey"),
}
"""The float models, and how pictures become their input."""


# -- zebras and elephants ----------------------------------------------------------------------


@cache
def explainer(folder: Path, model: str, method: str) -> Explainer:
    """A model's explainer for photographs stretched to its size."""
    path = folder / "models" / f"{model}.onnx"
    preparation = Preprocessing.preset("imagenet", resize="stretch")
    return Explainer(path, device="cpu", method=method, preprocessing=preparation)


def heatmaps(folder: Path, model: str, method: str, photograph: str) -> Floats:
    """The maps of zebra and elephant, cut at zero, `[2, 224, 224]`."""
    ready = explainer(folder, model, method)
    assert ready.preprocessing is not None
    batch = ready.preprocessing.load(folder / "images" / "clrp_paper" / f"{photograph}.jpg")
    return ready.explain(batch, list(ANIMALS.values())).heatmap()[0].clip(min=0)


def inside(folder: Path, photograph: str, shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """For each animal, which pixels lie in one of its boxes."""
    entries = json.loads((folder / "boxes/multi_object_hand.json").read_text(encoding="utf-8"))
    entry = next(e for e in entries if Path(e["file"]).stem == photograph)
    return {name: filled(entry["boxes_fraction_xyxy"][name], shape) for name in ANIMALS}


def filled(boxes: list[Box], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixels, by their centres, lie in one of the boxes."""
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    planes = [
        ((top <= y) & (y <= bottom))[:, None] & ((left <= x) & (x <= right))
        for left, top, right, bottom in boxes
    ]
    return np.any(planes, axis=0)


def points_inside(heatmap: Floats, own: NDArray[np.bool_]) -> bool:
    """Does the map's maximum lie in its class's boxes?"""
    return bool(own.reshape(-1)[heatmap.argmax()])


def share_of_its_own(heatmap: Floats, own: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Of the energy in the boxes of just one class, how much lies in the map's own."""
    right, wrong = heatmap[own & ~other].sum(), heatmap[other & ~own].sum()
    return float(right / (right + wrong))


def cosine(a: Floats, b: Floats) -> float:
    """How alike two maps are: 1 for the same, 0 for disjoint ones."""
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


@dataclass(frozen=True)
class Finding:
    """What the maps of both animals do in one photograph.

    Attributes:
        points: whether each animal's map has its maximum in that animal's boxes.
        shares: of its energy in the boxes of just one animal, how much lies in its own.
        likeness: the cosine between the two maps.
    """

    points: dict[str, bool]
    shares: dict[str, float]
    likeness: float


def found(folder: Path, model: str, method: str, photograph: str) -> Finding:
    """Measure both maps of one photograph, and say so in the captured output."""
    maps = dict(zip(ANIMALS, heatmaps(folder, model, method, photograph), strict=True))
    zebra, elephant = maps.values()
    boxes = inside(folder, photograph, zebra.shape)
    others = {"zebra": boxes["elephant"], "elephant": boxes["zebra"]}
    finding = Finding(
        points={name: points_inside(m, boxes[name]) for name, m in maps.items()},
        shares={name: share_of_its_own(m, boxes[name], others[name]) for name, m in maps.items()},
        likeness=cosine(zebra, elephant),
    )
    sys.stdout.write(f"{finding}\n")
    return finding


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("method", CONTRASTS)
@pytest.mark.parametrize("model", [*POINTERS, SPILLING_POINTER])
def test_each_animal_has_a_map_of_its_own(
    data: Path, model: str, method: str, photograph: str
) -> None:
    finding = found(data, model, method, photograph)
    spills = (method, photograph) in SPILLS if model == SPILLING_POINTER else False
    held = ["zebra"] if spills else list(ANIMALS)
    assert all(finding.points[name] for name in held)
    assert min(finding.shares[name] for name in held) >= IN_ITS_OWN
    assert spills or finding.likeness <= LIKENESS


# -- every model -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FLOAT_MODELS)
def test_an_explainer_of_a_float_model_keeps_its_promises(data: Path, model: str) -> None:
    report = check(data / "models" / f"{model}.onnx", preprocessing=FLOAT_MODELS[model])
    sys.stdout.write(
        f"{report.arrived_at_input:.4f} of the logit arrives, "
        f"relevance {report.distance:.1e} from float64, outputs {report.outputs}\n"
    )
    assert report.faults == []
