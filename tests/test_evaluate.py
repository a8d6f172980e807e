"""The experiments over a data set: every number against one that is worked out by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cli_support import run
from numpy.typing import NDArray
from onnx import helper
from PIL import Image

pq = pytest.importorskip("pyarrow.parquet", reason="results are Parquet")

from onnx_clrp import Explainer, UsageError
from onnx_clrp.evaluate import run as runs
from onnx_clrp.evaluate.dataset import Box, Object, Sample
from onnx_clrp.evaluate.run import evaluate
from onnx_clrp.evaluate.scorer import Scorer
from onnx_clrp.evaluate.settings import EXPERIMENTS as ALL
from onnx_clrp.evaluate.settings import Settings
from onnx_clrp.evaluate.store import read_table, saved_maps
from onnx_clrp.evaluate.summary import SHARES, Summary

Array = NDArray[Any]

FOLDER = Path(__file__).resolve().parents[1] / "exported_models"
DIGITS, SCENES = FOLDER / "digits.onnx", FOLDER / "scenes"
SIDE = 64
EXPERIMENTS = tuple(name for name in ALL if name not in ("neurons", "cascade"))
"""Those of classes and one model; `test_evaluate_neurons` has the others."""


class Pictures(list[Sample]):
    """A data set in memory."""

    name = "pictures"
    notes: Sequence[str] = ()


def index() -> dict[str, Any]:
    """What is in the shipped scenes, and where."""
    known: dict[str, Any] = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))
    return dict(sorted(known.items()))


def objects_of(entry: dict[str, Any]) -> tuple[Object, ...]:
    """The digits of a scene."""
    boxes = [Box(*(edge / SIDE for edge in box)) for box in entry["boxes"]]
    pairs = zip(entry["labels"], boxes, strict=True)
    return tuple(Object(str(digit), (digit,), (box,)) for digit, box in pairs)


def scenes(root: Path = SCENES) -> Pictures:
    """The shipped scenes."""
    return Pictures(Sample(key, root / key, objects_of(e)) for key, e in index().items())


def rows_of(folder: Path, table: str = "maps") -> list[dict[str, Any]]:
    """A table of results, a dictionary for each row."""
    rows: list[dict[str, Any]] = read_table(folder, table).to_pylist()
    return rows


def evaluated(folder: Path, data: Pictures | None = None, **settings: Any) -> list[dict[str, Any]]:
    """The rows of maps of the digits' network."""
    options = {"methods": ["lrp"], "patches": [9], **settings}
    evaluate(DIGITS, data or scenes(), folder, Settings(**options), device="cpu")
    return rows_of(folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All experiments with three methods on the shipped scenes."""
    folder = tmp_path_factory.mktemp("everything")
    evaluated(
        folder,
        methods=["gradient", "lrp", "clrp2"],
        experiments=EXPERIMENTS,
        patches=[8, 9],
        steps=5,
        probability="sigmoid",
    )
    return folder


# -- by hand -----------------------------------------------------------------------------------


def inputs() -> Array:
    """The scenes as the network takes them."""
    grey = np.stack([np.asarray(Image.open(SCENES / key)) for key in index()])
    return (grey[:, None] / 255).astype(np.float32)


def logits_of(batch: Array) -> Array:
    """What the network itself says."""
    session = onnxruntime.InferenceSession(DIGITS)
    found: Array = session.run(["logits"], {"image": batch.astype(np.float32)})[0]
    return found.astype(np.float64)


def sigmoid(x: Array) -> Array:
    """A probability of its own for every digit."""
    return np.asarray(1 / (1 + np.exp(-x)))


def by_hand(method: str) -> Iterator[dict[str, Any]]:
    """What a row of each map has to say, in loops."""
    batch, mean = inputs(), inputs().astype(np.float64).mean(0)
    scores = logits_of(batch)
    for i, (key, entry) in enumerate(index().items()):
        targets = entry["labels"]
        explainer = Explainer(DIGITS, device="cpu", method=method)
        maps = explainer.explain(batch[i : i + 1], targets).heatmap()[0].astype(np.float64)
        masks = []
        for x0, y0, x1, y1 in entry["boxes"]:
            mask = np.zeros((SIDE, SIDE), bool)
            mask[y0:y1, x0:x1] = True
            masks.append(mask)
        for j, (target, heatmap) in enumerate(zip(targets, maps, strict=True)):
            energy, score = np.maximum(heatmap, 0), scores[i, target]
            others = np.logical_or.reduce([m for m in masks if m is not masks[j]]) & ~masks[j]
            made = {
                "image": key,
                "object": str(target),
                "target": target,
                "method": method,
                "score": score,
                "probability": sigmoid(score),
                "rank": int((scores[i] > score).sum()),
                "area": masks[j].mean(),
                "shown": 1.0,
                **areas(batch[i, 0].astype(np.float64), mean[0], heatmap, target),
            }
            if not energy.any():  # evidence against a class: there is no place that speaks for it
                yield made | NOWHERE
                continue
            row, column = np.unravel_index(energy.argmax(), energy.shape)
            made |= {
                "peak_row": row,
                "peak_column": column,
                "pointing": bool(masks[j][row, column]),
                "reach": held_before_leaving(energy, masks[j]),
                "inside": energy[masks[j]].sum() / energy.sum(),
                "in_others": energy[others].sum() / energy.sum(),
            }
            for side in (8, 9):
                changed = batch[i].astype(np.float64)
                top, left = row - side // 2, column - side // 2
                for y in range(max(0, top), min(SIDE, top + side)):
                    for x in range(max(0, left), min(SIDE, left + side)):
                        changed[0, y, x] = mean[0, y, x]
                after = logits_of(changed[None])[0, target]
                made[f"drop_{side}"] = score - after
                made[f"probability_drop_{side}"] = sigmoid(score) - sigmoid(after)
            yield made


NOWHERE: dict[str, Any] = {
    **dict.fromkeys(["peak_row", "peak_column", "inside", "in_others"]),
    **dict.fromkeys([f"{kind}_{side}" for kind in ("drop", "probability_drop") for side in (8, 9)]),
    "pointing": False,
    "reach": 0.0,
}


def held_before_leaving(energy: Array, mask: Array) -> float:
    """The share of the energy in the pixels that come before the first one outside."""
    pixels = sorted(np.ndindex(energy.shape), key=lambda p: (-energy[p], p))
    held = 0.0
    for pixel in pixels:
        if not mask[pixel]:
            break
        held += energy[pixel]
    return float(held / energy.sum())


def areas(picture: Array, mean: Array, heatmap: Array, target: int) -> dict[str, float]:
    """The areas under the curves of deletion and insertion, in five steps."""
    pixels = sorted(np.ndindex(heatmap.shape), key=lambda p: (-heatmap[p], p))
    heights: dict[str, list[float]] = {"deletion": [], "insertion": []}
    for step in range(6):
        first = pixels[: round(step / 5 * len(pixels))]
        for name, start, end in (("deletion", picture, mean), ("insertion", mean, picture)):
            mixed = start.copy()
            for pixel in first:
                mixed[pixel] = end[pixel]
            heights[name].append(float(sigmoid(logits_of(mixed[None, None]))[0, target]))
    return {name: (sum(h) - h[0] / 2 - h[-1] / 2) / 5 for name, h in heights.items()}


@pytest.mark.parametrize("method", ["gradient", "lrp", "clrp2"])
def test_every_row_is_as_by_hand(everything: Path, method: str) -> None:
    found = [row for row in rows_of(everything) if row["method"] == method]
    wanted = [*by_hand(method)]
    assert len(found) == len(wanted) == 13
    for row, want in zip(found, wanted, strict=True):
        assert row.keys() == want.keys()
        for key, value in want.items():
            exact = value is None or isinstance(value, str | bool | int)
            assert row[key] == (value if exact else pytest.approx(value, rel=1e-4, abs=2e-5)), key


def test_pairs_are_of_all_objects_of_a_picture(everything: Path) -> None:
    pairs = [row for row in rows_of(everything, "pairs") if row["method"] == "clrp2"]
    wanted = [
        (key, a, b)
        for key, entry in index().items()
        for i, a in enumerate(entry["labels"])
        for b in entry["labels"][i + 1 :]
    ]
    assert [(row["image"], row["target"], row["other_target"]) for row in pairs] == wanted
    lrp = [row for row in rows_of(everything, "pairs") if row["method"] == "lrp"]
    place = [*index()].index("2-and-5.png")
    explainer = Explainer(DIGITS, device="cpu", method="lrp")
    maps = explainer.explain(inputs()[place][None], [2, 5]).heatmap()[0].astype(np.float64)
    a, b = (np.maximum(one, 0).ravel() for one in maps)
    (row,) = (row for row in lrp if row["image"] == "2-and-5.png")
    assert row["cosine"] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)), rel=1e-5)
    # The paper's figure 3: LRP's maps of two classes are much alike, CLRP's are not.
    means = [
        np.mean([r["cosine"] for r in found if r["cosine"] is not None]) for found in (lrp, pairs)
    ]
    assert means[0] > 2 * means[1]


# -- what is explained ---------------------------------------------------------------------------


def one_scene(*objects: Object) -> Pictures:
    """The scene of a 3 and a 7 with objects of one's own."""
    return Pictures([Sample("3-and-7.png", SCENES / "3-and-7.png", objects)])


LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)


