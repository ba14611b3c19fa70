"""The page: one file that needs nothing else, with everything in it; and each renderer takes every kind of figure."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.store import EXPERIMENT as EXPERIMENT_FILE
from pagefire.scripts.experiment.store import RESULTS
from pagefire.scripts.figures.compose import figures_of, in_order
from pagefire.scripts.figures.interactive import plotly_figure
from pagefire.scripts.figures.looks import LOOKS
from pagefire.scripts.figures.page import Chapter, Drawn, page_of
from pagefire.scripts.figures.picture import png_of
from pagefire.scripts.figures.report import write_report
from tests.support.results import made_results

EXPERIMENT, LINES = made_results()
FIGURES = figures_of(EXPERIMENT, in_order(EXPERIMENT, LINES))
DRAWN = [figure for figure in FIGURES if figure.panels]


def page(**changed: object) -> str:
    drawn = [Drawn(figure, b"png" if figure.panels else None) for figure in FIGURES]
    return page_of([Chapter({**EXPERIMENT, **changed}, LINES, drawn)], "/* plotly.js */")


def test_it_says_what_was_run_on_what_and_how_to_repeat_it() -> None:
    text = page()
    assert "Modes &lt;and&gt; rates" in text
    assert "Which &amp; when?" in text
    for words in (
        "memory 64MiB",
        "mode: precopy, hybrid x rate: 1k/s, 20k/s, 400k/s",
        "18 of 18: 15 completed, 3 cancelled",
        f"Linux {EXPERIMENT['host']['kernel']}",
        f"{EXPERIMENT['host']['cpus']} CPUs",
        "pagefire experiment run made.toml",
        "pagefire demo --mode precopy",
        "does &lt;not&gt; converge",
        "3 migrations that did not complete",
        "No run measured it.",
    ):
        assert words in text, words


def test_nothing_is_fetched() -> None:
    text = page()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert text.count('<div class="plot"') == text.count('<script type="application/json"') == len(DRAWN) == 6
    assert text.count("data:image/png;base64,") == len(DRAWN)


def test_what_is_embedded_cannot_end_its_script() -> None:
    for said in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page()):
        assert "<" not in said
        assert json.loads(said)["data"]


def test_what_was_left_out_is_told() -> None:
    assert "Left out: no &lt;root&gt;" in page(left_out="no <root>")


@pytest.mark.soak
@pytest.mark.parametrize("figure", DRAWN, ids=lambda figure: figure.name)
def test_plotly_knows_every_property(figure) -> None:  # type: ignore[no-untyped-def]
    graph_objects = pytest.importorskip(
        "plotly.graph_objects", reason="plotly is missing: pip install 'pagefire[report]'"
    )
    said = plotly_figure(figure)
    graph_objects.Figure(said)  # raises ValueError for what it does not know
    assert all(axis["title"]["text"] for name, axis in said["layout"].items() if re.match(r"[xy]axis", name))


@pytest.mark.parametrize("figure", DRAWN, ids=lambda figure: figure.name)
def test_every_figure_has_a_picture(figure) -> None:  # type: ignore[no-untyped-def]
    assert png_of(figure).startswith(b"\x89PNG")


def test_looks_differ_without_colour() -> None:
    for library in (0, 1):
        assert len({(one.dash[library], one.marker[library]) for one in LOOKS}) == len(LOOKS)
        assert len({one.hatch[library] for one in LOOKS}) == len(LOOKS)


def test_neighbours_differ_in_lightness() -> None:
    def lightness(color: str) -> float:
        red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    shades = [lightness(one.color) for one in LOOKS]
    assert all(abs(first - second) > 0.04 for first, second in pairwise(shades))


def write_results(folder: Path, name: str = "made") -> None:
    folder.mkdir(parents=True)
    one_figure = {**EXPERIMENT, "name": name, "figures": EXPERIMENT["figures"][:1]}
    (folder / EXPERIMENT_FILE).write_text(json.dumps(one_figure))
    (folder / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in LINES))


def test_a_folder_of_experiments_is_one_page(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is missing: pip install 'pagefire[report]'")
    write_results(tmp_path / "results" / "one", "one")
    write_results(tmp_path / "results" / "two", "two")
    written, pictures = write_report(tmp_path / "results", tmp_path / "page.html")
    text = written.read_text()
    assert '<h2 id="one">' in text
    assert '<a href="#two">' in text
    assert len(list(pictures.glob("*.png"))) == 2
    assert text.count('<div class="plot"') == 2


def test_a_folder_without_results(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is missing: pip install 'pagefire[report]'")
    with pytest.raises(UsageError, match="holds no results"):
        write_report(tmp_path)
