"""The report of a migration, filled in from readings taken as it goes on.

Reads clocks, /proc and TCP_INFO; what follows from the readings is computed in measurement.py.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
import time

import psutil

from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux.cpu_time import cpu_seconds
from pagefire.guest_workload.linux.memory_use import memory_use_bytes
from pagefire.protocol.link_report import TcpConnection
from pagefire.protocol.messages import Aftermath, Resident
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.report import (
    Clock,
    Compression,
    Cpu,
    GuestShape,
    Host,
    Memory,
    MigrationReport,
    Percentiles,
    Postcopy,
    Swap,
)
from pagefire.protocol.totals import Moved
from pagefire.protocol.transport.software import versions
from pagefire.source_host import client_latency, measurement
from pagefire.source_host.departure import Departure
from pagefire.source_host.guest_tracing import GuestTracing
from pagefire.source_host.link import Link
from pagefire.source_host.swapped_pages import has_swap, swapped_in_pages
from pagefire.source_host.switchover import Stun

#: Offsets in struct tcp_info (include/uapi/linux/tcp.h): rtt in us, snd_cwnd in segments, total_retrans.
_TCPI_RTT, _TCPI_SND_CWND, _TCPI_TOTAL_RETRANS = 68, 80, 100


class Accounting:
    """Takes the readings of one migration at the instants at which its script calls."""

    def __init__(self, guest: GuestProcess) -> None:
        self._guest = guest
        self._requested_ns = time.monotonic_ns()
        self._traced_ns = 0
        self._precopy_ns = 0
        self._resident_ns = 0
        self._resident_bytes = 0
        #: What this host had read in from swap when tracing began, at the resume, and at the end; empty without swap.
        self._swapped_in: list[int] = []
        self._baseline_gap_ns = guest.control.longest_gap_ns(
            self._requested_ns - measurement.GAP_BASELINE_NS, self._requested_ns
        )
        self._cpu_before = cpu_seconds(), cpu_seconds(guest.pid)
        self._cpu_after = self._cpu_before
        # Read now: the vCPUs keep so many transactions, and a long migration would write over these.
        self._before = client_latency.times_of(
            guest.control, self._requested_ns - measurement.BASELINE_NS, self._requested_ns
        )

    def since_request_s(self) -> float:
        """Tell how long ago the migration was asked for."""
        return (time.monotonic_ns() - self._requested_ns) / 1e9

    def phase(self, name: str) -> None:
        """Note that a phase begins."""
        if name == "active":
            self._precopy_ns = time.monotonic_ns()

    def traced(self, resident_bytes: int) -> None:
        """Tracing is installed; so much of the guest's memory has contents."""
        self._traced_ns = time.monotonic_ns()
        self._resident_bytes = resident_bytes
        self._note_swap()

    def resumed(self) -> None:
        """The guest runs at the destination."""
        self._note_swap()

    def _note_swap(self) -> None:
        if has_swap() and (pages := swapped_in_pages()) is not None:
            self._swapped_in.append(pages)

    def resident(self, message: Resident, clock: Clock | None) -> None:
        """The destination has every page."""
        offset_ns = round(clock.offset_s * 1e9) if clock is not None else 0
        self._resident_ns = message.resident_ns - offset_ns
        self._note_swap()
        self._cpu_after = cpu_seconds(), cpu_seconds(self._guest.pid)

    def finish(self, report: MigrationReport, stun: Stun, link: Link, tracing: GuestTracing) -> None:
        """Fill in all that the source knows by itself, while the guest and the connections still exist."""
        assert report.clock is not None
        # A daemon that took the other's place does not know when the guest was resumed: then it was at the pause, at the earliest.
        resumed_ns = stun.pause_ns
        if stun.resumed is not None:
            resumed_ns = stun.resumed.resumed_ns - round(report.clock.offset_s * 1e9)
            report.downtime_s = stun.downtime_s(report.clock)
            report.downtime_breakdown = stun.breakdown(report.clock)
        config, interval_ns = self._guest.config, self._guest.control.interval_ns
        report.guest = GuestShape(
            name=config.name,
            memory_bytes=config.memory_bytes,
            resident_bytes=self._resident_bytes,
            page_bytes=PAGE_BYTES,
            backing=config.backing,
            dest_backing=link.backing,
            vcpus=config.vcpus,
            workload=config.workload,
            rate=config.rate or (1e9 * config.vcpus / interval_ns if interval_ns else None),
            working_set_bytes=config.working_set_bytes,
            seed=config.seed,
        )
        report.total_s = (self._resident_ns - self._requested_ns) / 1e9
        report.setup_s = (self._traced_ns - self._requested_ns) / 1e9
        report.precopy_s = (stun.pause_ns - self._precopy_ns) / 1e9 if self._precopy_ns else 0.0
        report.resident_after_s = (self._resident_ns - resumed_ns) / 1e9
        report.bitmap = stun.bitmap
        self._memory = *memory_use_bytes(), memory_use_bytes(self._guest.pid)[1]
        if len(self._swapped_in) == 3:
            began, resumed, ended = self._swapped_in
            report.swap = Swap(stun.swapped.pages, stun.swap_bitmap_bytes, resumed - began, ended - resumed)
        report.trace_install = tracing.cost(self._requested_ns)
        report.wire_bytes = link.sent_bytes
        if report.rounds:
            seconds = sum(round_.duration_s for round_ in report.rounds)
            report.throughput_Bps = sum(round_.wire_bytes for round_ in report.rounds) / seconds
            report.dirty_pages_per_s = report.rounds[-1].dirty_pages_per_s
        report.streams = link.count.at_work
        report.tcp = [tcp_connection(role, sock) for role, sock in link.sockets()]
        report.host = Host(platform.release(), os.cpu_count() or 1, psutil.virtual_memory().total, os.getloadavg()[0])
        report.versions = versions()
        self._instants = measurement.Instants(
            self._requested_ns, self._traced_ns, stun.pause_ns, resumed_ns, self._resident_ns
        )
        report.phases = self._instants.phases()
        since_ns = (self._requested_ns - measurement.BASELINE_NS) // measurement.BUCKET_NS * measurement.BUCKET_NS
        self._since_ns = since_ns
        control, now_ns = self._guest.control, time.monotonic_ns()
        self._here = control.buckets(since_ns, now_ns)
        self._clients = client_latency.ClientsHere(
            before=self._before,
            since=client_latency.times_of(control, self._requested_ns, now_ns),
            interval_ns=control.interval_ns,
        )

    def add_aftermath(self, report: MigrationReport, stun: Stun, aftermath: Aftermath) -> None:
        """Fill in what only the destination could know."""
        assert report.clock is not None
        clock, instants = report.clock, self._instants
        commits = measurement.merge(self._since_ns, self._here, aftermath, clock)
        report.timeline = measurement.timeline(commits, instants)
        report.guest_rate = measurement.guest_rates(commits, instants)
        report.stall_s = measurement.stall_s(commits, instants)
        report.stun_s, report.vcpu_stun_s, report.all_running_s = measurement.stuns(
            stun, aftermath, clock, self._baseline_gap_ns
        )
        report.stun_at_s = measurement.stun_at_s(stun, instants)
        report.stun_error_s = clock.error_s
        report.database = client_latency.database(self._clients, aftermath, clock, instants)
        report.cpu = Cpu(
            source_s=self._cpu_after[0] - self._cpu_before[0],
            dest_s=aftermath.cpu_dest_s,
            guest_source_s=self._cpu_after[1] - self._cpu_before[1],
            guest_dest_s=aftermath.cpu_guest_s,
        )
        own_bytes, tables_bytes, guest_tables_bytes = self._memory
        report.memory = Memory(
            source_own_bytes=own_bytes,
            dest_own_bytes=aftermath.dest_own_bytes,
            source_tables_bytes=tables_bytes,
            dest_tables_bytes=aftermath.dest_tables_bytes,
            guest_source_tables_bytes=guest_tables_bytes,
            guest_dest_tables_bytes=aftermath.guest_tables_bytes,
        )
        verify(report, sum(stun.commits), aftermath)


