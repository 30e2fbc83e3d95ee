"""What a chaos run knows of every check, whatever becomes of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.faults.chaos_checks import CheckProxy

pytestmark = pytest.mark.timeout(30)

ALLOWS = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
DENIES = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"


class Sidecar:
    """Answers by key: ``allows``, ``denies``, ``late`` once it may, and otherwise ends the connection."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(1000):
            key = head.partition(b"x-api-key: ")[2].partition(b"\r\n")[0]
            if key == b"late":
                self.asked.set()
                await self.may_answer.wait()
            if key == b"ends":
                break
            writer.write(DENIES if key == b"denies" else ALLOWS)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def sidecar() -> Sidecar:
    return Sidecar()


@pytest.fixture
async def proxy(sidecar: Sidecar) -> AsyncIterator[CheckProxy]:
    server = await asyncio.start_server(sidecar.serve, "127.0.0.1", 0)
    async with server, CheckProxy(server.sockets[0].getsockname()[1], lambda: [os.getpid()]) as running:
        yield running


async def ask(proxy: CheckProxy, *keys: str, request_id: str = "") -> bytes:
    """Ask by one connection for one after the other; what was answered until it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    answers = b""
    named = f"x-request-id: {request_id}\r\n" if request_id else ""
    try:
        for key in keys:
            writer.write(f"GET /envoy/ HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n{named}\r\n".encode())
            with contextlib.suppress(ConnectionError):
                answers += await reader.read(1000)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return answers


async def leave(proxy: CheckProxy, sidecar: Sidecar, key: str, request_id: str = "") -> None:
    """Ask, and be gone before the answer."""
    asking = asyncio.create_task(ask(proxy, key, request_id=request_id))
    await sidecar.asked.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


def told(proxy: CheckProxy) -> list[tuple[str, bool | None]]:
    return [(check.key, check.allowed) for check in proxy.checks()]


async def test_each_check_is_known_by_its_key_and_its_answer(proxy: CheckProxy) -> None:
    assert await ask(proxy, "allows", "denies", "allows") == ALLOWS + DENIES + ALLOWS
    assert told(proxy) == [("allows", True), ("denies", False), ("allows", True)]
    assert proxy.may_count() == Counter(allows=2)


async def test_a_check_whose_connection_ends_before_the_answer_may_have_counted(proxy: CheckProxy) -> None:
    assert await ask(proxy, "allows", "ends") == ALLOWS
    assert told(proxy) == [("allows", True), ("ends", None)]
    assert proxy.may_count() == Counter(allows=1, ends=1)


async def test_an_answer_that_nobody_waits_for_any_more_is_known_all_the_same(
    proxy: CheckProxy, sidecar: Sidecar
) -> None:
    await leave(proxy, sidecar, "late")
    assert told(proxy) == [("late", None)]
    sidecar.may_answer.set()
    while told(proxy) != [("late", True)]:
        await asyncio.sleep(0)


@pytest.mark.parametrize(("known", "counts"), [(True, 1), (False, 2)])
async def test_a_repeat_counts_once_where_one_worker_is_known_to_have_had_both(
    proxy: CheckProxy, sidecar: Sidecar, *, known: bool, counts: int
) -> None:
    if not known:
        proxy._workers = list
    await leave(proxy, sidecar, "late", "id-1")
    sidecar.may_answer.set()
    assert await ask(proxy, "late", request_id="id-1") == ALLOWS
    await ask(proxy, "late", request_id="id-2")
    while proxy._tasks:
        await asyncio.sleep(0)
    assert proxy.may_count() == Counter(late=counts + 1)


async def test_a_sidecar_that_is_away_was_asked_nothing(proxy: CheckProxy) -> None:
    proxy.target_port = 1
    assert await ask(proxy, "allows") == b""
    assert told(proxy) == []
