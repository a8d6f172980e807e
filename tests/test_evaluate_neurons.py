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
from onnx_clrp.evaluate.cascade import Subjects, cascade, stages
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
            Settings(**options)
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


def subjects(*methods: str, stages: int = 2) -> Subjects:
    """The shipped scenes, each with its first digit."""
    targets = np.array([entry["labels"][0] for entry in index().values()])
    chosen = Settings(methods=methods, stages=stages)
    return Subjects(onnx.load(DIGITS), [*index()], inputs(), targets, chosen, "cpu")


def test_maps_become_unlike_the_first_ones() -> None:
    methods = ("random", "gradient", "clrp2")
    found = {stage.number: rows for stage, rows in cascade(subjects(*methods))}
    assert [*found] == [0, 3, 6]
    assert all(len(rows) == 3 * 6 for rows in found.values())

    def mean(method: str, number: int) -> float:
        rows = [r["rank_correlation"] for r in found[number] if r["method"] == method]
        return float(np.mean(rows))

    for method in methods:
        assert mean(method, 0) == pytest.approx(1)
    # Noise knows nothing of the model; of a map that does, nothing is left in the end.
    assert mean("random", 6) == pytest.approx(1)
    assert abs(mean("gradient", 6)) < 0.2
    assert abs(mean("clrp2", 6)) < 0.3


def test_the_correlations_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    chosen = subjects("lrp", stages=1)
    (_, rows) = [*cascade(chosen)][-1]
    shuffled = [*stages(onnx.load(DIGITS), {}, 1, 0)][-1].model
    before, after = (
        Explainer(model, device="cpu", method="lrp").explain(chosen.inputs, chosen.targets)
        for model in (DIGITS, shuffled)
    )
    for i, row in enumerate(rows):
        one, other = before.heatmap()[i, 0].ravel(), after.heatmap()[i, 0].ravel()
        assert row["rank_correlation"] == pytest.approx(stats.spearmanr(one, other)[0], abs=1e-6)
        wanted = stats.spearmanr(np.abs(one), np.abs(other))[0]
        assert row["magnitude_correlation"] == pytest.approx(wanted, abs=1e-6)


def test_stages_that_are_done_are_left_out_and_the_others_the_same() -> None:
    whole = {stage.number: rows for stage, rows in cascade(subjects("clrp2"))}
    rest = {stage.number: rows for stage, rows in cascade(subjects("clrp2"), {0, 3})}
    assert rest == {6: whole[6]}


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
        for n in range(COUNT):
            mine = [x for (name, _, of), x in by_map.items() if (name, of) == (method, n)]
            np.testing.assert_allclose(summary.losses(method)[n], np.mean(mine, axis=0))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('class="own"') == 2 * COUNT
    assert f">{100 * summary.losses('clrp2')[0, 0]:.0f}</td>" in page
    assert "loses most by its own patch" in page
    assert f"{summary.diagonal('clrp2').mean:.2f}" in page


def test_other_results_have_no_neurons(tmp_path: Path) -> None:
    assert command(tmp_path, "--experiment", "pointing", "--no-report").status == 0
    summary = Summary(tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
    with pytest.raises(UsageError, match="not of the experiment with neurons"):
        summary.diagonal("clrp2")


def test_the_command_and_its_report_have_a_cascade(tmp_path: Path) -> None:
    words = ("--experiment", "cascade", "--stages", 2, "--shuffled-pictures", 4)
    done = command(tmp_path, *words, "--method", "random", "--method", "lrp", "--method", "clrp2")
    assert done.status == 0, done.err
    summary = Summary(tmp_path / "out")
    assert summary.cascade.num_rows == 3 * 3 * 4
    assert not (tmp_path / "out" / "neurons").exists()
    for method in ("random", "lrp", "clrp2"):
        for column in ("rank_correlation", "magnitude_correlation"):
            rows = [r for r in summary.cascade.to_pylist() if r["method"] == method]
            found = summary.fading(method, column)
            assert [number for number, _ in found] == [0, 3, 6]
            for (number, layer), estimate in found.items():
                wanted = [r[column] for r in rows if r["stage"] == number]
                assert {r["layer"] for r in rows if r["stage"] == number} == {layer}
                assert estimate.mean == pytest.approx(np.mean(wanted))
                assert estimate.images == 4
                assert f"{estimate.mean:.3g} [" in done.out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "share of the layers that are shuffled" in page
    assert "Least so: <strong>LRP</strong>" in page
    said = summary.to_json()["cascade"]["magnitude_correlation"]["lrp"]
    assert [each["stage"] for each in said] == [0, 3, 6]


def test_a_cascade_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    words = ("--experiment", "cascade", "--stages", 2, "--method", "clrp2", "--no-report")
    assert command(tmp_path, *words).status == 0
    stages = sorted((tmp_path / "out" / "cascade").iterdir())
    assert [path.stem for path in stages] == ["000000", "000003", "000006"]
    before = {path: path.read_bytes() for path in stages}
    times = {path: path.stat().st_mtime_ns for path in stages}
    stages[1].unlink()
    assert command(tmp_path, *words).status == 0
    assert {path: path.read_bytes() for path in stages} == before
    assert {path for path in stages if path.stat().st_mtime_ns != times[path]} == {stages[1]}


def test_a_cascade_that_was_not_asked_for_is_not_told(tmp_path: Path) -> None:
    assert command(tmp_path, "--experiment", "pointing", "--no-report").status == 0
    with pytest.raises(UsageError, match="not of the experiment with shuffled layers"):
        Summary(tmp_path / "out").fading("clrp2", "rank_correlation")
