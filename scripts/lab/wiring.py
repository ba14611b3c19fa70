"""What the keeper does to the namespaces it holds: interfaces, addresses, routes, qdiscs, by netlink (pyroute2).

Every function but `join` works in the namespace that the calling thread is in. Segmentation and its reverse are switched off on
every interface, so that what the wire sees are packets as a cable carries them. pyroute2's NetlinkError is mapped to OSError.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_NEWQDISC
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from pagefire.scripts.lab import plan
from pagefire.scripts.lab.offload import packets_as_on_a_cable
from pagefire.scripts.lab.shape import LinkShape
from pagefire.scripts.lab.tc_requests import Qdisc, requests

_RULE_PRIORITY, _RT_SCOPE_LINK = 100, 253


class QdiscMessage(tcmsg):  # type: ignore[misc]
    """A tc message whose options are bytes, encoded already."""

    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "cdata"))


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    """Open a netlink socket in this thread's namespace."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise OSError(error.code, f"the kernel refused: {error.args[1] if len(error.args) > 1 else error}") from error


def mark(words: str) -> None:
    """Let a namespace bear words by which it is known again: as the alias of its loopback interface, which it always has."""
    with _netlink() as ip:
        ip.link("set", index=_index(ip, "lo"), ifalias=words)


def mark_here() -> str | None:
    """Give what the namespace bears."""
    with _netlink() as ip:
        (lo,) = ip.get_links(_index(ip, "lo"))
        return str(alias) if (alias := lo.get_attr("IFLA_IFALIAS")) is not None else None


def join(fds: dict[str, int], inside: Callable[[str], AbstractContextManager[None]], shape: LinkShape) -> None:
    """Connect both hosts to the wire, which routes between them; `shape` says how long TCP's buffers have to be."""
    for side in plan.SIDES:
        with inside(side):
            _set(plan.SETTINGS | (plan.WIRE_SETTINGS if side == "wire" else _buffers(shape)))
    ends = (
        ("source", plan.SOURCE_ADDRESS, plan.WIRE_TO_SOURCE, plan.WIRE_TO_SOURCE_ADDRESS),
        ("dest", plan.DEST_ADDRESS, plan.WIRE_TO_DEST, plan.WIRE_TO_DEST_ADDRESS),
    )
    for side, address, at_wire, wire_address in ends:
        with inside("wire"), _netlink() as ip:
            # Both ends are born inside: nothing of it ever shows in the host's own namespace.
            ip.link("add", ifname=at_wire, kind="veth", peer={"ifname": plan.HOST_INTERFACE, "net_ns_fd": fds[side]})
            _up(ip, at_wire, wire_address)
            packets_as_on_a_cable(at_wire)
        with inside(side), _netlink() as ip:
            ip.link("set", index=_index(ip, "lo"), state="up")
            _up(ip, plan.HOST_INTERFACE, address)
            packets_as_on_a_cable(plan.HOST_INTERFACE)
            ip.route("add", dst="default", gateway=wire_address)


def offers_netem() -> bool:
    """Tell whether this kernel has netem (or loads it now), by adding one to an interface of nobody's and removing it."""
    with _netlink() as ip:
        index = _index(ip, "lo")
        (one,) = requests(LinkShape(delay_s=0.001))
        try:
            _add(ip, index, one)
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
                return False
            raise
        ip.tc("del", index=index, parent=one.parent, handle=one.handle)
        return True


def add_qdiscs(shape: LinkShape) -> None:
    """Let the kernel shape what leaves the wire, to either host."""
    with _netlink() as ip:
        for interface in (plan.WIRE_TO_SOURCE, plan.WIRE_TO_DEST):
            for qdisc in requests(shape):
                _add(ip, _index(ip, interface), qdisc)


def route_by_tuns() -> None:
    """Let what either host sends go to the emulator's device on its side; what comes out of the other goes on to the other host."""
    with _netlink() as ip:
        for came_from, table, tun in (
            (plan.WIRE_TO_SOURCE, plan.TABLE_FROM_SOURCE, plan.TUN_SOURCE),
            (plan.WIRE_TO_DEST, plan.TABLE_FROM_DEST, plan.TUN_DEST),
        ):
            index = _index(ip, tun)
            ip.link("set", index=index, state="up", txqlen=plan.TUN_QUEUE_PACKETS)
            ip.route("add", dst="0.0.0.0/0", oif=index, scope=_RT_SCOPE_LINK, table=table)
            ip.rule("add", family=socket.AF_INET, iifname=came_from, table=table, priority=_RULE_PRIORITY)


def dropped_packets() -> dict[str, int]:
    """Count what the wire's interfaces have dropped themselves, by name: before an emulator saw it, and by qdiscs."""
    with _netlink() as ip:
        found = {}
        for link in ip.get_links():
            counted = link.get_attr("IFLA_STATS64") or {}
            found[str(link.get_attr("IFLA_IFNAME"))] = int(counted.get("tx_dropped", 0))
        for qdisc in ip.get_qdiscs():
            drops = (qdisc.get_attr("TCA_STATS") or {}).get("drop", 0)
            name = f"{qdisc.get_attr('TCA_KIND')} {qdisc['index']}"
            found[name] = found.get(name, 0) + int(drops)
        return found


def _add(ip: Any, index: int, qdisc: Qdisc) -> None:
    message = QdiscMessage()
    message["index"], message["parent"], message["handle"] = index, qdisc.parent, qdisc.handle
    message["attrs"] = [("TCA_KIND", qdisc.kind), ("TCA_OPTIONS", qdisc.options)]
    message["header"]["type"] = RTM_NEWQDISC
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    # As a batch of one: the plain request of the synchronous half fails in 0.9.
    ip.nlm_request_batch([message])


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise OSError(errno.ENODEV, f"there is no interface {name}")
    return int(found[0])


def _up(ip: Any, name: str, address: str) -> None:
    index = _index(ip, name)
    ip.addr("add", index=index, address=address, prefixlen=plan.PREFIX_BITS)
    ip.link("set", index=index, state="up")


def _buffers(shape: LinkShape) -> dict[str, str]:
    settings = {}
    for name in ("ipv4/tcp_rmem", "ipv4/tcp_wmem"):
        least, usual, most = (Path("/proc/sys/net") / name).read_text().split()
        settings[name] = f"{least} {usual} {max(int(most), plan.buffer_bytes(shape))}"
    return settings


def _set(settings: dict[str, str]) -> None:
    for name, value in settings.items():
        setting = Path("/proc/sys/net") / name
        # A kernel without IPv6 has nothing to switch off.
        if setting.exists():
            setting.write_text(value)
