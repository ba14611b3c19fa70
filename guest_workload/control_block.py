"""The control block: the one page of words through which a host steers its guest, and what the guest tells of itself.

A memfd of its own, mapped by the guest, by its host's daemon and by an observer; it outlives the daemon. Little-endian, fixed
offsets (below), versioned. Who writes what: the vCPUs write their own blocks, and by atomic operations `parked`, `started`,
`any_commit` and the last words of the errand; everything else is written by the one host that holds the guest.

`run_state` and `parked` are the two halves of one aligned 64-bit word, and a vCPU leaves its park by compare-and-swap on the
whole: (RUN, n) -> (RUN, n - 1). So a vCPU that is late in leaving a former park cannot start after a new pause request was made,
and once `all_parked` is true nothing runs until `resume`. Sleepers (parked, finished, paced) wait on `doorbell`, which is
incremented after every change they must look at: an event count, so no wake-up is lost.

A transaction is counted here when it is complete, once, on the host where it ran; register 0 counts for the guest's whole life.
"""

from __future__ import annotations

import enum
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from pagefire.guest_workload.linux import futex, memfd
from pagefire.protocol.errors import GuestError, UsageError
from pagefire.protocol.ownership import Owner

MAGIC = b"PAGEFIRE"
VERSION = 4
MAX_VCPUS = 256

# Header: one page; what is polled, what is written on a pause and what is read now and then lie in different cache lines.
HEADER_BYTES = 4096
AT_MAGIC = 0  # 8 bytes
AT_VERSION = 8  # u32
AT_VCPUS = 12  # u32
AT_RUN_STATE = 64  # u32, low half of the park word
AT_PARKED = 68  # u32, high half; a futex word that is woken when the last vCPU has parked
AT_DOORBELL = 72  # u32, a futex word
AT_CLAIMED = 76  # u32: who does the errand: nobody (0), one vCPU (its number + 1) or EVERY_VCPU
AT_STARTED = 80  # u32, vCPUs that have committed since the last resume; a futex word that is woken by the last of them
AT_OWNER = 128  # u32
AT_SESSION = 144  # 16 bytes
SESSION_BYTES = 16
AT_STOP_AT = 192  # u64 transactions per vCPU; 0: never
AT_INTERVAL = 200  # u64 ns between two transactions of a vCPU; 0: unpaced
AT_THROTTLED_UNTIL = 208  # u64 ns, until when vCPUs obey their throttles; 0: none does
AT_EPOCH = 216  # u64, how often the guest was resumed here
AT_RESUMED = 224  # u64 ns
AT_ANY_COMMIT = (
    256  # u64 ns, when some vCPU last committed, give or take ANY_COMMIT_NS; written by whichever finds it older
)

# The errand: a list of like system calls for vCPUs to make (see `errand.py`). Words that its workers change lie apart.
AT_ERRAND_FD = 320  # u32, in the guest process
AT_ERRAND_REQUEST = 328  # u64, of ioctl
AT_ERRAND_TABLE = 336  # u64, address of the packed arguments in the guest process
AT_ERRAND_STRIDE = 344  # u64 bytes from one argument to the next
AT_ERRAND_CALLS = 352  # u32
AT_ERRAND_NEXT = 384  # u32, the next call that nobody has taken
AT_ERRAND_DONE = 448  # u32, calls made; a futex word that is woken with the last
AT_ERRAND_ERROR = 452  # u32, error number of a call that failed; 0: none
AT_ERRAND_WORKERS = 456  # u32, vCPUs that are at it

