"""What an evaluation has found so far: Parquet files, and the header that says what they hold."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnx_clrp.errors import UsageError
from onnx_clrp.evaluate.settings import Settings
from onnx_clrp.files import open_whole, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

_HEADER = "run.json"
_MEAN = "mean.npy"
_ARRAYS = "arrays"


class Store:
    """A folder of results, written a part at a time, each whole or not at all.

    A part holds some pictures in the order of the data set; its table of maps is written last, so
    that a part whose maps are there is done, and one that was broken off is done again.

    Args:
        folder: where; made if it is not there.
        header: what the results depend on. If the folder holds some already, they must be of the
            same.
        settings: which columns there are.

    Raises:
        UsageError: the folder holds the results of something else, or is no folder.
        ClrpError: it cannot be written.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], settings: Settings) -> None:
        self.folder = folder
        schemas = schemas_of(settings)
        self._schemas = schemas
        try:
            for name in schemas:
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
        before = _read_header(folder / _HEADER)
        begun = bool(self.done or self.stages) or (folder / _MEAN).exists()
        if before is None and begun:
            raise UsageError(f"{str(folder)!r} holds results, and no {_HEADER}: choose another")
        if before is not None and before != header and begun:
            other = [key for key in header if before.get(key) != header[key]]
            raise UsageError(
                f"{str(folder)!r} holds an evaluation with other {', '.join(other) or 'contents'}:"
                " choose another folder, or delete it"
            )
        if before != header:
            write_whole(folder / _HEADER, json.dumps(header, indent=2).encode())

    @property
    def done(self) -> set[int]:
        """The parts that are there."""
        return self._numbers("maps")

    @property
    def stages(self) -> set[int]:
        """The stages of a cascade that are there."""
        return self._numbers("cascade")

    def write(self, part: int, rows: Mapping[str, Sequence[Row]]) -> None:
        """Write the rows of a part, by the name of their table."""
        if arrays := rows.get("arrays"):
            stacked: dict[str, Any] = {k: np.stack([row[k] for row in arrays]) for k in arrays[0]}
            (self.folder / _ARRAYS).mkdir(exist_ok=True)
            with open_whole(self.folder / _ARRAYS / f"{part:06}.npz") as file:
                np.savez(file, **stacked)
        of_parts = [name for name in self._schemas if name != "cascade"]
        for name in sorted(of_parts, key=lambda name: name == "maps"):
            self._write(name, part, rows.get(name, ()))

    def write_stage(self, stage: int, rows: Sequence[Row]) -> None:
        """Write the rows of a stage of a cascade."""
        self._write("cascade", stage, rows)

    def _write(self, name: str, number: int, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(list(rows), schema=self._schemas[name])
        with open_whole(self.folder / name / f"{number:06}.parquet") as file:
            pq.write_table(table, file)

    def _numbers(self, name: str) -> set[int]:
        return {int(path.stem) for path in (self.folder / name).glob("*.parquet")}

    def mean(self) -> NDArray[np.float32] | None:
        """The mean input, if it is known already."""
        path = self.folder / _MEAN
        if not path.exists():
            return None
        known: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return known

    def keep_mean(self, mean: NDArray[np.float32]) -> None:
        """Write the mean input."""
        buffer = io.BytesIO()
        np.save(buffer, mean, allow_pickle=False)
        write_whole(self.folder / _MEAN, buffer.getvalue())


def read_table(folder: Path, name: str) -> pa.Table:
    """A table of results, in the order of the data set.

    Raises:
        UsageError: the folder holds none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((folder / name).glob("*.parquet"))
    if not paths:
        raise UsageError(f"{str(folder)!r} holds no results of an evaluation")
    return pa.concat_tables(pq.read_table(path) for path in paths)


def saved_maps(
    folder: Path, method: str, *, placed: bool = False
) -> Iterator[dict[str, NDArray[Any]]]:
    """The maps of a method that `--save-maps` kept, a part at a time, as Quantus takes them.

    Args:
        folder: of the evaluation.
        method: one of its methods.
        placed: leave out targets without boxes in the model's view, which metrics of localisation
            cannot judge.

    Yields:
        `x_batch` `[M, *input.shape[1:]]`, what the model was given; `y_batch` `[M]` int64, the
        explained classes; `a_batch` `[M, 1, H, W]` float32, the maps; `s_batch` `[M, 1, H, W]`
        bool, where the targets are.

    Raises:
        UsageError: no maps were kept there, or none of that method.
    """
    paths = sorted((folder / _ARRAYS).glob("*.npz"))
    if not paths:
        raise UsageError(f"{str(folder)!r} holds no maps: evaluate with --save-maps")
    for path in paths:
        with np.load(path, allow_pickle=False) as part:
            if f"a_batch_{method}" not in part:
                raise UsageError(f"{str(folder)!r} holds no maps of the method {method!r}")
            s_batch = part["s_batch"]
            kept = s_batch.any(axis=(1, 2, 3)) if placed else np.ones(len(s_batch), bool)
            if kept.any():
                yield {
                    "x_batch": part["x_batch"][kept],
                    "y_batch": part["y_batch"][kept],
                    "a_batch": part[f"a_batch_{method}"][kept],
                    "s_batch": s_batch[kept],
                }


def read_header(folder: Path) -> dict[str, Any]:
    """What the results of a folder depend on.

    Raises:
        UsageError: it holds none.
    """
    found = _read_header(folder / _HEADER)
    if found is None:
        raise UsageError(f"{str(folder)!r} holds no results of an evaluation")
    return found


def schemas_of(settings: Settings) -> dict[str, pa.Schema]:
    """The columns of every table."""
    import pyarrow as pa

    number, count, text = pa.float64(), pa.int32(), pa.string()
    maps = {
        "image": text,
        "object": text,
        "target": count,
        "method": text,
        "score": number,
        "probability": number,
        "rank": count,
        "area": number,
        "shown": number,
        "peak_row": count,
        "peak_column": count,
        "pointing": pa.bool_(),
        "reach": number,
        "inside": number,
        "in_others": number,
    }
    if settings.wants("ablation"):
        for side in settings.patches:
            maps |= {f"drop_{side}": number, f"probability_drop_{side}": number}
    if settings.wants("deletion"):
        maps |= {"deletion": number, "insertion": number}
    pairs = {
        "image": text,
        "target": count,
        "other_target": count,
        "method": text,
        "cosine": number,
        "rank_correlation": number,
    }
    failed = {"image": text, "reason": text}
    tables = {"maps": maps, "pairs": pairs, "failed": failed}
    if settings.wants("neurons"):
        tables["neurons"] = {
            "image": text,
            "method": text,
            "patch_of": count,
            "neuron": count,
            "channel": count,
            "activation": number,
            "drop": number,
        }
    if settings.wants("cascade"):
        tables["cascade"] = {
            "image": text,
            "target": count,
            "method": text,
            "stage": count,
            "layer": text,
            "rank_correlation": number,
            "magnitude_correlation": number,
        }
    return {name: pa.schema(list(columns.items())) for name, columns in tables.items()}


def _read_header(path: Path) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: choose another folder") from error
    return known
