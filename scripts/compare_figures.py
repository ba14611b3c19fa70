"""What `pagefire compare` reads out of the reports of one profile's runs: pure functions.

Trace phase    From the instant at which the install of tracing began to one second after it was done, or to the pause of the
               switchover where that comes first. The install is `trace_install` of the report: from `at_s`, for `install_s`; a
               rolling one lasts as long as the first round.
Baseline       The mean of the guest's whole 10 ms buckets in the second before the request.
Deepest dip    1 minus the least of the trace phase's 10 ms buckets over the baseline: 1 is a bucket without a commit.
Commits lost   1 minus the trace phase's commits over what the baseline would have made in the same buckets: below 0 where the guest
               was faster. It includes whatever else slowed the guest meanwhile: the first round runs on the same CPUs.

A bucket belongs to a window when it begins before the window's end and ends after its beginning.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pagefire.protocol.errors import PagefireError
from pagefire.scripts.profiles import Profile
from pagefire.scripts.spread import spread

Json = dict[str, Any]

BUCKET_S = 0.01
AFTER_INSTALL_S = 1.0
BREAKDOWN = (
    "quiesce_s", "final_scan_s", "bitmap_s", "checkpoint_s", "drain_s", "transfer_s", "install_s", "verify_s", "resume_s",
)  # fmt: skip
_FLOAT_SLACK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Dip:
    """What the trace phase cost the guest, as shares of its baseline.

    The phase's beginning, the install's end and the phase's end are in seconds since the request.
    """

    deepest: float
    lost: float
    from_s: float
    installed_s: float
    to_s: float


def dip_of(report: Json) -> Dip:
    """Compute a report's trace-phase dip. Raises PagefireError where the guest committed nothing before, or was not traced."""
    install, begins = report["trace_install"], {one["phase"]: one["at_s"] for one in report["phases"]}
    if install is None:
        raise PagefireError(
            "there is no trace phase to look at", "no tracing was installed", "compare hybrid migrations"
        )
    from_s, pause_s = install["at_s"], begins.get("device", report["stun_at_s"])
    installed_s = from_s + install["install_s"]
    to_s = min(installed_s + AFTER_INSTALL_S, pause_s)
    buckets = report["timeline"]
    before = [one["commits"] for one in buckets if one["t_s"] + BUCKET_S <= _FLOAT_SLACK_S]
    during = [
        one["commits"]
        for one in buckets
        if one["t_s"] + BUCKET_S > from_s + _FLOAT_SLACK_S and one["t_s"] < to_s - _FLOAT_SLACK_S
    ]
    baseline = statistics.mean(before) if before else 0.0
    if not baseline or not during:
        raise PagefireError(
            "the trace phase cannot be compared with what was before",
            "the guest committed nothing in the second before the request",
            "let it run longer: --warmup 2s",
        )
    return Dip(1 - min(during) / baseline, 1 - statistics.mean(during) / baseline, from_s, installed_s, to_s)


def row_of(profile: Profile, reports: Sequence[Json]) -> Json:
    """Put one profile's runs together: {median, min, max} of each figure; `shown` is the run of the median share of commits lost.

    Raises PagefireError when a run was not what it should be: a figure of a damaged guest is none.
    """
    for report in reports:
        _require_sound(profile, report)
    dips = [dip_of(report) for report in reports]
    ranked = sorted(range(len(dips)), key=lambda index: dips[index].lost)
    middle = ranked[(len(ranked) - 1) // 2]
    first, shown = reports[0], reports[middle]
    return {
        "profile": profile.name,
        "install": first["trace_install"]["policy"],
        "tracer": first["trace_install"]["tracer"],
        "granularity": first["trace_install"]["granularity"],
        "bitmap_form": profile.bitmap,
        "repetitions": len(reports),
        "dip_deepest": spread([dip.deepest for dip in dips]),
        "dip_lost": spread([dip.lost for dip in dips]),
        "trace_install_s": spread([report["trace_install"]["install_s"] for report in reports]),
        "trace_gap_s": _spread_of_known([report["trace_install"]["guest_gap_s"] for report in reports]),
        "stun_s": spread([report["stun_s"] for report in reports]),
        "downtime_s": spread([report["downtime_s"] for report in reports]),
        "downtime_breakdown": {
            part: statistics.median(report["downtime_breakdown"][part] for report in reports) for part in BREAKDOWN
        },
        "setup_s": spread([report["setup_s"] for report in reports]),
        "total_s": spread([report["total_s"] for report in reports]),
        "traced_total_s": spread(
            [report["total_s"] - dip.from_s for report, dip in zip(reports, dips, strict=True)]
        ),
        "wire_bytes": spread([report["wire_bytes"] for report in reports]),
        "bitmap_bytes": spread([report["bitmap"]["compacted_bytes"] for report in reports]),
        "bitmap_raw_bytes": first["bitmap"]["raw_bytes"],
        "bitmap_pages": spread([report["bitmap"]["pages"] for report in reports]),
        "bitmap_decode_s": spread([report["bitmap"]["decode_s"] for report in reports]),
        "guest_rate_before_per_s": spread([report["guest_rate"]["before_per_s"] for report in reports]),
        "resident_bytes": first["guest"]["resident_bytes"],
        "shown": {
            **{key: shown[key] for key in ("timeline", "phases", "stun_s", "stun_at_s", "total_s", "guest_rate")},
            "dip": asdict(dips[middle]),
        },
    }  # fmt: skip


def _spread_of_known(figures: Sequence[float | None]) -> Json | None:
    known = [figure for figure in figures if figure is not None]
    return spread(known) if known else None


def problems_of(report: Json) -> list[str]:
    """Say why a report's figures are none: what was found damaged, or did not come to an end or to a stun; empty: nothing."""
    verified = report["verified"]
    problems = list(verified["problems"])
    if verified["commits_lost"] or verified["commits_repeated"]:
        problems.append(f"{verified['commits_lost']} commits were lost and {verified['commits_repeated']} repeated")
    if report["outcome"] != "completed":
        problems.append(f"the migration ended as {report['outcome']}")
    if report["stun_s"] is None:
        problems.append("the guest did not commit on both sides of the stun")
    return problems


def _require_sound(profile: Profile, report: Json) -> None:
    install, problems = report["trace_install"], problems_of(report)
    if install is not None and (install["policy"], install["granularity"]) != (profile.install, profile.granularity):
        problems.append(f"traced {install['policy']} by {install['granularity']} instead")
    if problems:
        raise PagefireError(
            f"a run of profile {profile.name} cannot be compared", "; ".join(problems), "run it alone: pagefire demo"
        )  # fmt: skip