# One block a vCPU.
AT_REGISTERS = 0  # 16 u64: two cache lines
AT_STATE = 128  # u32
AT_COMMITS = 136  # u64
AT_LAST_COMMIT = 144  # u64 ns
AT_FIRST_COMMIT = 152  # u64 ns
AT_NEWEST_BUCKET = 160  # u64, number of the newest bucket; the ring holds it and the RING_BUCKETS - 1 before it
AT_SLEPT = 168  # u64 ns that it has slept for its throttle on this host
AT_TIMED = 176  # u64, how many transactions it has timed on this host
AT_THROTTLE = 192  # u64 ns that it is to sleep of every THROTTLE_PERIOD_NS, less than that; 0: none
AT_RING = 4096  # RING_BUCKETS x SLOT_BYTES; what a bucket says of gaps (u32, saturating) is of those that ended in it
AT_SLOT_COMMITS = 0  # u32
AT_SLOT_GAP = 4  # u32 ns, the longest between two commits of this vCPU
AT_SLOT_GUEST_GAP = 8  # u32 ns, the longest without a commit of any vCPU that a commit of this one ended
SLOT_BYTES = 16
RING_BUCKETS = 32_768
BUCKET_NS = 10_000_000
#: The newest transactions whose clients waited, if the workload has clients: when each ended, and how long it took (2 u64, ns).
AT_TIMES = AT_RING + RING_BUCKETS * SLOT_BYTES
TIME_BYTES = 16
TIMES = 65_536
BLOCK_BYTES = AT_TIMES + TIMES * TIME_BYTES
#: No vCPU sleeps longer than this at once for its throttle.
THROTTLE_PERIOD_NS = 4_000_000
#: How much a guest gap may be told too long, and how short a one is not told at all: a word that every commit wrote would cost
#: the vCPUs more than their transactions.
ANY_COMMIT_NS = 100_000
EVERY_VCPU = 0xFFFF_FFFF

REGISTERS = 16
REGISTER_BYTES = REGISTERS * 8

UInt64s = npt.NDArray[np.uint64]


class RunState(enum.IntEnum):
    PAUSE = 0
    RUN = 1
    EXIT = 2


class VcpuState(enum.IntEnum):
    """FINISHED: reached stop_at; counted as parked, and stays so until stop_at is raised."""

    STARTING = 0
    PARKED = 1
    RUNNING = 2
    FINISHED = 3


def now_ns() -> int:
    """Read the guest's clock, CLOCK_MONOTONIC: the vCPUs stamp their commits with it."""
    return time.monotonic_ns()