def test_of_several_classes_the_one_with_the_highest_score_is_explained(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, one_scene(Object("odd", (1, 3, 5, 9)), Object("even", (0, 2))))
    scores = logits_of(inputs()[[*index()].index("3-and-7.png")][None])[0]
    assert [row["target"] for row in rows] == [3, max((0, 2), key=lambda c: scores[c])]
    assert [row["pointing"] for row in rows] == [None, None]
    assert [row["object"] for row in rows] == ["odd", "even"]


def test_objects_of_one_class_are_one(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, one_scene(Object("a", (3,), (LEFT,)), Object("b", (3, 2), (RIGHT,))))
    assert [(row["object"], row["area"], row["inside"]) for row in rows] == [("a + b", 1.0, 1.0)]


def test_where_one_of_them_is_not_known_nothing_is_said_of_the_place(tmp_path: Path) -> None:
    (row,) = evaluated(tmp_path, one_scene(Object("a", (3,), (LEFT,)), Object("b", (3, 2))))
    assert (row["area"], row["pointing"], row["reach"], row["inside"]) == (None,) * 4
    assert row["drop_9"] is not None


def test_no_more_objects_than_are_wanted(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, most_objects=1, batch=4)
    assert [(row["image"], row["target"]) for row in rows] == [
        (key, entry["labels"][0]) for key, entry in index().items()
    ]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_the_batch_changes_nothing(tmp_path: Path, everything: Path, batch: int) -> None:
    rows = evaluated(tmp_path, methods=["clrp2"], probability="sigmoid", batch=batch)
    wanted = [row for row in rows_of(everything) if row["method"] == "clrp2"]
    for row, want in zip(rows, wanted, strict=True):
        for key in ("image", "target", "pointing", "peak_row", "peak_column"):
            assert row[key] == want[key]
        for key in ("reach", "inside", "drop_9"):
            assert row[key] == pytest.approx(want[key], rel=1e-3, abs=1e-4)


