"""The command beyond CLRP: every method, contrasts and rules, neurons, maps inside, comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import (
    BACK,
    DIGITS,
    FRONT,
    RNG,
    SCENE,
    SHIPPED,
    Outcome,
    leftovers,
    network,
    noise,
    run,
    saved,
)
from numpy.typing import NDArray
from PIL import Image

import onnx_clrp.figures
from onnx_clrp import Explainer, UsageError
from onnx_clrp.methods import METHODS
from onnx_clrp.runtime import Result

Options = dict[str, Any]

OTHER_SCENE = SHIPPED / "scenes" / "3-and-7.png"


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A folder for pictures, which is not there yet."""
    return tmp_path / "maps"


def table(done: Outcome) -> list[list[str]]:
    """The rows of the printed table."""
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    return lines[2:-1]


def asked(image: Path, **options: Any) -> Result:
    """What an explainer of the digits says of a picture."""
    explainer = Explainer(DIGITS, device="cpu", **options)
    assert explainer.preprocessing is not None
    return explainer.explain(explainer.preprocessing.load(image))


def spoken(done: Outcome) -> list[dict[str, Any]]:
    """The rows of the printed JSON."""
    assert (done.status, done.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.out)["explanations"]
    return found


def is_picture(path: str | Path) -> tuple[int, int]:
    """The size of a PNG that is whole."""
    with Image.open(path) as drawn:
        drawn.load()
        assert drawn.format == "PNG"
        return drawn.size


# -- methods -----------------------------------------------------------------------------------


def test_every_method_is_drawn(maps: Path) -> None:
    words = [word for method in METHODS for word in ("--method", method)]
    rows = spoken(run("explain", DIGITS, SCENE, "-o", maps, *words, "--json", "--save-arrays"))
    assert [row["method"] for row in rows] == [*METHODS]
    for row in rows:
        assert is_picture(row["picture"]) == is_picture(rows[0]["picture"])
        assert (row["target"], row["label"]) == (5, "5")
        with np.load(row["arrays"]) as arrays:
            relevance, heatmap = arrays["relevance"], arrays["heatmap"]
        assert relevance.shape == (1, 1, 64, 64)
        of_gradients = METHODS[row["method"]].reduce == "abs-max"
        wanted = np.abs(relevance).max(1) if of_gradients else relevance.sum(1)
        np.testing.assert_array_equal(heatmap, wanted)
        assert row["relevance"] == pytest.approx(float(heatmap.sum()), rel=1e-4)
    assert len(list(maps.iterdir())) == 2 * len(METHODS)


CHOICES: Mapping[str, tuple[list[str], Options]] = {
    "a contrast": (
        ["--method", "gradient", "--contrast", "complement"],
        {"method": "gradient", "contrast": "complement"},
    ),
    "a difference": (
        ["--method", "lrp", "--contrast", "others", "--difference", "normalised", "--signed"],
        {"method": "lrp", "contrast": "others", "difference": "normalised", "signed": True},
    ),
    "a rule set": (
        ["--method", "lrp", "--rules", "epsilon_plus"],
        {"method": "lrp", "rules": "epsilon_plus"},
    ),
    "rules for layers": (
        ["--method", "clrp1", "--rules-for", "conv*=gamma(0.25)", "--rules-for", "#1=flat"],
        {"method": "clrp1", "rules_for": ["conv*=gamma(0.25)", "#1=flat"]},
    ),
    "pools": (
        ["--method", "lrp", "--max-pool", "split", "--avg-pool", "even"],
        {"method": "lrp", "max_pool": "split", "avg_pool": "even"},
    ),
    "the authors' code": (["--method", "clrp1_authors"], {"method": "clrp1_authors"}),
    "the layer of a CAM": (
        ["--method", "grad_cam", "--layer", "relu_2"],
        {"method": "grad_cam", "cam_layer": "relu_2"},
    ),
    "neurons": (
        ["--layer", "node_relu_2", "--neuron", "3,40"],
        {"layer": "relu_2", "target": [3, 40]},
    ),
    "units": (
        ["--method", "gradient", "--layer", "relu_2", "--neuron", "3:1:2", "--neuron", "63:15:15"],
        {"method": "gradient", "layer": "relu_2", "neurons": "units", "target": [786, 16383]},
    ),
    "the most active channels": (
        ["--method", "lrp", "--layer", "relu_3", "--top-neurons", "3"],
        {"method": "lrp", "layer": "relu_3", "target": "top:3"},
    ),
    "maps inside": (
        ["--at", "relu_1", "--at", "node_linear"],
        {"at": ["relu_1", "node_linear"]},
    ),
}
"""Words, and the options of `convert` that they stand for."""


