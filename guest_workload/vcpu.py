"""The vCPU: a native loop without the GIL, one thread each, that runs a workload's step and obeys the control block.

One turn: look at the run state; park if it says so; wait if paced and early; run one transaction; count it. What costs a turn its
40 to 60 ns is one reading of the clock and one call by address; there is no system call unless the vCPU sleeps.

Pacing: a vCPU keeps a due time that advances by its interval. When early it sleeps until due, but never less than 0.5 ms, and
then does all that has become due: above 2,000/s transactions come in batches. What is more than 10 ms late is dropped, not made up
for: a guest that was stunned does not run faster than its rate afterwards. A pause interrupts the sleep.

Throttle: a vCPU is told how much of every 4 ms it is to sleep. One that is not paced comes to owe that as time passes in which it
does not sleep, and sleeps it off between two transactions, never twice without one between; what it owes beyond a period is
forgotten, so that it does not pay for the time in which it waited for a CPU. A paced one gets a longer interval in proportion: else
it would make up for its sleep, and be slowed by nothing until that takes all of its idle time. No sleep lasts longer than a period
at once. The word that says until when all this holds lies beside the rate: a guest that is not throttled pays one load, of a line
that it has.

Clients: of a workload that serves them it notes when each transaction ended and how long its client waited for it. A client asks
when the transaction is due, where the guest is paced, else as soon as it has the answer to its last one; of one that asked while
the guest stood still only the time since it runs again is known here, and the report adds the rest.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from pagefire.guest_workload import control_block as block_layout
from pagefire.guest_workload.atomics import add_u32, load_u32, load_u64, store_u32, store_u64, swap_u64
from pagefire.guest_workload.control_block import BLOCK_BYTES, HEADER_BYTES, ControlBlock
from pagefire.guest_workload.layout import Layout
from pagefire.guest_workload.linux import scheduling
from pagefire.guest_workload.native import clock_ns, futex_wait, futex_wake_all
from pagefire.guest_workload.vcpu_errand import do_errand, is_claimed
from pagefire.guest_workload.workload import STEP_SIGNATURE, Bytes, Workload

VCPU_NICE = 10
TIMER_SLACK_NS = 1_000

_PAUSE, _RUN, _EXIT = (np.uint32(state) for state in block_layout.RunState)
_, _PARKED, _RUNNING, _FINISHED = (np.uint32(state) for state in block_layout.VcpuState)
_HEADER_BYTES, _BLOCK_BYTES = np.uint64(HEADER_BYTES), np.uint64(BLOCK_BYTES)
_VCPUS = np.uint64(block_layout.AT_VCPUS)
_RUN_STATE = np.uint64(block_layout.AT_RUN_STATE)
_PARKED_COUNT = np.uint64(block_layout.AT_PARKED)
_STARTED_COUNT = np.uint64(block_layout.AT_STARTED)
_DOORBELL = np.uint64(block_layout.AT_DOORBELL)
_STOP_AT = np.uint64(block_layout.AT_STOP_AT)
_INTERVAL = np.uint64(block_layout.AT_INTERVAL)
_STATE = np.uint64(block_layout.AT_STATE)
_COMMITS = np.uint64(block_layout.AT_COMMITS)
_LAST_COMMIT = np.uint64(block_layout.AT_LAST_COMMIT)
_FIRST_COMMIT = np.uint64(block_layout.AT_FIRST_COMMIT)
_NEWEST_BUCKET = np.uint64(block_layout.AT_NEWEST_BUCKET)
_THROTTLED_UNTIL = np.uint64(block_layout.AT_THROTTLED_UNTIL)
_THROTTLE = np.uint64(block_layout.AT_THROTTLE)
_SLEPT = np.uint64(block_layout.AT_SLEPT)
_PERIOD_NS = np.uint64(block_layout.THROTTLE_PERIOD_NS)
_TIMED, _TIMES = np.uint64(block_layout.AT_TIMED), np.uint64(block_layout.AT_TIMES)
_TIME_BYTES, _MOST_TIMES = np.uint64(block_layout.TIME_BYTES), np.uint64(block_layout.TIMES)
_ANY_COMMIT = np.uint64(block_layout.AT_ANY_COMMIT)
_ANY_COMMIT_NS = np.uint64(block_layout.ANY_COMMIT_NS)
_RING = np.uint64(block_layout.AT_RING)
_SLOT_BYTES = np.uint64(block_layout.SLOT_BYTES)
_SLOT_GAP = np.uint64(block_layout.AT_SLOT_GAP)
_SLOT_GUEST_GAP = np.uint64(block_layout.AT_SLOT_GUEST_GAP)
_RING_BUCKETS = np.uint64(block_layout.RING_BUCKETS)
_BUCKET_NS = np.uint64(block_layout.BUCKET_NS)

_0, _1, _8, _32 = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(32)
_LEAST_SLEEP_NS = np.uint64(500_000)
_BACKLOG_NS = np.uint64(10_000_000)
_LONGEST_GAP_NS = np.uint64(0xFFFF_FFFF)
_LONGEST_WAIT_NS = np.uint64(1 << 62)
_SECOND_NS = np.uint64(1_000_000_000)
_FOR_EVER = np.uint64(0)


@njit(types.boolean(types.uint64, types.uint64), nogil=True, cache=True)
def _must_park(header, transactions):  # type: ignore[no-untyped-def]
    """Ask whether a vCPU that has done so many transactions may not do another now."""
    stop_at: Any = load_u64(header + _STOP_AT)
    return load_u32(header + _RUN_STATE) != _RUN or (stop_at != _0 and transactions >= stop_at)


@njit(types.void(types.uint64, types.uint64), nogil=True, cache=True)
def _count_in(header, counter):  # type: ignore[no-untyped-def]
    """Count this vCPU in one of the header's counters; the last of all wakes who waits for them."""
    if np.uint64(add_u32(header + counter, np.uint32(1))) + _1 == np.uint64(load_u32(header + _VCPUS)):
        futex_wake_all(header + counter)


