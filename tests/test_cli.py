"""The command: what it makes, what it prints, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import (
    BACK,
    DIGITS,
    FRONT,
    PLAIN,
    SCENE,
    WEIGHTS,
    Outcome,
    leftovers,
    network,
    noise,
    run,
    saved,
    spawn,
)
from PIL import Image

from onnx_clrp import rules
from onnx_clrp.cli import VERBS
from onnx_clrp.cli.pictures import unique
from onnx_clrp.model import PREFIX, load, metadata
from onnx_clrp.runtime import Explainer

EXPLAINER = "the model is an explainer already"


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A folder for pictures, which is not there yet."""
    return tmp_path / "maps"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture that the small models take."""
    path = tmp_path / "noise.png"
    noise().save(path)
    return path


def table(done: Outcome) -> list[list[str]]:
    """The rows of the printed table."""
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    return lines[2:-1]


# -- help --------------------------------------------------------------------------------------


def test_the_package_is_the_command_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnx_clrp", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("onnx-clrp, version ")


def test_help_fits_a_terminal_and_imports_next_to_nothing() -> None:
    heavy = ("onnx", "numpy", "PIL", "onnxruntime", "rich", "matplotlib", "torch")
    code = f"""
try:
    main()
finally:
    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom onnx_clrp.cli import main\n{code}", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "[]"
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = run(verb, "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: onnx-clrp {verb}")
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_version_is_told() -> None:
    assert run("--version").out.startswith("onnx-clrp, version ")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nope"], "No such command 'nope'"),
        (["explain"], "Missing argument 'MODEL'"),
        (["explain", DIGITS], "Missing argument 'IMAGES...'"),
        (["explain", DIGITS, SCENE, "--nope"], "No such option '--nope'"),
        (["explain", DIGITS, SCENE, "--method", "nope"], "'nope' is not one of 'lrp'"),
        (["explain", DIGITS, SCENE, "--rules", "nope"], "'nope' is not one of 'default'"),
        (["explain", DIGITS, SCENE, "--device", "tpu"], "'tpu' is not one of"),
        (["explain", DIGITS, SCENE, "--top", "0"], "0 is not in the range"),
        (["explain", DIGITS, SCENE, "--top", "x"], "'x' is not a valid integer"),
        (["explain", DIGITS, SCENE, "--mean", "a,b"], "is not numbers with commas between"),
        (["explain", DIGITS, SCENE, "--resize", "big"], "neither a number of pixels nor"),
    ],
)
def test_wrong_words_are_a_usage_error(words: list[object], reason: str) -> None:
    done = run(*words)
    assert (done.status, done.out) == (2, "")
    assert reason in done.err


# -- explain -----------------------------------------------------------------------------------


def test_explain_draws_the_top_class_and_prints_a_table(maps: Path) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps)
    assert (done.status, done.err) == (0, "")
    file = maps / "2-and-5.5_5.clrp2.png"
    assert [p.name for p in maps.iterdir()] == [file.name]
    with Image.open(file) as drawn:
        drawn.verify()
    head = ["image", "method", "class", "label", "score", "ΣR", "file"]
    assert head in [line.split() for line in done.out.splitlines()]
    image, method, target, label, score, total, path = table(done)[0]
    assert (image, method, target, label, path) == (SCENE.name, "clrp2", "5", "5", str(file))
    assert float(score) > 0
    assert float(total) > 0


def test_the_json_agrees_with_the_arrays(maps: Path) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps, "--target", "2,5", "--json", "--save-arrays")
    found = json.loads(done.out)
    assert (done.status, found["errors"]) == (0, [])
    rows = found["explanations"]
    assert [row["target"] for row in rows] == [2, 5]
    for k, row in enumerate(rows):
        assert Path(row["picture"]).is_file()
        with np.load(row["arrays"]) as arrays:
            assert row["score"] == pytest.approx(float(arrays["seed"][k]))
            assert row["relevance"] == pytest.approx(float(arrays["heatmap"][k].sum()), rel=1e-4)
            assert arrays["relevance"].shape == (2, 1, 64, 64)
            assert arrays["logits"].argmax() == 5


def test_each_method_target_and_sheet_is_a_file(maps: Path) -> None:
    words = ["--method", "lrp", "--method", "clrp1", "--method", "lrp", "--top", "2", "--sheet"]
    done = run("explain", DIGITS, SCENE, "-o", maps, *words)
    assert done.status == 0
    assert sorted(p.name for p in maps.iterdir()) == [
        f"2-and-5.{part}.png"
        for part in ("2_2.clrp1", "2_2.lrp", "5_5.clrp1", "5_5.lrp", "clrp1.sheet", "lrp.sheet")
    ]