class ControlBlock:
    """A mapped control block. Owns its descriptor and mapping until `close`; arrays it gave are views and die with it."""

    def __init__(self, mapping: memfd.Mapping, vcpus: int) -> None:
        """Wrap a mapping that is known to hold a block for `vcpus`; use `create` or `attach`."""
        self._mapping = mapping
        self.vcpus = vcpus
        header = mapping.array[:HEADER_BYTES]
        self._u32 = header.view("<u4")
        self._u64 = header.view("<u8")
        self._bytes = header
        #: u64 [vcpus, 16]; the vCPUs' own while they run, anybody's to read and the host's to write while all are parked.
        self.registers: UInt64s = self._column(AT_REGISTERS, "<u8", REGISTERS)
        self._states = self._column(AT_STATE, "<u4")
        self._commits = self._column(AT_COMMITS, "<u8")
        self._last_commits = self._column(AT_LAST_COMMIT, "<u8")
        self._first_commits = self._column(AT_FIRST_COMMIT, "<u8")
        self._newest_buckets = self._column(AT_NEWEST_BUCKET, "<u8")
        self._slept = self._column(AT_SLEPT, "<u8")
        self._throttles = self._column(AT_THROTTLE, "<u8")
        self._ring = self._column(AT_RING, "<u4", RING_BUCKETS * SLOT_BYTES // 4)
        self._timed = self._column(AT_TIMED, "<u8")
        self._times = self._column(AT_TIMES, "<u8", TIMES * TIME_BYTES // 8)

    def _column(self, offset: int, kind: str, width: int = 1) -> npt.NDArray[Any]:
        """View the same field of every vCPU's block: [vcpus] or [vcpus, width]."""
        word = np.dtype(kind).itemsize
        view: npt.NDArray[Any] = np.ndarray(
            (self.vcpus, width), kind, self._mapping.array, HEADER_BYTES + offset, (BLOCK_BYTES, word)
        )
        return view[:, 0] if width == 1 else view

    @classmethod
    def create(cls, vcpus: int) -> ControlBlock:
        """Make a block with every vCPU STARTING and the guest paused, owned by nobody. Raises UsageError, OSError."""
        if not 1 <= vcpus <= MAX_VCPUS:
            raise UsageError(f"a guest cannot have {vcpus} vCPUs", f"1 to {MAX_VCPUS} are possible", "change --vcpus")
        size_bytes = HEADER_BYTES + vcpus * BLOCK_BYTES
        mapping = memfd.Mapping(memfd.create("pagefire-control", size_bytes))
        mapping.array[AT_MAGIC : AT_MAGIC + 8] = np.frombuffer(MAGIC, np.uint8)
        words = mapping.array[:HEADER_BYTES].view("<u4")
        words[AT_VERSION // 4], words[AT_VCPUS // 4] = VERSION, vcpus
        return cls(mapping, vcpus)

    @classmethod
    def attach(cls, fd: int, writable: bool = True) -> ControlBlock:
        """Map the block behind `fd`, which belongs to it from now on. GuestError (`fd` is closed then) if it is no such block."""
        size_bytes = os.fstat(fd).st_size
        if size_bytes < HEADER_BYTES + BLOCK_BYTES:
            os.close(fd)
            raise GuestError("the guest's control block cannot be used", "it is too short")
        mapping = memfd.Mapping(fd, writable=writable)
        words = mapping.array[:HEADER_BYTES].view("<u4")
        version, vcpus = int(words[AT_VERSION // 4]), int(words[AT_VCPUS // 4])
        why = ""
        if mapping.array[AT_MAGIC : AT_MAGIC + 8].tobytes() != MAGIC:
            why = "it does not begin with its magic bytes"
        elif version != VERSION:
            why = f"it has version {version}, this pagefire speaks {VERSION}"
        elif not 1 <= vcpus <= MAX_VCPUS or mapping.size_bytes != HEADER_BYTES + vcpus * BLOCK_BYTES:
            why = f"{mapping.size_bytes} bytes do not hold {vcpus} vCPUs"
        if why:
            mapping.close()
            raise GuestError("the guest's control block cannot be used", why)
        return cls(mapping, vcpus)

    @property
    def fd(self) -> int:
        return self._mapping.fd

    @property
    def address(self) -> int:
        """Where the header lies in this process."""
        return self._mapping.address

    @property
    def header(self) -> npt.NDArray[np.uint8]:
        """View the header's bytes."""
        return self._bytes

    def close(self) -> None:
        """Unmap and close; no array that came from here may be used afterwards."""
        self._mapping.close()

    # --- one writer: the host that holds the guest

    def ring_doorbell(self) -> None:
        """Make every sleeping vCPU look again. The increment comes after the change, the wake after the increment."""
        self._u32[AT_DOORBELL // 4] = (int(self._u32[AT_DOORBELL // 4]) + 1) & 0xFFFF_FFFF
        futex.wake(self._mapping.address + AT_DOORBELL)

    @property
    def run_state(self) -> RunState:
        return RunState(int(self._u32[AT_RUN_STATE // 4]))

    @property
    def owner(self) -> Owner:
        return Owner(int(self._u32[AT_OWNER // 4]))

    @owner.setter
    def owner(self, owner: Owner) -> None:
        self._u32[AT_OWNER // 4] = owner

    @property
    def session(self) -> bytes:
        """Which migration session the owner word is about: 16 bytes, zeros where there was none.

        Written before the word; at the destination before READY, from which on the guest may be handed over.
        """
        return self._bytes[AT_SESSION : AT_SESSION + SESSION_BYTES].tobytes()

    @session.setter
    def session(self, session: bytes) -> None:
        self._bytes[AT_SESSION : AT_SESSION + SESSION_BYTES] = np.frombuffer(session, np.uint8, SESSION_BYTES)

    @property
    def stop_at(self) -> int:
        """At how many transactions since birth a vCPU finishes; 0: never."""
        return int(self._u64[AT_STOP_AT // 8])

    @stop_at.setter
    def stop_at(self, transactions: int) -> None:
        self._u64[AT_STOP_AT // 8] = transactions
        self.ring_doorbell()

    @property
    def interval_ns(self) -> int:
        """Nanoseconds from one transaction of a vCPU to its next; 0: as fast as it can."""
        return int(self._u64[AT_INTERVAL // 8])

    @interval_ns.setter
    def interval_ns(self, interval_ns: int) -> None:
        self._u64[AT_INTERVAL // 8] = interval_ns
        self.ring_doorbell()

    def throttle(self, asleep_ns: UInt64s, until_ns: int) -> None:
        """Have each vCPU sleep so many ns of every THROTTLE_PERIOD_NS until an instant of the guest's clock.

        `asleep_ns` is u64 [vcpus], 0 for none; ValueError where a vCPU would never run. What is not renewed in time ends by itself:
        a host that has died, hangs or is stopped leaves no guest slow, and needs nobody who notices that.
        """
        if asleep_ns.shape != (self.vcpus,) or int(asleep_ns.max()) >= THROTTLE_PERIOD_NS:
            raise ValueError(f"a throttle is below {THROTTLE_PERIOD_NS} ns for each of {self.vcpus} vCPUs")
        self._throttles[:] = asleep_ns
        self._u64[AT_THROTTLED_UNTIL // 8] = until_ns

    def lift_throttle(self) -> None:
        """Let every vCPU run at full speed: one that sleeps for its throttle when that is over, or at a `resume`."""
        self._u64[AT_THROTTLED_UNTIL // 8] = 0

    @property
    def throttled_until_ns(self) -> int:
        """Until when the vCPUs obey their throttles, by the guest's clock; 0: none does."""
        return int(self._u64[AT_THROTTLED_UNTIL // 8])

    @property
    def epoch(self) -> int:
        """How often this host has resumed the guest."""
        return int(self._u64[AT_EPOCH // 8])

    @property
    def resumed_at_ns(self) -> int:
        """When `resume` last set RUN, by the guest's clock; 0: never."""
        return int(self._u64[AT_RESUMED // 8])

    def request_pause(self) -> int:
        """Ask every vCPU to park after its present transaction; gives the time of the request, at once."""
        requested_ns = now_ns()
        self._u32[AT_RUN_STATE // 4] = RunState.PAUSE
        # The wake is also the full barrier between this store and any later look at `parked`: without it the look could be
        # served before the store is visible, and see a vCPU parked that still finds RUN and leaves.
        self.ring_doorbell()
        return requested_ns

    def wait_parked(self, timeout_s: float | None) -> bool:
        """Sleep until all vCPUs are parked or finished; False when `timeout_s` passed first. Blocks the calling thread."""
        return self._wait_for_all(AT_PARKED, timeout_s)

    def wait_started(self, timeout_s: float) -> bool:
        """Sleep until all vCPUs have committed since the last `resume`; False when `timeout_s` passed first. Blocks."""
        return self._wait_for_all(AT_STARTED, timeout_s)

    def _wait_for_all(self, counter: int, timeout_s: float | None) -> bool:
        """Sleep until a counter, which the last vCPU wakes, has counted them all; False when the time passed first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        word = self._mapping.address + counter
        while (count := int(self._u32[counter // 4])) != self.vcpus:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            futex.wait(word, count, left_s)
        return True

    @property
    def parked(self) -> int:
        """How many vCPUs are parked or finished."""
        return int(self._u32[AT_PARKED // 4])

    @property
    def all_parked(self) -> bool:
        """Say whether no vCPU runs; while `run_state` is PAUSE it stays true once it is."""
        return self.parked == self.vcpus

    def all_finished(self) -> bool:
        """Say whether every vCPU has reached stop_at and stopped there; right also just after stop_at was changed.

        `states` is not: a vCPU that sleeps says FINISHED until it has woken up to a new stop_at.
        """
        stop_at = self.stop_at
        return stop_at > 0 and self.all_parked and int(self.registers[:, 0].min()) >= stop_at

    def resume(self) -> int:
        """Let every vCPU run; gives the time at which RUN was set.

        Never to be called by a host whose `owner` is not OWNER: that is invariant 1, and this function does not look. Meant for a
        guest that is paused and quiet; resets `first_commits_ns`, and what `wait_started` waits for.
        """
        self._first_commits[:] = 0
        self._u32[AT_STARTED // 4] = 0
        self._u64[AT_EPOCH // 8] = self.epoch + 1
        resumed_ns = now_ns()
        self._u64[AT_RESUMED // 8] = resumed_ns
        self._u32[AT_RUN_STATE // 4] = RunState.RUN
        self.ring_doorbell()
        return resumed_ns

    def request_exit(self) -> None:
        """End every vCPU's thread after its present transaction; there is no way back."""
        self._u32[AT_RUN_STATE // 4] = RunState.EXIT
        self.ring_doorbell()

    def checkpoint_registers(self) -> bytes:
        """Copy all registers: vcpus x 16 little-endian u64. A checkpoint only while all vCPUs are parked."""
        return self.registers.tobytes()

    def install_registers(self, checkpoint: bytes) -> None:
        """Write what `checkpoint_registers` gave at the other end; ValueError if it is of another number of vCPUs."""
        if len(checkpoint) != self.vcpus * REGISTER_BYTES:
            raise ValueError(
                f"a checkpoint of {self.vcpus} vCPUs has {self.vcpus * REGISTER_BYTES} bytes, not {len(checkpoint)}"
            )
        self.registers[:] = np.frombuffer(checkpoint, "<u8").reshape(self.vcpus, REGISTERS)

    # --- written by the vCPUs

    def states(self) -> list[VcpuState]:
        return [VcpuState(int(state)) for state in self._states]

    def commits(self) -> int:
        """Count the transactions completed on this host by all vCPUs, not those before the guest came here."""
        return int(self._commits.sum())

    def commits_by_vcpu(self) -> UInt64s:
        return self._commits.copy()

    def transactions(self) -> int:
        """Count the transactions completed since the guest was born, on whatever hosts (register 0)."""
        return int(self.registers[:, 0].sum())

    def last_commit_ns(self) -> int:
        """When any vCPU last completed a transaction here; 0: never."""
        return int(self._last_commits.max())

    def last_commits_ns(self) -> UInt64s:
        return self._last_commits.copy()

    def first_commits_ns(self) -> UInt64s:
        """When each vCPU completed its first transaction since the last `resume`; 0: not yet."""
        return self._first_commits.copy()

    def slept_ns(self) -> UInt64s:
        """How long each vCPU has slept here because it was throttled, in ns: of the waits of a paced one what that added."""
        return self._slept.copy()

    def buckets(self, since_ns: int, until_ns: int) -> UInt64s:
        """Count commits per 10 ms, summed over vCPUs, for every bucket that [since_ns, until_ns) touches.

        The first bucket begins at since_ns rounded down to 10 ms. Buckets older than the ring (327 s) and those in which nothing
        happened are zero; the bucket of this moment is still filling.
        """
        total: UInt64s = self._ring_window(AT_SLOT_COMMITS, since_ns, until_ns).sum(axis=0, dtype=np.uint64)
        return total

    def longest_gaps_ns(self, since_ns: int, until_ns: int) -> UInt64s:
        """Find each vCPU's longest time between two commits, of those that ended within the window; 0: none ended, 4.29 s: or more.

        A vCPU's first commit on a host ends no gap. A gap that has not ended is not seen: compare `last_commits_ns`.
        """
        longest: UInt64s = self._ring_window(AT_SLOT_GAP, since_ns, until_ns).max(axis=1, initial=0).astype(np.uint64)
        return longest

    def longest_gap_ns(self, since_ns: int, until_ns: int) -> int:
        """Find the longest gap of any vCPU; see `longest_gaps_ns`."""
        return int(self.longest_gaps_ns(since_ns, until_ns).max())

    def longest_guest_gap_ns(self, since_ns: int, until_ns: int) -> int:
        """Find the longest time in which no vCPU at all committed, of those that ended within the window.

        Told too long by ANY_COMMIT_NS at most; 0: none that was longer than that.
        """
        return int(self._ring_window(AT_SLOT_GUEST_GAP, since_ns, until_ns).max(initial=0))

    def times_ns(self, vcpu: int, since_ns: int, until_ns: int) -> UInt64s:
        """Copy when each timed transaction of a vCPU ended and how long it took: u64 [n, 2], in order, of those in the window.

        Empty where the workload has no clients. The newest TIMES transactions are kept.
        """
        before = int(self._timed[vcpu])
        numbers = np.arange(max(0, before - TIMES), before)
        # Only slots that were written: a hole that is read becomes memory.
        copied: UInt64s = self._times[vcpu].reshape(TIMES, 2)[numbers % TIMES]
        # What was overwritten meanwhile, or is being just now, is no longer the transaction of that number.
        whole = copied[numbers > int(self._timed[vcpu]) - TIMES]
        return whole[(whole[:, 0] >= since_ns) & (whole[:, 0] < until_ns)]

    def _ring_window(self, field: int, since_ns: int, until_ns: int) -> npt.NDArray[np.uint32]:
        """Copy one field of a window's slots, [vcpus, buckets], zero where the ring no longer or not yet holds the bucket."""
        numbers = np.arange(since_ns // BUCKET_NS, -(-until_ns // BUCKET_NS), dtype=np.int64)
        slots = (numbers % RING_BUCKETS * SLOT_BYTES + field) // 4
        newest = self._newest_buckets.astype(np.int64)[:, None]
        held = (numbers <= newest) & (numbers > newest - RING_BUCKETS)
        window: npt.NDArray[np.uint32] = np.where(held, self._ring[:, slots], np.uint32(0))
        return window
