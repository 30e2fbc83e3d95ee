"""Senders without measure through real gateways: what they send is bounded there, and good clients are served."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.gateways import Gateway
from tests.e2e.scripted import Script
from tests.e2e.smuggling import get
from tests.e2e.spoken import spoken
from tests.servers.upstream import Upstream

SLOW = 300
GOOD = 40
HUGE = 1 << 20


async def served(port: int, requests: int) -> None:
    """So many requests of a good client, each answered by the application."""
    for number in range(requests):
        answer = await spoken(port, get(f"/v1/cheap/{number}"))
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert f"/v1/cheap/{number}".encode() in answer


@pytest.mark.parametrize(
    "request_",
    [
        get("/v1/dear/x", f"x-huge: {'y' * HUGE}\r\n"),
        get("/v1/dear/x", "x-many: y\r\n" * (HUGE // 11)),
        get("/v1/dear/x?" + "y" * HUGE),
        get("/v1/dear/x", "y" * HUGE + ": z\r\n"),
    ],
    ids=["value", "number", "target", "name"],
)
async def test_a_head_of_a_mebibyte_is_refused_before_anybody_is_asked(
    gateway: Gateway, script: Script, upstream: Upstream, request_: bytes
) -> None:
    port = gateway.port
    answers = await asyncio.gather(*(spoken(port, request_) for _ in range(8)))
    # The refusal, or nothing where the reset of a connection that still sends has overtaken it.
    assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 400", b"HTTP/1.1 414", b"HTTP/1.1 431", b""}
    assert script.asked == []
    assert upstream.received == []
    await served(port, 2)


async def test_heads_that_never_end_hold_up_nobody(gateway: Gateway, script: Script, upstream: Upstream) -> None:
    port = gateway.port
    slow = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(SLOW)))

    async def drip() -> None:
        for byte in get("/v1/dear/x")[:-2] * 20:
            for _, writer in slow:
                writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    try:
        await served(port, GOOD)
    finally:
        dripping.cancel()
        for _, writer in slow:
            writer.transport.abort()
    assert len(script.asked) == len(upstream.received) == GOOD
