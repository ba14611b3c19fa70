"""Parameters that `make soak` runs and `make test` leaves out: more of the same kind, where one of it is tried every time."""

from __future__ import annotations

from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def soaked(*values: Any) -> list[ParameterSet]:
    """Mark the values of one parameter, or tuples of several."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.soak) for value in values
    ]
