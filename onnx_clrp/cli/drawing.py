"""What is drawn of an image by a method: a picture of every map, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_clrp.files import open_whole

if TYPE_CHECKING:
    from onnx_clrp.image import Picture
    from onnx_clrp.render import Panel


@dataclass(frozen=True)
class Drawing:
    """The files that are made of the maps of an image; it can be sent to another process.

    Attributes:
        picture: what the model saw.
        panels: the maps.
        method: what the pictures call the method.
        title: the line above them.
        files: the picture of each map; where these are of neurons, the same for all.
        neurons: are the maps of neurons?
        sheet: a picture of all maps, if there is one.
        arrays: the file of the numbers, if there is one.
        numbers: the arrays that go into it.
    """

    picture: Picture
    panels: Sequence[Panel]
    method: str
    title: str
    files: Sequence[Path]
    neurons: bool
    sheet: Path | None
    arrays: Path | None
    numbers: Mapping[str, Any]

    def make(self) -> None:
        """Write all of them.

        Raises:
            ClrpError: one cannot be written.
        """
        if self.arrays is not None:
            _save(self.arrays, self.numbers)
        if self.neurons:
            self._draw_neurons(self.files[0])
            return
        for panel, file in zip(self.panels, self.files, strict=True):
            self._draw([panel], file)
        if self.sheet is not None:
            self._draw(self.panels, self.sheet)

    def _draw(self, panels: Sequence[Panel], file: Path) -> None:
        from onnx_clrp.render import draw

        draw(self.picture, panels, method=self.method, path=file, title=self.title)

    def _draw_neurons(self, file: Path) -> None:
        from onnx_clrp.figures import draw_neurons

        draw_neurons(self.picture, self.panels, method=self.method, path=file, title=self.title)


def _save(path: Path, numbers: Mapping[str, Any]) -> None:
    import numpy as np

    with open_whole(path) as file:
        np.savez_compressed(file, **numbers)
