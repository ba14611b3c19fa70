"""Waiting for what another thread or process does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 30.0


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; TimeoutError when it does not within half a minute."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)
