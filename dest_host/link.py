"""All connections of one session at the destination, from the greeting to the first that breaks: control, pages, fault.

A migration has one; one whose link was lost after the resume has another one after it. Whoever waits for something on a link waits
beside `watch`, which ends with the first error of any of its connections and of the guest.
"""

from __future__ import annotations

import asyncio

from pagefire.dest_host.demand_paging import DemandPaging
from pagefire.dest_host.fault_connection import FaultConnection
from pagefire.dest_host.landing import Landing
from pagefire.dest_host.page_receiver import PageReceiver
from pagefire.guest_workload.linux.memfd import Mapping
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.messages import Failure, RoundReceived
from pagefire.protocol.state import Role
from pagefire.protocol.transport.frame_stream import FrameStream, refusal
from pagefire.protocol.transport.tasks import uninterrupted


class Link:
    """The connections of one session. Further ones may join between `admit` and `close`."""

    def __init__(self, control: FrameStream, peer_silence_s: float) -> None:
        self.control = control
        self._peer_silence_s = peer_silence_s
        self._alive: asyncio.Task[None] | None = None
        self._receivers: list[PageReceiver] = []
        self._streams = 0
        self._faults: FaultConnection | None = None
        self._joined = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._round_ends: dict[int, int] = {}
        self._to_acknowledge: asyncio.Queue[int] = asyncio.Queue()
        #: The last round that has been acknowledged.
        self.acknowledged = 0

    def admit(self, streams: int, memory: Mapping, paging: DemandPaging, silence_s: float) -> None:
        """From now on so many page connections and a fault connection may join, and silence means that the link is lost."""
        self._streams, self._memory, self._paging = streams, memory, paging
        self.control.silence_s = silence_s
        self._alive = asyncio.create_task(self.control.stay_alive(self._peer_silence_s))

    def join(self, role: Role, stream: FrameStream) -> None:
        """A further connection of this session has been greeted; takes the stream over. Raises RemoteProtocolError."""
        if not self._streams:
            raise RemoteProtocolError("the session takes no further connections now")
        loop = asyncio.get_running_loop()

        def ended(error: BaseException) -> None:
            loop.call_soon_threadsafe(self.break_off, error)

        if role is Role.FAULT:
            if self._faults is not None:
                raise RemoteProtocolError("a second fault connection")
            wire = stream.detach()
            landing = Landing(wire, self._memory, self._paging.ledger)
            self._faults = FaultConnection(wire, stream.connection, landing, self._paging.intake, ended)
            self._faults.start()
            self._paging.faults.ask_by(self._faults.ask)
            self._joined.set()
            return
        if len(self._receivers) >= self._streams:
            raise RemoteProtocolError("more page connections than were agreed on", f"{self._streams} agreed")
        wire = stream.detach()
        receiver = PageReceiver(
            wire,
            stream.connection,
            Landing(wire, self._memory, self._paging.ledger),
            self._paging.intake,
            on_round_end=lambda number: loop.call_soon_threadsafe(self._round_ended, number),
            on_end=ended,
        )
        self._receivers.append(receiver)
        receiver.start()

    @property
    def has_fault_connection(self) -> bool:
        return self._faults is not None

    async def can_fetch(self) -> None:
        """Wait for the fault connection to join."""
        await self._joined.wait()

    # -- rounds --------------------------------------------------------------------------------------------------------------

    def _round_ended(self, number: int) -> None:
        """A page connection has brought the round's marker; the last of them acknowledges the round."""
        self._round_ends[number] = self._round_ends.get(number, 0) + 1
        if self._round_ends[number] == self._streams:
            del self._round_ends[number]
            self._to_acknowledge.put_nowait(number)

    async def acknowledge_rounds(self) -> None:
        """Acknowledge rounds until cancelled."""
        while True:
            await self.acknowledge_round()

    async def acknowledge_round(self) -> None:
        """Wait until a round is here and say so. A Switchover may come meanwhile: a frame that was begun is sent to its end."""
        number = await self._to_acknowledge.get()
        self.acknowledged = number
        await uninterrupted(self.control.send(RoundReceived(number)))

    # -- the end -------------------------------------------------------------------------------------------------------------

    def break_off(self, error: BaseException) -> None:
        """Something besides the control connection failed: whoever watches gets this error."""
        if not self._broken.done():
            self._broken.set_exception(error)
            self._broken.exception()  # nobody has to ask

    async def watch(self) -> None:
        """Wait for the first error of a connection or of the guest, and raise it."""
        await asyncio.shield(self._broken)

    async def only_silence(self) -> None:
        """Read the control connection where the source has nothing to say but that it gives up.

        Raises what it says then, and LinkLost when it has gone, or is silent.
        """
        arrival = await self.control.receive()
        if isinstance(arrival.message, Failure):
            raise refusal(arrival.message)
        raise RemoteProtocolError(f"{type(arrival.message).__name__} came where nothing was due")

    def close(self) -> None:
        """Close every connection and wait for the threads of the others than control; more than once does nothing."""
        self._streams = 0
        if self._alive is not None:
            self._alive.cancel()
        self.control.close()
        # Each once: its descriptors are closed with it, and the numbers may be somebody else's by the next call.
        if self._faults is not None:
            # Closed when nobody can ask on it any more; shut down first, since who asks may be held up by it.
            self._faults.shut_down()
            self._paging.faults.ask_by(None)
            self._faults.abort()
            self._faults = None
        while self._receivers:
            self._receivers.pop().abort()
