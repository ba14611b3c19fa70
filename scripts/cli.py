"""The `pagefire` command: its arguments and exit codes.

Exit codes: 0 done, 1 failed (the guest is safe on the source, unless the message says otherwise), 2 usage, 3 cancelled.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import psutil
import typer
from rich.console import Console

from pagefire.protocol.errors import PagefireError
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.control_socket import request
from pagefire.protocol.units import parse_duration, parse_size
from pagefire.scripts import finding
from pagefire.scripts import options as o
from pagefire.scripts.bench.options import BenchOptions
from pagefire.scripts.compare_options import CompareOptions
from pagefire.scripts.delivering import SCREEN, deliver, deliver_failure, require_writable, write_json
from pagefire.scripts.experiment.commands import add_experiments
from pagefire.scripts.keys import app as keys_app
from pagefire.scripts.lab.command import add_lab
from pagefire.scripts.move_options import DestBacking, MoveOptions, changes_in_flight
from pagefire.scripts.option_groups import takes_groups
from pagefire.scripts.security_options import Insecure, Keys, SecurityOptions
from pagefire.scripts.trace_options import TrialOptions
from pagefire.scripts.watch_options import WatchOptions

if TYPE_CHECKING:
    from pagefire.scripts.host_daemon import Incoming

app = typer.Typer(
    help="Live migration of a running guest between two daemons, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")
add_lab(app)
add_experiments(app)


@app.command()
@takes_groups
def dest(
    watch: WatchOptions,
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT for every connection; port 0 takes a free one.")
    ] = ("127.0.0.1:7700"),
    max_guest_memory: o.MaxGuestMemory = None,
    adopt: o.Adopt = False,
    link_timeout: o.LinkTimeout = "10s",
    runtime_dir: o.RuntimeDir = None,
    allow_workload: o.UserWorkloads = None,
    cpus_dest: o.CpusDest = None,
    cpus_guest: o.CpusGuest = None,
    keys: Keys = None,
    insecure: Insecure = False,
) -> None:
    """Start a daemon that takes guests in; a guest that has come can be migrated on."""
    cpus = o.guest_cpus(cpus_guest, cpus_dest)
    allowed = _incoming(max_guest_memory, cpus, allow_workload or [], link_timeout, keys=keys, insecure=insecure)
    _run_daemon(_directory(runtime_dir), watch, cpus_dest, listen_on=listen, allowed=allowed, adopt=adopt)


@app.command()
@takes_groups
def source(
    guest: o.GuestOptions,
    watch: WatchOptions,
    stop_at: o.StopAt = 0,
    listen: Annotated[
        str | None, typer.Option("--listen", help="HOST:PORT: take guests in as well, as `pagefire dest` does.")
    ] = None,
    max_guest_memory: o.MaxGuestMemory = None,
    adopt: o.Adopt = False,
    link_timeout: o.LinkTimeout = "10s",
    keys: Keys = None,
    insecure: Insecure = False,
    runtime_dir: o.RuntimeDir = None,
    cpus_source: o.CpusSource = None,
    cpus_guest: o.CpusGuest = None,
) -> None:
    """Start a daemon with a running guest, newborn, or left by a daemon of that name that died."""
    cpus = o.guest_cpus(cpus_guest, cpus_source)
    config = dataclasses.replace(guest.config(), stop_at=stop_at, cpus=cpus or None)
    allowed = _incoming(max_guest_memory, cpus, config.user_workloads, link_timeout, keys=keys, insecure=insecure)
    how = {"config": config, "listen_on": listen, "allowed": allowed, "adopt": adopt}
    _run_daemon(_directory(runtime_dir), watch, cpus_source, **how)


def _incoming(
    max_guest_memory: str | None, cpus: tuple[int, ...], workloads: Sequence[str], link_timeout: str, **security: Any
) -> Incoming:
    from pagefire.scripts.host_daemon import Incoming

    limit_bytes = parse_size(max_guest_memory) if max_guest_memory is not None else psutil.virtual_memory().total
    return Incoming(limit_bytes, cpus, tuple(workloads), o.link_timeout(link_timeout), **security)


def _run_daemon(directory: Path, watch: WatchOptions, cpus: str | None, **how: Any) -> NoReturn:
    from pagefire.protocol.transport.daemon import run_daemon
    from pagefire.scripts.host_daemon import make_daemon

    make = partial(make_daemon, directory, watch=watch.given(), **how)
    raise typer.Exit(run_daemon(make, o.cpus(cpus), **watch.told()))


@app.command()
@takes_groups
def migrate(
    to: Annotated[str, typer.Option("--to", help="HOST:PORT of the destination daemon.")],
    move: MoveOptions,
    tracing: o.TracingOptions,
    security: SecurityOptions,
    name: o.GuestName = None,
    backing: DestBacking = None,
    json_file: o.JsonFile = None,
    report_dir: o.ReportDir = None,
    runtime_dir: o.RuntimeDir = None,
) -> None:
    """Migrate a guest to another daemon, and report."""
    from pagefire.scripts.migrating import Migration

    if backing is not None:
        o.one_of("--backing", backing, o.BACKINGS)
    chosen = dataclasses.replace(move.migration(to, tracing), backing=backing, **security.given())
    if security.insecure:
        SCREEN.print("Warning: --insecure: nothing is encrypted, and nobody proves who he is.")
    found = finding.resident(_directory(runtime_dir), name)
    require_writable(json_file)
    migration = Migration(found.control_path, found.name, dataclasses.asdict(chosen), SCREEN)
    try:
        report = migration.run()
    except PagefireError:
        if migration.report_of_failure is not None:
            deliver_failure(migration.report_of_failure, json_file, report_dir)
        raise
    deliver(report, json_file, report_dir)


@app.command()
@takes_groups
def predict(
    to: Annotated[str, typer.Option("--to", help="HOST:PORT of the destination daemon.")],
    move: MoveOptions,
    tracing: o.TracingOptions,
    security: SecurityOptions,
    name: o.GuestName = None,
    backing: DestBacking = None,
    watch: Annotated[str, typer.Option("--for", help="How long to watch the guest: 0.1s to 10m.")] = "3s",
    json_file: o.JsonFile = None,
    runtime_dir: o.RuntimeDir = None,
) -> None:
    """Predict what `migrate` with the same options would take, before anything moves."""
    from pagefire.scripts.predicting import print_prediction, run_predict

    if backing is not None:
        o.one_of("--backing", backing, o.BACKINGS)
    chosen = dataclasses.replace(move.migration(to, tracing), backing=backing, **security.given())
    watch_s = o.watch_time(watch)
    found = finding.resident(_directory(runtime_dir), name)
    require_writable(json_file)
    told = run_predict(found.control_path, found.name, dataclasses.asdict(chosen), watch_s, SCREEN)
    if json_file is not None:
        write_json(told, json_file)
    print_prediction(told, SCREEN if json_file == "-" else Console(highlight=False))


@app.command()
def status(name: o.GuestName = None, json_file: o.JsonFile = None, runtime_dir: o.RuntimeDir = None) -> None:
    """Show what the daemons on this machine know of a guest, or of all guests, and of their migrations."""
    known = [one for one in finding.guests(_directory(runtime_dir)) if name in (None, one.name)]
    if not known:
        finding.resident(_directory(runtime_dir), name)
    entries = [{"daemon": one.control_path.stem, **one.guest} for one in known]
    if json_file is not None:
        write_json({"guests": entries}, json_file)
        return
    for index, entry in enumerate(entries):
        if index:
            print()
        for field, value in entry.items():
            if field != "rounds" and value is not None:
                print(f"{field:16} {value}")


@app.command()
def cancel(name: o.GuestName = None, runtime_dir: o.RuntimeDir = None) -> None:
    """Cancel a migration that has not reached its commit point."""
    found = finding.resident(_directory(runtime_dir), name)
    request(found.control_path, "cancel", timeout_s=30.0, name=found.name)
    SCREEN.print("Cancelled: the guest runs on at the source.")


@app.command("set")
def set_(
    name: o.GuestName = None,
    max_bandwidth: Annotated[
        str | None, typer.Option("--max-bandwidth", help="125MB/s, 1Gbit/s, or off: all that the link carries.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", help="hybrid, precopy, or postcopy: stop the guest now, the rest moves after the resume."
        ),
    ] = None,
    downtime_limit: Annotated[str | None, typer.Option("--downtime-limit", help="As `migrate` takes it.")] = None,
    max_rounds: Annotated[int | None, typer.Option("--max-rounds", help="As `migrate` takes it.")] = None,
    max_time: Annotated[str | None, typer.Option("--max-time", help="As `migrate` takes it.")] = None,
    on_limit: Annotated[str | None, typer.Option("--on-limit", help="postcopy or cancel.")] = None,
    runtime_dir: o.RuntimeDir = None,
) -> None:
    """Change a migration that is under way."""
    changes = changes_in_flight(max_bandwidth, mode, downtime_limit, max_rounds, max_time, on_limit)
    found = finding.resident(_directory(runtime_dir), name)
    request(found.control_path, "set", timeout_s=30.0, name=found.name, changes=changes)
    SCREEN.print("Set.")


@app.command()
def recover(
    name: o.GuestName = None,
    to: Annotated[
        str | None, typer.Option("--to", help="HOST:PORT where the destination is now \\[default: where it was].")
    ] = None,
    take_back: Annotated[
        bool,
        typer.Option(
            "--take-back",
            help="The destination has lost the guest: run it here again from where it stood at the stun. "
            "What it has done since is lost, and if it runs there after all it runs twice.",
        ),
    ] = False,
    json_file: o.JsonFile = None,
    runtime_dir: o.RuntimeDir = None,
) -> None:
    """Go on with a post-copy that is paused, at once; the daemons try by themselves too."""
    found = finding.resident(_directory(runtime_dir), name)
    if take_back:
        request(found.control_path, "recover", name=found.name, take_back=True)
        SCREEN.print(f"Taken back: guest {found.name} runs on here from where it stood at the stun.")
        return
    report = request(found.control_path, "recover", name=found.name, to=to)["report"]
    deliver(report, json_file, None)


@app.command()
@takes_groups
def demo(
    guest: o.GuestOptions,
    move: MoveOptions,
    tracing: o.TracingOptions,
    pinning: o.PinningOptions,
    warmup: Annotated[str, typer.Option("--warmup", help="How long the guest runs before it migrates.")] = "2s",
    json_file: o.JsonFile = None,
    report_dir: o.ReportDir = None,
) -> None:
    """Start two daemons and a guest on this machine, migrate it, and show the report."""
    from pagefire.scripts.demo import run_demo
    from pagefire.scripts.report_folder import default_folder

    require_writable(json_file)
    config, chosen, pins = guest.config(), move.migration("", tracing), pinning.given()
    tracing.require_possible_for(config.backing)
    report = run_demo(config, chosen, parse_duration(warmup), pins, SCREEN)
    deliver(report, json_file, report_dir or default_folder(datetime.now()))


@app.command()
@takes_groups
def bench(
    asked: BenchOptions,
    benchmark: Annotated[
        str | None,
        typer.Argument(
            help="throughput, stun, cpu, brownout, faults, memory, compression or deltas \\[default: all, one after another]."
        ),
    ] = None,
    json_file: o.JsonFile = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write NAME.json and NAME.png of each benchmark into this folder.")
    ] = None,
) -> None:
    """Measure a figure as a ratio to a reference taken in the same run, in turn."""
    from pagefire.scripts.bench import suite
    from pagefire.scripts.report_folder import refuse_foreign

    if benchmark is not None:
        o.one_of("bench", benchmark, tuple(suite.BENCHMARKS))
    plan = asked.plan()
    require_writable(json_file)
    if report_dir is not None:
        refuse_foreign(report_dir, suite.folder_files(list(suite.BENCHMARKS)))
    results = []
    for name in [benchmark] if benchmark is not None else suite.BENCHMARKS:
        results.append(result := suite.run(name, plan, SCREEN))
        suite.print_result(result, SCREEN if json_file == "-" else Console(highlight=False))
        if report_dir is not None:
            written = suite.write_folder(result, report_dir)
            SCREEN.print("Report: " + ", ".join(str(path) for path in written), soft_wrap=True)
    if json_file is not None:
        write_json(results[0] if benchmark is not None else {"results": results}, json_file)


@app.command()
@takes_groups
def trace(
    trial: TrialOptions,
    json_file: o.JsonFile = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write trace.json and trace.png into this folder.")
    ] = None,
) -> None:
    """Measure what tracing costs a guest, without a migration; lists separated by commas take every combination."""
    from pagefire.scripts.report_folder import refuse_foreign
    from pagefire.scripts.trace import print_trace, run_trace
    from pagefire.scripts.trace_plot import TRACE_FILES, write_trace_folder

    require_writable(json_file)
    if report_dir is not None:
        refuse_foreign(report_dir, TRACE_FILES)
    shapes, ways, times, link_bps = trial.shapes(), trial.ways(), trial.times(), trial.link_bps
    trial.pin()
    result = run_trace(shapes, ways, trial.tracker, times, trial.repetitions, link_bps, SCREEN)
    if json_file is not None:
        write_json(result, json_file)
    print_trace(result, SCREEN if json_file == "-" else Console(highlight=False))
    if report_dir is not None:
        written = write_trace_folder(result, report_dir)
        SCREEN.print("Report: " + ", ".join(str(path) for path in written), soft_wrap=True)


@app.command()
@takes_groups
def compare(
    asked: CompareOptions,
    what: Annotated[str, typer.Argument(help="With what: vsphere.")] = "vsphere",
    json_file: o.JsonFile = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write compare.json, table.txt and compare.png into this folder.")
    ] = None,
) -> None:
    """Migrate one guest in vSphere 6.7's way, vSphere 7's and ours, in turn, and lay the runs beside each other."""
    from pagefire.scripts.compare import run_compare
    from pagefire.scripts.compare_plot import COMPARE_FILES, write_compare_folder
    from pagefire.scripts.compare_table import print_compare
    from pagefire.scripts.report_folder import refuse_foreign

    o.one_of("compare", what, ("vsphere",))
    cases, times = asked.cases(), asked.times()
    require_writable(json_file)
    if report_dir is not None:
        refuse_foreign(report_dir, COMPARE_FILES)
    result = run_compare(cases, times, asked.repetitions, SCREEN)
    if json_file is not None:
        write_json(result, json_file)
    print_compare(result, SCREEN if json_file == "-" else Console(highlight=False))
    if report_dir is not None:
        written = write_compare_folder(result, report_dir)
        SCREEN.print("Report: " + ", ".join(str(path) for path in written), soft_wrap=True)


@app.command()
def bitmap(
    guest: Annotated[str, typer.Option("--guest", help="Sizes of guests, by commas.")] = "1GiB,64GiB,6TiB",
    pages: Annotated[
        str, typer.Option("--pages", help="Numbers of pages left, by commas.")
    ] = "0,100,1000,10000,100000,200000,1000000,10000000",
    scatter: Annotated[str, typer.Option("--scatter", help="How they lie, by commas.")] = "one-run,clustered,uniform",
    repetitions: Annotated[int, typer.Option("--repetitions", help="Of each case, at most.")] = 9,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the pages that are drawn.")] = 1,
    json_file: o.JsonFile = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write bitmap.json and bitmap.png into this folder.")
    ] = None,
) -> None:
    """Measure what the bitmap at switchover costs, by guest, pages left and how they lie."""
    from pagefire.scripts.bitmap_plot import BITMAP_FILES, write_bitmap_folder
    from pagefire.scripts.bitmap_sets import parse_cases
    from pagefire.scripts.bitmap_table import measure_table, print_table
    from pagefire.scripts.report_folder import refuse_foreign

    cases = parse_cases(guest, pages, scatter)
    require_writable(json_file)
    if report_dir is not None:
        refuse_foreign(report_dir, BITMAP_FILES)
    with SCREEN.status("") as status:
        result = measure_table(cases, repetitions, seed, lambda case: status.update(f"measuring {case}"))
    rows = result["rows"]
    if json_file is not None:
        write_json(rows[0] if len(rows) == 1 else result, json_file)
    print_table(result, SCREEN if json_file == "-" else Console(highlight=False))
    if report_dir is not None:
        written = write_bitmap_folder(result, report_dir)
        SCREEN.print("Report: " + ", ".join(str(path) for path in written), soft_wrap=True)


@app.command()
def doctor() -> None:
    """List what this host offers, what stops working without it, and the line that enables it."""
    from pagefire.scripts.doctor import exit_status, print_findings

    raise typer.Exit(exit_status(print_findings(Console(highlight=False))))


def _directory(runtime_dir: Path | None) -> Path:
    return runtime_dir or runtime_directory.default_directory()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # Whatever has to be ended and removed is so on the way out. Daemons and `migrate`, while it migrates, install their own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        # Typer itself ends the process for its usage errors (exit code 2) and for typer.Exit.
        app(arguments, prog_name="pagefire")
    except PagefireError as error:
        print(f"pagefire: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except _Interrupted:
        print("pagefire: interrupted.", file=sys.stderr)
        sys.exit(3)


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt: of that Typer makes an exit code of its own."""


def _interrupt(number: int, frame: object) -> None:
    raise _Interrupted


if __name__ == "__main__":
    main()
