"""What this kernel has, for tests that need it: each function skips the test and names what is missing."""

from __future__ import annotations

import functools

import pytest

from pagefire.guest_workload.linux import userfaultfd
from pagefire.guest_workload.linux.selftest import tracking_self_test


@functools.cache
def _offered() -> userfaultfd.Feature | str:
    try:
        return userfaultfd.supported_features()
    except OSError as error:
        return f"userfaultfd is missing: {error.strerror or error}"


@functools.cache
def _failed_trials() -> tuple[str, ...]:
    return tuple(f"{trial.name}: {trial.detail}" for trial in tracking_self_test() if not trial.passed)


def need_userfaultfd(features: userfaultfd.Feature) -> None:
    """Skip unless userfaultfd offers all of these features."""
    offered = _offered()
    if isinstance(offered, str):
        pytest.skip(offered)
    if features & ~offered:
        pytest.skip(f"userfaultfd lacks {features & ~offered!r}")


def need_pagemap_scan() -> None:
    """Skip unless writes can be tracked with PAGEMAP_SCAN."""
    need_userfaultfd(userfaultfd.TRACK_ASYNC)
    if _failed_trials():
        pytest.skip(f"PAGEMAP_SCAN with WP_ASYNC does not work: {'; '.join(_failed_trials())}")
