"""Faults injected into a migration: what, at which moment, and what became of the guest.

The source's script is held at a named point (protocol/transport/points.py), so that the fault comes at a known moment: a daemon is
killed, or every connection is cut by a relay that the migration goes through. What was killed is started again, as a person would,
and both hosts are asked until they agree who has the guest. Then the guest migrates once more, and that migration's own checks
say whether a commit was lost.

settled_s counts from the fault to that agreement, the new daemon's start included; it is a poll, every 20 ms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.transport.control_socket import request
from pagefire.scripts.daemons import Pair
from pagefire.scripts.migrating import Migration
from pagefire.scripts.relay import Relay
from pagefire.source_host.options import MigrationOptions

Json = dict[str, Any]
T = TypeVar("T")

KINDS = ("source daemon killed", "destination daemon killed", "link cut")
#: Moment -> the point of the source's script at which it is held.
MOMENTS = {
    "between rounds": "round",
    "before the commit point": "ready",
    "after the resume": "resumed",
    "while pages are pushed": "pushing",
}
NONE = "none"
_PATIENCE_S = 60.0
_LOOK_S = 0.02
_SETTLED = ("none", "failed", "cancelled", "completed")


@dataclass(frozen=True, slots=True)
class Fault:
    """One of `KINDS` at one of `MOMENTS`."""

    kind: str
    moment: str


def parse_fault(words: str) -> Fault | None:
    """Read `link cut, after the resume`; None for `none`. Raises UsageError."""
    if words == NONE:
        return None
    kind, _, moment = (part.strip() for part in words.partition(","))
    if kind not in KINDS or moment not in MOMENTS:
        raise UsageError(
            f"{words!r} is no fault",
            f"what may happen is {'; '.join(KINDS)}; and when {'; '.join(MOMENTS)}",
            'write "link cut, after the resume", or "none"',
        )
    return Fault(kind, moment)


@dataclass(slots=True)
class Ended:
    """How the migration that was hit ended: its report, as far as there is one, and its error."""

    report: Json | None = None
    error: PagefireError | None = None


def daemon_arguments(options: MigrationOptions) -> list[str]:
    """Give what both daemons are started with, so that a peer's silence is noticed as soon by either, and a guest can come back."""
    return ["--link-timeout", f"{options.silence_s}s"]


def strike(pair: Pair, options: MigrationOptions, fault: Fault) -> tuple[Ended, Json]:
    """Migrate, make the fault, see how it settles; gives how it ended, and {kind, moment, owner, settled_s, verified}.

    Raises PagefireError where the moment never comes, or the hosts do not agree.
    """
    point = MOMENTS[fault.moment]
    with Relay(pair.port) as relay:
        request(pair.source_socket, "point", action="hold", name=point)
        ended = Ended()
        moved = dataclasses.replace(options, to=relay.address)
        # Where something goes wrong here, what it waits for ends with its daemons, and so does the thread.
        thread = threading.Thread(target=_migrate, args=(pair, moved, ended), daemon=True)
        thread.start()
        _stand_at(pair, point, ended, thread)
        began_s = time.monotonic()
        _make(pair, relay, fault)
        with contextlib.suppress(PagefireError):  # a daemon that was killed holds nobody
            request(pair.source_socket, "point", timeout_s=10.0, action="release", name=point)
        _start_again(pair, fault)
        owner = _wait(lambda: _owner(pair), "nobody owns the guest for good")
        settled_s = time.monotonic() - began_s
        thread.join(_PATIENCE_S)
        verified = _migrate_again(pair, owner)["verified"]
    return ended, {
        "kind": fault.kind, "moment": fault.moment, "owner": owner, "settled_s": settled_s, "verified": verified,
    }  # fmt: skip


def _migrate(pair: Pair, options: MigrationOptions, ended: Ended) -> None:
    migration = Migration(pair.source_socket, pair.name, dataclasses.asdict(options), Console(quiet=True))
    try:
        ended.report = migration.run()
    except PagefireError as error:
        ended.error, ended.report = error, migration.report_of_failure


def _stand_at(pair: Pair, point: str, ended: Ended, thread: threading.Thread) -> None:
    """Wait until the script stands at the point; a migration that ends instead never comes there."""
    arrived = threading.Event()

    def ask() -> None:
        with contextlib.suppress(PagefireError):
            request(pair.source_socket, "point", action="wait", name=point)
            arrived.set()

    threading.Thread(target=ask, daemon=True).start()
    deadline = time.monotonic() + _PATIENCE_S
    while not arrived.wait(_LOOK_S):
        if not thread.is_alive() or time.monotonic() > deadline:
            why = str(ended.error) if ended.error is not None else "the migration was over before"
            raise PagefireError(
                f"the moment `{point}` never came", why, "take a mode that has it: postcopy for what follows the resume"
            )


def _make(pair: Pair, relay: Relay, fault: Fault) -> None:
    match fault.kind:
        case "source daemon killed":
            pair.source.process.kill()
            pair.source.end()
        case "destination daemon killed":
            pair.dest.process.kill()
            pair.dest.end()
        case _:
            relay.cut()


def _start_again(pair: Pair, fault: Fault) -> None:
    match fault.kind:
        case "source daemon killed":
            pair.start_source("--adopt")
        case "destination daemon killed":
            pair.start_dest()


def _owner(pair: Pair) -> str:
    """Tell who has the guest for good, source or destination; empty while something is still under way."""
    here, there = _entry(pair, "source"), _entry(pair, "dest")
    if there is not None and there["resident"] and there["owner"] and (here is None or here["status"] in _SETTLED):
        return "destination"
    if here is not None and here["status"] in _SETTLED and here["owner"] and here["running"]:
        return "source" if there is None or not there["owner"] else ""
    return ""


def _entry(pair: Pair, side: str) -> Json | None:
    try:
        guests = request(pair.source_socket if side == "source" else pair.dest_socket, "status", timeout_s=10.0)[
            "guests"
        ]
    except PagefireError:
        return None
    return next((one for one in guests if one["name"] == pair.name), None)


def _migrate_again(pair: Pair, owner: str) -> Json:
    socket, to = pair.source_socket, pair.destination
    if owner == "destination":
        socket, to = pair.dest_socket, request(pair.source_socket, "status")["listen"]
    again = dataclasses.asdict(MigrationOptions(to=to, settle_s=0.2))

    def moved() -> Json | None:
        """Try until the destination has swept what the first attempt left there."""
        with contextlib.suppress(PagefireError):
            report: Json = request(socket, "migrate", timeout_s=_PATIENCE_S, name=pair.name, **again)["report"]
            return report
        return None

    return _wait(moved, "the guest does not migrate again")


def _wait(ask: Callable[[], T | None], otherwise: str) -> T:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(_LOOK_S)
    raise PagefireError(
        f"after the fault {otherwise}", f"waited {_PATIENCE_S:g} s", "keep what the daemons logged: this is a defect"
    )
