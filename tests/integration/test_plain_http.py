"""The plain HTTP server on real sockets: what it answers, and what it does not let a peer do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from sidecar import address
from sidecar.plain_http import connection as plain_connection
from sidecar.plain_http.messages import Answer, Request, json
from sidecar.plain_http.server import Handler, Server


async def echo(request: Request) -> Answer:
    return json([request.method, request.named, request.body.decode("latin-1")])


async def fail(_: Request) -> Answer:
    raise RuntimeError("a bug")


CHUNKED = b"POST /things HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
ROUTES = {("GET", "/things/{id}"): echo, ("POST", "/things"): echo, ("GET", "/fail"): fail}


class Peer:
    """A client that sends bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def answer(self) -> tuple[int, str, str]:
        """Status, head and body of one answer."""
        head = await self.head()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split()[1]), head, (await self.reader.readexactly(length)).decode()

    async def closed(self) -> bytes:
        """What comes before the end; a reset is an end as well."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


Connect = Callable[[], Awaitable[Peer]]


@asynccontextmanager
async def serving(routes: Mapping[tuple[str, str], Handler]) -> AsyncIterator[Connect]:
    server, listener = Server(routes, body_bytes_max=1_000), address.listen("127.0.0.1:0")
    await server.start(listener)
    peers: list[Peer] = []

    async def connect() -> Peer:
        peers.append(Peer(*await asyncio.open_connection(*listener.getsockname())))
        return peers[-1]

    async with asyncio.timeout(20):
        yield connect
        await server.stop()
    for peer in peers:
        peer.writer.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with serving(ROUTES) as found:
        yield found


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /things/a%2Fb?x=1 HTTP/1.1\r\nHost: h\r\n\r\n", 200, '["GET",{"id":"a/b"},""]'),
        (b"GET http://h/things/7 HTTP/1.1\r\nHost: h\r\n\r\n", 200, '["GET",{"id":"7"},""]'),
        (b"POST /things HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 200, '["POST",{},"abc"]'),
        (
            CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\nX: y\r\n\r\n",
            200,
            '["POST",{},"abc"]',
        ),
        (b"GET /things/%ff HTTP/1.1\r\nHost: h\r\n\r\n", 404, "/things/%ff: not found"),
        (b"GET /things/ HTTP/1.1\r\nHost: h\r\n\r\n", 404, "not found"),
        (b"DELETE /things HTTP/1.1\r\nHost: h\r\n\r\n", 405, "method not allowed"),
        (b"HEAD /things HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 405, ""),
        (b"GET /fail HTTP/1.1\r\nHost: h\r\n\r\n", 500, "the log says why"),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"),
        (b"nonsense\r\n\r\n", 400, "Malformed HTTP"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "Malformed HTTP"),
        (b"POST /things HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n", 413, "1000 bytes"),
        (
            CHUNKED + b"3e9\r\n" + b"x" * 1_001,
            413,
            "1000 bytes",
        ),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431, "head"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431, "head"),
    ],
)
async def test_every_request_has_its_answer(connect: Connect, request_: bytes, status: int, body: str) -> None:
    peer = await connect()
    peer.send(request_)
    if request_.startswith(b"HEAD"):
        assert (await peer.head()).split()[1] == str(status)
        assert await peer.closed() == b""
        return
    found, head, text = await peer.answer()
    assert found == status
    assert body in text
    assert ("application/problem+json" in head) == (status >= 400)


async def test_answers_come_in_order_and_the_connection_stays(connect: Connect) -> None:
    peer = await connect()
    for _ in range(2):
        peer.send(b"".join(b"GET /things/%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(50)))
        assert [(await peer.answer())[2] for _ in range(50)] == [f'["GET",{{"id":"{n}"}},""]' for n in range(50)]
    peer.send(b"GET /things/last HTTP/1.0\r\n\r\n")
    assert "connection: close" in (await peer.answer())[1]
    assert await peer.closed() == b""


async def test_a_peer_that_asks_first_is_told_to_go_on(connect: Connect) -> None:
    peer = await connect()
    peer.send(b"POST /things HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert "100 Continue" in await peer.head()
    peer.send(b"abc")
    assert (await peer.answer())[0] == 200


async def test_a_refusal_reaches_a_peer_that_goes_on_sending(connect: Connect) -> None:
    peer = await connect()
    peer.send(b"POST /things HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000)
    assert (await peer.answer())[0] == 413
    assert await peer.closed() == b""


@pytest.mark.parametrize("bytes_", [b"", b"GET /thi", b"POST /things HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"])
async def test_idle_and_slow_peers_are_closed_when_their_time_is_over(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, bytes_: bytes
) -> None:
    monkeypatch.setattr(plain_connection, "IDLE_TIMEOUT_S", 0)
    monkeypatch.setattr(plain_connection, "REQUEST_TIMEOUT_S", 0)
    peer = await connect()
    peer.send(bytes_)
    assert await peer.closed() == b""


async def test_a_peer_that_does_not_read_is_cut_and_is_not_answered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_connection, "REQUEST_TIMEOUT_S", 0.5)
    answered = 0

    async def large(_: Request) -> Answer:
        nonlocal answered
        answered += 1
        return Answer(200, b"x" * 1_000_000)

    server, listener = Server({("GET", "/"): large}), address.listen("127.0.0.1:0")
    await server.start(listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 1_000)
    async with asyncio.timeout(20):
        while not answered or server.connections:
            await asyncio.sleep(0.01)
    assert answered < 1_000
    del reader
    writer.close()
    await server.stop()


async def test_a_stop_answers_what_is_under_way_and_closes_the_rest() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Answer:
        begun.set()
        await go.wait()
        return json("done")

    server, listener = Server({("GET", "/"): slow}), address.listen("127.0.0.1:0")
    await server.start(listener)
    busy, idle = [Peer(*await asyncio.open_connection(*listener.getsockname())) for _ in range(2)]
    busy.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await begun.wait()
    stopping = asyncio.create_task(server.stop(grace_s=10))
    assert await idle.closed() == b""
    go.set()
    assert (await busy.answer())[2] == '"done"'
    assert await busy.closed() == b""
    await stopping
    for peer in (busy, idle):
        peer.writer.close()


async def test_garbage_never_stops_the_server(connect: Connect) -> None:
    for garbage in (
        b"\x00" * 100,
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        peer = await connect()
        peer.send(garbage)
        peer.writer.write_eof()
        await peer.closed()
    peer = await connect()
    peer.send(b"GET /things/1 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await peer.answer())[0] == 200
