"""Whether compression pays: a table of decisions, and what a sender knows of a link of any kind, by a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.protocol.compression import (
    LEAST_GAIN,
    PACKED_PAGES,
    SAMPLE_TIME_SHARE,
    Choice,
    LinkSpeed,
    Measured,
    Paces,
    SampleBudget,
    Way,
    Why,
    batch_pages,
    choose,
    packed_s_per_byte,
    worth_a_look,
)
from pagefire.protocol.messages import MAX_FRAME_PAGES

MB, GB, MIB = 1e6, 1e9, 1 << 20
#: What lz4 and zstd made of 1 MiB of text, of rows that are half blank, of pages nearly all blank, and of random bytes.
TEXT = {"lz4": Measured(0.51, 455 * MB, 3.3 * GB), "zstd": Measured(0.33, 297 * MB, 1.2 * GB)}
ROWS = {"lz4": Measured(0.45, 1.4 * GB, 10 * GB), "zstd": Measured(0.39, 1.0 * GB, 7 * GB)}
BLANK = {"lz4": Measured(0.02, 10 * GB, 24 * GB), "zstd": Measured(0.02, 6.8 * GB, 12 * GB)}
RANDOM = {"lz4": Measured(1.0, 16 * GB, 22 * GB), "zstd": Measured(1.0, 8.8 * GB, 31 * GB)}


@pytest.mark.parametrize(
    ("link_bps", "measured", "expected"),
    [
        # 100 Mbit/s, 1 and 2.5 Gbit/s, 10 Gbit/s, and loopback.
        (12 * MB, TEXT, ("zstd", Why.PAYS)),
        (12 * MB, ROWS, ("zstd", Why.PAYS)),
        (12 * MB, BLANK, ("lz4", Why.PAYS)),
        (12 * MB, RANDOM, (None, Why.INCOMPRESSIBLE)),
        (120 * MB, TEXT, ("zstd", Why.PAYS)),
        (170 * MB, TEXT, ("lz4", Why.PAYS)),
        (120 * MB, ROWS, ("zstd", Why.PAYS)),
        (300 * MB, TEXT, (None, Why.LINK_IS_FAST)),
        (300 * MB, ROWS, ("lz4", Why.PAYS)),
        (300 * MB, BLANK, ("lz4", Why.PAYS)),
        (1.2 * GB, TEXT, (None, Why.LINK_IS_FAST)),
        (1.2 * GB, ROWS, (None, Why.LINK_IS_FAST)),
        # Packed and unpacked in no time, but a receiver that places pages at 1 GB/s is no quicker for it.
        (1.2 * GB, BLANK, (None, Why.LINK_IS_FAST)),
        (3 * GB, BLANK, (None, Why.LINK_IS_FAST)),
        (3 * GB, RANDOM, (None, Why.INCOMPRESSIBLE)),
        (None, TEXT, (None, Why.LINK_UNKNOWN)),
        (None, RANDOM, (None, Why.INCOMPRESSIBLE)),
        (12 * MB, {}, (None, Why.INCOMPRESSIBLE)),
        # One of the two is of no use for these pages.
        (12 * MB, {"lz4": RANDOM["lz4"], "zstd": TEXT["zstd"]}, ("zstd", Why.PAYS)),
        # A machine that is busy with something else.
        (120 * MB, {"lz4": Measured(0.5, 100 * MB, 3 * GB)}, (None, Why.LINK_IS_FAST)),
        # A receiver that unpacks slowly.
        (120 * MB, {"lz4": Measured(0.5, 1 * GB, 100 * MB)}, (None, Why.LINK_IS_FAST)),
    ],
)
def test_auto(link_bps: float | None, measured: dict[str, Measured], expected: tuple[str | None, Why]) -> None:
    assert choose("auto", link_bps, measured) == Choice(*expected)


@pytest.mark.parametrize("link_bps", [None, 12 * MB, 3 * GB])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_codec_that_was_asked_for_is_used_wherever_it_saves_bytes(codec: str, link_bps: float | None) -> None:
    assert choose(codec, link_bps, {}) == Choice(codec, Why.ASKED_FOR)
    assert choose(codec, link_bps, TEXT) == Choice(codec, Why.ASKED_FOR)
    assert choose(codec, link_bps, RANDOM) == Choice(None, Why.INCOMPRESSIBLE)


def test_a_codec_is_left_for_a_clearly_better_one_only() -> None:
    alike = {"lz4": Measured(0.40, 450 * MB, 3 * GB), "zstd": Measured(0.38, 420 * MB, 3 * GB)}
    for using in ("lz4", "zstd"):
        assert choose("auto", 20 * MB, alike, using) == Choice(using, Why.PAYS)
    assert choose("auto", 20 * MB, TEXT, "lz4") == Choice("zstd", Why.PAYS)
    # But not held on to where it does not pay, or does nothing.
    assert choose("auto", 1.2 * GB, TEXT, "lz4") == Choice(None, Why.LINK_IS_FAST)
    assert choose("auto", 12 * MB, {"lz4": RANDOM["lz4"], "zstd": TEXT["zstd"]}, "lz4") == Choice("zstd", Why.PAYS)


@pytest.mark.parametrize(("link_bps", "worth"), [(None, True), (12 * MB, True), (899 * MB, True), (900 * MB, False)])
def test_no_look_where_the_receiver_could_not_keep_up_anyway(link_bps: float | None, worth: bool) -> None:
    assert worth_a_look(link_bps) is worth
    if link_bps is not None and not worth:
        at_once = Measured(0.001, 1e12, 1e12)
        assert choose("auto", link_bps, {"lz4": at_once}) == Choice(None, Why.LINK_IS_FAST)


speeds = st.floats(1e5, 1e11)
shares = st.floats(0.001, 1.1)


@given(speeds, st.dictionaries(st.sampled_from(["lz4", "zstd"]), st.builds(Measured, shares, speeds, speeds)))
def test_what_is_chosen_is_expected_to_be_quicker_than_raw(link_bps: float, measured: dict[str, Measured]) -> None:
    codec = choose("auto", link_bps, measured).codec
    if codec is not None:
        chosen_s = packed_s_per_byte(link_bps, measured[codec])
        assert chosen_s <= (1 - LEAST_GAIN) / link_bps
        assert chosen_s >= 1 / measured[codec].pack_bps
        # A slower link only makes it more worth while.
        assert choose("auto", link_bps / 2, measured).codec is not None


def test_a_disturbed_measurement_alone_decides_no_speed() -> None:
    assert TEXT["lz4"].after(None) == TEXT["lz4"]
    assert Measured(0.6, 1 * MB, 1 * GB).after(Measured(0.5, 3 * MB, 3 * GB)) == Measured(0.6, 2 * MB, 2 * GB)
    assert Measured(0.6, 1 * MB, 1 * GB).after(Measured(0.5, 1 * MB)) == Measured(0.6, 1 * MB, 1 * GB)


@pytest.mark.parametrize(
    ("link_bps", "choice", "pages"),
    [
        (None, Choice(None, Why.LINK_UNKNOWN), PACKED_PAGES),
        (2 * GB, Choice(None, Why.LINK_IS_FAST), MAX_FRAME_PAGES),
        (2 * GB, Choice(None, Why.INCOMPRESSIBLE), MAX_FRAME_PAGES),
        (2 * GB, Choice("lz4", Why.ASKED_FOR), PACKED_PAGES),
        # What takes a second to send is looked at piece by piece: it may not be all alike.
        (12.288 * MB, Choice(None, Why.INCOMPRESSIBLE), 300),
        (1 * MB, Choice(None, Why.INCOMPRESSIBLE), PACKED_PAGES),
    ],
)
def test_pages_that_are_decided_about_at_once(link_bps: float | None, choice: Choice, pages: int) -> None:
    assert batch_pages(link_bps, choice, MAX_FRAME_PAGES) == pages


@given(st.lists(st.floats(1e-6, 0.01), min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=50, max_size=50))
def test_samples_keep_to_their_share(costs: list[float], sends: list[float]) -> None:
    budget, busy_s = SampleBudget(), 0.0
    assert budget.allows(0.0)
    for cost_s, send_s in zip(costs, sends, strict=False):
        busy_s += send_s
        if budget.allows(busy_s):
            budget.taken(cost_s)
    # By so much as the last ones were dearer than those before.
    assert budget.spent_s <= SAMPLE_TIME_SHARE * busy_s + costs[0] + max(costs)
    assert budget.count >= 1


# -- the link ----------------------------------------------------------------------------------------------------------


@dataclass
class Link:
    """A sender's clock, its socket's buffer, and a link that empties it; acknowledged when `trip_s` have passed."""

    bps: float
    buffer_bytes: float = 4 * MIB
    trip_s: float = 0.0
    now_s: float = 1000.0
    sent_bytes: int = 0
    queued_bytes: float = 0.0

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.queued_bytes = max(0.0, self.queued_bytes - self.bps * seconds)

    def send(self, size_bytes: int) -> None:
        """Hand it to the socket at 5 GB/s, and wait where the buffer is full."""
        self.sent_bytes += size_bytes
        self.pass_time(size_bytes / 5e9)
        self.queued_bytes += size_bytes
        if self.queued_bytes > self.buffer_bytes:
            self.pass_time((self.queued_bytes - self.buffer_bytes) / self.bps)

    def reading(self) -> tuple[float, int, int]:
        return self.now_s, self.sent_bytes, round(self.queued_bytes + min(self.bps * self.trip_s, self.sent_bytes))


def send_batches(speed: LinkSpeed, link: Link, count: int, size_bytes: int, *, raw: bool, pack_s: float = 0.0) -> None:
    for _ in range(count):
        link.pass_time(pack_s)
        speed.before_batch(*link.reading())
        link.send(size_bytes)
        speed.after_batch(*link.reading(), raw=raw)


@pytest.mark.parametrize("trip_s", [0.0, 0.001])
@pytest.mark.parametrize("bps", [1.2 * MB, 12 * MB, 120 * MB, 1.2 * GB])
def test_a_link_is_known_when_raw_pages_have_gone_over_it(bps: float, trip_s: float) -> None:
    speed, link = LinkSpeed(), Link(bps, trip_s=trip_s)
    assert speed.bps(link.now_s) is None
    send_batches(speed, link, 40, MIB, raw=True)
    assert speed.bps(link.now_s) == pytest.approx(bps, rel=0.1)


@pytest.mark.parametrize("bps", [1.2 * MB, 12 * MB, 120 * MB])
def test_a_link_is_known_while_it_is_what_packed_pages_wait_for(bps: float) -> None:
    """Whatever the buffer swallows at once: 0.3 MiB a batch, packed at 400 MB/s, are more than the link takes meanwhile."""
    speed, link = LinkSpeed(), Link(bps)
    send_batches(speed, link, 60, 336 << 10, raw=False, pack_s=0.0026 if bps < 100 * MB else 0.001)
    assert speed.bps(link.now_s) == pytest.approx(bps, rel=0.1)


def test_a_link_that_changes_is_followed() -> None:
    speed, link = LinkSpeed(), Link(12 * MB)
    send_batches(speed, link, 30, MIB, raw=True)
    for bps in (6 * MB, 100 * MB, 12 * MB):
        link.bps = bps
        send_batches(speed, link, 50, 336 << 10, raw=False)
        # Four half-lives: what it was before counts for less than a tenth.
        for _ in range(4):
            send_batches(speed, link, round(bps * 0.5 / MIB) + 1, MIB, raw=True)
        assert speed.bps(link.now_s) == pytest.approx(bps, rel=0.1)


def test_a_link_that_waits_for_its_sender_is_not_known_any_more() -> None:
    """Then something raw is sent, which tells again."""
    speed, link = LinkSpeed(), Link(1 * GB)
    send_batches(speed, link, 20, MIB, raw=True)
    assert speed.bps(link.now_s) == pytest.approx(1 * GB, rel=0.1)
    send_batches(speed, link, 1000, 336 << 10, raw=False, pack_s=0.0026)
    assert speed.bps(link.now_s) is None
    send_batches(speed, link, 5, MIB, raw=True)
    assert speed.bps(link.now_s) == pytest.approx(1 * GB, rel=0.3)


def test_a_pause_is_not_the_links_fault() -> None:
    speed, link = LinkSpeed(), Link(12 * MB)
    send_batches(speed, link, 10, MIB, raw=True)
    link.pass_time(0.02)
    # Something is still on its way when the next round begins.
    speed.begin()
    link.now_s += 0.9
    send_batches(speed, link, 1, MIB, raw=True)
    assert speed.bps(link.now_s) == pytest.approx(12 * MB, rel=0.1)


# -- what was tried ----------------------------------------------------------------------------------------------------


def send_paced(paces: Paces, link: Link, count: int, size_bytes: int, way: Way, pack_s: float = 0.0) -> None:
    """Send batches of 1 MiB of contents, of which packing leaves `size_bytes`."""
    for _ in range(count):
        link.pass_time(pack_s)
        paces.before_batch(link.sent_bytes, way)
        link.send(size_bytes)
        paces.after_batch(*link.reading(), size_bytes / MIB)


TRY = Choice("lz4", Why.PAYS)
REST = Choice(None, Why.WAS_SLOWER)


def test_paces_count_contents() -> None:
    paces, link = Paces(), Link(12 * MB)
    send_paced(paces, link, 10, MIB, Way.RAW)
    assert paces.bps(Way.RAW) == pytest.approx(12 * MB, rel=0.1)
    assert paces.bps(Way.PACKED) is None
    # What was sent raw is still in the socket when the first packed batches are: it does not count as theirs.
    send_paced(paces, link, 40, MIB // 4, Way.PACKED)
    assert paces.bps(Way.PACKED) == pytest.approx(48 * MB, rel=0.1)
    send_paced(paces, link, 10, MIB, Way.RAW)
    assert paces.bps(Way.RAW) == pytest.approx(12 * MB, rel=0.1)


def test_nothing_is_tried_before_raw_pages_are_known() -> None:
    paces, link = Paces(), Link(12 * MB)
    assert paces.checked(TRY, link.now_s) == Choice(None, Why.LINK_UNKNOWN)
    send_paced(paces, link, 10, MIB, Way.RAW)
    assert paces.checked(TRY, link.now_s) == TRY
    for raw in (Choice(None, Why.LINK_IS_FAST), Choice(None, Why.INCOMPRESSIBLE)):
        assert paces.checked(raw, link.now_s) == raw


def test_what_pays_goes_on() -> None:
    paces, link = Paces(), Link(12 * MB)
    send_paced(paces, link, 10, MIB, Way.RAW)
    for _ in range(10):
        send_paced(paces, link, 10, MIB // 2, Way.PACKED, pack_s=0.002)
        assert paces.checked(TRY, link.now_s) == TRY


def test_what_was_slower_rests_longer_each_time() -> None:
    """Half the bytes, but packing takes four times as long as sending would."""
    paces, link = Paces(), Link(120 * MB)
    rests = []
    for _ in range(7):
        send_paced(paces, link, 10, MIB, Way.RAW)
        send_paced(paces, link, 12, MIB // 2, Way.PACKED, pack_s=4 * MIB / link.bps)
        assert paces.checked(TRY, link.now_s) == REST
        began_s = link.now_s
        while paces.checked(TRY, link.now_s) == REST:
            send_paced(paces, link, 10, MIB, Way.RAW)
        rests.append(link.now_s - began_s)
    assert rests == pytest.approx([1, 2, 4, 8, 16, 16, 16], rel=0.1)


def test_a_rest_ends_when_raw_pages_are_slower_than_what_rests() -> None:
    paces, link = Paces(), Link(120 * MB)
    for _ in range(5):
        send_paced(paces, link, 20, MIB, Way.RAW)
        send_paced(paces, link, 12, MIB // 2, Way.PACKED, pack_s=4 * MIB / link.bps)
        assert paces.checked(TRY, link.now_s) == REST
        link.pass_time(10.0)
        paces.begin()
    assert paces.checked(TRY, link.now_s) == REST
    link.bps = 10 * MB
    send_paced(paces, link, 30, MIB, Way.RAW)
    assert paces.checked(TRY, link.now_s) == TRY


def test_a_pause_is_nobodys_pace() -> None:
    paces, link = Paces(), Link(12 * MB)
    send_paced(paces, link, 10, MIB, Way.RAW)
    link.pass_time(100.0)
    paces.begin()
    send_paced(paces, link, 10, MIB, Way.RAW)
    assert paces.bps(Way.RAW) == pytest.approx(12 * MB, rel=0.1)
