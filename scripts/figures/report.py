"""`pagefire report DIR`: reads a results folder, or one that holds several, and writes its page and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.experiment.store import EXPERIMENT, RESULTS, read_experiment, read_lines
from pagefire.scripts.figures.compose import figures_of, in_order
from pagefire.scripts.figures.page import Chapter, Drawn, page_of
from pagefire.scripts.figures.picture import png_of

Json = dict[str, Any]

PAGE, PICTURES = "report.html", "pictures"


def write_report(folder: Path, page: Path | None = None) -> list[Path]:
    """Write the page and a PNG for each figure; gives the page and the pictures' folder. Raises UsageError, PagefireError."""
    plotly_js = _plotly_js()
    chapters = [_chapter(one) for one in experiments_in(folder)]
    page, pictures = page or folder / PAGE, folder / PICTURES
    try:
        pictures.mkdir(exist_ok=True)
        for chapter in chapters:
            for one in chapter.drawn:
                if one.png is not None:
                    (pictures / f"{one.figure.name}.png").write_bytes(one.png)
        page.write_text(page_of(chapters, plotly_js), encoding="utf-8")
    except OSError as error:
        raise PagefireError(
            f"the report could not be written to {page}", error.strerror or str(error), "change --page"
        ) from error
    return [page, pictures]


def experiments_in(folder: Path) -> list[Path]:
    """Give the folder itself, or those in it that hold an experiment, the earliest begun first; raises UsageError for none."""
    if (folder / EXPERIMENT).exists():
        return [folder]
    found = sorted(
        folder.glob(f"*/{EXPERIMENT}"), key=lambda path: (read_experiment(path.parent)["created_at"], path.parent.name)
    )
    if not found:
        raise UsageError(
            f"{folder} holds no results",
            f"there is no {EXPERIMENT} in it",
            "name a folder that `pagefire experiment run` wrote",
        )
    return [path.parent for path in found]


def _chapter(folder: Path) -> Chapter:
    experiment = read_experiment(folder)
    lines, _ = read_lines(folder / RESULTS)
    lines = in_order(experiment, lines)
    drawn = [Drawn(figure, png_of(figure) if figure.panels else None) for figure in figures_of(experiment, lines)]
    return Chapter(experiment, lines, drawn)


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise PagefireError(
            "the report's plots need plotly", f"{error.name} is missing", "pip install 'pagefire[report]'"
        ) from error
    script: str = get_plotlyjs()
    return script
