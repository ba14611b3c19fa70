"""The bitmap at switchover, by the name of its form on the wire."""

from __future__ import annotations

from pagefire.protocol.bitmap_compacted import decode_compacted, encode_compacted
from pagefire.protocol.bitmap_raw import decode_raw, encode_raw
from pagefire.protocol.bitmap_runs import decode_runs, encode_runs
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.pages import PageSet

_ENCODERS = {"raw": encode_raw, "compacted": encode_compacted, "runs": encode_runs}
_DECODERS = {"raw": decode_raw, "compacted": decode_compacted, "runs": decode_runs}
#: What a person chooses from; runs is for what is left when most was foretold.
FORMS = ("raw", "compacted")


def encode_bitmap(form: str, pages: PageSet, total_pages: int) -> bytes:
    """Code the pages of a guest of `total_pages`; KeyError when there is no such form."""
    return _ENCODERS[form](pages, total_pages)


def decode_bitmap(form: str, coded: bytes, total_pages: int) -> PageSet:
    """Give the pages back; raises RemoteProtocolError for anything that is not a bitmap of this guest."""
    decode = _DECODERS.get(form)
    if decode is None:
        raise RemoteProtocolError("the peer sent a bitmap of an unknown form", repr(form[:32]))
    return decode(coded, total_pages)
