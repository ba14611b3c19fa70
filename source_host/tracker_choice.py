"""Which tracker this kernel gets: decided by self-test, not by version."""

from __future__ import annotations

from dataclasses import dataclass

from pagefire.guest_workload.guest_config import Backing
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.selftest import tracking_self_test
from pagefire.protocol.errors import FeatureMissing, UsageError
from pagefire.source_host.break_down import BreakDown, Everywhere, Nowhere, WhereSparse
from pagefire.source_host.page_fire_tracker import PageFireTracker
from pagefire.source_host.pagemap_tracker import PagemapTracker
from pagefire.source_host.tracking import DirtyTracker, Granularity


@dataclass(frozen=True, slots=True)
class TrackerChoice:
    """Which tracker, the userfaultfd features it needs, and why it was chosen."""

    name: str
    features: userfaultfd.Feature
    reason: str


def choose_tracker(wanted: str = "auto") -> TrackerChoice:
    """Choose by self-test what this kernel may be trusted with; raises FeatureMissing when nothing is left or `wanted` fails."""
    if wanted in ("auto", "pagemap-scan"):
        failed = [trial for trial in tracking_self_test() if not trial.passed]
        if not failed:
            return TrackerChoice("pagemap-scan", userfaultfd.TRACK_ASYNC, "the kernel passed the tracking self-test")
        reason = "; ".join(f"{trial.name}: {trial.detail}" for trial in failed)
        if wanted == "pagemap-scan":
            raise FeatureMissing("this kernel cannot track writes with PAGEMAP_SCAN", reason)
    else:
        reason = "asked for"
    try:
        offered = userfaultfd.supported_features()
    except OSError as error:
        raise FeatureMissing("this host has no userfaultfd", error.strerror or str(error)) from error
    if userfaultfd.TRACK_SYNC & ~offered:
        raise FeatureMissing("this kernel cannot track a guest's writes", f"userfaultfd offers {offered!r}")
    return TrackerChoice("page-fire", userfaultfd.TRACK_SYNC, reason)


def make_tracker(guest: GuestProcess, choice: TrackerChoice, wanted: Granularity) -> DirtyTracker:
    """Make the tracker of a guest, which is not registered yet; the caller removes it.

    Raises UsageError, FeatureMissing, GuestError. What AUTO means the guest's memory decides: on hugetlb whole granules; on
    transparent huge pages granules, broken down where that pays; else pages.
    """
    granularity = granularity_of(Backing(guest.config.backing), choice.name, wanted)
    # The guest keeps no copy: one that it held would freeze it for ever at its next write once this daemon is dead.
    uffd = guest.open_uffd(choice.features, keep=False)
    memory = guest.memory
    if choice.name != PagemapTracker.name:
        return PageFireTracker(uffd, guest.address, memory.fd, memory.size_bytes, memory.unit_pages)
    break_down: BreakDown = Everywhere()
    if memory.unit_pages > 1:
        break_down = Nowhere()
    elif granularity is Granularity.AUTO:
        break_down = WhereSparse()
    return PagemapTracker(uffd, guest.pid, guest.address, memory.fd, memory.size_bytes, granularity, break_down)


def granularity_of(backing: Backing, tracker: str, wanted: Granularity) -> Granularity:
    """Tell by what such a guest is protected; raises UsageError where it cannot be by what is wanted."""
    if backing is Backing.HUGETLB:
        if wanted is Granularity.PAGE:
            raise UsageError(
                "a guest on hugetlb cannot be protected by 4K",
                "the kernel does not divide its 2 MiB pages",
                "use --granularity 2M, or --backing thp",
            )
        return Granularity.GRANULE
    if tracker == PageFireTracker.name:
        if wanted is Granularity.GRANULE:
            raise UsageError(
                f"--tracker {tracker} cannot protect this guest by {wanted.value}",
                "the kernel lays synchronous write protection of shared memory page by page",
                "use --granularity 4K, --backing hugetlb, or --tracker pagemap-scan",
            )
        return Granularity.PAGE
    if wanted is Granularity.AUTO and backing is Backing.SMALL:
        return Granularity.PAGE
    return wanted
