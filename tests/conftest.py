"""For every test: hypothesis tries fewer examples in the inner loop (`make quick`)."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quick", max_examples=20, deadline=None)
