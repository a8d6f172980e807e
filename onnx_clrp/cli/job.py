"""What `explain` and `compare` do with every image: the explainers, targets and names for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx_clrp.cli import options as common
from onnx_clrp.cli.neurons import Asked, neuron_name
from onnx_clrp.cli.output import notice
from onnx_clrp.errors import UsageError
from onnx_clrp.labels import parse_targets, read_labels

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from onnx_clrp.compiler import Options
    from onnx_clrp.image import Preprocessing
    from onnx_clrp.runtime import Explainer


_HOW = "say how pictures become the model's input: --preset, --mean, --std, …"
_UNPREPARED = (
    "the explainer does not know how pictures become its input: convert the model again, with"
    " --preset"
)


@dataclass(frozen=True)
class Job:
    """What is done with every image.

    Attributes:
        explainers: one for each method.
        preprocessing: how pictures become the model's input.
        targets: the classes or neurons to explain; None for those that the explainers choose.
        feeds: values of the model's other inputs.
        labels: the names of the classes.
    """

    explainers: Sequence[Explainer]
    preprocessing: Preprocessing
    targets: list[int] | None
    feeds: dict[str, NDArray[Any]]
    labels: list[str] | None

    @property
    def layer(self) -> dict[str, Any] | None:
        """The layer whose neurons are explained."""
        return self.explainers[0].layer

    def label(self, target: int) -> str | None:
        """What a target is called: the class's name without its synonyms, or the neuron's."""
        if self.layer is not None:
            return neuron_name(self.layer, target)
        return None if self.labels is None else self.labels[target].split(",")[0].strip()

    def shown(self, target: int) -> str:
        """What a picture calls a target."""
        return self.label(target) or f"class {target}"

    def fed(self, chosen: Sequence[int], total: int) -> dict[str, NDArray[Any]]:
        """The other inputs for some of the images: their own rows, or the only row for each."""
        fed = {}
        for name, value in self.feeds.items():
            rows = value.shape[0] if value.ndim > 1 else 0
            fed[name] = value[chosen] if rows == total > 0 else value
            if rows == 1 != len(chosen):
                fed[name] = value.repeat(len(chosen), axis=0)
        return fed


def job_of(given: dict[str, Any], methods: Sequence[str], top: int | None = None) -> Job:
    """Everything that can be wrong with the words of a command is found here, before any work.

    Args:
        given: the options of the command; they are taken out of it.
        methods: the methods, unless the model is an explainer already.
        top: how many of the highest scores are explained where no target is named.

    Raises:
        ClrpError: something is wrong.
    """
    from onnx_clrp.model import PREFIX, load, metadata

    target, asked_top, chosen = given.pop("target"), given.pop("top"), given.pop("method")
    asked = Asked.of(given)
    refuse_both(target, asked_top, asked)
    labels_file, device = given.pop("labels"), given.pop("device")
    feeds = common.feeds_of(given.pop("feed"))
    proto = load(given.pop("model"))
    converted = PREFIX + "method" in metadata(proto)
    done = converted and not chosen
    choices = common.graph_choices(proto, given)
    usual = None if target or asked.neurons or done else top
    if asked_top is not None or usual is not None:
        choices["target"] = f"top:{asked_top or usual}"
    explainers = _explainers(proto, asked, [] if done else [*(chosen or methods)], device, choices)
    first = explainers[0]
    if first.preprocessing is None:
        raise UsageError(_UNPREPARED if converted else _HOW)
    labels = first.labels
    if labels_file is not None and first.layer is None:
        labels = read_labels(labels_file, first.classes)
    targets = parse_targets(target, labels, first.classes) if target else None
    if asked.places and first.layer is not None:
        targets = asked.targets(first.layer["shape"], first.layer["neurons"])
    for note in dict.fromkeys(note for explainer in explainers for note in explainer.notes):
        notice(note)
    return Job(explainers, first.preprocessing, targets, feeds, labels)


def against(method: str, score: float) -> str:
    """What is said of a map that shows evidence against its class; nothing if it does not."""
    from onnx_clrp.methods import METHODS

    turned = score < 0 and METHODS[method].starts_with_score
    return "score below zero: evidence against" if turned else ""


def refuse_both(target: Sequence[str], top: int | None, asked: Asked) -> None:
    """Refuse options that choose what is explained in more than one way."""
    if target and top is not None:
        raise UsageError("--target and --top exclude each other")
    if asked.neurons and (target or top is not None):
        raise UsageError("neurons are explained, or classes: --target and --top name classes")


def _explainers(
    proto: onnx.ModelProto, asked: Asked, methods: Sequence[str], device: str, choices: Options
) -> list[Explainer]:
    """An explainer for each method; without any the model is one itself."""
    from onnx_clrp.compiler import fitting
    from onnx_clrp.runtime import Explainer

    if not methods:
        if asked.layer is not None or asked.top is not None:
            raise UsageError("the model is an explainer already: its layer is settled")
        made = Explainer(proto, device=device, **choices)
        if asked.places and made.layer is None:
            raise UsageError("the model explains classes, and no neurons: convert it with --layer")
        return [made]
    explainers, names = [], dict.fromkeys(methods)
    for name in names:
        options = fitting({**choices, **asked.options(name, names)}, name, names)
        explainers.append(Explainer(proto, device=device, **options))
    return explainers
