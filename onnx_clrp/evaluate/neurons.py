"""Neurons of a layer: does the patch that a map finds for one belong to that one (figure 5c)?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_clrp.compiler import Options, fitting
from onnx_clrp.evaluate.patches import scores_without_peaks
from onnx_clrp.evaluate.scorer import Scorer
from onnx_clrp.evaluate.settings import Settings, explains_neurons
from onnx_clrp.program import reading
from onnx_clrp.runtime import Explainer

Row = dict[str, Any]


class Neurons:
    """The most active neurons of a layer, each with the patch that a map finds for it.

    Args:
        model: the model itself.
        settings: with the layer, and how many of its neurons.
        device: as for `Explainer`.
        options: those of `convert`.

    Raises:
        UsageError: the model has no such layer, or it has fewer neurons.
    """

    def __init__(
        self, model: onnx.ModelProto, settings: Settings, device: str, options: Options
    ) -> None:
        chosen: Options = {**options, "layer": settings.layer}
        self._settings = settings
        self._scorer = Scorer(model, device=device, **reading(chosen))
        chosen["target"] = f"top:{settings.neurons}"
        self._explainers = {
            name: Explainer(model, device=device, **fitting(chosen, name, settings.methods))
            for name in settings.methods
            if explains_neurons(name)
        }

    def rows(
        self, keys: Sequence[str], inputs: NDArray[Any], mean: NDArray[np.float32], layout: str
    ) -> Iterator[Row]:
        """What every neuron loses by the patch of every other one, a row for each pair.

        Args:
            keys: of the pictures.
            inputs: of the model, `[N, ...]`.
            mean: what a patch is replaced by, `[...]`.
            layout: of the inputs.
        """
        before = self._scorer.logits(inputs).astype(np.float64)
        side = self._settings.patches[:1]
        for method, explainer in self._explainers.items():
            result = explainer.explain(inputs)
            heatmaps = result.heatmap()
            for i, (key, chosen) in enumerate(zip(keys, result.target, strict=True)):
                after = scores_without_peaks(
                    self._scorer, inputs[i], mean, heatmaps[i], side, layout
                )
                for (patch_of, lost), (j, neuron) in product(enumerate(after), enumerate(chosen)):
                    activation = before[i, neuron]
                    yield {
                        "image": key,
                        "method": method,
                        "patch_of": patch_of,
                        "neuron": j,
                        "channel": int(neuron),
                        "activation": activation,
                        "drop": None if lost is None else activation - lost[0, neuron],
                    }