def nhwc() -> onnx.ModelProto:
    """The digits' network behind a Transpose."""
    model = onnx.load(DIGITS)
    turn = helper.make_node("Transpose", ["picture"], ["image"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, turn)
    del model.graph.input[:]
    shape = ["N", SIDE, SIDE, 1]
    model.graph.input.append(helper.make_tensor_value_info("picture", 1, shape))
    for entry in [*model.metadata_props]:
        if entry.key == "onnx_clrp.preprocessing":
            entry.value = entry.value.replace("NCHW", "NHWC")
    return model


def test_channels_last_are_the_same(tmp_path: Path, everything: Path) -> None:
    settings = Settings(
        methods=["lrp"], experiments=EXPERIMENTS, patches=[8], steps=5, probability="sigmoid"
    )
    evaluate(nhwc(), scenes(), tmp_path, settings, device="cpu")
    wanted = [row for row in rows_of(everything) if row["method"] == "lrp"]
    for row, want in zip(rows_of(tmp_path), wanted, strict=True):
        for key, value in row.items():
            exact = value is None or isinstance(value, str | bool | int)
            assert want[key] == (value if exact else pytest.approx(value, rel=1e-3, abs=1e-4)), key


# -- scores ------------------------------------------------------------------------------------


def test_scores_are_those_of_the_model() -> None:
    found = Scorer(DIGITS, device="cpu").logits(inputs())
    np.testing.assert_allclose(found, logits_of(inputs()), rtol=1e-5, atol=1e-5)


def test_scores_of_a_fixed_batch() -> None:
    model = onnx.load(DIGITS)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    found = Scorer(model, device="cpu").logits(inputs())
    np.testing.assert_allclose(found, logits_of(inputs()), rtol=1e-5, atol=1e-5)


def test_a_model_of_two_inputs_is_refused() -> None:
    model = onnx.load(DIGITS)
    model.graph.input.append(helper.make_tensor_value_info("shift", 1, [1, 10]))
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "plain"
    model.graph.node.append(helper.make_node("Add", ["plain", "shift"], ["logits"]))
    with pytest.raises(UsageError, match="one input, this one has image, shift"):
        Scorer(model, device="cpu", input="image")


# -- stopping and going on -----------------------------------------------------------------------


def many(root: Path, copies: int) -> Pictures:
    """Copies of the scenes."""
    made = Pictures()
    for i in range(copies):
        for key, entry in index().items():
            name = f"{i:03}-{key}"
            shutil.copy(SCENES / key, root / name)
            made.append(Sample(name, root / name, objects_of(entry)))
    return made


KILLED = """
import sys
from pathlib import Path
from test_evaluate import Pictures, Settings, Sample, index, objects_of, evaluate, runs
runs.PART = 8
root = Path(sys.argv[1])
data = Pictures(
    Sample(path.name, path, objects_of(index()[path.name[4:]])) for path in sorted(root.iterdir())
)
settings = Settings(methods=["lrp", "clrp2"], patches=[9])
evaluate("%s", data, sys.argv[2], settings, device="cpu")
"""


def killed_in_the_middle(script: str, pictures: Path, out: Path, least: int) -> None:
    """Start an evaluation and kill it once some parts are done."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", script, str(pictures), str(out)]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) as process:
        while len([*(out / "maps").glob("*.parquet")]) < least:
            assert process.poll() is None, process.stderr
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_what_was_killed_goes_on_and_neither_loses_nor_repeats_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out, whole = (tmp_path / name for name in ("pictures", "out", "whole"))
    pictures.mkdir()
    data = many(pictures, 20)
    script = KILLED % DIGITS
    killed_in_the_middle(script, pictures, out, 2)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}
    done = {name for name in before if name.endswith(".parquet")}
    assert 2 <= len(done) < 15
    monkeypatch.setattr(runs, "PART", 8)
    settings = Settings(methods=["lrp", "clrp2"], patches=[9])
    for folder in (out, whole):
        evaluate(DIGITS, data, folder, settings, device="cpu")
    after = {path.name: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    for table in ("maps", "pairs", "failed"):
        assert rows_of(out, table) == rows_of(whole, table)
    assert len(rows_of(out)) == 20 * 13 * 2
    assert not [p for p in out.rglob("*") if p.suffix == ".tmp"]


def test_a_folder_holds_one_evaluation(tmp_path: Path) -> None:
    evaluated(tmp_path)
    with pytest.raises(UsageError, match="with other settings: choose another folder"):
        evaluated(tmp_path, seed=1)
    with pytest.raises(UsageError, match="with other dataset"):
        evaluated(tmp_path, Pictures(scenes()[:3]))
    (tmp_path / "run.json").unlink()
    with pytest.raises(UsageError, match=r"holds results, and no run\.json"):
        evaluated(tmp_path)


def test_pictures_that_cannot_be_read_are_named_and_all_others_done(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    data = many(pictures, 1)
    data[1].path.write_bytes(b"no picture")
    data[3].path.unlink()
    rows = evaluated(tmp_path / "out", data)
    assert {row["image"] for row in rows} == {s.key for i, s in enumerate(data) if i not in (1, 3)}
    failed = rows_of(tmp_path / "out", "failed")
    assert [row["image"] for row in failed] == [data[1].key, data[3].key]
    assert "does not exist" in failed[1]["reason"]


def test_where_no_picture_can_be_read_there_is_no_mean(tmp_path: Path) -> None:
    missing = Pictures([Sample("x.png", tmp_path / "x.png", (Object("3", (3,)),))])
    with pytest.raises(UsageError, match="no picture of the data set can be read"):
        evaluated(tmp_path / "out", missing)


def test_pictures_are_decoded_no_further_ahead_than_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PART", 4)
    begun: list[str] = []
    real = runs.loaded

    def counting(sample: Sample, *rest: Any) -> Any:
        begun.append(sample.key)
        return real(sample, *rest)

    monkeypatch.setattr(runs, "loaded", counting)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    data = many(pictures, 8)
    seen: list[int] = []

    def watch(work: str, done: int, total: int) -> None:
        assert total == 48
        if work == "explaining":
            seen.append(len(begun) - done)

    settings = Settings(methods=["lrp"], experiments=["pointing"])
    evaluate(DIGITS, data, tmp_path / "out", settings, device="cpu", watch=watch)
    assert len(seen) == 12
    assert max(seen) <= 8


# -- summaries ---------------------------------------------------------------------------------


def test_a_summary_averages_the_rows(everything: Path) -> None:
    summary, rows = Summary(everything), rows_of(everything)
    assert summary.pictures == 6
    for measure in summary.measures:
        for method in summary.methods:
            mine = [r[measure.name] for r in rows if r["method"] == method]
            found = summary.mean(measure, method)
            assert found.mean == pytest.approx(np.mean([v for v in mine if v is not None]))
            assert found.low is not None
            assert found.high is not None
            assert found.low <= found.mean <= found.high
            assert (found.count + found.missing, found.images) == (13, 6)
            assert found.missing == mine.count(None)


def test_the_sweep_is_that_of_the_paper(everything: Path) -> None:
    summary, rows = Summary(everything), rows_of(everything)
    reach = [r["reach"] for r in rows if r["method"] == "clrp2"]
    found = [estimate.mean for estimate in summary.sweep("clrp2")]
    assert found == pytest.approx([np.mean([r >= p for r in reach]) for p in SHARES])
    assert found == sorted(found, reverse=True)


def test_a_summary_of_some_rows(everything: Path) -> None:
    rows = rows_of(everything)
    right = Summary(everything, only_right=True)
    assert right.maps.num_rows == sum(r["rank"] == 0 for r in rows)
    small = Summary(everything, largest=0.11)
    assert small.maps.num_rows == sum(r["area"] <= 0.11 for r in rows)
    with pytest.raises(UsageError, match="choose less narrowly"):
        Summary(everything, largest=1e-6)


def test_methods_are_compared_in_pairs(everything: Path) -> None:
    summary, rows = Summary(everything), rows_of(everything)
    inside = next(m for m in summary.measures if m.name == "inside")
    found = summary.compared(inside, "lrp")
    assert [*found] == ["gradient", "clrp2"]
    values = {m: [r["inside"] for r in rows if r["method"] == m] for m in ("lrp", "clrp2")}
    pairs = [(a, b) for a, b in zip(*values.values(), strict=True) if a is not None]
    assert found["clrp2"].mean == pytest.approx(np.mean([b - a for a, b in pairs]))
    # Six pictures, all with the same sign: 2 of 64 ways to swap are as far, times two for Holm.
    assert found["clrp2"].p == pytest.approx(2 * 2 / 64)


def test_a_summary_is_json(everything: Path) -> None:
    known = json.loads(json.dumps(Summary(everything).to_json()))
    assert known["settings"]["seed"] == 0
    assert known["measures"]["pointing"]["means"]["clrp2"]["count"] == 13
    assert len(known["sweep"]["lrp"]) == len(SHARES)
    assert known["alike"]["lrp"]["cosine"]["mean"] > 0.3


def test_rules_are_for_the_methods_that_take_them(tmp_path: Path) -> None:
    def rows(*methods: str, rules: str) -> dict[str, list[Any]]:
        settings = Settings(methods=methods, experiments=["pointing"])
        folder = tmp_path / "-".join([*methods, rules])
        evaluate(DIGITS, scenes(), folder, settings, device="cpu", options={"rules": rules})
        return {m: [r["reach"] for r in rows_of(folder) if r["method"] == m] for m in methods}

    one, other = (rows("gradient", "lrp", rules=rules) for rules in ("default", "epsilon"))
    assert one["gradient"] == other["gradient"]
    assert one["lrp"] != other["lrp"]
    with pytest.raises(UsageError, match="gradient takes no rules"):
        rows("gradient", "grad_cam", rules="epsilon")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"methods": ["nope"]}, "no method is called 'nope'"),
        ({"methods": []}, "no method is asked for"),
        ({"experiments": ["nope"]}, "no experiment is called 'nope'"),
        ({"probability": "nope"}, "no probability is called 'nope'"),
        ({"patches": []}, "a patch has a side"),
        ({"patches": [0]}, "a patch has a side"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"most_objects": 0}, "most objects must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"tolerance": -1}, "tolerance must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Settings(**options)


# -- the command -------------------------------------------------------------------------------


def manifest(folder: Path, *changed: tuple[str, str]) -> Path:
    """The shipped scenes as a table of one's own."""
    lines = ["image,label,x0,y0,x1,y1"]
    for key, entry in index().items():
        pairs = zip(entry["labels"], entry["boxes"], strict=True)
        lines += [f"{key},{digit},{','.join(map(str, box))}" for digit, box in pairs]
    text = "\n".join(lines)
    for old, new in changed:
        text = text.replace(old, new)
    path = folder / "scenes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def command(folder: Path, *words: object, table: Path | None = None) -> Any:
    """`evaluate` on the shipped scenes."""
    data = manifest(folder) if table is None else table
    options = ("--images", SCENES, "-o", folder / "out", "--device", "cpu", "--method", "clrp2")
    return run("evaluate", DIGITS, data, *options, *words)


def test_the_command_prints_what_the_summary_says(tmp_path: Path) -> None:
    words = ("--method", "lrp", "--patch", 9, "--probability", "sigmoid")
    done = command(tmp_path, *words)
    assert done.status == 0, done.err
    summary = Summary(tmp_path / "out")
    assert summary.methods == ["clrp2", "lrp"]
    pointing = summary.mean(summary.measures[0], "clrp2")
    assert f"{pointing.mean:.3g} [{pointing.low:.3g}, {pointing.high:.3g}]" in done.out
    assert "6 pictures, 26 maps; in" in done.out
    again = command(tmp_path, *words, "--json")
    assert json.loads(again.out) == json.loads(json.dumps(summary.to_json()))


def test_boxes_of_the_command_are_those_of_the_table(tmp_path: Path, everything: Path) -> None:
    assert command(tmp_path, "--experiment", "pointing").status == 0
    found = {(row["image"], row["target"]): row["reach"] for row in rows_of(tmp_path / "out")}
    wanted = [row for row in rows_of(everything) if row["method"] == "clrp2"]
    assert found == {
        (row["image"], row["target"]): pytest.approx(row["reach"], rel=1e-4) for row in wanted
    }


def test_some_pictures_are_drawn(tmp_path: Path) -> None:
    done = command(tmp_path, "--limit", 2, "--seed", 3)
    assert done.status == 0
    assert "2 pictures" in done.out
    assert "of 6 pictures 2 were drawn with the seed 3" in done.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--format", "nope"], "no form of data sets is called 'nope'"),
        (["--split", "val"], "split is no option of data sets of the form 'manifest'"),
        (["--rules", "nope"], "'nope' is not one of"),
        (["--experiment", "nope"], "'nope' is not one of"),
        (["--patch", "0"], "0 is not in the range"),
        (["--classes", "absent.json"], "absent.json"),
        (["--largest", "1e-9"], "choose less narrowly"),
    ],
)
def test_wrong_words_are_a_usage_error(tmp_path: Path, words: list[str], reason: str) -> None:
    done = command(tmp_path, *words)
    assert (done.status, done.out) == (2, "")
    assert reason in done.err
    assert "Traceback" not in done.err


