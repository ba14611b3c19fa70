"""The report of one migration: every figure, what it counts and what it leaves out.

One `MigrationReport` is filled in as a migration goes on and becomes the JSON that `--json` prints. Fields are added, never
renamed. Times are in seconds (`_s`) as floats, sizes in bytes, pages are 4 KiB; None means "not measured in this run", never
zero. Times at the two hosts are compared on the guest's clock, CLOCK_MONOTONIC: one clock where both hosts are one machine,
else the destination's readings minus `clock.offset_s`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pagefire.protocol.client_report import Database
from pagefire.protocol.link_report import Link, TcpConnection


@dataclass(slots=True)
class Percentiles:
    """p50, p99 and the largest of a set of measurements."""

    p50: float
    p99: float
    max: float


@dataclass(slots=True)
class VcpuStun:
    """Each vCPU's own gap: from its last commit at the source to its first at the destination, in seconds.

    `baseline_max` is the longest gap of any vCPU in the seconds before the migration (5 at most): with more busy vCPUs than cores
    a vCPU waits for the scheduler anyway, and a paced vCPU waits for its next turn.
    """

    p50: float
    p99: float
    max: float
    baseline_max: float | None


@dataclass(slots=True)
class GuestShape:
    """What was migrated. `resident_bytes` is what guest memory held when tracing began; holes are not counted.

    `backing` (4k, thp, hugetlb) is what mapped it at the source, `dest_backing` at the destination. `rate` is the whole guest's,
    asked for or its workload's own; None: as fast as it can.
    """

    name: str
    memory_bytes: int
    resident_bytes: int
    page_bytes: int
    backing: str
    dest_backing: str
    vcpus: int
    workload: str
    rate: float | None
    working_set_bytes: int
    seed: int


@dataclass(slots=True)
class DowntimeBreakdown:
    """Where downtime_s went; the parts add up to it but for the instants between them.

    quiesce_s: pause request until every vCPU is parked. final_scan_s: the last collection of dirty pages. bitmap_s: finding and
    coding what the destination still needs. checkpoint_s: reading the registers; ends when they are to be written, with the bitmap,
    to the socket. drain_s: the destination, its bitmap decoded, waits for the last pages that must be there before the resume
    (pre-copy: all that were left; hybrid: the few hot ones). transfer_s: from the checkpoint's end to READY's arrival, less drain_s
    and install_s, and from HANDOVER's departure to its arrival: the network, and both daemons waking up. install_s: the destination
    decodes the bitmap, installs the registers and prepares its memory. verify_s: the comparison of digests that `--verify` asks
    for. resume_s: HANDOVER's arrival until the vCPUs are let run.
    """

    quiesce_s: float = 0.0
    final_scan_s: float = 0.0
    bitmap_s: float = 0.0
    checkpoint_s: float = 0.0
    drain_s: float = 0.0
    transfer_s: float = 0.0
    install_s: float = 0.0
    verify_s: float = 0.0
    resume_s: float = 0.0


@dataclass(slots=True)
class TraceInstall:
    """How tracing was installed, and what the guest felt of it.

    policy: stop, loose or rolling. tracer: who made the system calls, vcpu or host. granularity: 4K, 2M or auto. step_bytes: the
    most that one call protects (None: a run of memory). install_s: from the first call (stop: from the pause request) to the last;
    a rolling install takes as long as the first round. guest_gap_s: the longest time in it in which no vCPU committed, told too
    long by 0.1 ms at most, 0 if there was none that long; of a rolling install None. vcpu_gap_s: each vCPU's longest gap in it, of
    which claimed_vcpu_gap_s is that of the vCPU that was the tracer. fires: first stores to something protected, as the collections
    of the whole migration found them but for the last, which protects nothing any more. answer_us: page-fire only, from the reading
    of a batch of fires (64 at most) to the last vCPU let go, without the waking of the daemon's thread and of the vCPU. at_s: when
    the install began, since the migrate request.
    """

    policy: str
    tracer: str
    granularity: str
    step_bytes: int | None
    calls: int
    install_s: float
    fires: int
    answer_us: Percentiles | None = None
    guest_gap_s: float | None = None
    vcpu_gap_s: Percentiles | None = None
    claimed_vcpu_gap_s: float | None = None
    at_s: float | None = None


@dataclass(slots=True)
class Round:
    """One pre-copy round: `pages` were sent, `zero_pages` of them without payload; `dirty_pages_after` are left at its end.

    payload_bytes: what the others' contents took, 4096 a page but for what was compressed; wire_bytes: that, and all else that the
    page connections carried.

    skipped_pages: written by the guest before their turn came, or given up for a switch that a person asked for; not sent but left.
    unchanged_pages: not sent because the destination held them just so (`--skip-unchanged`). share_changed: the share of
    dirty_pages_after that the destination does not hold as they are, by a sample; 1 where nobody looks. look_s: seconds that the
    thread of a page connection took to find that out, and for differences, the mean of all.
    delta_pages: of `pages`, those that went as differences (`--delta-cache`), of which delta_bytes of payload_bytes were left.
    delta_share: the share of the contents of dirty_pages_after that differences would leave to be sent, by a sample;
    settled_share: the same once all that the guest writes has been sent, as far as there is room for versions; both 1 without
    differences.
    dirty_pages_per_s: how many different pages
    the guest wrote per second, in the last 0.5 s between two looks at a round that is so long, else in the whole of it.
    """

    round: int
    pages: int
    zero_pages: int
    wire_bytes: int
    duration_s: float
    dirty_pages_after: int
    skipped_pages: int
    dirty_pages_per_s: float
    payload_bytes: int
    unchanged_pages: int = 0
    look_s: float = 0.0
    share_changed: float = 1.0
    delta_pages: int = 0
    delta_bytes: int = 0
    delta_share: float = 1.0
    settled_share: float = 1.0


@dataclass(slots=True)
class Retuned:
    """An option that was changed in flight (`pagefire set`): when, since the migrate request, which one, and its new value."""

    at_s: float
    option: str
    value: str | float | None


@dataclass(slots=True)
class ThrottledRound:
    """What a pre-copy round took of the guest so that it converges: the share of the round that a vCPU slept, 0 to 1.

    `mean` is over all vCPUs, `max` the largest of one. Counted by the vCPUs: what they slept, not what they were told to; a sleep
    counts for the round in which it ends.
    """

    round: int
    mean: float
    max: float


@dataclass(slots=True)
class Throttle:
    """What `--auto-converge` did; the report has none where that was not asked for.

    reason: why nothing had to be done, empty where rounds were watched. slept_s: how long each vCPU slept for it, in all, as it
    counted itself; of the waits of a paced vCPU the part that its throttle added. rounds: by round; they follow each other without
    a gap, but the last one ends before the stun. Nothing is counted at the destination, where no vCPU is throttled. vcpu_stun_s
    begins with a vCPU's last commit, and so is longer by the sleep of one that slept when the guest was stopped; stun_s where all
    did.
    """

    reason: str = ""
    slept_s: list[float] = field(default_factory=list)
    rounds: list[ThrottledRound] = field(default_factory=list)


@dataclass(slots=True)
class Compression:
    """What `--compress` did with the pages of rounds, stun and push. Fetched ones always go as they are, and do not count.

    mode: as asked for; where it is off nothing below is counted. codec: what pages were compressed with (None: none were; auto may
    use several, lz4+zstd). compressed_pages: pages that went compressed; raw_bytes: their contents; sent_bytes: what became of
    these, without frames; ratio: the one by the other (None: none were). raw_pages: pages with contents that went as they are.
    pack_s: seconds of the page connections' threads for copying and compressing, in vain or not; samples and sample_s: looks at a
    few pages and the CPU seconds that they took, not part of pack_s. link_Bps: bytes per second that a page connection was last
    seen to carry (None: not known). reason: why the last batch of pages went as it did, in words.
    """

    mode: str
    codec: str | None = None
    compressed_pages: int = 0
    raw_pages: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    ratio: float | None = None
    pack_s: float = 0.0
    samples: int = 0
    sample_s: float = 0.0
    link_Bps: float | None = None
    reason: str = ""


@dataclass(slots=True)
class Unchanged:
    """What `--skip-unchanged` left out of rounds and stun: pages that the destination held just as they were. The push leaves none.

    mode: as asked for; where it is off nothing below is counted. hashed_pages: pages that were copied and digested, of which some
    had never been sent; unchanged_pages: pages that were left out, zero pages that had been sent as such among them, which are not
    digested. hash_s: seconds of the page connections' threads for copying, digesting and comparing. reason: why the last pages were
    looked at, or were not, in words.
    """

    mode: str
    hashed_pages: int = 0
    unchanged_pages: int = 0
    hash_s: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class DeltaCache:
    """What `--delta-cache` made of pages that were sent again in rounds and stun. The push sends whole pages.

    room_bytes: as asked for, of which used_bytes were used. delta_pages: pages that went as differences to the version sent last;
    raw_bytes: their contents; sent_bytes: what became of these, without frames; ratio: the one by the other (None: none did).
    whole_pages: pages with contents of which there was no version: most are sent for the first time. rewritten_pages: pages that
    went whole because more than half of each had changed. turned_away_pages: pages whose version could not be kept, because the
    room was taken by others of the same round. take_s: seconds of the page connections' threads for copying, comparing and
    compressing. reason: why the last pages that were known went as they did, in words.
    """

    room_bytes: int
    used_bytes: int = 0
    delta_pages: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    ratio: float | None = None
    whole_pages: int = 0
    rewritten_pages: int = 0
    turned_away_pages: int = 0
    take_s: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Bitmap:
    """The bitmap at switchover: its size raw (one bit a page of the whole guest) and compacted (what was sent).

    Of `compacted_bytes` `ahead_bytes` went before the guest was stopped, naming `ahead_pages`; encode_s and decode_s count the
    rest, in the stun.
    """

    raw_bytes: int
    compacted_bytes: int
    pages: int
    encode_s: float
    decode_s: float
    ahead_bytes: int = 0
    ahead_pages: int = 0


@dataclass(slots=True)
class Swap:
    """The guest's pages that the source had swapped out: not sent in rounds, moved last. None on a host without swap space.

    pages: how many the swap bitmap held; bitmap_bytes: its size on the wire. swapped_in_before: pages that the whole source host
    read in from swap from the beginning of tracing to the resume; swapped_in_after: from there to full residency.
    """

    pages: int
    bitmap_bytes: int
    swapped_in_before: int
    swapped_in_after: int


@dataclass(slots=True)
class Postcopy:
    """What moved after the resume, counted by the receiver. `fault_us`: page fault to page published, by the handler's clock.

    `blocktime_s` is the time all vCPUs together waited for pages, as the sum of those fault latencies.
    `duplicate_pages` came a second time, because a fault asked for what was on its way, and were dropped.
    `minor_faults` needed no page from the source: the page was here and only had to be published.
    """

    pushed_pages: int = 0
    faulted_pages: int = 0
    duplicate_pages: int = 0
    minor_faults: int = 0
    fault_us: Percentiles | None = None
    blocktime_s: float = 0.0


@dataclass(slots=True)
class Cpu:
    """User and system CPU seconds of the daemons and the guest processes, from migrate to full residency."""

    source_s: float
    dest_s: float
    guest_source_s: float
    guest_dest_s: float


@dataclass(slots=True)
class Memory:
    """What the migration took of each host beside the guest's pages, read when every page was at the destination.

    own: memory of the daemons that is not shared (guest memory is shared, and not counted). tables: page tables of the daemons and
    of the guest's process at either end.
    """

    source_own_bytes: int
    dest_own_bytes: int
    source_tables_bytes: int
    dest_tables_bytes: int
    guest_source_tables_bytes: int
    guest_dest_tables_bytes: int


@dataclass(slots=True)
class GuestRate:
    """Commits per second of the whole guest: the second before, during pre-copy, and after full residency."""

    before_per_s: float | None
    during_per_s: float | None
    after_per_s: float | None


@dataclass(slots=True)
class TimelineBucket:
    """Commits in the 10 ms that begin at t_s (0 is the migrate request), and the phase at their beginning.

    Phases bear the names of a migration's status: none (before it), setup, active (pre-copy), device (the stun), postcopy-active,
    completed.
    """

    t_s: float
    commits: int
    phase: str


@dataclass(slots=True)
class PhaseBegin:
    """When a phase began, in seconds since the migrate request; it lasted until the next one began."""

    phase: str
    at_s: float


@dataclass(slots=True)
class Verified:
    """What was proven of this run; None where not asked for.

    invariant: the workload's own check of guest memory, at a pause after the measurement. commits_lost and commits_repeated: the
    sequence numbers in guest memory against the commits that the vCPUs counted at both ends. digest_match: `--verify`.
    """

    invariant: bool | None = None
    commits_lost: int | None = None
    commits_repeated: int | None = None
    digest_match: bool | None = None
    check_pause_s: float | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Clock:
    """How the two hosts' clocks were compared: shared (one machine: offset 0, error 0), or measured by round trips."""

    shared: bool
    offset_s: float
    error_s: float


