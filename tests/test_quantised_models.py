"""Real int8 classifiers, in QLinear operators and in QDQ form with the channels last."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from reference.quantised import explain
from test_quantised import SAME_CONTRAST, SAME_MAP, answers, distance, one_thread
from test_real_models import (
    ANIMALS,
    CONTRASTS,
    IN_ITS_OWN,
    LIKENESS,
    PHOTOGRAPHS,
    cosine,
    inside,
    points_inside,
    share_of_its_own,
)

from onnx_clrp import Explainer, Preprocessing, convert
from onnx_clrp.check import check

pytestmark = pytest.mark.data

__all__ = ["one_thread"]  # a fixture that holds for this file too

FLOAT = "mobilenet_v2"
PRESETS = {
    "mobilenet_v2_int8_qoperator": "imagenet",
    "mobilenet_v2_int8_qdq_nhwc": "raw",
    FLOAT: "imagenet",
}
BACKGROUND = {"mobilenet_v2_int8_qdq_nhwc": 1}
"""How many classes come before ImageNet's thousand."""

QUANTISED = [name for name in PRESETS if name != FLOAT]
SINGLE_OBJECTS = ("imagenet_samples/n01443537_goldfish", "imagenet_samples/n01614925_bald_eagle")

OPTIMISED = pytest.mark.parametrize("optimised", [False, True], ids=["as written", "optimised"])


def preparation(name: str) -> Preprocessing:
    return Preprocessing.preset(PRESETS[name], resize="stretch")


@cache
def loaded(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / "models" / f"{name}.onnx")


@cache
def explainer(folder: Path, name: str, method: str) -> Explainer:
    prepared = preparation(name)
    return Explainer(loaded(folder, name), device="cpu", method=method, preprocessing=prepared)


@cache
def photograph(folder: Path, name: str, picture: str) -> Any:
    """A photograph as the model's input, by its name without the ending."""
    (path,) = (folder / "images").glob(f"{picture}.*")
    prepared = explainer(folder, name, "clrp2").preprocessing
    assert prepared is not None
    return prepared.load(path)


def bounds(folder: Path, name: str) -> tuple[Any, Any]:
    """The declared range of the input."""
    low, high = explainer(folder, name, "clrp2").input_bounds
    return low, high


@OPTIMISED
@pytest.mark.parametrize("name", QUANTISED)
def test_real_answers_are_kept_to_the_bit(data: Path, name: str, optimised: bool) -> None:
    proto = loaded(data, name)
    made = convert(proto, preprocessing=preparation(name), target="top:1")
    for picture in ("clrp_paper/ze1", *SINGLE_OBJECTS):
        x = photograph(data, name, picture)
        found = answers(made, x, optimised=optimised)
        for output, value in answers(proto, x, optimised=optimised).items():
            np.testing.assert_array_equal(found[output], value, strict=True)


@OPTIMISED
@pytest.mark.parametrize("name", QUANTISED)
def test_real_relevance_is_that_of_the_real_numbers(data: Path, name: str, optimised: bool) -> None:
    proto, x = loaded(data, name), photograph(data, name, "clrp_paper/ze1")
    zebra = [ANIMALS["zebra"] + BACKGROUND.get(name, 0)]
    made = convert(proto, preprocessing=preparation(name), signed=True, parts=True)
    found = answers(made, x, zebra, optimised=optimised)
    wanted = explain(
        proto, x, zebra, method="clrp2", bounds=bounds(data, name), optimised=optimised
    )
    assert distance(found["relevance_concept"][:, 0], wanted.concept) <= SAME_MAP
    assert distance(found["relevance"][:, 0], wanted.relevance) <= SAME_CONTRAST


@pytest.mark.parametrize("name", QUANTISED)
def test_the_ledger_of_a_real_model_closes_at_every_node(data: Path, name: str) -> None:
    x = photograph(data, name, "clrp_paper/ze1")
    report = check(loaded(data, name), x, preprocessing=preparation(name), method="lrp")
    assert report.faults == []
    assert max(abs(entry.leaks) for entry in report.ledger) <= 1e-4
    assert set(report.outputs.values()) == {0.0}
    wanted = explain(
        loaded(data, name),
        x,
        [report.target],
        method="lrp",
        bounds=bounds(data, name),
        optimised=True,
    )
    assert report.absorbed == pytest.approx(float(wanted.absorbed[0] / wanted.seed[0]), abs=1e-4)
    sys.stdout.write(f"{report.arrived_at_input:.4f} of the logit arrives\n")


@pytest.mark.parametrize("picture", SINGLE_OBJECTS)
@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_model_names_what_the_float_model_names(
    data: Path, name: str, picture: str
) -> None:
    def top(model: str) -> int:
        ready = explainer(data, model, "clrp2")
        best = int(ready.logits(photograph(data, model, picture)).argmax())
        return best - BACKGROUND.get(model, 0)

    assert top(name) == top(FLOAT)


def per_animal(measure: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    return {animal: measure(*(a[animal] for a in arguments)) for animal in ANIMALS}


@pytest.mark.parametrize("picture", PHOTOGRAPHS)
@pytest.mark.parametrize("method", CONTRASTS)
@pytest.mark.parametrize("name", QUANTISED)
def test_each_animal_has_a_map_of_its_own_in_int8(
    data: Path, name: str, method: str, picture: str
) -> None:
    x = photograph(data, name, f"clrp_paper/{picture}")
    classes = [index + BACKGROUND.get(name, 0) for index in ANIMALS.values()]
    heatmaps = explainer(data, name, method).explain(x, classes).heatmap()[0].clip(min=0)
    maps = dict(zip(ANIMALS, heatmaps, strict=True))
    boxes = inside(data, picture, heatmaps.shape[1:])
    others = {"zebra": boxes["elephant"], "elephant": boxes["zebra"]}
    shares = per_animal(share_of_its_own, maps, boxes, others)
    likeness = cosine(*maps.values())
    sys.stdout.write(f"shares {shares}, likeness {likeness:.3f}\n")
    assert all(per_animal(points_inside, maps, boxes).values())
    assert min(shares.values()) >= IN_ITS_OWN
    assert likeness <= LIKENESS
