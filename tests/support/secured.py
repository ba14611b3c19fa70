"""Keys for tests, and connections that are secured with them."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pagefire.protocol.transport import tls
from pagefire.protocol.transport.key_making import make_ca, make_host
from pagefire.protocol.transport.keys import HostKeys
from pagefire.protocol.transport.tls import TlsWire
from pagefire.protocol.transport.wire import Wire


@dataclass(frozen=True)
class KeyRing:
    """Keys of one CA that are good and that have expired, and keys of another CA."""

    good: HostKeys
    also_good: HostKeys
    expired: HostKeys
    of_another_ca: HostKeys

    @classmethod
    def made(cls, folder: Path) -> KeyRing:
        for ca in ("ours", "another"):
            make_ca(folder / ca)
        make_host(folder / "ours", "good", folder / "ours")
        make_host(folder / "ours", "also-good", folder / "also-good")
        make_host(folder / "ours", "expired", folder / "expired", days=-1)
        make_host(folder / "another", "stranger", folder / "another")
        return cls(*(HostKeys(folder / name) for name in ("ours", "also-good", "expired", "another")))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Connect two blocking TCP sockets; what one sends leaves at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def wire_pair(ring: KeyRing | None = None) -> tuple[Wire, Wire]:
    """Give the source's and the destination's end of a connection, blocking; encrypted where there are keys for it."""
    one, other = (Wire(sock) for sock in tcp_pair())
    if ring is None:
        return one, other
    source = TlsWire(one, tls.context(ring.good, server=False), server=False)
    destination = TlsWire(other, tls.context(ring.also_good, server=True), server=True)

    async def shake_hands() -> None:
        for wire in (source, destination):
            wire.sock.setblocking(False)
        await asyncio.gather(source.shake_hands(), destination.shake_hands())

    # In a thread: the test may have a loop of its own.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, shake_hands()).result(20)
    for wire in (source, destination):
        wire.sock.setblocking(True)
    return source, destination
