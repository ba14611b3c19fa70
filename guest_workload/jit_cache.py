"""Where compiled code is kept: one directory for each state of the sources, chosen before Numba is imported.

Numba's own cache looks at the file of the function it compiles, not at what that function calls: an edited intrinsic or step
would leave stale code in a loop compiled before. So the directory's name is a hash of all sources that can end up in the code,
and an old directory is merely unused. The code of a user's workload names the module that it was compiled in, and cannot be loaded
where that has another name: one that is named by its file and one that is named by its module do not share a directory.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

_SOURCES = Path(__file__).resolve().parent
_private: list[Path] = []


def directory(user_files: tuple[Path, ...] = (), module: str = "") -> Path:
    """Name the cache's directory for the present sources and these files of a user's `module`; touches nothing."""
    digest = hashlib.blake2b(digest_size=12)
    versions = (metadata.version("numba"), metadata.version("numpy"), platform.python_version(), platform.machine())
    digest.update(" ".join((*versions, module)).encode())
    for source in sorted(_SOURCES.rglob("*.py")) + sorted(user_files):
        digest.update(str(source).encode() + b"\0" + source.read_bytes())
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pagefire" / f"numba-{digest.hexdigest()}"


def use(user_files: tuple[Path, ...] = (), module: str = "") -> Path:
    """Make Numba keep its code in `directory(user_files, module)`, or in a private one removed at exit if that cannot be written.

    Has to come before Numba is imported for the first time; raises RuntimeError if it comes too late.
    """
    if "numba" in sys.modules and "NUMBA_CACHE_DIR" not in os.environ:
        raise RuntimeError("the cache for compiled code must be chosen before Numba is imported")
    chosen = directory(user_files, module)
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=chosen).close()
    except (OSError, RuntimeError):
        chosen = Path(tempfile.mkdtemp(prefix="pagefire-numba-"))
        _private.append(chosen)
    os.environ["NUMBA_CACHE_DIR"] = str(chosen)
    return chosen


@atexit.register
def remove_private() -> None:
    """Remove the private directories that this process made; by itself at exit, but not with os._exit."""
    while _private:
        shutil.rmtree(_private.pop(), ignore_errors=True)