def postcopy_of(resident: Resident) -> Postcopy:
    """Take over what the destination counted of its faults and pages."""
    return Postcopy(
        pushed_pages=resident.pushed_pages,
        faulted_pages=resident.faulted_pages,
        duplicate_pages=resident.duplicate_pages,
        minor_faults=resident.minor_faults,
        fault_us=Percentiles(*resident.fault_us) if len(resident.fault_us) == 3 else None,
        blocktime_s=resident.blocktime_s,
    )


def compression_of(departure: Departure) -> Compression:
    """Add up what the page connections of all of a migration's links have compressed."""
    parts = [*departure.earlier_compression, *(departure.link.compression() if departure.link is not None else ())]
    raw_bytes, sent_bytes = (sum(getattr(part, name) for part in parts) for name in ("raw_bytes", "sent_bytes"))
    used = {codec for part in parts if part.codec is not None for codec in part.codec.split("+")}
    return Compression(
        mode=departure.options.compress,
        codec="+".join(sorted(used)) or None,
        compressed_pages=sum(part.compressed_pages for part in parts),
        raw_pages=sum(part.raw_pages for part in parts),
        raw_bytes=raw_bytes,
        sent_bytes=sent_bytes,
        ratio=raw_bytes / sent_bytes if sent_bytes else None,
        pack_s=sum(part.pack_s for part in parts),
        samples=sum(part.samples for part in parts),
        sample_s=sum(part.sample_s for part in parts),
        link_Bps=next((part.link_Bps for part in reversed(parts) if part.link_Bps is not None), None),
        reason=parts[-1].reason if parts else "",
    )


