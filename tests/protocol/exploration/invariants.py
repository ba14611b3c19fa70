"""What holds in every state, and what every state leads to.

Safety is looked at in each state by itself. What a state leads to is asked backwards over the whole graph (search.py): from each
state there is a way to a good end that needs no further fault, unless it is named here why there cannot be one.
"""

from __future__ import annotations

from pagefire.protocol.ownership import Owner
from tests.protocol.exploration.core import Core, Wrong
from tests.protocol.exploration.world import BEFORE_COMMIT, D, Dest, S, Source, pages_in


def check(core: Core, source: Source, dest: Dest) -> None:
    """Raise Wrong, naming the invariant that does not hold of the two hosts."""
    source_owns = source.word is Owner.OWNER and not source.freed
    dest_owns = dest.word is Owner.OWNER
    # A person who takes a guest back decides against the destination's word, where that has lost it.
    if source_owns and dest_owns and dest.guest:
        raise Wrong("both words say OWNER")
    if source.running and dest.running:
        raise Wrong("the guest runs twice")
    if source.running and not source_owns:
        raise Wrong(f"the guest runs at the source under {source.word.name}")
    if dest.running and not dest_owns:
        raise Wrong(f"the guest runs at the destination under {dest.word.name}")
    if (source.at in BEFORE_COMMIT or source.at is S.IDLE) and (not source_owns or dest_owns):
        raise Wrong("before the commit point the source is not the one owner")
    if source.running and dest.ran and not source.taken_back:
        raise Wrong("the source runs a guest again that has run at the destination, and nobody has decided that")
    if source.freed and not (dest.died or whole(core, source, dest)):
        raise Wrong("the source has freed pages that the destination misses")
    if source.at in (S.MOVING, S.FREEING) and not (dest_owns or dest.died):
        raise Wrong("the source has been told that the guest is taken, and it is not")
    if dest.running:
        _check_contents(core, source, dest)


def _check_contents(core: Core, source: Source, dest: Dest) -> None:
    """What a vCPU may see is what the guest last wrote: before the stun at the source, since the resume here."""
    for page in pages_in(core.publishable(dest.ledger)):
        if dest.contents[page] != source.versions[page] + (dest.wrote >> page & 1):
            raise Wrong(f"page {page} is stale where a running vCPU can see it")


def whole(core: Core, source: Source, dest: Dest) -> bool:
    """Whether the destination owns the guest and misses nothing."""
    return dest.guest and dest.word is Owner.OWNER and core.publishable(dest.ledger) == core.every


# -- ends --------------------------------------------------------------------------------------------------------------------------


def runs_at_source(source: Source, dest: Dest) -> bool:
    """A good end: the guest runs at the source, and nothing of the migration is left but what its time removes.

    That is the journal's "fenced", which nobody asks for any more (`KEPT_S`). What is left there of a guest that was taken back
    is left on purpose: the person who decided knew that the destination had lost it.
    """
    settled = source.at is S.ENDED and source.running and not source.kept
    return settled and (dest.at in (D.OPEN, D.DOWN) and not dest.guest) and dest.journal in ("", "fenced", "perished")


def runs_at_destination(core: Core, source: Source, dest: Dest) -> bool:
    """A good end: the guest runs at the destination with all its pages, and the source has nothing of it any more.

    The journal may still say "resident": the source has freed its copy, or died before it could say so.
    """
    return (
        dest.at is D.ARRIVED and dest.running and not dest.kept and whole(core, source, dest) and _nothing_left(source)
    )


def _nothing_left(source: Source) -> bool:
    return source.at is S.ENDED and not source.memory and not source.kept


def good_end(core: Core, source: Source, dest: Dest) -> bool:
    return runs_at_source(source, dest) or runs_at_destination(core, source, dest)


def why_no_end(core: Core, source: Source, dest: Dest) -> str | None:
    """Name why the guest cannot run again with all its pages, whatever anybody does; None: there is no reason.

    Each is the loss of the only copy of something, by the adversary's hand.
    """
    at_source = source.memory and source.guest
    if (source.freed or dest.journal == "resident") and dest.died and not dest.guest:
        # As any guest may, wherever it lives: the migration had nothing more to bring it.
        return "the guest died at the destination when it was whole"
    if source.word is Owner.OWNER:
        return None if source.guest else "the guest died at the source, its owner"
    if at_source:
        return None
    if dest.guest and dest.word is Owner.OWNER:
        # It runs here: only what it misses may be lost.
        missing = core.missing(dest.ledger)
        return "pages that only the source had are gone" if missing and not source.memory else None
    if dest.died and not dest.guest:
        return "the guest died at both hosts"
    return "the guest died at the source and was never taken at the destination"


def person_needed(dest: Dest) -> bool:
    """Whether a person may have to decide: the destination's process was killed, and with it what it knew."""
    return dest.died and not dest.guest
