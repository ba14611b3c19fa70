"""The options that secure connections, of `migrate` and `dest`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

_PANEL = "Security"

Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="Folder of this host's keys \\[default: $PAGEFIRE_KEYS, else pagefire/keys in $XDG_CONFIG_HOME or ~/.config].",
        rich_help_panel=_PANEL,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Connect with other hosts without encryption and authentication.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class SecurityOptions:
    """How a source's connections are secured. Keys that are named here are used on loopback as well."""

    keys: Keys = None
    insecure: Insecure = False
    checksum: Annotated[
        bool,
        typer.Option(
            "--checksum",
            help="Give every frame a checksum that the receiver verifies; encrypted connections have better.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def given(self) -> dict[str, Any]:
        """Give the fields of MigrationOptions; a relative folder is one of this command's directory, not of the daemon's."""
        keys = str(self.keys.absolute()) if self.keys is not None else None
        return {"keys": keys, "insecure": self.insecure, "checksum": self.checksum}
