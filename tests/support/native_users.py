"""What the stress tests do to guest memory, in a process of its own: native threads without the GIL.

`Writers` store for as long as they are let, and vouch for what they stored in memory that nobody tracks. `Readers` load and store
in a destination's memory while its pages arrive, and check each page against what it must hold. No two threads store to the same
word, so every word has one right value at any moment.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np

from pagefire.guest_workload import jit_cache

jit_cache.use((Path(__file__),))

# The cache's place has to be settled before Numba is first imported.
from numba import njit  # noqa: E402

from pagefire.guest_workload.atomics import load_u32  # noqa: E402
from pagefire.guest_workload.fill import below, mix  # noqa: E402
from pagefire.guest_workload.linux import memfd, scheduling  # noqa: E402
from pagefire.protocol.pages import PAGE_BYTES  # noqa: E402

PAGE_WORDS = PAGE_BYTES // 8
#: Words from here on belong to the readers' threads, one each; those before are the source's alone.
FIRST_OWN_WORD = 448
_NICE = 10
_PATIENCE_S = 20.0
_MADV_DONTNEED, _MADV_PAGEOUT = 4, 21
_0, _1, _7, _8, _63 = (np.uint64(number) for number in (0, 1, 7, 8, 63))
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_OWN = np.uint64(FIRST_OWN_WORD)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@njit(
    "void(uint64[:, ::1], uint64[:, ::1], uint64[::1], uint64, uint64, uint64, uint64)",
    nogil=True, cache=True,
)  # fmt: skip
def _write_until(memory, vouched, state, thread, threads, often, stop):  # type: ignore[no-untyped-def]
    """Store to this thread's pages until the word at `stop` is set; mostly to the first `often` pages.

    vouched[page] is (word 0, sum of all words); state is (random number, transactions).
    """
    while load_u32(stop) == 0:
        state[0] += _GOLDEN
        state[1] += _1
        random = mix(state[0])
        reach = often if random & _7 else np.uint64(memory.shape[0])
        page = below(mix(random), reach // threads) * threads + thread
        if random & np.uint64(0x3F00) == _0:
            for word in range(PAGE_WORDS):
                memory[page, word] = _0
            vouched[page, 0] = vouched[page, 1] = _0
            continue
        line = (_1 + (random >> _8) % _63) * _8
        difference = state[1] - memory[page, 0]
        memory[page, 0] = state[1]
        for offset in range(8):
            word = mix(random + np.uint64(offset))
            difference += word - memory[page, line + np.uint64(offset)]
            memory[page, line + np.uint64(offset)] = word
        vouched[page, 0] = state[1]
        vouched[page, 1] += difference


@njit(
    "void(uint64[:, ::1], uint64[::1], uint64[::1], uint64[::1], uint64[::1], uint64, uint64)",
    nogil=True, cache=True,
)  # fmt: skip
def _use_until(memory, stamps, stored, state, seen, thread, stop):  # type: ignore[no-untyped-def]
    """Load random pages, and store to every fourth, until the word at `stop` is set.

    Word w of a page must be stamps[page] + w, or zero where the stamp is; this thread's own word also counts its stores.
    seen: pages read, wrong ones, own stores lost, first wrong page, first wrong word, what it held.
    """
    while load_u32(stop) == 0:
        state[0] += _GOLDEN
        random = mix(state[0])
        page = below(random, np.uint64(memory.shape[0]))
        stamp = stamps[page]
        step = _1 if stamp else _0
        for word in range(FIRST_OWN_WORD):
            if memory[page, word] != stamp + step * np.uint64(word):
                if seen[1] == _0:
                    seen[3], seen[4], seen[5] = page, np.uint64(word), memory[page, word]
                seen[1] += _1
                break
        if random & np.uint64(3) == _0:
            own = _OWN + thread
            expected = stamp + step * own + stored[page]
            if memory[page, own] != expected:
                seen[2] += _1
            memory[page, own] = expected + _1
            stored[page] += _1
        seen[0] += _1


class _Threads:
    """Native threads that run until told to stop, and can be run again."""

    def __init__(self) -> None:
        self._stop = np.zeros(1, np.uint64)
        self._running: list[threading.Thread] = []

    def _run(self, function: Any, *arguments: Any) -> None:
        def thread() -> None:
            scheduling.set_nice(_NICE)
            function(*arguments)

        self._running.append(threading.Thread(target=thread, daemon=True))
        self._running[-1].start()

    @property
    def _stop_address(self) -> np.uint64:
        return np.uint64(self._stop.ctypes.data)

    def stop(self, request: dict[str, Any]) -> None:
        self._stop[0] = 1
        for thread in self._running:
            thread.join(_PATIENCE_S)
            if thread.is_alive():
                raise RuntimeError("a thread still waits for a page")
        self._running, self._stop[0] = [], 0


class Writers(_Threads):
    """`threads` native writers, and if `zaps` a thread that zaps pages and pages them out beside them."""

    def __init__(self, memory: memfd.Mapping, fds: list[int], request: dict[str, Any]) -> None:
        super().__init__()
        self._memory = memory
        self._words = memory.array.view(np.uint64).reshape(-1, PAGE_WORDS)
        self._vouched = memfd.Mapping(fds[0]).array.view(np.uint64).reshape(-1, 2)
        self._threads, self._often, self._zaps = request["threads"], request["often"], request["zaps"]
        self._states = np.array([[request["seed"] + thread, 0] for thread in range(self._threads)], np.uint64)
        self._random = np.random.default_rng(request["seed"])
        self._zapped = 0

    def go(self, request: dict[str, Any]) -> None:
        for thread in range(self._threads):
            self._run(
                _write_until, self._words, self._vouched, self._states[thread],
                np.uint64(thread), np.uint64(self._threads), np.uint64(self._often), self._stop_address,
            )  # fmt: skip
        if self._zaps:
            self._run(self._zap)

    def told(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"stores": int(self._states[:, 1].sum()), "zapped": self._zapped}

    def _zap(self) -> None:
        while not self._stop[0]:
            pages = self._random.integers(0, self._memory.pages, 64)
            for page in pages.tolist():
                self._advise(page, 1, _MADV_DONTNEED)
            start = int(pages[0])
            self._advise(start, min(64, self._memory.pages - start), _MADV_PAGEOUT)
            self._zapped += pages.size

    def _advise(self, page: int, count: int, advice: int) -> None:
        if _libc.madvise(self._memory.address + page * PAGE_BYTES, count * PAGE_BYTES, advice):
            raise OSError(ctypes.get_errno(), f"madvise {advice}")


class Readers(_Threads):
    """`threads` native readers and writers of a destination's memory. fds: the stamps, and their stores per thread and page."""

    def __init__(self, memory: memfd.Mapping, fds: list[int], request: dict[str, Any]) -> None:
        super().__init__()
        words = memory.array.view(np.uint64).reshape(-1, PAGE_WORDS)
        stamps = memfd.Mapping(fds[0])
        stored = memfd.Mapping(fds[1])
        self._owned = stamps, stored
        self._seen = np.zeros((request["threads"], 6), np.uint64)
        for thread in range(request["threads"]):
            self._run(
                _use_until, words, stamps.array.view(np.uint64), stored.array.view(np.uint64).reshape(-1, memory.pages)[thread],
                np.array([mix(np.uint64(request["seed"] + thread))], np.uint64), self._seen[thread],
                np.uint64(thread), self._stop_address,
            )  # fmt: skip

    def told(self, request: dict[str, Any]) -> dict[str, Any]:
        reads, wrong, lost = self._seen[:, :3].sum(axis=0).tolist()
        return {"reads": reads, "wrong": wrong, "lost": lost, "first": self._seen[:, 3:].tolist()}

    def close(self, request: dict[str, Any]) -> None:
        for mapping in self._owned:
            mapping.close()
