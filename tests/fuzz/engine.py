"""One target in one process of its own, on one CPU: what `python -m tests.fuzz` starts for each.

    python -m tests.fuzz.engine TARGET MEASURES NEW_INPUTS INPUTS [libFuzzer options]

Guided by coverage where atheris is installed (libFuzzer then ends the process), by chance where not. Every input is measured.
MEASURES gets the slowest and the most memory as they are exceeded: a process that libFuzzer ends, or a crash, writes nothing more.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import traceback
from itertools import chain, islice
from pathlib import Path

from tests.fuzz.corpus import CORPUS, kept, mutations, target
from tests.fuzz.limits import HANG_S, INPUT_BYTES, PROCESS_BYTES, MemoryWithin, cpu_s

#: The code whose edges count: what reads the bytes, not what makes them.
_INSTRUMENTED = ["pagefire.protocol", "pagefire.dest_host.migration"]
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


class Measured:
    """A target that notes what its inputs cost."""

    def __init__(self, name: str, path: Path) -> None:
        self._one_input = target(name).one_input
        self._path = path
        self._slowest_s = self._most_bytes = 0.0

    def __call__(self, given: bytes) -> None:
        took_s = cpu_s(self._one_input, given)
        if took_s > self._slowest_s or MemoryWithin.peak_bytes > self._most_bytes:
            if took_s > self._slowest_s:
                self._slowest_s, self._slowest = took_s, given
            self._most_bytes = MemoryWithin.peak_bytes
            self._path.write_text(
                json.dumps(
                    {
                        "slowest_s": self._slowest_s,
                        "slowest_input": self._slowest.hex(),
                        "peak_bytes": MemoryWithin.peak_bytes,
                        "peak_share": MemoryWithin.peak_share,
                    }
                )
            )


def _by_coverage(name: str, measures: Path, new_inputs: Path, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        one_input = Measured(name, measures)
    for at, given in enumerate(target(name).seeds()):
        (new_inputs / f"seed-{at}").write_bytes(given)
    limits = [
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={PROCESS_BYTES >> 20}",
        f"-max_len={INPUT_BYTES}",
        "-print_final_stats=1",
    ]
    # libFuzzer starts itself once more, by a shell, when it merges.
    again = f"{sys.executable} -m tests.fuzz.engine {name} {measures} {new_inputs} 0"
    atheris.Setup([again, str(new_inputs), str(CORPUS / name), *limits, *options], one_input)
    atheris.Fuzz()


def _by_chance(name: str, measures: Path, new_inputs: Path, inputs: int) -> None:
    """Run the kept inputs, then mutations of them; a failing one is written beside where libFuzzer would."""
    one_input, known = Measured(name, measures), kept(name)
    for at, given in enumerate(islice(chain(known, mutations(known, seed=1)), inputs)):
        signal.alarm(HANG_S)  # which ends the process
        try:
            one_input(given)
        except Exception:
            traceback.print_exc()
            (new_inputs / f"crash-{at}").write_bytes(given)
            sys.exit(77)
    print(f"stat::number_of_executed_units: {inputs}", file=sys.stderr)


def main() -> None:
    name, measures, new_inputs, inputs, *options = sys.argv[1:]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if HAS_ATHERIS:
        _by_coverage(name, Path(measures), Path(new_inputs), [f"-runs={inputs}", *options])
    else:
        _by_chance(name, Path(measures), Path(new_inputs), int(inputs))


if __name__ == "__main__":
    main()
