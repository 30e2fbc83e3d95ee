from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import string
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.gateway.limits import ListenerLimits
from sidecar.gateway.listener import DecisionListener
from tests.integration.listener_peer import Judge, Peer, Times, check, connect, listening, until

KIB = 1_024
FUZZ_EXAMPLES = 150


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
async def listener(judge: Judge, times: Times) -> AsyncIterator[DecisionListener]:
    async with listening(judge, clock=times) as started:
        yield started


@pytest.fixture
async def peer(listener: DecisionListener) -> AsyncIterator[Peer]:
    connected = await connect(listener.addresses[0])
    yield connected
    await connected.close()


async def refused(peer: Peer, data: bytes | str, status: int) -> None:
    """Send, and be told and closed, without a reset losing the answer."""
    answer = await peer.ask(data)
    assert (answer.status, answer.headers["connection"]) == (status, "close"), answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert await peer.closed() == b""


MALFORMED = [
    "\x16\x03\x01\x00\xa5",
    "GET\r\n\r\n",
    "FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /envoy/ HTTP/9.9\r\nHost: a\r\n\r\n",
    "GET /envoy/ HTTP/1.1\nHost: a\n\n",
    "GET /envoy/ HTTP/1.1\r\nHost : a\r\n\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\r\nx: a\r\n b\r\n\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "POST /envoy/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    "POST /envoy/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    "POST /envoy/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "POST /envoy/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "POST /envoy/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
    "GET /envoy/ HTTP/1.1\r\nHost: a\r\nX-Original-URI: /\r\nx-original-uri: /b\r\n\r\n",
]


@pytest.mark.parametrize("request_", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_http_is_400_and_closed(peer: Peer, judge: Judge, request_: str) -> None:
    await refused(peer, request_.encode("latin-1"), 400)
    assert judge.asked == []


@pytest.mark.parametrize(
    "head",
    [
        "GET /envoy/" + "x" * (16 * KIB) + " HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /envoy/ HTTP/1.1\r\nHost: a\r\nx-long: " + "x" * (32 * KIB) + "\r\n\r\n",
        "GET /envoy/ HTTP/1.1\r\nHost: a\r\n" + "x-some: header\r\n" * 2_100 + "\r\n",
        "GET /envoy/ HTTP/1.1\r\nHost: a\r\n" + "".join(f"x{n}: y\r\n" for n in range(201)) + "\r\n",
        "GET /envoy/ HTTP/1.1\r\nHost: a\r\n" + "same: y\r\n" * 201 + "\r\n",
        "GET /envoy/ HTTP/1.1\r\nHost: a\r\n" + "x" * (40 * KIB),
        "POST /envoy/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + "t: y\r\n" * 201 + "\r\n",
    ],
    ids=["target", "header", "headers", "names", "repeated", "name", "trailers"],
)
async def test_an_oversized_head_is_431_and_closed(peer: Peer, judge: Judge, head: str) -> None:
    await refused(peer, head, 431)
    assert judge.asked == []


async def test_a_large_head_within_the_bounds_is_decided(peer: Peer) -> None:
    more = [f"x-{number}: {'y' * 300}" for number in range(90)]
    assert (await peer.ask(check("acme", "x", *more, path="/envoy/" + "p" * 2_000))).id == "x"
    target = "/envoy/" + "p" * (16 * KIB - 100)
    assert (await peer.ask(check("acme", "y", path=target))).id == "y"
    assert (await peer.ask(check("acme", "z", *(f"x{n}: y" for n in range(190))))).id == "z"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_bodies_are_discarded_up_to_64_kib(peer: Peer, judge: Judge, framing: str) -> None:
    def post(size: int, request_id: str) -> str:
        body = "x" * size
        if framing == "length":
            return check("acme", request_id, f"Content-Length: {size}", method="POST") + body
        return (
            check("acme", request_id, "Transfer-Encoding: chunked", method="POST") + f"{size:x}\r\n{body}\r\n0\r\n\r\n"
        )

    assert (await peer.ask(post(64 * KIB, "fits"))).id == "fits"
    assert (await peer.ask(check("acme", "next"))).id == "next"
    await refused(peer, post(64 * KIB + 1, "too much") + "x" * 1_000_000, 413)
    assert len(judge.asked) == 2


@pytest.mark.parametrize("part", ["1;" + "x" * 100 + "\r\na\r\n", "1\r\na\r\n"], ids=["extensions", "small"])
async def test_chunks_cannot_be_endless(peer: Peer, part: str) -> None:
    await refused(peer, check("acme", "", "Transfer-Encoding: chunked", method="POST") + part * 70_000, 413)


async def test_a_trailer_cannot_be_endless(peer: Peer) -> None:
    start = check("acme", "", "Transfer-Encoding: chunked", method="POST") + "0\r\nx: "
    await refused(peer, start + "y" * 2_000_000, 413)


async def test_a_slow_sender_is_told_and_closed(peer: Peer, listener: DecisionListener, times: Times) -> None:
    await peer.ask(check())
    times.ms += 60_000
    listener.sweep()
    peer.send("GET /envoy/ HTTP/1.1\r\n")
    await until(lambda: any(connection._open for connection in listener._connections()))
    times.ms += 5_000
    listener.sweep()
    peer.send("x-more: and more\r\n")
    await until(lambda: any(connection._message_bytes > 30 for connection in listener._connections()))
    times.ms += 2
    listener.sweep()
    assert (await peer.answer()).status == 408
    assert await peer.closed() == b""


async def test_an_idle_connection_is_closed(peer: Peer, listener: DecisionListener, times: Times) -> None:
    await peer.ask(check())
    times.ms += 75_000
    listener.sweep()
    await peer.ask(check())
    times.ms += 75_000
    listener.sweep()
    assert (await peer.ask(check())).status == 200
    times.ms += 75_001
    listener.sweep()
    assert await peer.closed() == b""


async def test_a_waiting_decision_is_not_idle(
    peer: Peer, listener: DecisionListener, judge: Judge, times: Times
) -> None:
    peer.send(check("wait", "slow"))
    await judge.waiting.wait()
    times.ms += 100_000
    listener.sweep()
    judge.released.set()
    assert (await peer.answer()).id == "slow"


async def test_a_refused_peer_that_stays_is_cut(peer: Peer, listener: DecisionListener, times: Times) -> None:
    assert (await peer.ask("nonsense\r\n\r\n")).status == 400
    peer.send("x" * 100_000)
    times.ms += 10_001
    listener.sweep()
    await until(lambda: listener.counters.connections == 0)


async def test_connections_beyond_the_limit_are_closed_at_accept(judge: Judge) -> None:
    async with listening(judge, limits=ListenerLimits(connections_max=3)) as listener:
        peers = [await connect(listener.addresses[0]) for _ in range(3)]
        for peer in peers:
            await peer.ask(check())
        fourth = await connect(listener.addresses[0])
        assert await fourth.closed() == b""
        assert (listener.counters.connections, listener.counters.connections_refused) == (3, 1)
        await peers.pop().close()
        await until(lambda: listener.counters.connections == 2)
        peers.append(await connect(listener.addresses[0]))
        assert (await peers[-1].ask(check())).status == 200
        for peer in peers:
            await peer.close()


async def test_a_peer_that_does_not_read_is_paused_and_then_cut(judge: Judge, times: Times) -> None:
    async with listening(judge, clock=times) as listener:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.setblocking(False)
            host, _, port = listener.addresses[0].rpartition(":")
            await loop.sock_connect(deaf, (host, int(port)))
            checks = check("acme", "x" * 100).encode() * 500
            flood = asyncio.ensure_future(_flood(loop, deaf, checks))
            await until(lambda: any(connection._stalled for connection in listener._connections()))
            decided = -1
            while decided != len(judge.asked):  # what was read before the pause is still answered
                decided = len(judge.asked)
                for _ in range(50):
                    await asyncio.sleep(0)
            [connection] = listener._connections()
            assert connection._transport.get_write_buffer_size() < 2 * 1_024 * KIB
            times.ms += 10_001
            listener.sweep()
            await until(lambda: listener.counters.connections == 0)
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)
        assert len(judge.asked) == decided


