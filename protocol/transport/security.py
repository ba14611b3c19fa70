"""Which connections are encrypted: all but those that stay on this host, unless its owner said otherwise.

Loopback needs no keys: whoever can call there runs on this machine. A source encrypts there too where keys were named for it, and a
destination takes either. From and to any other address it is TLS with both sides authenticated, or `--insecure`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from pagefire.protocol.errors import LinkLost, PagefireError, PeerRefused, UsageError
from pagefire.protocol.transport import tls
from pagefire.protocol.transport.keys import default_folder, find_keys
from pagefire.protocol.transport.wire import Wire

log = logging.getLogger("pagefire.security")


@dataclass(frozen=True, slots=True)
class CallerSecurity:
    """How a source secures the connections that it opens. `made` is None without keys; `always`: on loopback as well."""

    made: ssl.SSLContext | None = None
    always: bool = False
    insecure: bool = False

    @classmethod
    def chosen(cls, keys: str | None, insecure: bool) -> CallerSecurity:
        """Read the keys in this folder, else the default ones if there are any; raises UsageError."""
        if insecure:
            log.warning("connections to other hosts are neither encrypted nor authenticated (--insecure)")
            return cls(insecure=True)
        found = find_keys(Path(keys) if keys is not None else None)
        return cls(tls.context(found, server=False) if found else None, always=keys is not None)

    def encrypts(self, address: str) -> bool:
        """Tell whether a connection to this address is to be encrypted; raises UsageError where it would have to be and cannot."""
        if self.insecure:
            return False
        if self.made is None and not is_loopback(address):
            raise UsageError(
                f"{address} is another host, and this one has no keys",
                f"connections off loopback are encrypted, and {default_folder()} holds no keys",
                "make keys with `pagefire keys init`, or trust the network with --insecure",
            )
        return self.always or not is_loopback(address)

    async def secured(self, sock: socket.socket, address: str) -> Wire:
        """Give the wire of a connection that has just been opened; raises as `TlsWire.shake_hands` does."""
        if not self.encrypts(address):
            return Wire(sock)
        assert self.made is not None
        wire = tls.TlsWire(Wire(sock), self.made, server=False)
        await wire.shake_hands()
        return wire


@dataclass(frozen=True, slots=True)
class ListenerSecurity:
    """What a destination demands of who calls. `made` is None without keys."""

    made: ssl.SSLContext | None = None
    insecure: bool = False

    @classmethod
    def chosen(cls, keys: Path | None, insecure: bool, listen_address: str) -> ListenerSecurity:
        """Read the keys in this folder, else the default ones if there are any; raises UsageError where nobody could call."""
        found = find_keys(keys)
        if found is None and not insecure and not is_loopback(listen_address):
            raise UsageError(
                f"{listen_address} can be reached from other hosts, and this one has no keys",
                f"connections off loopback are encrypted, and {default_folder()} holds no keys",
                "make keys with `pagefire keys init`, or trust the network with --insecure",
            )
        if insecure and not is_loopback(listen_address):
            log.warning(
                "listen=%s whoever reaches this port may bring a guest, unencrypted (--insecure)", listen_address
            )
        return cls(tls.context(found, server=True) if found else None, insecure)

    async def secured(self, sock: socket.socket, address: str) -> Wire:
        """Look at how a caller begins and give the wire of its connection; raises PeerRefused, LinkLost by name.

        The caller of this limits the time.
        """
        first = await _first_byte(sock)
        if first == tls.HANDSHAKE_RECORD:
            if self.made is None:
                raise PeerRefused(
                    "this destination has no keys",
                    "the caller began with a TLS record",
                    "give it keys with `pagefire keys`, or call it without --keys from its own host",
                )
            wire = tls.TlsWire(Wire(sock), self.made, server=True)
            try:
                await wire.shake_hands()
            except PagefireError as error:
                raise TlsFailed(error) from error
            return wire
        if not self.insecure and not is_loopback(address):
            raise PeerRefused(
                "this destination takes only TLS from other hosts",
                f"a plain connection came from {address}",
                "give the source keys of the destination's CA (`pagefire keys host NAME`)",
            )
        return Wire(sock)


class TlsFailed(PagefireError):
    """A caller was refused by TLS's own means: it has been told by an alert, and nothing else would be understood."""

    def __init__(self, error: PagefireError) -> None:
        super().__init__(error.what, error.why, error.do)


def is_loopback(address: str) -> bool:
    """Tell whether a numeric address never leaves this host; the name `localhost` counts as one that does not."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


async def _first_byte(sock: socket.socket) -> int:
    """Wait for the first byte of a connection and leave it there."""
    while True:
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(sock)
        except OSError as error:
            raise LinkLost("the connection broke", error.strerror or str(error)) from error
        else:
            if not first:
                raise LinkLost("the caller left without a word")
            return first[0]


async def _readable(sock: socket.socket) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())
