"""`pagefire set`: what a person may change of a migration that is under way, and what that makes of its options.

A pure function of the options so far. What a change means for what is under way is the migration's business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.source_host.options import MigrationOptions

#: What can be changed until the guest is stopped, and what also while its last pages move.
BEFORE, AFTER = ("mode", "downtime_limit_s", "max_rounds", "max_time_s", "on_limit"), ("max_bandwidth_Bps",)
#: Modes between which a migration whose guest is traced can change; postcopy ends pre-copy now.
MODES = ("hybrid", "precopy", "postcopy")


def retuned(options: MigrationOptions, changes: dict[str, Any], *, stopped: bool) -> MigrationOptions:
    """Give the options with these changes; raises UsageError, and PagefireError where it is too late.

    `stopped`: the guest is stopped, or beyond.
    """
    if not changes:
        raise UsageError("nothing is to be set", "", "give an option, such as --max-bandwidth 125MB/s")
    if unknown := changes.keys() - {*BEFORE, *AFTER}:
        raise UsageError(f"{', '.join(sorted(unknown))} cannot be set in flight")
    if stopped and (late := [name for name in BEFORE if name in changes]):
        raise PagefireError(
            f"too late to set {', '.join(late)}",
            "pre-copy is over",
            "the bandwidth can be set until the last page has moved",
        )
    mode = changes.get("mode", options.mode)
    if mode != options.mode:
        if mode not in MODES:
            raise UsageError(f"a migration cannot become {mode}", "", f"it can become {', '.join(MODES)}")
        if options.mode not in MODES[:2]:
            raise PagefireError(f"a migration in mode {options.mode} cannot become {mode}", "nothing traces its guest")
    if mode == "postcopy":
        return replace(options, **changes | {"mode": "hybrid", "switch_now": True})
    return replace(options, **changes)
