"""What the exploration is worth: each deliberately broken rule, and each broken step of a script, is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pagefire.protocol.ownership import RULES
from tests.protocol.exploration.broken import BROKEN, Broken
from tests.protocol.exploration.core import Core
from tests.protocol.exploration.search import Exploration, Found


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_is_caught(broken: Broken, record_property: Callable[[str, object], None]) -> None:
    rules = {row: following for row, following in {**RULES, **broken.rules}.items() if following is not None}
    core = Core(broken.bounds.pages, rules)
    exploration = Exploration(broken.bounds, core, broken.source, broken.dest)
    with pytest.raises(Found) as caught:
        exploration.run()
    print(caught.value)
    record_property("steps", len(caught.value.trace))
    assert broken.found in caught.value.why
