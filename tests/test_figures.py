"""Comparisons and rings of neurons: every map in its place, and words that stay in theirs."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from onnx_clrp.canvas import GAP, LINE, MARGIN, Canvas
from onnx_clrp.errors import ClrpError, UsageError
from onnx_clrp.figures import Row, draw_comparison, draw_neurons
from onnx_clrp.render import DARK, Panel, overlay
from onnx_clrp.ring import Grid

Pixels = npt.NDArray[np.uint8]
Drawing = npt.NDArray[np.int64]
Box = tuple[float, float, float, float]
LEGEND = {"0", "q", "q: 99.5 % quantile of |R| > 0, per map"}
ODD = ["$\\frac{$", "a\\textbf{b}" * 30, "two\nlines\0\x1b[31m", "狐", "W" * 300, "", "\u202etxt"]


@dataclass
class Seen:
    """What was drawn: the words and where they and the pictures lie, as x0, y0, x1, y1."""

    words: list[str] = field(default_factory=list)
    texts: list[Box] = field(default_factory=list)
    pictures: list[Box] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    known, png, paste = Seen(), Canvas.png, Canvas.paste

    def pasting(self: Canvas, picture: Pixels, x: int, y: int) -> None:
        known.pictures.append((x, y, x + picture.shape[1], y + picture.shape[0]))
        paste(self, picture, x, y)

    def finishing(self: Canvas) -> bytes:
        height, width = self.pixels.shape[:2]
        known.size = (width, height)
        for text in self.figure.texts:
            box = text.get_window_extent()
            known.words.append(text.get_text())
            known.texts.append((box.x0, height - box.y1, box.x1, height - box.y0))
        return png(self)

    monkeypatch.setattr(Canvas, "paste", pasting)
    monkeypatch.setattr(Canvas, "png", finishing)
    return known


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def heat(shape: tuple[int, ...], seed: int, signed: bool = False) -> npt.NDArray[np.float64]:
    values = np.random.default_rng(seed).standard_normal(shape[:2]) ** 3
    return values if signed else np.abs(values)


def panels(picture: Pixels, count: int, first: int = 0, **more: Any) -> list[Panel]:
    given = {"label": "zebra", "score": 3.25, **more}
    return [Panel(heat(picture.shape, first + index), **given) for index in range(count)]


def row(picture: Pixels, targets: int, methods: int, seed: int = 0, **more: Any) -> Row:
    lines = [panels(picture, methods, seed + 100 * k, **more) for k in range(targets)]
    return Row(picture, f"picture {seed}", lines)


def names(count: int) -> list[str]:
    return [f"method {index}" for index in range(count)]


def drawing(path: Path) -> Drawing:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def large(picture: Pixels, side: int) -> Pixels:
    """As Pillow enlarges or shrinks to that side, tiny ones in whole steps."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= 64:
        step = side // longest
        return picture.repeat(step, axis=0).repeat(step, axis=1)
    size = (round(width * side / longest), round(height * side / longest))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def overlapping(one: Box, other: Box) -> bool:
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(
        one[1], other[1]
    )


def assert_tidy(seen: Seen) -> None:
    """No words on one another, beyond the margins, or on a picture unless they say it is empty."""
    said = [(w, box) for w, box in zip(seen.words, seen.texts, strict=True) if w]
    for (word, box), (other, place) in combinations(said, 2):
        assert not overlapping(box, place), (word, other)
    for (word, box), picture in product(said, seen.pictures):
        assert word == "no relevance" or not overlapping(box, picture), (word, picture)
    for one, other_picture in combinations(seen.pictures, 2):
        assert not overlapping(one, other_picture)
    for word, (left, top, right, bottom) in said:
        assert MARGIN - 3 <= left <= right <= seen.size[0] - MARGIN + 3, word
        assert 0 <= top <= bottom <= seen.size[1], word


