"""Proof: one fault at every moment of a migration. One owner, no lost write, a retry that succeeds, nothing left behind.

`make test` runs a third of the cases, `make soak` all of them; the table of who owned the guest is printed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.fault_matrix import FAULTS, MOMENTS, Moment, expected, strike
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

CASES = [(moment, fault) for moment in MOMENTS for fault in FAULTS]
#: A third, so that every moment and every fault is in it.
THIRD = [case for index, case in enumerate(CASES) if (index // len(FAULTS) + index % len(FAULTS)) % 3 == 0]


@pytest.fixture(scope="module")
def owners() -> Iterator[dict[tuple[str, str], str]]:
    """Collect who owned the guest, and print it as a table."""
    found: dict[tuple[str, str], str] = {}
    yield found
    width = max(len(moment.name) for moment in MOMENTS)
    lines = ["", " " * width + " | " + " | ".join(FAULTS)]
    for moment in MOMENTS:
        cells = [found.get((moment.name, fault), "").center(len(fault)) for fault in FAULTS]
        lines.append(moment.name.ljust(width) + " | " + " | ".join(cells))
    print("\n".join(lines))


def check(moment: Moment, fault: str, owners: dict[tuple[str, str], str], place: Place) -> str:
    need_pagemap_scan()
    owner = owners[moment.name, fault] = strike(moment, fault)
    assert owner in expected(moment, fault)
    place.assert_nothing_left()
    return owner


@pytest.mark.parametrize(("moment", "fault"), THIRD, ids=lambda one: getattr(one, "name", one))
def test_a_third_of_the_faults(moment: Moment, fault: str, owners: dict[tuple[str, str], str], place: Place) -> None:
    check(moment, fault, owners, place)


@pytest.mark.soak
@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize(("moment", "fault"), CASES, ids=lambda one: getattr(one, "name", one))
def test_every_fault_three_times(
    turn: int,
    moment: Moment,
    fault: str,
    owners: dict[tuple[str, str], str],
    place: Place,
    record_property: pytest.RecordProperty,
) -> None:
    record_property("owner", check(moment, fault, owners, place))
