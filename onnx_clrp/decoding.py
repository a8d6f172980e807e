"""Image files to upright RGB pictures; whatever is wrong with a file is said in one line."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from onnx_clrp.errors import ImageError

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, where Pillow starts to warn as well
# Named one by one: Pillow also knows formats that start other programs (EPS) or fetch files.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")


class _Muted:
    """Pillow's warnings of size made errors, and its others ignored, while any thread is inside.

    The filters of warnings belong to the whole process: whoever comes first sets them, and whoever
    leaves last puts them back, so that nobody has to wait.
    """

    def __init__(self) -> None:
        self._inside, self._lock, self._filters = 0, Lock(), ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters.enter_context(warnings.catch_warnings())
                # Damaged metadata does not concern the pixels; a size that is warned of does.
                warnings.filterwarnings("ignore", module=r"PIL\.")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.close()


_muted = _Muted()


def decoded(path: str | Path) -> Image.Image:
    """An image file as an upright RGB image; any fault of the file is an ImageError."""
    name = repr(str(path))
    try:
        with opened(path) as image:
            image.load()
            return _rgb(_upright(image))
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = f"has more than {_most_pixels():,} pixels: make a smaller copy first"
        raise ImageError(f"image {name} {reason}") from error
    except UnidentifiedImageError as error:
        reason = f"is none of {', '.join(FORMATS)}: save it as PNG or JPEG first"
        raise ImageError(f"image {name} {reason}") from error
    except PermissionError as error:
        raise ImageError(f"image {name} cannot be read: {error.strerror}") from error
    except Exception as error:  # decoders raise anything when fed a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"image {name} cannot be decoded ({reason}): save it anew") from error


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file of a modest size, with its header read and no pixel of it.

    Raises:
        ImageError: it is no file with something in it.
        DecompressionBombWarning, DecompressionBombError: it has more than `MAX_PIXELS`, or than
            the limit of the process.
        Exception: whatever Pillow raises where it cannot be read.
    """
    _refuse_non_files(Path(path), repr(str(path)))
    with _muted, Image.open(path, formats=FORMATS) as image:
        # A check of our own, for Pillow's can be switched off by anyone in the process.
        if image.width * image.height > _most_pixels():
            raise Image.DecompressionBombError(f"more than {_most_pixels():,} pixels")
        yield image


def _most_pixels() -> int:
    """The limit: ours, or a lower one of the process."""
    return min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)


def _refuse_non_files(path: Path, name: str) -> None:
    """Says plainly what Pillow would not, and keeps it from waiting on a pipe for ever."""
    try:
        if path.is_dir():
            raise ImageError(f"image {name} is a folder: name the files in it")
        if path.exists() and not path.is_file():
            raise ImageError(f"image {name} is a device or pipe: name a file")
        empty = path.stat().st_size == 0
    except FileNotFoundError as error:
        raise ImageError(f"image {name} does not exist: check the name") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"image {name} cannot be read: {reason}") from error
    if empty:
        raise ImageError(f"image {name} is an empty file: copy it anew")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block must not cost the photograph
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue, on white where the image is transparent."""
    if image.mode.startswith("I"):
        image = _eight_bits(image, 65535)
    elif image.mode == "F":
        image = _eight_bits(image, 1)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """Deep grey scaled as its format means it, since Pillow would clip it at 255."""
    values = np.asarray(image, dtype=np.float32)
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"its values are not in 0 to {white}")
    return Image.fromarray(np.rint(values * np.float32(255 / white)).astype(np.uint8))
