"""The tracking self-test: what it finds here, and that it finds what a lesser kernel would do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagefire.guest_workload.linux import pagemap, selftest, userfaultfd
from pagefire.guest_workload.linux.selftest import Trial, tracking_self_test
from tests.support.kernel import need_pagemap_scan

pytestmark = pytest.mark.kernel

Scan = Callable[..., pagemap.Regions]
NAMES = [
    "a clean page reads clean",
    "a written page reads written",
    "a page written and then unmapped reads written",
    "a first write into a hole reads written",
    "what was collected is protected again",
]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_this_kernel_passes_and_nothing_is_left() -> None:
    need_pagemap_scan()
    before = open_descriptors()
    assert tracking_self_test() == [Trial(name, True, "") for name in NAMES]
    assert open_descriptors() == before
    assert "pagefire-selftest" not in Path("/proc/self/maps").read_text()


def failed_trials(monkeypatch: pytest.MonkeyPatch, lesser: Callable[[Scan], Scan]) -> dict[str, str]:
    need_pagemap_scan()
    monkeypatch.setattr(pagemap.Scanner, "scan", lesser(pagemap.Scanner.scan))
    return {trial.name: trial.detail for trial in tracking_self_test() if not trial.passed}


def test_a_scan_that_forgets_unmapped_pages_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lesser(real: Scan) -> Scan:
        def scan(self: pagemap.Scanner, start: int, end: int, **masks: Any) -> pagemap.Regions:
            return real(self, start, end, **masks, any_of=pagemap.Category.PRESENT | pagemap.Category.SWAPPED)

        return scan

    failed = failed_trials(monkeypatch, lesser)
    assert failed["a page written and then unmapped reads written"] == "lost [7], invented []"


def test_a_scan_that_does_not_protect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lesser(real: Scan) -> Scan:
        def scan(self: pagemap.Scanner, start: int, end: int, **masks: Any) -> pagemap.Regions:
            return real(self, start, end, **(masks | {"flags": pagemap.Flag.CHECK_WPASYNC}))

        return scan

    failed = failed_trials(monkeypatch, lesser)
    assert failed["a clean page reads clean"] == "lost [], invented [0, 1, 2, 3]"


def test_a_scan_that_finds_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lesser(real: Scan) -> Scan:
        return lambda self, start, end, **masks: np.zeros((0, 3), np.uint64)

    failed = failed_trials(monkeypatch, lesser)
    assert list(failed) == NAMES[1:4]
    assert failed["a written page reads written"] == "lost [5], invented []"


def test_a_kernel_without_the_feature_is_one_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(features: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(userfaultfd, "open_uffd", missing)
    assert tracking_self_test() == [Trial("userfaultfd with WP_ASYNC", False, "Invalid argument")]


def test_a_kernel_without_the_scan_is_one_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    need_pagemap_scan()
    before = open_descriptors()
    monkeypatch.setattr(pagemap, "_PAGEMAP_SCAN", 0x1234)
    (trial,) = selftest.tracking_self_test()
    assert (trial.name, trial.passed) == ("PAGEMAP_SCAN", False)
    assert trial.detail.startswith("PAGEMAP_SCAN: ")
    assert open_descriptors() == before
