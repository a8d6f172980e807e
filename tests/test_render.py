"""Overlays say what the numbers say, and sheets are whole, exact and legible."""

import os
import threading
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from onnx_clrp import render
from onnx_clrp.errors import ClrpError, UsageError
from onnx_clrp.render import Panel, draw, overlay

Pixels = npt.NDArray[Any]
GREY = np.full((40, 60, 3), 128, dtype=np.uint8)


def photograph(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth colours with some noise, the same every time."""
    rng = np.random.default_rng(3)
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    planes = np.stack([across, down, 200 - across], axis=-1) + rng.integers(
        0, 55, (height, width, 1)
    )
    return planes.astype(np.uint8)


def sheet(tmp_path: Path, picture: Any, panels: list[Panel], **options: Any) -> Pixels:
    path = tmp_path / "sheet.png"
    draw(picture, panels, method="clrp2", path=path, **options)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def find(haystack: Pixels, needle: Pixels) -> list[tuple[int, int]]:
    """Where a picture occurs, exactly, in a larger one."""
    height, width = needle.shape[:2]
    down, right = len(haystack) - height + 1, haystack.shape[1] - width + 1
    corner = (haystack[:down, :right] == needle[0, 0]).all(axis=-1)
    corner &= (haystack[height - 1 :, width - 1 :] == needle[-1, -1]).all(axis=-1)
    places = zip(*np.nonzero(corner), strict=True)
    return [
        (int(y), int(x))
        for y, x in places
        if np.array_equal(haystack[y : y + height, x : x + width], needle)
    ]


def lightness(colours: Pixels) -> Pixels:
    """CIELAB's L*, by the formula."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.asarray(
        np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    )


def test_positive_is_red_negative_blue_zero_grey() -> None:
    heatmap = np.zeros((40, 60))
    heatmap[5, 5], heatmap[30, 50] = 2.0, -2.0
    drawn = overlay(GREY, heatmap).astype(int)
    red, blue, zero = drawn[5, 5], drawn[30, 50], drawn[0, 0]
    assert red[0] > 2 * max(red[1], red[2])
    assert blue[2] > 1.5 * max(blue[0], blue[1])
    assert (zero == round(255 * (0.6 + 0.4 * 128 / 255))).all()
    assert np.abs(overlay(GREY, -heatmap).astype(int)[30, 50] - red).max() == 0


def test_full_colour_is_the_quantile_of_what_is_not_zero() -> None:
    heatmap = np.zeros((40, 60))
    heatmap[0, :50] = np.arange(1, 51)
    heatmap[0, 49] = 1e6  # an outlier is clipped and leaves the others their colours
    full = np.quantile(heatmap[heatmap > 0], 0.995)
    heatmap[1, 0] = full
    drawn = overlay(np.full_like(GREY, 255), heatmap)
    assert (drawn[0, 49] == (0x7E, 0x15, 0x1F)).all()
    half = np.array([[0.5]])
    assert (render._bytes(render._colours(half))[0, 0] == (0xF5, 0x73, 0x4D)).all()


def test_scale_and_type_of_the_map_do_not_matter() -> None:
    heatmap = np.random.default_rng(0).standard_normal((40, 60)) ** 3
    reference = overlay(GREY, heatmap)
    for factor in (1e-300, 1e-9, 1e9, 1e300):
        assert np.array_equal(overlay(GREY, heatmap * factor), reference)
    whole = np.rint(heatmap * 100).astype(np.int64)
    assert np.array_equal(overlay(GREY, whole), overlay(GREY, whole.astype(np.float32)))


@pytest.mark.parametrize("grey", [0, 100, 255])
def test_colours_lie_on_the_picture_as_a_transparent_layer(grey: int) -> None:
    levels = np.linspace(-1, 1, 60)
    heatmap = levels[None].repeat(40, axis=0)
    full = np.quantile(np.abs(levels), 0.995)
    on_white = render._colours(levels / full)
    alpha = 1 - on_white.min(axis=-1, keepdims=True)
    ink = (on_white - (1 - alpha)) / np.maximum(alpha, 1e-9)
    wanted = alpha * ink + (1 - alpha) * (0.6 + 0.4 * grey / 255)
    assert np.abs(overlay(np.full_like(GREY, grey), heatmap)[7] - 255 * wanted).max() <= 0.51


@pytest.mark.parametrize("sign", [1, -1])
def test_colours_on_white_are_even_steps_of_lightness(sign: int) -> None:
    levels = np.linspace(0, 1, 33)[None] * sign
    steps = np.diff(lightness(render._colours(levels)[0]))
    assert (steps < 0).all()
    assert np.ptp(steps) < 0.5 * abs(steps.mean())


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_more_relevance_is_darker_on_any_picture(grey: int) -> None:
    heatmap = np.linspace(0, 1, 60)[None].repeat(40, axis=0)
    drawn = overlay(np.full_like(GREY, grey), heatmap)[0] / 255
    assert lightness(drawn)[-1] < lightness(drawn)[0] - 20
    assert (np.diff(lightness(drawn)) < 1).all()
    saturation = np.ptp(drawn, axis=-1)
    assert saturation[36] > saturation[20] > saturation[5] > saturation[0]


