"""What gpu_check.py has found, as a page and as a list of what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmark.report import NONE, Table, ratios

Row = dict[str, Any]
Results = dict[str, Any]

K80 = 0.1824
"""Seconds that the paper names for a map of VGG16, on one K80."""

FORWARDS = 3
"""Forward passes' worth of arithmetic that the rule itself needs for one target: the model's own,
W⁺x and its adjoint."""

R_AGREES, CONTRAST_AGREES = 1e-4, 5e-3
"""How near R and the signed contrast must come to PyTorch in float64. On a GPU sums are taken in
other orders than on a CPU, and the contrast of a VGG has four digits less than R."""

CONTESTANTS = {
    "explain": "explain",
    "graph": "CUDA graph",
    "half": "float16",
    "tf32": "TF32",
    "five": "five targets",
    "logits": "logits",
    "torch": "PyTorch forward",
    "zennit": "zennit",
    "layerwise": "layer by layer",
}


def part(results: Results, name: str) -> list[Row]:
    """The rows that tell of one thing."""
    return [row for row in results["rows"] if row.get("part") == name]


def faults(results: Results) -> list[str]:
    """What is not as it is promised."""
    if not part(results, "parity") and not part(results, "placement"):
        return [*_failures(results), "nothing was proven"]
    return [*_placement_faults(results), *_parity_faults(results), *_failures(results)]


def _placement_faults(results: Results) -> Iterator[str]:
    if results["settings"]["device"] != "cuda":
        return
    for row in part(results, "placement"):
        for kind in ("strays", "copies"):
            if row[kind]:
                some = ", ".join(row[f"some {kind}"])
                yield f"{row['model']}, {row['method']}: {row[kind]} {kind}, among them {some}"


def _parity_faults(results: Results) -> Iterator[str]:
    for row in part(results, "parity"):
        for key, most in (("relevance", R_AGREES), ("contrast", CONTRAST_AGREES)):
            if not row.get(key, 0.0) <= most:
                yield f"{row['model']}, {row['method']}: {key} is {row[key]:.0e} from float64"
    for row in part(results, "graph"):
        if not row["off"] <= R_AGREES:
            yield f"{row['model']}: a replayed run is {row['off']:.0e} from a plain one"


def _failures(results: Results) -> Iterator[str]:
    for row in results["rows"]:
        if "failed" in row:
            yield f"{row['model']}, {row['part']}: {row['failed']}"


def tables(results: Results) -> dict[str, Table]:
    """Those of the page, by what they tell of."""
    return {
        "placement": Table(
            ("network", "method", "nodes", "on the CPU", "strays", "copies"),
            [
                [r["model"], r["method"], *(str(r[k]) for k in _COUNTS)]
                for r in part(results, "placement")
            ],
        ),
        "parity": Table(
            ("network", "method", *_DISTANCES),
            [
                [r["model"], r["method"], *(_small(r.get(k)) for k in _DISTANCES.values())]
                for r in part(results, "parity")
            ],
        ),
        "precision": Table(
            ("network", "float16", "its logits", "TF32", "its logits"),
            [_precision(r) for r in part(results, "precision") if "half" in r],
        ),
        "speed": Table(
            ("network", "batch", "forward", *CONTESTANTS.values()),
            [_speed(r) for r in part(results, "speed") if "failed" not in r],
        ),
        "throughput": Table(
            ("model", "batch", "CUDA graph", "maps / s", "times the K80", "of the limit"),
            [_throughput(results, r) for r in part(results, "throughput") if "seconds" in r],
        ),
    }


_COUNTS = ("nodes", "on_cpu", "strays", "copies")

_DISTANCES = {
    "logits to CPU": "logits",
    "R to CPU": "relevance_cpu",
    "contrast to CPU": "contrast_cpu",
    "R to float64": "relevance",
    "contrast to float64": "contrast",
}


def _small(value: float | None) -> str:
    return NONE if value is None else f"{value:.0e}"


def _precision(row: Row) -> list[str]:
    cells = [row["model"]]
    for name in ("half", "tf32"):
        cells += [_small(row.get(name)), _small(row.get(f"{name} logits"))]
    return cells


def _speed(row: Row) -> list[str]:
    seconds = row["seconds"]
    cells = [
        f"{median(ratios(row, name)):.1f}" if name in seconds else NONE for name in CONTESTANTS
    ]
    return [row["model"], str(row["batch"]), f"{1000 * median(seconds['forward']):.3g} ms", *cells]


def _throughput(results: Results, row: Row) -> list[str]:
    rate = row["batch"] / median(row["seconds"])
    limit = limit_of(results)
    return [
        f"{row['model']}, {'float16' if row['kind'] == 'half' else 'float32'}",
        str(row["batch"]),
        "yes" if row["graph"] else "no",
        f"{rate:.1f}",
        f"{rate * K80:.1f}" if row["model"] == "vgg16" else NONE,
        NONE if limit is None else f"{100 * rate / limit:.0f} %",
    ]


def limit_of(results: Results) -> float | None:
    """Maps per second if the device did nothing but multiply in float32, as fast as it can."""
    rows = part(results, "rates")
    return rows[0]["matmul"] / (FORWARDS * rows[0]["forward"]) if rows else None


PAGE = """# CUDA, measured

