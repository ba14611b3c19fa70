"""TLS 1.3 on a connection, both sides authenticated: contexts, the handshake, the encrypted wire, and refusals by name.

Who holds a key of the same CA is a peer. Names in certificates are for people and are not compared with addresses: a guest is moved
between hosts that have one owner, by whatever address reaches them.

OpenSSL works on two memory buffers here, not on the socket, which is as fast (1.1-1.4 GB/s both ways over loopback, the bare socket
4.2-4.8). The socket stays a plain one that any thread may shut down, and what comes is never taken for plaintext because the TLS
object has gone first, as can happen with SSLSocket.close. What a peer says instead of TLS can be looked at as well.

Live guest memory may be sent: OpenSSL copies each record before it encrypts it, so what is authenticated is what arrives.

In TLS 1.3 a client has done with the handshake before the server has looked at its certificate: a refusal comes as an alert on its
first read. No session tickets: a resumed session would outlive its certificate. One key encrypts a direction for good; by the bound
of RFC 8446, 5.5, that is 388 GB a connection with AES-GCM: larger guests go by several page connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator, Sequence

from pagefire.protocol.errors import LinkLost, PagefireError, PeerRefused, RemoteProtocolError
from pagefire.protocol.frames import Buffer
from pagefire.protocol.transport.keys import HostKeys, refused_keys
from pagefire.protocol.transport.vectors import Offsets
from pagefire.protocol.transport.wire import Wire, cut_off, slices, write_range

#: The first byte of a TLS connection, and of an alert, which may be all that a server says.
HANDSHAKE_RECORD, ALERT_RECORD = 0x16, 0x15
#: Ciphertext is taken from and given to the socket in pieces of this size; 64 to 1,024 KiB made no difference that could be seen.
_PIECE_BYTES = 128 << 10
#: Below a whole record, buffers are sent together.
_RECORD_BYTES = 16 << 10

_CHAIN = "give both hosts keys of one CA: `pagefire keys host NAME` where the CA is"
_RENEW = "make a new one where the CA is: `pagefire keys host NAME --force`"
#: OpenSSL's verify codes (X509_V_ERR_*) that are told apart; any other means that the key is not of this CA.
_EXPIRED, _NOT_YET_VALID = 10, 9


class NotTls(PagefireError):
    """The peer answered something else than TLS: what it said so far."""

    def __init__(self, said: bytes) -> None:
        super().__init__("the peer does not speak TLS")
        self.said = said


def context(keys: HostKeys, *, server: bool) -> ssl.SSLContext:
    """Read this host's keys into a context for calling, or for being called; raises UsageError that names the file."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    if server:
        made.num_tickets = 0
    try:
        made.load_verify_locations(keys.ca)
        made.load_cert_chain(keys.certificate, keys.key)
    except OSError as error:  # SSLError is one
        raise refused_keys(keys.folder, error.strerror or str(error)) from error
    return made


