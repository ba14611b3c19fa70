"""Points at which a test holds a migration's script."""

from __future__ import annotations

import asyncio

import pytest

from pagefire.protocol.transport.points import Points


async def script(points: Points, passed: list[str]) -> None:
    for name in ("negotiated", "round", "round", "ready"):
        await points.reached(name)
        passed.append(name)


async def test_a_script_that_nobody_holds_runs_through() -> None:
    passed: list[str] = []
    await script(Points(), passed)
    assert passed == ["negotiated", "round", "round", "ready"]


async def test_hold_wait_release() -> None:
    points, passed = Points(), list[str]()
    points.hold("round")
    running = asyncio.create_task(script(points, passed))
    await points.wait_for("round")
    assert passed == ["negotiated"]
    assert not running.done()
    points.release("round")
    await running
    assert passed == ["negotiated", "round", "round", "ready"]


async def test_a_point_can_be_held_again() -> None:
    points, passed = Points(), list[str]()
    points.hold("round")
    running = asyncio.create_task(script(points, passed))
    await points.wait_for("round")
    points.release("round")
    points.hold("round")
    await points.wait_for("round")
    assert passed == ["negotiated", "round"]
    points.release("round")
    await running


async def test_a_held_script_can_be_cancelled() -> None:
    points, passed = Points(), list[str]()
    points.hold("ready")
    running = asyncio.create_task(script(points, passed))
    await points.wait_for("ready")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert passed == ["negotiated", "round", "round"]


async def test_releasing_what_is_not_held() -> None:
    points = Points()
    points.release("never")
    await points.reached("never")
