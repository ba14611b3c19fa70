"""What a person sees of a migration while it goes on: what has happened, line by line, and what is to be expected.

On a terminal the last lines are live: how far it is, what remains, what is written against what is sent, the stun to come and
the time that is left. Elsewhere (a file, a pipe) the same is a line, one a second at most; only what is a turn of the migration, a
phase, the first round or the end of pre-copy, is told at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pagefire.protocol.units import format_count, format_duration, format_size, format_throughput
from pagefire.source_host.outlook import Outlook, Watched
from pagefire.source_host.policy import Judge

Json = dict[str, Any]

PHASES = {
    "setup": "Setup: negotiating with the destination, installing write tracking",
    "device": "Switchover: the guest stands still",
    "postcopy-active": "The guest runs at the destination; its last pages follow",
}
#: Between two lines where nothing is live, and between two looks at a live one.
LINE_S, REFRESH_S = 1.0, 0.25


class MigrationView:
    """Shows the events of one migration as `take` gets them, within `shown`."""

    def __init__(self, console: Console, judge: Judge, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._watched = Watched(judge)
        self._now = now
        self._live: Live | None = None
        self._last_s = -LINE_S
        self._last_line = ""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while this lasts."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, transient=True, auto_refresh=False) as self._live:
            yield
        self._live = None

    def take(self, event: Json) -> None:
        """Show the next event."""
        outlook = self._watched.take(event)
        self._tell(event)
        now_s = self._now()
        if self._live is not None:
            # Nothing is drawn at the very beginning of a stun: the daemons need the CPUs.
            turns = event["event"] not in ("progress", "moving") and event.get("phase") != "device"
            if now_s - self._last_s >= REFRESH_S or turns:
                self._last_s = now_s
                self._live.update(live_lines(outlook), refresh=True)
        elif event["event"] in ("progress", "moving") and now_s - self._last_s >= LINE_S:
            self._say(f"  {line(outlook)}")

    def _tell(self, event: Json) -> None:
        """Print what has happened, where that is not told by the outlook alone."""
        match event["event"]:
            case "phase" if event["phase"] in PHASES:
                self._say(PHASES[event["phase"]])
            case "round":
                done = (
                    f"  round {event['round']}: {format_count(event['pages'])} pages "
                    f"({format_size(event['wire_bytes'])} on the wire) in {format_duration(event['duration_s'])}, "
                    f"{format_count(event['dirty_pages_after'])} pages left"
                )
                turn = event["stop"] or event["round"] == 1
                if self._live is not None or turn or self._now() - self._last_s >= LINE_S:
                    self._say(done)
                if self._live is not None or event["stop"]:
                    self._say(f"  {event['verdict']}", style="dim")
            case "resumed":
                self._say(f"  {format_count(event['remaining_pages'])} pages left to move")
            case "paused":
                self._say(
                    f"  post-copy is paused, {format_count(event['remaining_pages'])} pages are only at the source: "
                    f"{event['error']} Trying to reach the destination again."
                )
            case "recovered":
                self._say(f"  recovered: {format_count(event['remaining_pages'])} pages left to move")

    def _say(self, words: str, style: str = "") -> None:
        if words != self._last_line:
            self._console.print(Text(words), style=style or None, soft_wrap=True)
        self._last_line, self._last_s = words, self._now()


def line(outlook: Outlook) -> str:
    """Write an outlook as one line."""
    parts = [f"{_where(outlook)}: {outlook.done_share:.0%}", *_figures(outlook), *_rest(outlook)]
    return ", ".join(part for part in parts if part)


def live_lines(outlook: Outlook) -> Group:
    """Lay an outlook out for a terminal: how far it is, the figures, and what a person should know."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        f"  {_where(outlook)}", ProgressBar(1.0, outlook.done_share, width=40), f"{outlook.done_share:4.0%}",
        f"{format_duration(outlook.at_s)} so far", *_rest(outlook)[:1],
    )  # fmt: skip
    lines: list[RenderableType] = [bar, Text("  " + ", ".join(_figures(outlook)))]
    if outlook.words:
        lines.append(Text(f"  {outlook.words}", style="bold"))
    return Group(*lines)


def _where(outlook: Outlook) -> str:
    if outlook.phase == "active":
        return f"round {max(outlook.round, 1)}"
    return {"device": "switchover", "postcopy-active": "post-copy"}.get(outlook.phase, outlook.phase)


def _figures(outlook: Outlook) -> list[str]:
    figures = []
    if outlook.remaining_pages is not None:
        figures.append(f"{format_count(outlook.remaining_pages)} pages remaining")
    if outlook.written_Bps is not None:
        figures.append(f"{format_throughput(outlook.written_Bps)} written")
    if outlook.sent_Bps is not None:
        figures.append(f"{format_throughput(outlook.sent_Bps)} sent")
    if outlook.stun_s is not None:
        figures.append(f"stun about {format_duration(outlook.stun_s)}")
    return figures


def _rest(outlook: Outlook) -> list[str]:
    """Say how long it will take, or why that is not known; then what else a person should know."""
    time_left = (
        f"about {format_duration(_rough(outlook.eta_s))} to go" if outlook.eta_s is not None else "time left not known"
    )
    return [time_left, outlook.words]


def _rough(seconds: float) -> float:
    """Give a time to two digits: more would be pretended."""
    return float(f"{seconds:.2g}")
