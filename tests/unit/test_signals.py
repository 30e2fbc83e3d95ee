"""Ending tasks, also one that takes the request for something else."""

from __future__ import annotations

import asyncio

import pytest

from sidecar import signals
from sidecar.signals import end


async def test_a_task_that_swallowed_a_cancellation_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "END_AGAIN_S", 0.01)
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end([task])
    assert swallowed.is_set()
    assert task.cancelled()


async def test_a_task_that_failed_does_not_keep_others_from_ending() -> None:
    async def failing() -> None:
        raise RuntimeError

    tasks = [asyncio.create_task(failing()), asyncio.create_task(asyncio.Event().wait())]
    await asyncio.sleep(0)
    await end(tasks)  # type: ignore[arg-type]
    assert all(task.done() for task in tasks)
    await end([])
