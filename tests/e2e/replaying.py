"""The replay proof, wherever a guest has ended up: at step N it is, byte for byte, its twin that was never touched."""

from __future__ import annotations

import functools
from typing import Any

from tests.e2e.host_pair import HostPair, guest_arguments

Json = dict[str, Any]
#: A guest whose twin is made once for all tests that use it. Paced, so that no test comes near `STEPS`, which is then run at once.
SHAPE = {"memory": "64MiB", "workload": "oltp", "vcpus": 2, "seed": 7, "working_set": "16MiB", "backing": "4k"}
RATE_PER_S = 4000
STEPS = 400_000


def arguments(rate: int = RATE_PER_S, **changes: Any) -> list[str]:
    """Give `pagefire source` arguments of the guest."""
    return guest_arguments(**{**SHAPE, **changes}, rate=rate)


@functools.cache
def _twin(shape: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, str], ...]:
    with HostPair(guest_arguments(**dict(shape), stop_at=STEPS)) as pair:
        pair.on_source("run_to", steps=STEPS, unpaced=True)
        return tuple(sorted(pair.on_source("digest").items()))


def assert_equals_its_twin(pair: HostPair, where: str, **changes: Any) -> None:
    """Run the guest, which lives at `where` (source, dest), to step N, and compare all of its memory and registers."""
    ask = pair.on_source if where == "source" else pair.on_dest
    ask("run_to", steps=STEPS, unpaced=True, name=pair.name)
    assert tuple(sorted(ask("digest", name=pair.name).items())) == _twin(tuple(sorted({**SHAPE, **changes}.items())))
