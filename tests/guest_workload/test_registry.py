"""Finding workloads: built-in, a user's, and none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pagefire.guest_workload import registry
from pagefire.guest_workload.registry import BUILT_IN, refuse_unknown, user_files, workload_named
from pagefire.protocol.errors import UsageError
from tests.guest_workload.conftest import MachineMaker

EXAMPLE = Path(__file__).with_name("example_workload.py")


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_workloads_have_their_name(name: str) -> None:
    workload = workload_named(name, set())
    assert workload.name == name
    assert workload.description
    # One that is not says in its module why, and the replay proof leaves it out.
    assert workload.deterministic or name == "sqlite"


@pytest.mark.parametrize("name", ["tests.guest_workload.example_workload:Counters", f"{EXAMPLE}:Counters"])
def test_a_users_workload_runs_and_is_checked(machine: MachineMaker, name: str) -> None:
    guest = machine(name, 2)
    guest.run_to(5000)
    assert guest.check().problems == ()
    assert guest.check().committed == 10_000
    guest.layout.working_set(guest.memory.array, 0)[3] += 1
    assert guest.check().problems


def test_code_compiled_for_a_file_is_not_loaded_for_a_module() -> None:
    """They are one source and two modules, and compiled code names its own."""
    by_module, by_file = (registry.user_module_name(name) for name in ("tests.own:Own", f"{EXAMPLE}:Counters"))
    assert (by_module, by_file, registry.user_module_name("oltp")) == (
        "tests.own",
        "pagefire_user_example_workload",
        "",
    )


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"sequential, random, hotspot.*module:Class"):
        workload_named("oltpp")


def test_a_users_workload_needs_leave() -> None:
    refuse_unknown("mine:Own", None)
    refuse_unknown("mine:Own", {"mine:Own"})
    with pytest.raises(UsageError, match="may not run here"):
        refuse_unknown("mine:Own", {"mine:Other"})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:Own", "No module named"),
        ("no/such/file.py:Own", "No such file"),
        ("tests.guest_workload.example_workload:Nothing", "no attribute"),
        ("pagefire.guest_workload.workload:Workload", "abstract"),
        ("pagefire.guest_workload.workloads.oltp:Bank", "argument"),
        ("builtins:dict", "does not derive from Workload"),
    ],
)
def test_what_is_no_workload_is_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        workload_named(name)


def test_a_users_sources_are_found() -> None:
    assert user_files("random") == ()
    assert user_files(f"{EXAMPLE}:Counters") == (EXAMPLE,)
    assert user_files("tests.guest_workload.example_workload:Counters") == (EXAMPLE,)
    assert user_files("no_such_module:Own") == user_files("no/such.py:Own") == ()


def test_hosts_do_not_import_numba() -> None:
    modules = "control_block, guest_process, guest_config, registry, linux.memfd, linux.scheduling"
    imports = "; ".join(f"import pagefire.guest_workload.{module}" for module in modules.split(", "))
    script = f"{imports}; import sys; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert registry.BUILT_IN