@njit(types.boolean(types.uint64, types.uint64, types.uint64, types.uint32), nogil=True, cache=True)
def _park(header, block, transactions, mine):  # type: ignore[no-untyped-def]
    """Stay parked until this vCPU may run (True) or must end (False)."""
    # The count is raised after the last store of the transaction, by a read-modify-write: whoever sees all vCPUs counted sees
    # all their stores.
    finished: Any = load_u32(header + _RUN_STATE) == _RUN
    store_u32(block + _STATE, _FINISHED if finished else _PARKED)
    _count_in(header, _PARKED_COUNT)
    while True:
        bell = load_u32(header + _DOORBELL)
        state = load_u32(header + _RUN_STATE)
        if state == _EXIT:
            return False
        if is_claimed(header, mine):
            do_errand(header, mine)
        if not _must_park(header, transactions):
            # Leaving must fail if a new pause was requested meanwhile: then this vCPU was never gone. One compare-and-swap over
            # both words decides it; with two separate steps a host could see "all parked" while this vCPU starts.
            both = load_u64(header + _RUN_STATE)
            leaving = both & _LONGEST_GAP_NS == np.uint64(_RUN)
            if leaving and swap_u64(header + _RUN_STATE, both, both - (_1 << _32)):
                store_u32(block + _STATE, _RUNNING)
                return True
            continue
        store_u32(block + _STATE, _FINISHED if state == _RUN else _PARKED)
        futex_wait(header + _DOORBELL, bell, _FOR_EVER)


@njit(types.void(types.uint64, types.uint64, types.uint64), nogil=True, cache=True)
def _open_bucket(block, newest, bucket):  # type: ignore[no-untyped-def]
    """Zero the ring from the bucket after `newest` up to `bucket`, then make that the newest."""
    first = newest + _1
    if newest == _0:
        first = bucket  # a fresh ring is all holes: zeroing it would allocate 512 KiB, in the guest's first transaction here
    elif bucket - newest > _RING_BUCKETS:
        first = bucket - _RING_BUCKETS + _1
    number = first
    while number <= bucket:
        slot = block + _RING + (number % _RING_BUCKETS) * _SLOT_BYTES
        store_u64(slot, _0)
        store_u64(slot + _8, _0)
        number += _1
    store_u64(block + _NEWEST_BUCKET, bucket)


