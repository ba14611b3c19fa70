"""When the source may push: the vCPUs first."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pagefire.dest_host import postcopy
from pagefire.dest_host.postcopy import Postcopy, Taking
from pagefire.guest_workload import control_block as layout
from pagefire.guest_workload.control_block import ControlBlock
from pagefire.guest_workload.linux import futex
from pagefire.protocol.messages import Message, Resumed

#: What the tests do not use of a session.
UNUSED = cast("Any", None)


class Source:
    """Hears what the destination says on the control connection."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.control = self

    async def send(self, message: Message) -> None:
        self.heard.append(message)


def telling(control: ControlBlock, source: Source) -> asyncio.Task[None]:
    """Begin to tell the source that a guest with this control block runs."""
    guest = cast("Any", SimpleNamespace(control=control))
    arriving = Postcopy(UNUSED, guest, UNUSED, UNUSED, UNUSED, Taking(5, 6), UNUSED)
    return asyncio.create_task(arriving._tell_resumed(cast("Any", source)))


async def test_the_source_may_push_when_each_vcpu_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postcopy, "HEAD_START_S", 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    control, source = ControlBlock.create(2), Source()
    told = telling(control, source)
    for started in (1, 2):
        await asyncio.sleep(0.05)
        assert not source.heard
        control._u32[layout.AT_STARTED // 4] = started
        futex.wake(control.address + layout.AT_STARTED)
    await told
    assert source.heard == [Resumed(5, 6)]
    control.close()


async def test_a_guest_that_does_not_start_holds_nothing_up() -> None:
    control, source = ControlBlock.create(1), Source()
    await telling(control, source)
    assert source.heard == [Resumed(5, 6)]
    control.close()


async def test_vcpus_that_take_turns_have_no_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postcopy, "HEAD_START_S", 1e9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    control, source = ControlBlock.create(2), Source()
    await telling(control, source)
    assert source.heard == [Resumed(5, 6)]
    control.close()
