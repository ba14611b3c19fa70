"""One fault at one moment of a migration, with real processes: what it is, how it is made, and who must own the guest afterwards.

A moment is a named point of one of the two scripts where it is held, or the middle of a round over a slow link. A fault is the
death of one of four processes (SIGKILL) or what may happen to a link. While it lasts the owner words of both hosts are watched.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.observation import open_control
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.ownership import Owner
from pagefire.scripts.relay import Relay
from tests.e2e.host_pair import HostPair, finish, until
from tests.e2e.replaying import arguments, assert_equals_its_twin

#: A peer is given up after this time, and a greeting that is not answered: a fault is over in seconds.
TIMEOUTS = ("--link-timeout", "1s", "--connect-timeout", "1s")
_SLOW = 30e6


@dataclass(frozen=True)
class Moment:
    """`point` of the script of `host` in a migration of `mode`; none: the middle of round 1 over a slow link.

    `has` says how far the guest is: `runs` at the source, `parked` there, `scanned` (what the destination needs is known),
    `relinquished`, `sent` (HANDOVER), `arrived` (HANDOVER), `taken`, `whole` (at the destination).
    """

    name: str
    host: str
    point: str
    has: str
    mode: str = "hybrid"


MOMENTS = (
    Moment("negotiated", "source", "negotiated", "runs"),
    Moment("traced", "source", "traced", "runs"),
    Moment("first round", "source", "", "runs"),
    Moment("between rounds", "source", "round", "runs"),
    Moment("quiesced", "source", "quiesced", "parked"),
    Moment("bitmap sent", "source", "bitmap-sent", "scanned"),
    Moment("bitmap arrived", "dest", "dest-switchover", "scanned"),
    Moment("before READY", "dest", "dest-installed", "scanned"),
    Moment("after READY", "source", "ready", "scanned"),
    Moment("relinquished", "source", "relinquished", "relinquished", "postcopy"),
    Moment("HANDOVER sent", "source", "handed-over", "sent", "postcopy"),
    Moment("HANDOVER arrived", "dest", "dest-handover", "arrived", "postcopy"),
    Moment("owner written", "dest", "dest-owner", "taken", "postcopy"),
    Moment("resumed", "source", "resumed", "taken", "postcopy"),
    Moment("mid-push", "source", "pushing", "taken", "postcopy"),
    Moment("mid-fault", "source", "serving", "taken", "postcopy"),
    Moment("last page", "dest", "dest-last-page", "taken", "postcopy"),
    Moment("resident told", "dest", "dest-resident", "whole", "postcopy"),
    Moment("resident heard", "source", "resident", "whole", "postcopy"),
    Moment("released", "source", "released", "whole", "postcopy"),
)
FAULTS = (
    "source daemon killed",
    "dest daemon killed",
    "source guest killed",
    "dest guest killed",
    "link cut",
    "link cut there",
    "link cut back",
    "link stalled",
)


def expected(moment: Moment, fault: str) -> set[str]:
    """Say who may have the guest in the end: source, dest, `taken back` by a person, or nobody because its only copy is gone."""
    before = moment.has in ("runs", "parked", "scanned")
    match fault:
        case "source guest killed" if moment.has == "runs":
            return {"nobody"}
        case "source guest killed":
            # Once it is known what the destination needs, memory and registers are the daemon's too. The kernel may still tell that
            # while a process that stands still is dying.
            return {"nobody", "dest"} if moment.has == "parked" else {"dest"}
        case "dest guest killed" if moment.has == "whole":
            return {"nobody"}
        case "dest guest killed" if moment.has == "taken":
            return {"taken back"}
        case "dest guest killed" if moment.has != "runs":
            # HANDOVER may be faster than the news of the death.
            return {"source", "taken back"}
        case "link cut back" if moment.name in ("bitmap sent", "after READY"):
            # READY is here, or may be: nothing has to come back any more before HANDOVER goes.
            return {"source", "dest"}
        case "dest daemon killed" if moment.has in ("relinquished", "arrived"):
            return {"source"}
        case "dest daemon killed" if moment.has == "sent":
            return {"source", "dest"}
        case "source daemon killed" | "link cut" | "link cut there" | "link stalled" if moment.has == "relinquished":
            return {"source"}
    return {"source"} if before else {"dest"}


class Words:
    """Watches the owner words of both guests from outside; `two_owners` tells whether both were OWNER at any look."""

    def __init__(self, blocks: list[ControlBlock]) -> None:
        self.blocks = blocks
        self.two_owners = False
        self._ended = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended:
            if sum(block.owner is Owner.OWNER for block in self.blocks) > 1:
                self.two_owners = True
            time.sleep(0.0005)

    def __enter__(self) -> Words:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        for block in self.blocks:
            block.close()


def strike(moment: Moment, fault: str) -> str:
    """Migrate a guest, make the fault at the moment, let both hosts settle; gives who owns it, after every check there is."""
    guest = arguments()
    both = [*guest, "--listen", "127.0.0.1:0", *TIMEOUTS[:2]]
    with (
        HostPair(both, list(TIMEOUTS[:2])) as pair,
        told(pair),
        Relay(pair.port, None if moment.point else _SLOW) as relay,
    ):
        options = ("--to", relay.address, "--mode", moment.mode, *TIMEOUTS)
        with _held(pair, moment), pair.migrating(*options) as command:
            _stand(pair, moment)
            with Words(_control_blocks(pair)) as words:
                _strike(pair, relay, fault)
                _release(pair, moment)
                owner = _settled(pair, relay, fault)
                # Where a person has taken the guest back, the word of the dead one still stands in its memory.
                assert owner == "taken back" or not words.two_owners, "both hosts owned the guest"
            if owner in ("nobody", "taken back") or fault == "source daemon killed":
                command.kill()
            else:
                finish(command)
        relay.mend()
        if owner == "nobody":
            return owner
        # Wherever it is now, it migrates, its workload's check holds, and it is the guest that it would be untouched.
        here, there = ("dest", "source") if owner == "dest" else ("source", "dest")
        report = _migrate_again(pair, here)
        assert (report["verified"]["invariant"], report["verified"]["problems"]) == (True, [])
        assert (report["verified"]["commits_lost"], report["verified"]["commits_repeated"]) == (0, 0)
        assert_equals_its_twin(pair, there)
        return owner


@contextlib.contextmanager
def told(pair: HostPair) -> Iterator[None]:
    """Where something fails within, print what both daemons know and have logged: they are gone when it is reported."""
    try:
        yield
    except BaseException:
        for host in ("source", "dest"):
            print(host, _entries(pair, host))
            print((pair.directory / f"{host}.log").read_text())
        raise


# -- the moment ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _held(pair: HostPair, moment: Moment) -> Iterator[None]:
    if moment.point:
        _ask(pair, moment.host, "point", action="hold", name=moment.point)
    yield


def _stand(pair: HostPair, moment: Moment) -> None:
    if moment.point:
        _ask(pair, moment.host, "point", action="wait", name=moment.point)
        return
    until(lambda: pair.on_source("guest").get("round") == 1, "round 1 does not begin")
    time.sleep(0.3)


def _release(pair: HostPair, moment: Moment) -> None:
    # A daemon that has been killed holds nobody.
    if moment.point:
        with contextlib.suppress(PagefireError):
            _ask(pair, moment.host, "point", action="release", name=moment.point)


def _ask(pair: HostPair, host: str, op: str, **fields: Any) -> Any:
    return (pair.on_source if host == "source" else pair.on_dest)(op, **fields)


def _control_blocks(pair: HostPair) -> list[ControlBlock]:
    blocks = []
    for host in ("source", "dest"):
        described = _ask(pair, host, "guests").get(pair.name)
        if described is not None:
            # None where the guest is whole at the destination, and freed here.
            with contextlib.suppress(OSError):
                blocks.append(open_control(described))
    return blocks


# -- the fault -----------------------------------------------------------------------------------------------------------------


def _strike(pair: HostPair, relay: Relay, fault: str) -> None:
    match fault.split():
        case [("source" | "dest") as host, "daemon", "killed"]:
            pair.kill(host)
        case [("source" | "dest") as host, "guest", "killed"]:
            pair.kill_guest(host)
        case ["link", "cut"]:
            relay.cut()
        case ["link", "cut", direction]:
            relay.swallow(direction)
        case _:
            relay.stall()


def _settled(pair: HostPair, relay: Relay, fault: str) -> str:
    """Bring back what the fault has taken, and wait until both hosts agree; gives who has the guest."""
    if fault.endswith("daemon killed"):
        pair.restart(fault.split(maxsplit=1)[0])
    elif fault in ("link cut there", "link cut back", "link stalled"):
        until(lambda: _noticed(pair), "not both sides have noticed", 20.0)
        relay.mend()
    owner = ""

    def agreed() -> bool:
        nonlocal owner
        owner = _owner(pair)
        return owner != ""

    until(agreed, "nobody owns the guest for good", 30.0)
    return owner


def _noticed(pair: HostPair) -> bool:
    """Tell whether neither side holds the link for a good one any more; it is mended only then."""
    here, there = _entries(pair, "source"), _entries(pair, "dest")
    busy = ("setup", "active", "device", "postcopy-active")
    return not any(one["status"] in busy for one in here + there)


def _entries(pair: HostPair, host: str) -> list[Any]:
    try:
        return list(_ask(pair, host, "status")["guests"])
    except PagefireError:
        return []


def _owner(pair: HostPair) -> str:
    """Tell who has the guest for good; empty while something is still under way."""
    source, dest = _entries(pair, "source"), _entries(pair, "dest")
    here = next((one for one in source if one["name"] == pair.name), None)
    there = next((one for one in dest if one["name"] == pair.name), None)
    settled = ("none", "failed", "cancelled", "completed")
    if there is not None and there["resident"] and there["owner"]:
        return "nobody" if there["error"] else "dest" if here is None or here["status"] in settled else ""
    if here is None or here["status"] not in settled or (there is not None and not there["resident"]):
        return ""
    if here["owner"]:
        return "nobody" if here["error"] == "the guest process ended" else "source" if here["running"] else ""
    if here["error"] and "died at the destination" in here["error"]:
        pair.on_source("recover", name=pair.name, take_back=True)
        return "taken back"
    if here["status"] == "completed" and there is None:
        return "nobody"  # It had moved, and died as any guest may.
    return "nobody" if here["error"] == "the guest process ended" else ""


def _migrate_again(pair: HostPair, here: str) -> Any:
    if here == "source":
        return pair.migrate()
    return pair.migrate_back()
