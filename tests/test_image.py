"""Pictures of every kind become the tensors that models were trained on, and bad ones a line."""

import json
import os
import struct
import subprocess
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from onnx_clrp import decoding
from onnx_clrp import image as module
from onnx_clrp.errors import ImageError, ModelError, UsageError
from onnx_clrp.image import Preprocessing

RGB = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
NATIVE = Preprocessing.preset("unit", resize="stretch", size=(40, 56))


def save(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    small = np.random.default_rng(1).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


# --- the arithmetic of the presets -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "mean", "std", "scale"),
    [
        ("imagenet", [0, 1, 2], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1 / 255),
        ("caffe", [2, 1, 0], [104, 117, 123], [1, 1, 1], 1),
        ("tf", [0, 1, 2], [1, 1, 1], [1, 1, 1], 1 / 127.5),
        ("unit", [0, 1, 2], [0, 0, 0], [1, 1, 1], 1 / 255),
    ],
)
def test_presets_by_hand(
    tmp_path: Path, name: str, channels: list[int], mean: Any, std: Any, scale: float
) -> None:
    path = save(tmp_path / "a.png", RGB)
    wanted = (RGB[..., channels].astype(np.float64) * scale - mean) / std
    for layout in ("NCHW", "NHWC"):
        prepared = Preprocessing.preset(name, resize="stretch").bind((40, 56), layout, "float32")
        batch = prepared.load(path)
        assert batch.dtype == np.float32
        expected = wanted.transpose(2, 0, 1) if layout == "NCHW" else wanted
        assert batch.shape == (1, *expected.shape)
        np.testing.assert_allclose(batch[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64"])
def test_raw_is_the_pixels(tmp_path: Path, dtype: str) -> None:
    path = save(tmp_path / "a.png", RGB)
    raw = Preprocessing.preset("raw", resize="stretch")
    assert raw.dtype == "uint8"
    batch = raw.bind((40, 56), "NHWC", dtype).load([path, path])
    assert batch.dtype == dtype
    assert np.array_equal(batch, np.stack([RGB, RGB]).astype(dtype))


def test_grey_models_see_luma(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RGB)
    grey = Preprocessing.preset("unit", channels="grey", resize="stretch", size=(40, 56))
    luma = np.asarray(Image.fromarray(RGB).convert("L"))
    assert np.array_equal(grey.picture(path), np.stack([luma] * 3, axis=-1))
    batch = grey.load(path)
    assert batch.shape == (1, 1, 40, 56)
    np.testing.assert_allclose(batch[0, 0], luma / 255.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", ["imagenet", "caffe", "tf", "unit", "raw"])
def test_black_and_white_are_the_ends_of_the_range_exactly(name: str, dtype: str) -> None:
    prepared = Preprocessing.preset(name).bind((8, 8), "NCHW", dtype)
    low, high = prepared.input_range
    assert low.dtype == high.dtype == np.float32
    for level, bound in ((0, low), (255, high)):
        batch = prepared.batch([np.full((8, 8, 3), level, dtype=np.uint8)])
        assert (batch.astype(np.float32) == bound[None, :, None, None]).all()
    assert (low < high).all()


def test_range_of_a_falling_scale_is_in_order() -> None:
    low, high = Preprocessing(scale=-1 / 255, mean=(-1.0,), channels="grey").input_range
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


# --- resize and crop -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 400), (401, 299), (256, 256), (100, 130), (224, 1000)])
@pytest.mark.parametrize("resize", [None, 256, 232, 224])
def test_same_as_torchvision(tmp_path: Path, shape: tuple[int, int], resize: int | None) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    path = save(tmp_path / "a.png", smooth(*shape))
    steps = [
        transforms.Resize(resize or 256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    wanted = transforms.Compose(steps)(Image.open(path)).numpy()
    prepared = Preprocessing.preset("imagenet", resize=resize).bind((224, 224), "NCHW", "float32")
    np.testing.assert_allclose(prepared.load(path)[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "shorter"), [(224, 256), (299, 342), (227, 259), (64, 73), (63, 63), (32, 32)]
)
def test_the_margin_is_torchvisions_and_none_for_tiny_inputs(
    tmp_path: Path, size: int, shorter: int
) -> None:
    path = save(tmp_path / "a.png", smooth(500, 400))
    scaled = Image.open(path).resize((shorter, 500 * shorter // 400), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    wanted = np.asarray(scaled.crop((left, top, left + size, top + size)))
    picture = Preprocessing.preset("unit", size=(size, size)).picture(path)
    assert np.array_equal(picture, wanted)


def test_stretch_ignores_the_aspect(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", smooth(90, 300))
    wanted = Image.open(path).resize((80, 70), Image.Resampling.BILINEAR)
    picture = Preprocessing.preset("unit", resize="stretch", size=(70, 80)).picture(path)
    assert np.array_equal(picture, np.asarray(wanted))


@pytest.mark.parametrize("resize", [None, 100, "stretch"])
@pytest.mark.parametrize("target", [(100, 300), (300, 100), (65, 1000)])
@pytest.mark.parametrize("shape", [(50, 60), (600, 200), (1, 1)])
def test_a_long_crop_is_always_covered(
    tmp_path: Path, resize: Any, target: tuple[int, int], shape: tuple[int, int]
) -> None:
    path = save(tmp_path / "a.png", np.full((*shape, 3), 200, dtype=np.uint8))
    picture = Preprocessing.preset("unit", resize=resize, size=target).picture(path)
    assert picture.shape == (*target, 3)
    assert (picture == 200).all()  # no black corners


@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1)])
def test_thin_strips_do_not_fill_the_memory(
    tmp_path: Path, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", np.full((*shape, 3), 9, dtype=np.uint8))
    resize = Image.Image.resize

    def watched(self: Image.Image, size: Any, *rest: Any, **options: Any) -> Image.Image:
        assert size[0] * size[1] < 2e6
        return resize(self, size, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert (Preprocessing.preset("unit", size=(224, 224)).picture(path) == 9).all()


def test_crop_stands_in_for_an_open_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", smooth(300, 300))
    unbound = Preprocessing.preset("unit")
    with pytest.raises(UsageError, match="any size: choose one with crop"):
        unbound.picture(path)
    for crop in (96, (96, 96), [96, 96]):
        bound = Preprocessing.preset("unit", crop=crop).bind(None, "NCHW", "float32")
        assert bound.load(path).shape == (1, 3, 96, 96)
    with pytest.raises(UsageError, match="crop 96x96 is not the size of the model's input, 8x9"):
        Preprocessing.preset("unit", crop=96).bind((8, 9), "NCHW", "float32")
    with pytest.raises(UsageError, match="resize 90 is smaller than the crop of 96"):
        Preprocessing.preset("unit", crop=96, resize=90)


# --- every kind of picture -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif", "jp2"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    few = (RGB // 128 * 255).astype(np.uint8)  # eight colours fit a GIF's palette
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", few, **options)
    assert np.array_equal(NATIVE.picture(path), few)


@pytest.mark.parametrize("suffix", ["jpg", "avif"])
def test_lossy_formats(tmp_path: Path, suffix: str) -> None:
    pixels = smooth(40, 56)
    path = save(tmp_path / f"a.{suffix}", pixels, quality=95)
    assert np.abs(NATIVE.picture(path).astype(int) - pixels).mean() < 8


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RGB)
    assert np.array_equal(NATIVE.picture(path.rename(tmp_path / "b.jpg")), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(tmp_path: Path, orientation: int) -> None:
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(NATIVE.picture(path), RGB)


def test_a_damaged_exif_block_does_not_cost_the_photograph(tmp_path: Path) -> None:
    pixels = smooth(40, 56)
    clean = save(tmp_path / "a.jpg", pixels)
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09",
    ):
        path = save(tmp_path / "b.jpg", pixels, exif=exif)
        assert np.array_equal(NATIVE.picture(path), NATIVE.picture(clean))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_bilevel(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", RGB, mode)
    wanted = np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB"))
    assert np.array_equal(NATIVE.picture(path), wanted)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 56 40 65535\n" + deep.astype(">u2").tobytes())
    else:
        save(path, deep)
    picture = NATIVE.picture(path)
    assert np.array_equal(picture, np.rint(deep / 257).astype(np.uint8)[..., None].repeat(3, 2))
    assert (picture.min(), picture.max()) == (0, 255)


def test_big_endian_sixteen_bit_tiff(tmp_path: Path) -> None:
    deep = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 29
    tags = [(256, 56), (257, 40), (258, 16), (259, 1), (262, 1), (273, 110), (277, 1), (278, 40)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + entries + b"\0" * 4
    path = tmp_path / "a.tiff"
    path.write_bytes(header + deep.astype(">u2").tobytes())
    struct_start = len(header)
    assert struct_start == 110
    assert np.array_equal(NATIVE.picture(path)[..., 0], np.rint(deep / 257).astype(np.uint8))


def test_float_tiff_from_0_to_1_is_scaled_and_any_other_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 40 * 56, dtype=np.float32).reshape(40, 56)
    path = save(tmp_path / "a.tiff", values)
    assert np.array_equal(NATIVE.picture(path)[..., 0], np.rint(values * 255).astype(np.uint8))
    for bad in (values * 300, values - 1, values * np.nan):
        with pytest.raises(ImageError, match="its values are not in 0 to 1"):
            NATIVE.picture(save(tmp_path / "b.tiff", bad))


def test_wide_integers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", np.full((40, 56), 70000, dtype=np.int32))
    with pytest.raises(ImageError, match="its values are not in 0 to 65535"):
        NATIVE.picture(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.fromarray(np.linspace(0, 255, 40 * 56).reshape(40, 56).astype(np.uint8)))
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    wanted = rgba[..., :3] * alpha + 255 * (1 - alpha)
    picture = NATIVE.picture(save(tmp_path / "a.png", image))
    assert np.abs(picture - wanted).max() <= 1
    assert (picture[0, 0] == 255).all()


def test_palettes_with_a_transparent_entry_are_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (56, 40), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 28, 40))
    for suffix in ("png", "gif"):
        picture = NATIVE.picture(save(tmp_path / f"a.{suffix}", image, transparency=0))
        assert (picture[:, :28] == (200, 100, 50)).all()
        assert (picture[:, 28:] == 255).all()
    opaque = NATIVE.picture(save(tmp_path / "b.png", image))
    assert (opaque[:, 28:] == (10, 20, 30)).all()


def test_rgb_with_a_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.full((40, 56, 3), 7, dtype=np.uint8)
    pixels[:, 20:] = 90
    picture = NATIVE.picture(save(tmp_path / "a.png", pixels, transparency=(7, 7, 7)))
    assert (picture[:, :20] == 255).all()
    assert (picture[:, 20:] == 90).all()


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (56, 40), (0, 255, 255, 0))
    picture = NATIVE.picture(save(tmp_path / "a.tiff", image))
    assert (picture == (255, 0, 0)).all()
    lossy = NATIVE.picture(save(tmp_path / "a.jpg", image, quality=95)).astype(int)
    assert np.abs(lossy - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_a_moving_picture(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (56, 40), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (NATIVE.picture(path) == (255, 0, 0)).all()


# --- what cannot be read ---------------------------------------------------------------------


def refused(path: str | Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        NATIVE.load([path])
    assert "\n" not in str(caught.value)
    assert repr(str(path)) in str(caught.value)
    assert caught.value.exit_status == 1


def test_missing_folder_empty_and_text(tmp_path: Path) -> None:
    refused(tmp_path / "absent.png", "does not exist: check the name")
    refused(tmp_path, "is a folder: name the files in it")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "is an empty file")
    (tmp_path / "text.png").write_text("hello\n" * 100)
    refused(tmp_path / "text.png", "is none of JPEG, PNG.*: save it as PNG or JPEG first")
    refused("a\0b.png", "cannot be read: embedded null")
    refused("x" * 5000, "cannot be read: File name too long")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "a.png", "cannot be read: Not a directory")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a device or pipe")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # root may read everything, so chmod is no test
    refused(save(tmp_path / "a.png", RGB), "cannot be read: Permission denied")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "jp2"])
def test_cut_off_anywhere(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path / f"a.{suffix}", smooth(40, 56)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for share in (0.02, 0.3, 0.7):
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        refused(path, "cannot be decoded|is none of")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "avif", "jp2"])
def test_damage_is_an_image_error_or_a_picture(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path / f"a.{suffix}", smooth(40, 56)).read_bytes()
    rng = np.random.default_rng(5)
    path = tmp_path / f"b.{suffix}"
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 300), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with suppress(ImageError):
            assert NATIVE.picture(path).shape == (40, 56, 3)


def png_bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of few bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("side", [9500, 12000, 60000])
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_bombs(
    tmp_path: Path, side: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # others in the process may lift it
    refused(png_bomb(tmp_path / "a.png", side, side), "has more than 89,478,485 pixels: make a")


def test_a_lower_limit_of_the_process_holds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", RGB)
    for limit in (2000, 500):  # where Pillow warns, and where it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(path, f"has more than {limit:,} pixels: make a smaller copy first")


def test_pictures_are_decoded_side_by_side_under_the_same_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bomb = save(tmp_path / "a.png", RGB), png_bomb(tmp_path / "b.png", 9500, 9500)
    both, upright = Barrier(2, timeout=30), decoding._upright

    def together(image: Image.Image) -> Image.Image:
        both.wait()
        refused(bomb, "has more than 89,478,485 pixels")
        return upright(image)

    monkeypatch.setattr(decoding, "_upright", together)
    before = [*warnings.filters]
    with ThreadPoolExecutor(2) as pool:
        pictures = [*pool.map(NATIVE.picture, [good, good])]
    assert all(np.array_equal(picture, RGB) for picture in pictures)
    assert warnings.filters == before


def test_formats_that_run_programs_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", ran)
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    refused(path, "is none of")


# --- what is not a preprocessing -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"channels": "cmyk"}, "unknown channels 'cmyk': choose from rgb, bgr, grey"),
        ({"layout": "CHWN"}, "unknown layout 'CHWN': choose from NCHW, NHWC"),
        ({"dtype": "bfloat16"}, "unknown dtype 'bfloat16': choose from float32"),
        ({"mean": (1.0, 2.0)}, r"mean must be one number or 3, not \(1.0, 2.0\)"),
        ({"std": ()}, r"std must be one number or 3, not \(\)"),
        ({"std": (1.0, 0.0, 1.0)}, "std must not be zero"),
        ({"std": float("nan")}, "std must be one number or 3, not nan"),
        ({"mean": (1, 2, 3), "channels": "grey"}, "mean must be one number, not"),
        ({"scale": 0}, "scale must not be zero"),
        ({"scale": "big"}, "scale must be one number, not 'big'"),
        ({"scale": 1e39}, "lead beyond the range of float32"),
        ({"scale": 300.0, "dtype": "float16"}, "lead beyond the range of float16"),
        ({"scale": 1 / 255, "dtype": "uint8"}, "takes whole numbers: use the preset raw"),
        ({"mean": (1.0,), "dtype": "uint8"}, "takes whole numbers: use the preset raw"),
        ({"resize": "fit"}, "resize must be a number of pixels or 'stretch', not 'fit'"),
        ({"resize": 0}, "resize must be a number of pixels or 'stretch', not 0"),
        ({"resize": True}, "resize must be a number of pixels or 'stretch', not True"),
        ({"crop": (1, 2, 3)}, "crop must be height and width in pixels, not"),
        ({"crop": (224, -1)}, "crop must be height and width in pixels, not"),
        ({"size": (99999, 99999)}, "size must be height and width in pixels, not"),
        ({"gamma": 2}, "unknown preprocessing option 'gamma': choose from mean, std, scale"),
    ],
)
def test_senseless_options_are_usage_errors(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        Preprocessing.preset("raw", **{"dtype": "float32", **options})
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="unknown preset 'x': choose from imagenet, caffe, tf"):
        Preprocessing.preset("x")


