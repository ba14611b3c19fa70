"""When auto looks for unchanged pages, at the figures that decide it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefire.source_host.skipping import LEAST_RETURN, MODES, MOST_COST, Choice, Why, choose

LOOK_BPS = 5e9
speeds = st.floats(1e5, 1e11)
shares = st.none() | st.floats(0, 1)


def auto(link_bps: float | None, share: float | None = None, *, coarse: bool = True) -> Choice:
    return choose("auto", coarse=coarse, link_bps=link_bps, look_bps=LOOK_BPS, unchanged_share=share)


@given(st.booleans(), st.none() | speeds, st.none() | speeds, shares)
def test_what_was_asked_for_is_done(coarse: bool, link: float | None, look: float | None, share: float | None) -> None:
    for mode in ("on", "off"):
        choice = choose(mode, coarse=coarse, link_bps=link, look_bps=look, unchanged_share=share)
        assert choice == Choice(mode == "on", Why.ASKED_FOR)
    assert set(MODES) == {"on", "off", "auto"}


@given(speeds, shares)
def test_memory_that_is_tracked_page_by_page_is_let_alone(link_bps: float, share: float | None) -> None:
    assert auto(link_bps, share, coarse=False) == Choice(False, Why.PAGE_BY_PAGE)


def test_a_first_round_is_looked_at_where_that_costs_next_to_nothing() -> None:
    assert auto(125e6) == Choice(True, Why.PAYS)
    assert auto(MOST_COST * LOOK_BPS) == Choice(True, Why.PAYS)
    assert auto(1.01 * MOST_COST * LOOK_BPS) == Choice(False, Why.LINK_IS_FAST)
    assert auto(None) == Choice(True, Why.LINK_UNKNOWN)
    assert choose("auto", coarse=True, link_bps=1e9, look_bps=None, unchanged_share=None).look


@pytest.mark.parametrize(("share", "look"), [(0.0, False), (0.3, False), (0.5, True), (0.99, True)])
def test_a_faster_link_has_to_gain(share: float, look: bool) -> None:
    """A look costs a quarter of what sending does: half of the pages have to be left out for it to be worth it."""
    assert auto(LOOK_BPS / 4, share).look is look
    assert LEAST_RETURN == 2


@given(speeds, speeds, shares)
def test_a_slower_link_is_never_looked_at_less(one: float, other: float, share: float | None) -> None:
    assert auto(min(one, other), share).look >= auto(max(one, other), share).look


@given(speeds, st.floats(0, 1), st.floats(0, 1))
def test_more_that_is_unchanged_never_makes_it_look_less(link_bps: float, one: float, other: float) -> None:
    assert auto(link_bps, max(one, other)).look >= auto(link_bps, min(one, other)).look