@pytest.mark.parametrize("choice", CHOICES)
def test_words_are_the_options_of_convert(maps: Path, choice: str) -> None:
    words, options = CHOICES[choice]
    rows = spoken(run("explain", DIGITS, SCENE, "-o", maps, *words, "--json", "--save-arrays"))
    wanted = asked(SCENE, **options)
    assert [row["target"] for row in rows] == wanted.target[0].tolist()
    assert [row["score"] for row in rows] == pytest.approx(wanted.seed[0].tolist(), rel=1e-6)
    with np.load(rows[0]["arrays"]) as arrays:
        np.testing.assert_array_equal(arrays["relevance"], wanted.relevance[0])
        np.testing.assert_array_equal(arrays["heatmap"], wanted.heatmap()[0])
        np.testing.assert_array_equal(arrays["logits"], wanted.logits[0])
        inside = {key.removeprefix("at/"): arrays[key] for key in arrays if key.startswith("at/")}
    assert [*inside] == [*wanted.at]
    for name, values in inside.items():
        np.testing.assert_array_equal(values, wanted.at[name][0])


@pytest.mark.parametrize("choice", CHOICES)
def test_convert_takes_the_same_words(tmp_path: Path, choice: str) -> None:
    words, options = CHOICES[choice]
    out = tmp_path / "out.onnx"
    done = run("convert", DIGITS, out, *words)
    assert done.status == 0
    assert done.complaint.startswith(f"onnx-clrp: wrote {out}: image")
    explainer, wanted = Explainer(out, device="cpu"), asked(SCENE, **options)
    assert explainer.preprocessing is not None
    found = explainer.explain(explainer.preprocessing.load(SCENE))
    np.testing.assert_array_equal(found.target, wanted.target)
    np.testing.assert_array_equal(found.relevance, wanted.relevance)
    assert [*found.at] == [*wanted.at]


def test_a_note_is_said_once(maps: Path) -> None:
    words = ["--method", "clrp2", "--method", "clrp2_authors", "--rules", "epsilon"]
    done = run("explain", DIGITS, SCENE, "-o", maps, *words)
    assert done.status == 0
    assert "the classifier layer takes z⁺ for the contrast" in done.complaint


def test_a_heatmap_is_reduced_as_is_asked_for() -> None:
    model = network(inputs="float[N, 3, 8, 8] x")
    explainer = Explainer(model, device="cpu", input_range=(0, 1), method="gradient")
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)
    found = explainer.explain(x, [0, 1])
    sums, largest = found.relevance.sum(2), np.abs(found.relevance).max(2)
    np.testing.assert_array_equal(found.heatmap(), largest)
    np.testing.assert_array_equal(found.heatmap("abs-max"), largest)
    np.testing.assert_array_equal(found.heatmap(reduce="sum"), sums)
    for method, usual in (("lrp", "sum"), ("grad_cam", "sum"), ("guided_grad_cam", "abs-max")):
        other = Explainer(model, device="cpu", input_range=(0, 1), method=method)
        result = other.explain(x, [0, 1])
        np.testing.assert_array_equal(result.heatmap(), result.heatmap(usual))
    for wrong in ("mean", ""):
        with pytest.raises(UsageError, match="a heatmap is reduced by sum or abs-max"):
            found.heatmap(wrong)


# -- neurons -----------------------------------------------------------------------------------


