"""What gpu_check.py proves and measures: processes that print lines of JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
import torch
from networks_support import Subject, distance, of_torchvision, run
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmark.networks import build, to_onnx
from benchmark.placed import placed
from benchmark.settings import Settings
from benchmark.timing import Work, in_turn, tf32
from onnx_clrp import Explainer, convert
from onnx_clrp.binding import Bound
from onnx_clrp.errors import HalfOverflowError, MemoryShortageError
from onnx_clrp.sessions import limit_threads, open_session

METHODS = ("lrp", "clrp1", "clrp2")

_SOME = 5
"""So many names are told of nodes that are where they should not be."""

_SIDE = {"cuda": 8192, "cpu": 512}
"""Of the matrices that tell how fast a device multiplies."""

_IMAGES = {"cuda": 32, "cpu": 1}
"""That a convolution is timed on."""

Row = dict[str, Any]
Floats = NDArray[np.float32]


def off(found: Floats, wanted: Floats) -> float:
    """‖found − wanted‖ / ‖wanted‖, of the worst of the maps `[N, k, ...]`."""
    axes = tuple(range(2, wanted.ndim))
    difference = np.sqrt(((found.astype(np.float64) - wanted) ** 2).sum(axes))
    return float((difference / np.sqrt((wanted.astype(np.float64) ** 2).sum(axes))).max())


# -- proofs ------------------------------------------------------------------------------------


def proofs(name: str, settings: Settings) -> Iterator[Row]:
    """Where the nodes of explainers run, and whether their maps are right."""
    subject = Subject(of_torchvision(name, settings.size, targets=max(settings.targets)))
    for method in METHODS:
        made = subject.explainer(settings.exporter, method, "default")
        feeds = {"x": subject.pictures, "target": subject.targets}
        found = placed(made, feeds, settings.device)
        told = {"nodes": found.nodes, "on_cpu": found.on_cpu}
        for kind, names in (("strays", found.strays), ("copies", found.copies)):
            told |= {kind: len(names), f"some {kind}": names[:_SOME]}
        yield {"part": "placement", "method": method, **told}
    for method in METHODS:
        yield {"part": "parity", "method": method} | _parity(subject, settings, method)
    yield {"part": "graph"} | _graph(subject, settings)
    yield {"part": "precision"} | _precision(subject, settings)


def _parity(subject: Subject, settings: Settings, method: str) -> Row:
    """How far the device's maps are from the CPU's, and from PyTorch in float64."""
    made = partial(subject.explainer, settings.exporter, method, "default")
    ours, cpu = (
        run(made(), subject.pictures, subject.targets, device)
        for device in (settings.device, "cpu")
    )
    reference = subject.reference(method, "default", ours.winners)
    whole = "relevance" if method == "lrp" else "relevance_concept"
    found: Row = {
        "logits": float(np.abs(ours.logits - cpu.logits).max() / np.abs(cpu.logits).max()),
        "relevance": distance(ours.maps[whole], reference.concept),
        "relevance_cpu": off(ours.maps[whole], cpu.maps[whole]),
    }
    if method != "lrp":
        found["contrast"] = distance(ours.maps["relevance"], reference.relevance)
        found["contrast_cpu"] = off(ours.maps["relevance"], cpu.maps["relevance"])
    return found


def _graph(subject: Subject, settings: Settings) -> Row:
    """Does a run that is replayed from a CUDA graph give the same, time after time?"""
    made = convert(subject.model(settings.exporter), signed=True)
    x, targets = subject.pictures, subject.targets
    others = np.ascontiguousarray(x[..., ::-1])
    plain = Explainer(made, device=settings.device)
    graphs = settings.device == "cuda"
    replayed = Explainer(made, device=settings.device, cuda_graph=graphs)
    worst = 0.0
    for batch, asked in ((x, targets), (others, targets), (x, targets - 1), (others, targets)):
        pair = [e.explain(batch, asked % plain.classes).relevance for e in (replayed, plain)]
        worst = max(worst, off(*pair))
    return {"captured": graphs, "off": worst}


def _precision(subject: Subject, settings: Settings) -> Row:
    """How far float16 and TF32 move the maps."""
    model = subject.model(settings.exporter)
    explainers = {"float32": Explainer(model, device=settings.device, signed=True)}
    try:
        explainers["half"] = Explainer(model, device=settings.device, signed=True, half=True)
        explainers["half"].explain(subject.pictures, subject.targets)
    except HalfOverflowError as error:
        return {"overflow": str(error)}  # as a network of random weights may
    if settings.device == "cuda":
        with tf32():
            explainers["tf32"] = Explainer(model, device="cuda", signed=True)
    maps = {n: e.explain(subject.pictures, subject.targets) for n, e in explainers.items()}
    found: Row = {}
    for name in list(maps)[1:]:
        found[name] = off(maps[name].relevance, maps["float32"].relevance)
        logits = np.abs(maps[name].logits - maps["float32"].logits).max()
        found[f"{name} logits"] = float(logits / np.abs(maps["float32"].logits).max())
    return found


# -- throughput and its limit ------------------------------------------------------------------


def throughput(name: str, settings: Settings) -> Iterator[Row]:
    """Maps per second of one class, by size of the batch, and the arithmetic of one map."""
    net, pictures = build(name, settings.size, max(settings.batches))
    model = to_onnx(net, pictures, settings.exporter)
    made = {"float32": convert(model, method=settings.method)}
    made["half"] = convert(model, method=settings.method, half=True)
    with settings.alone():
        yield {"part": "rates"} | rates(net.to(settings.device), pictures, settings)
        yield from _counted(made, pictures, settings)


def _counted(
    made: Mapping[str, onnx.ModelProto], pictures: Floats, settings: Settings
) -> Iterator[Row]:
    for kind, explainer in made.items():
        for graphs in (False, True) if settings.device == "cuda" else (False,):
            session = open_session(explainer, settings.device, cuda_graph=graphs).session
            names = ["relevance"]
            bound = Bound(session, settings.device, names, graphs=graphs)
            for n in settings.batches:
                feeds = {"x": pictures[:n], "target": np.zeros((n, 1), np.int64)}
                row = {"part": "throughput", "kind": kind, "graph": graphs, "batch": n}
                try:
                    seconds = _times(partial(bound.run, feeds), settings)
                except MemoryShortageError as error:
                    yield row | {"shortage": str(error)}
                    break
                yield row | {"seconds": seconds}
            del bound, session


def rates(net: nn.Module, pictures: Floats, settings: Settings) -> Row:
    """How fast the device multiplies in float32, and how much there is to multiply."""
    device = settings.device
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    side, images = _SIDE[device], _IMAGES[device]
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    x = torch.rand(images, 256, 56, 56, device=device)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device)
    with torch.inference_mode():
        matmul = _seconds(lambda: a @ b, device, settings)
        convolution = _seconds(lambda: conv(x), device, settings)
    return {
        "matmul": side**3 / matmul,
        "conv": images * 256 * 256 * 9 * 56 * 56 / convolution,
        "forward": multiply_adds(net, torch.from_numpy(pictures[:1]).to(device)),
        "device": torch.cuda.get_device_name() if device == "cuda" else "the CPU",
        "torch": torch.__version__,
        "onnxruntime": _version(),
    }


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _seconds(work: Callable[[], object], device: str, settings: Settings) -> float:
    def done() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return median(_times(done, settings))


def _times(work: Work, settings: Settings) -> list[float]:
    return in_turn({"": work}, settings.rounds, least=settings.least)[""]


def multiply_adds(net: nn.Module, x: Tensor) -> int:
    """Of the convolutions and fully connected layers in one forward pass."""
    found: list[int] = []

    def count(layer: Any, _inputs: object, y: Tensor) -> None:
        found.append(y.numel() * layer.weight[0].numel())

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        net(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


@click.command()
@click.argument("what", type=click.Choice(["proofs", "throughput"]))
@click.argument("name")
@click.argument("settings", type=Settings.from_json)
def main(what: str, name: str, settings: Settings) -> None:
    """Prove or measure one network."""
    warnings.simplefilter("ignore")  # the exporters warn of their own deprecations
    np.seterr(all="ignore")
    torch.set_num_threads(settings.threads)
    limit_threads(settings.threads)
    for row in {"proofs": proofs, "throughput": throughput}[what](name, settings):
        sys.stdout.write(json.dumps({"model": name, **row}, default=float) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
