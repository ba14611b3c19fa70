"""The commands of the README's section on experiments, one after another, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.e2e.host_pair import run
from tests.e2e.place import Place
from tests.support.kernel import need_pagemap_scan

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.soak]

README = Path(__file__).parents[2] / "README.md"


def test_every_command_of_the_section_works(tmp_path: Path, place: Place) -> None:
    need_pagemap_scan()
    pytest.importorskip("plotly", reason="plotly is missing: pip install 'pagefire[report]'")
    section = re.search(r"^## Experiments$(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    (scenario,) = re.findall(r"^```toml\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(scenario)
    commands = re.findall(r"^    \.venv/bin/pagefire (.*?)(?: +#.*)?$", section[1], re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        code, _, err = run(*shlex.split(command), cwd=tmp_path)
        assert code == 0, (command, err)
    assert (tmp_path / "results" / "timeline-quick" / "report.html").exists()
    assert "2 of 2: 2 completed" in (tmp_path / "mine" / "report.html").read_text()
    place.assert_nothing_left()
