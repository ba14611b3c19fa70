"""Finding a guest on this machine by its name: every daemon in the runtime directory is asked what lives with it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.transport import runtime_directory
from pagefire.protocol.transport.control_socket import request

_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """A guest, or what a daemon still knows of it, and the daemon's control socket."""

    control_path: Path
    guest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.guest["name"])


def guests(directory: Path) -> list[Found]:
    """Ask every daemon that answers; gives what each knows of each guest, residents and those that arrive or have left."""
    found = []
    for path in runtime_directory.running(directory):
        # One that ends at this moment knows of none.
        with contextlib.suppress(PagefireError):
            found += [Found(path, guest) for guest in request(path, "status", timeout_s=_ANSWER_S)["guests"]]
    return found


def resident(directory: Path, name: str | None) -> Found:
    """Find the one guest that is meant, where it lives; raises UsageError that lists the candidates."""
    living = [one for one in guests(directory) if one.guest["resident"]]
    meant = [one for one in living if name in (None, one.name)]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(one.name for one in living)
    if len(meant) > 1:
        raise UsageError("several guests live here", names, "name the one that is meant")
    if name is not None:
        raise UsageError(f"no guest named {name}", f"living in {directory}: {names or 'none'}")
    raise UsageError("no guest lives here", f"looked in {directory}", "start one with `pagefire source`")
