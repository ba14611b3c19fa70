"""Where things are in a lab: names, addresses, routes; and the `ip`, `ethtool` and `tc` lines that make the same by hand.

    source 10.213.9.2 --veth-- 10.213.9.1 wire 10.213.9.5 --veth-- 10.213.9.6 destination

The wire routes between its two interfaces and is where all shaping sits: on each of them what leaves it. So a packet that is
lost is lost behind the sender's own queue, of which TCP would be told. Pure; keeper.py carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator

from pagefire.scripts.lab.shape import LinkShape
from pagefire.scripts.lab.tc_requests import requests

SIDES = ("source", "wire", "dest")
SOURCE_ADDRESS, DEST_ADDRESS = "10.213.9.2", "10.213.9.6"
WIRE_TO_SOURCE_ADDRESS, WIRE_TO_DEST_ADDRESS = "10.213.9.1", "10.213.9.5"
PREFIX_BITS = 30
#: Interfaces: each host's own, the wire's to either host, and the emulator's.
HOST_INTERFACE, WIRE_TO_SOURCE, WIRE_TO_DEST = "pf0", "to-source", "to-dest"
TUN_SOURCE, TUN_DEST = "pf-shape0", "pf-shape1"
#: What a real machine's incoming packets are shaped on.
IFB = "pf-ifb0"
#: Routing tables of what comes from either host, where an emulator carries it.
TABLE_FROM_SOURCE, TABLE_FROM_DEST = 101, 102
#: What may wait in front of the emulator: the kernel's own queue, of which it has to fall behind before a packet is dropped.
TUN_QUEUE_PACKETS = 10_000
_MOST_BUFFER_BYTES = 1 << 30

#: Settings of the namespaces, below /proc/sys/net. Nobody speaks IPv6 here, so nothing but the experiment is on the wire. What TCP
#: learnt of the link while it was measured is not to help the migration.
SETTINGS = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/tcp_no_metrics_save": "1",
}
WIRE_SETTINGS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
}


def buffer_bytes(shape: LinkShape) -> int:
    """Say how much a connection's buffers have to be allowed so that they do not bound it: four times what the link holds.

    The kernel counts a packet's own overhead as well, which doubles it, and a sender keeps what is sent and not acknowledged.
    """
    return min(4 * round((shape.rate_bps or 0) / 8 * shape.rtt_s + (shape.queue_bytes or 0)), _MOST_BUFFER_BYTES)


def command_lines(shape: LinkShape) -> Iterator[str]:
    """Give the commands that make such a lab by hand, with netem and tbf, in namespaces pf-source, pf-wire and pf-dest."""
    names = {side: f"pf-{side}" for side in SIDES}
    for name in names.values():
        yield f"ip netns add {name}"
        yield f"ip -n {name} link set lo up"
    wire = names["wire"]
    ends = (
        ("source", WIRE_TO_SOURCE, SOURCE_ADDRESS, WIRE_TO_SOURCE_ADDRESS),
        ("dest", WIRE_TO_DEST, DEST_ADDRESS, WIRE_TO_DEST_ADDRESS),
    )
    for side, at_wire, address, wire_address in ends:
        host = names[side]
        yield f"ip link add {HOST_INTERFACE} netns {host} type veth peer {at_wire} netns {wire}"
        for namespace, interface, own in ((host, HOST_INTERFACE, address), (wire, at_wire, wire_address)):
            yield f"ip -n {namespace} address add {own}/{PREFIX_BITS} dev {interface}"
            yield f"ip netns exec {namespace} ethtool -K {interface} tso off gso off gro off"
            yield f"ip -n {namespace} link set {interface} up"
        yield f"ip -n {host} route add default via {wire_address}"
    yield f"ip netns exec {wire} sysctl -w net.ipv4.ip_forward=1"
    for interface in (WIRE_TO_SOURCE, WIRE_TO_DEST):
        for qdisc in requests(shape):
            yield f"tc -n {wire} {qdisc.line(interface)}"


def lines_for_a_machine(shape: LinkShape, interface: str, peer: str, ethtool: str = "ethtool -K") -> Iterator[str]:
    """Give the commands that shape what one of two real machines receives from the other; both need them.

    On the way in, by way of an ifb device: what is lost on the way out would be told to the sender's own TCP. GRO would make one of
    many packets before they are shaped. The last lines, behind a comment, undo it.
    """
    yield f"{ethtool} {interface} gro off"
    yield f"ip link add {IFB} type ifb"
    yield f"ip link set {IFB} up"
    for qdisc in requests(shape):
        yield f"tc {qdisc.line(IFB)}"
    yield f"tc qdisc add dev {interface} handle ffff: ingress"
    yield (
        f"tc filter add dev {interface} parent ffff: protocol ip u32 match ip src {peer}/32 "
        f"action mirred egress redirect dev {IFB}"
    )
    yield "# afterwards:"
    yield f"tc qdisc del dev {interface} ingress"
    yield f"ip link del {IFB}"
    yield f"{ethtool} {interface} gro on"
