"""The page in a browser: every plot is drawn, and the console has nothing to say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pagefire.scripts.experiment.store import EXPERIMENT, RESULTS
from pagefire.scripts.figures.report import write_report
from tests.support.chromium import need_chromium, open_page
from tests.support.results import made_results

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    need_chromium()
    pytest.importorskip("plotly", reason="plotly is missing: pip install 'pagefire[report]'")
    experiment, lines = made_results()
    (tmp_path / EXPERIMENT).write_text(json.dumps(experiment))
    (tmp_path / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def drawn_in(document: str) -> list[str]:
    """Give the plots in which something stands: lines, bars or cells, and axes with words."""
    parts = re.split(r'<div class="plot(?=[ "])', document)[1:]
    names = []
    for part in parts:
        name = re.search(r'id="([^"]+)"', part)
        marks = re.search(r'class="(?:trace|point|hm|heatmaplayer mlayer"><g)[^"]*"|<image', part)
        if name and "main-svg" in part and marks and "xtitle" in part and "ytitle" in part:
            names.append(name[1])
    return names


def test_every_plot_is_drawn_without_a_word(folder: Path) -> None:
    page, _ = write_report(folder)
    opened = open_page(page)
    assert opened.console == []
    plots = re.findall(r'<div class="plot[^"]*" id="([^"]+)"', opened.document)
    assert len(plots) == 6
    assert drawn_in(opened.document) == plots
    # No button sends anything to anybody.
    buttons = set(re.findall(r'data-title="([^"]+)"', opened.document))
    assert "Download plot as a PNG" in buttons
    assert not any("Share" in button for button in buttons)


@pytest.mark.soak
def test_a_page_that_breaks_is_told(folder: Path) -> None:
    """What the test above would see of an error, and of a plot that is not drawn."""
    page, _ = write_report(folder)
    page.write_text(page.read_text().replace("Plotly.newPlot(", "Plotly.noPlot("))
    opened = open_page(page)
    assert any("noPlot" in line for line in opened.console)
    assert drawn_in(opened.document) == []