class TlsWire(Wire):
    """One TCP connection, encrypted. Used like a plain one once `shake_hands` has returned. `peer` is its name in errors."""

    authenticated = True

    def __init__(self, wire: Wire, made: ssl.SSLContext, *, server: bool) -> None:
        super().__init__(wire.sock)
        self._peer = "source" if server else "destination"
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = made.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        #: OpenSSL's objects are one thread's at a time, and on a fault connection one sends while another receives. Never held
        #: while the socket is waited for.
        self._lock = threading.Lock()

    async def shake_hands(self) -> None:
        """Agree with the peer on keys; raises PeerRefused by name, NotTls, LinkLost. The caller limits the time."""
        loop, began = asyncio.get_running_loop(), False
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._send_pending()
                    received = await loop.sock_recv(self.sock, _PIECE_BYTES)
                    if not received:
                        raise LinkLost(
                            f"the {self._peer} ended the connection while TLS began", "", "check host and port"
                        ) from None
                    if not began and received[0] not in (HANDSHAKE_RECORD, ALERT_RECORD):
                        raise NotTls(received) from None
                    self._incoming.write(received)
                    began = True
            await self._send_pending()
        except ssl.SSLError as error:
            # The alert that tells the peer why.
            with contextlib.suppress(OSError):
                await self._send_pending()
            raise self._named(error) from error
        except OSError as error:
            raise LinkLost(
                "the connection broke while TLS began", error.strerror or str(error), "check host and port"
            ) from error

    async def _send_pending(self) -> None:
        if self._outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self.sock, self._outgoing.read())

    # -- for the loop ----------------------------------------------------------------------------------------------------------

    def receive(self, limit: int) -> bytes:
        # What OpenSSL holds already comes first: only where it has nothing is the socket asked, and waited for.
        while True:
            try:
                with self._lock:
                    return self._tls.read(limit)
            except ssl.SSLWantReadError:
                if not self._take_in():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise self._named(error) from error

    def receive_into(self, room: memoryview) -> int:
        while True:
            try:
                with self._lock:
                    return int(self._tls.read(len(room), room))  # a number where there is room, by typeshed bytes
            except ssl.SSLWantReadError:
                if not self._take_in():
                    return 0
            except ssl.SSLZeroReturnError:
                return 0
            except ssl.SSLError as error:
                raise self._named(error) from error

    def sealed(self, head: bytes, payload: Buffer) -> Iterator[Buffer]:
        yield from self._encrypted([head, payload] if payload else [head])
        yield self._sealed_rest()

    def last_words(self) -> PagefireError | None:
        try:
            self.receive(1)
        except BlockingIOError:
            return None
        except PeerRefused as refusal:
            return refusal
        except PagefireError:
            return None
        return None

    # -- for a thread ----------------------------------------------------------------------------------------------------------

    def send(self, buffers: Sequence[Buffer], *, more: bool = False) -> None:
        for piece in self._encrypted(buffers):
            super().send([piece])
        if not more and self._outgoing.pending:
            super().send([self._sealed_rest()])

    def send_runs(
        self, head: bytes, contents: memoryview, starts: Offsets, stops: Offsets, *, more: bool = False
    ) -> None:
        self.send([head, *slices(contents, starts, stops)], more=more)

    def send_range(self, fd: int, offset: int, contents: memoryview) -> None:
        self.send([contents])

    def _fill(self, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            rest = buffer
            while rest:
                count = self.receive_into(rest)
                if not count:
                    raise cut_off()
                rest = rest[count:]

    def _fill_runs(self, room: memoryview, starts: Offsets, stops: Offsets) -> None:
        self._fill(slices(room, starts, stops))

    def _fill_range(self, fd: int, offset: int, size_bytes: int) -> None:
        """Decrypt, then write: cheaper than to fault fresh pages into a mapping, which zeroes them first."""
        room = memoryview(bytearray(min(size_bytes, _PIECE_BYTES)))
        while size_bytes:
            part = room[: min(size_bytes, len(room))]
            self._fill([part])
            write_range(fd, offset, part)
            offset, size_bytes = offset + len(part), size_bytes - len(part)

    # -- both ------------------------------------------------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Give OpenSSL what the socket has; False at the end of the stream. Raises BlockingIOError where the socket has nothing."""
        count = super().receive_into(self._piece)
        with self._lock:
            self._incoming.write(self._piece[:count])
        return count > 0

    def _sealed_rest(self) -> bytes:
        with self._lock:
            return self._outgoing.read()

    def _encrypted(self, buffers: Sequence[Buffer]) -> Iterator[bytes]:
        """Encrypt all of the buffers; gives whole pieces of ciphertext, and leaves the last part in `_outgoing`."""
        for run in _records(buffers):
            rest = memoryview(run)
            while rest:
                with self._lock:
                    written = self._tls.write(rest)
                rest = rest[written:]
                if self._outgoing.pending >= _PIECE_BYTES:
                    yield self._sealed_rest()

    def _named(self, error: ssl.SSLError) -> PagefireError:
        """Say what OpenSSL found, or the peer's alert said, in words of who has to do what."""
        peer, reason = self._peer, (error.reason or str(error)).replace("_", " ").lower()
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code == _EXPIRED:
                return PeerRefused(f"the {peer}'s key has expired", error.verify_message, _RENEW)
            if error.verify_code == _NOT_YET_VALID:
                return PeerRefused(
                    f"the {peer}'s key is not valid yet", error.verify_message, "compare the hosts' clocks"
                )
            return PeerRefused(f"the {peer}'s key is not of this host's CA", error.verify_message, _CHAIN)
        if "did not return a certificate" in reason:
            return PeerRefused(f"the {peer} has no key", "it gave no certificate", _CHAIN)
        if "alert" in reason:
            said = f"its TLS alert: {reason.partition('alert ')[2]}"
            if "certificate required" in reason:
                return PeerRefused(f"the {peer} refused this host, which gave no key", said, _CHAIN)
            if "certificate expired" in reason:
                return PeerRefused(f"the {peer} refused this host's key, which has expired", said, _RENEW)
            if "unknown ca" in reason or "decrypt error" in reason:
                return PeerRefused(f"the {peer} refused this host's key, which is not of its CA", said, _CHAIN)
            return PeerRefused(f"the {peer} refused to speak TLS with this host", said, _CHAIN)
        if "unsupported protocol" in reason or "wrong version" in reason:
            return PeerRefused(f"the {peer} does not speak TLS 1.3", reason, "install the same pagefire on both hosts")
        return RemoteProtocolError(f"TLS with the {peer} failed", reason, "check host and port")


def _records(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Put short buffers together, so that scattered pages do not cost a record each."""
    short: list[Buffer] = []
    short_bytes = 0
    for buffer in buffers:
        if len(buffer) >= _RECORD_BYTES and not short:
            yield buffer
            continue
        short.append(buffer)
        short_bytes += len(buffer)
        if short_bytes >= _RECORD_BYTES:
            yield b"".join(short)
            short, short_bytes = [], 0
    if short:
        yield b"".join(short)
