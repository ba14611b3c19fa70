"""Whether compression pays: pure functions of what a sender has measured of its link, its pages and its codecs.

Times are per byte of page contents. Raw pages take 1 / link. A sender that compresses first packs and then sends, a receiver first
unpacks and then places, and the two work at once, so compressed pages take

    max(1 / pack + share / link, 1 / unpack + 1 / place)

which charges too much where the socket's buffer lets packing and sending overlap: what is found to pay, pays. The receiver's part
keeps compression away from links that are faster than memory can be placed: there the bytes are not what takes the time.

That is what is expected, and what decides what to try. Samples do not see that a machine has other work to do, whoever's end it is,
and then what was expected is not what comes: so what was tried has to have gone quicker than raw pages did (`Paces`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from pagefire.protocol.codecs import CODECS
from pagefire.protocol.pages import PAGE_BYTES

MODES = ("off", *CODECS, "auto")
#: Pages of which more than this share is left are sent as they are: what it saves is not worth a copy at each end.
MOST_SHARE = 0.9
#: `auto` compresses where it expects to save at least this share of the time.
LEAST_GAIN = 0.1
#: Bytes a second at which a receiver writes contents that it has in its own memory into pages that it has not touched yet (pwrite
#: into a memfd: 0.4-1.6 GB/s, five runs on a busy machine).
PLACE_BPS = 1e9

#: Pages that are looked at to tell how a batch would compress (64 KiB of the 1 MiB of a batch), and the share of a stream's time
#: that this may take. None is taken where the link alone decides (`worth_a_look`).
SAMPLE_PAGES = 16
SAMPLE_TIME_SHARE = 0.003
#: Fewer pages are sent as they are.
LEAST_PAGES = 16
#: Pages that are packed together: in 1 MiB lz4 and zstd find what they find in 8, and while the socket's buffer holds one batch the
#: next one is packed.
PACKED_PAGES = 256
#: For so long what a codec did with whole batches is believed of its speed, and no sample: those are too short to be interrupted.
BATCH_TELLS_S = 5.0
#: How long raw pages may go without a look at what comes next. Each look costs a batch, some 20 us of the CPU.
RAW_BATCH_S = 0.1


def codecs_of(mode: str) -> tuple[str, ...]:
    """Give the codecs that may be used in a mode, the quickest first."""
    return {"off": (), "auto": CODECS}.get(mode, (mode,))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a codec made of pages last: the share of them that was left, and bytes of contents a second, packed and unpacked."""

    share: float
    pack_bps: float
    unpack_bps: float = float("inf")

    def after(self, earlier: Measured | None) -> Measured:
        """Give what is believed after this measurement: its share, and speeds that one disturbed measurement does not decide."""
        if earlier is None:
            return self
        unpack_bps = (
            self.unpack_bps if earlier.unpack_bps == float("inf") else _middle(self.unpack_bps, earlier.unpack_bps)
        )
        return Measured(self.share, _middle(self.pack_bps, earlier.pack_bps), unpack_bps)