def test_neurons_are_one_figure_with_a_row_each(maps: Path) -> None:
    words = ["--layer", "relu_3", "--neuron", "12,0", "--neuron", "0,59"]
    done = run("explain", DIGITS, SCENE, OTHER_SCENE, "-o", maps, *words)
    assert (done.status, done.err) == (0, "")
    files = {image: maps / f"{image.stem}.relu_3.clrp2.png" for image in (SCENE, OTHER_SCENE)}
    assert sorted(maps.iterdir()) == sorted(files.values())
    rows = table(done)
    assert [row[:5] for row in rows] == [
        [image.name, "clrp2", number, "channel", number]
        for image in (SCENE, OTHER_SCENE)
        for number in ("12", "0", "59")
    ]
    assert [row[-1] for row in rows] == [str(path) for path in files.values() for _ in range(3)]
    for path in files.values():
        assert min(is_picture(path)) > 300
    assert done.out.splitlines()[-1] == "6 maps on cpu"


def test_each_method_has_a_figure_of_the_neurons(maps: Path) -> None:
    words = ["--layer", "relu_3", "--top-neurons", "2", "--method", "lrp", "--method", "gradient"]
    rows = spoken(run("explain", DIGITS, SCENE, "-o", maps, *words, "--json"))
    assert [row["method"] for row in rows] == ["lrp", "lrp", "gradient", "gradient"]
    names = [f"2-and-5.relu_3.{method}.png" for method in ("gradient", "lrp")]
    assert sorted(path.name for path in maps.iterdir()) == names
    assert rows[0]["score"] >= rows[1]["score"]
    assert [row["target"] for row in rows[:2]] == [row["target"] for row in rows[2:]]


@pytest.mark.parametrize(
    ("layer", "neuron", "label", "target"),
    [
        ("relu_3", "63", "channel 63", 63),
        ("relu_3", "63:7:7", "unit 63:7:7", 4095),
        ("relu_3", "0:0:1", "unit 0:0:1", 1),
        ("node_linear", "63", "neuron 63", 63),
        ("view", "1023", "neuron 1023", 1023),
        ("logits", "007", "neuron 7", 7),
    ],
)
def test_a_neuron_is_called_by_its_place(
    maps: Path, layer: str, neuron: str, label: str, target: int
) -> None:
    done = run(
        *("explain", DIGITS, SCENE, "-o", maps, "--method", "lrp", "--json"),
        *("--layer", layer, "--neuron", neuron),
    )
    (row,) = json.loads(done.out)["explanations"]
    assert (done.status, row["label"], row["target"]) == (0, label, target)


@pytest.mark.parametrize("count", [1, 2, 9, 24])
def test_a_figure_takes_up_to_two_dozen_neurons(maps: Path, count: int) -> None:
    words = ["--layer", "relu_3", "--top-neurons", count, "--method", "lrp"]
    done = run("explain", DIGITS, SCENE, "-o", maps, *words)
    assert done.status == 0
    assert len(table(done)) == count
    (file,) = maps.iterdir()
    assert is_picture(file)


def test_a_layer_of_odd_name_is_a_plain_file(tmp_path: Path, maps: Path) -> None:
    model = network(BODY, WEIGHTS)
    for node in model.graph.node:
        node.output[:] = ["/../net/[x] 狐" if y == "f" else y for y in node.output]
        node.input[:] = ["/../net/[x] 狐" if x == "f" else x for x in node.input]
    path, picture = saved(tmp_path, model), tmp_path / "noise.png"
    noise().save(picture)
    layer = ["--layer", "/../net/[x] 狐", "--at", "/../net/[x] 狐", "--top-neurons", "2"]
    rows = spoken(run("explain", path, picture, "-o", maps, "--preset", "unit", *layer, "--json"))
    assert {Path(row["picture"]).parent for row in rows} == {maps}
    assert all(path.parent == maps for path in maps.rglob("*"))
    with np.load(rows[0]["arrays"]) as arrays:
        assert arrays["at//../net/[x] 狐"].shape == (2, 6, 4, 4)


