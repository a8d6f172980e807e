"""Neurons told apart by their patches, and models that are shuffled layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("pyarrow", reason="results are Parquet")

from test_evaluate import DIGITS, SIDE, Array, command, index, inputs

from onnx_clrp import Explainer, UsageError
from onnx_clrp.evaluate.cascade import cascade, stages
from onnx_clrp.evaluate.neurons import Neurons
from onnx_clrp.evaluate.settings import Settings
from onnx_clrp.evaluate.summary import Summary

LAYER, COUNT, PATCH = "relu_3", 5, 9


def settings(*methods: str) -> Settings:
    """Of the experiment with neurons."""
    return Settings(
        methods=methods, experiments=["neurons"], layer=LAYER, neurons=COUNT, patches=[PATCH]
    )


# -- neurons -----------------------------------------------------------------------------------


def activations(batch: Array) -> Array:
    """What each channel of the layer says at all of its positions together."""
    model = onnx.load(DIGITS)
    model.graph.output.append(helper.make_tensor_value_info(LAYER, 1, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: Array = session.run([LAYER], {"image": batch.astype(np.float32)})[0]
    return found.astype(np.float64).sum((2, 3))


def by_hand(method: str) -> list[dict[str, Any]]:
    """A row for each picture, patch and neuron."""
    batch = inputs().astype(np.float64)
    mean, rows = batch.mean(0), []
    explainer = Explainer(DIGITS, device="cpu", method=method, layer=LAYER)
    for i, key in enumerate(index()):
        said = activations(batch[i : i + 1])[0]
        chosen = np.argsort(-said, kind="stable")[:COUNT]
        maps = explainer.explain(batch[i : i + 1], [int(c) for c in chosen]).heatmap()[0]
        for n, heatmap in enumerate(maps):
            row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
            changed = batch[i].copy()
            for y in range(max(0, row - PATCH // 2), min(SIDE, row + PATCH // 2 + 1)):
                for x in range(max(0, column - PATCH // 2), min(SIDE, column + PATCH // 2 + 1)):
                    changed[:, y, x] = mean[:, y, x]
            after = activations(changed[None])[0]
            rows += [
                {
                    "image": key,
                    "method": method,
                    "patch_of": n,
                    "neuron": j,
                    "channel": channel,
                    "activation": said[channel],
                    "drop": said[channel] - after[channel],
                }
                for j, channel in enumerate(chosen)
            ]
    return rows


@pytest.mark.parametrize("method", ["lrp", "clrp2"])
def test_what_neurons_lose_is_as_by_hand(method: str) -> None:
    judge = Neurons(onnx.load(DIGITS), settings(method), "cpu", {})
    batch = inputs()
    mean = batch.mean(0, dtype=np.float64).astype(np.float32)
    found = [*judge.rows([*index()], batch, mean, "NCHW")]
    wanted = by_hand(method)
    assert len(found) == len(wanted) == 6 * COUNT * COUNT
    for row, want in zip(found, wanted, strict=True):
        for key in ("image", "method", "patch_of", "neuron", "channel"):
            assert row[key] == want[key]
        for key in ("activation", "drop"):
            assert row[key] == pytest.approx(want[key], rel=1e-4, abs=1e-3)


def test_methods_that_know_no_neurons_are_left_out() -> None:
    judge = Neurons(onnx.load(DIGITS), settings("clrp1", "grad_cam", "lrp"), "cpu", {})
    batch = inputs()[:1]
    rows = judge.rows(["one"], batch, batch[0], "NCHW")
    assert {row["method"] for row in rows} == {"lrp"}


def test_a_layer_and_the_experiment_with_neurons_go_together() -> None:
    for options in ({"experiments": ["neurons"]}, {"layer": LAYER}):
        with pytest.raises(UsageError, match="go together"):
            Settings(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="neurons must be at least 2"):
        Settings(experiments=["neurons"], layer=LAYER, neurons=1)


# -- shuffled layers -----------------------------------------------------------------------------


def weights(model: onnx.ModelProto) -> list[Array]:
    """Those of linear maps, the first one first."""
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    return [known[node.input[1]] for node in linear]


def test_layers_are_shuffled_one_after_the_other_from_the_last() -> None:
    original = weights(onnx.load(DIGITS))
    made = [*stages(onnx.load(DIGITS), {}, 8, 0)]
    assert [stage.number for stage in made] == [0, 1, 2, 3, 4, 5, 6]
    assert made[0].layer is None
    for stage in made:
        for i, (now, before) in enumerate(zip(weights(stage.model), original, strict=True)):
            same = np.array_equal(now, before)
            assert same == (i < len(original) - stage.number)
            np.testing.assert_array_equal(np.sort(now, axis=None), np.sort(before, axis=None))
    onnx.checker.check_model(made[-1].model)


def test_a_layer_that_is_shuffled_stays_as_it_is() -> None:
    made = [weights(stage.model) for stage in stages(onnx.load(DIGITS), {}, 8, 0)]
    for stage in made[2:]:
        np.testing.assert_array_equal(stage[-1], made[1][-1])


def test_of_many_layers_some_are_shuffled_at_once() -> None:
    assert [stage.number for stage in stages(onnx.load(DIGITS), {}, 2, 0)] == [0, 3, 6]


def test_the_seed_says_how_they_are_shuffled() -> None:
    one, again, other = (
        weights([*stages(onnx.load(DIGITS), {}, 1, seed)][-1].model)[0] for seed in (0, 0, 1)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_weights_that_are_not_in_the_file_cannot_be_shuffled() -> None:
    model = onnx.load(DIGITS)
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    model.graph.node.insert(0, helper.make_node("Neg", [node.input[1]], ["turned"]))
    node.input[1] = "turned"
    with pytest.raises(UsageError, match="cannot be randomised"):
        [*stages(model, {}, 8, 0)]


def test_maps_become_unlike_the_first_ones() -> None:
    targets = np.array([entry["labels"][0] for entry in index().values()])
    chosen = Settings(methods=["random", "gradient", "clrp2"])
    rows = [*cascade(onnx.load(DIGITS), [*index()], inputs(), targets, chosen, "cpu", {}, 2)]
    assert len(rows) == 3 * 3 * 6
    means = {
        (method, stage): np.mean(
            [r["rank_correlation"] for r in rows if (r["method"], r["stage"]) == (method, stage)]
        )
        for method in chosen.methods
        for stage in (0, 3, 6)
    }
    for method in chosen.methods:
        assert means[method, 0] == pytest.approx(1)
    # Noise knows nothing of the model; of a map that does, nothing is left in the end.
    assert means["random", 6] == pytest.approx(1)
    assert abs(means["gradient", 6]) < 0.2
    assert abs(means["clrp2", 6]) < 0.3


# -- the whole way -------------------------------------------------------------------------------


def test_the_command_and_its_report_have_neurons(tmp_path: Path) -> None:
    words = ("--experiment", "neurons", "--layer", LAYER, "--neurons", COUNT, "--patch", PATCH)
    methods = ("--method", "lrp", "--method", "clrp1", "--method", "clrp2")
    done = command(tmp_path, *words, *methods)
    assert done.status == 0, done.err
    summary = Summary(tmp_path / "out")
    rows = summary.neurons.to_pylist()
    assert len(rows) == 2 * 6 * COUNT * COUNT
    by_map: dict[Any, list[float]] = {}
    for row in rows:
        key = row["method"], row["image"], row["patch_of"]
        by_map.setdefault(key, []).append(row["drop"] / row["activation"])
    for method in ("lrp", "clrp2"):
        hits = [
            int(np.argmax(lost)) == patch_of
            for (name, _, patch_of), lost in by_map.items()
            if name == method
        ]
        found = summary.diagonal(method)
        assert (found.mean, found.count, found.images) == (np.mean(hits), 6 * COUNT, 6)
        assert f"{found.mean:.3g} [" in done.out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "loses most by its own patch" in page
    assert f"{summary.diagonal('clrp2').mean:.2f}" in page


def test_other_results_have_no_neurons(tmp_path: Path) -> None:
    assert command(tmp_path, "--experiment", "pointing", "--no-report").status == 0
    summary = Summary(tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
    with pytest.raises(UsageError, match="not of the experiment with neurons"):
        summary.diagonal("clrp2")