def moved_so_far(link: Link | None, departure: Departure | None, rounds: int) -> Moved:
    """Add up what the links of a migration have sent so far; `link` is the one before the commit point."""
    if departure is not None:
        link = departure.link
    sent, packed, wire_bytes = [], [], 0
    if departure is not None:
        sent, packed, wire_bytes = [*departure.earlier_sent], [*departure.earlier_compression], departure.earlier_bytes
    if link is not None:
        sent.append(link.sent_totals())
        packed += link.compression()
        wire_bytes += link.sent_bytes
    return Moved(
        rounds=rounds,
        pages=sum(one.pages for one in sent),
        zero_pages=sum(one.zero_pages for one in sent),
        unchanged_pages=sum(one.unchanged_pages for one in sent),
        compressed_pages=sum(one.compressed_pages for one in packed),
        delta_pages=sum(one.delta_pages for one in sent),
        wire_bytes=wire_bytes,
        recoveries=departure.recoveries if departure is not None else 0,
    )


def verify(report: MigrationReport, commits_here: int, aftermath: Aftermath) -> None:
    """Fill in what was proven: what the workload found in memory there, against what vCPUs have committed here and there."""
    if not aftermath.checked:
        return
    verified = report.verified
    verified.problems = list(aftermath.check_problems)
    verified.invariant = not aftermath.check_problems
    verified.check_pause_s = aftermath.check_pause_s
    if aftermath.committed_in_memory >= 0:
        counted = commits_here + aftermath.commits_here
        verified.commits_lost = max(0, counted - aftermath.committed_in_memory)
        verified.commits_repeated = max(0, aftermath.committed_in_memory - counted)


def tcp_connection(role: str, sock: socket.socket) -> TcpConnection:
    """Read what the kernel knows of one connection (TCP_INFO, tcp(7))."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    congestion = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    rtt_us, cwnd, retransmits = (
        struct.unpack_from("=I", raw, at)[0] for at in (_TCPI_RTT, _TCPI_SND_CWND, _TCPI_TOTAL_RETRANS)
    )
    return TcpConnection(role, rtt_us / 1e6, retransmits, cwnd, congestion)