def test_nothing_to_load() -> None:
    with pytest.raises(UsageError, match="no image was given"):
        NATIVE.load([])


def test_an_override_of_none_keeps_the_preset() -> None:
    plain = Preprocessing.preset("caffe")
    assert Preprocessing.preset("caffe", mean=None, channels=None, resize=None) == plain
    assert Preprocessing.preset("caffe", mean=5).mean == (5.0,)


# --- metadata --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet", "caffe", "tf", "unit", "raw"])
def test_json_there_and_back(name: str) -> None:
    one = Preprocessing.preset(name, crop=(32, 48), resize=64)
    for prepared in (one, one.bind((32, 48), "NHWC", one.dtype)):
        assert Preprocessing.from_json(prepared.to_json()) == prepared
        assert hash(Preprocessing.from_json(prepared.to_json())) == hash(prepared)


def test_json_of_some_fields() -> None:
    text = '{"preset": "unit", "channels": "grey", "resize": "stretch", "size": [28, 28]}'
    wanted = Preprocessing.preset("unit", channels="grey", resize="stretch", size=(28, 28))
    assert Preprocessing.from_json(text) == wanted
    assert Preprocessing.from_json('{"scale": 2}') == Preprocessing(scale=2.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"preset": "x"}',
        '{"preset": 3}',
        '{"preset": []}',
        '{"x": 1}',
        '{"mean": [1, 2]}',
        '{"mean": {}}',
        '{"mean": null}',
        '{"std": 0}',
        '{"scale": 1e999}',
        '{"scale": NaN}',
        '{"channels": ["rgb"]}',
        '{"size": "224"}',
        '{"size": [[1], 2]}',
        '{"crop": 1e3}',
        '{"resize": 99999999999999999999}',
        '{"mean": ' + "9" * 5000 + "}",
        "[" * 100000,
        json.dumps({"mean": list(range(100000))}),
    ],
)
def test_malformed_metadata_is_one_line(text: str) -> None:
    with pytest.raises(ModelError, match="the model's preprocessing cannot be read") as caught:
        Preprocessing.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.exit_status == 1


def test_pillow_warnings_stay_inside(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    refused(png_bomb(tmp_path / "a.png", 9500, 9500), "has more than")
    assert not recwarn.list
    assert module.MAX_PIXELS == 89_478_485