def test_relevance_of_lrp_adds_up_to_the_score(maps: Path) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps, "--method", "lrp", "--json")
    (row,) = json.loads(done.out)["explanations"]
    assert row["relevance"] == pytest.approx(row["score"], rel=1e-3)


def test_a_target_named_twice_is_drawn_once(maps: Path) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps, "--target", "2,2", "--target", "2", "--json")
    assert [row["target"] for row in json.loads(done.out)["explanations"]] == [2]


def test_a_score_below_zero_is_announced(maps: Path) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps, "--target", "3")
    assert done.status == 0
    assert "the score of 3 is below zero: the map shows evidence against" in done.complaint


def test_files_of_one_name_in_different_folders_stay_apart(tmp_path: Path, maps: Path) -> None:
    for name in ("a/x.png", "b/x.png", "c/x-2.png", "d/X.png"):
        path = tmp_path / name
        path.parent.mkdir()
        noise().save(path)
    words = [tmp_path / name for name in ("a", "b/x.png", "c/x-2.png", "d")]
    done = run("explain", DIGITS, *words, "-o", maps)
    assert done.status == 0
    assert len(list(maps.iterdir())) == 4
    assert len({name.name.casefold() for name in maps.iterdir()}) == 4


def test_names_get_the_first_number_that_is_free() -> None:
    names = ["a", "a-3", "A", "b", "a", "a-2", "a-2", "a-3", "ß", "SS", "a", "a-2-2"]
    assert unique(names) == [
        *("a", "a-3", "A-2", "b", "a-4", "a-2-2", "a-2-3", "a-3-2", "ß", "SS-2", "a-5", "a-2-2-2")
    ]


class Counted(str):
    """A name that counts how often a number is put behind it."""

    times = 0

    def __format__(self, spec: str) -> str:
        Counted.times += 1
        return str(self)


def test_many_equal_names_are_tried_once_each() -> None:
    Counted.times = 0
    assert unique([Counted("a")] * 500)[-1] == "a-500"
    assert Counted.times == 499


