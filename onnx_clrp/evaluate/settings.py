"""What an evaluation does: recorded beside its results, and compared before it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

from onnx_clrp.errors import UsageError
from onnx_clrp.methods import METHODS

EXPERIMENTS = ("pointing", "ablation", "discrimination", "deletion", "neurons", "cascade")
"""Where the peak lies; what its patch is worth; two classes of a picture; curves of scores; whose
patch is whose among the neurons of a layer; and what shuffled weights make of the maps."""

PROBABILITIES = ("softmax", "sigmoid")

ENGINES = ("local", "ray")
"""This process, or the workers of a Ray cluster."""

USUAL_METHODS = ("random", "gradient", "guided_backprop", "lrp", "clrp1", "clrp2")
"""Those that the paper compares (section 5)."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes:
        methods: the methods that are compared.
        experiments: some of `EXPERIMENTS`.
        patches: the sides of the patches that ablation replaces, in pixels of the model's input.
        tolerance: how far from the box a peak may lie in the pointing game, in pixels.
        probability: what makes a probability of the scores: `"softmax"` of all classes, or
            `"sigmoid"` of each by itself.
        steps: into how many steps a deletion or insertion curve is cut.
        layer: the layer whose neurons are told apart.
        neurons: how many of them, the most active ones.
        stages: how often a cascade shuffles further layers, until all are.
        shuffled_pictures: how many pictures shuffled models explain, drawn at random.
        most_objects: of how many objects a picture is explained; the first that it is labelled
            with.
        batch: how many pictures are explained together.
        save_maps: are the maps themselves kept, beside what they are worth?
        seed: of whatever is drawn.

    Raises:
        UsageError: one of them makes no sense.
    """

    methods: Sequence[str] = USUAL_METHODS
    experiments: Sequence[str] = EXPERIMENTS[:3]
    patches: Sequence[int] = (9, 31)
    tolerance: int = 0
    probability: str = "softmax"
    steps: int = 20
    layer: str | None = None
    neurons: int = 8
    stages: int = 8
    shuffled_pictures: int = 32
    most_objects: int = 4
    batch: int = 8
    save_maps: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before any work."""
        _refuse_others("method", self.methods, METHODS)
        _refuse_others("experiment", self.experiments, EXPERIMENTS)
        _refuse_others("probability", [self.probability], PROBABILITIES)
        for name in ("methods", "experiments", "patches"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        least = {"tolerance": 0, "steps": 2, "neurons": 2, "stages": 1, "shuffled_pictures": 1}
        least |= {"most_objects": 1, "batch": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name.replace('_', ' ')} must be at least {low}")
        if not self.patches or min(self.patches) < 1:
            raise UsageError("a patch has a side of at least one pixel")
        if self.wants("neurons") != (self.layer is not None):
            raise UsageError(
                "the experiment with neurons and the layer that they are of go together"
            )

    @property
    def needs_mean(self) -> bool:
        """Does something of a picture have to be replaced?"""
        return any(map(self.wants, ("ablation", "deletion", "neurons")))

    def wants(self, experiment: str) -> bool:
        """Is that one of the experiments?"""
        return experiment in self.experiments

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON knows them."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields


def explains_neurons(method: str) -> bool:
    """Does the method explain neurons? Not what compares with other classes, nor what maps them."""
    known = METHODS[method]
    return known.fewest_classes <= 1 and not known.cam


def fingerprint(*texts: str) -> str:
    """A short hash that differs where any of the texts does."""
    made = blake2b(digest_size=16)
    for text in texts:
        made.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogateescape"))
    return made.hexdigest()


def _refuse_others(what: str, names: Sequence[str], known: Any) -> None:
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        asked = f"no {what} is called {wrong[0]!r}" if wrong else f"no {what} is asked for"
        raise UsageError(f"{asked}; there are {', '.join(known)}")
