"""Tests of the command line's parts, and the made-up report that several of them print and draw."""

from __future__ import annotations

import random

from pagefire.protocol.link_report import TcpConnection
from pagefire.protocol.report import (
    Bitmap,
    Clock,
    Cpu,
    DowntimeBreakdown,
    GuestRate,
    GuestShape,
    Host,
    MigrationReport,
    Percentiles,
    Postcopy,
    Round,
    Throttle,
    ThrottledRound,
    TimelineBucket,
    VcpuStun,
    Verified,
    Versions,
)


def completed_report(*, stun_s: float = 0.0124, precopy_s: float = 2.4) -> MigrationReport:
    """Make up a completed hybrid migration whose figures agree with each other."""
    setup_s, resident_after_s = 0.18, 0.62
    pause_s = setup_s + precopy_s
    total_s = pause_s + stun_s + resident_after_s
    rounds = [
        Round(
            1, 262_144, 4_096, 1_060_000_000, 0.75 * precopy_s, 52_300, 0, 52_300 / (0.75 * precopy_s), 258_048 * 4096
        ),
        Round(2, 52_300, 12, 214_500_000, 0.2 * precopy_s, 11_020, 0, 11_020 / (0.2 * precopy_s), 52_288 * 4096),
        Round(3, 11_020, 0, 45_200_000, 0.05 * precopy_s, 3_204, 0, 3_204 / (0.05 * precopy_s), 11_020 * 4096),
    ]
    return MigrationReport(
        outcome="completed",
        mode="hybrid",
        tracker="pagemap-scan",
        tracker_reason="the self-test passed",
        guest=GuestShape("cache-7", 4 << 30, 1 << 30, 4096, "4k", "thp", 2, "counters", 20_000.0, 256 << 20, 7),
        destination="10.0.0.2:7400",
        total_s=total_s,
        setup_s=setup_s,
        precopy_s=precopy_s,
        downtime_s=0.93 * stun_s,
        stun_s=stun_s,
        stun_at_s=pause_s,
        observer_stun_s=1.02 * stun_s,
        stun_error_s=0.0,
        vcpu_stun_s=VcpuStun(1.01 * stun_s, 1.08 * stun_s, 1.08 * stun_s, 0.0011),
        all_running_s=1.1 * stun_s,
        stall_s=0.03,
        resident_after_s=resident_after_s,
        downtime_breakdown=DowntimeBreakdown(
            *(stun_s * share for share in (0.1, 0.3, 0.06, 0.05, 0.0, 0.2, 0.15, 0.04))
        ),
        stop_reason="3,204 dirty pages would take 9.1 ms at 1.4 GB/s, within the 20 ms asked for",
        rounds=rounds,
        throttle=Throttle("", [0.4, 1.2], [ThrottledRound(1, 0.0, 0.0), ThrottledRound(2, 0.3, 0.45)]),
        bitmap=Bitmap(131_072, 5_210, 3_204, 0.0008, 0.0005),
        postcopy=Postcopy(3_120, 84, 2, 31, Percentiles(61.0, 140.0, 412.0), 0.0059),
        wire_bytes=1_333_000_000,
        throughput_Bps=549_900_000.0,
        dirty_pages_per_s=26_700.0,
        cpu=Cpu(1.9, 1.4, 4.1, 1.2),
        guest_rate=GuestRate(20_010.0, 18_400.0, 19_990.0),
        timeline=timeline(pause_s, stun_s, total_s),
        verified=Verified(True, 0, 0, True, 0.41),
        clock=Clock(True, 0.0, 0.0),
        tcp=[TcpConnection("control", 0.00021, 0, 10, "cubic"), TcpConnection("pages 0", 0.00034, 12, 310, "cubic")],
        host=Host("6.18.44", 2, 24 << 30, 0.7),
        versions=Versions("0.1.0", "3.11.7", "0.21.0"),
    )


def timeline(pause_s: float, stun_s: float, total_s: float) -> list[TimelineBucket]:
    """Make up commits per 10 ms: a little slower under tracing, none in the stun, climbing back after it."""
    noise = random.Random(7)
    resume_s = pause_s + stun_s
    buckets = []
    for step in range(-100, round((total_s + 0.6) / 0.01)):
        t_s = step / 100
        running_s = 0.01 - max(0.0, min(t_s + 0.01, resume_s) - max(t_s, pause_s))
        speed = 1.0
        if 0 <= t_s < total_s:
            speed = 0.92 if t_s < pause_s else max(0.1, min(1.0, 0.35 + 1.5 * (t_s - resume_s)))
        commits = max(0, round(20_000 * running_s * speed * noise.gauss(1, 0.04)))
        buckets.append(TimelineBucket(t_s, commits, _phase(t_s, pause_s, resume_s, total_s)))
    return buckets


def _phase(t_s: float, pause_s: float, resume_s: float, total_s: float) -> str:
    for name, end_s in (
        ("before", 0.0),
        ("setup", 0.18),
        ("active", pause_s),
        ("device", resume_s),
        ("postcopy-active", total_s),
    ):
        if t_s < end_s:
            return name
    return "completed"
