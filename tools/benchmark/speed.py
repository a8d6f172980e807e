"""Times one network: a process for bench.py, which prints lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

import onnx_clrp
from benchmark.networks import build, to_onnx, top_classes
from benchmark.rivals import agreement, explainer_of, rivals_for
from benchmark.settings import Settings
from benchmark.timing import in_turn
from onnx_clrp.model import save
from onnx_clrp.sessions import flush_denormals, limit_threads, open_session, run


def measured(name: str, settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    """The times of a network, of each size of a batch and number of targets.

    The files of the network are left in the folder, for measurements by other processes.
    """
    net, pictures = build(name, settings.size, max(settings.batches))
    model = to_onnx(net, pictures, settings.exporter)
    rivals = rivals_for(net, settings)
    found = agreement(rivals, net, model, settings.method, pictures[:1])
    made = onnx_clrp.convert(model, method=settings.method)
    save(model, folder / "model.onnx")
    save(made, folder / "explainer.onnx")
    np.save(folder / "pictures.npy", pictures)
    others = {
        other: explainer_of(rival, net, settings.method).explain
        for other, rival in rivals.items()
        if "failed" not in found[other]
    }
    session, _ = open_session(model, "cpu")
    scores = [session.get_outputs()[0].name]
    explainer = onnx_clrp.Explainer(made, device="cpu")
    del model, made  # the sessions have copies, and large networks need the memory
    for n in settings.batches:
        batch, tensor = pictures[:n], torch.from_numpy(pictures[:n])
        for k in settings.targets:
            asked = top_classes(net, tensor, k)
            contestants = {
                "forward": partial(run, session, scores, {"x": batch}),
                "logits": partial(explainer.logits, batch),
                "explain": partial(explainer.explain, batch, asked.numpy()),
                "torch": partial(_forward, net, tensor),
                **{other: partial(explain, tensor, asked) for other, explain in others.items()},
            }
            seconds = in_turn(contestants, settings.rounds, settings.seconds)
            yield {"batch": n, "targets": k, "agreement": found, "seconds": seconds}


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
    limit_threads(settings.threads)
    flush_denormals()
    for row in measured(name, settings, folder):
        sys.stdout.write(json.dumps({"model": name, **row}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
