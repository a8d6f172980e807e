"""What the header of an image file says of its size and of which way is up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from onnx_clrp.decoding import opened
from onnx_clrp.errors import ImageError

Edges = tuple[float, float, float, float]
"""Left, upper, right and lower edge."""

_SIDEWAYS = (5, 6, 7, 8)

_TURNS: dict[int, Callable[[float, float, float, float], Edges]] = {
    2: lambda x0, y0, x1, y1: (1 - x1, y0, 1 - x0, y1),
    3: lambda x0, y0, x1, y1: (1 - x1, 1 - y1, 1 - x0, 1 - y0),
    4: lambda x0, y0, x1, y1: (x0, 1 - y1, x1, 1 - y0),
    5: lambda x0, y0, x1, y1: (y0, x0, y1, x1),
    6: lambda x0, y0, x1, y1: (1 - y1, x0, 1 - y0, x1),
    7: lambda x0, y0, x1, y1: (1 - y1, 1 - x1, 1 - y0, 1 - x0),
    8: lambda x0, y0, x1, y1: (y0, 1 - x1, y1, 1 - x0),
}


@dataclass(frozen=True, slots=True)
class Header:
    """A picture as it is stored, which EXIF may tell to turn before it is shown.

    Attributes:
        size: (width, height) in pixels as stored.
        orientation: EXIF's number for what makes it upright; 1 where it is already.
    """

    size: tuple[int, int]
    orientation: int = 1

    def upright(self, box: Edges, extent: tuple[float, float]) -> Edges:
        """A box in fractions of the picture as stored, in fractions of the picture upright.

        Args:
            box: its edges.
            extent: width and height that its annotation has for the picture. Where they are those
                of the upright picture, sides exchanged, so is the box, and it stays.
        """
        turn = _TURNS.get(self.orientation)
        width, height = self.size
        wide = (width - height) * (extent[0] - extent[1])
        if turn is None or (self.orientation in _SIDEWAYS and wide < 0):
            return box
        return turn(*box)


def read_header(path: Path) -> Header:
    """The header of an image file; nothing is decoded where the format allows it.

    Raises:
        ImageError: it is no image, or one too large to be decoded.
    """
    try:
        with opened(path) as image:  # by size first, since PNG has to be decoded for its EXIF
            return _stored(image)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything when fed a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"the size of image {str(path)!r} cannot be read ({reason})") from error


def _stored(image: Image.Image) -> Header:
    size = image.size
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # `decoded` leaves a picture as it is if its EXIF block is damaged
        return Header(size)
    if image.format == "TIFF" and orientation in _SIDEWAYS:  # Pillow's size is the upright one
        size = size[::-1]
    return Header(size, orientation)
