"""Compressed pages as both ends agree on them: by codec, on page connections, within the limits, or not at all."""

from __future__ import annotations

import pytest

from pagefire.protocol import messages as m
from pagefire.protocol.codecs import CODECS
from pagefire.protocol.compression import MODES, codecs_of
from pagefire.protocol.errors import LocalProtocolError, RemoteProtocolError
from pagefire.protocol.messages import MAX_FRAME_PAGES, MAX_FRAME_RUNS
from pagefire.protocol.negotiation import CAPABILITIES, COMPRESSED, DELTAS, codecs_in, source_capabilities
from pagefire.protocol.pages import PAGE_BYTES, PageSet
from pagefire.protocol.state import Role, Side
from tests.protocol.golden.conversation import Pair, greeted

SOURCE, DESTINATION = Side.SOURCE, Side.DESTINATION
TWO = PageSet.span(3, 5)
#: What a peer lists that knows all codecs.
ALL = source_capabilities(checksum=False, codecs=CODECS)


def refused(pair: Pair, message: m.Message, payload_bytes: int, why: str) -> None:
    """Check that neither end sends or believes a message."""
    with pytest.raises(LocalProtocolError, match=why):
        pair.ends[SOURCE].send(message, payload_bytes)
    with pytest.raises(RemoteProtocolError, match=why):
        pair.force(DESTINATION, message, payload_bytes)


def test_each_codec_has_a_capability_that_is_not_required() -> None:
    assert list(COMPRESSED) == list(CODECS)
    assert set(COMPRESSED.values()) <= set(CAPABILITIES)
    assert codecs_in(list(CAPABILITIES)) == set(CODECS)


@pytest.mark.parametrize("mode", MODES)
def test_a_source_lists_what_it_may_use(mode: str) -> None:
    listed = source_capabilities(checksum=False, codecs=codecs_of(mode))
    assert codecs_in(listed) == set(codecs_of(mode))
    assert codecs_of(mode) == {"off": (), "auto": CODECS}.get(mode, (mode,))


@pytest.mark.parametrize("codec", CODECS)
def test_what_both_listed_may_come(codec: str) -> None:
    pair = greeted([COMPRESSED[codec]], list(CAPABILITIES))
    assert {end.codecs for end in pair.ends.values()} == {frozenset([codec])}
    for payload_bytes in (1, TWO.size_bytes - 1):
        arrival = pair.pass_on(SOURCE, m.CompressedPages(TWO, codec), payload_bytes)
        assert arrival.payload_bytes == payload_bytes
    other = next(each for each in CODECS if each != codec)
    refused(pair, m.CompressedPages(TWO, other), 1, f"the codec '{other}' was not agreed on")


@pytest.mark.parametrize(("listed", "known"), [(ALL, []), ([], ALL), ([], [])])
def test_an_older_peer_gets_raw_pages(listed: list[str], known: list[str]) -> None:
    pair = greeted(listed, known)
    assert {end.codecs for end in pair.ends.values()} == {frozenset()}
    refused(pair, m.CompressedPages(TWO, "lz4"), 100, "the codec 'lz4' was not agreed on")
    pair = greeted(listed, known)
    pair.pass_on(SOURCE, m.Pages(TWO), TWO.size_bytes)


def test_differences_may_come_where_both_listed_them_and_the_codec() -> None:
    listed = [COMPRESSED["lz4"], DELTAS]
    pair = greeted(listed, list(CAPABILITIES))
    assert all(end.deltas for end in pair.ends.values())
    pair.pass_on(SOURCE, m.DeltaPages(TWO, "lz4"), 1)
    refused(pair, m.DeltaPages(TWO, "zstd"), 1, "the codec 'zstd' was not agreed on")
    for ours, theirs in ((listed, ALL), (ALL, listed), ([DELTAS], listed)):
        pair = greeted(ours, theirs)
        refused(pair, m.DeltaPages(TWO, "lz4"), 1, "not agreed on")
        assert all(end.deltas for end in pair.ends.values()) == (ours == [DELTAS])
    refused(greeted(listed, listed, Role.FAULT), m.DeltaPages(TWO, "lz4"), 1, "not by the source on a fault connection")


def test_an_unknown_codec_is_named_in_short() -> None:
    pair = greeted(ALL, ALL)
    refused(pair, m.CompressedPages(TWO, "x" * 1000), 100, f"the codec '{'x' * 40}' was not agreed on")


def test_there_are_none_on_a_fault_connection() -> None:
    pair = greeted(ALL, ALL, Role.FAULT)
    refused(pair, m.CompressedPages(TWO, "lz4"), 100, "not by the source on a fault connection")


@pytest.mark.parametrize(
    ("pages", "payload_bytes", "why"),
    [
        (TWO, 0, "2 compressed pages announced, 0 bytes of payload"),
        (TWO, TWO.size_bytes, "2 compressed pages announced, 8192 bytes of payload"),
        (TWO, 256 << 20, "2 compressed pages announced"),
        (PageSet.empty(), 0, "0 compressed pages announced"),
        (PageSet.empty(), 1, "0 compressed pages announced"),
        (PageSet.span(0, MAX_FRAME_PAGES + 1), 100, "2049 pages, a frame names 2048 at most"),
        (PageSet.span(0, 1 << 50), 100, "a frame names 2048 at most"),
        (PageSet.of_pages(range(0, 2 * MAX_FRAME_RUNS + 2, 2)), 100, "513 runs of pages, a frame names 512 at most"),
    ],
    ids=str,
)
@pytest.mark.parametrize("message_class", [m.CompressedPages, m.DeltaPages])
def test_what_a_frame_announces_is_within_limits(
    message_class: type[m.CompressedPages | m.DeltaPages], pages: PageSet, payload_bytes: int, why: str
) -> None:
    both = [*ALL, DELTAS]
    refused(greeted(both, both), message_class(pages, "zstd"), payload_bytes, why)


def test_the_limits_themselves_are_allowed() -> None:
    for pages in (PageSet.span(0, MAX_FRAME_PAGES), PageSet.of_pages(range(0, 2 * MAX_FRAME_RUNS, 2))):
        pair = greeted(ALL, ALL)
        pair.pass_on(SOURCE, m.CompressedPages(pages, "zstd"), pages.pages * PAGE_BYTES - 1)
