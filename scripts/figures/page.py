"""The page of a report: HTML in one piece, with plotly.js, every figure and every picture inside. Pure: words in, words out.

Nothing in it is fetched. Where scripts do not run, the pictures are there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pagefire.protocol.units import format_size
from pagefire.scripts.experiment.parameters import Value, label_of, words_of
from pagefire.scripts.figures.description import Figure, Row
from pagefire.scripts.figures.interactive import plotly_figure

Json = dict[str, Any]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 1.5rem auto 4rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.35rem; margin-top: 3rem; border-top: 2px solid #22384f; padding-top: .8rem; }
h3 { font-size: 1.1rem; margin: 2.2rem 0 .2rem; }
p.question { font-style: italic; } p.counts, p.note { color: #444; font-size: .9rem; margin: .1rem 0 .5rem; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0 1rem; }
th { white-space: nowrap; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #ccc; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code, pre { font: .85rem/1.4 ui-monospace, monospace; } pre { background: #f3f3f3; padding: .6rem .8rem; overflow-x: auto; }
img { max-width: 100%; } summary { cursor: pointer; color: #22384f; } .left-out { background: #e9e9e9; padding: .6rem .8rem; }
nav a { margin-right: 1rem; } .scroll { overflow-x: auto; }
@media print { details > summary { display: none; } }
"""
_DRAW = """
for (const said of document.querySelectorAll('script[type="application/json"]')) {
  const figure = JSON.parse(said.textContent);
  // Nothing is sent anywhere, and what selects points has nothing to select for.
  const left_out = ["sendChartToCloud", "select2d", "lasso2d"];
  const how = {responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtonsToRemove: left_out};
  Plotly.newPlot(said.dataset.plot, figure.data, figure.layout, how);
}
"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and its picture; None for one that has nothing to draw."""

    figure: Figure
    png: bytes | None


@dataclass(frozen=True, slots=True)
class Chapter:
    """One experiment of a report: what experiment.json says, its lines, its figures."""

    experiment: Json
    lines: Sequence[Json]
    drawn: Sequence[Drawn]


def page_of(chapters: Sequence[Chapter], plotly_js: str) -> str:
    """Write the page."""
    title = chapters[0].experiment["title"] if len(chapters) == 1 else f"{len(chapters)} experiments on live migration"
    contents = "".join(
        f'<a href="#{escape(one.experiment["name"])}">{escape(one.experiment["name"])}</a> ' for one in chapters
    )
    body = "".join(_chapter(one, heading=len(chapters) > 1) for one in chapters)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No icon is looked for: there is nobody to ask.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
        f"<script>{plotly_js}</script>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + (f"<nav>{contents}</nav>\n" if len(chapters) > 1 else "")
        + f"{body}<script>{_DRAW}</script>\n</body>\n</html>\n"
    )


def _chapter(chapter: Chapter, *, heading: bool) -> str:
    experiment = chapter.experiment
    parts = [
        f'<h2 id="{escape(experiment["name"])}">{escape(experiment["title"])}</h2>\n' if heading else "",
        f'<p class="question">{escape(experiment["question"])}</p>\n' if experiment["question"] else "",
        f'<p class="left-out">Left out: {escape(experiment["left_out"])}</p>\n' if experiment.get("left_out") else "",
        _what_was_run(chapter),
        _on_what(experiment["host"]),
        f"<p>To repeat it:</p>\n<pre>{escape(experiment['command'])}</pre>\n",
        *(_figure(one) for one in chapter.drawn),
        _migrations(chapter.lines),
        _problems(chapter.lines),
    ]
    return "".join(parts)


def _what_was_run(chapter: Chapter) -> str:
    scenario, lines = chapter.experiment["scenario"], chapter.lines
    rows = {
        "in all cases": label_of(scenario["fixed"]) if scenario["fixed"] else "",
        "swept": "; and then ".join(
            " x ".join(f"{name}: {', '.join(_listed(value) for value in values)}" for name, values in sweep.items())
            for sweep in scenario["sweeps"] if sweep
        ),
        "repetitions": str(scenario["repetitions"]),
        "seeds": ", ".join(str(seed) for seed in scenario["seeds"]),
        "warm-up": f"{scenario['warmup']} of each guest, {scenario['warmup_migrations']} migrations thrown away",
        "migrations": _progress(chapter.experiment["migrations"], lines)
        + (" (the short form: not for figures)" if scenario["quick"] else ""),
        "link": _links(lines),
        "when": f"{min(line['started_at'] for line in lines)} to {max(line['started_at'] for line in lines)}" if lines else "",
    }  # fmt: skip
    return "<h3>What was run</h3>\n" + _pairs(rows)


