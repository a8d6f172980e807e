"""Explains labelled pictures and measures the maps: a row for each picture, target and method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.compiler import Options, fitting
from onnx_clrp.decoding import decoded
from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate import measures
from onnx_clrp.evaluate.dataset import Object, Sample
from onnx_clrp.evaluate.geometry import mask_of, visible
from onnx_clrp.evaluate.neurons import Neurons
from onnx_clrp.evaluate.patches import mixed, scores_without_peaks
from onnx_clrp.evaluate.scorer import Scorer
from onnx_clrp.evaluate.settings import Settings
from onnx_clrp.image import Picture, Preprocessing
from onnx_clrp.program import reading
from onnx_clrp.runtime import Explainer

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Row = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A picture as the model sees it, and where its objects are in it.

    Attributes:
        sample: what it was made from.
        size: its width and height in pixels before it was scaled.
        picture: `[H, W, 3]`.
        masks: where each object of the sample is, `[H, W]`; None where that is not known.
        shown: the share of each object's boxes that the crop leaves; None likewise.
    """

    sample: Sample
    size: tuple[int, int]
    picture: Picture
    masks: Sequence[Mask | None]
    shown: Sequence[float | None]


def loaded(sample: Sample, preprocessing: Preprocessing) -> Loaded:
    """Decode a picture and lay its boxes over it.

    Raises:
        ImageError: it cannot be decoded.
    """
    image = decoded(sample.path)
    places = [_placed(found, image.size, preprocessing) for found in sample.objects]
    masks, shown = zip(*places, strict=True)
    return Loaded(sample, image.size, preprocessing.fit(image), masks, shown)


