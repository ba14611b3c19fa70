"""What a person may choose for one migration."""

from __future__ import annotations

from dataclasses import dataclass

from pagefire.protocol.pages import GRANULE_PAGES
from pagefire.source_host.convergence import Limits
from pagefire.source_host.trace_install import InstallOptions
from pagefire.source_host.tracking import Granularity

#: What is pushed next of a fault's surroundings (postcopy.py has what it gains).
PREFETCH_PAGES = 256


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """The options of `pagefire migrate`, by their names there; times in seconds. `install_step_pages` is None for all at once.

    `policy` decides when pre-copy ends (policy.py; None: convergence.py).
    `switch_now` ends pre-copy after the round that is under way, or at once where that is possible; set in flight (retuning.py).
    `streams` is how many page connections there are, 0 for as many as pay (stream_count.py).
    `delta_cache_bytes`: room for the last versions of pages, of which rounds send the differences (deltas.py); 0 for none.
    `prefetch_pages`: the aligned window around a fault that is pushed next, 0 for none.
    `max_bandwidth_Bps` bounds what all page connections together send, headers included.

    `backing` is the destination's (None: as here). `keys` is the folder of this host's (None: the default one).

    `foretell`: send the bitmap ahead of the stun, and in it only what has changed (hybrid).

    The timeouts bound the waits for a connection, for a shell guest (or digests) at the destination, and for READY. Where the last
    one passes before the commit point, the guest runs on here. A destination that is silent for `silence_s` is lost.
    """

    to: str
    mode: str = "hybrid"
    policy: str | None = None
    switch_now: bool = False
    downtime_limit_s: float = 0.05
    max_rounds: int = 30
    max_time_s: float = 300.0
    on_limit: str | None = None
    auto_converge: bool = False
    streams: int = 1
    compress: str = "off"
    delta_cache_bytes: int = 0
    prefetch_pages: int = PREFETCH_PAGES
    skip_unchanged: str = "off"
    max_bandwidth_Bps: float | None = None
    backing: str | None = None
    tracker: str = "auto"
    install: str = "loose"
    tracer: str = "host"
    granularity: str = "auto"
    install_step_pages: int | None = GRANULE_PAGES
    install_most_loss: float | None = 0.03
    bitmap: str = "compacted"
    foretell: bool = True
    populate: bool = False
    verify: bool = False
    check: bool = True
    settle_s: float = 1.0
    keys: str | None = None
    insecure: bool = False
    checksum: bool = False
    connect_timeout_s: float = 10.0
    setup_timeout_s: float = 120.0
    switchover_timeout_s: float = 10.0
    silence_s: float = 10.0

    @property
    def trace_install(self) -> InstallOptions:
        granularity = Granularity(self.granularity)
        return InstallOptions(
            self.install,
            self.tracer,
            granularity,
            self.install_step_pages,
            self.install_most_loss,
            self.switchover_timeout_s,
        )

    @property
    def limits(self) -> Limits:
        on_limit = self.on_limit or ("cancel" if self.mode == "precopy" else "postcopy")
        return Limits(self.mode, self.downtime_limit_s, self.max_rounds, self.max_time_s, on_limit, self.switch_now)
