"""Times one network: a process for bench.py, which prints lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import onnx_clrp
from benchmark.networks import build, to_onnx, top_classes
from benchmark.rivals import agreement, explainer_of, rivals_for, working
from benchmark.settings import Settings
from benchmark.timing import Work, in_turn, tf32
from onnx_clrp.binding import Bound
from onnx_clrp.errors import HalfOverflowError
from onnx_clrp.model import save
from onnx_clrp.sessions import flush_denormals, limit_threads, open_session, run

FIVE = 5
"""Targets of the contestant of that name; as a setting, they would multiply all the others."""

Floats = NDArray[np.float32]


def measured(name: str, settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    """The times of a network, of each size of a batch and number of targets.

    The files of the network are left in the folder, for measurements by other processes.
    """
    net, pictures = build(name, settings.size, max(settings.batches))
    model = to_onnx(net, pictures, settings.exporter)
    made = onnx_clrp.convert(model, method=settings.method)
    save(model, folder / "model.onnx")
    save(made, folder / "explainer.onnx")
    np.save(folder / "pictures.npy", pictures)
    with settings.alone():
        yield from _timed(net, pictures, model, made, settings)


def _timed(
    net: nn.Module,
    pictures: Floats,
    model: onnx.ModelProto,
    made: onnx.ModelProto,
    settings: Settings,
) -> Iterator[dict[str, Any]]:
    device, rivals = settings.device, rivals_for(net, settings)
    net = net.to(device)
    if device == "cpu":
        found = agreement(rivals, net, model, settings.method, pictures[:1])
    else:  # in float64, which most GPUs are slow at, it is proven elsewhere
        found = working(rivals, net, settings.method, pictures[:1])
    others = {
        other: explainer_of(rival, net, settings.method).explain
        for other, rival in rivals.items()
        if "failed" not in found[other]
    }
    forward = _forward_of(model, device)
    explainer = onnx_clrp.Explainer(made, device=device)
    further = _on_cuda(model, made, settings.method, pictures) if device == "cuda" else {}
    del model, made  # the sessions have copies, and large networks need the memory
    for n in settings.batches:
        batch, tensor = pictures[:n], torch.from_numpy(pictures[:n]).to(device)
        for k in settings.targets:
            asked = top_classes(net, tensor, k)
            classes = asked.cpu().numpy()
            contestants = {
                "forward": partial(forward, batch),
                "logits": partial(explainer.logits, batch),
                "explain": partial(explainer.explain, batch, classes),
                **{
                    other: partial(e.explain, batch, [*range(FIVE)] if other == "five" else classes)
                    for other, e in further.items()
                },
                "torch": _done(device, partial(_forward, net, tensor)),
                **{
                    other: _done(device, partial(explain, tensor, asked))
                    for other, explain in others.items()
                },
            }
            seconds = in_turn(contestants, settings.rounds, settings.seconds, settings.least)
            yield {"batch": n, "targets": k, "agreement": found, "seconds": seconds}


def _on_cuda(
    model: onnx.ModelProto, made: onnx.ModelProto, method: str, pictures: Floats
) -> dict[str, onnx_clrp.Explainer]:
    """Explainers for what a CPU does not have, graphs and fewer digits, and for five targets.

    Each has a session of its own: one that runs in another shape than before has cuDNN look for
    algorithms again, which would be counted as part of the times.
    """
    found = {"graph": onnx_clrp.Explainer(made, device="cuda", cuda_graph=True)}
    found["five"] = onnx_clrp.Explainer(made, device="cuda")
    with tf32():
        found["tf32"] = onnx_clrp.Explainer(made, device="cuda")
    half = onnx_clrp.Explainer(model, device="cuda", method=method, half=True)
    try:
        half.explain(pictures)
    except HalfOverflowError:  # as in a network of random weights
        return found
    return {**found, "half": half}


def _forward_of(model: onnx.ModelProto, device: str) -> Callable[[Any], object]:
    """The model alone, as the package would run it on the device."""
    session = open_session(model, device).session
    scores = [session.get_outputs()[0].name]
    if device == "cuda":
        bound = Bound(session, device, scores)
        return lambda batch: bound.run({"x": batch})
    return lambda batch: run(session, scores, {"x": batch})


def _done(device: str, work: Work) -> Work:
    """The work until the device has done it: PyTorch only asks a GPU for it."""
    if device == "cpu":
        return work

    def waited() -> None:
        work()
        torch.cuda.synchronize()

    return waited


@torch.inference_mode()
def _forward(net: nn.Module, pictures: Tensor) -> Tensor:
    return net(pictures)


@click.command()
@click.argument("name")
@click.argument("settings", type=Settings.from_json)
@click.argument("folder", type=click.Path(path_type=Path))
def main(name: str, settings: Settings, folder: Path) -> None:
    """Time the classifier NAME; leave its files in FOLDER."""
    torch.set_flush_denormal(True)  # before anything runs: threads inherit it when they are made
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.allow_tf32 = False  # as in ONNX Runtime, or it would be no race
    limit_threads(settings.threads)
    flush_denormals()
    for row in measured(name, settings, folder):
        sys.stdout.write(json.dumps({"model": name, **row}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