@dataclass(slots=True)
class Host:
    """The source host."""

    kernel: str
    cpus: int
    memory_bytes: int
    load: float


@dataclass(slots=True)
class Versions:
    pagefire: str
    python: str
    uvloop: str


@dataclass(slots=True)
class MigrationReport:
    """Every figure of one migration.

    outcome: completed, failed, cancelled or postcopy-paused. owner: the host that may run the guest. policy: what decided when
    pre-copy ends, built-in or a person's own by its name.
    total_s: migrate request to full residency. setup_s: until tracing is installed.
    precopy_s: first round until the pause. downtime_s: pause request at the source until the destination lets its vCPUs run.
    stun_s: the guest's blackout, from the last commit of any vCPU at the source to the first of any at the destination, by the
    vCPUs' own clock readings; stun_error_s is the uncertainty that comparing two clocks adds. observer_stun_s: the same, seen by
    a separate process that reads the commit counters of both ends; None across machines. stun_at_s: when that last commit was,
    since the migrate request. all_running_s: pause request to the
    first commit of the last vCPU. stall_s: 10 ms buckets with less than half the baseline's commits, summed, from the pause to
    full residency. resident_after_s: resume until the last page is at the destination. wire_bytes: everything that the source
    sent for this migration, frames included, TCP/IP headers not. throughput_Bps: wire bytes of the pre-copy rounds over their time,
    whatever they became when they were unpacked.
    streams: page connections that were at work at the end.
    stun_pages: sent while the guest stood still, in no round and not after it (pre-copy: all that was left; hybrid: the hot ones).
    dirty_pages_per_s: pages written during the last pre-copy round over its time. recoveries: how often the link was lost after the
    resume and found again; paused_s: for how long there was none. link: in a lab, what was asked of it and measured, and who
    shaped it.
    """

    outcome: str = "active"
    error: str | None = None
    owner: str = "source"
    mode: str = ""
    policy: str = ""
    tracker: str = ""
    tracker_reason: str = ""
    trace_install: TraceInstall | None = None
    guest: GuestShape | None = None
    destination: str = ""
    total_s: float | None = None
    setup_s: float | None = None
    precopy_s: float | None = None
    downtime_s: float | None = None
    stun_s: float | None = None
    stun_at_s: float | None = None
    observer_stun_s: float | None = None
    stun_error_s: float | None = None
    vcpu_stun_s: VcpuStun | None = None
    all_running_s: float | None = None
    stall_s: float | None = None
    resident_after_s: float | None = None
    downtime_breakdown: DowntimeBreakdown | None = None
    stop_reason: str = ""
    rounds: list[Round] = field(default_factory=list)
    retuned: list[Retuned] = field(default_factory=list)
    throttle: Throttle | None = None
    streams: int = 0
    stun_pages: int = 0
    bitmap: Bitmap | None = None
    swap: Swap | None = None
    compression: Compression | None = None
    unchanged: Unchanged | None = None
    delta_cache: DeltaCache | None = None
    postcopy: Postcopy | None = None
    recoveries: int = 0
    paused_s: float | None = None
    wire_bytes: int = 0
    throughput_Bps: float | None = None
    dirty_pages_per_s: float | None = None
    cpu: Cpu | None = None
    memory: Memory | None = None
    guest_rate: GuestRate | None = None
    database: Database | None = None
    phases: list[PhaseBegin] = field(default_factory=list)
    timeline: list[TimelineBucket] = field(default_factory=list)
    verified: Verified = field(default_factory=Verified)
    clock: Clock | None = None
    tcp: list[TcpConnection] = field(default_factory=list)
    link: Link | None = None
    host: Host | None = None
    versions: Versions | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give the JSON form: nested dictionaries of numbers, strings, lists and None."""
        return asdict(self)
