"""The shipped digit model: what it knows, what its maps point at, and the scenes beside it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
pytest.importorskip("torch", reason="the tools train with PyTorch")

import evaluate_digits
from digit_scenes import SIZE, Digits, Scene, split_digits
from evaluate_digits import Pointing, heatmaps, held_out_scenes, ink_box, pointing
from train_digits import EXAMPLE_LABELS, to_arrays, write_scenes

from onnx_clrp import Explainer, ModelError, runtime
from onnx_clrp.sessions import Opened, open_session

FOLDER = Path(__file__).resolve().parents[1] / "exported_models"
MODEL = FOLDER / "digits.onnx"
SCENES = 200

LARGEST_FILE = 1_000_000
KNOWS = 0.97
POINTS = 0.80

_BACKGROUND = 60
"""Paper and its grain are darker, strokes brighter."""


@cache
def measured(method: str) -> Pointing:
    """How often the method points at the digit that was asked for, of two in the scene."""
    scenes = held_out_scenes(SCENES, 2)
    return pointing(heatmaps(MODEL, method, scenes), scenes)


# -- the model ---------------------------------------------------------------------------------


def test_the_model_is_small() -> None:
    assert MODEL.stat().st_size < LARGEST_FILE


def test_the_model_knows_handwriting_that_it_was_not_trained_on() -> None:
    scenes = held_out_scenes(1000, 1)
    images, present = to_arrays(scenes)
    logits = Explainer(MODEL, device="cpu").logits(images)
    assert (logits.argmax(axis=1) == present.argmax(axis=1)).mean() >= KNOWS


def test_the_model_carries_its_labels_and_its_preprocessing() -> None:
    explainer = Explainer(MODEL, device="cpu")
    assert explainer.labels == [str(digit) for digit in range(10)]
    assert explainer.preprocessing is not None
    assert explainer.preprocessing.channels == "grey"
    assert explainer.notes == []


def pictures(digits: Digits) -> set[bytes]:
    """The digits as something to compare."""
    return {image.tobytes() for image in digits.images}


def test_no_held_out_digit_is_one_of_training() -> None:
    training, held_out = split_digits()
    assert (len(training.images), len(held_out.images)) == (1297, 500)
    assert not pictures(training) & pictures(held_out)


# -- pointing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_a_contrast_points_at_the_digit_that_was_asked_for(method: str) -> None:
    assert measured(method).box.mean() >= POINTS


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_a_contrast_points_better_than_lrp(method: str) -> None:
    assert measured(method).box.mean() > measured("lrp").box.mean()
    assert measured(method).ink.mean() > measured("lrp").ink.mean()
    assert measured(method).share.mean() > measured("lrp").share.mean()


def test_a_map_with_its_maximum_in_the_box_points_there() -> None:
    (scene,) = held_out_scenes(1, 2)
    maps = np.zeros((1, 2, SIZE, SIZE), np.float32)
    left, top, right, bottom = scene.boxes[0]
    maps[0, :, top, left] = 1
    maps[0, :, bottom - 1, right - 1] = 2
    found = pointing(maps, [scene])
    assert found.box.tolist() == [[True, False]]
    assert found.share.tolist() == [[1.0, 0.0]]


def test_an_empty_map_points_nowhere() -> None:
    scenes = held_out_scenes(2, 2)
    found = pointing(np.zeros((2, 2, SIZE, SIZE), np.float32), scenes)
    assert not found.box.any()
    assert not found.ink.any()
    assert not found.share.any()


def test_an_interval_holds_the_mean() -> None:
    hits = np.random.default_rng(0).random((200, 2)) < 0.9
    low, high = evaluate_digits.interval(hits)
    assert low < hits.mean() < high
    assert high - low < 0.1


def test_an_interval_of_what_never_varies_has_no_width() -> None:
    assert evaluate_digits.interval(np.ones((20, 2))) == (1.0, 1.0)


def test_the_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = evaluate_digits.BEGIN, evaluate_digits.END
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    evaluate_digits.write_between_marks(page, "new")
    assert page.read_text(encoding="utf-8") == f"before\n{begin}\nnew\n{end}\nafter\n"


def test_the_page_has_marks_and_a_table_between_them() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    between = page.partition(evaluate_digits.BEGIN)[2].partition(evaluate_digits.END)[0]
    assert "| lrp | clrp1 | clrp2 |" in between


# -- the scenes that are shipped ---------------------------------------------------------------


def shipped() -> list[Scene]:
    """The example scenes, with what `scenes.json` says of them."""
    folder = FOLDER / "scenes"
    index = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return [
        Scene(grey(folder / name), tuple(entry["labels"]), tuple(map(tuple, entry["boxes"])))
        for name, entry in index.items()
    ]


def grey(path: Path) -> NDArray[np.uint8]:
    """A grey picture as it is stored."""
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_the_shipped_scenes_are_those_that_the_tool_draws(tmp_path: Path) -> None:
    write_scenes(split_digits()[1], tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in (FOLDER / "scenes").iterdir())
    for name in ("scenes.json", "scenes.csv"):
        assert (tmp_path / name).read_text() == (FOLDER / "scenes" / name).read_text()
    for path in tmp_path.glob("*.png"):
        np.testing.assert_array_equal(grey(path), grey(FOLDER / "scenes" / path.name))


def test_every_shipped_scene_is_in_the_index() -> None:
    assert [scene.labels for scene in shipped()] == [*EXAMPLE_LABELS]


@pytest.mark.parametrize("scene", shipped(), ids=lambda scene: "-".join(map(str, scene.labels)))
def test_the_boxes_of_a_shipped_scene_hold_all_its_strokes(scene: Scene) -> None:
    outside = scene.image.copy()
    for left, top, right, bottom in scene.boxes:
        outside[top:bottom, left:right] = 0
    assert outside.max() < _BACKGROUND
    for box in scene.boxes:
        ink = ink_box(scene, box)
        assert all(a <= b for a, b in zip(box[:2], ink[:2], strict=True))
        assert all(a >= b for a, b in zip(box[2:], ink[2:], strict=True))


@pytest.mark.parametrize("scene", shipped(), ids=lambda scene: "-".join(map(str, scene.labels)))
def test_the_box_of_a_label_holds_that_digit(scene: Scene) -> None:
    alone = np.stack([only(scene, i) for i in range(len(scene.boxes))])
    logits = Explainer(MODEL, device="cpu").logits(alone[:, None] / np.float32(255))
    assert tuple(logits.argmax(axis=1)) == scene.labels


def only(scene: Scene, index: int) -> NDArray[np.uint8]:
    """The scene with nothing left of it but one box."""
    left, top, right, bottom = scene.boxes[index]
    image = np.zeros_like(scene.image)
    image[top:bottom, left:right] = scene.image[top:bottom, left:right]
    return image


# -- the scores alone --------------------------------------------------------------------------


def test_scores_alone_are_those_of_an_explanation() -> None:
    images, _ = to_arrays(held_out_scenes(5, 2))
    explainer = Explainer(MODEL, device="cpu")
    explained = explainer.explain(images, 3).logits
    np.testing.assert_allclose(explainer.logits(images), explained, rtol=1e-5, atol=1e-5)
    assert explainer.explain(images).target[:, 0].tolist() == explained.argmax(axis=1).tolist()


def test_scores_alone_are_asked_of_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[onnx.ModelProto] = []

    def opening(model: onnx.ModelProto, device: str, **options: Any) -> Opened:
        opened.append(model)
        return open_session(model, device, **options)

    monkeypatch.setattr(runtime, "open_session", opening)
    images, _ = to_arrays(held_out_scenes(2, 1))
    explainer = Explainer(MODEL, device="cpu")
    for _ in range(2):
        explainer.logits(images)
    whole, alone = opened
    assert [x.name for x in alone.graph.output] == ["logits"]
    names = {node.name for node in whole.graph.node if not node.name.startswith("relevance")}
    assert {node.name for node in alone.graph.node} == names
    kept = {t.name for t in onnx.load(MODEL).graph.initializer}
    assert {t.name for t in alone.graph.initializer} <= kept


def test_of_a_file_that_has_changed_since_no_scores_are_told(tmp_path: Path) -> None:
    path = tmp_path / "digits.onnx"
    path.write_bytes(MODEL.read_bytes())
    explainer = Explainer(path, device="cpu")
    other = onnx.load(path)
    bias = next(t for t in other.graph.initializer if t.name == "19.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(other, path)
    images, _ = to_arrays(held_out_scenes(2, 1))
    with pytest.raises(ModelError, match="not the one any more that was loaded"):
        explainer.logits(images)
