"""Measures of a map agree with loops over its pixels, and boxes land where their pixels do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("hypothesis")
pytest.importorskip("scipy")
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, stats

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.geometry import mask_of, visible
from onnx_clrp.evaluate.measures import (
    curve_area,
    energy_set,
    inside,
    order,
    patch,
    peak,
    pointing,
    reach,
    similarity,
)
from onnx_clrp.image import Preprocessing

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
FEW = settings(QUICK, max_examples=40)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=4)
TIED = hnp.arrays(np.float64, SHAPES, elements=st.integers(-2, 4).map(float))
"""Small whole numbers: many ties, and sums without rounding."""
SINGLE = hnp.arrays(np.float32, SHAPES, elements=st.floats(-1e3, 1e3, width=32))
DOUBLE = hnp.arrays(np.float64, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False))
MAPS = TIED | SINGLE | DOUBLE
ROUNDED = [np.array([[1.0, 1e-20]]), np.full((2, 5), 0.1), np.array([[1e308] * 3, [5e-324] * 3])]
"""Sums that take no notice of the least, that are not what they should be, or that overflow."""


def masks(h: Floats) -> st.SearchStrategy[Mask]:
    return hnp.arrays(np.bool_, h.shape)


def pixels(h: Floats) -> list[tuple[int, int]]:
    return [(row, column) for row in range(h.shape[0]) for column in range(h.shape[1])]


def ranked(h: Floats) -> list[tuple[int, int]]:
    return sorted(pixels(h), key=lambda at: (-h[at], at))


# --- the peak and what it points at ------------------------------------------------------------


@QUICK
@given(MAPS)
def test_the_peak_is_the_first_of_the_greatest(h: Floats) -> None:
    best = None
    for at in pixels(h):
        if h[at] > 0 and (best is None or h[at] > h[best]):
            best = at
    assert peak(h) == best


@QUICK
@given(st.data(), MAPS, st.integers(0, 6).map(lambda n: n / 2))
def test_pointing_looks_for_the_target_round_the_peak(
    data: st.DataObject, h: Floats, tolerance: float
) -> None:
    mask = data.draw(masks(h))
    at = peak(h)
    hit = at is not None and any(
        mask[p] and (p[0] - at[0]) ** 2 + (p[1] - at[1]) ** 2 <= tolerance**2 for p in pixels(h)
    )
    assert pointing(h, mask, tolerance) is hit


def test_pointing_by_hand() -> None:
    h = np.zeros((20, 30), np.float32)
    h[4, 5] = h[17, 2] = 0.5  # the first of both counts
    mask = np.zeros(h.shape, np.bool_)
    mask[7, 9] = True  # three down, four to the right
    assert not pointing(h, mask)
    assert not pointing(h, mask, 4.999)
    assert pointing(h, mask, 5)
    assert pointing(h, h > 0)
    mask[6, 8] = True
    assert pointing(h, mask, math.sqrt(13))
    for flat in (np.zeros((2, 2)), -np.ones((2, 2))):
        assert peak(flat) is None
        assert not pointing(flat, np.ones((2, 2), np.bool_), 9)


# --- the energy --------------------------------------------------------------------------------


def share_of(h: Floats, chosen: Iterable[tuple[int, int]]) -> Fraction:
    total = sum(Fraction(max(0.0, float(v))) for v in h.flat)
    return sum((Fraction(max(0.0, float(h[at]))) for at in chosen), Fraction(0)) / total


@QUICK
@given(TIED, st.integers(1, 100))
def test_the_energy_set_is_the_shortest_of_the_ranking(h: Floats, percent: int) -> None:
    wanted: list[tuple[int, int]] = []
    if (h > 0).any():
        for at in ranked(h):
            wanted.append(at)
            if share_of(h, wanted) >= Fraction(percent, 100):
                break
    assert sorted(zip(*np.nonzero(energy_set(h, percent / 100)), strict=True)) == sorted(wanted)


@QUICK
@given(MAPS)
def test_all_of_the_energy_is_all_that_is_positive(h: Floats) -> None:
    np.testing.assert_array_equal(energy_set(h, 1), h > 0)
    assert not (energy_set(h, 0.9) & (h <= 0)).any()


@QUICK
@given(st.data(), MAPS | st.sampled_from(ROUNDED), st.floats(0, 1, exclude_min=True))
def test_the_reach_tells_at_which_shares_the_set_lies_in_the_mask(
    data: st.DataObject, h: Floats, other: float
) -> None:
    """To the last digit: at the steps themselves, next to them, and between."""
    mask = np.ones(h.shape, np.bool_)
    for at in ranked(h)[data.draw(st.integers(0, h.size)) :]:  # so that some lie within
        mask[at] = data.draw(st.booleans())
    energies = np.array([max(0.0, float(h[at])) for at in ranked(h)])
    steps = np.cumsum(energies / energies.max()) if energies.any() else energies
    shares = [*(steps / steps[-1] if steps.any() else []), *np.linspace(0.05, 1, 20)]
    shares += [reach(h, mask), other]
    for share in [float(s) for x in shares for s in (np.nextafter(x, 0), x, np.nextafter(x, 1))]:
        if 0 < share <= 1:
            chosen = energy_set(h, share)
            hit = bool(chosen.any()) and not (chosen & ~mask).any()
            assert hit == (share <= reach(h, mask)), share


@QUICK
@given(st.data(), TIED)
def test_the_reach_is_the_share_of_the_pixels_before_the_first_outside(
    data: st.DataObject, h: Floats
) -> None:
    mask = data.draw(masks(h))
    leading = [*itertools.takewhile(lambda at: mask[at] and h[at] > 0, ranked(h))]
    wanted = float(share_of(h, leading)) if (h > 0).any() else 0.0
    assert reach(h, mask) == wanted
    part = inside(h, mask)
    if (h > 0).any():
        assert part == pytest.approx(float(share_of(h, zip(*np.nonzero(mask), strict=True))))
        assert part >= reach(h, mask) - 1e-12
    else:
        assert part is None


def test_energy_by_hand() -> None:
    h = np.array([[4, -9, 2], [2, 1, 1]], np.float32)
    np.testing.assert_array_equal(energy_set(h, 0.4), [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(energy_set(h, 0.41), [[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(energy_set(h, 0.8), [[1, 0, 1], [1, 0, 0]])
    mask = np.array([[1, 1, 1], [0, 1, 1]], np.bool_)
    assert reach(h, mask) == 0.6
    assert inside(h, mask) == 0.8
    assert reach(h, ~mask) == 0.0
    assert reach(h, h > 0) == 1.0
    assert inside(h, h > 0) == 1.0
    assert inside(h, h < 0) == 0.0


def test_no_measure_of_energy_overflows_or_depends_on_the_unit() -> None:
    h = np.random.default_rng(0).normal(size=(9, 9))
    mask = h > 0.5
    for unit in (2.0**-1000, 2.0**-40, 2.0**1021):
        assert inside(h * unit, mask) == pytest.approx(inside(h, mask))
        assert reach(h * unit, h > 0.5) == pytest.approx(reach(h, mask))
        assert similarity(h * unit, h.T).cosine == pytest.approx(similarity(h, h.T).cosine)


# --- two maps ----------------------------------------------------------------------------------


def ranks(h: Floats) -> list[float]:
    values = [float(v) for v in h.flat]
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = ([v - math.fsum(values) / len(values) for v in values] for values in (a, b))
    dots = [
        math.fsum(p * q for p, q in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y))
    ]
    return dots[0] / math.sqrt(dots[1] * dots[2])


@QUICK
@given(st.data(), TIED | SINGLE)
def test_similarity_by_loops(data: st.DataObject, a: Floats) -> None:
    other = hnp.arrays(np.float64, a.shape, elements=st.integers(-2, 4).map(float))
    b = data.draw(other)
    found = similarity(a, b)
    energies = [[max(0.0, float(v)) for v in h.flat] for h in (a, b)]
    if any(map(any, energies)) and all(map(any, energies)):
        dot = math.fsum(x * y for x, y in zip(*energies, strict=True))
        assert found.cosine == pytest.approx(
            dot / math.hypot(*energies[0]) / math.hypot(*energies[1])
        )
    else:
        assert found.cosine is None
    if all(len(set(h.flat)) > 1 for h in (a, b)):
        assert found.rank == pytest.approx(correlation(ranks(a), ranks(b)), abs=1e-12)
        assert found.rank == pytest.approx(stats.spearmanr(a.flat, b.flat)[0], abs=1e-12)
    else:
        assert found.rank is None
    assert similarity(b, a) == found
    assert similarity(a, a).rank in (None, 1.0)
    assert similarity(a, -a).rank in (None, -1.0)


def test_similarity_by_hand() -> None:
    a, b = np.array([[3.0, 4.0, -5.0]]), np.array([[4.0, 3.0, 0.0]])
    assert similarity(a, b).cosine == pytest.approx(24 / 25)
    assert similarity(a, b).rank == pytest.approx(0.5)
    assert similarity(a, 7 * a).cosine == 1.0
    with pytest.raises(UsageError, match=r"maps of \[1, 3\] float64 and \[3, 1\] float64 cannot"):
        similarity(a, b.T)


# --- patches, rankings and curves --------------------------------------------------------------


@QUICK
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.data(), st.integers(1, 12))
def test_a_patch_holds_the_pixels_round_its_centre(
    shape: tuple[int, int], data: st.DataObject, size: int
) -> None:
    centre = (data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1)))
    found = np.zeros(shape, np.bool_)
    found[patch(shape, centre, size)] = True
    up, down = (size // 2, (size - 1) // 2)
    for at in pixels(found):
        near = all(-up <= there - c <= down for there, c in zip(at, centre, strict=True))
        assert found[at] == near
    assert found[centre]


def test_patches_by_hand() -> None:
    assert patch((10, 10), (5, 5), 3) == (slice(4, 7), slice(4, 7))
    assert patch((10, 10), (5, 5), 4) == (slice(3, 7), slice(3, 7))
    assert patch((10, 12), (0, 11), 9) == (slice(0, 5), slice(7, 12))
    for centre in ((10, 0), (0, 12), (-1, 0)):
        with pytest.raises(UsageError, match="is not in the 10x12 pixels"):
            patch((10, 12), centre, 3)
    with pytest.raises(UsageError, match="a side of at least 1 pixel, not 0"):
        patch((10, 12), (0, 0), 0)


@QUICK
@given(MAPS)
def test_the_order_is_that_of_a_stable_ranking(h: Floats) -> None:
    found = order(h)
    assert found.dtype == np.int64
    assert found.tolist() == [row * h.shape[1] + column for row, column in ranked(h)]


def test_the_area_under_a_curve() -> None:
    scores = np.random.default_rng(0).random(11)
    even = (scores.sum() - scores[0] / 2 - scores[-1] / 2) / 10  # as RISE has it
    assert curve_area(scores, np.linspace(0, 1, 11)) == pytest.approx(even)
    assert curve_area(scores, np.linspace(0.2, 0.4, 11)) == pytest.approx(even)
    assert curve_area([1, 0], [0, 1]) == 0.5
    assert curve_area([1.0, 0.0, 0.0], [0, 0.5, 1]) == 0.25
    assert curve_area([2, 2, 4], [0, 0.75, 1]) == 2.25
    for bad in ([0, 0, 1], [0, 0.5, 0.4], [0, 0.5, 2], [-0.1, 0, 1], [0, np.nan, 1]):
        with pytest.raises(UsageError, match="fractions that rise"):
            curve_area([1, 1, 1], bad)
    with pytest.raises(UsageError, match="finite scores"):
        curve_area([1, np.nan], [0, 1])
    for scores, fractions in (([1], [0]), ([1, 2], [0, 0.5, 1]), ([[1, 2]], [[0, 1]])):
        with pytest.raises(UsageError, match="a curve has two points or more"):
            curve_area(scores, fractions)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.array([[1.0, np.inf]]), "not finite"),
        (np.ones(4), r"\[H, W\] of numbers, not \[4\] float64"),
        (np.ones((3, 2, 2)), r"not \[3, 2, 2\] float64: reduce"),
        (np.ones((0, 2)), r"not \[0, 2\]"),
        (np.ones((2, 2), np.bool_), "bool"),
    ],
)
def test_what_is_no_heatmap_is_refused(h: Any, message: str) -> None:
    mask = np.ones(h.shape, np.bool_)
    for measure in (
        *(lambda: peak(h), lambda: pointing(h, mask), lambda: energy_set(h, 0.5)),
        *(lambda: reach(h, mask), lambda: inside(h, mask), lambda: order(h)),
        *(lambda: similarity(h, np.ones((1, 2))), lambda: similarity(np.ones((1, 2)), h)),
    ):
        with pytest.raises(UsageError, match=message):
            measure()


def test_what_is_no_mask_share_or_tolerance_is_refused() -> None:
    h = np.ones((2, 2))
    for mask in (np.ones((2, 2)), np.ones((1, 2), np.bool_)):
        for measure in (pointing, reach, inside):
            with pytest.raises(UsageError, match=r"bool of its shape, not \[[12], 2\]"):
                measure(h, mask)
    for share in (0, -0.1, 1.001, math.nan):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            energy_set(h, share)
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(UsageError, match="the tolerance is a number of pixels"):
            pointing(h, h > 0, tolerance)


# --- boxes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectangle:
    x0: float
    y0: float
    x1: float
    y1: float


def on(width: int, height: int, *corners: tuple[int, int, int, int]) -> list[Rectangle]:
    """Boxes from pixels."""
    return [Rectangle(a / width, b / height, c / width, d / height) for a, b, c, d in corners]


def drawn(width: int, height: int, corners: Iterable[tuple[int, int, int, int]]) -> Mask:
    picture = np.zeros((height, width), np.bool_)
    for left, top, right, bottom in corners:
        picture[top:bottom, left:right] = True
    return picture


def seen(folder: Path, picture: Mask, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What the model sees of a picture that is white where it is true."""
    file = folder / "boxes.png"
    Image.fromarray(picture.astype(np.uint8) * 255).save(file, compress_level=1)
    return preprocessing.picture(file)[..., 0]


