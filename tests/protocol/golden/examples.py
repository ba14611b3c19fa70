"""One example of every message, and of every form that a field of it takes on the wire.

`frames.json` beside this file holds the bytes of each, payloads left out: what a second implementation must read and write. After a
change of the wire format that is meant, write them anew with PAGEFIRE_WRITE_GOLDEN=1 and look at the difference.
"""

from __future__ import annotations

from pathlib import Path

from pagefire.protocol import messages as m
from pagefire.protocol.pages import PageSet

FRAMES = Path(__file__).parent / "frames.json"
#: Set to anything, it makes the golden test write `frames.json` instead of reading it.
WRITE_VARIABLE = "PAGEFIRE_WRITE_GOLDEN"

_PAGES = PageSet((3, 1 << 30), (5, (1 << 30) + 1))
_HELLO = m.Hello(
    versions=[2],
    capabilities=["compacted-bitmap", "compressed-lz4", "delta-pages", "postcopy", "zero-pages"],
    role="control",
    index=0,
    session=b"",
    secret=b"",
    software="pagefire 0.1",
    name="guest0",
    silence_s=10.0,
)
_OFFER = m.Offer(
    name="guest0",
    memory_bytes=1 << 30,
    resident_bytes=1 << 29,
    working_set_bytes=1 << 28,
    page_bytes=4096,
    backing="4k",
    vcpus=2,
    workload="oltp",
    seed=(1 << 64) - 1,
    rate=None,
    mode="hybrid",
    streams=2,
    check=True,
    settle_s=1.0,
)

#: Name -> message and the bytes of its payload.
EXAMPLES: dict[str, tuple[m.Message, int]] = {
    "Hello control": (_HELLO, 0),
    "Hello recovery": (
        m.Hello([1], [], "recovery", 0, bytes(range(16)), bytes(range(16, 32)), "pagefire 0.1", "guest0", 10.0),
        0,
    ),
    "Hello pages": (
        m.Hello([2, 3], [], "pages", 1, bytes(range(16)), bytes(range(16, 32)), "pagefire 0.1", "guest0", 0.5),
        0,
    ),
    "Welcome": (
        m.Welcome(
            2,
            ["compressed-lz4", "delta-pages", "postcopy"],
            bytes(range(16)),
            bytes(range(16, 32)),
            "pagefire 0.1",
            "boot/time:[4026531834]",
            30.0,
        ),
        0,
    ),
    "Failure": (m.Failure("cancelled", "the migration was cancelled", "the guest runs on here", ""), 0),
    "ClockProbe": (m.ClockProbe(123_456_789_012_345), 0),
    "ClockReading": (m.ClockReading(123_456_789_012_345, 123_456_789_099_999), 0),
    "Offer": (_OFFER, 0),
    "Offer paced": (
        m.Offer(
            "\N{LATIN SMALL LETTER U WITH DIAERESIS}",
            4096,
            0,
            0,
            4096,
            "thp",
            1,
            "idle",
            0,
            2.5,
            "precopy",
            1,
            False,
            0.0,
        ),
        0,
    ),
    "Accept": (m.Accept(4711, 0.25), 0),
    "Populate": (m.Populate(_PAGES), 0),
    "Populated": (m.Populated(), 0),
    "Alive": (m.Alive(), 0),
    "Pages": (m.Pages(_PAGES), 3 * 4096),
    "Pages none": (m.Pages(PageSet.empty()), 0),
    "ZeroPages": (m.ZeroPages(_PAGES), 0),
    "CompressedPages": (m.CompressedPages(_PAGES, "lz4"), 100),
    "DeltaPages": (m.DeltaPages(_PAGES, "lz4"), 70),
    "RoundEnd": (m.RoundEnd(1), 0),
    "RoundReceived": (m.RoundReceived(300), 0),
    "Switchover": (m.Switchover(256, "compacted", 3, [70_000, 0], 2, _PAGES, 0, 4), 256 + 20),
    "Ready": (m.Ready(0.00025, 0.0, 0.001), 0),
    "PageDigests": (m.PageDigests(_PAGES), 3 * 16),
    "DigestsCompared": (m.DigestsCompared(PageSet.empty()), 0),
    "Handover": (m.Handover(), 0),
    "Resumed": (m.Resumed(123_456_789_000_000, 123_456_789_040_000), 0),
    "Taken": (m.Taken(3, 123_456_789_000_000, 123_456_789_040_000), 20),
    "Taken by a successor": (m.Taken(0, 0, 0), 11),
    "Fenced": (m.Fenced("failed", "the destination has not taken the guest", "its daemon ended", ""), 0),
    "Fenced with advice": (m.Fenced("cancelled", "the destination is shutting down", "", "start it again"), 0),
    "Noted": (m.Noted(), 0),
    "Perished": (m.Perished("the guest process 4711 ended"), 0),
    "Fetch": (m.Fetch(PageSet.span(3, 4)), 0),
    "Resident": (m.Resident(1 << 47, 100, 7, 1, 12, [40.5, 800.0, 1200.25], 0.5), 0),
    "Released": (m.Released(), 0),
    "Aftermath": (
        m.Aftermath(
            [1 << 47, 0],
            1 << 46,
            [0, 5, 127, 128],
            0.5,
            1.5,
            7,
            8,
            9,
            True,
            ["page 3 is torn"],
            -1,
            1 << 33,
            0.01,
            ["orders"],
            [5],
            bytes(range(8)),
            3,
        ),
        0,
    ),
    "Failure refused": (m.Failure("failed", "no common protocol version", "", "install the same pagefire"), 0),
    "Foretold": (m.Foretold("compacted", 70_000), 20),
    "Switchover raw": (m.Switchover(128, "raw", 0, [1], 0, PageSet.empty(), 1 << 40, 0), 128 + 8),
    "Ready drained": (m.Ready(0.0, 0.002, 0.0), 0),
    "DigestsCompared differing": (m.DigestsCompared(_PAGES), 0),
}

#: One of each class, for what does not depend on the fields.
BY_CLASS: dict[type[m.Message], tuple[m.Message, int]] = {}
for _message, _payload_bytes in EXAMPLES.values():
    BY_CLASS.setdefault(type(_message), (_message, _payload_bytes))
