"""Requests whose heads were read before: what is remembered of them never answers for anything else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.gateway.listener import DecisionListener
from tests.integration.listener_peer import IDENTITY, ROUTES, Judge, Peer, check, connect, listening

SECRET = "a-secret-of-the-gateway"


async def known(peer: Peer, *more: str) -> None:
    """Have the head of acme's check remembered."""
    for number in range(3):
        assert (await peer.ask(check("acme", f"known-{number}", *more))).id == f"known-{number}"


async def test_the_bytes_of_a_known_head_inside_another_request_are_no_request() -> None:
    judge = Judge()
    async with listening(judge) as listener:
        peer = await connect(listener.addresses[0])
        await known(peer)
        asked = len(judge.asked)
        # Behind a whole request another one begins in the same read; its end looks like a known head.
        peer.send(check("acme", "before") + "GET /envoy/v1/x HTTP/1.1\r\nHost: a\r\nx-tenant-id: victim\r\nx-note: ")
        assert (await peer.answer()).id == "before"
        await asyncio.sleep(0.05)
        peer.send(check("acme", "within"))
        assert (await peer.answer()).status == 400  # one request that names two hosts
        assert len(judge.asked) == asked + 1
        await peer.close()


async def test_a_known_head_behind_a_request_that_waits_keeps_its_turn() -> None:
    judge = Judge()
    async with listening(judge) as listener:
        peer = await connect(listener.addresses[0])
        await known(peer)
        peer.send(check("wait", "slow"))
        await judge.waiting.wait()
        peer.send(check("acme", "behind"))
        await asyncio.sleep(0.05)
        judge.released.set()
        assert [(await peer.answer()).id for _ in range(2)] == ["slow", "behind"]
        await peer.close()


async def test_a_head_that_ends_its_connection_still_does() -> None:
    async with listening(Judge()) as listener:
        for _ in range(3):
            peer = await connect(listener.addresses[0])
            assert (await peer.ask(check("acme", "x", "Connection: close"))).headers["connection"] == "close"
            assert await peer.closed() == b""


@pytest.mark.parametrize("more", ["Expect: 100-continue", "Upgrade: websocket"])
async def test_a_head_with_consequences_is_read_each_time(more: str) -> None:
    async with listening(Judge()) as listener:
        first = []
        for _ in range(3):
            peer = await connect(listener.addresses[0])
            peer.send(check("acme", "x", more))
            first.append((await peer.reader.readuntil(b"\r\n\r\n"))[:12])
            await peer.close()
        assert len(set(first)) == 1


async def test_a_secret_that_was_never_shown_is_asked_for() -> None:
    """Heads remembered from a trusted connection do not answer for one that has to show a secret."""
    judge = Judge()
    async with listening(judge, secrets=(SECRET,), require_secret=True) as listener:
        peer = await connect(listener.addresses[0])
        await known(peer, f"x-quota-secret: {SECRET}")
        assert (await peer.ask(check("acme", "without"))).status == 403
        await peer.close()
        peer = await connect(listener.addresses[0])
        assert (await peer.ask(check("acme", "wrong", f"x-quota-secret: {SECRET}-"))).status == 403
        await peer.close()


async def test_another_catalogue_reads_every_head_anew() -> None:
    judge = Judge()
    async with listening(judge) as listener:
        peer = await connect(listener.addresses[0])
        await known(peer)
        judge.policy = Policy(
            Catalogue(metrics={}, plans={}, routes=ROUTES, identity=IDENTITY[1:]), judge.policy.routes, 2
        )
        listener.gate.refresh()
        await peer.ask(check("acme", "after"))
        assert judge.asked[-1] == (None, "after")
        await peer.close()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"upgrade_url": "https://example.com"}, True),
        ({"identity": IDENTITY[1:]}, False),
        ({"user_header": "x-user"}, False),
        ({"anonymous_plan": "free"}, False),
        ({"routes": None}, False),
    ],
)
async def test_heads_are_kept_while_catalogues_say_the_same_of_who_asks_for_what(
    changes: dict[str, Any], *, kept: bool
) -> None:
    judge = Judge()
    async with listening(judge) as listener:
        before = listener.gate._heads, listener.gate.index
        routes = RouteTable(ROUTES) if "routes" in changes else judge.policy.routes
        said = {name: value for name, value in changes.items() if name != "routes"}
        judge.policy = Policy(structs.replace(judge.policy.catalogue, **said), routes, 2)
        listener.gate.refresh()
        after = listener.gate._heads, listener.gate.index
        assert [one is other for one, other in zip(before, after, strict=True)] == [kept, kept]


async def test_the_parser_and_the_memo_give_the_same_answers() -> None:
    """The same requests to a listener that remembers heads and to one that does not."""

    async def answers(listener: DecisionListener, *, remember: bool) -> list[tuple[int, str]]:
        peer = await connect(listener.addresses[0])
        found = []
        for number in range(40):
            if not remember:
                listener.gate._heads = type(listener.gate._heads)()
            tenant = ("acme", "deny", "bug", "other")[number % 4]
            answer = await peer.ask(check(tenant, f"id-{number}", path=f"/envoy/v1/{number % 3}"))
            found.append((answer.status, answer.id))
        await peer.close()
        return found

    async with listening(Judge()) as one, listening(Judge()) as other:
        assert await answers(one, remember=True) == await answers(other, remember=False)
