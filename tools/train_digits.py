"""Trains exported_models/digits.onnx from nothing and draws the scenes that go with it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import click
import numpy as np
import onnx
import onnxruntime
import torch
from digit_scenes import CLASSES, SIZE, Digits, Scene, compose, draw_scenes, split_digits
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

BATCH = 64
LEARNING_RATE = 4e-3
MEASURED_SCENES = 1000
MOST_DIGITS = 4
OPSET = 18
# The oldest IR version that may hold opset 18: older runtimes can read the file too.
IR_VERSION = 8

EXAMPLE_LABELS = ((3, 7), (2, 5), (4, 9), (8, 1), (6, 0), (1, 5, 8))
_EXAMPLE_SEED = 7
_SINGLE_SEED = 1
_PAIR_SEED = 2

DESCRIPTION = (
    "Which handwritten digits are in the picture? A small convolutional network for grey "
    f"{SIZE}x{SIZE} scenes with one to four digits of different classes. A logit above 0 "
    "says that the digit is there."
)
PREPROCESSING = {"preset": "unit", "channels": "grey", "resize": "stretch"}


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out scenes, 0 … 1, that the model gets right.

    Attributes:
        single_digit: one digit in the scene, and it has the highest logit.
        two_digits: two digits in the scene, and they have the two highest logits.
        scenes: how many scenes of each kind were measured.
    """

    single_digit: float
    two_digits: float
    scenes: int


def build_network() -> nn.Sequential:
    """Float [N, 1, SIZE, SIZE] in 0 … 1 to logits [N, CLASSES], in the manner of a small VGG.

    Two fully connected layers stand at the end instead of a global pool, so that a class is
    read off features of the whole scene, as in the networks of the CLRP paper.
    """
    widths = (1, 16, 32, 64, 64)
    blocks = itertools.chain.from_iterable(itertools.starmap(_block, itertools.pairwise(widths)))
    side = SIZE // 2 ** (len(widths) - 1)
    hidden = nn.Linear(widths[-1] * side**2, 64)
    return nn.Sequential(*blocks, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, CLASSES))


def train(digits: Digits, *, seed: int, steps: int) -> nn.Sequential:
    """A network trained on `steps` batches of fresh scenes; the same one for the same seed."""
    torch.manual_seed(seed)
    network = build_network()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    # A yes or no for each class: every digit in the scene can have a high logit of its own.
    loss_of = nn.BCEWithLogitsLoss()
    scenes = _mixed_scenes(digits, seed)
    for _ in track(range(steps), "Training"):
        images, present = to_arrays(itertools.islice(scenes, BATCH))
        loss: Tensor = loss_of(network(torch.from_numpy(images)), torch.from_numpy(present))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def to_arrays(scenes: Iterable[Scene]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scenes as the model's input [N, 1, SIZE, SIZE] and 0 or 1 for each class [N, CLASSES]."""
    drawn = list(scenes)
    grey = np.stack([scene.image for scene in drawn])[:, None]
    images = grey.astype(np.float32) / np.float32(255)
    present = np.zeros((len(drawn), CLASSES), np.float32)
    for row, scene in zip(present, drawn, strict=True):
        row[list(scene.labels)] = 1
    return images, present


def to_onnx(network: nn.Sequential) -> onnx.ModelProto:
    """The network as one ONNX model with a dynamic batch."""
    exported = torch.onnx.export(
        network,
        (torch.zeros(2, 1, SIZE, SIZE),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    # The result is optional only for the older exporter, which dynamo=True does not use.
    model = cast(torch.onnx.ONNXProgram, exported).model_proto
    model.ir_version = IR_VERSION
    _forget_the_exporting_machine(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def measure(model: onnx.ModelProto, digits: Digits) -> Accuracy:
    """How often the finished ONNX model names the digits of scenes made from `digits`."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return Accuracy(
        single_digit=_share_named(session, digits, 1, _SINGLE_SEED),
        two_digits=_share_named(session, digits, 2, _PAIR_SEED),
        scenes=MEASURED_SCENES,
    )


def write_scenes(digits: Digits, folder: Path) -> None:
    """Write the example scenes as PNG, and their labels and boxes as scenes.json and scenes.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(_EXAMPLE_SEED)
    index = {}
    for labels in EXAMPLE_LABELS:
        scene = compose(digits, labels, rng)
        name = "-and-".join(map(str, labels)) + ".png"
        Image.fromarray(scene.image).save(folder / name)
        index[name] = {"labels": scene.labels, "boxes": scene.boxes}
    rows = (f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in index.items())
    (folder / "scenes.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    table = ["image,label,x0,y0,x1,y1"]
    for name, entry in index.items():
        pairs = zip(entry["labels"], entry["boxes"], strict=True)
        table += [f"{name},{label},{','.join(map(str, box))}" for label, box in pairs]
    (folder / "scenes.csv").write_text("\n".join(table) + "\n", encoding="utf-8")


def _block(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    # BatchNorm brings its own bias, a second one in front of it would have no effect.
    convolution = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width_out), nn.ReLU(), nn.MaxPool2d(2)


def _mixed_scenes(digits: Digits, seed: int) -> Iterator[Scene]:
    """Scenes with one, two, three and four digits in turn."""
    # Seeds far from those of the measured scenes, so that no layout is met twice.
    streams = [draw_scenes(digits, n, 1000 * (seed + 1) + n) for n in range(1, MOST_DIGITS + 1)]
    return itertools.chain.from_iterable(zip(*streams, strict=True))


def _share_named(
    session: onnxruntime.InferenceSession, digits: Digits, count: int, seed: int
) -> float:
    scenes = itertools.islice(draw_scenes(digits, count, seed), MEASURED_SCENES)
    images, present = to_arrays(scenes)
    (logits,) = session.run(["logits"], {"image": images})
    highest = np.argsort(logits, axis=1)[:, -count:]
    return float(np.take_along_axis(present, highest, axis=1).all(axis=1).mean())


def _forget_the_exporting_machine(graph: onnx.GraphProto) -> None:
    """Drop the exporter's notes: they hold file paths of the machine that it ran on."""
    graph.ClearField("metadata_props")
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _describe(model: onnx.ModelProto, accuracy: Accuracy) -> None:
    facts = {
        "onnx_clrp.labels": json.dumps([str(digit) for digit in range(CLASSES)]),
        "onnx_clrp.preprocessing": json.dumps(PREPROCESSING),
        "description": DESCRIPTION,
        "accuracy": json.dumps(asdict(accuracy)),
    }
    onnx.helper.set_model_props(model, facts)


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(__file__).resolve().parents[1] / "exported_models",
    help="Folder for digits.onnx and scenes/.",
)
@click.option("--seed", default=0, show_default=True, help="Another seed, another network.")
@click.option("--steps", default=1000, show_default=True, help="Batches to train on.")
@click.option("--scenes-only", is_flag=True, help="Draw the example scenes, train nothing.")
def main(output: Path, seed: int, steps: int, scenes_only: bool) -> None:
    """Train the digit model on scenes made from scikit-learn's digits and export it."""
    training, held_out = split_digits()
    write_scenes(held_out, output / "scenes")
    if scenes_only:
        return
    # The order of summation, and with it the result, depends on the number of threads.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = to_onnx(train(training, seed=seed, steps=steps))
    accuracy = measure(model, held_out)
    _describe(model, accuracy)
    onnx.save(model, output / "digits.onnx")
    Console().print(f"Wrote {output / 'digits.onnx'}: {accuracy}")


if __name__ == "__main__":
    main()
