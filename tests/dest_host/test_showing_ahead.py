"""Showing ahead, on a real mapping: what is shown, what is left out, and that it ends when it is told to."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.ledger import Ledger
from pagefire.dest_host.publishing import Publisher
from pagefire.dest_host.showing_ahead import ShowingAhead
from pagefire.guest_workload.linux import memfd, userfaultfd
from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES, PageSet
from tests.conftest import MemoryMaker
from tests.support.kernel import need_userfaultfd
from tests.support.memory_user import MemoryUser

pytestmark = pytest.mark.kernel

GRANULES = 6
PAGES = GRANULES * GRANULE_PAGES


class Guest:
    """Memory that is full here, of which some pages are missing, and nothing is shown."""

    def __init__(self, user: MemoryUser, memory: memfd.Mapping, missing: PageSet) -> None:
        user.map(memory)
        memory.array[:] = 1
        self.uffd = user.open_uffd(userfaultfd.DEMAND_PAGING, keep=True)
        self.publisher = Publisher(self.uffd, user.address, memory.size_bytes)
        self.publisher.arm()
        self.ledger = Ledger(PAGES)
        self.ledger.mark_filled(PageSet.span(0, PAGES))
        self.intake = Intake(self.ledger, self.publisher, PAGES)
        self.ahead = ShowingAhead(self.ledger, self.intake, PAGES)
        self.intake.resume_begins(missing, lambda: None)
        self.errors: list[BaseException] = []


@pytest.fixture
def guest(user: MemoryUser, make_memory: MemoryMaker) -> Iterator[Guest]:
    need_userfaultfd(userfaultfd.DEMAND_PAGING)
    one = Guest(user, make_memory(PAGES), PageSet.of_runs([700, 1200], [720, 1201]))
    yield one
    one.ahead.stop()
    one.publisher.disarm()
    os.close(one.uffd)
    user.ask("close_uffd")


def test_granules_that_were_written_are_shown_but_for_what_is_missing(guest: Guest, user: MemoryUser) -> None:
    # A page; and a run from the end of one granule over the whole of the next to the beginning of a third.
    guest.ahead.note(PageSet.span(5, 6))
    guest.ahead.note(PageSet.span(4 * GRANULE_PAGES - 1, 5 * GRANULE_PAGES + 1))
    guest.ahead.begin(guest.errors.append)
    assert guest.ahead._thread is not None
    guest.ahead._thread.join(20)
    everywhere = PageSet.span(0, PAGES)
    # Granules 1 and 2 have missing pages: the guest wrote them last.
    assert guest.ledger.unpublished(everywhere) == PageSet.empty()
    missing = guest.ledger.named()
    seen = (everywhere - missing).page_numbers().tolist()
    assert user.load(seen[::37]) == [[1]] * len(seen[::37])
    assert userfaultfd.read_faults(guest.uffd).size == 0
    assert guest.errors == []


def test_what_was_not_written_is_left_to_faults(guest: Guest) -> None:
    guest.ahead.begin(guest.errors.append)
    assert guest.ahead._thread is not None
    guest.ahead._thread.join(20)
    shown = PageSet.span(0, PAGES) - guest.ledger.unpublished(PageSet.span(0, PAGES)) - guest.ledger.named()
    assert shown == PageSet.span(GRANULE_PAGES, 3 * GRANULE_PAGES) - guest.ledger.named()


def test_it_ends_when_it_is_told_to(guest: Guest) -> None:
    guest.ahead.note(PageSet.span(0, PAGES))
    guest.ahead.stop()
    guest.ahead.begin(guest.errors.append)
    guest.ahead.stop()
    assert guest.ledger.unpublished(PageSet.span(0, PAGES)).pages == PAGES - guest.ledger.named().pages


def test_an_error_is_told(guest: Guest, make_memory: MemoryMaker) -> None:
    guest.intake._publisher = Publisher(make_memory(1).fd, 0, PAGE_BYTES)
    guest.ahead.begin(guest.errors.append)
    assert guest.ahead._thread is not None
    guest.ahead._thread.join(20)
    assert [type(error) for error in guest.errors] == [OSError]
