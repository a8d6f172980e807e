"""Picture to tensor: prepares photographs the way a model expects."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnx_clrp.decoding import MAX_PIXELS, decoded
from onnx_clrp.errors import ModelError, UsageError

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}
LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64")
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "caffe": {"channels": "bgr", "mean": (104.0, 117.0, 123.0)},
    "tf": {"scale": 1 / 127.5, "mean": (1.0,)},
    "unit": {"scale": 1 / 255},
    "raw": {"dtype": "uint8"},
}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's input: `x = (pixel * scale - mean) / std`, pixel 0 to 255.

    `mean` and `std` hold one value, or one a channel in the order of `channels`.
    `resize` is the length of the shorter side before the centre crop; `"stretch"` ignores
    the aspect; None leaves a margin as torchvision's evaluation does, so that the crop is
    224/256 of the shorter side, and none for inputs under 64 pixels. `crop` and `size`
    are (height, width); `crop` is needed only where the model leaves its `size` open.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    channels: str = "rgb"
    resize: int | str | None = None
    crop: int | tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    layout: str = "NCHW"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Brings every field to its one form and refuses what makes no sense."""
        _one_of("channels", self.channels, CHANNELS)
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("dtype", self.dtype, DTYPES)
        tidy = {
            "mean": _numbers("mean", self.mean, CHANNELS[self.channels]),
            "std": _numbers("std", self.std, CHANNELS[self.channels]),
            "scale": _numbers("scale", self.scale, 1)[0],
            "resize": _side(self.resize),
            "crop": _extent("crop", self.crop),
            "size": _extent("size", self.size),
        }
        for name, value in tidy.items():
            object.__setattr__(self, name, value)
        for name, values in (("std", self.std), ("scale", (self.scale,))):
            if 0.0 in values:
                raise UsageError(f"{name} must not be zero")
        self._check_extents()
        self._table()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "Preprocessing":
        """A usual preprocessing by name; an override of None leaves what the preset says."""
        _one_of("preset", name, PRESETS)
        _known_fields(overrides)
        given = {key: value for key, value in overrides.items() if value is not None}
        return cls(**{**PRESETS[name], **given})

    def bind(self, size: tuple[int, int] | None, layout: str, dtype: str) -> "Preprocessing":
        """The same, with what the model says of its input; no size where it takes any."""
        return replace(self, size=size, layout=layout, dtype=dtype)

    def picture(self, path: str | Path) -> Picture:
        """What the model sees of an image file, before normalisation: RGB, [H, W, 3].

        A grey model's picture has three equal channels.
        """
        return self.fit(decoded(path))

    def fit(self, image: Image.Image) -> Picture:
        """The same of an image that is decoded already, upright and RGB."""
        target = self.extent()
        if self.channels == "grey":
            image = image.convert("L")
        fitted = _fitted(image, self.resize, target).convert("RGB")
        return np.asarray(fitted, dtype=np.uint8)

    def load(self, paths: str | Path | Iterable[str | Path]) -> npt.NDArray[Any]:
        """One image file or several as a batch for the model."""
        several = [paths] if isinstance(paths, str | Path) else paths
        return self.batch([self.picture(path) for path in several])

    def batch(self, pictures: Iterable[Picture]) -> npt.NDArray[Any]:
        """Pictures as `picture` gives them, normalised, in the model's layout and type."""
        planes = [self._planes(picture) for picture in pictures]
        if not planes:
            raise UsageError("no image was given")
        pixels = np.stack(planes)
        channels = [row[pixels[..., index]] for index, row in enumerate(self._table())]
        return np.stack(channels, axis=1 if self.layout == "NCHW" else -1)

    @property
    def input_range(self) -> tuple[Floats, Floats]:
        """The least and the greatest value of every channel: exactly those of 0 and 255."""
        ends = self._table()[:, [0, 255]].astype(np.float32)
        return ends.min(axis=1), ends.max(axis=1)

    def to_json(self) -> str:
        """All fields, for a model's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The reverse of `to_json`, also of some fields only, with or without a `preset`."""
        try:
            given = json.loads(text)
            if not isinstance(given, dict):
                raise UsageError("it is not a JSON object")
            if "preset" in given:
                return cls.preset(given.pop("preset"), **given)
            _known_fields(given)
            return cls(**given)
        except (ValueError, TypeError, RecursionError) as error:
            raise ModelError(f"the model's preprocessing cannot be read: {error}") from error

    def _table(self) -> npt.NDArray[Any]:
        """The model's value of each channel and pixel level, [C, 256]; all else looks up here."""
        channels = CHANNELS[self.channels]
        mean, std = (np.broadcast_to(values, (channels,)) for values in (self.mean, self.std))
        exact = (np.arange(256) * self.scale - mean[:, None]) / std[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            table: npt.NDArray[Any] = exact.astype(self.dtype)
            finite = np.isfinite(table.astype(np.float32)).all()
        if np.dtype(self.dtype).kind != "f" and not np.array_equal(table, exact):
            raise UsageError(f"a model of {self.dtype} takes whole numbers: use the preset raw")
        if not finite:
            raise UsageError(f"mean, std and scale lead beyond the range of {self.dtype}")
        return table

    def _planes(self, picture: Picture) -> Picture:
        if self.channels == "grey":
            return np.asarray(Image.fromarray(picture).convert("L"))[..., None]
        return picture[..., ::-1] if self.channels == "bgr" else picture

    def extent(self) -> tuple[int, int]:
        """Height and width of what the model sees, in pixels.

        Raises:
            UsageError: the model takes any size, and no crop says which.
        """
        target = _extent("crop", self.crop) or self.size
        if target is None:
            raise UsageError("the model takes images of any size: choose one with crop")
        return target

    def _check_extents(self) -> None:
        if self.crop and self.size and self.crop != self.size:
            crop, size = (f"{height}x{width}" for height, width in (self.extent(), self.size))
            raise UsageError(f"crop {crop} is not the size of the model's input, {size}")
        if isinstance(self.resize, int) and (self.crop or self.size):
            least = min(self.extent())
            if self.resize < least:
                raise UsageError(f"resize {self.resize} is smaller than the crop of {least}")


def _one_of(what: str, value: object, allowed: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f"unknown {what} {brief(value)}: choose from {', '.join(allowed)}")


def _known_fields(given: dict[str, Any]) -> None:
    names = [field.name for field in fields(Preprocessing)]
    for name in given:
        _one_of("preprocessing option", name, names)


def _numbers(what: str, value: object, count: int) -> tuple[float, ...]:
    """One finite float, or `count` of them; a bare number is one."""
    try:
        values = tuple(np.asarray(value, dtype=np.float64).ravel().tolist())
    except (ValueError, TypeError, OverflowError):
        values = ()
    if len(values) not in (1, count) or not all(map(math.isfinite, values)):
        wanted = "one number" if count == 1 else f"one number or {count}"
        raise UsageError(f"{what} must be {wanted}, not {brief(value)}")
    return values


def _side(value: object) -> int | str | None:
    if value is None or value == "stretch":
        return "stretch" if value else None
    if not _is_length(value):
        raise UsageError(f"resize must be a number of pixels or 'stretch', not {brief(value)}")
    return int(value)


def _extent(what: str, value: object) -> tuple[int, int] | None:
    """(height, width), from a pair or from one number for both."""
    if value is None:
        return None
    pair: tuple[Any, ...] = (value, value)
    if isinstance(value, list | tuple):
        pair = tuple(value)
    if len(pair) != 2 or not all(map(_is_length, pair)) or math.prod(pair) > MAX_PIXELS:
        raise UsageError(f"{what} must be height and width in pixels, not {brief(value)}")
    return int(pair[0]), int(pair[1])


def _is_length(value: object) -> TypeGuard[int]:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        return False
    return 0 < int(value) <= MAX_PIXELS


def _fitted(image: Image.Image, resize: int | str | None, target: tuple[int, int]) -> Image.Image:
    """The image stretched, or scaled and cropped about its centre, to (height, width)."""
    height, width = target
    placed = placement(image.size, resize, target)
    (x, y), (across, down), (left, top) = placed.start, placed.kept, placed.crop
    scaled = image.crop((x, y, x + across, y + down)).resize(
        placed.scaled, Image.Resampling.BILINEAR
    )
    return scaled.crop((left, top, left + width, top + height))


class Placement(NamedTuple):
    """Which part of a picture becomes what the model sees, each as (horizontal, vertical) pixels.

    Attributes:
        start: where the part begins that is not dropped at once.
        kept: its size.
        scaled: the size that it is scaled to.
        crop: where in that the model's view begins.
    """

    start: tuple[int, int]
    kept: tuple[int, int]
    scaled: tuple[int, int]
    crop: tuple[int, int]


def placement(
    size: tuple[int, int], resize: int | str | None, target: tuple[int, int]
) -> Placement:
    """How a picture of (width, height) becomes one of `target`, (height, width)."""
    height, width = target
    if resize == "stretch":
        return Placement((0, 0), size, (width, height), (0, 0))
    # Without far ends that the crop drops anyway: a strip of 1 by 60000 would fill the memory.
    most = 16 * min(size) * math.ceil(max(target) / min(target))
    kept = min(size[0], most), min(size[1], most)
    start = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    scaled = _covering(kept, resize, target)
    crop = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return Placement(start, kept, scaled, crop)


def _covering(
    size: tuple[int, int], resize: int | str | None, target: tuple[int, int]
) -> tuple[int, int]:
    """(width, height) to scale to: as `resize` says, and never less than the crop."""
    width, height = size
    ratios = [(target[1], width), (target[0], height)]
    if isinstance(resize, int):
        ratios.append((resize, min(size)))
    elif min(target) >= 64:
        ratios = [(round(wanted * 256 / 224), there) for wanted, there in ratios]
    wanted, there = max(ratios, key=lambda ratio: ratio[0] / ratio[1])
    return width * wanted // there, height * wanted // there
