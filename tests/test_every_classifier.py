"""The convolutional classifiers of torchvision, from PyTorch's exporters in turn: nothing leaks.

One of each family is judged against float64 and from both in `test_families` and `test_networks`;
`tools/model_table.py` measures all of them so, which takes an hour.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from networks_support import CLOSES, EXPORTERS, Subject, ledger, of_torchvision, widest
from reference.networks import CLASSIFIERS

pytestmark = pytest.mark.slow

SIZES = {"inception_v3": 96, "alexnet": 224, "vgg": 224}
"""Pixels of a side by family where 64 are not enough: the older exporter knows no adaptive pooling
that makes a plane larger."""


LARGEST = "regnet_y_128gf"
"""Its weights alone take 2.5 GiB, and several copies more memory than a test may ask for."""


NAMES = [name for name in CLASSIFIERS if name != LARGEST]
TURNS = [(name, EXPORTERS[i % len(EXPORTERS)]) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(("name", "exporter"), TURNS, ids=NAMES)
def test_the_ledger_of_every_classifier_closes_at_every_node(name: str, exporter: str) -> None:
    size = next((n for family, n in SIZES.items() if name.startswith(family)), 64)
    assert widest(ledger(Subject(of_torchvision(name, size)), exporter)) <= CLOSES