def prepared(height: int, width: int, resize: int | str | None = None) -> Preprocessing:
    return Preprocessing(resize=resize, size=(height, width))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boxes")


def assert_alike(found: Mask, picture: Mask) -> None:
    """Equal but for the pixels along the edges, and those along the picture's.

    There the light of what lies beyond is missing from the average.
    """
    square = np.ones((3, 3))
    inner = np.s_[1:-1, 1:-1]
    assert not (ndimage.binary_erosion(found, square) & ~picture)[inner].any()
    assert not (picture & ~ndimage.binary_dilation(found, square))[inner].any()


def corners(width: int, height: int, step: int = 1) -> st.SearchStrategy[Any]:
    """Left, upper, right and lower edge of a box, at every `step` pixels."""

    def ends(side: int) -> st.SearchStrategy[list[int]]:
        places = st.integers(0, side // step).map(lambda n: n * step)
        return st.lists(places, min_size=2, max_size=2, unique=True).map(sorted)

    boxes = st.tuples(ends(width), ends(height))
    return boxes.map(lambda box: (box[0][0], box[1][0], box[0][1], box[1][1]))


WHOLE = [
    ((64, 96), prepared(8, 8, 16), 4),
    ((96, 64), prepared(8, 5, 16), 4),
    ((60, 20), prepared(10, 30, "stretch"), 2),
    ((40, 40), prepared(40, 40, 40), 1),
    ((45, 40), prepared(24, 24, 40), 1),  # half a pixel has to go to one side
    ((47, 40), prepared(24, 24, 40), 1),
    ((1200, 60), prepared(20, 20, 20), 3),  # so long that its ends are trimmed first
]


@FEW
@given(st.sampled_from(WHOLE), st.data())
def test_boxes_on_whole_pixels_of_the_model_are_exact(
    folder: Path, case: tuple[tuple[int, int], Preprocessing, int], data: st.DataObject
) -> None:
    size, preprocessing, step = case
    places = data.draw(st.lists(corners(*size, step), min_size=1, max_size=3))
    picture = seen(folder, drawn(*size, places), preprocessing)
    np.testing.assert_array_equal(mask_of(on(*size, *places), size, preprocessing), picture > 127)


SIZES = st.tuples(st.integers(30, 150), st.integers(30, 150)) | st.just((1500, 31))
TARGETS = st.tuples(st.integers(3, 40), st.integers(3, 40))


@FEW
@given(st.data(), SIZES, TARGETS, st.sampled_from(["stretch", None, 40, 57]))
def test_any_box_is_where_the_model_sees_it(
    folder: Path,
    data: st.DataObject,
    size: tuple[int, int],
    target: tuple[int, int],
    resize: int | str | None,
) -> None:
    place = data.draw(corners(*size))
    preprocessing = prepared(*target, resize)
    picture = seen(folder, drawn(*size, [place]), preprocessing)
    assert_alike(mask_of(on(*size, place), size, preprocessing), picture > 127)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1024, 300)])
