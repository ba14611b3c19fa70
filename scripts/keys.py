"""`pagefire keys`: make a CA and hosts' keys."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pagefire.protocol.errors import UsageError
from pagefire.protocol.transport.keys import CA_KEY, default_folder

app = typer.Typer(help="Make the keys by which hosts know each other.", no_args_is_help=True)
_screen = Console(stderr=True, highlight=False)

Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of the CA \\[default: $PAGEFIRE_KEYS, else ~/.config/pagefire/keys]."),
]
Days = Annotated[int, typer.Option("--days", help="How long the host's key is valid.", min=1)]
Force = Annotated[bool, typer.Option("--force", help="Replace keys that are there.")]


@app.command()
def init(folder: Folder = None, days: Days = 825, force: Force = False) -> None:
    """Make a CA, and this host's key of it."""
    from pagefire.protocol.transport.key_making import make_ca, make_host

    where = folder or default_folder()
    make_ca(where, replace=force)
    make_host(where, _own_name(), where, days, replace=force)
    _say(f"A new CA and this host's key are in {where}. Keep {where / CA_KEY} to yourself.")
    _say("For each other host: `pagefire keys host NAME`.")


@app.command()
def host(
    name: Annotated[str, typer.Argument(help="The other host's name: for people, nothing is compared with it.")],
    folder: Folder = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="Where the keys are put \\[default: hosts/NAME in the CA's folder].")
    ] = None,
    days: Days = 825,
    force: Force = False,
) -> None:
    """Make the key of another host, in a folder to be copied there."""
    from pagefire.protocol.transport.key_making import make_host

    ca_folder = folder or default_folder()
    where = into or ca_folder / "hosts" / name
    if where.absolute() == ca_folder.absolute():
        raise UsageError(f"{where} is the CA's own folder", "a host's keys are for another machine", "change --into")
    make_host(ca_folder, name, where, days, replace=force)
    _say(f"The keys of {name} are in {where}. Put them into ~/.config/pagefire/keys there:")
    _say(f"    scp -rp {where} {name}:.config/pagefire/keys")


def _own_name() -> str:
    """Give this host's name without what a certificate's name may not have."""
    kept = "".join(
        letter for letter in socket.gethostname()[:63] if letter.isascii() and (letter.isalnum() or letter in ".-")
    )
    return kept.lstrip(".-") or "host"


def _say(line: str) -> None:
    _screen.print(line, soft_wrap=True, markup=False)
