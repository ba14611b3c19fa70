"""Every error that a person or a peer may see.

`what` failed, `why`, and what to `do` next; printed as one sentence each. A peer's fault is a `RemoteProtocolError`, ours a
`LocalProtocolError`; operating system errors are mapped to a `PagefireError` once, where they happen, with `from`.
"""

from __future__ import annotations


class PagefireError(Exception):
    """A failure that a person should understand: what failed, why, and what to do next (each a clause without a full stop)."""

    #: Exit code of the command line when this error ends it.
    exit_code = 1

    def __init__(self, what: str, why: str = "", do: str = "") -> None:
        super().__init__(what, why, do)
        self.what, self.why, self.do = what, why, do

    def __str__(self) -> str:
        sentence = f"{self.what}: {self.why}" if self.why else self.what
        return f"{sentence}. {self.do[0].upper()}{self.do[1:]}." if self.do else f"{sentence}."


class UsageError(PagefireError):
    """The person asked for something that cannot be: an unknown workload, a bad unit, an ambiguous guest."""

    exit_code = 2


class Cancelled(PagefireError):
    """The migration was cancelled before its commit point; the guest runs on at the source."""

    exit_code = 3


class FeatureMissing(PagefireError):
    """This host's kernel or configuration lacks something; `pagefire doctor` tells the line that enables it."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why, "run `pagefire doctor` to see what this host offers and how to enable the rest")


class GuestError(PagefireError):
    """The guest process died or did not answer."""


class ProtocolError(PagefireError):
    """A rule of the wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """We were about to send what the protocol does not allow now: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow: the connection is closed, nothing of it is believed."""


class PeerRefused(PagefireError):
    """The peer understood and said no, with a reason; the guest stays where it is."""


class LinkLost(PagefireError):
    """A connection ended or stayed silent for too long."""
