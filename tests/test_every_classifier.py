"""The classifiers of torchvision up to a size, from PyTorch's exporters in turn: nothing leaks.

One of each family is judged against float64 and from both in `test_families` and `test_networks`;
`tools/model_table.py` measures all of them so, also the largest, which takes an hour.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from networks_support import CLOSES, EXPORTERS, Subject, ledger, of_torchvision, widest
from reference.networks import CLASSIFIERS
from torchvision.models import get_model_weights

pytestmark = pytest.mark.slow

MOST = 60e6
"""Parameters of the largest that are tested here. The larger ones repeat the nodes of a smaller
member of their family, or are in `test_networks`; they would take three times as long as the rest.
"""

NAMES = [name for name in CLASSIFIERS if get_model_weights(name).DEFAULT.meta["num_params"] <= MOST]
TURNS = [(name, EXPORTERS[i % len(EXPORTERS)]) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(("name", "exporter"), TURNS, ids=NAMES)
def test_the_ledger_of_every_classifier_closes_at_every_node(name: str, exporter: str) -> None:
    size = 96 if name == "inception_v3" else 64  # fewer it does not take
    assert widest(ledger(Subject(of_torchvision(name, size)), exporter)) <= CLOSES
