"""Proof: one fault at every moment of a migration. One owner, no lost write, a retry that succeeds, nothing left behind.

`make test` runs a third of the cases, `make soak` all of them, thrice, and prints the table of who owned the guest.
"""

from __future__ import annotations

import pytest

from tests.e2e.fault_matrix import FAULTS, MOMENTS, Moment, expected, strike
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

CASES = [(moment, fault) for moment in MOMENTS for fault in FAULTS]
#: A third, so that every moment and every fault is in it.
THIRD = [case for index, case in enumerate(CASES) if (index // len(FAULTS) + index % len(FAULTS)) % 3 == 0]


def check(moment: Moment, fault: str, place: Place, record_property: pytest.RecordProperty) -> None:
    need_pagemap_scan()
    owner = strike(moment, fault)
    record_property("owned", f"{moment.name} | {fault} | {owner}")
    assert owner in expected(moment, fault)
    place.assert_nothing_left()


@pytest.mark.parametrize(("moment", "fault"), THIRD, ids=lambda one: getattr(one, "name", one))
def test_a_third_of_the_faults(
    moment: Moment, fault: str, place: Place, record_property: pytest.RecordProperty
) -> None:
    check(moment, fault, place, record_property)


@pytest.mark.soak
@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize(("moment", "fault"), CASES, ids=lambda one: getattr(one, "name", one))
def test_every_fault_three_times(
    turn: int, moment: Moment, fault: str, place: Place, record_property: pytest.RecordProperty
) -> None:
    check(moment, fault, place, record_property)