def test_labels_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    table = manifest(tmp_path)
    table.write_text("image,label\n3-and-7.png,zebra\n", encoding="utf-8")
    done = command(tmp_path, table=table)
    assert (done.status, done.out) == (2, "")
    assert "zebra" in done.complaint
    done = command(tmp_path, table=manifest(tmp_path, (",1,", ",12,")))
    assert (done.status, done.out) == (2, "")
    assert "12" in done.complaint


def test_without_its_libraries_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command(tmp_path)
    assert (done.status, done.out) == (2, "")
    assert "pip install 'onnx-clrp[evaluate]'" in done.complaint


# -- the maps themselves ---------------------------------------------------------------------------


def test_maps_that_are_kept_are_those_of_the_explainer(tmp_path: Path) -> None:
    rows = evaluated(
        tmp_path, methods=["gradient", "clrp2"], experiments=["pointing"], save_maps=True
    )
    for method in ("gradient", "clrp2"):
        (part,) = saved_maps(tmp_path, method)
        ours = [row for row in rows if row["method"] == method]
        assert part["y_batch"].tolist() == [row["target"] for row in ours]
        explainer, places = Explainer(DIGITS, device="cpu", method=method), [*index()]
        for n, row in enumerate(ours):
            batch = inputs()[[places.index(row["image"])]]
            np.testing.assert_array_equal(part["x_batch"][n], batch[0])
            wanted = explainer.explain(batch, [row["target"]]).heatmap()[0]
            np.testing.assert_allclose(part["a_batch"][n], wanted, atol=1e-5 * wanted.max())
            # What metrics of localisation make of them is what we made of them.
            heatmap, mask = part["a_batch"][n, 0].astype(np.float64), part["s_batch"][n, 0]
            assert mask.reshape(-1)[heatmap.argmax()] == row["pointing"]
            energy = np.maximum(heatmap, 0)
            assert energy[mask].sum() / energy.sum() == pytest.approx(row["inside"], abs=1e-6)


