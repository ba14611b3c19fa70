"""The part of a report that says what the link was: what the kernel counted of each connection, and in a lab who shaped it.

`Link` is filled in by the lab, not by the hosts, who know nothing of it. Rates are of Ethernet frames, as tc counts them; None: not
measured, or not asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TcpConnection:
    """The kernel's own figures (TCP_INFO) of one connection at the source, read at the end."""

    role: str
    rtt_s: float
    retransmits: int
    cwnd: int
    congestion: str


@dataclass(slots=True)
class LinkAsked:
    """What was asked of each direction. rtt_s: twice delay_s. rate_bps: bits per second; queue_bytes: what may wait for its turn.

    limit_packets: packets that a direction holds at most, those on their way included. words: the same for a person.
    """

    delay_s: float = 0.0
    rtt_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate_bps: int | None = None
    queue_bytes: int | None = None
    limit_packets: int | None = None
    seed: int | None = None
    words: str = ""


@dataclass(slots=True)
class LinkMeasured:
    """What the link did before the migration, from source to destination.

    rtt_s: median of UDP echoes, two processes waking up included. rate_bps: what came of more UDP than was asked, or, where no rate
    was asked, of what one sender could send; the last of rate_tries. loss: share of loss_packets small UDP packets that did not
    come, with Wilson's 95% interval, the last of loss_tries. tcp_goodput_bps: payload of one TCP connection, from its first byte,
    so with its slow start.
    """

    rtt_s: float | None = None
    rate_bps: float | None = None
    loss: float | None = None
    loss_interval: list[float] | None = None
    loss_packets: int = 0
    loss_tries: int = 0
    tcp_goodput_bps: float | None = None
    rate_tries: int = 0


@dataclass(slots=True)
class Carried:
    """Packets of one direction during the migration, and what became of them. late_us: how long after its time each left."""

    came: int = 0
    lost: int = 0
    queue_full: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    left: int = 0
    left_bytes: int = 0
    late_mean_us: float = 0.0
    late_max_us: float = 0.0


@dataclass(slots=True)
class Emulator:
    """The emulator of a link, where the kernel has no netem.

    ceiling_pps, ceiling_bps: what it carried of one TCP transfer without any shape, both directions' packets and the data's
    bits, measured before. share_of_ceiling: the rate as a share of that, 0.7 at most. rate_bps: at which it carries (its own
    bound where no rate was asked). cpu_share: of one CPU, during the migration, the kernel's work for its packets included.
    scheduling: fifo, or nice where that was refused. missed: packets that the kernel dropped in front of it. forth: source to
    destination; back.
    """

    ceiling_pps: float
    ceiling_bps: float
    rate_bps: int
    share_of_ceiling: float
    scheduling: str = ""
    cpu_share: float | None = None
    missed: int = 0
    forth: Carried | None = None
    back: Carried | None = None


@dataclass(slots=True)
class Link:
    """The link of a lab. shaper: netem, tbf (a rate alone), emulator, or none; reason: why that one, in words.

    dropped: packets that tc's own queues dropped during the migration, by qdisc and interface.
    """

    asked: LinkAsked
    shaper: str = "none"
    reason: str = ""
    measured: LinkMeasured | None = None
    emulator: Emulator | None = None
    dropped: dict[str, int] = field(default_factory=dict)
