"""What a chaos run knows of every check, whatever becomes of its answer."""

from __future__ import annotations

import asyncio
import contextlib
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
    async with server, CheckProxy(server.sockets[0].getsockname()[1]) as running:
        yield running


async def ask(proxy: CheckProxy, *keys: str) -> bytes:
    """Ask by one connection for one after the other; what was answered until it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    answers = b""
    try:
        for key in keys:
            writer.write(b"GET /envoy/ HTTP/1.1\r\nhost: a\r\nx-api-key: " + key.encode() + b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                answers += await reader.read(1000)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return answers


async def test_each_check_is_known_by_its_key_and_its_answer(proxy: CheckProxy) -> None:
    assert await ask(proxy, "allows", "denies", "allows") == ALLOWS + DENIES + ALLOWS
    assert (+proxy.allowed, +proxy.unanswered) == (Counter(allows=2), Counter())


async def test_a_check_whose_connection_ends_before_the_answer_is_unanswered(proxy: CheckProxy) -> None:
    assert await ask(proxy, "allows", "ends") == ALLOWS
    assert (+proxy.allowed, +proxy.unanswered) == (Counter(allows=1), Counter(ends=1))


async def test_an_answer_that_nobody_waits_for_any_more_is_known_all_the_same(
    proxy: CheckProxy, sidecar: Sidecar
) -> None:
    asking = asyncio.create_task(ask(proxy, "late"))
    await sidecar.asked.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (+proxy.allowed, +proxy.unanswered) == (Counter(), Counter(late=1))
    sidecar.may_answer.set()
    while proxy.unanswered["late"]:
        await asyncio.sleep(0)
    assert +proxy.allowed == Counter(late=1)


async def test_a_sidecar_that_is_away_was_asked_nothing(proxy: CheckProxy) -> None:
    proxy.target_port = 1
    assert await ask(proxy, "allows") == b""
    assert (+proxy.allowed, +proxy.unanswered) == (Counter(), Counter())
