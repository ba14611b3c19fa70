"""How a session ends that the source may still ask about: said until it is noted, and for a shell without a daemon written down."""

from __future__ import annotations

import asyncio

from pagefire.dest_host.demand_paging import ARRIVAL
from pagefire.dest_host.journal import Journal, LastWord
from pagefire.dest_host.session import Session
from pagefire.guest_workload import keepsake
from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.protocol.errors import PagefireError
from pagefire.protocol.messages import Failure, Fenced, Noted, Perished
from pagefire.protocol.ownership import Act, Event, Ownership
from pagefire.protocol.state import Side
from pagefire.protocol.transport.frame_stream import FrameStream

#: How long a last word may take to be said and noted; after that the journal keeps it.
LAST_WORD_S = 1.0


async def say_last_word(control: FrameStream, last: LastWord) -> bool:
    """Say how a session ended; True when the source has noted it. What it had sent before it heard is read and ignored."""
    message = Fenced(last.outcome, last.what, last.why, last.do) if last.word == "fenced" else Perished(last.why)
    try:
        async with asyncio.timeout(LAST_WORD_S):
            await control.send(message)
            while True:
                arrival = await control.receive()
                await control.receive_payload(arrival.payload_bytes)
                if isinstance(arrival.message, Noted | Failure):
                    return True
    except (PagefireError, TimeoutError):
        return False


def fence(guest: GuestProcess, journal: Journal) -> None:
    """Give up a shell that a daemon left which is gone: not taken, and never will be. Blocks; the shell has ended afterwards."""
    assert Ownership(Side.DESTINATION, guest.control).on(Event.RESTARTED) is Act.SAY_FENCED
    found = keepsake.find(guest, ARRIVAL)
    if found is not None and guest.control.session != bytes(len(guest.control.session)):
        session, _ = Session.of_record(found[0])
        why = "its daemon ended before the guest was handed over"
        journal.write(
            session.identity,
            LastWord(session.secret, "fenced", "failed", "the destination has not taken the guest", why),
        )
    guest.terminate()
