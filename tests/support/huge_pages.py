"""Transparent huge pages and hugetlb for the tests that need them; the host's settings are put back whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pagefire.protocol.errors import FeatureMissing
from pagefire.scripts import huge_pages as settings


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Let memory that asks for huge pages have them while this lasts; skips by name where that cannot be."""
    with _or_skip(settings.transparent_huge_pages()):
        yield


@contextlib.contextmanager
def hugetlb_pool(size_bytes: int) -> Iterator[None]:
    """Have so much more memory in the host's pool of 2 MiB pages while this lasts; skips by name where that cannot be."""
    with _or_skip(settings.hugetlb_pool(size_bytes)):
        yield


@contextlib.contextmanager
def _or_skip(setting: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(setting)
        except FeatureMissing as missing:
            pytest.skip(str(missing))
        yield
