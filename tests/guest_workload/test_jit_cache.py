"""Compiled code is kept per state of the sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pagefire.guest_workload import jit_cache


def test_the_directory_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "own.py"
    source.write_text("one")
    plain, one = jit_cache.directory(), jit_cache.directory((source,))
    source.write_text("two")
    named = jit_cache.directory((source,), "own"), jit_cache.directory((source,), "pagefire_user_own")
    assert len({plain, one, jit_cache.directory((source,)), *named}) == 5
    assert plain.parent == tmp_path / "pagefire"
    assert list(tmp_path.iterdir()) == [source]


def test_a_cache_that_cannot_be_written_is_replaced_and_removed(tmp_path: Path) -> None:
    (tmp_path / "pagefire").write_text("in the way")
    script = "from pagefire.guest_workload import jit_cache; print(jit_cache.use())"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    output = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    used = Path(output.stdout.strip())
    assert used.parent == tmp_path
    assert not used.exists()


def test_numba_must_not_be_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", sys)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    with pytest.raises(RuntimeError, match="before Numba"):
        jit_cache.use()