def test_an_explainer_of_neurons_is_run_by_explain(tmp_path: Path, maps: Path) -> None:
    out = tmp_path / "out.onnx"
    run("convert", DIGITS, out, "--layer", "relu_3", "--neuron", "1:2:3,0:0:0")
    rows = spoken(run("explain", out, SCENE, "-o", maps, "--json"))
    assert [row["label"] for row in rows] == ["unit 1:2:3", "unit 0:0:0"]
    assert [path.name for path in maps.iterdir()] == ["2-and-5.relu_3.clrp2.png"]


def test_a_target_for_an_explainer_of_neurons_is_never_left_aside(
    tmp_path: Path, maps: Path
) -> None:
    out = tmp_path / "out.onnx"
    run("convert", DIGITS, out, "--layer", "relu_3")
    done = run("explain", out, SCENE, "-o", maps, "--target", "3,5", "--json")
    if done.status == 2:
        assert done.complaint
        assert not maps.exists()
    else:
        assert [row["target"] for row in spoken(done)] == [3, 5]


# -- maps inside -------------------------------------------------------------------------------


def test_a_map_inside_is_saved_for_every_method(maps: Path) -> None:
    words = ["--method", "lrp", "--method", "gradient", "--top", "2", "--at", "relu_1"]
    rows = spoken(run("explain", DIGITS, SCENE, "-o", maps, *words, "--json"))
    arrays = [row["arrays"] for row in rows]
    assert [Path(path).name for path in arrays] == ["2-and-5.lrp.npz"] * 2 + [
        "2-and-5.gradient.npz"
    ] * 2
    keys = {"relevance", "heatmap", "target", "seed", "logits", "at/relu_1"}
    for path in {*arrays}:
        with np.load(path) as found:
            assert {*found} == keys
            assert found["at/relu_1"].shape == (2, 32, 32, 32)
            assert found["relevance"].shape == (2, 1, 64, 64)
    with np.load(arrays[0]) as found:
        sums = found["at/relu_1"].sum((1, 2, 3), dtype=np.float64)
        np.testing.assert_allclose(sums, found["seed"], rtol=1e-3)


# -- compare -----------------------------------------------------------------------------------


