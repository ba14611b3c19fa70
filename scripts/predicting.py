"""`pagefire predict` as seen by a person: ask the source daemon, show what it sees as it sees it, and lay out what follows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import format_count, format_duration, format_size, format_throughput
from pagefire.scripts.cancelling import Cancelling

Json = dict[str, Any]

_PHASES = {
    "setup": "Setup: negotiating with the destination, installing write tracking",
    "watching": "Watching what the guest writes",
    "sampling": "Sending a sample of its pages, to be thrown away",
}
#: More rounds than this are shown by their first and last ones.
_MOST_ROUNDS = 8


def run_predict(source_socket: Path, name: str, options: Json, watch_s: float, console: Console) -> Json:
    """Predict and give the prediction; Ctrl-C and SIGTERM cancel. Raises the error that ended it."""
    cancelling = Cancelling(source_socket, name, console)

    def show(event: Json) -> None:
        match event["event"]:
            case "phase":
                if event["phase"] == "setup" and cancelling.wanted:
                    cancelling.again()
                console.print(_PHASES[event["phase"]])
            case "looked":
                status.update(
                    f"  {format_duration(event['after_s'])} of {format_duration(event['of_s'])}: "
                    f"{format_count(event['pages'])} different pages"
                )
            case "sampled":
                console.print(
                    f"  {format_count(event['pages'])} pages ({format_size(event['wire_bytes'])} on the wire) "
                    f"in {format_duration(event['duration_s'])}"
                )

    with contextlib.ExitStack() as stack:
        stack.enter_context(cancelling.on_signal())
        status = stack.enter_context(console.status(""))
        told: Json = request(source_socket, "predict", show, name=name, watch_s=watch_s, **options)["prediction"]
    return told


def print_prediction(told: Json, console: Console) -> None:
    """Print a prediction as a table, and what it rests on beneath it."""
    console.print(f"{told['verdict']}.", style="bold", soft_wrap=True)
    table = Table(title=f"Guest {told['guest']} to {told['destination']}, {told['mode']}", title_justify="left")
    table.add_column("predicted", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("what it counts")
    rows = [
        ("total", _duration(told["total_s"]), "request to last page"),
        ("setup", _duration(told["setup_s"]), "negotiation and tracing, as measured"),
        ("pre-copy", _duration(told["precopy_s"]), _rounds_words(told["rounds"])),
    ]
    if told["outcome"] == "cancelled":
        rows[0] = ("total", _duration(told["total_s"]), "until it gives up")
    else:
        rows += [
            ("stun", _duration(told["stun_s"]), f"{format_count(told['stun_pages'])} pages go in it"),
            (
                "resident after",
                _duration(told["resident_after_s"]),
                f"{format_count(told['remaining_pages'])} pages follow",
            ),
        ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if told["stop_reason"]:
        console.print(f"{told['stop_reason']}.", soft_wrap=True)
    for line in _grounds(told):
        console.print(line, style="dim", soft_wrap=True)
    for caveat in told["caveats"]:
        console.print(f"Not known: {caveat}.", soft_wrap=True)


def _grounds(told: Json) -> list[str]:
    """Say what was measured."""
    first, again = told["first"], told["again"]
    lines = [
        f"Memory: {format_size(told['resident_pages'] * PAGE_BYTES)} with contents.",
        f"Path: {_speed_words(first)} for new pages"
        + (f", {_speed_words(again)} for rewritten ones" if again else "")
        + f"; a round takes {format_duration(told['empty_round_s'])} at least.",
    ]
    if told["dirty"]:
        seen = told["dirty"]
        shown = [seen[index] for index in sorted({0, len(seen) // 3, 2 * len(seen) // 3, len(seen) - 1})]
        curve = ", ".join(f"{format_count(one['pages'])} in {format_duration(one['after_s'])}" for one in shown)
        slower = f"; {told['slowdown']:.1f} times slower while a host sends" if told["slowdown"] > 1 else ""
        lines.append(f"Different pages written: {curve}{slower}.")
    return lines


def _speed_words(sample: Json) -> str:
    contents = sample["pages"] * PAGE_BYTES / max(sample["duration_s"], 1e-9)
    wire = sample["wire_bytes"] / max(sample["duration_s"], 1e-9)
    packed = f" ({format_throughput(wire)} on the wire)" if wire < 0.95 * contents else ""
    return f"{format_throughput(contents)}{packed}"


def _rounds_words(rounds: list[Json]) -> str:
    if not rounds:
        return "no rounds"
    shown = rounds if len(rounds) <= _MOST_ROUNDS else [*rounds[: _MOST_ROUNDS - 1], rounds[-1]]
    words = [f"{format_count(one['pages'])} in {format_duration(one['duration_s'])}" for one in shown]
    if len(shown) < len(rounds):
        words.insert(-1, "...")
    many = "1 round" if len(rounds) == 1 else f"{len(rounds)} rounds"
    return f"{many}: pages {', '.join(words)}"


def _duration(seconds: float | None) -> str:
    return format_duration(seconds) if seconds is not None else "-"