class Why(enum.Enum):
    """Why a batch goes as it goes."""

    ASKED_FOR = "asked for"
    PAYS = "it pays"
    INCOMPRESSIBLE = "the pages do not compress"
    LINK_UNKNOWN = "the link's speed is not known yet"
    LINK_IS_FAST = "the link is too fast for it to pay"
    WAS_SLOWER = "it was tried, and raw pages go quicker"
    TOO_FEW = "there were too few pages at a time"
    REFUSED = "the destination does not know the codec"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with the next batch: the codec, None to send it as it is."""

    codec: str | None
    why: Why


def choose(mode: str, link_bps: float | None, measured: Mapping[str, Measured], using: str | None = None) -> Choice:
    """Decide about pages that resemble the measured ones.

    `mode` is a codec or auto; `measured` has the codecs that may be used, as far as they were measured. `link_bps` is what the
    connection carries, None where that is not known. The codec that is in use, `using`, is left for a clearly better one only.
    """
    if mode != "auto":
        known = measured.get(mode)
        if known is not None and known.share > MOST_SHARE:
            return Choice(None, Why.INCOMPRESSIBLE)
        return Choice(mode, Why.ASKED_FOR)
    able = {codec: one for codec, one in measured.items() if one.share <= MOST_SHARE}
    if not able:
        return Choice(None, Why.INCOMPRESSIBLE)
    if link_bps is None:
        return Choice(None, Why.LINK_UNKNOWN)
    if not worth_a_look(link_bps):
        return Choice(None, Why.LINK_IS_FAST)
    best = min(able, key=lambda codec: packed_s_per_byte(link_bps, able[codec]))
    best_s = packed_s_per_byte(link_bps, able[best])
    if best_s > (1 - LEAST_GAIN) / link_bps:
        return Choice(None, Why.LINK_IS_FAST)
    if using in able and best_s > (1 - LEAST_GAIN) * packed_s_per_byte(link_bps, able[using]):
        return Choice(using, Why.PAYS)
    return Choice(best, Why.PAYS)


def worth_a_look(link_bps: float | None) -> bool:
    """Tell whether any pages and any codec could make it pay: not where the receiver cannot place what it unpacks as quickly."""
    return link_bps is None or link_bps < (1 - LEAST_GAIN) * PLACE_BPS


def packed_s_per_byte(link_bps: float, measured: Measured) -> float:
    """Expect how long a byte of contents takes, compressed, on a link that is not for nothing."""
    sender_s = 1 / measured.pack_bps + measured.share / link_bps
    receiver_s = 1 / measured.unpack_bps + 1 / PLACE_BPS
    return max(sender_s, receiver_s)


class SampleBudget:
    """Keeps samples to their share of a stream's time, in which the first one is free."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.count = 0

    def allows(self, busy_s: float) -> bool:
        """Tell whether one more may be taken after so many seconds of sending, if it costs what they have cost on average."""
        each_s = self.spent_s / self.count if self.count else 0.0
        return self.spent_s + each_s <= SAMPLE_TIME_SHARE * busy_s or not self.count

    def taken(self, cost_s: float) -> None:
        self.spent_s += cost_s
        self.count += 1


class LinkSpeed:
    """Bytes a second that a connection carries, as its sender sees it: the clock, what it sent, and what the socket still holds.

    While the socket holds something the link is at work, so what left it in that time is what the link carries, whether the sender
    was blocked or packed the next batch. An interval that begins with nothing in the socket tells of the link only while raw pages
    are sent, which are at hand as fast as any link takes them; one that ends so may have found the link idle, and tells nothing. So
    the speed of a link that waits for its sender is forgotten, and is found anew when something raw is sent.
    """

    #: Evidence of more than so many seconds counts half.
    WINDOW_S = 0.5
    #: Less evidence than both of these is none.
    LEAST_BYTES, LEAST_S = 1 << 20, 0.05
    #: A raw batch of fewer bytes, sent into an empty socket, tells when acknowledgements come, not what the link carries.
    LEAST_BATCH_BYTES = 256 << 10
    #: What was not seen for so long is forgotten.
    STALE_S = 1.0

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0
        self._at_s = self._seen_s = 0.0
        self._sent_bytes = self._queued_bytes = 0

    def begin(self) -> None:
        """Nothing was sent for a while: the time until the next batch tells nothing."""
        self._queued_bytes = 0

    def before_batch(self, now_s: float, sent_bytes: int, queued_bytes: int) -> None:
        """A batch is about to be sent; so much was sent in all, of which the socket still holds `queued_bytes`."""
        self._note(now_s, sent_bytes, queued_bytes, tells=self._queued_bytes > 0 and queued_bytes > 0)

    def after_batch(self, now_s: float, sent_bytes: int, queued_bytes: int, *, raw: bool) -> None:
        """The batch has been handed to the socket, of which so much is left there."""
        enough = raw and sent_bytes - self._sent_bytes >= self.LEAST_BATCH_BYTES
        self._note(now_s, sent_bytes, queued_bytes, tells=self._queued_bytes > 0 or enough)

    def bps(self, now_s: float) -> float | None:
        """Give what the link carries, None where that is not known, or not any more."""
        self._forget(now_s)
        if self._bytes < self.LEAST_BYTES and self._seconds < self.LEAST_S:
            return None
        return max(self._bytes, 1.0) / max(self._seconds, 1e-9)

    def _note(self, now_s: float, sent_bytes: int, queued_bytes: int, *, tells: bool) -> None:
        if tells:
            self._forget(now_s)
            self._bytes += (sent_bytes - queued_bytes) - (self._sent_bytes - self._queued_bytes)
            self._seconds += now_s - self._at_s
            self._seen_s = now_s
            while self._seconds > self.WINDOW_S:
                self._bytes, self._seconds = self._bytes / 2, self._seconds / 2
        self._at_s, self._sent_bytes, self._queued_bytes = now_s, sent_bytes, queued_bytes

    def _forget(self, now_s: float) -> None:
        if now_s - self._seen_s > self.STALE_S:
            self._bytes = self._seconds = 0.0


