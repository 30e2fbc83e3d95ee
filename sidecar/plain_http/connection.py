"""One connection of a plain HTTP server: parsed by llhttp, answered in order, bounded in size and time.

Guarantees: while a request is answered nothing more is read. A peer can hold at most a head, a body and one read. No
            input raises out of here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from sidecar.plain_http.messages import Answer, problem

if TYPE_CHECKING:
    from sidecar.plain_http.server import Server

HEAD_BYTES_MAX = 16_384  # 431, then closed
REQUEST_TIMEOUT_S = 10.0  # from a request's first byte to its last, and for reading an answer: closed
IDLE_TIMEOUT_S = 75.0  # closed
LINGER_S = 2.0  # after a refusal, so that a peer that is still sending reads it
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Refused(Exception):
    """Raised inside a parser callback to stop the parser; becomes an answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Connection(asyncio.Protocol):
    """The protocol of one connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._head_bytes = 0
        self._received = 0  # bytes of the request that is being read
        self._reading = False
        self._length = 0
        self._expects = False
        self._in_body = False
        self._body = bytearray()
        self._deaf = False  # nothing more is parsed
        # Requests (method, path, body) or refusals (status, detail), each with whether the connection stays.
        self._queue: deque[tuple[tuple[str, str, bytes] | tuple[int, str], bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._since_s = time.monotonic()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.admit(self):
            self._deaf = True
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended changes nothing
        self._deaf = True
        self._queue.clear()
        self._writable.set()
        self._server.release(self)
        del self._parser  # it refers back to this object

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._reading:
            self._since_s = time.monotonic()
        self._received += len(data)
        try:
            self._parser.feed_data(data)
            if self._received > HEAD_BYTES_MAX + (8 * self._server.body_bytes_max if self._in_body else 0):
                self._refuse(413 if self._in_body else 431, "The request is too large.")
        except HttpParserUpgrade:
            self._deaf = True  # what follows is not HTTP; the request itself is answered like any other
            if self._queue:
                self._queue[-1] = (self._queue[-1][0], False)
        except HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
            self._refuse(error.__context__.status, str(error.__context__))
        except HttpParserError as error:
            self._refuse(400, f"Malformed HTTP: {error}.")

    def pause_writing(self) -> None:
        self._writable.clear()
        self._since_s = time.monotonic()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._reading = True

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._in_body:
            return  # a trailer
        lower = name.lower()
        if lower == b"content-length" and value.isdigit():
            self._length = int(value)
        elif lower == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._length > self._server.body_bytes_max:
            raise _Refused(413, f"The body is too large; at most {self._server.body_bytes_max} bytes are taken.")
        if self._expects and self._task is None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > self._server.body_bytes_max:
            raise _Refused(413, f"The body is too large; at most {self._server.body_bytes_max} bytes are taken.")

    def on_message_complete(self) -> None:
        try:
            path = (parse_url(self._target).path or b"/").decode("ascii")
        except (HttpParserError, UnicodeDecodeError):
            raise _Refused(400, "The target of the request cannot be read.") from None
        request = (self._parser.get_method().decode(), path, bytes(self._body))
        self._target = b""
        self._head_bytes = self._received = self._length = 0
        self._reading = self._expects = self._in_body = False
        self._body.clear()
        self._put(request, keep=self._parser.should_keep_alive())

    # What the server calls.

    def finish(self) -> asyncio.Task[None] | None:
        """Close after what is being answered now; returns its task, or None when there is nothing."""
        if self._task is None:
            self._transport.close()
        return self._task

    def abort(self) -> None:
        self._transport.abort()

    def sweep(self, now_s: float) -> None:
        """Close the connection if its time is over. A handler may take as long as it likes."""
        elapsed_s = now_s - self._since_s
        if self._transport.is_closing() or not self._writable.is_set():
            if elapsed_s > REQUEST_TIMEOUT_S:
                self._transport.abort()
        elif self._task is not None:
            return
        elif self._deaf:
            if elapsed_s > LINGER_S:
                self._transport.abort()
        elif elapsed_s > (REQUEST_TIMEOUT_S if self._reading else IDLE_TIMEOUT_S):
            self._transport.close()

    # Answering.

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _Refused(431, f"The head is too large; at most {HEAD_BYTES_MAX} bytes are taken.")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer in turn, parse nothing more, and close."""
        self._deaf = True
        self._put((status, detail), keep=False)

    def _put(self, what: tuple[str, str, bytes] | tuple[int, str], *, keep: bool) -> None:
        self._queue.append((what, keep))
        if self._task is None:
            self._transport.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        """Answer what is queued, one after the other; the queue holds at most the requests of one read."""
        while self._queue:
            what, keep = self._queue.popleft()
            if len(what) == 2:  # noqa: PLR2004 - a refusal
                answer = problem(*what)
            else:
                answer = await self._server.answer(*what)
            if self._transport.is_closing():
                return
            keep = keep and not self._server.stopping
            self._since_s = time.monotonic()
            self._transport.write(_encoded(answer, keep=keep, bodiless=what[0] == "HEAD"))
            if not keep:
                self._close()
                return
            await self._writable.wait()
        self._task = None
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _close(self) -> None:
        """Close; a peer that may still be sending would lose the answer to a reset, so its input is read until then."""
        self._task = None
        if self._deaf and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()


def _encoded(answer: Answer, *, keep: bool, bodiless: bool) -> bytes:
    head = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        time.strftime("date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        f"content-type: {answer.content_type}",
        f"content-length: {len(answer.body)}",
        f"connection: {'keep-alive' if keep else 'close'}",
        *(f"{name}: {value}" for name, value in answer.headers),
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if bodiless else answer.body)
