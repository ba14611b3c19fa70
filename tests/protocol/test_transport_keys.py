"""Keys: where they are looked for, what is refused by name, and that making them replaces nothing unasked."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pagefire.protocol.errors import UsageError
from pagefire.protocol.transport import tls
from pagefire.protocol.transport.key_making import make_ca, make_host
from pagefire.protocol.transport.keys import CA_KEY, HOST_KEY, HostKeys, default_folder, find_keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `pagefire keys init` makes it."""
    made = tmp_path / "keys"
    make_ca(made)
    make_host(made, "here", made)
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PAGEFIRE_KEYS", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".config/pagefire/keys"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert default_folder() == Path("/elsewhere/pagefire/keys")
    monkeypatch.setenv("PAGEFIRE_KEYS", str(tmp_path / "none"))
    assert default_folder() == tmp_path / "none"
    assert find_keys(None) is None


def test_what_is_made_can_be_used_and_is_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (mode(folder), mode(folder / HOST_KEY), mode(folder / CA_KEY)) == (0o700, 0o600, 0o600)
    monkeypatch.setenv("PAGEFIRE_KEYS", str(folder))
    keys = find_keys(None)
    assert keys == find_keys(folder) == HostKeys(folder)
    for server in (False, True):
        assert keys is not None
        tls.context(keys, server=server)


def test_another_hosts_folder_has_what_it_needs_and_no_more(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    make_host(folder, "there", there)
    assert sorted(path.name for path in there.iterdir()) == ["ca.pem", "host.key", "host.pem"]
    assert (mode(there), mode(there / HOST_KEY)) == (0o700, 0o600)
    tls.context(HostKeys(there), server=True)


def test_nothing_is_replaced_unasked(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"there are keys in .* already: ca\.key, ca\.pem.*--force"):
        make_ca(folder)
    with pytest.raises(UsageError, match=r"already: host\.key, host\.pem.*--force"):
        make_host(folder, "here", folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    make_host(folder, "here", folder, replace=True)
    assert (folder / HOST_KEY).read_bytes() != before[folder / HOST_KEY]
    tls.context(HostKeys(folder), server=True)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 64, "-x"])
def test_names_that_are_none(folder: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name for a host"):
        make_host(folder, name, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_folder_without_a_ca_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no CA in .*pagefire keys init"):
        make_host(tmp_path, "there", tmp_path / "there")


def test_keys_that_cannot_be_used_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the keys in .*/none cannot be used: none: No such file.*pagefire keys init"):
        find_keys(tmp_path / "none")
    (folder / HOST_KEY).chmod(0o640)
    with pytest.raises(UsageError, match=r"host\.key can be read by others: its mode is 640. Chmod 600"):
        find_keys(folder)
    (folder / HOST_KEY).chmod(0o600)
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="others can write to"):
        find_keys(folder)
    folder.chmod(0o700)
    (folder / "host.pem").write_text("no certificate")
    keys = find_keys(folder)
    assert keys is not None
    with pytest.raises(UsageError, match=r"the keys in .* cannot be used"):
        tls.context(keys, server=True)


def test_a_key_of_another_certificate_is_named(ring, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name, source in (
        ("ca.pem", ring.good.ca),
        ("host.pem", ring.good.certificate),
        ("host.key", ring.also_good.key),
    ):
        (mixed / name).write_bytes(source.read_bytes())
    with pytest.raises(UsageError, match=r"cannot be used: .*(?i:mismatch)"):
        tls.context(HostKeys(mixed), server=False)