def _links(lines: Sequence[Json]) -> str:
    """Say who shaped the links, of those that were made."""
    links = [link for line in lines if line["report"] is not None and (link := line["report"].get("link")) is not None]
    shapers = dict.fromkeys(f"{link['shaper']} ({link['reason']})" for link in links)
    return f"shaped by {'; '.join(shapers)}; each measured before its migration" if links else ""


def _listed(value: Value) -> str:
    words = words_of(value)
    return f'"{words}"' if "," in words else words


def _progress(planned: int, lines: Sequence[Json]) -> str:
    outcomes: dict[str, int] = {}
    for line in lines:
        outcomes[line["outcome"]] = outcomes.get(line["outcome"], 0) + 1
    ended = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return f"{len(lines)} of {planned}" + (f": {ended}" if ended else "")


def _on_what(host: Json) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    rows = {
        "machine": f"{host['name']}, {host['cpus']} CPUs" + (f" ({host['cpu_model']})" if host["cpu_model"] else ""),
        "memory": format_size(host["memory_bytes"]),
        "kernel": f"Linux {host['kernel']} ({host['machine']})",
        "load before": f"{host['load']:.2f}",
        "versions": versions,
    }
    return "<h3>On what</h3>\n" + _pairs(rows)


def _pairs(rows: dict[str, str]) -> str:
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(words)}</td></tr>\n" for name, words in rows.items() if words
    )
    return f"<table>\n{cells}</table>\n"


def _figure(drawn: Drawn) -> str:
    figure = drawn.figure
    parts = [f"<h3>{escape(figure.title)}</h3>\n", f'<p class="counts">Counts {escape(figure.counts)}.</p>\n']
    if drawn.png is None:
        return "".join([*parts, '<p class="left-out">No run measured it.</p>\n'])
    picture = f"data:image/png;base64,{base64.b64encode(drawn.png).decode()}"
    alternative = escape(figure.title)
    # "<" ends a script wherever it stands in it; in JSON it may be written otherwise.
    said = json.dumps(plotly_figure(figure), separators=(",", ":")).replace("<", "\\u003c")
    parts += [
        f'<div class="plot" id="{figure.name}"></div>\n<script type="application/json" data-plot="{figure.name}">{said}</script>\n',
        f'<details><summary>as a picture</summary><img alt="{alternative}" src="{picture}"></details>\n',
        _rows(figure.rows),
    ]
    return "".join(parts)


def _rows(rows: Sequence[Row]) -> str:
    numbers = "".join(f'<th class="n">{name}</th>' for name in ("median", "least", "largest", "runs"))
    head = f"<tr><th>case</th>{numbers}</tr>\n"
    cells = "".join(
        f'<tr><td>{escape(row.case)}</td><td class="n">{row.median}</td><td class="n">{row.least}</td>'
        f'<td class="n">{row.largest}</td><td class="n">{_runs(row)}</td></tr>\n'
        for row in rows
    )
    return f'<details open><summary>figures</summary><table class="figures">\n{head}{cells}</table></details>\n'


def _runs(row: Row) -> str:
    return str(row.runs) if row.measured == row.runs else f"{row.measured} of {row.runs}"


def _migrations(lines: Sequence[Json]) -> str:
    """List every case with the command that repeats it alone."""
    cases: dict[str, list[Json]] = {}
    for line in lines:
        cases.setdefault(label_of(line["case"]), []).append(line)
    rows = "".join(
        f'<tr><td>{escape(label)}</td><td class="n">{len(here)}</td><td><code>{escape(here[0]["command"])}</code></td></tr>\n'
        for label, here in cases.items()
    )
    head = '<tr><th>case</th><th class="n">runs</th><th>one of them alone</th></tr>\n'
    return (
        "<details><summary>every case, and how to repeat it alone</summary>"
        f'<div class="scroll"><table>\n{head}{rows}</table></div></details>\n'
    )


def _problems(lines: Sequence[Json]) -> str:
    """Say of every migration that did not complete, why."""
    ended = [line for line in lines if line["error"] is not None]
    if not ended:
        return ""
    rows = "".join(
        f"<tr><td>{line['key']}</td><td>{line['outcome']}</td>"
        f"<td>{escape(line['error']['what'])}: {escape(line['error']['why'])}</td></tr>\n"
        for line in ended
    )
    return (
        f"<details><summary>{len(ended)} migrations that did not complete</summary><table>\n{rows}</table></details>\n"
    )
