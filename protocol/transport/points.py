"""Named points in a migration's scripts where a test may hold them; free when nothing is held.

A point that is held stops the script there until it is released; `wait_for` tells when the script has come. So a fault can be made
at a known moment: at the point itself, or in what the script waits for there. The names are those of the calls in the scripts.
"""

from __future__ import annotations

import asyncio


class Points:
    """The held points of one daemon."""

    def __init__(self) -> None:
        self._held: dict[str, asyncio.Event] = {}
        self._arrived: dict[str, asyncio.Event] = {}

    def hold(self, name: str) -> None:
        """Stop whoever reaches this point from now on."""
        self._held[name] = asyncio.Event()
        self._arrived[name] = asyncio.Event()

    def release(self, name: str) -> None:
        """Let go whoever waits at the point, and hold nobody there any more."""
        held = self._held.pop(name, None)
        if held is not None:
            held.set()

    async def wait_for(self, name: str) -> None:
        """Wait until the script stands at a held point."""
        await self._arrived[name].wait()

    def reached_in_thread(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        """Do what `reached` does, in a thread beside the loop."""
        if name in self._held:
            asyncio.run_coroutine_threadsafe(self.reached(name), loop).result()

    async def reached(self, name: str) -> None:
        """Pass the point, or wait there while it is held."""
        held = self._held.get(name)
        if held is not None:
            self._arrived[name].set()
            await held.wait()