def test_unsigned_hides_the_negative_and_none_decides_by_the_map() -> None:
    heatmap = np.ones((40, 60))
    heatmap[3, 3] = -1.0
    plain = overlay(GREY, np.zeros((40, 60)))
    assert (overlay(GREY, heatmap, signed=False)[3, 3] == plain[3, 3]).all()
    assert (overlay(GREY, heatmap)[3, 3] != plain[3, 3]).any()
    heatmap[3, 3] = -1e-7  # rounding, not evidence
    assert (overlay(GREY, heatmap)[3, 3] == plain[3, 3]).all()


def test_smoothing_is_a_gaussian_that_leaves_the_numbers_alone() -> None:
    heatmap = np.zeros((41, 61))
    heatmap[20, 30] = 1.0
    before = heatmap.copy()
    blurred = render._blurred(heatmap, 2.0)
    across, down = np.arange(61) - 30, np.arange(41) - 20
    wanted = np.exp(-(across[None] ** 2 + down[:, None] ** 2) / 8) / (8 * np.pi)
    assert np.abs(blurred - wanted).max() < 1e-3
    assert blurred.sum() == pytest.approx(1.0)
    assert np.array_equal(render._blurred(np.ones((5, 7)), 9.0).round(12), np.ones((5, 7)))
    overlay(photograph(41, 61), heatmap, smooth=0.05)
    assert np.array_equal(heatmap, before)


@pytest.mark.parametrize("smooth", [-0.1, 1.5, float("nan")])
def test_senseless_smoothing_is_refused(smooth: float) -> None:
    with pytest.raises(UsageError, match="smooth must be a fraction"):
        overlay(GREY, np.ones((40, 60)), smooth=smooth)


def test_the_picture_is_on_the_sheet_as_it_is_and_the_overlay_at_its_right(tmp_path: Path) -> None:
    picture = photograph(448, 500)
    heatmap = np.random.default_rng(1).random((448, 500)) ** 9
    drawn = sheet(tmp_path, picture, [Panel(heatmap, "zebra", 3.0)], signed=False)
    ((top, left),) = find(drawn, picture)
    ((other_top, right),) = find(drawn, overlay(picture, heatmap, signed=False))
    assert top == other_top
    assert right > left + 500


def test_224_pixels_are_enlarged_as_pillow_does(tmp_path: Path) -> None:
    picture = photograph(224, 224)
    drawn = sheet(tmp_path, picture, [Panel(np.ones((224, 224)), "zebra", 3.0)])
    large = Image.fromarray(picture).resize((448, 448), Image.Resampling.BICUBIC)
    assert find(drawn, np.asarray(large)) == [(32 + 44, 32)]
    assert drawn.shape == (32 + 44 + 448 + 40 + 28 + 84 + 32, 32 + 448 + 28 + 448 + 32, 3)


@pytest.mark.parametrize("side", [28, 32, 48, 64])
def test_tiny_pictures_keep_crisp_pixels(tmp_path: Path, side: int) -> None:
    picture = photograph(side, side)
    drawn = sheet(tmp_path, picture, [Panel(np.zeros((side, side)), "cat", 1.0)])
    step = 448 // side
    assert step * side > 380
    assert len(find(drawn, picture.repeat(step, axis=0).repeat(step, axis=1))) == 1


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (5, 5, 1), (6, 3, 2), (7, 4, 2), (11, 4, 3)],
)
def test_panels_stand_in_rows(tmp_path: Path, count: int, columns: int, rows: int) -> None:
    picture = photograph(64, 64)
    maps = [np.random.default_rng(index).random((64, 64)) for index in range(count)]
    drawn = sheet(tmp_path, picture, [Panel(m, str(i), i) for i, m in enumerate(maps)])
    large = [overlay(picture, m).repeat(7, axis=0).repeat(7, axis=1) for m in maps]
    places = [find(drawn, one) for one in large]
    assert all(len(place) == 1 for place in places)
    assert len({place[0][0] for place in places}) == rows
    assert len({place[0][1] for place in places}) == columns
    assert [p[0] for p in places] == sorted(p[0] for p in places)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (64, 1), (3, 900), (1200, 40), (2000, 1500)])
def test_any_shape_makes_a_sheet_of_sane_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    drawn = sheet(tmp_path, photograph(*shape), [Panel(np.ones(shape), "long", 1.0)] * 2)
    assert max(drawn.shape) < 3200


