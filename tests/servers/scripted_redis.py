"""A server that speaks Redis' protocol and answers as a test says: errors, silence, an end of the connection.

For what a real server does once in a blue moon, or not at all any more (an old version). It notes what it was sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

CLOSE = b"close"  # end the connection instead of answering
SILENCE = b""
Script = Callable[[list[bytes]], bytes]


class ScriptedRedis:
    """``answer`` gets the words of a command and returns the bytes to write, SILENCE or CLOSE."""

    def __init__(self, answer: Script) -> None:
        self.answer = answer
        self.sent: list[list[bytes]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def verbs(self) -> Counter[str]:
        """How often each command came."""
        return Counter(words[0].decode() for words in self.sent)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while words := await _command(reader):
                self.sent.append(words)
                answer = self.answer(words)
                if answer == CLOSE:
                    return
                writer.write(answer)
        finally:
            writer.transport.abort()


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """The next command; empty at the end of the connection."""
    words = []
    try:
        for _ in range(int((await reader.readuntil(b"\r\n"))[1:])):
            size = int((await reader.readuntil(b"\r\n"))[1:])
            words.append((await reader.readexactly(size + 2))[:-2])
    except (asyncio.IncompleteReadError, ConnectionError):
        return []
    return words


def bulk(text: str) -> bytes:
    """A string as an answer."""
    return b"$%d\r\n%s\r\n" % (len(text.encode()), text.encode())


def slots(*ports: int) -> bytes:
    """The answer to CLUSTER SLOTS: all slots spread over nodes at these ports."""
    share = 16_384 // len(ports)
    parts = [
        b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$1\r\nx\r\n"
        % (share * place, 16_383 if place == len(ports) - 1 else share * (place + 1) - 1, port)
        for place, port in enumerate(ports)
    ]
    return b"*%d\r\n%s" % (len(parts), b"".join(parts))
