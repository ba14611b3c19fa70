"""How a guest fared after it came: watched for a while, checked by its workload, told to the source as the last message."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.guest_process import CheckReport, GuestProcess
from pagefire.guest_workload.linux.cpu_time import cpu_seconds
from pagefire.guest_workload.linux.memory_use import memory_use_bytes
from pagefire.protocol.errors import GuestError
from pagefire.protocol.messages import MAX_LATENCIES, Aftermath, Offer
from pagefire.protocol.transport.tasks import in_thread

_BUCKET_NS = 10_000_000


async def watch(guest: GuestProcess, offer: Offer, cpu_before_s: float) -> Aftermath:
    """Watch a guest that is whole for as long as the source asked, check it if it did; `cpu_before_s`: this daemon's at the start.

    The check pauses the guest, so nobody else may pause or migrate it meanwhile. Raises GuestError.
    """
    cpu_dest_s, cpu_guest_s = cpu_seconds() - cpu_before_s, cpu_seconds(guest.pid)
    (own_bytes, tables_bytes), (_, guest_tables_bytes) = memory_use_bytes(), memory_use_bytes(guest.pid)
    await asyncio.sleep(offer.settle_s)
    control = guest.control
    until_ns = time.monotonic_ns() // _BUCKET_NS * _BUCKET_NS
    since_ns = control.resumed_at_ns // _BUCKET_NS * _BUCKET_NS
    buckets = control.buckets(since_ns, until_ns)
    first_commits_ns, commits_here = control.first_commits_ns(), control.commits()
    latencies, every = _latencies(control, since_ns, until_ns, first_commits_ns.tolist())
    pause_s, found = 0.0, CheckReport("", -1, [], {})
    if offer.check:
        pause_s, commits_here, found = await _check(guest)
    return Aftermath(
        first_commits_ns=first_commits_ns.tolist(),
        buckets_since_ns=since_ns,
        buckets=buckets.tolist(),
        cpu_dest_s=cpu_dest_s,
        cpu_guest_s=cpu_guest_s,
        dest_own_bytes=own_bytes,
        dest_tables_bytes=tables_bytes,
        guest_tables_bytes=guest_tables_bytes,
        checked=offer.check,
        check_problems=list(found.problems),
        committed_in_memory=found.committed,
        commits_here=commits_here,
        check_pause_s=pause_s,
        check_names=list(found.counted),
        check_counts=list(found.counted.values()),
        latencies=latencies,
        latencies_every=every,
    )


def _latencies(control: ControlBlock, since_ns: int, until_ns: int, first_commits_ns: list[int]) -> tuple[bytes, int]:
    """Give the transactions that clients waited for as `Aftermath` tells of them, and of how many each time one."""
    times = [control.times_ns(vcpu, since_ns, until_ns) for vcpu in range(control.vcpus)]
    told = np.concatenate([
        one[one[:, 0] != first_ns] for one, first_ns in zip(times, first_commits_ns, strict=True)
    ])  # fmt: skip
    told = told[np.argsort(told[:, 0], kind="stable")]
    every = max(1, -(-len(told) // MAX_LATENCIES))
    told[:, 0] -= np.uint64(since_ns)
    micros = np.minimum(told[::every] // np.uint64(1000), np.uint64(0xFFFF_FFFF))
    return micros.astype("<u4").tobytes(), every


async def _check(guest: GuestProcess) -> tuple[float, int, CheckReport]:
    """Pause the guest and let its workload look for what should not be.

    Gives the pause in seconds, the commits that the vCPUs counted here, and what was found.
    """
    began = time.monotonic()
    guest.control.request_pause()
    try:
        # In slices: a guest that dies meanwhile never parks.
        while not await in_thread(guest.control.wait_parked, 0.1):
            if not guest.alive:
                raise GuestError(f"the guest process {guest.pid} ended while it was checked")
        commits_here = guest.control.commits()
        found = await in_thread(guest.check)
    finally:
        guest.control.resume()
    return time.monotonic() - began, commits_here, found