class Way(enum.Enum):
    """In which way a batch of pages goes."""

    RAW = "as they are"
    PACKED = "packed"
    DELTAS = "as differences, packed"


@dataclass(slots=True)
class _Rest:
    """Until when a way is not gone, how long it rests the next time, and how quick it was when it was found to be slower."""

    next_s: float
    until_s: float = 0.0
    slower_bps: float = 0.0


class Paces:
    """Bytes of contents a second that went raw, and that went packed, packing included; and what follows for the next batch.

    What counts is what has left the socket, by the share that packing left of it, once all that was sent another way has gone.
    Where packed pages were slower, codecs rest, while raw ones are quicker than that, for a second, and twice as long each time
    that they are slower again. Whole pages and differences rest each for themselves.
    """

    WINDOW_S, LEAST_S = 0.5, 0.05
    FIRST_REST_S, LONGEST_REST_S = 1.0, 16.0

    def __init__(self) -> None:
        #: Bytes of contents and seconds, by the way they went.
        self._carried = {way: (0.0, 0.0) for way in Way}
        self._rests = {way: _Rest(self.FIRST_REST_S) for way in Way}
        self._way = Way.RAW
        self._begun = False
        self._at_s = 0.0
        self._gone_bytes = self._clean_bytes = 0

    def begin(self) -> None:
        """Nothing was sent for a while."""
        self._begun = False

    def before_batch(self, sent_bytes: int, way: Way) -> None:
        """A batch is about to go this way; so much was sent in all."""
        if way is not self._way or not self._begun:
            self._way, self._begun, self._clean_bytes = way, False, sent_bytes

    def after_batch(self, now_s: float, sent_bytes: int, queued_bytes: int, share: float) -> None:
        """It went, with this share of it left; so much was sent in all, of which the socket holds `queued_bytes`."""
        gone_bytes = sent_bytes - queued_bytes
        if not self._begun:
            self._begun = True
        elif self._gone_bytes >= self._clean_bytes:
            contents_bytes, seconds = self._carried[self._way]
            contents_bytes += (gone_bytes - self._gone_bytes) / share
            seconds += now_s - self._at_s
            while seconds > self.WINDOW_S:
                contents_bytes, seconds = contents_bytes / 2, seconds / 2
            self._carried[self._way] = contents_bytes, seconds
        self._at_s, self._gone_bytes = now_s, gone_bytes

    def bps(self, way: Way) -> float | None:
        """Give the pace of pages that go this way, None where it is not known."""
        contents_bytes, seconds = self._carried[way]
        return contents_bytes / seconds if seconds >= self.LEAST_S else None

    def checked(self, choice: Choice, now_s: float, way: Way = Way.PACKED) -> Choice:
        """Give the choice of `auto` for a way of packing, or raw pages: these are quicker, or nobody knows how quick they are."""
        raw_bps, packed_bps, rest = self.bps(Way.RAW), self.bps(way), self._rests[way]
        if choice.codec is None:
            return choice
        if raw_bps is None:
            return Choice(None, Why.LINK_UNKNOWN)
        if packed_bps is not None and packed_bps < raw_bps:
            self._carried[way] = 0.0, 0.0
            rest.until_s, rest.slower_bps = now_s + rest.next_s, packed_bps
            rest.next_s = min(2 * rest.next_s, self.LONGEST_REST_S)
        elif packed_bps is not None:
            rest.next_s = self.FIRST_REST_S
        rests = now_s < rest.until_s and raw_bps > rest.slower_bps
        return Choice(None, Why.WAS_SLOWER) if rests else choice


def batch_pages(link_bps: float | None, choice: Choice, most_pages: int) -> int:
    """Give how many pages to decide about at once: where they go raw what the link moves in `RAW_BATCH_S`, `most_pages` at most."""
    if choice.codec is not None or link_bps is None:
        return PACKED_PAGES
    return int(min(max(link_bps * RAW_BATCH_S / PAGE_BYTES, PACKED_PAGES), most_pages))


def _middle(one: float, other: float) -> float:
    return (one + other) / 2