def _placed(
    found: Object, size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[Mask | None, float | None]:
    """Where an object is for the model, None if unknown or cropped; and what the crop leaves."""
    if not found.boxes:
        return None, None
    mask = mask_of(found.boxes, size, preprocessing)
    return mask if mask.any() else None, visible(found.boxes, size, preprocessing)


@dataclass(frozen=True)
class Asked:
    """What is explained of a picture: a class, and where it is.

    Attributes:
        name: the object as the data set calls it.
        target: the class that stands for it.
        mask: where it is, `[H, W]`; None where that is not known.
        others: where the picture's other objects are and this one is not; None if nowhere.
        shown: the share of its boxes that the crop leaves.
    """

    name: str
    target: int
    mask: Mask | None
    others: Mask | None
    shown: float | None


class Judge:
    """Holds the sessions of a model: one for its scores, and one for each method.

    Args:
        model: the model itself, not an explainer.
        settings: what is measured.
        device: as for `Explainer`.
        options: those of `convert`, for every method that takes them.

    Raises:
        UsageError: the model does not say how pictures become its input, or a method takes no
            such option.
    """

    def __init__(
        self, model: onnx.ModelProto, settings: Settings, device: str, options: Options
    ) -> None:
        self.settings = settings
        self.scorer = Scorer(model, device=device, **reading(options))
        self.explainers = {
            name: Explainer(model, device=device, **fitting(options, name, settings.methods))
            for name in settings.methods
        }
        self.neurons: Neurons | None = None
        if settings.wants("neurons"):
            self.neurons = Neurons(model, settings, device, options)
        self.preprocessing = preprocessing_of(next(iter(self.explainers.values())))

    @property
    def notes(self) -> list[str]:
        """What was assumed, each once."""
        return [*dict.fromkeys(note for e in self.explainers.values() for note in e.notes)]

    def rows(self, pictures: Sequence[Loaded], mean: Floats | None) -> dict[str, list[Row]]:
        """The rows of maps, of pairs of maps of one picture, and of neurons, by their table.

        And what `Store` keeps as arrays, where the settings say so.

        Args:
            pictures: of one batch.
            mean: the mean input of the data set `[...]`, which takes the place of pixels.
        """
        case = Batch(self, pictures, mean)
        made: dict[str, list[Row]] = {"maps": [], "pairs": []}
        by_method: dict[str, Floats] = {}
        for method, explainer in self.explainers.items():
            result = explainer.explain(case.inputs, case.targets)
            heatmaps = result.heatmap()
            for i, asked in enumerate(case.asked):
                found = heatmaps[i, : len(asked)]
                made["maps"] += case.judged(i, method, found)
                made["pairs"] += case.compared(i, method, found)
            if self.settings.save_maps:
                by_method[method] = heatmaps
        made["arrays"] = [*case.arrays(by_method)] if by_method else []
        if self.neurons is not None:
            assert mean is not None  # settings that want neurons need it
            keys = [p.sample.key for p in pictures]
            made["neurons"] = [
                *self.neurons.rows(keys, case.inputs, mean, self.preprocessing.layout)
            ]
        return made


def preprocessing_of(explainer: Explainer) -> Preprocessing:
    """How pictures become its input.

    Raises:
        UsageError: the model does not say.
    """
    if explainer.preprocessing is None:
        raise UsageError("say how pictures become the model's input: a preset, mean and std, …")
    return explainer.preprocessing


class Batch:
    """Some pictures on their way through all methods."""

    def __init__(self, judge: Judge, pictures: Sequence[Loaded], mean: Floats | None) -> None:
        self._judge, self._settings, self._mean = judge, judge.settings, mean
        self._layout = judge.preprocessing.layout
        self.pictures = pictures
        self.inputs: NDArray[Any] = judge.preprocessing.batch(p.picture for p in pictures)
        self._logits = judge.scorer.logits(self.inputs).astype(np.float64)
        most = judge.settings.most_objects
        self.asked = [
            _asked(p, scores, most) for p, scores in zip(pictures, self._logits, strict=True)
        ]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """The explained classes `[N, k]`; a picture with fewer repeats its first."""
        k = max(map(len, self.asked))
        rows = [[a.target for a in asked] for asked in self.asked]
        return np.array([row + row[:1] * (k - len(row)) for row in rows], np.int64)

    @cached_property
    def _probabilities(self) -> NDArray[np.float64]:
        return probabilities(self._logits, self._settings.probability)

    def judged(self, i: int, method: str, heatmaps: Floats) -> Iterator[Row]:
        """The rows of one picture and method."""
        picture, asked = self.pictures[i], self.asked[i]
        ablated = self._ablated(i, heatmaps) if self._settings.wants("ablation") else None
        for j, (a, heatmap) in enumerate(zip(asked, heatmaps, strict=True)):
            score = self._logits[i, a.target]
            yield {
                "image": picture.sample.key,
                "object": a.name,
                "target": a.target,
                "method": method,
                "score": score,
                "probability": self._probabilities[i, a.target],
                "rank": int((self._logits[i] > score).sum()),
                "area": None if a.mask is None else float(a.mask.mean()),
                "shown": a.shown,
                **self._placed(heatmap, a),
                **(self._drops(i, a.target, ablated[j]) if ablated is not None else {}),
                **(self._curves(i, a.target, heatmap) if self._settings.wants("deletion") else {}),
            }

    def compared(self, i: int, method: str, heatmaps: Floats) -> Iterator[Row]:
        """How alike the maps of two objects of one picture are."""
        if not self._settings.wants("discrimination"):
            return
        for (a, one), (b, other) in combinations(zip(self.asked[i], heatmaps, strict=True), 2):
            alike = measures.similarity(one, other)
            yield {
                "image": self.pictures[i].sample.key,
                "target": a.target,
                "other_target": b.target,
                "method": method,
                "cosine": alike.cosine,
                "rank_correlation": alike.rank,
            }

    def arrays(self, heatmaps: Mapping[str, Floats]) -> Iterator[Row]:
        """The maps themselves `[N, k, H, W]` by method; what Quantus needs for each target."""
        for i, (picture, asked) in enumerate(zip(self.pictures, self.asked, strict=True)):
            nowhere = np.zeros(picture.picture.shape[:2], bool)
            for j, a in enumerate(asked):
                yield {
                    "image": picture.sample.key,
                    "object": a.name,
                    "x_batch": self.inputs[i],
                    "y_batch": np.int64(a.target),
                    "s_batch": (nowhere if a.mask is None else a.mask)[None],
                    **{f"a_batch_{method}": maps[i, j][None] for method, maps in heatmaps.items()},
                }

    def _placed(self, heatmap: Floats, asked: Asked) -> Row:
        """Where the map lies."""
        place = measures.peak(heatmap)
        row, column = (None, None) if place is None else place
        found: Row = {"peak_row": row, "peak_column": column}
        if asked.mask is None:
            return found
        found["pointing"] = measures.pointing(heatmap, asked.mask, self._settings.tolerance)
        found["reach"] = measures.reach(heatmap, asked.mask)
        found["inside"] = measures.inside(heatmap, asked.mask)
        if asked.others is not None:
            found["in_others"] = measures.inside(heatmap, asked.others)
        return found

    def _ablated(self, i: int, heatmaps: Floats) -> list[NDArray[np.float64] | None]:
        """The scores `[patches, C]` of a picture for each map, with its peak's patch replaced."""
        assert self._mean is not None  # whoever asks for ablation has it
        how = heatmaps, self._settings.patches, self._layout
        return scores_without_peaks(self._judge.scorer, self.inputs[i], self._mean, *how)

    def _drops(self, i: int, target: int, scores: NDArray[np.float64] | None) -> Row:
        """What the score loses, for every side of the patch; nothing where a map has no peak."""
        found: Row = {}
        if scores is None:
            return found
        shares = probabilities(scores, self._settings.probability)
        for side, score, share in zip(self._settings.patches, scores, shares, strict=True):
            found[f"drop_{side}"] = self._logits[i, target] - score[target]
            found[f"probability_drop_{side}"] = self._probabilities[i, target] - share[target]
        return found

    def _curves(self, i: int, target: int, heatmap: Floats) -> Row:
        """The areas under the curves of deletion and insertion (Petsiuk et al. 2018)."""
        steps, order = self._settings.steps, measures.order(heatmap)
        fractions = np.linspace(0, 1, steps + 1)
        counts = np.round(fractions * len(order)).astype(int)
        assert self._mean is not None
        blank = np.asarray(self._mean, self.inputs.dtype)
        found: Row = {}
        for name, start, end in (
            ("deletion", self.inputs[i], blank),
            ("insertion", blank, self.inputs[i]),
        ):
            stages = np.stack([mixed(start, end, order[:n], self._layout) for n in counts])
            scores = self._judge.scorer.logits(stages).astype(np.float64)
            shown = probabilities(scores, self._settings.probability)[:, target]
            found[name] = measures.curve_area(shown, fractions)
        return found


def probabilities(logits: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Probabilities of the classes in the last axis, by softmax or each by its sigmoid."""
    if kind == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def target_of(found: Object, scores: NDArray[np.floating[Any]]) -> int:
    """Of the classes that stand for an object the one with the highest score `[C]`."""
    return max(found.targets, key=lambda c: (scores[c], -c))


def _asked(picture: Loaded, scores: NDArray[np.float64], most: int) -> list[Asked]:
    """Of each object the class with the highest score among those that stand for it, each once."""
    by_target: dict[int, list[int]] = {}
    for j, found in enumerate(picture.sample.objects):
        by_target.setdefault(target_of(found, scores), []).append(j)
    masks = {target: _union([picture.masks[j] for j in js]) for target, js in by_target.items()}
    return [
        Asked(
            " + ".join(dict.fromkeys(picture.sample.objects[j].name for j in js)),
            target,
            masks[target],
            _elsewhere(masks, target),
            picture.shown[js[0]],
        )
        for target, js in [*by_target.items()][:most]
    ]


def _union(masks: Sequence[Mask | None]) -> Mask | None:
    """Where any is; None where one is not known, since the object may be elsewhere too."""
    known = [m for m in masks if m is not None]
    return np.logical_or.reduce(known) if len(known) == len(masks) else None


def _elsewhere(masks: dict[int, Mask | None], target: int) -> Mask | None:
    """Where the others are and this one is not."""
    ours = masks[target]
    theirs = [m for other, m in masks.items() if other != target and m is not None]
    if ours is None or not theirs:
        return None
    apart: Mask = np.logical_or.reduce(theirs) & ~ours
    return apart if apart.any() else None
