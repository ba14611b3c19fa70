"""Work beside work, and work in threads: errors, cancellation, and that nothing is left running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from pagefire.protocol.errors import LinkLost
from pagefire.protocol.transport.tasks import beside, in_thread, together, uninterrupted


@pytest.fixture(autouse=True)
async def nothing_is_left_running() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


class Endless:
    """Work that runs until it is cancelled, and may then take its time or fail."""

    def __init__(self, last_words: BaseException | None = None) -> None:
        self.running = self.ended = False
        self._last_words = last_words

    async def __call__(self) -> None:
        self.running = True
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.ended = True
            if self._last_words is not None:
                raise self._last_words


async def give(value: int, turns: int = 3) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def fail(error: Exception, turns: int = 3) -> None:
    await give(0, turns)
    raise error


async def nothing() -> None:
    pass


# -- beside ------------------------------------------------------------------------------------------------------------


async def test_the_result_ends_the_others() -> None:
    others = [Endless(), Endless()]
    assert await beside(give(7), *(other() for other in others)) == 7
    assert all(other.running and other.ended for other in others)


async def test_alone() -> None:
    assert await beside(give(7)) == 7


async def test_others_may_end_first() -> None:
    other = Endless()
    assert await beside(give(7, turns=20), nothing(), other(), nothing()) == 7
    assert other.ended


async def test_the_first_error_of_the_others_ends_all() -> None:
    main, other = Endless(), Endless()
    with pytest.raises(LinkLost, match="first"):
        await beside(main(), other(), fail(LinkLost("first")), fail(LinkLost("second"), turns=20))
    assert main.ended
    assert other.ended


async def test_an_error_of_the_main_one_ends_the_others() -> None:
    async def main() -> int:
        await fail(LinkLost("main"))
        return 0

    other = Endless()
    with pytest.raises(LinkLost, match="main"):
        await beside(main(), other())
    assert other.ended


async def test_the_result_counts_even_if_the_others_die_badly() -> None:
    other = Endless(last_words=LinkLost("too late"))
    assert await beside(give(7), other()) == 7
    assert other.ended


async def test_a_cancellation_ends_all() -> None:
    main, other = Endless(), Endless()
    task = asyncio.create_task(beside(main(), other()))
    await give(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert main.ended
    assert other.ended


async def test_a_timeout_ends_all() -> None:
    main, other = Endless(), Endless()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await beside(main(), other())
    assert main.ended
    assert other.ended


# -- threads -----------------------------------------------------------------------------------------------------------


async def test_in_thread_gives_the_result() -> None:
    def work(x: int, *, y: int) -> tuple[int, int]:
        return threading.get_ident(), x + y

    there, added = await in_thread(work, 1, y=2)
    assert added == 3
    assert there != threading.get_ident()


async def test_in_thread_raises_the_error() -> None:
    def work() -> None:
        raise LinkLost("in a thread")

    with pytest.raises(LinkLost, match="in a thread"):
        await in_thread(work)


@pytest.mark.parametrize("cancellations", [1, 2, 5])
@pytest.mark.parametrize("error", [None, LinkLost("afterwards")])
async def test_a_cancellation_waits_for_the_thread(cancellations: int, error: Exception | None) -> None:
    """However often it comes: the thread writes into memory that the canceller frees next."""
    may_end, ended = threading.Event(), False

    def work() -> None:
        nonlocal ended
        may_end.wait(5)
        ended = True
        if error is not None:
            raise error

    task = asyncio.create_task(in_thread(work))
    await give(0)
    for _ in range(cancellations):
        task.cancel()
        await give(0, turns=10)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_uninterrupted_without_interruption() -> None:
    assert await uninterrupted(give(7)) == 7


async def test_uninterrupted_ends_with_its_work() -> None:
    """Work that cancels itself is a cancellation, not a reason to wait for ever."""

    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(uninterrupted(work()), 5)


async def test_where_several_fail_at_once_the_main_one_is_raised() -> None:
    async def fail(why: str) -> None:
        await asyncio.sleep(0)
        raise LookupError(why)

    for _ in range(20):
        with pytest.raises(LookupError, match="main"):
            await together(fail("main"), fail("other"), fail("another"))
