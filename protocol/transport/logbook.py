"""A daemon's logbook: what happens, for whoever asked for events, and what its migrations came to, for whoever asks for figures."""

from __future__ import annotations

from typing import Any

from pagefire.protocol.totals import Totals
from pagefire.protocol.transport.event_lines import EventLines


class Logbook:
    """One a daemon. Without `lines` events go nowhere, and noting one costs a call."""

    def __init__(self, lines: EventLines | None = None) -> None:
        self.totals = Totals()
        self._lines = lines

    def note(self, side: str, guest: str | None, session: bytes, event: dict[str, Any]) -> None:
        """Note an event now: side is source, destination, or daemon for what concerns no migration; `session` may be empty."""
        if self._lines is not None:
            self._lines.note(side, guest, session.hex() or None, event)

    async def close(self) -> None:
        """Write what waits to be written."""
        if self._lines is not None:
            await self._lines.close()
