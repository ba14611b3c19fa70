"""Both daemons go before all others from the resume to the last page, and no longer."""

from __future__ import annotations

import os

import psutil
import pytest

from pagefire.scripts.daemons import DaemonProcess
from tests.e2e.host_pair import HostPair, finish, guest_arguments, until
from tests.e2e.place import Place

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: only root may raise a thread"),
]


def main_thread_is_raised(daemon: DaemonProcess) -> bool:
    return os.sched_getscheduler(daemon.process.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO


def raised_threads(daemon: DaemonProcess) -> int:
    threads = psutil.Process(daemon.process.pid).threads()
    return sum(os.sched_getscheduler(one.id) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO for one in threads)


def test_the_daemons_are_raised_while_pages_are_missing(place: Place) -> None:
    with HostPair(guest_arguments(vcpus=1)) as pair:
        daemons = pair.source, pair.dest
        with pair.held_at("traced") as stands, pair.migrating("--mode", "postcopy") as migration:
            stands()
            assert [main_thread_is_raised(one) for one in daemons] == [False, False]
            with pair.held_at("resumed") as resumed:
                pair.release("traced")
                resumed()
                assert [main_thread_is_raised(one) for one in daemons] == [True, True]
            pair.release("resumed")
            assert finish(migration)[0] == 0
        until(lambda: not any(raised_threads(one) for one in daemons), "a thread keeps its priority")
    place.assert_nothing_left()