def test_a_comparison_is_one_picture(maps: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = run("compare", DIGITS, SCENE, OTHER_SCENE, "-o", out)
    assert (done.status, done.out) == (0, "")
    assert done.complaint == f"onnx-clrp: wrote {out}: 2 images, 5 methods"
    width, height = is_picture(out)
    assert width > 1000
    assert height > 500
    assert leftovers(tmp_path) == []


class Drawn:
    """What was handed to `draw_comparison`."""

    rows: Sequence[onnx_clrp.figures.Row] = ()
    methods: Sequence[str] = ()
    title = ""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Nothing is drawn, and what would be is kept."""
    kept = Drawn()

    def draw(
        rows: Sequence[onnx_clrp.figures.Row],
        methods: Sequence[str],
        *,
        path: Path,
        title: str = "",
    ) -> None:
        kept.rows, kept.methods, kept.title = rows, methods, title
        path.write_bytes(b"")

    monkeypatch.setattr(onnx_clrp.figures, "draw_comparison", draw)
    return kept


def test_a_comparison_has_the_columns_of_the_paper(tmp_path: Path, drawn: Drawn) -> None:
    done = run("compare", DIGITS, SCENE, OTHER_SCENE, "-o", tmp_path / "out.png")
    assert done.status == 0
    assert drawn.methods == ["gradient", "guided backprop", "LRP", "CLRP1", "CLRP2"]
    assert [row.title for row in drawn.rows] == ["2-and-5.png", "3-and-7.png"]
    for row, image in zip(drawn.rows, (SCENE, OTHER_SCENE), strict=True):
        top = asked(image, method="lrp", target="top:2")
        assert [[panel.label for panel in panels] for panels in row.panels] == [
            [str(target)] * 5 for target in top.target[0]
        ]
        for k, panels in enumerate(row.panels):
            assert all(panel.score == pytest.approx(float(top.seed[0, k])) for panel in panels)
    methods = ("gradient", "guided_backprop", "lrp", "clrp1", "clrp2")
    for column, method in enumerate(methods):
        wanted = asked(SCENE, method=method, target="top:2").heatmap()[0]
        found = np.stack([panels[column].heatmap for panels in drawn.rows[0].panels])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_a_comparison_takes_the_words_of_explain(tmp_path: Path, drawn: Drawn) -> None:
    words = ["--method", "lrp", "--method", "gradient", "--contrast", "negated", "--signed"]
    done = run(
        *("compare", DIGITS, SCENE, "-o", tmp_path / "out.png", "--title", "a $title"),
        *(*words, "--target", "2,5"),
    )
    assert done.status == 0
    assert drawn.methods == ["LRP, negated", "gradient, negated"]
    assert drawn.title == "a $title"
    (row,) = drawn.rows
    assert [panels[0].label for panels in row.panels] == ["2", "5"]
    options: Options = {"method": "lrp", "contrast": "negated", "signed": True, "target": [2, 5]}
    wanted = asked(SCENE, **options).heatmap()[0]
    np.testing.assert_array_equal(np.stack([panels[0].heatmap for panels in row.panels]), wanted)


def test_in_a_comparison_a_layer_is_that_of_its_cams(tmp_path: Path, drawn: Drawn) -> None:
    words = ["--method", "lrp", "--method", "grad_cam", "--layer", "relu_2", "--top", "1"]
    assert run("compare", DIGITS, SCENE, "-o", tmp_path / "out.png", *words).status == 0
    (row,) = drawn.rows
    lrp, cam = (panel.heatmap for panel in row.panels[0])
    np.testing.assert_array_equal(lrp, asked(SCENE, method="lrp").heatmap()[0, 0])
    wanted = asked(SCENE, method="grad_cam", cam_layer="relu_2").heatmap()[0, 0]
    np.testing.assert_array_equal(cam, wanted)


def test_a_comparison_leaves_out_bad_pictures(tmp_path: Path, drawn: Drawn) -> None:
    out = tmp_path / "out.png"
    done = run("compare", DIGITS, tmp_path / "absent.png", SCENE, "-o", out, "--method", "lrp")
    assert done.status == 1
    assert [row.title for row in drawn.rows] == [SCENE.name]
    first, last = done.err.splitlines()
    assert "does not exist" in first
    assert f"wrote {out}" in last


def test_a_comparison_of_nothing_is_not_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = run("compare", DIGITS, tmp_path / "absent.png", "-o", out, "--method", "lrp")
    assert (done.status, done.out) == (1, "")
    assert "does not exist" in done.complaint
    assert not out.exists()


def test_a_map_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    model = saved(tmp_path, network(BODY, {**WEIGHTS, "u": WEIGHTS["u"] * np.nan}))
    noise().save(tmp_path / "noise.png")
    out = tmp_path / "out.png"
    words = ["--preset", "unit", "--method", "lrp"]
    done = run("compare", model, tmp_path / "noise.png", "-o", out, *words)
    assert done.status == 1
    assert "the model gives no finite relevance" in done.complaint
    assert not out.exists()


def test_an_explainer_is_a_comparison_of_one_method(tmp_path: Path, drawn: Drawn) -> None:
    made = tmp_path / "made.onnx"
    run("convert", DIGITS, made, "--method", "lrp", "--rules", "epsilon")
    done = run("compare", made, SCENE, "-o", tmp_path / "out.png", "--target", "2,5")
    assert done.status == 0
    assert drawn.methods == ["LRP, epsilon"]
    assert [panels[0].label for panels in drawn.rows[0].panels] == ["2", "5"]


# -- layers ------------------------------------------------------------------------------------

BODY = (
    f"{FRONT} p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)"
    " e = Conv<pads = [1, 1, 1, 1]>(p, u) f = Relu(e) "
    + BACK.replace("(b)", "(f)").replace("v)", "v6)")
)
WEIGHTS: Mapping[str, NDArray[np.float32]] = {
    "u": RNG.normal(size=(6, 5, 3, 3)).astype(np.float32),
    "v6": RNG.normal(size=(6, 4)).astype(np.float32),
}


def test_layers_are_listed() -> None:
    done = run("inspect", DIGITS, "--layers")
    assert (done.status, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    assert lines[0] == ["node", "operator", "tensor", "output"]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert [*rows] == [node.name for node in onnx.load(DIGITS).graph.node]
    assert rows["node_Conv_69"] == ["Conv", "getitem_6", "64×16×16"]
    assert rows["node_relu_4"] == ["Relu", "relu_4", "64"]
    marked = [name for name, line in rows.items() if "CAM's," in line]
    assert marked == ["node_relu_3"]


def test_layers_are_listed_for_machines() -> None:
    found = json.loads(run("inspect", DIGITS, "--layers", "--json").out)
    assert found[0] == {
        "node": "node_Conv_65",
        "operator": "Conv",
        "tensor": "getitem",
        "shape": [None, 16, 64, 64],
        "cam": False,
    }
    assert [layer["tensor"] for layer in found if layer["cam"]] == ["relu_3"]
    assert found[-1]["tensor"] == "logits"


def test_layers_of_an_odd_model_are_listed(tmp_path: Path) -> None:
    model = network(BODY, WEIGHTS, inputs="float[N, 3, H, W] x")
    model.graph.node[1].name = "[red]/a b[/]"
    done = run("inspect", saved(tmp_path, model), "--layers", "--input-range", "0,1")
    assert done.status == 0
    assert "[red]/a b[/]" in done.out
    assert "6×?×?" in done.out
    found = json.loads(
        run("inspect", tmp_path / "model.onnx", "--layers", "--input-range", "0,1", "--json").out
    )
    assert [layer["shape"] for layer in found][:2] == [[None, 5, None, None]] * 2
    assert [layer["node"] for layer in found][:2] == ["", "[red]/a b[/]"]


def test_layers_need_no_rule(tmp_path: Path) -> None:
    body = BODY.replace("f = Relu(e)", "f = Softmax<axis = 1>(e)")
    model = saved(tmp_path, network(body, WEIGHTS))
    done = run("inspect", model, "--layers", "--input-range", "0,1", "--json")
    assert done.status == 0
    assert [layer["tensor"] for layer in json.loads(done.out)] == [*"abpefcdy"]


# -- wrong words -------------------------------------------------------------------------------

LAYER = ["--layer", "relu_3"]

WRONG: Sequence[tuple[list[str], str]] = [
    (["--neuron", "1"], "say whose neurons: --layer NAME"),
    (["--top-neurons", "1"], "say whose neurons: --layer NAME"),
    (LAYER, "say which neurons of the layer: --neuron N or --top-neurons K"),
    ([*LAYER, "--neuron", "64"], "the layer has no neuron 64; they are 0…63"),
    ([*LAYER, "--neuron", "9" * 30], "the layer has no neuron 999"),
    ([*LAYER, "--neuron", "-1"], "'-1' is no neuron: write a channel, or CHANNEL:ROW:COLUMN"),
    ([*LAYER, "--neuron", "1:8:0"], "the layer has no neuron 1:8:0; they are 0…63:0…7:0…7"),
    ([*LAYER, "--neuron", "1:2"], "the layer has no neuron 1:2"),
    ([*LAYER, "--neuron", "1:2:3:4"], "the layer has no neuron 1:2:3:4"),
    ([*LAYER, "--neuron", "1,1:2:3"], "name channels or single units, not both at once"),
    ([*LAYER, "--neuron", "x"], "'x' is no neuron"),
    ([*LAYER, "--neuron", ""], "'' is no neuron"),
    ([*LAYER, "--neuron", "1,"], "'' is no neuron"),
    ([*LAYER, "--neuron", "1.5"], "'1.5' is no neuron"),
    ([*LAYER, "--neuron", "²"], "'²' is no neuron"),
    ([*LAYER, "--neuron", "1", "--top-neurons", "2"], "exclude each other"),
    ([*LAYER, "--neuron", "1", "--target", "1"], "neurons are explained, or classes"),
    ([*LAYER, "--top-neurons", "1", "--top", "1"], "neurons are explained, or classes"),
    ([*LAYER, "--top-neurons", "65"], "65"),
    ([*LAYER, "--top-neurons", "25", "--save-arrays"], "1 to 24 neurons"),
    (["--layer", "relu_4", "--neuron", "3:0:0"], "the layer has no neuron 3:0:0; they are 0…63"),
    (["--layer", "relu3", "--neuron", "1"], "did you mean 'relu_3'"),
    (["--layer", "nope", "--neuron", "1"], "no layer is called 'nope'"),
    (["--layer", "image", "--neuron", "1"], "no layer is called 'image'"),
    ([*LAYER, "--neuron", "1", "--method", "clrp1"], "no alternatives to one of them"),
    ([*LAYER, "--neuron", "1", "--method", "sglrp"], "no alternatives to one of them"),
    ([*LAYER, "--neuron", "1", "--method", "grad_cam"], "grad_cam explains classes, not neurons"),
    (["--layer", "nope", "--method", "grad_cam"], "no layer is called 'nope'"),
    (["--layer", "logits", "--method", "grad_cam"], "the layer 'logits' is no map of the input"),
    (["--at", "nope"], "no layer is called 'nope'"),
    (["--at", "relu_1", "--method", "grad_cam"], "grad_cam has a map at the input alone"),
    (["--at", "relu_1", "--method", "random"], "random has a map at the input alone"),
    (["--contrast", "negated"], "clrp2 has a contrast of its own"),
    (["--contrast", "others", "--method", "random"], "random takes no contrast"),
    (["--difference", "plain", "--method", "lrp"], "lrp has no contrast"),
    (["--rules", "paper", "--method", "gradient"], "gradient takes no rules"),
    (["--avg-pool", "even", "--method", "deconvnet"], "deconvnet takes no rules"),
    (["--rules-for", "nope"], "'nope' is no override: write PATTERN=RULE"),
    (["--rules-for", "nope=flat"], "no linear map is called 'nope'; there are 6"),
    (["--rules-for", "#7=flat"], "#1 … #6"),
    (["--rules-for", "#1=nope"], "no rule is called 'nope'"),
    (["--rules-for", "#1=gamma(-1)"], "none below zero"),
]


@pytest.mark.parametrize(("words", "reason"), WRONG)
def test_what_does_not_fit_is_one_line(maps: Path, words: list[str], reason: str) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps, *words)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint
    assert not maps.exists()


OF_EXPLAIN = (LAYER, [*LAYER, "--top-neurons", "25", "--save-arrays"])
"""Words that convert does not have, or takes."""


@pytest.mark.parametrize(
    ("words", "reason"), [(words, reason) for words, reason in WRONG if words not in OF_EXPLAIN]
)
def test_convert_says_the_same(tmp_path: Path, words: list[str], reason: str) -> None:
    done = run("convert", DIGITS, tmp_path / "out.onnx", *words)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--contrast", "nope"], "'nope' is not one of 'complement', 'others', 'negated'"),
        (["--difference", "nope"], "'nope' is not one of 'plain', 'normalised'"),
        (["--rules", "nope"], "'nope' is not one of 'default', 'paper', 'authors'"),
        (["--avg-pool", "nope"], "'nope' is not one of 'even', 'proportional'"),
        (["--max-pool", "nope"], "'nope' is not one of 'first', 'split'"),
        (["--method", "nope"], "'nope' is not one of 'lrp'"),
        (["--top-neurons", "0", *LAYER], "0 is not in the range"),
        (["--top-neurons", "x", *LAYER], "'x' is not a valid integer"),
    ],
)
def test_a_word_that_is_not_known_is_a_usage_error(
    maps: Path, words: list[str], reason: str
) -> None:
    verbs = ("explain",) if "--top-neurons" in words else ("explain", "compare")
    for verb in verbs:
        done = run(verb, DIGITS, SCENE, "-o", maps, *words)
        assert (done.status, done.out) == (2, "")
        assert reason in done.err
        assert "Traceback" not in done.err
        assert not maps.exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--target", "10"], "target 10 is not in 0 … 9"),
        (["--target", "1", "--top", "2"], "exclude each other"),
        (["--top", "5"], "1 to 4 targets"),
        (["--top", "11"], "11"),
        (["--contrast", "negated"], "clrp1 has a contrast of its own"),
        ([w for m in list(METHODS)[:13] for w in ("--method", m)], "1 to 12 methods"),
        ([*LAYER, "--method", "lrp"], "layer"),
    ],
)
def test_a_comparison_that_does_not_fit_is_one_line(
    tmp_path: Path, words: list[str], reason: str
) -> None:
    done = run("compare", DIGITS, SCENE, "-o", tmp_path / "out.png", *words)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--neuron", "1"], ["--top-neurons", "1"], ["--at", "relu_3"]])
def test_a_comparison_is_of_classes_at_the_input(tmp_path: Path, words: list[str]) -> None:
    done = run("compare", DIGITS, SCENE, "-o", tmp_path / "out.png", *words)
    assert (done.status, done.out) == (2, "")
    assert f"No such option '{words[0]}'" in done.err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_options_under_headings() -> None:
    said = run("explain", "--help").out
    places = [
        said.index(text)
        for text in ("What is explained:", "\n  --layer", "Method:", "\n  --rules ")
    ]
    assert places == sorted(places)
    assert "MODEL" not in said[said.index("\nOptions:") :]


def test_a_comparison_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("it was explained")

    monkeypatch.setattr(Explainer, "explain", work)
    methods = [word for method in [*METHODS][:13] for word in ("--method", method)]
    for words in (methods, ["--top", "5"], ["--target", "1,2,3,4,5"]):
        done = run("compare", DIGITS, SCENE, "-o", tmp_path / "out.png", *words)
        assert (done.status, list(tmp_path.iterdir())) == (2, [])


def test_too_many_pictures_for_a_comparison_are_one_line(tmp_path: Path) -> None:
    done = run("compare", DIGITS, *[SCENE] * 21, "-o", tmp_path / "out.png", "--method", "lrp")
    assert (done.status, done.out) == (2, "")
    assert "a comparison takes 20 images at most, not 21" in done.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "status", "said"),
    [
        ("absent/out.png", 1, "cannot write"),
        (".", 2, "a comparison is a .png, not "),
        ("out.jpg", 2, "a comparison is a .png, not "),
    ],
)
def test_a_comparison_that_cannot_be_written_is_one_line(
    tmp_path: Path, out: str, status: int, said: str
) -> None:
    words = ["--method", "lrp", "--top", "1"]
    done = run("compare", DIGITS, SCENE, "-o", tmp_path / out, *words)
    assert (done.status, done.out) == (status, "")
    assert said in done.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        [*LAYER, "--neuron", "1"],
        ["--at", "relu_1"],
        ["--contrast", "negated"],
        ["--rules-for", "#1=flat"],
        ["--max-pool", "split"],
    ],
)
def test_what_an_explainer_has_settled_stays(tmp_path: Path, maps: Path, words: list[str]) -> None:
    out = tmp_path / "out.onnx"
    run("convert", DIGITS, out, "--method", "lrp")
    done = run("explain", out, SCENE, "-o", maps, *words)
    assert (done.status, done.out) == (2, "")
    assert "the model is an explainer already" in done.complaint
    assert not maps.exists()


@pytest.mark.parametrize("verb", ["inspect", "check"])
def test_other_verbs_take_the_same_rules_and_contrasts(verb: str) -> None:
    words = ["--method", "lrp", "--contrast", "negated", "--rules", "paper", "--json"]
    done = run(verb, DIGITS, *words, "--rules-for", "#1=flat", "--signed")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["method"] == "lrp"
    wrong = run(verb, DIGITS, "--rules-for", "nope=flat")
    assert (wrong.status, wrong.out) == (2, "")
    assert "no linear map is called 'nope'" in wrong.complaint
