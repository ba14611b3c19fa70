"""The replay proof, wherever a guest has ended up: at step N it is, byte for byte, its twin that was never touched."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

from pagefire.guest_workload.guest_process import GuestProcess
from pagefire.scripts.options import GuestOptions
from tests.e2e.host_pair import HostPair, guest_arguments

Json = dict[str, Any]
#: A guest whose twin is made once for all tests that use it. Paced, so that no test comes near `STEPS`, which is then run at once.
SHAPE = {"memory": "64MiB", "workload": "oltp", "vcpus": 2, "seed": 7, "working_set": "16MiB", "backing": "4k"}
RATE_PER_S = 4000
STEPS = 400_000


def arguments(rate: int = RATE_PER_S, **changes: Any) -> list[str]:
    """Give `pagefire source` arguments of the guest."""
    return guest_arguments(**{**SHAPE, **changes}, rate=rate)


def twin_digest(steps: int, **shape: Any) -> Json:
    """Digest the guest of this shape (`guest_arguments`) at step N that never was anywhere: its process alone, without a daemon."""
    config = dataclasses.replace(GuestOptions(**{"memory": "64MiB", **shape}).config(), stop_at=steps)
    with tempfile.TemporaryDirectory(prefix="pf-") as directory:
        guest = GuestProcess.spawn(Path(directory) / "twin.guest", config)
        try:
            guest.control.resume()
            while not guest.control.all_finished():
                time.sleep(0.005)
            return dict(guest.digest())
        finally:
            guest.terminate()


@functools.cache
def _twin(shape: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(twin_digest(STEPS, **dict(shape)).items()))


def assert_equals_its_twin(pair: HostPair, where: str, **changes: Any) -> None:
    """Run the guest, which lives at `where` (source, dest), to step N, and compare all of its memory and registers."""
    ask = pair.on_source if where == "source" else pair.on_dest
    ask("run_to", steps=STEPS, unpaced=True, name=pair.name)
    assert tuple(sorted(ask("digest", name=pair.name).items())) == _twin(tuple(sorted({**SHAPE, **changes}.items())))
