"""The picture files that a command works on, and names for what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".jp2",
    ".avif",
)


def files(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files, with the pictures in folders by their name; and a line for each that has none."""
    paths: list[Path] = []
    errors: list[str] = []
    for path in images:
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            errors.append(f"the folder {str(path)!r} cannot be read: {error.strerror}")
            continue
        found = [path] if inside is None else [p for p in inside if p.suffix.lower() in _SUFFIXES]
        paths += found
        if not found:
            errors.append(f"no pictures in the folder {str(path)!r}")
    return paths, errors


def unique(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that came before, also in other capitals."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # the last behind each name: all below it are taken for good
    unique = []
    for name in names:
        chosen, key = name, name.casefold()
        while chosen.casefold() in taken:
            numbers[key] = numbers.get(key, 1) + 1
            chosen = f"{name}-{numbers[key]}"
        unique.append(chosen)
        taken.add(chosen.casefold())
    return unique
