"""A late event loop is not a late answer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from sidecar.store.patience import Patience

LIMIT_S = 0.03


@pytest.fixture
async def wire() -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    """A connection as one to Redis is read, and its other end."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    yield reader, theirs
    writer.close()
    await writer.wait_closed()
    theirs.close()


async def test_an_answer_that_came_while_the_loop_was_held_up_is_read(
    wire: tuple[asyncio.StreamReader, socket.socket],
) -> None:
    reader, redis = wire

    def hold_up() -> None:
        redis.send(b"+OK\r\n")
        time.sleep(2 * LIMIT_S)  # as a flood of requests or a throttled CPU does

    with Patience(LIMIT_S):
        asyncio.get_running_loop().call_soon(hold_up)
        assert await reader.readline() == b"+OK\r\n"


async def test_no_answer_is_a_timeout_on_a_late_loop_too(wire: tuple[asyncio.StreamReader, socket.socket]) -> None:
    reader, _ = wire

    async def wait(held_up_s: float) -> None:
        with Patience(LIMIT_S):
            asyncio.get_running_loop().call_soon(time.sleep, held_up_s)
            await reader.readline()

    for held_up_s in (0, 2 * LIMIT_S):
        with pytest.raises(TimeoutError):
            await wait(held_up_s)


async def test_being_cancelled_is_no_timeout(wire: tuple[asyncio.StreamReader, socket.socket]) -> None:
    reader, _ = wire
    entered = asyncio.Event()

    async def wait() -> None:
        with Patience(60):
            entered.set()
            await reader.readline()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_in_time_nothing_happens() -> None:
    with Patience(LIMIT_S):
        pass
    await asyncio.sleep(2 * LIMIT_S)  # whatever would still come has come
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
