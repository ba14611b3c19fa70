"""Which tracker this kernel gets: decided by self-test, not by version."""

from __future__ import annotations

from dataclasses import dataclass

from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.selftest import tracking_self_test
from pagefire.protocol.errors import FeatureMissing
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


def make_tracker(guest: GuestProcess, choice: TrackerChoice, granularity: Granularity) -> DirtyTracker:
    """Make the tracker of a guest, which is not registered yet; the caller removes it. Raises FeatureMissing, GuestError."""
    if granularity is not Granularity.PAGE and choice.name != PagemapTracker.name:
        raise FeatureMissing(
            f"the tracker {choice.name} cannot protect by {granularity.value}",
            "the kernel's synchronous write protection of shared memory is laid page by page",
        )
    # The guest keeps no copy: one that it held would freeze it for ever at its next write once this daemon is dead.
    uffd = guest.open_uffd(choice.features, keep=False)
    memory = guest.memory
    if choice.name == PagemapTracker.name:
        return PagemapTracker(uffd, guest.pid, guest.address, memory.fd, memory.size_bytes, granularity)
    return PageFireTracker(uffd, guest.address, memory.fd, memory.size_bytes)