@njit(types.void(types.uint64, types.uint64), nogil=True, cache=True)
def _note_gap(word, gap_ns):  # type: ignore[no-untyped-def]
    """Keep the longest gap of a bucket."""
    gap = np.uint32(min(gap_ns, _LONGEST_GAP_NS))
    if gap > load_u32(word):
        store_u32(word, gap)


@njit(types.uint64(types.uint64, types.uint64, types.uint32, types.uint64), nogil=True, cache=True)
def _sleep(header, transactions, mine, time_ns):  # type: ignore[no-untyped-def]
    """Sleep so long, or until the doorbell rings; not at all where there is something to do. Gives the time slept."""
    bell: Any = load_u32(header + _DOORBELL)
    # Looked at behind the bell: what is asked for from here on rings it.
    if _must_park(header, transactions) or is_claimed(header, mine):
        return _0
    began_ns = clock_ns()
    futex_wait(header + _DOORBELL, bell, time_ns)
    return clock_ns() - began_ns


@njit(types.void(types.uint64, types.uint64), nogil=True, cache=True)
def _note_sleep(block, slept_ns):  # type: ignore[no-untyped-def]
    """Count what was slept for the throttle."""
    store_u64(block + _SLEPT, load_u64(block + _SLEPT) + slept_ns)


@njit(types.void(types.uint64, types.uint64, types.uint64), nogil=True, cache=True)
def _note_time(block, ended_ns, took_ns):  # type: ignore[no-untyped-def]
    """Keep how long a client waited for the transaction that has ended."""
    timed = load_u64(block + _TIMED)
    slot = block + _TIMES + (timed % _MOST_TIMES) * _TIME_BYTES
    store_u64(slot, ended_ns)
    store_u64(slot + _8, took_ns)
    store_u64(block + _TIMED, timed + _1)


