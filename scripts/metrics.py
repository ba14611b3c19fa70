"""A daemon's figures for Prometheus, and whether it is well: /metrics and /healthz, for `--metrics`.

Nothing is counted for this. A scrape reads, on the loop, what migrations keep for their reports and `pagefire status`
anyway; what a migration under way has sent is added to the totals of those that have ended, so that no counter falls but with its
daemon. Names and units follow Prometheus's conventions; what each figure counts stands in its help, which is served with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

import pagefire
from pagefire.dest_host.migration import IncomingMigration
from pagefire.guest_workload.linux.memory_use import memory_use_bytes
from pagefire.protocol.state import Status
from pagefire.protocol.totals import OUTCOMES, Moved, Served, Totals
from pagefire.protocol.transport.control_socket import Json
from pagefire.protocol.transport.http_answers import Answer, Reply
from pagefire.source_host.resident import ResidentGuest

_SIDES = ("source", "destination")
#: A status at which nothing is under way.
_SETTLED = (Status.NONE.value, Status.COMPLETED.value, Status.FAILED.value, Status.CANCELLED.value)
#: Figures of `Moved`: name, without _total, and help.
MOVED = {
    "rounds": ("pagefire_migration_rounds", "Pre-copy rounds that were sent to their end."),
    "pages": ("pagefire_migration_pages_sent", "Pages sent in rounds, stuns and pushes, zero pages among them."),
    "zero_pages": ("pagefire_migration_zero_pages_sent", "Of the pages sent, those without payload because they were zero."),
    "compressed_pages": ("pagefire_migration_compressed_pages_sent", "Of the pages sent, those that went compressed."),
    "delta_pages": ("pagefire_migration_delta_pages_sent", "Of the pages sent, those that went as differences."),
    "unchanged_pages": ("pagefire_migration_unchanged_pages", "Pages left out because the destination held them just so."),
    "wire_bytes": ("pagefire_migration_wire_bytes", "Bytes sent on all connections, frames included, TCP/IP headers not."),
    "recoveries": ("pagefire_migration_recoveries", "Links that were lost after a resume and found again."),
}  # fmt: skip


class Watched(Protocol):
    """What is looked at: a daemon."""

    @property
    def totals(self) -> Totals: ...

    @property
    def residents(self) -> list[ResidentGuest]: ...

    @property
    def incoming(self) -> list[IncomingMigration]:
        """Those whose guest is here, or may come."""

    @property
    def arriving(self) -> list[IncomingMigration]:
        """Those that have not ended."""

    @property
    def ending(self) -> bool: ...


def answers(daemon: Watched) -> Mapping[str, Answer]:
    """Give what is answered at which path."""
    registry = CollectorRegistry()
    registry.register(DaemonCollector(daemon))
    ProcessCollector(registry=registry)

    def metrics(accepted: str) -> Reply:
        encode, content_type = choose_encoder(accepted)
        return Reply(200, encode(registry), content_type)

    def health(accepted: str) -> Reply:
        reasons = ailments(daemon)
        return Reply(503 if reasons else 200, "".join(f"{reason}\n" for reason in reasons or ["ok"]).encode())

    return {"/metrics": metrics, "/healthz": health}


def ailments(daemon: Watched) -> list[str]:
    """Say what is wrong, a sentence each: a dead guest, a post-copy that is paused, a daemon that ends; none where all is well."""
    found = [one.ailment for one in daemon.residents] + [_ailment_of(one) for one in daemon.incoming]
    return [reason for reason in found if reason is not None] + (["this daemon is ending"] if daemon.ending else [])


def _ailment_of(migration: IncomingMigration) -> str | None:
    """Say what is wrong with a guest that has come; None where all is well, or the guest is not this host's."""
    if not migration.owns_guest:
        return None
    if migration.status in (Status.POSTCOPY_PAUSED, Status.POSTCOPY_RECOVER):
        return f"guest {migration.name}: post-copy is paused: {migration.error or 'the source comes back'}"
    return f"guest {migration.name}: {migration.error}" if migration.status is Status.FAILED else None


