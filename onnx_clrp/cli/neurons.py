"""Neurons by the words of the command line: which layer, and which of its channels or units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from onnx_clrp.compiler import Options
from onnx_clrp.errors import UsageError
from onnx_clrp.methods import METHODS


@dataclass(frozen=True)
class Asked:
    """What `--layer`, `--neuron` and `--top-neurons` ask for.

    Attributes:
        layer: the layer's name, None without one.
        places: the neurons, each a channel or a channel with its position.
        top: how many of the most active channels.
    """

    layer: str | None
    places: Sequence[tuple[int, ...]] = ()
    top: int | None = None

    @classmethod
    def of(cls, given: dict[str, Any]) -> Asked:
        """Take the three options out of those that were given.

        Raises:
            UsageError: they do not go together.
        """
        layer, words, top = (given.pop(key) for key in ("layer", "neuron", "top_neurons"))
        if words and top is not None:
            raise UsageError("--neuron and --top-neurons exclude each other")
        places = [_place(part.strip()) for word in words for part in word.split(",")]
        if len({len(place) > 1 for place in places}) > 1:
            raise UsageError("name channels or single units, not both at once")
        return cls(layer, [*dict.fromkeys(places)], top)

    @property
    def neurons(self) -> bool:
        """Are neurons named, and not only a layer?"""
        return bool(self.places) or self.top is not None

    def options(
        self, method: str, methods: Iterable[str] = (), *, at_run_time: bool = False
    ) -> Options:
        """The options of `convert` for one of the methods.

        Args:
            method: its name.
            methods: those of all, where there are several.
            at_run_time: may the neurons be chosen later, so that none needs to be named?

        Raises:
            UsageError: no neurons are named, and no method makes a map of a layer.
        """
        self.refuse_without_layer()
        if self.layer is None:
            return {}
        if METHODS[method].cam and not self.neurons:
            return {"cam_layer": self.layer}
        if not self.neurons and any(METHODS[name].cam for name in methods):
            return {}
        if not self.neurons and not at_run_time:
            raise UsageError("say which neurons of the layer: --neuron N or --top-neurons K")
        single = any(len(place) > 1 for place in self.places)
        chosen: Options = {"layer": self.layer, "neurons": "units" if single else "channels"}
        if self.top is not None:
            chosen["target"] = f"top:{self.top}"
        return chosen

    def refuse_without_layer(self) -> None:
        """Refuse neurons of nobody."""
        if self.neurons and self.layer is None:
            raise UsageError("say whose neurons: --layer NAME (`inspect --layers` lists them)")

    def targets(self, shape: Sequence[int | None], neurons: str) -> list[int] | None:
        """The named neurons of a layer `[N, C, …]` as targets; None if none is named.

        Raises:
            UsageError: one of them is not there.
        """
        if not self.places:
            return None
        sizes = shape[1:] if neurons == "units" else shape[1:2]
        return [_index(place, sizes) for place in self.places]


def refuse_crowd(words: Sequence[str], top: int | None) -> None:
    """Refuse more neurons than a figure takes, before any work."""
    from onnx_clrp.figures import MAX_NEURONS

    count = max(top or 0, sum(len(word.split(",")) for word in words))
    if count > MAX_NEURONS:
        raise UsageError(f"a figure takes 1 to {MAX_NEURONS} neurons, not {count}")


def neuron_name(layer: dict[str, Any], target: int) -> str:
    """What a neuron is called: `channel 12`, or `unit 12:3:4`."""
    sizes = layer["shape"][1:]
    if layer["neurons"] == "channels" or len(sizes) == 1:
        return f"{'channel' if len(sizes) > 1 else 'neuron'} {target}"
    places = [target // prod(sizes[i + 1 :]) % size for i, size in enumerate(sizes)]
    return f"unit {':'.join(map(str, places))}"


def _place(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(:\d+)*", text):
        raise UsageError(f"{text!r} is no neuron: write a channel, or CHANNEL:ROW:COLUMN")
    return tuple(int(part) for part in text.split(":"))


def _index(place: tuple[int, ...], sizes: Sequence[int | None]) -> int:
    known = [d for d in sizes if d is not None]
    inside = len(place) == len(known) and all(p < d for p, d in zip(place, known, strict=True))
    if not inside:
        form = ":".join(f"0…{d - 1}" for d in known)
        raise UsageError(f"the layer has no neuron {':'.join(map(str, place))}; they are {form}")
    return sum(p * prod(known[i + 1 :]) for i, p in enumerate(place))
