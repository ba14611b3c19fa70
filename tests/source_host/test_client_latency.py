"""What clients waited, put together from what both hosts know."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pagefire.protocol.client_report import Latencies
from pagefire.protocol.messages import Aftermath
from pagefire.protocol.report import Clock
from pagefire.source_host.client_latency import ClientsHere, Times, database
from pagefire.source_host.measurement import Instants

MS = 1_000_000
#: Request at 1 s, paused at 2 s, resumed at 2.01, whole at 2.05.
INSTANTS = Instants(1000 * MS, 1100 * MS, 2000 * MS, 2010 * MS, 2050 * MS)
SHARED = Clock(True, 0.0, 0.0)
NOBODY: list[Times] = [np.empty((0, 2), np.int64)]


def times(*ended_and_took_ms: tuple[float, float]) -> Times:
    return np.array([(ended * MS, took * MS) for ended, took in ended_and_took_ms], np.int64).reshape(-1, 2)


def aftermath(first_ms: list[float], *ended_and_took_ms: tuple[float, float], **others: Any) -> Aftermath:
    """Make one whose buckets begin at 2 s."""
    micros = np.array([((ended - 2000) * 1000, took * 1000) for ended, took in ended_and_took_ms], "<u4")
    blank = Aftermath(
        [round(one * MS) for one in first_ms], 2000 * MS, [], 0.0, 0.0, 0, 0, 0, False, [], -1, 0, 0.0, [], [],
        micros.tobytes(), 1,
    )  # fmt: skip
    return dataclasses.replace(blank, **others)


def test_a_guest_without_clients_has_no_database() -> None:
    assert database(ClientsHere(NOBODY, NOBODY, 0), aftermath([2012]), SHARED, INSTANTS) is None


def test_each_transaction_is_in_the_window_of_its_end() -> None:
    here = ClientsHere([times((500, 1), (999, 3))], [times((1500, 2), (2001, 4))], 0)
    found = database(here, aftermath([2012], (2040, 5), (2060, 6), (2070, 8)), SHARED, INSTANTS)
    assert found is not None
    assert found.before == Latencies(2, pytest.approx(0.002), pytest.approx(0.00298), 0.003)
    assert found.precopy == Latencies(1, 0.002, 0.002, 0.002)
    # The one that ended behind the pause request, the first one there, and the one during post-copy.
    assert found.through is not None
    assert (found.through.transactions, found.through.max) == (3, 0.011)
    assert found.after is not None
    assert (found.after.transactions, found.after.max) == (2, 0.008)
    assert [one.t_s for one in found.latencies] == pytest.approx([-0.5, -0.01, 0.5, 1.0, 1.01, 1.04, 1.06, 1.07])


def test_who_asks_at_once_waits_from_the_last_answer_on() -> None:
    here = ClientsHere([times()], [times((1999, 1))], 0)
    found = database(here, aftermath([2012]), SHARED, INSTANTS)
    assert found is not None
    assert found.waited == Latencies(1, 0.013, 0.013, 0.013)


@pytest.mark.parametrize(("interval_ms", "waited_s"), [(5, 0.009), (50, 0.0)])
def test_who_is_paced_waits_from_its_turn_on(interval_ms: int, waited_s: float) -> None:
    # Asked at 1998, answered at 1999: its next turn is at 2003, or long after the stun.
    here = ClientsHere([times()], [times((1999, 1))], interval_ms * MS)
    found = database(here, aftermath([2012]), SHARED, INSTANTS)
    assert found is not None
    assert found.waited is not None
    assert found.waited.max == pytest.approx(waited_s)


def test_a_client_that_was_answered_only_before_the_request_waits_too() -> None:
    here = ClientsHere([times((990, 1))], [times()], 0)
    found = database(here, aftermath([2012]), SHARED, INSTANTS)
    assert found is not None
    assert found.waited == Latencies(1, 1.022, 1.022, 1.022)


def test_a_vcpu_that_never_ran_here_or_there_is_left_out() -> None:
    here = ClientsHere([times()] * 3, [times((1999, 1)), times(), times((1999, 1))], 0)
    found = database(here, aftermath([2012, 2013, 0]), SHARED, INSTANTS)
    assert found is not None
    assert found.waited is not None
    assert found.waited.transactions == 1


def test_the_other_hosts_clock_is_corrected() -> None:
    here = ClientsHere([times()], [times((1999, 1))], 0)
    clock = Clock(False, 7.0, 0.001)
    there = aftermath([9012], (2060, 5), buckets_since_ns=9000 * MS)
    found = database(here, there, clock, INSTANTS)
    assert found is not None
    assert found.waited == Latencies(1, 0.013, 0.013, 0.013)
    assert found.latencies[-1].t_s == 1.06


def test_what_was_counted_is_told_and_a_broken_tail_does_no_harm() -> None:
    there = aftermath([], check_names=["orders", "odd"], check_counts=[7], latencies=b"\0" * 11, latencies_every=3)
    found = database(ClientsHere(NOBODY, NOBODY, 0), there, SHARED, INSTANTS)
    assert found is not None
    assert (found.counted, found.latencies_every) == ({"orders": 7}, 3)
    assert found.latencies[0].transactions == 1
