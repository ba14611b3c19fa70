"""The lines of the emulator are compiled code: this keeps it, as the emulator does."""

from __future__ import annotations

import os

from pagefire.guest_workload import jit_cache

if "NUMBA_CACHE_DIR" not in os.environ:
    jit_cache.use()
