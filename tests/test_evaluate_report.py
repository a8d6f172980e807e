"""The report of an evaluation: its numbers, that it needs nothing else, and how it looks."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

pq = pytest.importorskip("pyarrow.parquet", reason="results are Parquet")
pytest.importorskip("jinja2", reason="the report is made with Jinja")

import pyarrow as pa
from test_evaluate import DIGITS, SCENES, Pictures, evaluated, index, objects_of, rows_of, scenes

from onnx_clrp import Explainer, UsageError
from onnx_clrp.canvas import scaled
from onnx_clrp.evaluate.dataset import Object, Sample
from onnx_clrp.evaluate.examples import Criterion, criterion_of, gallery
from onnx_clrp.evaluate.report import Axis, Line, number, probability, write_report
from onnx_clrp.evaluate.statistics import Estimate
from onnx_clrp.evaluate.summary import SHARES, Summary
from onnx_clrp.image import Preprocessing
from onnx_clrp.methods import METHODS
from onnx_clrp.render import overlay

EXPERIMENTS = ("pointing", "ablation", "discrimination", "deletion")
METHODS_SHOWN = ("random", "gradient", "lrp", "clrp2")
CAPTIONS = {
    "pointing": "The pointing game",
    "ablation": "Ablation of the peak",
    "discrimination": "Class discrimination",
    "deletion": "Deletion and insertion",
}


# -- a page, read ------------------------------------------------------------------------------


@dataclass
class Cell:
    """What a cell of a table says, and the exact numbers behind it."""

    text: str = ""
    values: list[float] = field(default_factory=list)
    best: bool = False


@dataclass
class Table:
    """A table: its caption, and its rows with their heads."""

    caption: str = ""
    rows: list[list[Cell]] = field(default_factory=list)

    def by_method(self) -> dict[str, list[Cell]]:
        """The cells behind the name of each method."""
        titles = {METHODS[name].title: name for name in METHODS}
        return {titles[row[0].text]: row[1:] for row in self.rows if row and row[0].text in titles}


VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """Tags, headings, tables and text of a page, whose tags have to be balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: list[Table] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        assert len(known) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, known))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self.tables.append(Table())
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("th", "td"):
            self.tables[-1].rows[-1].append(Cell(best=known.get("class") == "best"))
        if tag == "data" and "td" in self._open:
            self.tables[-1].rows[-1][-1].values.append(float(known["value"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.text += " " if tag in ("dt", "dd", "li", "p", "td", "th", "strong", "h4") else ""

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
            return
        self.text += data
        line = " ".join(data.split())
        inner = set(self._open)
        if self.headings and inner & {f"h{self.headings[-1][0]}"}:
            level, before = self.headings[-1]
            self.headings[-1] = (level, f"{before} {line}".strip())
        if "caption" in inner:
            self.tables[-1].caption += line
        elif inner & {"th", "td"} and line:
            cell = self.tables[-1].rows[-1][-1]
            cell.text = f"{cell.text} {line}".strip()

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all tags of a kind."""
        return [attrs for name, attrs in self.tags if name == tag]

    def table_of(self, caption: str) -> list[Table]:
        """The tables whose captions begin so."""
        return [table for table in self.tables if table.caption.startswith(caption)]

    def table(self, caption: str) -> Table:
        """The one whose caption begins so."""
        (found,) = self.table_of(caption)
        return found


def parts_of(estimate: Any) -> list[float]:
    """The numbers of an estimate that a page shows."""
    known = (estimate.mean, estimate.low, estimate.high, getattr(estimate, "p", None))
    return [value for value in known if value is not None]


# -- what is reported --------------------------------------------------------------------------


def measured(folder: Path, data: Pictures | None = None, **settings: Any) -> Path:
    """A folder of results with all experiments that the report explains."""
    usual = {"methods": METHODS_SHOWN, "experiments": EXPERIMENTS, "patches": [8, 9]}
    evaluated(folder, data, **{**usual, "steps": 5, "probability": "sigmoid", **settings})
    return folder


def reported(folder: Path, data: Pictures | None = None, **options: Any) -> Page:
    """The page of a folder, with examples."""
    with_examples = {"model": DIGITS, "dataset": data or scenes(), "device": "cpu", **options}
    return Page(write_report(Summary(folder), **with_examples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All experiments with four methods on the shipped scenes."""
    return measured(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """The report of that, with three examples of each end."""
    return reported(folder, out=folder / "three.html", examples=3)


# -- numbers -----------------------------------------------------------------------------------


def test_means_and_intervals_are_those_of_the_summary(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    for experiment, caption in CAPTIONS.items():
        rows = page.table(f"{caption}: means with 95 % intervals").by_method()
        measures = [m for m in summary.measures if m.experiment == experiment]
        assert [*rows] == summary.methods
        for method, cells in rows.items():
            for measure, cell in zip(measures, cells, strict=True):
                found = summary.mean(measure, method)
                assert found.mean is not None
                assert cell.values == parts_of(found)
                shown = cell.text.split()[0].replace("\u2212", "-")
                assert shown in [f"{found.mean:.{digits}f}" for digits in (2, 3, 4)]


def test_the_best_are_marked(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    for experiment, caption in CAPTIONS.items():
        rows = page.table(f"{caption}: means").by_method()
        measures = [m for m in summary.measures if m.experiment == experiment]
        for i, measure in enumerate(measures):
            means = {m: summary.mean(measure, m).mean for m in summary.methods}
            best = (max if measure.more_is_better else min)(means.values())
            marked = {method for method, cells in rows.items() if cells[i].best}
            assert marked == {method for method, mean in means.items() if mean == best}
            assert all(("(best)" in cells[i].text) == cells[i].best for cells in rows.values())


def test_differences_are_those_of_the_summary(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    caption = "Each mean less that of CLRP2; p after Holm\u2019s correction for 3 comparisons"
    tables = [table for table in page.tables if table.caption == caption]
    for experiment, table in zip(EXPERIMENTS, tables, strict=True):
        rows = table.by_method()
        assert [*rows] == ["random", "gradient", "lrp"]
        for i, measure in enumerate(m for m in summary.measures if m.experiment == experiment):
            compared = summary.compared(measure, "clrp2")
            for method, cells in rows.items():
                found = compared[method]
                assert cells[i].values == parts_of(found)
                assert found.mean is not None
                assert found.p is not None
                better = (found.mean > 0) == measure.more_is_better
                said = [word for word in ("better", "worse") if word in cells[i].text]
                assert said == ([("better" if better else "worse")] if found.p < 0.0499 else [])


def test_curves_are_those_of_the_summary(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    swept = {method: summary.sweep(method) for method in METHODS_SHOWN}
    head, *rows = page.table("The mean, and its 95 % interval, at each share p").rows
    assert [cell.text for cell in head] == ["p", "random", "gradient", "LRP", "CLRP2"]
    for i, (share, row) in enumerate(zip(SHARES, rows, strict=True)):
        assert row[0].text == f"{share:.2f}"
        for method, cell in zip(METHODS_SHOWN, row[1:], strict=True):
            assert cell.values == parts_of(swept[method][i])


def test_curves_are_drawn_where_their_numbers_are(folder: Path, page: Page) -> None:
    drawn = [attrs["points"] for attrs in page.of("polyline") if attrs["class"] == "curve"]
    assert len(drawn) == 2 * len(METHODS_SHOWN)
    curves = {method: Summary(folder).sweep(method) for method in METHODS_SHOWN}
    axis = Axis.over([e for curve in curves.values() for e in curve], steps=5)
    for points, method in zip(drawn, METHODS_SHOWN, strict=False):
        for point, share, estimate in zip(points.split(), SHARES, curves[method], strict=True):
            x, y = map(float, point.split(","))
            assert (x - 56) / 492 == pytest.approx(share, abs=1e-3)
            height = axis.low + (286 - y) / 270 * (axis.high - axis.low)
            assert height == pytest.approx(estimate.mean, abs=1e-3)


def test_likeness_is_that_of_the_summary_and_none_is_called_best(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    rows = page.table("Likeness of the maps of two classes").by_method()
    for method, cells in rows.items():
        found = summary.alike(method)
        for name, cell in zip(("cosine", "rank_correlation"), cells, strict=True):
            assert cell.values == parts_of(found[name])
            assert not cell.best


def test_counts_are_in_the_head_if_they_are_all_the_same(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    for experiment, caption in CAPTIONS.items():
        table = page.table(f"{caption}: means")
        measures = [m for m in summary.measures if m.experiment == experiment]
        for i, measure in enumerate(measures):
            found = {method: summary.mean(measure, method) for method in METHODS_SHOWN}
            said = {m: counted(e) for m, e in found.items()}
            even = len(set(said.values())) == 1
            assert even == (said["lrp"] in table.rows[0][i + 1].text)
            for method, cells in table.by_method().items():
                assert cells[i].text.endswith(said[method]) == (not even)


def counted(estimate: Estimate) -> str:
    """Of how many maps it is, in words."""
    of = f" of {estimate.count + estimate.missing}" if estimate.missing else ""
    return f"{estimate.count}{of} maps"


def test_the_page_says_what_it_is_of(page: Page) -> None:
    methods = "random · gradient · LRP · CLRP2"
    for words in ("digits.onnx on pictures", "6 of 6, 52 maps", "sigmoid", methods):
        assert words in page.text
    assert "There are only 6 pictures" in page.text
    assert "Every picture could be read." in page.text


def test_all_settings_are_there(folder: Path, page: Page) -> None:
    summary = Summary(folder)
    (table,) = (t for t in page.tables if t.rows[0][0].text == "onnx-clrp")
    rows = {row[0].text: row[1].text for row in table.rows}
    for name, value in summary.header["settings"].items():
        said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        assert rows[name.replace("_", " ")] == said
    assert rows["model, SHA-256"] == summary.header["model"]
    assert rows["data set, fingerprint"] == summary.header["dataset"]["fingerprint"]


def test_every_column_of_the_raw_results_is_explained(folder: Path, page: Page) -> None:
    rows = {row[0].text: row[1].text for table in page.tables for row in table.rows if len(row) > 1}
    for name in ("maps", "pairs", "failed"):
        for column in pq.read_table(folder / name).column_names:  # as the page says to read them
            assert rows[column]
    assert rows["drop_9"] == "what the score loses when a patch of 9 x 9 pixels is replaced"


def test_fewer_maps_can_be_averaged(folder: Path) -> None:
    text = Page(write_report(Summary(folder, largest=0.11, only_right=True))).text
    assert "Only objects whose boxes cover at most 11 %" in text
    assert "Only classes that the model gives its highest score" in text
    count = Summary(folder, largest=0.11, only_right=True).maps.num_rows
    assert f" {count} maps " in text


# -- a page by itself --------------------------------------------------------------------------


def alone(page: Page) -> None:
    """Refuse a page that fetches or runs anything, or that is not well made."""
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "audio")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "background"):
                assert re.match(r"#[\w-]+$|data:image/(png|jpeg);base64,[\w+/=]+$", value)
            assert "url(" not in value
            assert "javascript:" not in value.lower() or name == "alt"
    assert not re.search(r"@import|url\(|expression|https?:|//", page.style)
    assert all(attrs["alt"] for attrs in page.of("img"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        wanted = attrs.get("aria-labelledby", "").split()
        wanted += [attrs["href"][1:]] if attrs.get("href", "").startswith("#") else []
        assert set(wanted) <= set(ids)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(text for _, text in page.headings)


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    alone(page)
    assert page.path.stat().st_size < 5_000_000
    (policy,) = (a for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_pictures_of_curves_are_told_in_words(page: Page) -> None:
    drawings = [attrs for attrs in page.of("svg") if attrs.get("aria-hidden") != "true"]
    assert len(drawings) == 1 + len(METHODS_SHOWN)
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in drawings)
    assert "CLRP2: 1.000 at p = 0.1" in page.text or "CLRP2: 0." in page.text


def test_no_two_methods_are_drawn_alike() -> None:
    lines = [Line(name, place) for place, name in enumerate(METHODS)]
    assert len({(line.colour, line.marker) for line in lines}) == len(METHODS)


def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": DIGITS, "device": "cpu", "examples": 1}
    paths = [tmp_path / name for name in ("a.html", "b.html")]
    for path in paths:
        assert write_report(Summary(folder), path, dataset=scenes(), **options) == path
    assert paths[0].read_bytes() == paths[1].read_bytes()


HOSTILE = "<script>alert(1)</script>.png"


def hostile(root: Path) -> Pictures:
    """Pictures whose names and labels would like to be HTML."""
    made = Pictures()
    for (key, entry), name in zip(
        [*index().items()][:3], (HOSTILE, '"><img src=x onerror=b>.png', "c"), strict=True
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCENES / key, root / name)
        things = [Object(f"<b>{o.name}</b>&amp;", o.targets, o.boxes) for o in objects_of(entry)]
        made.append(Sample(name, root / name, tuple(things)))
    (root / "c").write_bytes(b"</td></table><script>")
    made.name = "</title><script>alert(2)</script>\udcff"  # as a name that is not UTF-8 comes
    made.notes = ["a <note>"]
    return made


def test_whatever_comes_from_outside_stays_text(tmp_path: Path) -> None:
    data, model = hostile(tmp_path / "pictures"), tmp_path / "<i>model<i>.onnx"
    shutil.copy(DIGITS, model)
    measured(tmp_path / "out", data, methods=["lrp"])
    labels = [f"</style><script>{i}" for i in range(10)]
    page = reported(tmp_path / "out", data, model=model, labels=labels, examples=9)
    alone(page)
    assert not {"script", "b", "i", "note"} & {tag for tag, _ in page.tags}
    for words in (
        *(HOSTILE, '"><img src=x onerror=b>.png', "<i>model<i>.onnx", "a <note>"),
        *("</title><script>alert(2)</script>?", "</style><script>2", "<b>2</b>&amp;"),
    ):
        assert words in page.text
    assert any("</style><script>" in attrs["alt"] for attrs in page.of("img"))
    failed = rows_of(tmp_path / "out", "failed")
    assert [row["image"] for row in failed] == ["c"]
    assert failed[0]["reason"] in page.text


# -- with less ---------------------------------------------------------------------------------


def test_without_the_model_there_are_no_examples_and_the_page_says_so(folder: Path) -> None:
    page = Page(write_report(Summary(folder)))
    assert page.of("img") == []
    assert "made from the results alone" in page.text
    alone(page)


def test_examples_may_be_left_out(folder: Path) -> None:
    page = reported(folder, examples=0)
    assert page.of("img") == []
    assert "No examples were asked for." in page.text


def test_one_method_is_compared_with_nothing(tmp_path: Path) -> None:
    page = reported(measured(tmp_path, methods=["lrp"]), examples=1)
    assert not [table for table in page.tables if table.caption.startswith("Each mean less")]
    assert not [cell for t in page.tables for row in t.rows for cell in row if cell.best]
    assert "second table" not in page.text
    alone(page)


def test_the_first_method_is_the_reference_where_clrp2_is_not_there(tmp_path: Path) -> None:
    page = Page(write_report(Summary(measured(tmp_path, methods=["lrp", "clrp1"]))))
    assert [*page.table_of("Each mean less that of LRP")[0].by_method()] == ["clrp1"]


def test_without_boxes_the_page_says_so(tmp_path: Path) -> None:
    bare = [
        Sample(s.key, s.path, tuple(Object(o.name, o.targets) for o in s.objects)) for s in scenes()
    ]
    data = Pictures(bare)
    page = reported(measured(tmp_path, data, methods=["lrp", "clrp2"]), data, examples=1)
    assert "No map has a value for the hits: the data set has no boxes" in page.text
    assert "No map has a value for the energy inside the boxes" in page.text
    assert "No map has a value to answer that." in page.text
    assert "The sweep of p" not in page.text
    assert "Chosen by the drop of the score by the largest patch" in page.text
    assert not [attrs for attrs in page.of("rect") if attrs["class"] == "here"]
    alone(page)


def changed(folder: Path, column: str, method: str) -> None:
    """Take the values of a column from one method."""
    for path in (folder / "maps").glob("*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            row[column] = None if row["method"] == method else row[column]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_a_method_without_values_has_a_dash(tmp_path: Path) -> None:
    measured(tmp_path, methods=["lrp", "clrp2"])
    for column in ("reach", "inside", "drop_9"):
        changed(tmp_path, column, "lrp")
    page = Page(write_report(Summary(tmp_path)))
    for experiment, place in (("pointing", 1), ("discrimination", 0), ("ablation", 2)):
        cells = page.table(f"{CAPTIONS[experiment]}: means").by_method()["lrp"]
        assert cells[place].text.startswith("\u2013 no value")
        assert cells[place].text.endswith("0 of 13 maps")
    paired = page.table_of("Each mean less that of CLRP2")
    assert "\u2013 no pair of values" in paired[0].by_method()["lrp"][1].text
    head, *_ = page.table("The mean, and its 95 % interval").rows
    assert [cell.text for cell in head] == ["p", "CLRP2"]
    alone(page)


def test_of_one_picture_there_is_no_interval(tmp_path: Path) -> None:
    data = Pictures(scenes()[:1])
    page = reported(measured(tmp_path, data, methods=["lrp", "clrp2"]), data, examples=1)
    cells = page.table("The pointing game: means").by_method()["lrp"]
    assert "no interval" in cells[0].text
    alone(page)


def test_nothing_to_choose_by_is_said(tmp_path: Path) -> None:
    measured(tmp_path, methods=["lrp"], experiments=["pointing"])
    changed(tmp_path, "inside", "lrp")
    page = reported(tmp_path)
    assert "No map has a value to choose by." in page.text


# -- examples ----------------------------------------------------------------------------------


def test_examples_are_the_ends_of_the_order(folder: Path, page: Page) -> None:
    values = {
        (row["image"], row["target"]): row["inside"] - (row["in_others"] or 0)
        for row in rows_of(folder)
        if row["method"] == "clrp2" and row["inside"] is not None
    }
    rising = sorted(values.values())
    shown = [a for a in page.of("data") if "class" not in a]
    found = [float(a["value"]) for a in shown[-6:]]
    assert found == pytest.approx([*rising[::-1][:3], *rising[:3]])


def test_ties_keep_the_order_of_the_data_set_and_nothing_is_shown_twice() -> None:
    def ends(*values: float, count: int) -> tuple[list[int], list[int]]:
        return Criterion("lrp", "inside", "", np.array(values)).ends(count)

    assert ends(1, 2, 2, 1, 2, count=2) == ([1, 2], [0, 3])
    assert ends(1, 1, 1, count=9) == ([0, 1], [2])
    assert ends(np.nan, 1, np.nan, 0, count=1) == ([1], [3])
    assert ends(np.nan, 5, count=3) == ([1], [])


def pictured(address: str) -> np.ndarray[Any, Any]:
    """The pixels of a `data:` address."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_examples_are_the_pictures_boxes_and_maps_that_were_judged(folder: Path) -> None:
    summary = Summary(folder)
    criterion = criterion_of(summary)
    assert criterion is not None
    found = gallery(summary, criterion, 2, onnx.load(DIGITS), scenes(), {}, device="cpu")
    rows = {(row["image"], row["target"], row["method"]): row for row in rows_of(folder)}
    for example in (*found.most, *found.least):
        key, target = example.row["image"], example.row["target"]
        entry = index()[key]
        assert example.label == str(target)
        assert example.size == (64, 64)
        boxes = dict(zip(entry["labels"], entry["boxes"], strict=True))
        x0, y0, x1, y1 = boxes.pop(target)
        assert example.boxes == [(x0, y0, x1 - x0, y1 - y0)]
        assert [*example.others] == [(a, b, c - a, d - b) for a, b, c, d in boxes.values()]
        picture = np.asarray(Image.open(SCENES / key).convert("RGB"))
        np.testing.assert_array_equal(pictured(example.picture), scaled(picture, 192, 288))
        assert [drawn.method for drawn in example.maps] == [*METHODS_SHOWN]
        for drawn in example.maps:
            explainer = Explainer(DIGITS, device="cpu", method=drawn.method)
            batch = (picture[None, None, :, :, 0] / 255).astype(np.float32)
            heatmap = explainer.explain(batch, [target]).heatmap()[0, 0]
            wanted = scaled(overlay(picture, heatmap), 192, 288)
            np.testing.assert_array_equal(pictured(drawn.picture), wanted)
            assert drawn.row == rows[key, target, drawn.method]


def test_captions_of_maps_say_what_was_found(folder: Path, page: Page) -> None:
    row = max(
        (r for r in rows_of(folder) if r["method"] == "clrp2" and r["inside"] is not None),
        key=lambda r: r["inside"] - (r["in_others"] or 0),
    )
    assert row["pointing"]
    assert f"CLRP2 hits, {100 * row['inside']:.0f} % inside" in page.text


def test_photographs_become_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    from onnx_clrp.evaluate.examples import _address

    address = _address(noise)
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < 150_000


def test_the_model_names_its_classes_unless_names_are_given(folder: Path) -> None:
    names = [f"the digit {i}" for i in range(10)]
    assert "the digit" in reported(folder, examples=1, labels=names).text
    with pytest.raises(UsageError, match="there are 9 labels, but 10 classes"):
        reported(folder, labels=names[:9])


# -- refusals ----------------------------------------------------------------------------------


def test_what_the_results_were_not_made_with_is_refused(folder: Path) -> None:
    other = onnx.load(DIGITS)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    with pytest.raises(UsageError, match="made with other model: give the same"):
        reported(folder, model=other)
    with pytest.raises(UsageError, match="made with other dataset: give the same"):
        reported(folder, Pictures(scenes()[:2]))
    with pytest.raises(UsageError, match="made with other options: give the same"):
        reported(folder, options={"preprocessing": Preprocessing.preset("unit", channels="grey")})


def test_half_of_what_examples_need_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="give both or none"):
        write_report(Summary(folder), model=DIGITS)
    with pytest.raises(UsageError, match="at least 0"):
        write_report(Summary(folder), examples=-1)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results"):
        write_report(Summary(tmp_path))


def test_without_jinja_the_cure_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"pip install 'onnx-clrp\[evaluate\]'"):
        write_report(Summary(folder))


# -- numbers as they are written ----------------------------------------------------------------


def estimates(*ends: tuple[float | None, float | None]) -> list[Estimate]:
    """Estimates with these intervals and no mean."""
    return [Estimate(None, low, high, 1, 0, 2) for low, high in ends]


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ([(0.1, 0.83)], ["0", "0.5", "1.0"]),
        ([(-0.12, 0.31)], ["\u22120.2", "0", "0.2", "0.4"]),
        ([(0.0, 0.0)], ["0", "1"]),
        ([(None, None)], ["0", "1"]),
        ([(-7.0, -2.0)], ["\u221210", "\u22125", "0"]),
        ([(0.0, 0.0003)], ["0", "0.0001", "0.0002", "0.0003"]),
    ],
)
def test_scales_are_round_and_hold_zero(
    ends: Sequence[tuple[float | None, float | None]], ticks: list[str]
) -> None:
    axis = Axis.over(estimates(*ends))
    assert [text for _, text in axis.ticks] == ticks
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high) == 1


def test_numbers_as_they_are_written() -> None:
    assert number(-0.0001, 3) == "0.000"
    assert number(-1.25, 1) == "\u22121.2"
    assert probability(0.00099) == "p < 0.001"
    assert probability(0.049995) == "p = 0.05"


# -- in a browser ------------------------------------------------------------------------------

PROBE = """<script>addEventListener("load", () => {
  const all = document.documentElement;
  const seen = {
    overflow: all.scrollWidth - all.clientWidth,
    tables: [...document.querySelectorAll("table")].filter(t => t.offsetWidth > 0).length,
    images: [...document.images].filter(i => i.naturalWidth > 0 && i.offsetWidth > 40).length,
    fetched: performance.getEntriesByType("resource").filter(r => !/^data:/.test(r.name)).length,
    sticky: getComputedStyle(document.querySelector(".measures th")).position,
  };
  parent.postMessage(Object.values(seen).join(" "), "*");
})</script></body>"""

FRAME = """<!DOCTYPE html><title>nothing</title><body>
<script>addEventListener("message", e => document.title = e.data)</script>
<iframe src="probed.html" style="width: {width}px; height: 900px; border: 0"></iframe>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium or Chrome."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium is installed to look at the page with")


def browse(browser: str, tmp_path: Path, *words: str) -> str:
    """Let the browser do something without a network; what it prints."""
    off = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")
    usual = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *off)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *usual, profile, "--no-first-run", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 400, 1200])
def test_a_browser_shows_it_without_a_network(
    page: Page, browser: str, tmp_path: Path, width: int
) -> None:
    text = page.path.read_text(encoding="utf-8")
    probed = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (tmp_path / "probed.html").write_text(probed.replace("</body>", PROBE), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    words = ("--window-size=1300,1000", "--virtual-time-budget=5000", "--dump-dom")
    dom = browse(browser, tmp_path, *words, frame.as_uri())
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    wanted = [0, len(page.tables), len(page.of("img")), 0, "sticky"]
    assert found[1].split() == [*map(str, wanted)]


@pytest.mark.slow
def test_a_browser_prints_it(page: Page, browser: str, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    words = (f"--print-to-pdf={out}", "--no-pdf-header-footer")
    browse(browser, tmp_path, *words, page.path.as_uri())
    assert out.read_bytes().startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", out.read_bytes())) <= 20