def test_quantus_takes_them(tmp_path: Path) -> None:
    quantus = pytest.importorskip("quantus", reason="an optional judge of the saved maps")
    rows = evaluated(tmp_path, methods=["clrp2"], experiments=["pointing"], save_maps=True)
    hits, shares = [], []
    for part in saved_maps(tmp_path, "clrp2", placed=True):
        plain = {"abs": False, "normalise": False, "disable_warnings": True}
        hits += quantus.PointingGame(**plain)(model=None, **part)
        positive = {**part, "a_batch": np.maximum(part["a_batch"], 0)}
        shares += quantus.RelevanceMassAccuracy(**plain)(model=None, **positive)
    assert [bool(hit) for hit in hits] == [row["pointing"] for row in rows]
    np.testing.assert_allclose(shares, [row["inside"] for row in rows], atol=1e-5)


def test_targets_without_a_place_can_be_left_out(tmp_path: Path) -> None:
    data = scenes()
    first = data[0]
    data[0] = Sample(first.key, first.path, tuple(Object(o.name, o.targets) for o in first.objects))
    evaluated(tmp_path, data, experiments=["pointing"], save_maps=True)
    (every,), (placed,) = (
        [*saved_maps(tmp_path, "lrp", placed=placed)] for placed in (False, True)
    )
    assert len(every["y_batch"]) - len(placed["y_batch"]) == len(first.objects)
    assert placed["s_batch"].any(axis=(1, 2, 3)).all()