def test_a_folder_stands_for_its_pictures(tmp_path: Path, maps: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    noise().save(tmp_path / "a.jpeg")
    noise().save(tmp_path / "b.PNG")
    done = run("explain", DIGITS, tmp_path, "-o", maps)
    assert (done.status, done.err) == (0, "")
    assert [row[0] for row in table(done)] == ["a.jpeg", "b.PNG"]


def test_labels_come_from_a_file_and_never_leave_the_folder(tmp_path: Path, maps: Path) -> None:
    labels = tmp_path / "labels.txt"
    names = ["zebra, Equus", "[red]x[/]", "../../up", "Füchse", *"456789"]
    labels.write_text("\n".join(names), encoding="utf-8")
    words = ["--labels", labels, "--target", "equus,füchse", "--target", "1,2"]
    done = run("explain", DIGITS, SCENE, "-o", maps, *words)
    assert done.status == 0
    assert [row[3] for row in table(done)] == ["zebra", "Füchse", "[red]x[/]", "../../up"]
    assert sorted(p.name for p in maps.iterdir()) == [
        f"2-and-5.{part}.clrp2.png" for part in ("0_zebra", "1_red_x", "2_up", "3_Füchse")
    ]


def test_paths_of_every_script_work(tmp_path: Path) -> None:
    folder = tmp_path / "ü 狐"
    folder.mkdir()
    model = saved(folder, network(), "módel.onnx")
    noise().save(folder / "Füchse [b].png")
    done = run(
        "explain", model, folder / "Füchse [b].png", "-o", folder / "öut", "--preset", "unit"
    )
    assert done.status == 0
    assert [p.name.split(".")[0] for p in (folder / "öut").iterdir()] == ["Füchse_b"]


# -- pictures ----------------------------------------------------------------------------------


def deep_grey(image: Image.Image) -> Image.Image:
    """Sixteen bits of grey."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda image, mode=mode: image.convert(mode) for mode in ("L", "LA", "P", "RGBA", "1")),
        deep_grey,
    ],
    ids=["grey", "grey with alpha", "palette", "alpha", "bilevel", "16-bit grey"],
)
def test_odd_kinds_of_picture_just_work(
    tmp_path: Path, maps: Path, change: Callable[[Image.Image], Image.Image]
) -> None:
    change(noise()).save(tmp_path / "odd.png")
    done = run("explain", DIGITS, tmp_path / "odd.png", "-o", maps)
    assert (done.status, done.err) == (0, "")


def test_a_picture_turned_by_exif_is_seen_upright(tmp_path: Path, maps: Path) -> None:
    with Image.open(SCENE) as scene:
        turned = scene.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    done = run("explain", DIGITS, SCENE, tmp_path / "turned.png", "-o", maps, "--json")
    upright, same = json.loads(done.out)["explanations"]
    assert same["score"] == pytest.approx(upright["score"])


def cut_jpeg(path: Path) -> None:
    """A JPEG file that ends in its middle."""
    noise().save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist: check the name"),
    "empty": (lambda path: path.write_bytes(b""), "is an empty file: copy it anew"),
    "text": (lambda path: path.write_text("no"), "save it as PNG or JPEG first"),
    "truncated": (cut_jpeg, "cannot be decoded (image file is truncated"),
    "huge": (
        lambda path: Image.new("1", (10000, 9000)).save(path, "PNG"),
        "make a smaller copy first",
    ),
    "empty folder": (lambda path: path.mkdir(), "no pictures in the folder"),
    "pipe": (os.mkfifo, "is a device or pipe: name a file"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_one_line_and_stops_no_other(
    tmp_path: Path, maps: Path, kind: str
) -> None:
    make, reason = BAD_PICTURES[kind]
    bad = tmp_path / "bad.jpg"
    make(bad)
    done = run("explain", DIGITS, bad, SCENE, "-o", maps, "--json")
    assert done.status == 1
    assert reason in done.complaint
    assert repr(str(bad)) in done.complaint
    found = json.loads(done.out)
    assert [row["image"] for row in found["explanations"]] == [str(SCENE)]
    assert len(found["errors"]) == 1
    assert len(list(maps.iterdir())) == 1


def test_with_bad_pictures_alone_there_is_no_table(tmp_path: Path, maps: Path) -> None:
    done = run("explain", DIGITS, tmp_path / "absent.png", "-o", maps)
    assert (done.status, done.out) == (1, "")
    assert not maps.exists()


def test_a_map_that_is_not_finite_is_an_error_of_its_picture(picture: Path, maps: Path) -> None:
    model = saved(picture.parent, network(PLAIN, {"w": WEIGHTS["w"] * np.nan}))
    done = run("explain", model, picture, "-o", maps, "--preset", "unit", "--save-arrays")
    assert done.status == 1
    assert "no finite relevance" in done.complaint
    assert not maps.exists()


# -- models ------------------------------------------------------------------------------------


def external(folder: Path, location: str) -> Path:
    """A model whose weights lie in another file, under the given name."""
    path = folder / "external.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def labelled(text: str) -> onnx.ModelProto:
    """A model with labels in its metadata."""
    model = network()
    model.metadata_props.add(key=PREFIX + "labels", value=text)
    return model


def without(field: str) -> onnx.ModelProto:
    """A model whose graph lacks something."""
    model = network()
    model.graph.ClearField(field)
    return model


def untyped() -> onnx.ModelProto:
    """A model with weights of a type that nobody knows."""
    model = network()
    model.graph.initializer[0].data_type = 99
    return model


def newer() -> onnx.ModelProto:
    """A model of an opset that nobody knows."""
    model = network()
    model.opset_import[0].version = 999
    return model


def damaged() -> onnx.ModelProto:
    """A model that claims to be an explainer."""
    model = network()
    model.metadata_props.add(key=PREFIX + "method", value="clrp2")
    return model


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "absent.onnx", "No such file or directory"),
    "folder": (lambda folder: folder, "Is a directory"),
    "empty": (lambda folder: written(folder, b""), "not an ONNX model"),
    "text": (lambda folder: written(folder, b"hello world\n"), "not an ONNX model"),
    "noise": (lambda folder: written(folder, bytes(range(255, 0, -1))), "not an ONNX model"),
    "truncated": (lambda folder: written(folder, DIGITS.read_bytes()[:200000]), "a truncated one"),
    "weights missing": (lambda folder: external(folder, "absent"), "external data cannot be read"),
    "weights outside": (lambda folder: external(folder, "../data"), "points outside"),
    "weights of the system": (lambda folder: external(folder, "/etc/passwd"), "absolute path"),
}

BAD_MODELS: dict[str, tuple[onnx.ModelProto, str]] = {
    "no classifier": (
        network("y = Conv(x, w)", outputs="float[N, 5, 6, 6] y"),
        "more than one position per class",
    ),
    "one number": (
        network("y = GlobalAveragePool(x) r = ReduceSum<keepdims=0>(y)", outputs="float r"),
        "must be [N, C]",
    ),
    "not of the input": (
        network("y = Constant<value = float[1, 4] {1, 2, 3, 4}>()", outputs="float[1, 4] y"),
        "do not depend on the input",
    ),
    "no output": (without("output"), "no output"),
    "no input": (without("input"), "not a valid ONNX model"),
    "unknown type": (untyped(), "unknown type"),
    "wrong shapes": (network(PLAIN, {"w": np.ones((5, 2, 3, 3), "f")}), "cannot run the model"),
    "opset of the future": (newer(), "cannot load the model"),
    "bfloat16": (
        network(f"x = Cast<to=1>(z) {PLAIN}", inputs="bfloat16[N, 3, 8, 8] z"),
        "bfloat16",
    ),
    "labels are no JSON": (labelled("cat"), "are no JSON"),
    "labels too deep": (labelled("[" * 9999), "are no JSON"),
    "labels are no list": (labelled("{}"), "no list of names"),
    "damaged explainer": (damaged(), "convert the original model again"),
}


def written(folder: Path, data: bytes) -> Path:
    """A file with that in it."""
    path = folder / "bad.onnx"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_model_is_one_line(tmp_path: Path, maps: Path, kind: str) -> None:
    make, reason = BAD_FILES[kind]
    path = make(tmp_path)
    for words in (
        ["explain", path, SCENE, "-o", maps],
        ["convert", path, tmp_path / "out.onnx"],
        ["inspect", path, "--json"],
        ["check", path],
    ):
        done = run(*words)
        assert (done.status, done.out) == (1, "")
        assert reason in done.complaint
        assert str(path) in done.complaint
    assert not maps.exists()
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_cannot_be_explained_is_one_line(picture: Path, maps: Path, kind: str) -> None:
    model, reason = BAD_MODELS[kind]
    path = saved(picture.parent, model)
    given = [] if kind == "damaged explainer" else ["--preset", "unit"]
    done = run("explain", path, picture, "-o", maps, *given)
    assert (done.status, done.out) == (1, "")
    assert reason in done.complaint
    assert len(done.complaint) < 500
    assert not maps.exists()


def test_labels_that_are_too_few_are_left_out(picture: Path, maps: Path) -> None:
    model = saved(picture.parent, labelled('["cat"]'))
    done = run("explain", model, picture, "-o", maps, "--preset", "unit", "--target", "2")
    assert done.status == 0
    assert "1 labels for 4 classes" in done.err


def test_weights_beside_the_model_are_found(picture: Path, maps: Path) -> None:
    path = external(picture.parent, "data")
    assert run("explain", path, picture, "-o", maps, "--preset", "unit").status == 0


UNSUPPORTED = {
    "before the classifier": (
        f'{FRONT} e = Einsum<equation = "nchw->nchw">(b) f = CumSum(e, one) '
        f"{BACK.replace('(b)', '(f)')}",
        ["Einsum", "CumSum"],
    ),
    "on both sides of it": (
        f'{FRONT} e = Einsum<equation = "nchw->nchw">(b) '
        f"{BACK.replace('(b)', '(e)').replace('y =', 'z =')} y = CumSum(z, one)",
        ["Einsum", "CumSum"],
    ),
    "of another domain": (
        f"{FRONT} e = custom.Magic(b) {BACK.replace('(b)', '(e)')}",
        ["custom.Magic"],
    ),
    "with graphs inside": (
        "c = If(yes) <then_branch = left () => (float[N, 3, 8, 8] p) { p = Relu(x) },"
        " else_branch = right () => (float[N, 3, 8, 8] q) { q = Neg(x) }> "
        f"{PLAIN.replace('(x', '(c').replace(' c = Gl', ' cc = Gl').replace('(c)', '(cc)')}",
        ["If"],
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_operators_without_a_rule_are_all_listed(picture: Path, maps: Path, kind: str) -> None:
    body, operators = UNSUPPORTED[kind]
    model = network(body, {"yes": np.array(True)}, domains=', "custom": 1')
    for node in model.graph.node:
        node.name = f"node of {node.output[0]}"
    path = saved(picture.parent, model)
    types = [operator.split(".")[-1] for operator in operators]
    names = [node.name for node in model.graph.node if node.op_type in types]
    for words in (
        ["explain", path, picture, "-o", maps],
        ["convert", path, picture.parent / "out.onnx"],
        ["check", path],
    ):
        done = run(*words, "--preset", "unit")
        assert done.status == 1
        listed = [line for line in done.err.splitlines() if line.startswith("  ")]
        for operator, name in zip(operators, names, strict=True):
            assert any(operator in line and name in line for line in listed)
        assert "see docs/rules.md" in done.err
    assert not (picture.parent / "out.onnx").exists()

    shown = run("inspect", path, "--preset", "unit")
    assert shown.status == 1
    assert all(any(n in row and "MISSING" in row for row in shown.out.splitlines()) for n in names)
    rows = json.loads(run("inspect", path, "--json", "--preset", "unit").out)["nodes"]
    assert {row["operator"] for row in rows if row["missing"]} >= set(operators)


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--target", "10"], "target 10 is not in 0 … 9"),
        (["--target", "zebra"], "no class is called 'zebra'"),
        (["--top", "11"], "top:1 … top:10"),
        (["--top", "2", "--target", "1"], "exclude each other"),
        (["--input", "nope"], "no input is called 'nope'; the model has 'image'"),
        (["--logits", "nope"], "no node writes a tensor called 'nope'"),
        (["--input-range", "1"], "--input-range takes two numbers"),
        (["--input-range", "1,0"], "low <= high"),
        (["--input-range", "nan,1"], "low <= high"),
        (["--input-range", "0,0.1"], "give the right input range"),
        (["--preset", "imagenet"], "--channels"),
        (["--channels", "rgb"], "--channels"),
        (["--std", "0"], "std must not be zero"),
        (["--mean", "1,2"], "mean must be one number"),
        (["--crop", "32"], "crop 32x32 is not the size of the model's input, 64x64"),
        (["--resize", "10"], "resize 10 is smaller than the crop of 64"),
        (["--labels", "absent.txt"], "labels 'absent.txt' cannot be read"),
        (["--extension", "absent.py"], "no Python file of that name"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(maps: Path, words: list[str], reason: str) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps, *words)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint
    assert not maps.exists() or list(maps.iterdir()) == []


def test_a_device_that_is_not_there_is_one_line(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    done = run("explain", DIGITS, SCENE, "-o", maps, "--device", "cuda")
    assert done.status == 2
    assert 'install "onnx-clrp[gpu]"' in done.complaint


@pytest.mark.parametrize("verb", ["explain", "convert", "inspect", "check"])
def test_clrp1_needs_two_classes(picture: Path, maps: Path, verb: str) -> None:
    weights = {"v": np.ones((5, 1), "f")}
    model = saved(picture.parent, network(PLAIN, weights, outputs="float[N, 1] y"))
    more: dict[str, list[object]] = {
        "explain": [picture, "-o", maps],
        "convert": [picture.parent / "out.onnx"],
    }
    words: list[object] = [verb, model, *more.get(verb, []), "--preset", "unit", "--method"]
    assert run(*words, "lrp").status == 0
    done = run(*words, "clrp1")
    assert done.status == 2
    assert "clrp1 needs at least 2 classes, not 1" in done.complaint


def test_a_choice_of_inputs_and_outputs_is_asked_for(picture: Path) -> None:
    body = f"s = Add(x, z) {PLAIN.replace('(x, w)', '(s, w)')}"
    two = saved(picture.parent, network(body, inputs="float[N, 3, 8, 8] x, float[N, 3, 8, 8] z"))
    done = run("inspect", two, "--preset", "unit")
    assert done.status == 2
    assert "--input: 'x', 'z'" in done.complaint
    assert run("inspect", two, "--preset", "unit", "--input", "z").status == 0

    outputs = "float[N, 4] y, float[N, 4] z"
    two = saved(picture.parent, network(f"{PLAIN} z = Gemm(d, v)", outputs=outputs))
    done = run("inspect", two, "--preset", "unit")
    assert done.status == 2
    assert "--logits 'y', 'z'" in done.complaint
    assert run("inspect", two, "--preset", "unit", "--logits", "z").status == 0


@pytest.mark.parametrize("place", ["picture", "below a picture"])
def test_a_folder_that_cannot_be_made_is_one_line(picture: Path, place: str) -> None:
    out = picture if place == "picture" else picture / "maps"
    before = picture.read_bytes()
    done = run("explain", DIGITS, SCENE, "-o", out)
    assert (done.status, done.out) == (1, "")
    assert "cannot make the folder" in done.complaint
    assert picture.read_bytes() == before


def test_pictures_that_cannot_be_written_are_one_line(maps: Path) -> None:
    blocked = maps / "2-and-5.5_5.clrp2.png"
    blocked.mkdir(parents=True)
    done = run("explain", DIGITS, SCENE, "-o", maps)
    assert done.status == 1
    assert "a folder has that name" in done.complaint
    assert leftovers(maps) == []


def test_an_interruption_leaves_nothing_half_done(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_clrp.files.os.replace", interrupt)
    done = run("explain", DIGITS, SCENE, "-o", maps)
    assert done.status == 1
    assert done.err.split() == ["Aborted!"]
    assert not maps.exists()


def test_a_folder_that_was_there_stays(maps: Path) -> None:
    maps.mkdir()
    done = run("explain", DIGITS, maps / "absent.png", "-o", maps)
    assert done.status == 1
    assert list(maps.iterdir()) == []


def test_a_process_that_is_told_to_end_leaves_nothing_half_done(maps: Path) -> None:
    maps.mkdir()
    code = (
        "import os, signal; import onnx_clrp.files as files;"
        " files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGTERM); main()"
    )
    done = spawn("explain", DIGITS, SCENE, "-o", maps, code=code)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(maps.iterdir()) == []


# -- convert -----------------------------------------------------------------------------------


def test_convert_writes_an_explainer_that_explain_takes(tmp_path: Path, maps: Path) -> None:
    out = tmp_path / "out.onnx"
    done = run("convert", DIGITS, out, "--method", "clrp1")
    assert done.status == 0
    assert done.complaint.endswith("image, target -> logits, relevance, relevance_target")
    direct = run("explain", DIGITS, SCENE, "-o", maps, "--method", "clrp1", "--target", "2")
    again = run("explain", out, SCENE, "-o", maps, "--target", "2")
    assert table(again) == table(direct)


@pytest.mark.parametrize(
    ("words", "targets"), [(["--target", "3,5"], [3, 5]), (["--top", "2"], [5, 2])]
)
def test_targets_can_be_compiled_in(
    tmp_path: Path, maps: Path, words: list[str], targets: list[int]
) -> None:
    out = tmp_path / "out.onnx"
    assert run("convert", DIGITS, out, *words).status == 0
    found = json.loads(run("explain", out, SCENE, "-o", maps, "--json").out)
    assert [row["target"] for row in found["explanations"]] == targets
    done = run("explain", out, SCENE, "-o", maps, "--target", "1")
    assert done.status == 2
    assert "compiled in" in done.complaint


@pytest.mark.parametrize(
    "words", [["--method", "lrp"], ["--top", "2"], ["--signed"], ["--preset", "unit"]]
)
def test_what_an_explainer_has_settled_stays(tmp_path: Path, maps: Path, words: list[str]) -> None:
    out = tmp_path / "out.onnx"
    run("convert", DIGITS, out)
    done = run("explain", out, SCENE, "-o", maps, *words)
    assert done.status == 2
    assert EXPLAINER in done.complaint


@pytest.mark.parametrize("verb", ["convert", "inspect", "check"])
def test_an_explainer_is_not_converted_again(tmp_path: Path, verb: str) -> None:
    out, again = tmp_path / "out.onnx", tmp_path / "again.onnx"
    run("convert", DIGITS, out)
    done = run(verb, out, *([again] if verb == "convert" else []), "--logits", "logits")
    assert (done.status, done.out) == (2, "")
    assert EXPLAINER in done.complaint
    assert not again.exists()


def test_convert_stores_the_labels_of_a_file(tmp_path: Path, maps: Path) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "out.onnx"
    labels.write_text("\n".join(f"digit {i}" for i in range(10)))
    assert run("convert", DIGITS, out, "--labels", labels).status == 0
    assert json.loads(metadata(load(out))[PREFIX + "labels"])[5] == "digit 5"
    assert run("explain", out, SCENE, "-o", maps, "--target", "digit_5").status == 0
    assert run("convert", DIGITS, out, "--labels", tmp_path / "absent").status == 2


def test_the_model_is_never_replaced_by_its_explainer(tmp_path: Path) -> None:
    model = saved(tmp_path, network())
    before = model.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    for out in (model, link, tmp_path / "." / "model.onnx"):
        done = run("convert", model, out)
        assert done.status == 2
        assert "name another file" in done.complaint
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("out", "reason"),
    [("absent/out.onnx", "No such file or directory"), (".", "a folder has that name")],
)
def test_an_explainer_that_cannot_be_written_is_one_line(
    tmp_path: Path, out: str, reason: str
) -> None:
    done = run("convert", DIGITS, tmp_path / out)
    assert done.status == 1
    assert reason in done.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_older_explainer_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    assert run("convert", DIGITS, out, "--target", "10").status == 2
    assert out.read_bytes() == b"old"


# -- inspect -----------------------------------------------------------------------------------


def test_inspect_shows_the_rule_of_every_node() -> None:
    done = run("inspect", DIGITS)
    assert (done.status, done.err) == (0, "")
    nodes = [node.name for node in onnx.load(DIGITS).graph.node]
    assert all(name in done.out for name in nodes)
    assert "input    image float32 [batch, 1, 64, 64]" in done.out
    assert "logits   logits, 10 classes" in done.out
    assert "z^β" in done.out
    assert "z⁺, classifier layer" in done.out


def test_inspect_speaks_json() -> None:
    found = json.loads(run("inspect", DIGITS, "--json").out)
    assert (found["input"], found["logits"], found["classes"]) == ("image", "logits", 10)
    assert found["input_range"] == [0, 1]
    assert all(row["missing"] is None for row in found["nodes"])


# -- extensions --------------------------------------------------------------------------------


@pytest.fixture
def unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with an operator that has no rule, until a test registers one for itself."""
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))
    body = f"{FRONT} e = custom.Same(b) {BACK.replace('(b)', '(e)')}"
    model = network(body, domains=', "custom": 1')
    for name in ("e", "b"):
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 5, 8, 8])
        model.graph.value_info.append(value)
    return saved(tmp_path, model)


