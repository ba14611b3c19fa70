"""The arrows between the packages, what the pure core may not touch, and the size of a file: read from the sources with ast.

protocol  <-  guest_workload  <-  source_host, dest_host  <-  scripts
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocol", "guest_workload", "source_host", "dest_host", "scripts")

#: What each package may import of pagefire, beside itself.
ARROWS = {
    "protocol": set[str](),
    "protocol.transport": {"protocol"},
    "guest_workload": {"protocol"},
    "source_host": {"protocol", "guest_workload"},
    "dest_host": {"protocol", "guest_workload"},
    "scripts": {"protocol", "guest_workload", "source_host", "dest_host"},
}
#: Module -> the one import that it may have beyond its package's arrows.
ALLOWED_IMPORTS = {
    # `python -m source_host` is `pagefire source`: the only line of a host that knows of the command line.
    "source_host.__main__": "pagefire.scripts.cli",
    "dest_host.__main__": "pagefire.scripts.cli",
}
#: The pure core: whatever else the standard library offers does input, output, time, chance or concurrency.
PURE_LIBRARY = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "decimal", "enum", "functools", "itertools", "math", "operator",
    "re", "struct", "types", "typing", "zlib",
}  # fmt: skip
PURE_PACKAGES = {"lz4", "msgpack", "numpy", "zstandard"}

#: Module -> how many prints it may have.
ALLOWED_PRINTS = {
    # A daemon's line to who started it, and its last words to the terminal: there is no log for either.
    "protocol.transport.daemon": 2,
    # The guest process has no logging of its own; its standard error is its log file.
    "guest_workload.process": 2,
}
MAX_LINES = 500


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
every_module = pytest.mark.parametrize("module", SOURCES)


def imports_of(module: str) -> Iterator[str]:
    """Give the full name of everything that a module imports, inside its functions as well."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module and node.module.startswith("pagefire"):
                for alias in node.names:
                    yield f"{node.module}.{alias.name}"


def package_of(module: str) -> str:
    """Give the key of ARROWS that a module falls under."""
    return "protocol.transport" if f"{module}.".startswith("protocol.transport.") else module.partition(".")[0]


def is_pure(module: str) -> bool:
    return package_of(module) == "protocol"


def wrong_arrow(module: str, imported: str) -> bool:
    """Tell whether `module` of this project may not import the pagefire module or name `imported`."""
    if imported == "pagefire":
        return is_pure(module)
    target = package_of(imported.removeprefix("pagefire."))
    if target not in ARROWS:  # a name of the pagefire package itself: its version
        return is_pure(module)
    return target not in ARROWS[package_of(module)] | {package_of(module)} and (
        # The hosts, and what is above them, may use the shells as well as the core.
        not (target == "protocol.transport" and package_of(module) not in ("protocol", "guest_workload"))
    )


def test_there_is_something_to_look_at() -> None:
    assert {package_of(module) for module in SOURCES} == set(ARROWS)


@every_module
def test_arrows(module: str) -> None:
    for imported in imports_of(module):
        if imported.partition(".")[0] == "pagefire" and not imported.startswith(ALLOWED_IMPORTS.get(module, "\0")):
            assert not wrong_arrow(module, imported), f"{module} may not import {imported}"


@every_module
def test_first_party_imports_go_by_pagefire(module: str) -> None:
    for imported in imports_of(module):
        assert not imported.startswith("."), f"{module} has a relative import"
        assert imported.partition(".")[0] not in PACKAGES, f"{module} imports {imported} without pagefire."


@pytest.mark.parametrize("module", [module for module in SOURCES if is_pure(module)])
def test_the_core_is_pure(module: str) -> None:
    for imported in imports_of(module):
        top = imported.partition(".")[0]
        assert top in PURE_LIBRARY | PURE_PACKAGES | {"pagefire"}, (
            f"{module} imports {imported}: no IO, clock or chance here"
        )
        assert not imported.startswith("numpy.random"), module
    for node in ast.walk(TREES[module]):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        assert name not in {"open", "input", "__import__", "memmap", "fromfile", "tofile", "random"}, (
            f"{module} uses {name}"
        )


def test_what_is_pure_is_not_io() -> None:
    banned = {
        "asyncio",
        "socket",
        "ctypes",
        "mmap",
        "threading",
        "time",
        "os",
        "subprocess",
        "random",
        "select",
        "secrets",
    }
    assert not banned & (PURE_LIBRARY | PURE_PACKAGES)
    assert sys.stdlib_module_names >= PURE_LIBRARY | banned


@every_module
def test_nothing_is_printed_outside_scripts(module: str) -> None:
    if package_of(module) != "scripts":
        calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
        prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert len(prints) == ALLOWED_PRINTS.get(module, 0), f"{module} prints"


@every_module
def test_one_idea_a_file(module: str) -> None:
    lines = len(SOURCES[module].read_text().splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines: ask which two ideas it holds"


@every_module
def test_every_module_says_what_lives_in_it(module: str) -> None:
    if TREES[module].body:
        assert ast.get_docstring(TREES[module]), f"{module} has no docstring"


@pytest.mark.parametrize(
    ("module", "imported", "wrong"),
    [
        ("protocol.pages", "pagefire.protocol.errors", False),
        ("protocol.pages", "pagefire.protocol.transport.tasks", True),
        ("protocol.pages", "pagefire.guest_workload.layout", True),
        ("protocol.pages", "pagefire", True),
        ("protocol.transport.tasks", "pagefire.protocol.errors", False),
        ("protocol.transport.software", "pagefire.__version__", False),
        ("protocol.transport.tasks", "pagefire.guest_workload.layout", True),
        ("guest_workload.vcpu", "pagefire.protocol.pages", False),
        ("guest_workload.vcpu", "pagefire.source_host.migration", True),
        ("source_host.migration", "pagefire.guest_workload.layout", False),
        ("source_host.migration", "pagefire.protocol.transport.tasks", False),
        ("source_host.migration", "pagefire.dest_host.ledger", True),
        ("dest_host.ledger", "pagefire.source_host.postcopy", True),
        ("dest_host.ledger", "pagefire.scripts.cli", True),
        ("scripts.cli", "pagefire.source_host.migration", False),
    ],
)
def test_the_arrows_are_the_specified_ones(module: str, imported: str, wrong: bool) -> None:
    assert wrong_arrow(module, imported) is wrong
