"""HOST:PORT, as a person writes it."""

from __future__ import annotations

from pagefire.protocol.errors import UsageError


def parse_address(text: str, default_host: str = "127.0.0.1") -> tuple[str, int]:
    """Split HOST:PORT, :PORT or [IPV6]:PORT; raises UsageError."""
    host, separator, port = text.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address", "HOST:PORT is needed", "write for instance 127.0.0.1:7700")
    return host.strip("[]") or default_host, int(port)
