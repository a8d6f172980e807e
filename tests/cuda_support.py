"""Where ONNX Runtime would run each node of a graph on a CUDA device, found out without one.

Its basic optimisation folds what is constant; then its CUDA provider takes the nodes that it has a
kernel for, and leaves arithmetic on shapes to the CPU. The first is done by ONNX Runtime itself;
the second follows its published list of kernels and its rule for nodes whose inputs are on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime
from onnx import TensorProto, defs, helper

_LETTERS = {
    "f": TensorProto.FLOAT,
    "d": TensorProto.DOUBLE,
    "h": TensorProto.FLOAT16,
    "l": TensorProto.INT64,
    "i": TensorProto.INT32,
    "b": TensorProto.BOOL,
}

_TABLE = """
Abs                13                    fdhli
Add                14                    fdhli
And                7                     b
ArgMax             13                    fdh
ArgMin             13                    fdh
AveragePool        11-18,19-21,22        fdh
BatchNormalization 15                    fdh
Cast               13-18,19-20,21-22,23  fdhlib
Ceil               13                    fdh
Clip               13                    fdhl    1,2
Concat             13                    fdhlib
ConstantOfShape    9                     l       0
Conv               11-21,22              fdh
ConvTranspose      11                    fdh
CumSum             14                    fdhli   1
DepthToSpace       13                    fdh
Div                14                    fdhli
Elu                6                     fdh
Equal              13                    fdhlib
Erf                13                    fdh
Exp                13                    fdh
Expand             13                    fdhlib  1
Flatten            13                    fdhlib
Floor              13                    fdh
Gather             13                    fdhlib
GatherElements     13                    fdhlib
GatherND           13                    fdhlb
Gelu               20                    fdh
Gemm               13                    fdh
GlobalAveragePool  1                     fdh
GlobalMaxPool      1                     fdh
Greater            13                    fdhli
GreaterOrEqual     16                    fdhli
HardSigmoid        6-21,22               fdh
HardSwish          14-21,22              fdh
Identity           14-18,19              fdhlib
InstanceNormalization 6                  fdh
IsInf              10-19,20              fd
IsNaN              13-19,20              fdh
LRN                13                    fdh
LayerNormalization 17                    fdh
LeakyRelu          16                    fdh
Less               13                    fdhli
LessOrEqual        16                    fdhli
Log                13                    fdh
LogSoftmax         13                    fdh
MatMul             13                    fdh
Max                13                    fdhli
MaxPool            12                    fdh
Min                13                    fdhli
Mod                13                    fdhli
Mul                14                    fdhli
Neg                13                    fdhli
NonZero            13                    fhlib
Not                1                     b
OneHot             11                    li      1,2
Or                 7                     b
PRelu              16                    fdh
Pad                18                    fdhb    1,2,3
Pow                15                    fdhli
Range              11                    fdli    0,1,2
Reciprocal         13                    fdh
ReduceMax          18                    fdhli   1
ReduceMean         18                    fdhi    1
ReduceMin          18                    fdhli   1
ReduceProd         18                    fdhi    1
ReduceSum          13                    fdhli   1
Relu               14                    fdh
Reshape            14-18,19-20,21-22,23  fdhlib  1
Resize             18,19                 fdhi    1,2,3
Round              11                    fdh
ScatterElements    18                    fdhlib
ScatterND          18                    fdhlib
Selu               6                     fdh
Shape              15-18,19-20,21-22,23  fdhlib
Sigmoid            13                    fdh
Sign               13                    fdhli
Size               13                    fdhlib
Slice              13                    fdhlib  1,2,3,4
Softmax            13                    fdh
Softplus           1                     fdh
SpaceToDepth       13                    fdh
Split              18                    fdhlib  1
Sqrt               13                    fdh
Squeeze            13-20,21-22,23        fdhlib  1
Sub                14                    fdhli
Sum                13                    fdh
Tanh               13                    fdh
Tile               13                    fdhli   1
TopK               11                    fdhli   1
Transpose          13-20,21-22,23        fdhlib
Trilu              14                    fdhlib  1
Unsqueeze          13-20,21-22,23        fdhlib  1
Where              16                    fdhli
Xor                7                     b
com.microsoft.FastGelu 1                 fdh
com.microsoft.Gelu 1                     fdh
"""
"""Facts from ONNX Runtime's list of kernels (docs/OperatorKernels.md, of the release that knows
opset 25), for opset 18 and later and the types that explainers calculate in: the versions of the
operator, the types of what it works on, and the inputs that its kernel reads from the CPU's memory.

A version that stands alone is that of the very definition: a newer one of the operator, even if it
only adds a type, has no kernel until the list says so. That is why Equal and Pad stay on the CPU
from opset 19 on.
"""

_CPU_OUTPUTS = frozenset({"Shape", "Size"})
"""Their results are in the CPU's memory."""

_WORKS_ON = {"Where": 1}
"""The input that has the type of a kernel, where it is not the first."""

_SMALL = 100
"""Initializers of no more elements do not keep a node on the device."""

_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})


@dataclass(frozen=True)
class Kernel:
    """What the table says of an operator."""

    versions: Sequence[tuple[int, int]]
    types: frozenset[int]
    from_cpu: frozenset[int]

    def takes(self, since: int, kind: int) -> bool:
        """Is there one for that version of the operator, and that type?"""
        return kind in self.types and any(a <= since <= b for a, b in self.versions)


