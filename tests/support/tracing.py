"""Tracing without a policy: what every test of a tracker begins with."""

from __future__ import annotations

from pagefire.protocol.pages import PageSet
from pagefire.source_host.tracking import DirtyTracker


def install_at_once(tracker: DirtyTracker) -> PageSet:
    """Protect all there is from this thread; gives the pages that have contents."""
    granules = tracker.register()
    tracker.protection(granules).issue()
    return tracker.adopt(granules)
