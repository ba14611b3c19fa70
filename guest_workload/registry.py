"""Workloads by name: the built-in ones, and a user's own as module:Class or path/file.py:Class.

A user's workload is code, so a name that comes from a peer is looked up only among those that this host's owner allowed.
Built-in modules are imported when they are asked for; listing the names compiles nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pagefire.protocol.errors import UsageError

if TYPE_CHECKING:
    from pagefire.guest_workload.workload import Workload

#: Name: class; each lives in the module of its name.
BUILT_IN = {
    "idle": "Idle",
    "sequential": "Sequential",
    "random": "Random",
    "hotspot": "Hotspot",
    "phased": "Phased",
    "adversary": "Adversary",
    "oltp": "Oltp",
    "sqlite": "Sqlite",
}


def refuse_unknown(name: str, allowed_user: set[str] | None) -> None:
    """Raise UsageError unless `name` is built in or a user's own that is allowed; None allows all. Imports nothing."""
    if name in BUILT_IN:
        return
    if ":" not in name:
        raise UsageError(
            f"there is no workload {name!r}",
            f"known are {', '.join(BUILT_IN)}",
            "name one of these, or your own as module:Class or path/file.py:Class",
        )
    if allowed_user is not None and name not in allowed_user:
        raise UsageError(
            f"the workload {name!r} may not run here",
            "this host was not told to allow it",
            "allow it where the daemon is started",
        )


def user_files(name: str) -> tuple[Path, ...]:
    """Find the source of a user's workload, whose compiled code depends on it; empty for a built-in one."""
    if name in BUILT_IN or ":" not in name:
        return ()
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        return (Path(place).resolve(),) if Path(place).is_file() else ()
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return ()
    return (Path(found.origin).resolve(),) if found and found.origin and found.has_location else ()


def user_module_name(name: str) -> str:
    """Give the name that the module of a user's workload has when it is imported; empty for a built-in one."""
    if name in BUILT_IN or ":" not in name:
        return ""
    place = name.rpartition(":")[0]
    return _name_of_file(Path(place)) if place.endswith(".py") else place


def workload_named(name: str, allowed_user: set[str] | None = None) -> Workload:
    """Import and make a workload; UsageError where there is none, it may not run here, or it is no workload."""
    refuse_unknown(name, allowed_user)
    if name in BUILT_IN:
        module = importlib.import_module(f"pagefire.guest_workload.workloads.{name}")
        found = getattr(module, BUILT_IN[name])()
    else:
        place, _, class_name = name.rpartition(":")
        try:
            found = getattr(user_module(place), class_name)()
        except (ImportError, OSError, AttributeError, TypeError) as error:
            raise UsageError(
                f"the workload {name!r} cannot be loaded", str(error), "name it module:Class or path/file.py:Class"
            ) from error
    from pagefire.guest_workload.workload import Workload

    if not isinstance(found, Workload):
        raise UsageError(
            f"{name!r} is no workload", "its class does not derive from Workload", "see docs/own-workload.md"
        )
    return found


def user_module(place: str) -> ModuleType:
    """Import a user's own module by its name, or run a file path/file.py anew; raises what its code raises, and OSError."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(_name_of_file(path), path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _name_of_file(path: Path) -> str:
    return f"pagefire_user_{path.stem}"
