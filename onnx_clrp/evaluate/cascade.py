"""A map must change with the model: cascading randomisation (Adebayo et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnx_clrp.compiler import Options, fitting
from onnx_clrp.errors import ImageError, UsageError
from onnx_clrp.evaluate.judge import loaded, preprocessing_of, target_of
from onnx_clrp.evaluate.measures import similarity
from onnx_clrp.evaluate.scorer import Scorer
from onnx_clrp.evaluate.settings import Settings
from onnx_clrp.external import is_external
from onnx_clrp.program import read_program, reading
from onnx_clrp.runtime import Explainer

if TYPE_CHECKING:
    from onnx_clrp.evaluate.dataset import Dataset

Row = dict[str, Any]


@dataclass(frozen=True)
class Subjects:
    """What is explained by every stage.

    Attributes:
        model: the model itself.
        keys: of the pictures.
        inputs: of the model, `[N, ...]`.
        targets: a class for each, `[N]`.
        settings: with the methods, the stages and the seed.
        device: as for `Explainer`.
        options: those of `convert`.
    """

    model: onnx.ModelProto
    keys: Sequence[str]
    inputs: NDArray[Any]
    targets: NDArray[np.int64]
    settings: Settings
    device: str = "auto"
    options: Options = field(default_factory=Options)

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        dataset: Dataset,
        settings: Settings,
        device: str,
        options: Options,
    ) -> Subjects:
        """The pictures of a data set that can be read, each with the class of its first object.

        Raises:
            UsageError: none can be read, or the model does not say how they become its input.
        """
        explainer = _explainer(model, settings.methods[0], settings, device, options)
        pictures = []
        for sample in dataset:
            with suppress(ImageError):  # the table of failures has it
                pictures.append(loaded(sample, preprocessing_of(explainer)))
        if not pictures:
            raise UsageError("no picture that shuffled models were to explain can be read")
        inputs = preprocessing_of(explainer).batch(p.picture for p in pictures)
        scores = Scorer(model, device=device, **reading(options)).logits(inputs)
        firsts = [p.sample.objects[0] for p in pictures]
        targets = [target_of(first, row) for first, row in zip(firsts, scores, strict=True)]
        keys = [p.sample.key for p in pictures]
        return cls(model, keys, inputs, np.array(targets, np.int64), settings, device, options)

    def maps(self, model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
        """Those of a stage's model `[N, H, W]`, by method."""
        made = {}
        for method in self.settings.methods:
            explainer = _explainer(model, method, self.settings, self.device, self.options)
            made[method] = explainer.explain(self.inputs, self.targets).heatmap()[:, 0]
        return made


def _explainer(
    model: onnx.ModelProto, method: str, settings: Settings, device: str, options: Options
) -> Explainer:
    return Explainer(model, device=device, **fitting(options, method, settings.methods))


def cascade(
    subjects: Subjects, done: Collection[int] = frozenset()
) -> Iterator[tuple[Stage, list[Row]]]:
    """How like the map of the model as it came the maps of every stage are.

    Args:
        subjects: what is explained.
        done: the numbers of stages that are left out.

    Yields:
        Each stage, with a row for each picture and method.
    """
    settings = subjects.settings
    original: dict[str, NDArray[np.float32]] = {}
    for stage in stages(subjects.model, subjects.options, settings.stages, settings.seed):
        if stage.number in done:
            continue
        original = original or subjects.maps(subjects.model)
        maps = subjects.maps(stage.model) if stage.number else original
        yield stage, [*_compared(subjects, stage, original, maps)]


def _compared(
    subjects: Subjects,
    stage: Stage,
    original: Mapping[str, NDArray[np.float32]],
    maps: Mapping[str, NDArray[np.float32]],
) -> Iterator[Row]:
    for method, found in maps.items():
        of = subjects.keys, subjects.targets, original[method], found
        for key, target, one, other in zip(*of, strict=True):
            yield {
                "image": key,
                "target": int(target),
                "method": method,
                "stage": stage.number,
                "layer": stage.layer,
                "rank_correlation": similarity(one, other).rank,
                "magnitude_correlation": similarity(np.abs(one), np.abs(other)).rank,
            }


@dataclass(frozen=True)
class Stage:
    """A model with the weights of its last layers shuffled.

    Attributes:
        number: how many layers are.
        of: how many layers there are.
        layer: the one that was shuffled last; None for the model as it came.
        model: it.
    """

    number: int
    of: int
    layer: str | None
    model: onnx.ModelProto


def stages(model: onnx.ModelProto, options: Options, most: int, seed: int) -> Iterator[Stage]:
    """The model as it came, and then with one layer more shuffled each time, the last one first.

    A layer is a linear map. Its weights are put in another order: they keep their distribution, so
    that activations stay of the same size. Where there are more layers than stages are wanted,
    several are shuffled at once, evenly many each time.

    Args:
        model: the model itself.
        options: how it is read.
        most: how many stages at most, beside the first.
        seed: of the orders.

    Raises:
        UsageError: a layer has no weights of its own in the model.
    """
    layers = _weighted_layers(model, options)
    rng = np.random.default_rng(seed)
    made = model
    yield Stage(0, len(layers), None, made)
    ends = np.unique(np.linspace(0, len(layers), min(most, len(layers)) + 1).round().astype(int))
    done: set[str] = set()
    for start, end in pairwise(ends):
        made = copy.deepcopy(made)
        for _, name in layers[start:end]:
            if name not in done:  # or one that shares its weights with another would be twice
                _shuffle(made, name, rng)
            done.add(name)
        yield Stage(int(end), len(layers), layers[end - 1][0], made)


def _weighted_layers(model: onnx.ModelProto, options: Options) -> list[tuple[str, str]]:
    """The names of the linear maps, the last one first, and of the weights of each."""
    program = read_program(model, **reading(options))
    weights = {t.name for t in model.graph.initializer if not is_external(t)}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for step in reversed(program.steps):
        if not step.linear:
            continue
        node = makers.get(step.outputs[0].name)
        known = [x for x in node.input[:2] if x in weights] if node is not None else []
        if not known:
            raise UsageError(
                f"{step} cannot be randomised: the file of the model does not hold its weights as"
                " they are"
            )
        found.append((str(step), known[0]))
    return found


def _shuffle(model: onnx.ModelProto, name: str, rng: np.random.Generator) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    weights = numpy_helper.to_array(tensor)
    shuffled = rng.permutation(weights.reshape(-1)).reshape(weights.shape)
    tensor.CopyFrom(numpy_helper.from_array(shuffled, name))
