"""The local listener is there from the start and served from the first connection on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop
from aiohttp import ClientSession

from sidecar import address
from sidecar.enforcement.enforcer import Enforcer
from sidecar.gateway.local_listener import LocalListener

LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
NOBODY = cast("Enforcer", None)  # paths that do not exist ask nobody


def claimed() -> tuple[str, socket.socket]:
    return address.reserve("127.0.0.1:0")


@LOOPS
def test_those_who_come_first_are_answered_and_so_are_those_after_them(run: Callable[[Any], Any]) -> None:
    async def main() -> list[int]:
        where, holder = claimed()
        local = LocalListener(NOBODY)
        await local.start(where)
        async with ClientSession(address.parse(where).url) as client:

            async def asked() -> int:
                async with client.get("/nothing") as answer:
                    return answer.status

            found = [*await asyncio.gather(*(asked() for _ in range(5))), await asked()]
        await local.stop()
        holder.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", address.parse(where).port)
        return found

    assert run(main()) == [404] * 6


@LOOPS
@pytest.mark.parametrize("turns", [None, 0, 1, 3])
def test_it_can_be_stopped_at_any_time(run: Callable[[Any], Any], turns: int | None) -> None:
    async def main() -> None:
        where, holder = claimed()
        local = LocalListener(NOBODY)
        await local.start(where)
        if turns is not None:
            _, writer = await asyncio.open_connection("127.0.0.1", address.parse(where).port)
            for _ in range(turns):
                await asyncio.sleep(0)
            writer.close()
        await local.stop()
        await local.stop()
        holder.close()

    run(main())
