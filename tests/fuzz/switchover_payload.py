"""Target: a switchover as a destination reads it: through its connection, then the bitmaps cut out of the payload."""

from __future__ import annotations

import copy
from typing import cast

from pagefire.dest_host.checkpoint import missing_pages
from pagefire.protocol import messages as m
from pagefire.protocol.bitmap import FORMS
from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.frames import encode_head
from pagefire.protocol.pages import PageSet
from pagefire.protocol.state import CONTROL, Side
from tests.fuzz import bitmap_forms
from tests.fuzz.bitmap_forms import bitmap
from tests.fuzz.choices import Choices
from tests.fuzz.limits import BITMAP_FACTOR, BODY_FACTOR, FIXED_BYTES, MemoryWithin
from tests.protocol.golden.conversation import Pair

_FORMS = ("compacted", "raw", "roaring", "")
_PHASE = next(
    phase for (phase, sender), allowed in CONTROL.items() if sender is Side.SOURCE and m.Switchover in allowed
)
_PAIR = Pair.at(_PHASE)


def one_input(given: bytes) -> None:
    choices = Choices(given)
    form = choices.one_of(_FORMS)
    registers = bytes(128 * choices.below(4))
    announced = [len(registers), 0]
    has_swap_bitmap, off_by = choices.below(2), choices.below(8)
    guest = choices.take(1)
    swapped = bitmap(Choices(guest + choices.take(choices.below(256))), "compacted")[1] if has_swap_bitmap else b""
    total_pages, coded = bitmap(Choices(guest + choices.rest()), form)
    announced[1] = len(swapped)
    # Three in eight lie: the first part is one byte longer, the last one, or the last all there is.
    if off_by == 5:
        announced[0] += 1
    elif off_by == 6:
        announced[1] += 1
    elif off_by == 7:
        announced[1] = len(registers) + len(coded) + len(swapped)
    payload = registers + coded + swapped
    message = m.Switchover(announced[0], form, 0, [0], 0, PageSet.empty(), 0, announced[1])
    body = m.encode(message)
    with MemoryWithin(BODY_FACTOR * len(body) + BITMAP_FACTOR * len(payload) + 2 * FIXED_BYTES):
        pair = copy.deepcopy(_PAIR)
        try:
            arrival = pair.deliver(Side.DESTINATION, encode_head(message.kind, body, len(payload)))
            missing = missing_pages(cast(m.Switchover, arrival.message), payload, total_pages)
        except RemoteProtocolError:
            return
    assert not missing or missing.stops[-1] <= total_pages
    assert announced[0] + announced[1] <= len(payload)


def seeds() -> list[bytes]:
    """The seeds of the bitmaps, in each form, with and without a swap bitmap of pages that the other one does not name."""
    page_40 = bytes((2, 1, 1, 9, 0x40, 1, 0, 0))
    made = []
    for form, guest, *rest in bitmap_forms.seeds():
        at = _FORMS.index(FORMS[form])
        made.append(bytes((at, 2, 0, 0, guest, *rest)))
        made.append(bytes((at, 2, 1, 0, guest, len(page_40), *page_40, *rest)))
    return made
