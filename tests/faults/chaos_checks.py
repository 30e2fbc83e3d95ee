"""What an Envoy asked its sidecar in a chaos run, and what it was told: a proxy between them that reads along.

Guarantees: each check that was passed on is known as allowed, denied or unanswered, with the API key it was for; also
            one that Envoy repeated, or did not wait for any more: its answer is awaited all the same.
Gives up:   checks with bodies, and answers in chunks: neither is sent here. Of a repeat, which worker had it, when that
            one ends before it was looked up.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable

from tests.servers.processes import accepted
from tests.servers.tcp_proxy import TcpProxy

END = b"\r\n\r\n"
ALLOWED = b"HTTP/1.1 200 "
_KEY = re.compile(rb"\r\nx-api-key: *([^\r]+)\r\n")
_ID = re.compile(rb"\r\nx-request-id: *([^\r]+)\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
LOST = OSError, asyncio.IncompleteReadError


class Check:
    """One check; ``allowed`` is None while it is unanswered, ``worker`` a process id, or 0 when that is not known."""

    __slots__ = ("allowed", "key", "worker")

    def __init__(self, key: str) -> None:
        self.key = key
        self.allowed: bool | None = None
        self.worker = 0


Asked = deque[tuple[Check, list[Check]]]  # what is unanswered on a connection, with all checks of its request id


class CheckProxy(TcpProxy):
    """Knows all checks of one Envoy; ``workers`` are the processes that may answer them."""

    def __init__(self, target_port: int, workers: Callable[[], list[int]]) -> None:
        super().__init__(target_port)
        self._workers = workers
        self._checks: dict[bytes, list[Check]] = {}  # by request id
        self._found: dict[int, int] = {}
        self._looking = asyncio.Lock()

    def checks(self) -> list[Check]:
        return [check for checks in self._checks.values() for check in checks]

    def may_count(self) -> Counter[str]:
        """By API key, how many may have counted: what was allowed or is unanswered, repeats at one worker once."""
        found: Counter[str] = Counter()
        for checks in self._checks.values():
            possible = [check for check in checks if check.allowed is not False]
            known = {check.worker for check in possible if check.worker}
            if possible:
                found[possible[0].key] += len(known) + sum(1 for check in possible if not check.worker)
        return found

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        port = server_writer.get_extra_info("sockname")[1]
        self._found.pop(port, None)  # of an earlier connection
        asked: Asked = deque()
        asking = asyncio.create_task(self._ask(reader, server_writer, asked))
        answering = asyncio.create_task(self._answer(server_reader, writer, asked, port))
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

    async def _ask(self, envoy: asyncio.StreamReader, sidecar: asyncio.StreamWriter, asked: Asked) -> None:
        try:
            while True:
                head = await envoy.readuntil(END)
                key, request_id = _KEY.search(head), _ID.search(head)
                check = Check(key[1].decode() if key else "")
                same = self._checks.setdefault(request_id[1] if request_id else b"%d" % len(self._checks), [])
                same.append(check)
                asked.append((check, same))
                sidecar.write(head)
                await sidecar.drain()
        except LOST:
            return

    async def _answer(
        self, sidecar: asyncio.StreamReader, envoy: asyncio.StreamWriter, asked: Asked, port: int
    ) -> None:
        """Pass answers on; who gave one that was repeated, or came too late, is asked while the connection is there."""
        try:
            while True:
                head = await sidecar.readuntil(END)
                length = _LENGTH.search(head)
                body = await sidecar.readexactly(int(length[1])) if length else b""
                if not envoy.is_closing():
                    envoy.write(head + body)
                if not asked:
                    continue
                check, same = asked[0]
                check.allowed = head.startswith(ALLOWED)
                if check.allowed and (envoy.is_closing() or len(same) > 1):
                    check.worker = await self._worker(port)
                asked.popleft()
                if envoy.is_closing():
                    return
        except LOST:
            return

    async def _worker(self, port: int) -> int:
        """Who has accepted the connection from this port; one look at all connections serves all who wait for it."""
        async with self._looking:
            if port not in self._found:
                self._found = await asyncio.to_thread(self._look)
            return self._found.pop(port, 0)

    def _look(self) -> dict[int, int]:
        return accepted(self.target_port, self._workers())
