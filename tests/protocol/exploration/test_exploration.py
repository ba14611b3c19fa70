"""Every state of two hosts, their links and their crashes, in bounded worlds; each state is checked, and where it leads.

In every world: one migration of one session; the guest writes its pages where it runs; at any step a person may cancel, and a
destination that has not taken the guest may fail by itself; a person takes back only what the destination has lost or knows nothing
of. The bounds stand with each world (`Bounds`): pages of the guest, writes of it and rounds of pre-copy before the stun (a further
round may go during it), links that exist at once, cuts of a link, kill -9 of either daemon, deaths of either guest process, whether
vCPUs fetch pages by faults, whether digests are compared. `make test` walks the small worlds, `make soak` the large ones.

Checked in every state: never two words OWNER, never two running guests, none that runs under another word; before the commit point
the source is the one owner; by itself the source never runs again what has run at the destination; it frees nothing that the
destination misses, and moves nothing to one that has not taken the guest; no page is applied twice after the resume, none comes
between the last round and the resume; what a running vCPU can see is what the guest last wrote; nothing happens that the rules or
the phase table do not have. Of every state: without a further fault a way leads to a guest that runs with all its pages and nothing
left half-way, without a person too where the destination's process was not killed; or it is named which only copy is gone. Before
the commit point a way leads back to the guest running at the source.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pagefire.protocol.ownership import RULES, Event, Owner
from pagefire.protocol.state import Side
from tests.protocol.exploration.search import Exploration
from tests.protocol.exploration.world import Bounds, D, S

SMALL = {
    "the link is lost": Bounds(pages=1, cuts=1, kills=0, fetches=False),
    "a daemon is killed": Bounds(pages=1, cuts=0, kills=1),
    "both daemons are killed, or one twice": Bounds(pages=1, writes=0, rounds=0, cuts=0, kills=2),
    "a guest and a daemon are killed": Bounds(pages=1, writes=0, rounds=0, cuts=0, kills=1, deaths=1, fetches=False),
    "two pages": Bounds(pages=2, cuts=0, kills=0, verify=True),
}
LARGE = {
    "two pages, the link is lost, a daemon is killed": Bounds(pages=2, cuts=1, kills=1),
    "two pages, the link is lost, digests": Bounds(pages=2, cuts=1, kills=0, verify=True),
    "one page, everything once": Bounds(pages=1, cuts=1, kills=1, deaths=1),
    "one page, the link is lost twice, three at once": Bounds(pages=1, cuts=2, kills=1, slots=3, fetches=False),
}
#: What no script asks: it acts on the word alone there, or knows already that the answer cannot change.
NEVER_ASKED = {
    (Side.SOURCE, Owner.OWNER, Event.TAKE_BACK),
    (Side.SOURCE, Owner.RELINQUISHED, Event.FAILED),
    (Side.DESTINATION, Owner.FENCED, Event.FAILED),
    (Side.DESTINATION, Owner.OWNER, Event.FAILED),
}
Record = Callable[[str, object], None]


def explore(bounds: Bounds, record: Record) -> Exploration:
    exploration = Exploration(bounds)
    explored = exploration.run()
    print(f"{bounds}\n{explored.line()}")
    for name in ("states", "transitions", "depth", "walk_s", "ends_s", "undecided", "lost"):
        record(name, getattr(explored, name))
    return exploration


@pytest.mark.parametrize("bounds", SMALL.values(), ids=list(SMALL))
def test_small_world(bounds: Bounds, record_property: Record) -> None:
    exploration = explore(bounds, record_property)
    walked = exploration.core.walked
    assert walked <= RULES.keys()
    if bounds.kills and bounds.deaths:
        assert RULES.keys() - walked == NEVER_ASKED
        assert {*S, *D} - exploration.places() <= {S.ROUND, S.VERIFYING}


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bounds", LARGE.values(), ids=list(LARGE))
def test_large_world(bounds: Bounds, record_property: Record) -> None:
    explore(bounds, record_property)


def test_the_destination_fences_whatever_ends_its_waiting() -> None:
    """The script asks with FAILED for all of it; the exploration walks each row."""
    ends = (Event.FAILED, Event.LOST, Event.ASKED, Event.RESTARTED)
    assert len({RULES[Side.DESTINATION, Owner.NONE, event] for event in ends}) == 1