@pytest.mark.parametrize("resize", [None, 256, 224, "stretch"])
def test_photographs_in_the_usual_preparation(
    folder: Path, size: tuple[int, int], resize: int | str | None
) -> None:
    width, height = size
    places = [
        (width // 5, height // 3, width // 2 + 3, height - 7),
        (width // 3, 2, width, height // 2 + 1),
    ]
    preprocessing = prepared(224, 224, resize)
    picture = seen(folder, drawn(*size, places), preprocessing) > 127
    found = mask_of(on(*size, *places), size, preprocessing)
    assert_alike(found, picture)
    assert (found != picture).sum() <= 8  # at corners, where little light is left
    union = drawn(*size, places).sum() / (width * height)
    scale = 224 * 224 if resize == "stretch" else max(size) / min(size) * (resize or 256) ** 2
    share = visible(on(*size, *places), size, preprocessing)
    assert share == pytest.approx(found.sum() / scale / union, rel=0.01)


@pytest.mark.parametrize("scale", [2, 3, 7])
def test_the_centre_of_a_pixel_decides(folder: Path, scale: int) -> None:
    """Stripes with edges anywhere: a pixel is light where the greater part of it is."""
    side, preprocessing = 19 * scale, prepared(19, 19, "stretch")
    centres = [(column + 0.5) * scale for column in range(19)]
    for number, (start, end) in enumerate(itertools.combinations(range(side + 1), 2)):
        place = (start, 0, end, side)
        found = mask_of(on(side, side, place), (side, side), preprocessing)
        assert found[5].tolist() == [start <= centre < end for centre in centres]
        assert (found == found[5]).all()
        halved = {float(start), float(end)} & {*centres}
        if number % 61 == 0 and end - start >= 2 * scale and not halved:
            picture = seen(folder, drawn(side, side, [place]), preprocessing) > 127
            np.testing.assert_array_equal(found[:, 1:-1], picture[:, 1:-1])


def test_boxes_side_by_side_share_no_pixel() -> None:
    size, preprocessing = (70, 53), prepared(24, 32, 37)
    cuts = [0, 0.1, 0.25, 1 / 3, 0.5, 0.77, 1]
    cells = [
        Rectangle(x0, y0, x1, y1)
        for (x0, x1), (y0, y1) in itertools.product(itertools.pairwise(cuts), repeat=2)
    ]
    single = np.array([mask_of([cell], size, preprocessing) for cell in cells])
    assert (single.sum(axis=0) == 1).all()
    assert mask_of(cells, size, preprocessing).all()
    assert mask_of([Rectangle(0, 0, 1, 1)], size, preprocessing).all()


@FEW
@given(st.sampled_from([case for case in WHOLE if case[2] == 1]), st.data())
def test_visible_is_the_share_of_pixels_that_the_crop_leaves(
    folder: Path, case: tuple[tuple[int, int], Preprocessing, int], data: st.DataObject
) -> None:
    size, preprocessing, _ = case
    places = data.draw(st.lists(corners(*size), min_size=1, max_size=4))
    whole = drawn(*size, places)
    left = (seen(folder, whole, preprocessing) > 127).sum() / whole.sum()
    assert visible(on(*size, *places), size, preprocessing) == pytest.approx(left, abs=1e-12)


def test_visible_by_hand() -> None:
    size, preprocessing = (400, 300), prepared(224, 224)  # to 341 x 256, from there 58 and 16 off
    left, top = 58 / 341, 16 / 256
    whole = visible([Rectangle(0, 0, 1, 1)], size, preprocessing)
    assert whole == pytest.approx(224**2 / (341 * 256))
    assert visible([Rectangle(0, 0, left, 1)], size, preprocessing) == pytest.approx(0, abs=1e-12)
    half = Rectangle(0, 0.25, 2 * left, 0.75)
    assert visible([half], size, preprocessing) == pytest.approx(0.5)
    assert visible([half, half], size, preprocessing) == pytest.approx(0.5)
    inner = Rectangle(0.4, top + 0.01, 0.6, 0.5)
    assert visible([inner], size, preprocessing) == 1.0
    assert visible([half], size, prepared(224, 224, "stretch")) == 1.0


def test_what_is_no_box_is_refused() -> None:
    box, preprocessing = Rectangle(0, 0, 1, 1), prepared(8, 8)
    for measure in (mask_of, visible):
        with pytest.raises(UsageError, match="without boxes lies nowhere"):
            measure([], (9, 9), preprocessing)
        for bad in (
            *(Rectangle(-0.1, 0, 1, 1), Rectangle(0, 0, 1, 1.1), Rectangle(0.5, 0, 0.5, 1)),
            *(Rectangle(0, 0.6, 1, 0.5), Rectangle(math.nan, 0, 1, 1), Rectangle(0, 0, 90, 80)),
        ):
            with pytest.raises(UsageError, match=r"is no rectangle in 0 … 1: give fractions"):
                measure([box, bad], (9, 9), preprocessing)
        with pytest.raises(UsageError, match=r"width and height in pixels, not \(0, 9\)"):
            measure([box], (0, 9), preprocessing)
        with pytest.raises(UsageError, match="choose one with crop"):
            measure([box], (9, 9), Preprocessing())
        assert measure([box], (9, 9), Preprocessing(crop=8)) is not None
