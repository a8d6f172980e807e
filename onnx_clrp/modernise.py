"""Bring a model to one modern form: functions inlined, opset 18, initializers no inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
from onnx import shape_inference
from onnx_graphsurgeon.logger.logger import G_LOGGER

from onnx_clrp.constants import shapes_left_out, with_shapes
from onnx_clrp.errors import ModelError
from onnx_clrp.external import array_of
from onnx_clrp.model import skeleton
from onnx_clrp.reals import PLAIN, Reals
from onnx_clrp.upgrade import inlined, leave_open, opset_of, upgraded
from onnx_clrp.widen import over_reals

OPSET = 18
"""Older models are brought up to it; the nodes that are added are written for it and later ones."""

_IR_VERSION = 8


@dataclass(frozen=True)
class Model:
    """A model in one modern form.

    Attributes:
        proto: the whole model, which the explainer's nodes are appended to.
        graph: its graph over the real numbers, without the weights, to walk on.
        weights: the initializers that the graph does without, by name.
        reals: how tensors of the proto stand for the numbers that the graph is about.
    """

    proto: onnx.ModelProto
    graph: gs.Graph
    weights: Mapping[str, onnx.TensorProto]
    reals: Reals = PLAIN

    def names(self) -> set[str]:
        """All names that are taken, of tensors and of nodes."""
        taken: set[str] = set()
        waiting = [self.proto.graph]
        while waiting:
            graph = waiting.pop()
            taken.update(value.name for value in (*graph.input, *graph.initializer))
            for node in graph.node:
                taken.update((*node.input, *node.output, node.name))
                waiting.extend(a.g for a in node.attribute if a.HasField("g"))
        return taken


def modernise(model: onnx.ModelProto) -> Model:
    """Inline local functions, bring the opset up to 18, take initializers out of the inputs.

    Nodes are not changed beyond what a newer opset asks for; weights are never touched.

    Raises:
        ModelError: the converter or the shape inference of ONNX cannot take the model.
    """
    bare, weights = skeleton(model)
    leave_open(bare)
    try:
        if bare.functions:
            bare = inlined(bare)
        if _opset(bare) < OPSET:
            bare = upgraded(bare, OPSET)
        copy, reals = over_reals(bare, weights, array_of)
        kept = [name for name, view in reals.views.items() if view.again]
        known = with_shapes(copy, _opset(bare), kept)
    except (RuntimeError, ValueError, shape_inference.InferenceError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"the model cannot be brought to opset {OPSET}: {reason}") from error
    with G_LOGGER.suppress():  # it prints to standard output, where JSON may be wanted
        graph = gs.import_onnx(known)
    whole = _whole(model, bare, weights)
    if reals is PLAIN:  # else the copy's types are not the model's
        there = {value.name for value in whole.graph.value_info}
        whole.graph.value_info.extend(v for v in shapes_left_out(known) if v.name not in there)
    inputs = {value.name for value in whole.graph.input}
    graph.inputs = [x for x in graph.inputs if x.name in inputs]
    return Model(whole, graph, weights, reals)


def _opset(model: onnx.ModelProto) -> int:
    return opset_of(model) or 1


def _whole(
    model: onnx.ModelProto, bare: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]
) -> onnx.ModelProto:
    """The modern skeleton with weights, metadata and documentation back in their places."""
    whole = onnx.ModelProto(
        ir_version=max(bare.ir_version, _IR_VERSION),
        opset_import=bare.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        metadata_props=model.metadata_props,
        graph=bare.graph,
    )
    initializers = {*weights, *(t.name for t in bare.graph.initializer)}
    inputs = [value for value in whole.graph.input if value.name not in initializers]
    del whole.graph.input[:]
    whole.graph.input.extend(inputs)
    whole.graph.initializer.extend(weights.values())
    whole.graph.doc_string = model.graph.doc_string
    return whole
