"""Whether compression pays: pure functions of what a sender has measured of its link, its pages and its codecs.

Times are per byte of page contents. Raw pages take 1 / link. A sender that compresses first packs and then sends, a receiver first
unpacks and then places, and the two work at once, so compressed pages take

    max(1 / pack + share / link, 1 / unpack + 1 / place)

which charges too much where the socket's buffer lets packing and sending overlap: what is found to pay, pays. The receiver's part
keeps compression away from links that are faster than memory can be placed: there the bytes are not what takes the time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from pagefire.protocol.codecs import CODECS

MODES = ("off", *CODECS, "auto")
#: Pages of which more than this share is left are sent as they are: what it saves is not worth a copy at each end.
MOST_SHARE = 0.9
#: `auto` compresses where it expects to save at least this share of the time.
LEAST_GAIN = 0.1
#: Bytes a second at which a receiver writes contents that it has in its own memory into pages that it has not touched yet (pwrite
#: into a memfd: 0.4-1.6 GB/s, five runs on a busy machine).
PLACE_BPS = 1e9

#: Pages that are looked at to tell how a batch would compress (64 KiB of the 1 MiB of a batch), and the share of a stream's time
#: that this may take.
SAMPLE_PAGES = 16
SAMPLE_TIME_SHARE = 0.005
#: Fewer pages are sent as they are.
LEAST_PAGES = 16
#: Pages that are packed together: in 1 MiB lz4 and zstd find what they find in 8, and while the socket's buffer holds one batch the
#: next one is packed.
PACKED_PAGES = 256


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
    TOO_FEW = "there were too few pages at a time"
    REFUSED = "the destination does not know the codec"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with the next batch: the codec, None to send it as it is."""

    codec: str | None
    why: Why


def choose(mode: str, link_bps: float | None, measured: Mapping[str, Measured]) -> Choice:
    """Decide about pages that resemble the measured ones.

    `mode` is a codec or auto; `measured` has the codecs that may be used, as far as they were measured. `link_bps` is what the
    connection carries, None where that is not known.
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
    best = min(able, key=lambda codec: packed_s_per_byte(link_bps, able[codec]))
    if packed_s_per_byte(link_bps, able[best]) > (1 - LEAST_GAIN) / link_bps:
        return Choice(None, Why.LINK_IS_FAST)
    return Choice(best, Why.PAYS)


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


def batch_pages(link_bps: float | None, choice: Choice, most_pages: int) -> int:
    """Give how many pages to decide about at once: all that a frame takes where they go raw, and the link moves them quickly."""
    raw_and_fast = choice.codec is None and link_bps is not None and link_bps >= PLACE_BPS / 4
    return most_pages if raw_and_fast else PACKED_PAGES


def _middle(one: float, other: float) -> float:
    return (one + other) / 2
