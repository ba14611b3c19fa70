"""Running a guest to a step: what the replay proof stands on."""

from __future__ import annotations

import asyncio

from pagefire.guest_workload.control_block import ControlBlock


async def run_to(control: ControlBlock, steps: int, *, wait: bool = True, unpaced: bool = False) -> None:
    """Let each vCPU run until it has done `steps` transactions since it was born, and wait there until all have.

    `unpaced`: as fast as it can, whatever its rate was. What it does does not depend on that.
    """
    # The end first: between the two an unpaced guest does a million transactions where this host waits for its turn.
    control.stop_at = steps
    if unpaced:
        control.interval_ns = 0
    while wait and not control.all_finished():
        await asyncio.sleep(0.005)
