"""Concurrency that the scripts of a migration need: work in threads, and work beside other work, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking `work` in a thread; a cancellation waits for its end, because a thread cannot be stopped half-way."""
    return await uninterrupted(asyncio.to_thread(work, *args, **kwargs))


async def uninterrupted(awaitable: Awaitable[T]) -> T:
    """Await to the end whatever happens; a cancellation meanwhile is raised afterwards."""
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        # Whoever cancels twice (a timeout inside a cancelled task) is no more able to stop it half-way.
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def together(main: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """Await all of them to the end; gives the result of `main`. The first error cancels the rest and is raised as it is.

    Where several fail at once, that of `main` is raised.
    """
    main_task = asyncio.create_task(main)
    tasks: set[asyncio.Task[Any]] = {main_task, *(asyncio.create_task(work) for work in others)}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in sorted(done, key=lambda task: task is not main_task):
            task.result()
        return main_task.result()
    finally:
        await _end(tasks)


async def beside(main: Coroutine[Any, Any, T], *background: Coroutine[Any, Any, None]) -> T:
    """Await `main` while the others run; gives its result, or raises the first error of any. All have ended when this returns.

    What `main` gave or raised counts, also where another one failed in the same moment: what it had heard would be lost.
    """
    main_task = asyncio.create_task(main)
    tasks: set[asyncio.Task[Any]] = {main_task, *(asyncio.create_task(work) for work in background)}
    try:
        running = set(tasks)
        while not main_task.done():
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in set() if main_task in done else done:
                task.result()
        return main_task.result()
    finally:
        await _end(tasks)


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