def test_labels_of_any_kind_are_drawn_within_their_cell(tmp_path: Path) -> None:
    picture = photograph(64, 64)
    labels = ["$\\frac{$", "a" * 5000, "two\nlines\0", "狐", "W" * 60, "", "\u202etxt", "i" * 300]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panels = [Panel(np.ones((64, 64)), label, -1e-12, label) for label in labels]
        drawn = sheet(tmp_path, picture, panels, title="$x_" + "y" * 900)
    cell, gap, margin = 448, render.GAP, render.MARGIN
    for column in range(1, 5):
        start = margin + column * (cell + gap) - gap
        assert (drawn[render.MARGIN + render.TITLE :, start + 2 : start + gap - 2] == 255).all()
    assert (drawn[:, -margin + 2 :] == 255).all()


def test_a_note_is_a_dark_strip_under_its_map_only(tmp_path: Path) -> None:
    picture = photograph(64, 64)
    panels = [
        Panel(np.ones((64, 64)), "a", -1.0, note="evidence against"),
        Panel(np.ones((64, 64)), "b", 1.0),
    ]
    drawn = sheet(tmp_path, picture, panels)
    bottom = render.MARGIN + render.HEAD + 448
    strip = drawn[bottom + 3 : bottom + render.STRIP - 3]
    first = render.MARGIN + 448 + render.GAP
    assert (strip[:, first + 5] == render.DARK).all()
    assert strip[:, first : first + 448].max() > 200  # its white words
    assert (strip[:, first + 448 + render.GAP + 440] == 255).all()


def test_zero_maps_say_so_and_are_not_coloured(tmp_path: Path) -> None:
    picture = photograph(64, 64)
    drawn = sheet(tmp_path, picture, [Panel(np.zeros((64, 64)), "a", 0.0)])
    left, top = render.MARGIN + 448 + render.GAP, render.MARGIN + render.HEAD
    cell = drawn[top : top + 448, left : left + 448]
    assert np.ptp(cell, axis=-1).max() == 0
    assert (cell[:60] < 60).any()  # words on the map, darker than any grey of it


def test_maps_below_zero_are_not_said_to_be_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[str] = []
    text = render._Sheet.text

    def listen(self: Any, content: str, *places: Any, **options: Any) -> None:
        words.append(content)
        text(self, content, *places, **options)

    monkeypatch.setattr(render._Sheet, "text", listen)
    sheet(tmp_path, GREY, [Panel(-np.ones((40, 60)), "a", -1.5)], signed=False)
    assert "no positive relevance" in words
    assert "score \u22121.5 \u00b7 no positive relevance" in words
    words.clear()
    sheet(tmp_path, GREY, [Panel(-np.ones((40, 60)), "a", -1.5)], smooth=0.05)
    assert {"\u2212q", "0", "q", "q: 99.5 % quantile of |R| > 0, per map"} < set(words)
    assert "score \u22121.5 \u00b7 q = 1" in words
    assert "smoothed for display, \u03c3 = 3 px" in words


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    heatmap = np.ones((40, 60))
    heatmap[3, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        draw(GREY, [Panel(heatmap, "a", 1.0)], method="lrp", path=tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"heatmap \(4, 4\) does not fit picture \(40, 60\)"):
        overlay(GREY, np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"picture must be uint8 \[H, W, 3\]"):
        overlay(GREY[..., 0], np.ones((40, 60)))
    with pytest.raises(ValueError, match="picture must be uint8"):
        overlay(cast(Any, GREY.astype(np.float32)), np.ones((40, 60)))
    for count in (0, 101):
        with pytest.raises(UsageError, match=f"1 to 100 maps, not {count}"):
            draw(GREY, [Panel(np.ones((40, 60)), "a", 1)] * count, method="", path=tmp_path / "a")


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ClrpError, match=r"cannot write '.*a\.png': No space left on device"):
        draw(GREY, [Panel(np.ones((40, 60)), "a", 1.0)], method="lrp", path=path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_pictures_are_reproducible_and_independent_of_settings(tmp_path: Path) -> None:
    import matplotlib

    panels = [Panel(np.random.default_rng(0).random((40, 60)), "a label", 1.0)]
    draw(GREY, panels, method="lrp", path=tmp_path / "a.png")
    settings: Any = {"text.usetex": True, "savefig.bbox": "tight", "font.family": "monospace"}
    with matplotlib.rc_context({**settings, "figure.dpi": 30, "figure.facecolor": "red"}):
        draw(GREY, panels, method="lrp", path=tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_threads_draw_side_by_side(tmp_path: Path) -> None:
    panels = [Panel(np.random.default_rng(0).random((40, 60)), "a label", 1.0)]

    def work(index: int) -> None:
        draw(GREY, panels, method="lrp", path=tmp_path / f"{index}.png")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(os.listdir(tmp_path)) == 4