@njit(
    types.void(
        types.FunctionType(STEP_SIGNATURE), types.uint64, types.uint64, *STEP_SIGNATURE.args, types.boolean
    ),
    nogil=True,
    cache=True,
    error_model="numpy",
)  # fmt: skip
def run_vcpu(step, header, block, memory, registers, parameters, is_timed):  # type: ignore[no-untyped-def]
    """Run one vCPU until EXIT; begins parked. `header` and `block` are addresses in its control block.

    `is_timed`: note how long each transaction's client waited.
    """
    commits: Any = load_u64(block + _COMMITS)
    last_ns = load_u64(block + _LAST_COMMIT)
    newest = load_u64(block + _NEWEST_BUCKET)
    mine = np.uint32((block - header - _HEADER_BYTES) // _BLOCK_BYTES + _1)
    due_ns = _0
    owed_ns, awake_since_ns, has_run = _0, _0, False
    asked_ns = _0
    first_is_due = True
    must_park = True
    while True:
        if is_claimed(header, mine):
            do_errand(header, mine)
        if must_park or _must_park(header, registers[0]):
            if not _park(header, block, registers[0], mine):
                return
            must_park = False
            due_ns = _0
            owed_ns, awake_since_ns, has_run = _0, clock_ns(), False
            asked_ns = awake_since_ns
            first_is_due = True
        throttled_until_ns = load_u64(header + _THROTTLED_UNTIL)
        interval_ns = load_u64(header + _INTERVAL)
        if interval_ns != _0:
            now_ns = clock_ns()
            asleep_ns, longest_ns = _0, _LONGEST_WAIT_NS
            if now_ns < throttled_until_ns:
                asleep_ns, longest_ns = load_u64(block + _THROTTLE), _PERIOD_NS
                interval_ns += min(interval_ns, _SECOND_NS) * asleep_ns // (_PERIOD_NS - asleep_ns)
            if due_ns + _BACKLOG_NS < now_ns or due_ns > now_ns + interval_ns:
                due_ns = now_ns
            if now_ns < due_ns:
                slept_ns = _sleep(header, registers[0], mine, min(max(due_ns - now_ns, _LEAST_SLEEP_NS), longest_ns))
                if asleep_ns != _0:
                    _note_sleep(block, slept_ns * asleep_ns // _PERIOD_NS)
                continue
            asked_ns = due_ns
            due_ns += interval_ns
        elif last_ns < throttled_until_ns and has_run:
            # The clock of its last commit is good enough, and read already: what slows a throttled vCPU is its sleep alone.
            asleep_ns = load_u64(block + _THROTTLE)
            if last_ns > awake_since_ns:
                awake_ns = min(last_ns - awake_since_ns, _PERIOD_NS)
                owed_ns = min(owed_ns + awake_ns * asleep_ns // (_PERIOD_NS - asleep_ns), _PERIOD_NS)
                awake_since_ns = last_ns
            if asleep_ns != _0 and owed_ns >= asleep_ns:
                slept_ns = _sleep(header, registers[0], mine, owed_ns)
                _note_sleep(block, slept_ns)
                has_run = slept_ns < owed_ns  # it was woken early: the rest is still owed
                owed_ns -= min(slept_ns, owed_ns)
                awake_since_ns += slept_ns
                continue
        step(memory, registers, parameters)
        registers[0] += _1
        has_run = True
        now_ns = clock_ns()
        bucket = now_ns // _BUCKET_NS
        if bucket != newest:
            _open_bucket(block, newest, bucket)
            newest = bucket
        slot = block + _RING + (bucket % _RING_BUCKETS) * _SLOT_BYTES
        store_u32(slot, load_u32(slot) + np.uint32(1))
        if last_ns != _0:
            _note_gap(slot + _SLOT_GAP, now_ns - last_ns)
        any_ns = load_u64(header + _ANY_COMMIT)
        if now_ns > any_ns + _ANY_COMMIT_NS:
            # Exchanged, not stored: a vCPU that lost its CPU between clock and store would put the word back into the past.
            swap_u64(header + _ANY_COMMIT, any_ns, now_ns)
            if any_ns != _0:
                _note_gap(slot + _SLOT_GUEST_GAP, now_ns - any_ns)
        if is_timed:
            _note_time(block, now_ns, now_ns - asked_ns)
            asked_ns = now_ns
        last_ns = now_ns
        store_u64(block + _LAST_COMMIT, now_ns)
        if first_is_due:
            store_u64(block + _FIRST_COMMIT, now_ns)
            _count_in(header, _STARTED_COUNT)
            first_is_due = False
        commits += _1
        store_u64(block + _COMMITS, commits)


def start_vcpus(workload: Workload, memory: Bytes, layout: Layout, control: ControlBlock) -> list[threading.Thread]:
    """Start a thread for each vCPU, which parks at once; they are daemon threads that end on EXIT.

    `memory` and `control` must stay mapped until then. An exception in a step goes to threading.excepthook and ends that vCPU,
    which then never parks: the caller's hook must end the process.
    """
    threads = []
    for vcpu in range(layout.vcpus):
        partition = layout.partition(memory, vcpu)
        parameters = workload.parameters(layout, vcpu)
        threads.append(
            threading.Thread(
                target=_vcpu_thread,
                args=(workload, vcpu, control, partition, parameters),
                name=f"vcpu{vcpu}",
                daemon=True,
            )
        )
    for thread in threads:
        thread.start()
    return threads


def _vcpu_thread(
    workload: Workload,
    vcpu: int,
    control: ControlBlock,
    partition: npt.NDArray[np.uint64],
    parameters: npt.NDArray[np.int64],
) -> None:
    scheduling.set_name(f"vcpu{vcpu}")
    scheduling.set_timer_slack(TIMER_SLACK_NS)
    with contextlib.suppress(PermissionError):
        scheduling.set_nice(VCPU_NICE)
    header = np.uint64(control.address)
    block = np.uint64(control.address + HEADER_BYTES + vcpu * BLOCK_BYTES)
    kind = type(workload)
    run_vcpu(kind.step, header, block, partition, control.registers[vcpu], parameters, kind.serves_clients)
