"""All threads of the process before every ordinary one, and as they were afterwards: against the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.linux.priority_boost import MOST_BYTES, PriorityBoost

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: only root may raise a thread")


def policy() -> int:
    return os.sched_getscheduler(threading.get_native_id()) & ~os.SCHED_RESET_ON_FORK


def own_attributes() -> scheduling.Attributes:
    return scheduling.attributes_of(threading.get_native_id())


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    """One thread with a slice of its own."""
    with ThreadPoolExecutor(1, initializer=scheduling.set_slice, initargs=(scheduling.BULK_SLICE_NS,)) as pool:
        pool.submit(policy).result()
        yield pool


@needs_root
def test_every_thread_is_raised_and_is_then_what_it_was(worker: ThreadPoolExecutor) -> None:
    before = own_attributes(), worker.submit(own_attributes).result()
    boost = PriorityBoost()
    boost.begin(MOST_BYTES)
    try:
        assert (policy(), worker.submit(policy).result()) == (os.SCHED_FIFO, os.SCHED_FIFO)
    finally:
        boost.end()
    assert (own_attributes(), worker.submit(own_attributes).result()) == before
    assert before[1].slice_ns == scheduling.BULK_SLICE_NS


@needs_root
def test_it_lasts_until_nobody_wants_it() -> None:
    first, second = PriorityBoost(), PriorityBoost()
    try:
        for boost in (first, second, first):
            boost.begin(1)
        first.end()
        first.end()
        assert policy() == os.SCHED_FIFO
    finally:
        first.end()
        second.end()
    assert policy() == os.SCHED_OTHER


@needs_root
def test_what_begins_meanwhile_is_ordinary_and_what_changes_meanwhile_is_left_alone(worker: ThreadPoolExecutor) -> None:
    boost = PriorityBoost()
    boost.begin(1)
    try:
        with ThreadPoolExecutor(1) as late:
            assert late.submit(policy).result() == os.SCHED_OTHER
        worker.submit(scheduling.set_slice, scheduling.PROMPT_SLICE_NS).result()
    finally:
        boost.end()
    assert worker.submit(own_attributes).result().slice_ns == scheduling.PROMPT_SLICE_NS


@needs_root
def test_who_answers_goes_before_what_is_raised(worker: ThreadPoolExecutor) -> None:
    worker.submit(scheduling.set_prompt).result()
    answering = worker.submit(own_attributes).result()
    boost = PriorityBoost()
    boost.begin(1)
    try:
        assert worker.submit(own_attributes).result() == answering
        assert answering.priority > own_attributes().priority > 0
    finally:
        boost.end()
    assert worker.submit(own_attributes).result() == answering


def test_nothing_happens_where_much_is_left() -> None:
    boost = PriorityBoost()
    boost.begin(MOST_BYTES + 1)
    assert policy() == os.SCHED_OTHER
    boost.end()


@needs_root
def test_nothing_happens_where_it_is_not_allowed() -> None:
    script = (
        "import os; from pagefire.guest_workload.linux.priority_boost import PriorityBoost; os.setuid(65534);"
        "boost = PriorityBoost(); boost.begin(1); print(os.sched_getscheduler(0) == os.SCHED_OTHER); boost.end()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