Written by `tools/gpu_check.py` from one run of {spent:.0f} s; see there, and [CUDA](cuda.md).
{where}
{verdict}

## Where the nodes ran

By ONNX Runtime's own profile of one run. *On the CPU* counts all nodes there; what is more than
arithmetic on shapes among them is a stray. *Copies* are those that ONNX Runtime put in between
devices.

{placement}

## The same maps

‖a − b‖ / ‖b‖ of relevance R and of the signed contrast: this device against the CPU, and against
PyTorch in float64 on the modules (`tests/reference`), which takes the winners of max pools from the
device's run. R may be {r:.0e} off, the contrast {contrast:.0e}. Where two values in a window are as
good as equal, device and CPU may see different winners, and then their R differs by more. A map
from a replayed CUDA graph is {graph} from one without.

{parity}

## Times a forward pass

Everything on the device, TF32 off, pictures and maps copied to and from it in ONNX Runtime, in
PyTorch already there. The networks have random weights and explain one class by `{method}` at
{size} pixels. *float16* is `half=True`, and *TF32* the same explainer where TF32 is allowed.

{speed}

## Maps per second

The paper names {k80} s for a map of VGG16, on one K80.
{limit}

{throughput}

## Lower precision

How far the signed contrast is moved by a forward pass in float16 (`half=True`), and by TF32 where
it is allowed, from float32 without it.

{precision}
{skipped}"""


def page(results: Results) -> str:
    """The page."""
    settings = results["settings"]
    graphs = [row["off"] for row in part(results, "graph")]
    left = "".join(f"\n- {line}" for line in [*results["skipped"], *_told(results)])
    return PAGE.format(
        **{name: table.markdown() for name, table in tables(results).items()},
        spent=results["spent"],
        where=_where(results),
        verdict=_verdict(results),
        r=R_AGREES,
        contrast=CONTRAST_AGREES,
        graph=_small(max(graphs)) if graphs else "not compared",
        method=settings["method"],
        size=settings["size"],
        k80=K80,
        limit=_limit(results),
        skipped=f"\n## Not measured\n{left}\n" if left else "",
    )


def _told(results: Results) -> Iterator[str]:
    """What the device or float16 has no room for, and what others fail at: no fault of ours."""
    for row in part(results, "throughput"):
        if "shortage" in row:
            yield f"{row['model']}, throughput at batch {row['batch']}: {row['shortage']}"
    for row in part(results, "precision"):
        if "overflow" in row:
            yield f"{row['model']}, precision: {row['overflow']}"
    for row in {row["model"]: row for row in part(results, "speed")}.values():
        for name, told in row.get("agreement", {}).items():
            if "failed" in told:
                yield f"{row['model']}, {CONTESTANTS[name]}: fails ({told['failed']})"


def _where(results: Results) -> str:
    rows: Sequence[Row] = part(results, "rates")
    if not rows:
        return "The device was not named, since its rates were not measured."
    told = rows[0]
    return (
        f"Measured on {told['device']} with onnxruntime {told['onnxruntime']}, torch"
        f" {told['torch']}."
    )


def _verdict(results: Results) -> str:
    if results["settings"]["device"] != "cuda":
        return "\n**On the CPU this proves nothing but that the script runs to its end.**"
    found = faults(results)
    if not found:
        left = " What was measured is:" if results["skipped"] else ""
        return f"\n**All as promised.**{left}"
    return "\n**Not as promised:**\n" + "".join(f"\n- {fault}" for fault in found)


def _limit(results: Results) -> str:
    limit = limit_of(results)
    if limit is None:
        return ""
    told = part(results, "rates")[0]
    return (
        f"The rule needs {FORWARDS} forward passes of {told['forward'] / 1e9:.2f} billion"
        f" multiply-adds.\nThe device does {told['matmul'] / 1e12:.2f} · 10¹² of them a second in"
        f" PyTorch's float32 matrix product,\n{told['conv'] / 1e12:.2f} · 10¹² in a 3×3"
        " convolution (by an algorithm of cuDNN's choice, which may save some):\nat most"
        f" {limit:.0f} maps a second."
    )
