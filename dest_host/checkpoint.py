"""What a Switchover brings, and Foretold before it: the registers, and which pages are still at the source.

A source that contradicts itself is refused.
"""

from __future__ import annotations

from pagefire.guest_workload.control_block import REGISTER_BYTES
from pagefire.protocol.bitmap import decode_bitmap
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.messages import Foretold, Switchover
from pagefire.protocol.pages import PageSet


def foretold_pages(foretold: Foretold, coded: bytes, total_pages: int) -> PageSet:
    """Read which pages are about to be missing; raises RemoteProtocolError."""
    return _counted(decode_bitmap(foretold.bitmap_form, coded, total_pages), foretold.remaining_pages)


def read(switchover: Switchover, payload: bytes, vcpus: int, total_pages: int) -> tuple[bytes, PageSet]:
    """Give the registers and the missing pages of a guest of this shape; raises RemoteProtocolError."""
    registers = payload[: switchover.registers_bytes]
    if len(registers) != vcpus * REGISTER_BYTES:
        raise RemoteProtocolError(
            "the checkpoint is of another number of vCPUs", f"{len(registers)} bytes of registers"
        )
    missing = _counted(missing_pages(switchover, payload, total_pages), switchover.remaining_pages)
    if not missing.disjoint(switchover.hot):
        raise RemoteProtocolError("the bitmap names pages that the switchover calls present")
    return registers, missing


def _counted(pages: PageSet, announced_pages: int) -> PageSet:
    if pages.pages != announced_pages:
        raise RemoteProtocolError("the bitmap holds another number of pages than announced", f"{pages.pages}")
    return pages


def missing_pages(switchover: Switchover, payload: bytes, total_pages: int) -> PageSet:
    """Read the bitmaps of what is still at the source beside what was foretold: pages in its memory, and those swapped out."""
    swap_bitmap_at = len(payload) - switchover.swapped_bytes
    missing = decode_bitmap(switchover.bitmap_form, payload[switchover.registers_bytes : swap_bitmap_at], total_pages)
    if not switchover.swapped_bytes:
        return missing
    swapped = decode_bitmap("compacted", payload[swap_bitmap_at:], total_pages)
    if missing & swapped:
        raise RemoteProtocolError("the swap bitmap names pages that the other bitmap names too")
    return missing | swapped
