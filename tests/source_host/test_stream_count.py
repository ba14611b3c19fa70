"""Which page connections are at work: turns, and what makes another one join or leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pagefire.protocol.pages import PageSet
from pagefire.source_host import stream_count
from pagefire.source_host.outstanding import Outstanding
from pagefire.source_host.stream_count import StreamCount

CONNECTIONS = 4


class Path:
    """A path that carries so many bytes a second by each connection at work, and no more than `most_bps` by all of them."""

    def __init__(self, each_bps: float, most_bps: float) -> None:
        self._each_bps, self._most_bps = each_bps, most_bps
        self._at_s, self._bytes = time.monotonic(), 0.0
        self.count = StreamCount(CONNECTIONS, automatic=True, carried_bytes=self.carried_bytes, changed=self._changed)
        self._at_work = self.count.at_work
        self.changes: list[int] = []

    def carried_bytes(self) -> int:
        now_s = time.monotonic()
        self._bytes += (now_s - self._at_s) * min(self._each_bps * self._at_work, self._most_bps)
        self._at_s = now_s
        return int(self._bytes)

    def _changed(self) -> None:
        self.carried_bytes()
        self._at_work = self.count.at_work
        self.changes.append(self._at_work)

    def send(self, seconds: float) -> None:
        """Take turns on every connection for so long."""
        until_s = time.monotonic() + seconds

        def chunks() -> Iterator[PageSet]:
            while time.monotonic() < until_s:
                time.sleep(0.001)
                yield PageSet.span(0, 1)

        def drive(index: int) -> None:
            for _ in self.count.turns(index, chunks()):
                pass

        self.count.begin()
        threads = [threading.Thread(target=drive, args=(index,)) for index in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_count, "WINDOW_S", 0.03)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("most_bps", "at_work", "tried"),
    [
        pytest.param(1e6, 1, [2, 1], id="one fills the path"),
        pytest.param(2e6, 2, [2, 3, 2], id="two fill it"),
        pytest.param(9e6, 4, [2, 3, 4, 4], id="all of them do not"),
    ],
)
def test_as_many_as_carry_more(most_bps: float, at_work: int, tried: list[int]) -> None:
    path = Path(1e6, most_bps)
    path.send(0.5)
    assert (path.count.at_work, path.changes) == (at_work, tried)
    # What was found holds for the rounds to come.
    path.send(0.2)
    assert (path.count.at_work, path.changes) == (at_work, tried)


def test_a_fixed_number_is_at_work_from_the_start() -> None:
    count = StreamCount(3, automatic=False, carried_bytes=lambda: 0, changed=lambda: pytest.fail("changed"))
    assert count.at_work == 3
    count.begin()
    pages = Outstanding(PageSet.span(0, 3 * 256), 3)
    taken = [list(count.turns(index, pages.chunks())) for index in range(3)]
    assert sum(chunk.pages for chunks in taken for chunk in chunks) == 3 * 256


def test_whoever_waits_for_a_turn_is_let_go_when_a_connection_has_failed() -> None:
    count = StreamCount(2, automatic=True, carried_bytes=lambda: 0, changed=lambda: None)
    count.begin()
    waiting = threading.Thread(target=lambda: list(count.turns(1, iter([PageSet.span(0, 1)]))))
    waiting.start()
    assert waiting.is_alive()
    count.end()
    waiting.join(10)
    assert not waiting.is_alive()