def extension(folder: Path, text: str) -> Path:
    """A Python file with rules."""
    path = folder / "extension.py"
    path.write_text(f"import onnx_clrp\n{text}\n")
    return path


def test_an_extension_adds_a_rule(tmp_path: Path, unsupported: Path) -> None:
    words = ["inspect", unsupported, "--preset", "unit"]
    assert run(*words).status == 1
    rule = '@onnx_clrp.rule("Same", domain="custom")\ndef same(t, r, y, x):\n    """as is"""\n'
    file = extension(tmp_path, f"{rule}    return r")
    done = run(*words, "--extension", file)
    assert done.status == 0
    assert "as is" in done.out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
        ("def (", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("@onnx_clrp.rule('Relu')\ndef f(t, r, y, x): return r", "Relu has a rule already"),
    ],
)
def test_an_extension_that_fails_is_one_line(
    tmp_path: Path, unsupported: Path, text: str, reason: str
) -> None:
    file = extension(tmp_path, text)
    done = run("inspect", unsupported, "--preset", "unit", "--extension", file)
    assert (done.status, done.out) == (2, "")
    assert reason in done.complaint
    assert str(file) in done.complaint


# -- terminals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_greek_is_no_obstacle(encoding: str) -> None:
    done = spawn("inspect", DIGITS, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert "classifier layer" in done.stdout


def test_json_is_ascii_for_every_terminal() -> None:
    done = run("inspect", DIGITS, "--json")
    assert done.out.isascii()
    assert json.loads(done.out)["nodes"][0]["rule"] == "z^β"


def test_an_output_that_takes_nothing_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = spawn("inspect", DIGITS, code="sys.stdout = open('/dev/full', 'w'); main()")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_an_output_that_is_closed_is_no_traceback() -> None:
    done = spawn("inspect", DIGITS, code="sys.stdout = None; main()")
    assert "Traceback" not in done.stderr


def test_rows_are_not_broken_where_nobody_watches(maps: Path) -> None:
    done = run("explain", DIGITS, SCENE, "-o", maps / ("long" * 15))
    assert len(table(done)) == 1


def test_an_error_of_the_program_itself_is_not_hidden(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Explainer, "explain", stumble)
    with pytest.raises(ZeroDivisionError):
        run("explain", DIGITS, SCENE, "-o", maps)
