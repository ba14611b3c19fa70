"""Where a host's keys lie, and that they may be used: four files in one folder, made by `pagefire keys`.

    ca.pem      the CA's certificate: who has a key of this CA may move guests to and from this host
    host.pem    this host's certificate
    host.key    its private key, 0600
    ca.key      the CA's private key, 0600: only where keys are made

Nothing here makes or reads a key, see key_making.py and tls.py.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pagefire.protocol.errors import UsageError

CA_CERTIFICATE, CA_KEY = "ca.pem", "ca.key"
HOST_CERTIFICATE, HOST_KEY = "host.pem", "host.key"


def default_folder() -> Path:
    """Give $PAGEFIRE_KEYS, else pagefire/keys in $XDG_CONFIG_HOME, else in ~/.config."""
    if chosen := os.environ.get("PAGEFIRE_KEYS"):
        return Path(chosen)
    if configuration := os.environ.get("XDG_CONFIG_HOME"):
        return Path(configuration) / "pagefire" / "keys"
    return Path.home() / ".config" / "pagefire" / "keys"


@dataclass(frozen=True, slots=True)
class HostKeys:
    """What a host needs to authenticate itself and its peers."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / CA_CERTIFICATE

    @property
    def certificate(self) -> Path:
        return self.folder / HOST_CERTIFICATE

    @property
    def key(self) -> Path:
        return self.folder / HOST_KEY


def find_keys(folder: Path | None) -> HostKeys | None:
    """Give the keys in a folder, or those in the default one if there are any; raises UsageError for what cannot be used."""
    keys = HostKeys(folder or default_folder())
    if folder is None and not keys.key.exists():
        return None
    for path in (keys.folder, keys.ca, keys.certificate, keys.key):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise refused_keys(keys.folder, f"{path.name}: {error.strerror}") from error
        if path == keys.folder and mode & 0o022:
            raise UsageError(f"others can write to {path}", "and put a CA of their own there", f"chmod 700 {path}")
        if path == keys.key and stat.S_IMODE(mode) & 0o077:
            raise UsageError(
                f"{path} can be read by others", f"its mode is {stat.S_IMODE(mode):o}", f"chmod 600 {path}"
            )
    return keys


def refused_keys(folder: Path, why: str) -> UsageError:
    return UsageError(
        f"the keys in {folder} cannot be used", why, "make keys with `pagefire keys init`, or name others with --keys"
    )