class DaemonCollector(Collector):
    """Gives a daemon's figures as they are now; to be called on its loop."""

    def __init__(self, daemon: Watched) -> None:
        self._daemon = daemon

    def collect(self) -> Iterator[Metric]:
        daemon = self._daemon
        known = [one.status() for one in daemon.residents]
        yield _gauge("pagefire_build_info", "The version that runs.", ("version",), {(pagefire.__version__,): 1})
        yield from _guests(known)
        yield from _migrations(daemon, known)
        moved = sum((one.moved() for one in daemon.residents), start=Moved()) + daemon.totals.moved
        for field, (name, words) in MOVED.items():
            yield _counter(name, words, (), {(): getattr(moved, field)})
        served = sum((one.served() for one in daemon.arriving), start=Served()) + daemon.totals.served
        kinds = {("fetched",): served.fetched_faults, ("minor",): served.minor_faults}
        yield _counter(
            "pagefire_faults_served", "Faults of resumed guests, by whether a page had to be fetched.", ("kind",), kinds
        )
        own_bytes, tables_bytes = memory_use_bytes()
        words = "This daemon's memory that is not shared: guest memory is not counted."
        yield _gauge("pagefire_own_memory_bytes", words, (), {(): own_bytes})
        yield _gauge("pagefire_page_tables_bytes", "This daemon's page tables.", (), {(): tables_bytes})


def _guests(known: list[Json]) -> Iterator[Metric]:
    resident = [one for one in known if one["resident"]]
    yield _gauge("pagefire_resident_guests", "Guests that live here.", (), {(): len(resident)})
    for field, name, words in (
        ("owner", "pagefire_guest_owner", "1 where this host is the one that may run the guest, else 0."),
        ("running", "pagefire_guest_running", "1 while a vCPU of the guest runs here, else 0."),
        ("memory_bytes", "pagefire_guest_memory_bytes", "Size of the guest's memory."),
        ("vcpus", "pagefire_guest_vcpus", "vCPUs of the guest."),
    ):
        yield _gauge(name, words, ("guest",), {(one["name"],): int(one[field]) for one in known})
    commits = {(one["name"],): one["commits"] for one in known if one["commits"] is not None}
    yield _counter("pagefire_guest_commits", "Transactions that the guest has committed here.", ("guest",), commits)


def _migrations(daemon: Watched, known: list[Json]) -> Iterator[Metric]:
    totals = daemon.totals
    outcomes = {(side, outcome): totals.outcomes[side, outcome] for side in _SIDES for outcome in OUTCOMES}
    words = "Migrations that have ended, by which side of them this was, and how. A prediction ends cancelled at its destination."
    yield _counter("pagefire_migrations", words, ("side", "outcome"), outcomes)
    status = {(one["name"], "source"): one["status"] for one in known}
    status |= {(one.name, "destination"): one.status.value for one in daemon.incoming}
    phases = {(*who, phase.value): int(phase.value == now) for who, now in status.items() for phase in Status}
    words = "1 for the phase that a guest's last migration is in, else 0; none where there was none."
    yield _gauge("pagefire_migration_phase", words, ("guest", "side", "phase"), phases)
    moving = {side: sum(of == side and now not in _SETTLED for (_, of), now in status.items()) for side in _SIDES}
    words = "Migrations that are under way."
    yield _gauge("pagefire_migrations_in_progress", words, ("side",), {(side,): moving[side] for side in _SIDES})
    busy = [one for one in known if one["status"] not in _SETTLED]
    remaining = {(one["name"], "source"): one["remaining_pages"] for one in busy}
    remaining |= {(one.name, "destination"): one.missing_pages for one in daemon.incoming}
    words = "Pages that a migration under way has still to move: of this round before the resume, all of them after it."
    yield _gauge("pagefire_migration_remaining_pages", words, ("guest", "side"), remaining)
    dirty = {(one["name"],): one.get("dirty_pages_per_s", 0.0) for one in busy}
    words = (
        "Different pages that a migrating guest writes per second, as last seen; 0 before the first look of a round."
    )
    yield _gauge("pagefire_migration_dirty_pages_per_second", words, ("guest",), dirty)
    for name, words, last in (
        (
            "pagefire_last_stun_seconds",
            "The guest's blackout in its last completed migration away from here.",
            totals.last_stun_s,
        ),
        (
            "pagefire_last_downtime_seconds",
            "Pause to resume in that migration, by the daemons' clocks.",
            totals.last_downtime_s,
        ),
    ):
        yield _gauge(name, words, ("guest",), {(guest,): seconds for guest, seconds in last.items()})


def _gauge(name: str, words: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _counter(name: str, words: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family
