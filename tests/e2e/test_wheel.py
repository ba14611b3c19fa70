"""The wheel: it claims one name in site-packages, and what it installs migrates a guest outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.e2e.host_pair import assert_verified, finish, start
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

CHECKOUT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def command(*words: str, cwd: Path) -> str:
    ended = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is missing: the wheel is built without the network")
    folder = tmp_path_factory.mktemp("wheel")
    command(
        *PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(CHECKOUT), cwd=folder
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_claims_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "pagefire",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    packages = {name.split("/")[1] for name in names if name.startswith("pagefire/") and name.count("/") > 1}
    assert packages == {"protocol", "guest_workload", "source_host", "dest_host", "scripts"}
    here = {path.relative_to(CHECKOUT) for name in packages for path in (CHECKOUT / name).rglob("*.py")}
    assert {Path(name).relative_to("pagefire") for name in names if name.endswith(".py")} == {
        *here,
        Path("__init__.py"),
    }


def test_it_migrates_outside_the_checkout(wheel: Path, tmp_path: Path, place: Place) -> None:
    environment, outside = tmp_path / "venv", tmp_path / "outside"
    outside.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    command(*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel), cwd=outside)
    # The dependencies are those of the present environment, by a path at the end: nothing is fetched, and its editable
    # pagefire is out of reach, because .pth files are read only in a site directory.
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(command(str(python), "-c", where, cwd=outside).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    loaded = "import pagefire.scripts.cli, pagefire.source_host.resident; print(pagefire.source_host.resident.__file__)"
    assert Path(command(str(python), "-c", loaded, cwd=outside).strip()).is_relative_to(site)
    demo = ("demo", "--memory", "64MiB", "--warmup", "300ms", "--settle", "200ms", "--json", "-")
    pagefire = (str(environment / "bin" / "pagefire"),)
    code, out, err = finish(start(*demo, command=pagefire, cwd=outside))
    assert code == 0, err
    assert_verified(json.loads(out))
    assert [path.name[:16] for path in outside.iterdir()] == ["pagefire-report-"]
    place.assert_nothing_left()
