"""A TCP proxy on loopback whose connections can be cut, slowed, held up, or made to lose what the server answers.

Guarantees: bytes of one direction keep their order; what was held up arrives late, as after lost packets that TCP sends
            again; a connection that lost bytes is cut before anything else comes through it.
Gives up:   packets: a connection to a proxy that holds everything up is accepted all the same. FullBacklog
            takes none.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

CHUNK_BYTES = 65_536


class _Link:
    """One client's connection and the one to the server behind it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server

    def cut(self) -> None:
        """End both sides at once; the peers see a reset or an end in the middle of a message."""
        self.client.transport.abort()
        self.server.transport.abort()


class TcpProxy:
    """Listens on a free port, which stays the same over stop() and start()."""

    def __init__(self, target_port: int, *, port: int = 0) -> None:
        self.target_port = target_port
        self.port = port
        self.accepted = 0
        self._delay_s = 0.0
        self._answers_lost = False
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def links(self) -> int:
        """Connections that go through it now."""
        return len(self._links)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and cut those there are."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection there is; new ones come through."""
        for link in list(self._links):
            link.cut()

    def retarget(self, port: int) -> None:
        """Lead to another server from now on, as a failover does."""
        self.target_port = port
        self.cut()

    def slow(self, delay_ms: int) -> None:
        """Delay whatever comes, in both directions; 0 ends it."""
        self._delay_s = delay_ms / 1000

    def hold_up(self) -> None:
        """Let nothing through, as if every packet was dropped; resume() delivers it late."""
        self._passing.clear()

    def lose_answers(self) -> None:
        """Requests arrive and have their effect, answers do not; resume() cuts the connections."""
        self._answers_lost = True

    def resume(self, *, late: bool = True) -> None:
        """End hold_up(), lose_answers() and slow(). Without ``late`` what was held up is lost with its connections."""
        if self._answers_lost or not late:
            self.cut()
        self._answers_lost = False
        self._delay_s = 0.0
        self._passing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._connected(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, answers=False)),
            asyncio.create_task(self._pump(server_reader, writer, answers=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            for pump in pumps:
                pump.cancel()
            link.cut()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._passing.wait()
                if answers and self._answers_lost:
                    continue
                writer.write(data)
                await writer.drain()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
