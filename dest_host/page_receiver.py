"""One page connection at the destination: frames off a wire, by a thread of its own, contents straight into guest memory.

Compressed ones are read and unpacked into memory of this daemon first, at most a frame's pages (8 MiB), and then taken just as
those that come as they are: the wire gives them to whoever fills pages from it. Differences become contents at the same place, by
what memory holds: in rounds only, when nobody but this thread changes these pages, and all that came earlier is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pagefire.dest_host.intake import Intake
from pagefire.dest_host.landing import Landing
from pagefire.guest_workload.linux import scheduling
from pagefire.protocol.codecs import new_codec
from pagefire.protocol.connection import Arrival, Connection
from pagefire.protocol.messages import CompressedPages, DeltaPages, Failure, Pages, RoundEnd, ZeroPages
from pagefire.protocol.pages import PageSet
from pagefire.protocol.transport.frame_stream import refusal
from pagefire.protocol.transport.frame_thread import FrameThread
from pagefire.protocol.transport.wire import Wire


class PageReceiver(FrameThread):
    """Receives until the connection ends. Calls, in its thread, `on_round_end(round)` and at the end `on_end(error)`."""

    WHAT = "a page connection"

    def __init__(
        self,
        wire: Wire,
        connection: Connection,
        landing: Landing,
        intake: Intake,
        on_round_end: Callable[[int], object],
        on_end: Callable[[BaseException], object],
    ) -> None:
        super().__init__(wire, connection, on_end)
        self._landing = landing
        self._intake = intake
        self._on_round_end = on_round_end
        self._codecs = {name: new_codec(name) for name in connection.codecs}

    def _begin(self) -> None:
        scheduling.set_slice(scheduling.BULK_SLICE_NS)

    def _take(self, arrival: Arrival) -> None:
        match arrival.message:
            case Pages(pages):
                if arrival.check is not None:
                    self._wire.hold(arrival.payload_bytes, arrival.check)
                self._intake.take(pages, self._landing)
            case CompressedPages(pages, codec):
                unpack = partial(self._codecs[codec].unpack, size_bytes=pages.size_bytes)
                self._wire.hold(arrival.payload_bytes, arrival.check, unpack)
                self._intake.take(pages, self._landing)
            case DeltaPages(pages, codec):
                self._intake.check_in_round(pages)
                self._wire.hold(arrival.payload_bytes, arrival.check, partial(self._changed, pages, codec))
                self._intake.take(pages, self._landing)
            case ZeroPages(pages):
                self._intake.take_zero(pages, self._landing)
            case RoundEnd(number):
                self._on_round_end(number)
            case Failure() as failure:
                raise refusal(failure)

    def _changed(self, pages: PageSet, codec: str, packed: memoryview) -> memoryview:
        """Give the contents of pages of which these are the differences."""
        return self._landing.changed(pages, self._codecs[codec].unpack(packed, pages.size_bytes))