def _kernels() -> dict[str, Kernel]:
    found = {}
    for line in _TABLE.strip().splitlines():
        op, versions, types, *inputs = line.split()
        ranges = [[int(n) for n in part.split("-")] for part in versions.split(",")]
        found[op] = Kernel(
            [(r[0], r[-1]) for r in ranges],
            frozenset(_LETTERS[letter] for letter in types),
            frozenset(int(n) for part in inputs for n in part.split(",")),
        )
    return found


KERNELS = _kernels()


@dataclass(frozen=True)
class Copy:
    """A tensor that is made on one side and read on the other."""

    tensor: str
    kind: int
    to_device: bool


@dataclass(frozen=True)
class Placement:
    """Where the nodes of a graph run.

    Attributes:
        graph: the graph, after ONNX Runtime's basic optimisation.
        without_kernel: why CUDA has no kernel for a node, by the node's name.
        on_cpu: the nodes that run on the CPU, those among them.
        copies: what has to be copied from side to side while the graph runs.
        kinds: the type of each tensor.
    """

    graph: onnx.GraphProto
    without_kernel: dict[str, str]
    on_cpu: list[onnx.NodeProto]
    copies: list[Copy]
    kinds: dict[str, int]

    @property
    def strays(self) -> list[str]:
        """What runs on the CPU and is more than arithmetic on shapes: integers from integers."""
        return [
            f"{node.name}: {self.without_kernel.get(node.name, 'behind one without a kernel')}"
            for node in self.on_cpu
            if not {self.kinds[x] for x in (*node.input, *node.output) if x} <= _INTEGERS
        ]


def placement(model: onnx.ModelProto) -> Placement:
    """Where a session with CUDA would run what is left of the model after basic optimisation."""
    optimised = folded(model)
    return _Partition(optimised).placement()


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after ONNX Runtime's basic optimisation, which comes before it places nodes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return typed(onnx.load(path))


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of its tensors; ONNX Runtime's own Gelu has that of any function."""
    like = onnx.ModelProto()
    like.CopyFrom(model)
    for node in like.graph.node:
        if named(node) in KERNELS and node.domain:
            node.op_type, node.domain = "Relu", ""
    del model.graph.value_info[:]
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(like).graph.value_info)
    return model


def named(node: onnx.NodeProto) -> str:
    """What the table calls the node's operator."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


class _Partition:
    """The division of a graph between CUDA and the CPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.weights = {t.name: t for t in self.graph.initializer}
        values = (*self.graph.input, *self.graph.value_info, *self.graph.output)
        self.kinds = {v.name: v.type.tensor_type.elem_type for v in values}
        self.kinds |= {name: t.data_type for name, t in self.weights.items()}
        self.inputs = {v.name for v in self.graph.input}
        for i, node in enumerate(self.graph.node):
            node.name = node.name or f"{node.op_type} {i}"
        reasons = {node.name: self._lacks(node) for node in self.graph.node}
        self.lacking = {name: why for name, why in reasons.items() if why}
        self.cpu = set(self.lacking) | self._preferred()

    def _lacks(self, node: onnx.NodeProto) -> str:
        """Why CUDA cannot take the node; empty if it can."""
        kernel, own = KERNELS.get(named(node)), node.domain in ("", "ai.onnx")
        since = defs.get_schema(node.op_type, self.opset).since_version if own else 1
        kind = self.kinds[node.input[_WORKS_ON.get(node.op_type, 0)]]
        if kernel is None or not kernel.takes(since, kind):
            return f"{node.op_type}-{since} of {TensorProto.DataType.Name(kind).lower()}"
        known = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "ConvTranspose":
            pads = known.get("pads", [])
            if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
                return f"{node.op_type} with uneven pads"
            if known.get("auto_pad", b"NOTSET").startswith(b"SAME"):
                return f"{node.op_type} with auto_pad"
        if known.get("select_last_index"):
            return f"{node.op_type} with select_last_index"
        return ""

    def _preferred(self) -> set[str]:
        """The nodes that are left to the CPU since all that they read is there already."""
        found: set[str] = set()
        there = {
            y
            for node in self.graph.node
            if node.name in self.lacking or node.op_type in _CPU_OUTPUTS
            for y in node.output
        }
        for node in self.graph.node:  # in the order in which they run
            reads_there = there.intersection(node.input)
            if node.name in self.lacking or not reads_there:
                continue
            from_cpu = KERNELS[named(node)].from_cpu
            if all(self._may_be_there(x, there, i in from_cpu) for i, x in enumerate(node.input)):
                found.add(node.name)
                there.update(node.output)
        return found

    def _may_be_there(self, x: str, there: set[str], read_there: bool) -> bool:
        if self.kinds.get(x) == TensorProto.FLOAT16:
            return False
        small = x in self.weights and prod(self.weights[x].dims) <= _SMALL
        return small or x in self.inputs or (x in there and not read_there)

    def placement(self) -> Placement:
        """The result."""
        on_cpu = [node for node in self.graph.node if node.name in self.cpu]
        return Placement(self.graph, self.lacking, on_cpu, [*self._copies()], self.kinds)

    def _copies(self) -> Iterator[Copy]:
        readers: dict[str, set[bool]] = {}
        for node in self.graph.node:
            kernel = KERNELS.get(named(node))
            for i, x in enumerate(node.input):
                on_cpu = node.name in self.cpu or (kernel is not None and i in kernel.from_cpu)
                readers.setdefault(x, set()).add(not on_cpu)
        for node in self.graph.node:
            on_device = node.name not in self.cpu and node.op_type not in _CPU_OUTPUTS
            for y in node.output:
                if (not on_device) in readers.get(y, ()):
                    yield Copy(y, self.kinds[y], to_device=not on_device)
        for x in self.inputs:
            if readers.get(x) == {True, False}:
                yield Copy(x, self.kinds[x], to_device=True)
