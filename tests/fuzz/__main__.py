"""`make fuzz`: a million inputs over all targets, each in its own process on one CPU, and what they found, cost and reached.

    make fuzz                             1,000,000 inputs, about ten minutes; exit code 1 on a crash, a hang or too much memory
    make fuzz ARGS=conversations          one target
    make fuzz ARGS="--replay conversations FILE"
    make fuzz ARGS=--regenerate           from the seeds; then the fewest inputs that reach the same are the corpus

A failing input is left in `results/`. Once the fault is mended it belongs into `corpus/TARGET/`: every `make test` replays it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import CORPUS, SHARES, TARGETS, target
from tests.fuzz.engine import HAS_ATHERIS
from tests.fuzz.limits import PROCESS_BYTES, cpu_s

Json = dict[str, Any]

INPUTS = 1_000_000
#: A target's process is ended by then; it takes a few minutes.
_TIME_LIMIT_S = 1800
#: libFuzzer's exit codes; `engine` gives 77 as well, and SIGALRM is its hang.
_ENDS = {0: "", 70: "a hang", 71: "memory above the limit", 72: "memory above the limit", 77: "a crash", -14: "a hang"}
_RESULTS = Path("results")


def run(name: str, inputs: int, new_inputs: Path, options: list[str]) -> Json:
    """Run one target to its count; gives its figures, `failed` being empty where nothing was found."""
    measures = new_inputs.with_suffix(".json")
    command = [sys.executable, "-m", "tests.fuzz.engine", name, str(measures), str(new_inputs), str(inputs), *options]
    began = time.monotonic()
    try:
        # Python's traceback comes on standard output, libFuzzer's words on the other.
        ended = subprocess.run(
            command, check=False, timeout=_TIME_LIMIT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        told, failed = (
            ended.stdout.decode(errors="replace"),
            _ENDS.get(ended.returncode, f"exit code {ended.returncode}"),
        )
    except subprocess.TimeoutExpired as late:
        told, failed = (late.stdout or b"").decode(errors="replace"), f"not done after {_TIME_LIMIT_S} s"
    took_s = time.monotonic() - began
    done = re.search(r"number_of_executed_units: *(\d+)", told)
    edges = [int(found) for found in re.findall(r"(?:INITED|DONE) +cov: (\d+)", told)]
    rss = re.search(r"peak_rss_mb: *(\d+)", told)
    if not failed and (done is None or int(done[1]) < inputs):
        failed = "it ended before its count"
    if failed:
        _leave(name, new_inputs, told)
    return {
        "inputs": int(done[1]) if done else 0,
        "inputs_per_s": int(done[1]) / took_s if done else 0.0,
        "edges_at_start": edges[0] if edges else None,
        "edges_at_end": edges[-1] if edges else None,
        "process_mib": int(rss[1]) if rss else None,
        "failed": failed,
        **(json.loads(measures.read_text()) if measures.exists() else {}),
    }


def _leave(name: str, new_inputs: Path, told: str) -> None:
    """Keep the failing input, and show how it failed."""
    _RESULTS.mkdir(exist_ok=True)
    for found in (path for kind in ("crash", "timeout", "oom") for path in new_inputs.glob(f"{kind}-*")):
        kept = _RESULTS / f"fuzz-{name}-{hashlib.sha1(found.read_bytes()).hexdigest()[:16]}"
        shutil.copy(found, kept)
        print(f'{name} failed; again with: make fuzz ARGS="--replay {name} {kept}"', file=sys.stderr)
    print(told[-4000:], file=sys.stderr)


def keep(name: str, new_inputs: Path) -> None:
    """Put into the corpus the fewest of these inputs that reach what all of them reach."""
    with tempfile.TemporaryDirectory() as directory:
        merged = Path(directory) / "merged"
        merged.mkdir()
        command = [sys.executable, "-m", "tests.fuzz.engine", name, str(Path(directory) / "measures"), str(merged), "0"]
        options = ["-merge=1", f"-artifact_prefix={directory}/", str(new_inputs)]
        subprocess.run([*command, *options], check=True, capture_output=True)
        shutil.rmtree(CORPUS / name, ignore_errors=True)
        (CORPUS / name).mkdir(parents=True)
        known = set(target(name).seeds())
        for path in merged.iterdir():
            given = path.read_bytes()
            if given not in known:
                (CORPUS / name / hashlib.sha1(given).hexdigest()[:16]).write_bytes(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"Of {', '.join(TARGETS)}; all if none is named.")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="How many in all.")
    parser.add_argument("--json", type=Path, help="Write the figures to this file as well.")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"), help="Run one input, uninstrumented.")
    parser.add_argument("--regenerate", action="store_true", help="Make the corpus anew from the seeds.")
    chosen = parser.parse_args()
    if chosen.replay:
        name, file = chosen.replay
        print(f"{cpu_s(target(name).one_input, Path(file).read_bytes()) * 1e3:.3f} ms")
        return
    if not HAS_ATHERIS:
        print("There is no atheris here: inputs are made by chance, coverage is not measured.", file=sys.stderr)
    if unknown := set(chosen.targets) - set(TARGETS):
        parser.error(f"there is no target {unknown.pop()}")
    targets = chosen.targets or TARGETS
    shares = sum(SHARES[name] for name in targets)
    figures: Json = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in targets:
            new_inputs = Path(directory) / name
            new_inputs.mkdir()
            if chosen.regenerate:
                shutil.rmtree(CORPUS / name, ignore_errors=True)
            (CORPUS / name).mkdir(parents=True, exist_ok=True)
            inputs = -(-chosen.inputs * SHARES[name] // shares)
            options = [f"-artifact_prefix={new_inputs}/"] if HAS_ATHERIS else []
            figures[name] = run(name, inputs, new_inputs, options)
            print(_line(name, figures[name]), flush=True)
            if chosen.regenerate and not figures[name]["failed"]:
                keep(name, new_inputs)
    print(f"{sum(one['inputs'] for one in figures.values()):,} inputs in all")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(one["failed"] for one in figures.values()))


def _line(name: str, one: Json) -> str:
    edges = f"{one['edges_at_start']} -> {one['edges_at_end']} edges" if one["edges_at_end"] else "edges not measured"
    memory = f"{one.get('peak_bytes', 0) / 1024:,.0f} KiB, {one.get('peak_share', 0):.0%} of its limit"
    process = f" (process {one['process_mib']} MiB of {PROCESS_BYTES >> 20})" if one["process_mib"] else ""
    slowest = f"slowest {one.get('slowest_s', 0) * 1e3:.1f} ms ({one.get('slowest_input', '')[:32]})"
    return (
        f"{name}: {one['inputs']:,} inputs, {one['inputs_per_s']:,.0f}/s, {edges}, at most {memory}{process}, {slowest}, "
        f"{one['failed'] or 'no crash, no hang'}"
    )


if __name__ == "__main__":
    main()
