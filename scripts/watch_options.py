"""What a daemon tells to whoever watches it: the options of `pagefire source` and `pagefire dest` for that, all off by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pagefire.protocol.addresses import parse_address
from pagefire.protocol.errors import UsageError
from pagefire.protocol.transport.log_lines import FORMATS

_PANEL = "Watching"


@dataclass(frozen=True, slots=True)
class Watch:
    """What was asked for, parsed: where figures are served, and where events are written; None: nowhere."""

    metrics: tuple[str, int] | None = None
    events: str | None = None


@dataclass(frozen=True)
class WatchOptions:
    """The options as given."""

    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            help="HOST:PORT or PORT: serve /metrics for Prometheus and /healthz there. A PORT alone is one of loopback; 0 takes a "
            "free one.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    events: Annotated[
        str | None,
        typer.Option(
            "--events",
            help="Append what happens to this file, one JSON object a line, or - for standard output.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    log_format: Annotated[
        str, typer.Option("--log-format", help="Log to standard error as text or json.", rich_help_panel=_PANEL)
    ] = "text"

    def told(self) -> dict[str, Any]:
        """Give what `run_daemon` takes of them: the format of the log, and whether standard output is for the events."""
        return {"log_format": self.log_format, "quiet": self.events == "-"}

    def given(self) -> Watch:
        """Parse them; raises UsageError."""
        if self.log_format not in FORMATS:
            raise UsageError(f"--log-format {self.log_format} is unknown", f"known are {', '.join(FORMATS)}")
        metrics = self.metrics
        if metrics is None:
            return Watch(None, self.events)
        return Watch(parse_address(metrics if ":" in metrics else f":{metrics}"), self.events)