@pytest.mark.parametrize(
    ("shape", "methods", "targets", "side"),
    [
        ((224, 224), 5, 2, 224),
        ((224, 224), 3, 2, 448),
        ((28, 28), 2, 1, 448),
        ((28, 28), 7, 3, 224),
        ((300, 500), 1, 4, 448),
        ((500, 300), 5, 1, 224),
        ((3, 900), 2, 2, 448),
        ((1, 1), 12, 1, 224),
    ],
)
def test_each_map_stands_under_its_method_beside_its_picture(
    tmp_path: Path, seen: Seen, shape: tuple[int, int], methods: int, targets: int, side: int
) -> None:
    rows = [row(noise(*shape, seed), targets, methods, seed) for seed in (1, 2)]
    draw_comparison(rows, names(methods), path=tmp_path / "a.png")
    drawn = drawing(tmp_path / "a.png")
    boxes = iter(seen.pictures)
    tops: list[float] = []
    pitch = max(side // 2, 192, large(rows[0].picture, side).shape[1]) + GAP
    for one in rows:
        left, top = check(drawn, next(boxes), large(one.picture, side))
        assert left == MARGIN
        for line in one.panels:
            places = [check(drawn, next(boxes), painted(one, panel, side)) for panel in line]
            assert [x for x, _ in places] == [MARGIN + (k + 1) * pitch for k in range(methods)]
            tops += {y for _, y in places}
        assert tops[-targets] == top
    assert tops == sorted(set(tops))
    assert len(tops) == 2 * targets
    assert drawn.shape[1] == 2 * MARGIN + (methods + 1) * pitch - GAP
    assert_tidy(seen)


def check(drawn: Drawing, box: Box, picture: Pixels) -> tuple[float, float]:
    """That a picture lies there pixel by pixel, in a hairline; its corner."""
    x0, y0, x1, y1 = map(int, box)
    assert (drawn[y0:y1, x0:x1] == picture).all()
    frame = drawn[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1]
    for edge in (frame[0], frame[-1], frame[:, 0], frame[:, -1]):
        assert (edge == LINE).all()
    return x0, y0


def painted(one: Row, panel: Panel, side: int) -> Pixels:
    return large(overlay(one.picture, panel.heatmap), side)


@pytest.mark.parametrize("shape", [(640, 100), (100, 640)])
def test_the_legend_has_room_beside_a_single_map(
    tmp_path: Path, seen: Seen, shape: tuple[int, int]
) -> None:
    draw_comparison([row(noise(*shape), 1, 1)], ["LRP"], path=tmp_path / "a.png")
    assert set(seen.words) > LEGEND
    assert_tidy(seen)


def test_pictures_of_any_shape_share_a_cell(tmp_path: Path, seen: Seen) -> None:
    shapes = [(224, 224), (28, 28), (100, 640), (640, 100), (2, 3)]
    rows = [row(noise(*shape), 2, 5) for shape in shapes]
    draw_comparison(rows, names(5), path=tmp_path / "a.png")
    assert_tidy(seen)
    for left, top, right, bottom in seen.pictures[:-1]:
        assert (left - MARGIN) % (224 + GAP) == 0
        assert right - left <= 224
        assert bottom - top <= 224


@pytest.mark.parametrize(("methods", "lines"), [(4, 8), (2, 9), (1, 20)])
def test_maps_are_small_where_there_are_many(
    tmp_path: Path, seen: Seen, methods: int, lines: int
) -> None:
    picture = noise(32, 32)
    draw_comparison([row(picture, 1, methods)] * lines, names(methods), path=tmp_path / "a.png")
    widths = {right - left for left, _, right, _ in seen.pictures[:-1]}
    assert widths == ({224} if (methods, lines) == (2, 9) else {448})


def test_words_of_any_kind_stay_in_their_place(tmp_path: Path, seen: Seen) -> None:
    picture = noise(28, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [
            Row(picture, word, [panels(picture, 7, label=word, score=-1e-12, note=word)] * 2)
            for word in ODD
        ]
        draw_comparison(rows, ODD, path=tmp_path / "a.png", title="$x_" + "y" * 900)
    assert_tidy(seen)
    drawn = drawing(tmp_path / "a.png")
    hairlines = (drawn[:, MARGIN:-MARGIN] == LINE).all(axis=(1, 2))
    assert hairlines.sum() == len(rows)
    assert not any(set(word) & set("\n\0\x1b\u202e") for word in seen.words)


@pytest.mark.parametrize("count", [3, 12])
def test_words_of_any_kind_stay_at_their_neuron(tmp_path: Path, seen: Seen, count: int) -> None:
    picture = noise(28, 28)
    given = [
        Panel(heat((28, 28), k), ODD[k % len(ODD)], -1e-12, ODD[-k % len(ODD)])
        for k in range(count)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_neurons(picture, given, method="$W" * 90, path=tmp_path / "a.png", title="W" * 300)
    assert_tidy(seen)


def test_what_is_the_same_for_all_methods_is_said_once(tmp_path: Path, seen: Seen) -> None:
    picture = noise(28, 28)
    rows = [row(picture, 2, 3, label="zebra", score=-2.5, note="evidence against")]
    draw_comparison(rows, names(3), path=tmp_path / "a.png", title="a title")
    for word, times in {
        "zebra": 2,
        "score \u22122.5": 2,
        "evidence against": 2,
        "picture 0": 1,
        "a title": 1,
        "method 2": 1,
        **dict.fromkeys(LEGEND, 1),
    }.items():
        assert seen.words.count(word) == times, word
    assert sum(word.startswith("q = ") for word in seen.words) == 6


def test_a_warning_is_a_strip_under_the_maps_it_is_for(tmp_path: Path, seen: Seen) -> None:
    picture = noise(28, 28)
    warning = "score below zero: evidence against"
    lines = [panels(picture, 2) + panels(picture, 1, note=warning) + panels(picture, 3)]
    draw_comparison([Row(picture, "", lines)], names(6), path=tmp_path / "a.png")
    drawn = drawing(tmp_path / "a.png")
    left, _, _, bottom = map(int, seen.pictures[3])
    assert (drawn[bottom + 3, left : left + 224] == DARK).all()
    assert (drawn[bottom + 3, MARGIN : left - 1] == 255).all()
    assert (drawn[bottom + 3, left + 224 + 1 : -MARGIN] == 255).all()
    assert {"score below zero:", "evidence against"} < set(seen.words)
    assert_tidy(seen)


@pytest.mark.parametrize("count", [8, 9])
def test_a_warning_is_not_cut_where_maps_are_small(tmp_path: Path, seen: Seen, count: int) -> None:
    picture = noise(28, 28)
    given = panels(picture, count, note="score below zero: evidence against", score=-1234.5)
    draw_neurons(picture, given, method="LRP", path=tmp_path / "a.png")
    assert not any("\u2026" in word for word in seen.words)
    assert sum("\u22121234" in word or "\u22121235" in word for word in seen.words) == count
    assert_tidy(seen)


def test_long_names_of_methods_are_broken_and_not_cut(tmp_path: Path, seen: Seen) -> None:
    methods = ["gradient \u00d7 input", "guided Grad-CAM", "excitation backprop", "LRP"]
    methods += ["CLRP2, epsilon_gamma_box", "CLRP1, authors' code"]
    one = row(noise(28, 28), 1, 6)
    one = Row(one.picture, "ILSVRC2012_val_00000347.JPEG", one.panels)
    draw_comparison([one], methods, path=tmp_path / "a.png")
    assert {"ILSVRC2012_val_", "00000347.JPEG"} < set(seen.words)
    assert {"gradient", "\u00d7 input", "guided", "Grad-CAM", "LRP"} < set(seen.words)
    assert not any("\u2026" in word for word in seen.words)
    assert_tidy(seen)


def test_signed_maps_are_red_and_blue_and_others_red_alone(tmp_path: Path, seen: Seen) -> None:
    picture = np.full((28, 28, 3), 128, dtype=np.uint8)
    line = [Panel(heat((28, 28), 1, signed), "zebra", 1.0) for signed in (False, True)]
    draw_comparison([Row(picture, "", [line])], names(2), path=tmp_path / "a.png")
    drawn = drawing(tmp_path / "a.png")
    blue = [
        bool((drawn[int(y0) : int(y1), int(x0) : int(x1)] @ (-2, 0, 1) > 0).any())
        for x0, y0, x1, y1 in seen.pictures
    ]
    assert blue == [False, False, True, True]  # the photograph, the maps, the legend
    assert {"\u2212q", "0", "q"} < set(seen.words)
    seen.words.clear()
    draw_neurons(picture, line[:1] * 8, method="LRP", path=tmp_path / "a.png")
    assert "\u2212q" not in seen.words


def test_rounding_below_zero_is_not_blue(tmp_path: Path, seen: Seen) -> None:
    picture, values = noise(28, 28), heat((28, 28), 1)
    values[3, 3] = -1e-7
    draw_neurons(picture, [Panel(values, "a", 1.0)], method="LRP", path=tmp_path / "a.png")
    check(drawing(tmp_path / "a.png"), seen.pictures[1], large(overlay(picture, values), 448))
    assert "\u2212q" not in seen.words


@pytest.mark.parametrize(("shape", "times"), [((28, 28), 2), ((10, 600), 1)])
def test_empty_maps_say_so(tmp_path: Path, seen: Seen, shape: tuple[int, int], times: int) -> None:
    picture = noise(*shape)
    line = [Panel(heat(shape, 1), "zebra", 1.0), Panel(np.zeros(shape), "zebra", 1.0)]
    draw_comparison([Row(picture, "", [line])], names(2), path=tmp_path / "a.png")
    assert seen.words.count("no relevance") == times  # on the map, and under it
    assert sum(word.startswith("q = ") for word in seen.words) == 1
    assert_tidy(seen)


@pytest.mark.parametrize("count", [*range(1, 10), 12, 15, 16, 20, 24])
def test_neurons_stand_around_their_picture(tmp_path: Path, seen: Seen, count: int) -> None:
    picture = noise(28, 28)
    given = [Panel(heat((28, 28), k), f"channel {k}", 100.0 - k) for k in range(count)]
    draw_neurons(picture, given, method="CLRP2", path=tmp_path / "a.png", title="conv 5")
    drawn, (photograph, *maps) = drawing(tmp_path / "a.png"), seen.pictures[: count + 1]
    side = 448 if count <= 8 else 224
    for panel, box in zip(given, maps, strict=True):
        check(drawn, box, large(overlay(picture, panel.heatmap), side))
    check(drawn, photograph, large(picture, int(photograph[2] - photograph[0])))
    assert [box[1::-1] for box in maps] == sorted(box[1::-1] for box in maps)
    assert_tidy(seen)
    assert {f"channel {k}" for k in range(count)} < set(seen.words)
    assert sum("activation" in word for word in seen.words) == count
    if count > 1:
        outer = (min(box[0] for box in maps), max(box[2] for box in maps))
        assert sum(outer) == pytest.approx(photograph[0] + photograph[2], abs=1)


@pytest.mark.parametrize("count", range(1, 25))
def test_the_ring_is_as_even_as_the_number_allows(count: int) -> None:
    grid = Grid.of(count)
    rows, columns = grid.size
    assert len(set(grid.places)) == count
    assert {row for row, _ in grid.places} | {grid.hole[0]} >= {0, rows - 1}
    mirrored = {(row, columns - 1 - column) for row, column in grid.places}
    assert mirrored == set(grid.places) or (count % 2 == 1 and columns % 2 == 0)


@pytest.mark.parametrize("shape", [(224, 224), (100, 640), (640, 100), (1, 700), (700, 1)])
@pytest.mark.parametrize("count", [1, 8, 11])
def test_pictures_of_any_shape_fit_the_hole(
    tmp_path: Path, seen: Seen, shape: tuple[int, int], count: int
) -> None:
    draw_neurons(noise(*shape), panels(noise(*shape), count), method="LRP", path=tmp_path / "a.png")
    assert_tidy(seen)
    assert {"LRP", *LEGEND} < set(seen.words)
    (x0, y0, x1, y1), *maps = seen.pictures[:-1]
    if count > 8:
        grown = max(x1 - x0, y1 - y0) / 224
        assert grown > 1.5
        assert all(max(b[2] - b[0], b[3] - b[1]) == 224 for b in maps)


@pytest.mark.parametrize(
    ("rows", "targets", "methods", "message"),
    [
        (0, 1, 1, "a comparison takes 1 to 20 pictures, not 0"),
        (21, 1, 1, "a comparison takes 1 to 20 pictures, not 21"),
        (1, 0, 1, "a comparison takes 1 to 4 targets a picture, not 0"),
        (1, 5, 1, "a comparison takes 1 to 4 targets a picture, not 5"),
        (1, 1, 0, "a comparison takes 1 to 12 methods, not 0"),
        (1, 1, 13, "a comparison takes 1 to 12 methods, not 13"),
        (20, 4, 12, "a comparison of 3312 x [0-9]+ pixels, more than 50 million: draw it in"),
    ],
)
def test_too_much_is_refused(
    tmp_path: Path, rows: int, targets: int, methods: int, message: str
) -> None:
    given = [row(noise(28, 28), targets, methods)] * rows
    with pytest.raises(UsageError, match=f"^{message}") as error:
        draw_comparison(given, names(methods), path=tmp_path / "a.png")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("count", [0, 25])
def test_too_many_neurons_are_refused(tmp_path: Path, count: int) -> None:
    picture = noise(28, 28)
    with pytest.raises(UsageError, match=f"^a figure takes 1 to 24 neurons, not {count}$"):
        draw_neurons(picture, panels(picture, count), method="LRP", path=tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    picture = noise(28, 28)
    with pytest.raises(ValueError, match="a panel for each method"):
        draw_comparison([row(picture, 2, 3)], names(2), path=tmp_path / "a.png")
    other = Row(noise(30, 28), "", [panels(picture, 2)])
    with pytest.raises(ValueError, match=r"heatmap \(28, 28\) does not fit picture \(30, 28\)"):
        draw_comparison([row(picture, 2, 2), other], names(2), path=tmp_path / "a.png")
    bad = [*panels(picture, 2), Panel(np.full((28, 28), np.nan), "a", 1.0)]
    with pytest.raises(ValueError, match="not finite"):
        draw_neurons(picture, bad, method="LRP", path=tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def comparison(path: Path) -> None:
    draw_comparison([row(noise(28, 28), 2, 2)], names(2), path=path)


def neurons(path: Path) -> None:
    picture = noise(28, 28)
    draw_neurons(picture, panels(picture, 2), method="LRP", path=path)


@pytest.mark.parametrize("write", [comparison, neurons])
def test_files_are_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(ClrpError, match=r"cannot write '.*a\.png': No space left on device"):
            write(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
    write(path)
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


@pytest.mark.parametrize("write", [comparison, neurons])
def test_figures_do_not_depend_on_settings(tmp_path: Path, write: Callable[[Path], None]) -> None:
    import matplotlib

    write(tmp_path / "a.png")
    settings: Any = {"text.usetex": True, "font.family": "monospace", "figure.facecolor": "red"}
    with matplotlib.rc_context({**settings, "figure.dpi": 30}):
        write(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