async def _flood(loop: asyncio.AbstractEventLoop, deaf: socket.socket, data: bytes) -> None:
    while True:
        await loop.sock_sendall(deaf, data)


async def test_a_peer_that_reads_again_gets_everything(peer: Peer) -> None:
    ids = [f"{number:0100}" for number in range(20_000)]
    peer.send("".join(check("acme", name) for name in ids))
    assert [(await peer.answer()).id for _ in ids] == ids


PIECES = st.sampled_from(
    [
        *(request.encode("latin-1") for request in MALFORMED),
        *(check("acme").encode(), check("wait").encode(), check("bug").encode(), check("deny").encode()),
        *(b"GET ", b"/envoy/", b" HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"Host: a\r\n", b"x_tenant_id: b\r\n", b"\x00"),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"0\r\n\r\n",
            b"5\r\nabcde\r\n",
            b"Content-Length: 5\r\n",
            b"Expect: 100-continue\r\n",
        ),
        *(
            b"Connection: upgrade\r\nUpgrade: h2c\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
    ]
)


@settings(max_examples=FUZZ_EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES | st.binary(max_size=50), max_size=12), st.lists(st.integers(1, 300), min_size=1, max_size=20))
async def test_garbage_never_stops_the_listener(pieces: list[bytes], sizes: list[int]) -> None:
    judge = Judge()
    judge.released.set()
    async with listening(judge) as listener:
        garbage = await connect(listener.addresses[0])
        data = b"".join(pieces)
        with contextlib.suppress(RuntimeError):  # the listener may close at any time
            for size in itertools.cycle(sizes):
                if not data:
                    break
                garbage.send(data[:size])
                data = data[size:]
                await asyncio.sleep(0)
            garbage.writer.write_eof()
        received = await garbage.closed()
        assert not received or received.startswith(b"HTTP/1.1 ")
        sane = await connect(listener.addresses[0])
        assert (await sane.ask(check("acme", "alive"))).id == "alive"
        await sane.close()
        assert not isinstance(listener.gate.failure, AttributeError | TypeError)


async def test_a_storm_of_short_lived_peers_leaves_nothing_behind(judge: Judge) -> None:
    chance = random.Random(7)
    async with listening(judge) as listener:

        async def visit() -> None:
            peer = await connect(listener.addresses[0])
            junk = "".join(chance.choices(string.printable, k=chance.randint(0, 200)))
            peer.send(chance.choice([check("acme"), check("wait"), junk, check("acme")[:20]]))
            if chance.random() < 0.5:
                peer.writer.transport.abort()
            await peer.close()

        judge.released.set()
        for _ in range(10):
            await asyncio.gather(*(visit() for _ in range(50)))
        await until(lambda: listener.counters.connections == 0)
        await until(lambda: not listener._tasks)
        assert not listener._connections()