def test_maps_that_were_not_kept_cannot_be_read(tmp_path: Path) -> None:
    evaluated(tmp_path, experiments=["pointing"])
    assert not (tmp_path / "arrays").exists()
    with pytest.raises(UsageError, match="evaluate with --save-maps"):
        next(saved_maps(tmp_path, "lrp"))
    evaluated(tmp_path / "other", experiments=["pointing"], save_maps=True)
    with pytest.raises(UsageError, match="no maps of the method 'clrp2'"):
        next(saved_maps(tmp_path / "other", "clrp2"))


def test_the_command_keeps_maps(tmp_path: Path) -> None:
    done = command(tmp_path, "--experiment", "pointing", "--save-maps", "--no-report")
    assert done.status == 0, done.err
    (part,) = saved_maps(tmp_path / "out", "clrp2")
    assert part["a_batch"].shape == (13, 1, SIDE, SIDE)
    with np.load(tmp_path / "out" / "arrays" / "000000.npz", allow_pickle=False) as arrays:
        assert arrays["image"].tolist()[0] == next(iter(index()))


def test_a_mistake_does_not_stand_in_the_way_of_its_correction(tmp_path: Path) -> None:
    wrong = command(tmp_path, "--experiment", "neurons", "--layer", "nothing")
    assert wrong.status == 2, wrong.err
    assert (tmp_path / "out" / "run.json").exists()
    assert command(tmp_path, "--experiment", "pointing", "--no-report").status == 0
