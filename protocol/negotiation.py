"""What two daemons must agree on before a page moves: version, capabilities, the shape of the guest.

Pure functions of what both sides said. The version is one number: the newest that both speak. A capability is a name that both
must know for it to be used; `REQUIRED` are those without which this release does not migrate.
"""

from __future__ import annotations

from collections.abc import Iterable

from pagefire.protocol.codecs import CODECS
from pagefire.protocol.errors import PeerRefused
from pagefire.protocol.messages import Hello, Offer, Welcome
from pagefire.protocol.pages import PAGE_BYTES
from pagefire.protocol.units import format_size

VERSIONS = (2,)
REQUIRED = frozenset({"compacted-bitmap", "zero-pages", "postcopy"})
#: Listed by a source that wants every frame of this connection to carry a checksum; the destination then verifies it.
CHECKSUM = "checksum"
#: Listed by a destination that takes the bitmap ahead of the stun.
FORETOLD = "foretold-bitmap"
#: Listed on a page connection by who sends, or takes, up to MAX_LONG_FRAME_PAGES of contents as they are in one frame.
LONG_FRAMES = "long-frames"
#: Listed on a page connection by who sends, or takes, differences to the last version of a page.
DELTAS = "delta-pages"
#: Codec -> what a source lists on a page connection that may bring pages compressed by it, and a destination that can read them.
COMPRESSED = {codec: f"compressed-{codec}" for codec in CODECS}
CAPABILITIES = tuple(
    sorted(REQUIRED | {"raw-bitmap", "page-digests", CHECKSUM, FORETOLD, LONG_FRAMES, DELTAS, *COMPRESSED.values()})
)
MODES = ("hybrid", "precopy", "postcopy", "stop-and-copy")
MAX_STREAMS = 16
MAX_VCPUS = 256
MAX_NAME_CHARACTERS = 40


def choose_version(hello: Hello) -> int:
    """Give the newest version that both speak; raises PeerRefused with both lists."""
    common = set(VERSIONS) & set(hello.versions)
    if not common:
        raise PeerRefused(
            "no common protocol version",
            f"the source speaks {hello.versions}, the destination {list(VERSIONS)} ({hello.software} calling)",
            "install the same pagefire on both hosts",
        )
    return max(common)


def source_capabilities(*, checksum: bool, codecs: Iterable[str] = (), deltas: bool = False) -> list[str]:
    """Give what a source lists on one connection, on which it may use these codecs, and differences."""
    unwanted = {name for codec, name in COMPRESSED.items() if codec not in codecs}
    if not checksum:
        unwanted.add(CHECKSUM)
    if not deltas:
        unwanted.add(DELTAS)
    return [name for name in CAPABILITIES if name not in unwanted]


def codecs_in(capabilities: list[str]) -> frozenset[str]:
    """Give the codecs that are listed among these capabilities."""
    return frozenset(codec for codec, name in COMPRESSED.items() if name in capabilities)


def check_capabilities(offered: list[str], whose: str) -> None:
    """Raise PeerRefused unless `offered` holds all that this release needs."""
    missing = sorted(REQUIRED - set(offered))
    if missing:
        raise PeerRefused(
            f"the {whose} lacks capabilities", ", ".join(missing), "install the same pagefire on both hosts"
        )


def check_welcome(welcome: Welcome) -> None:
    """Raise PeerRefused unless the destination chose a version of ours and can do what we need."""
    if welcome.version not in VERSIONS:
        raise PeerRefused(
            "the destination chose a version that this source does not speak",
            f"version {welcome.version}, here {list(VERSIONS)}",
            "install the same pagefire on both hosts",
        )
    check_capabilities(welcome.capabilities, "destination")


def check_offer(offer: Offer, max_guest_memory_bytes: int) -> None:
    """Raise PeerRefused unless a guest of this shape may come here."""
    if not 1 <= len(offer.name) <= MAX_NAME_CHARACTERS or not offer.name.isprintable():
        raise PeerRefused(
            f"{offer.name[:MAX_NAME_CHARACTERS]!r} is no name for a guest",
            f"1 to {MAX_NAME_CHARACTERS} printable characters are",
        )
    if offer.page_bytes != PAGE_BYTES:
        raise PeerRefused("the guest's pages are of another size", f"{offer.page_bytes} bytes, here {PAGE_BYTES}")
    if offer.memory_bytes <= 0 or offer.memory_bytes % PAGE_BYTES:
        raise PeerRefused("the guest's memory is not a whole number of pages", f"{offer.memory_bytes} bytes")
    if offer.memory_bytes > max_guest_memory_bytes:
        raise PeerRefused(
            f"guest {offer.name} is too large for the destination",
            f"{format_size(offer.memory_bytes)} of memory, {format_size(max_guest_memory_bytes)} allowed there",
            "start the destination with a larger --max-guest-memory",
        )
    for count, what, limit in ((offer.vcpus, "vCPUs", MAX_VCPUS), (offer.streams, "page connections", MAX_STREAMS)):
        if not 1 <= count <= limit:
            raise PeerRefused(f"the offer is of {count} {what}", f"the destination takes 1 to {limit}")
    if offer.mode not in MODES:
        raise PeerRefused(f"the destination knows no mode {offer.mode!r}", f"it knows {', '.join(MODES)}")
