"""Which granules are broken down: the rules on sets of pages, without a kernel."""

from __future__ import annotations

import numpy as np

from pagefire.protocol.pages import GRANULE_PAGES, PageSet
from pagefire.source_host.break_down import (
    DENSE_SHARE,
    LEAST_WINDOW_S,
    PROBE_AT,
    REGION_GRANULES,
    Everywhere,
    Nowhere,
    WhereSparse,
)

GUEST = range(8 * REGION_GRANULES)
PROBES = [granule for granule in GUEST if granule % REGION_GRANULES == PROBE_AT]


class Clock:
    """Goes on by `step_s` each time it is read."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def granules(*numbers: int) -> PageSet:
    return parts(1, *numbers)


def parts(share: float, *numbers: int) -> PageSet:
    """Hold so much of each granule."""
    pages = round(share * GRANULE_PAGES)
    return PageSet.of_runs([n * GRANULE_PAGES for n in numbers], [n * GRANULE_PAGES + pages for n in numbers])


def probing(clock: Clock | None = None, prelude: PageSet | None = None) -> WhereSparse:
    policy = WhereSparse(clock or Clock())
    assert policy.probes(granules(*GUEST)) == granules(*PROBES)
    policy.judge(prelude or PageSet.empty())
    return policy


def test_everywhere_and_nowhere() -> None:
    for policy in (Everywhere(), Nowhere()):
        assert not policy.probes(granules(*GUEST))
        assert not policy.at_once(granules(*GUEST))
    assert Everywhere().choose(granules(1, 5), PageSet.empty()) == granules(1, 5)
    assert not Nowhere().choose(granules(1, 5), PageSet.empty())


def test_every_region_has_a_probe_however_memory_becomes_known() -> None:
    policy = WhereSparse(Clock())
    found = PageSet.empty()
    for first in range(0, len(GUEST), 7):
        found |= policy.at_once(granules(*GUEST[first : first + 7]))
    assert found == granules(*PROBES)
    assert {probe // REGION_GRANULES for probe in PROBES} == set(range(8))


def test_a_region_that_the_prelude_shows_to_be_sparse_is_broken_down_at_once() -> None:
    """Written at random, 20.6% of a probe in a tenth of a second are 90% in a second."""
    regions = [range(n * REGION_GRANULES, (n + 1) * REGION_GRANULES) for n in range(16)]
    sparse, dense = regions[4], regions[5]
    policy = probing(prelude=parts(0.2, sparse[PROBE_AT]) | parts(0.21, dense[PROBE_AT]))
    assert policy.at_once(granules(*sparse, *dense[:PROBE_AT])) == granules(*sparse)
    # Those near it that show nothing are taken for like it, the dense one is not.
    like_it = {granule for n in (2, 3, 4, 6) for granule in regions[n]}
    assert policy.at_once(granules(*GUEST)) == granules(*sorted(like_it.union(PROBES)))


def test_what_is_written_throughout_stays_whole_and_the_rest_is_broken_down() -> None:
    first, second = 0, REGION_GRANULES
    written = parts(0.95, first + PROBE_AT) | parts(0.5, second + PROBE_AT)
    assert probing().choose(granules(first, first + 9, second, second + 9), written) == granules(second, second + 9)


def test_a_region_is_judged_anew_each_time() -> None:
    policy = probing()
    assert not policy.choose(granules(0), parts(1, PROBE_AT))
    assert policy.choose(granules(0), parts(0.5, PROBE_AT)) == granules(0)
    assert not policy.choose(granules(1), parts(1, PROBE_AT))


def test_a_region_whose_probe_nobody_wrote_is_broken_down() -> None:
    assert probing().choose(granules(5), PageSet.empty()) == granules(5)


def test_windows_that_are_too_short_tell_nothing() -> None:
    clock = Clock()
    policy = probing(clock)
    assert not policy.choose(granules(1), parts(1, PROBE_AT))
    clock.step_s = LEAST_WINDOW_S / 2
    assert not policy.choose(granules(1), parts(0.01, PROBE_AT))
    clock.step_s = 1.0
    assert policy.choose(granules(1), parts(0.01, PROBE_AT)) == granules(1)


def test_pages_beyond_the_probes_do_not_count() -> None:
    assert not probing().choose(granules(2), parts(1, PROBE_AT) | parts(0.1, 1))


def test_the_rule_on_random_sets() -> None:
    random = np.random.default_rng(5)
    policy = probing()
    for _ in range(50):
        fired = sorted(set(random.integers(0, len(GUEST), 40).tolist()) - set(PROBES))
        share = {probe: float(random.choice([0.0, 0.2, 0.85, 1.0])) for probe in PROBES}
        written = PageSet.empty()
        for probe, part in share.items():
            written |= parts(part, probe)
        dense = {probe // REGION_GRANULES for probe in PROBES if share[probe] >= DENSE_SHARE}
        expected = [granule for granule in fired if granule // REGION_GRANULES not in dense]
        assert policy.choose(granules(*fired), written) == granules(*expected)
