"""Every convolutional classifier of torchvision, from both of PyTorch's exporters: nothing leaks.

One of each family is judged against float64 in `test_families` and `test_networks`. docs/models.md
has the distances of all; they take hours.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("torchvision", reason="the networks are torchvision's")

from networks_support import CLOSES, EXPORTERS, UNCHANGED, Subject, compared, of_torchvision, widest
from reference.networks import CLASSIFIERS

pytestmark = pytest.mark.slow

SIZES = {"inception_v3": 96, "alexnet": 224, "vgg": 224}
"""Pixels of a side by family where 64 are not enough: the older exporter knows no adaptive pooling
that makes a plane larger."""


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_is_explained(name: str) -> None:
    size = next((n for family, n in SIZES.items() if name.startswith(family)), 64)
    subject = Subject(of_torchvision(name, size))
    for exporter in EXPORTERS:
        run = compared(subject, exporter)
        (after,), (before,) = run.outputs.values(), run.own_outputs().values()
        assert np.abs(after - before).max() <= UNCHANGED * np.abs(before).max()
        books = run.keep_books()
        assert widest(books.books.entries(books.sums, books.sums["logit"])) <= CLOSES
        del subject.models[exporter]  # some have two and a half gigabytes
