"""What an Envoy asked its sidecar in a chaos run, and what it was told: a proxy between them that reads along.

Guarantees: each check that was passed on is known as allowed, denied or unanswered, with the API key it was for; also
            one that Envoy repeated, or did not wait for any more: its answer is awaited all the same.
Gives up:   checks with bodies, and answers in chunks: neither is sent here.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque

from tests.servers.tcp_proxy import TcpProxy

END = b"\r\n\r\n"
ALLOWED = b"HTTP/1.1 200 "
_KEY = re.compile(rb"\r\nx-api-key: *([^\r]+)\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
LOST = OSError, asyncio.IncompleteReadError


class CheckProxy(TcpProxy):
    """Counts checks by the API key they were for."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.allowed: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()  # also those whose answer is still to come

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        asked: deque[str] = deque()
        asking = asyncio.create_task(self._ask(reader, server_writer, asked))
        answering = asyncio.create_task(self._answer(server_reader, writer, asked))
        try:
            await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
            writer.transport.abort()
            if asked:
                await answering
        finally:
            for task in (asking, answering):
                task.cancel()
            server_writer.transport.abort()
            await asyncio.gather(asking, answering, return_exceptions=True)

    async def _ask(self, envoy: asyncio.StreamReader, sidecar: asyncio.StreamWriter, asked: deque[str]) -> None:
        try:
            while True:
                head = await envoy.readuntil(END)
                found = _KEY.search(head)
                key = found[1].decode() if found else ""
                asked.append(key)
                self.unanswered[key] += 1
                sidecar.write(head)
                await sidecar.drain()
        except LOST:
            return

    async def _answer(self, sidecar: asyncio.StreamReader, envoy: asyncio.StreamWriter, asked: deque[str]) -> None:
        try:
            while True:
                head = await sidecar.readuntil(END)
                length = _LENGTH.search(head)
                body = await sidecar.readexactly(int(length[1])) if length else b""
                if asked:
                    key = asked.popleft()
                    self.unanswered[key] -= 1
                    self.allowed[key] += head.startswith(ALLOWED)
                if envoy.is_closing():
                    return
                envoy.write(head + body)
        except LOST:
            return
