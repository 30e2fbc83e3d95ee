"""One connection of a gateway: parsed by llhttp, answered in order.

Guarantees: answers go out in the order of the requests, also when one has to wait; while one waits, nothing more is
            read. A peer can hold at most what ListenerLimits and one read allow. No input raises out of here.
Gives up:   the bodies of checks, which are discarded; trailers, which never count as headers; upgrades.

The order of attributes and the calls per request are what bench/listener.py pays for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from sidecar.gateway.answers import CONTINUE, last, refused
from sidecar.gateway.gate import Last, Question
from sidecar.gateway.headers import EXPECT, SPECIAL, UPGRADE, HeaderIndex
from sidecar.gateway.identity import Found
from sidecar.gateway.limits import READ_BYTES_MAX

if TYPE_CHECKING:
    from sidecar.gateway.listener import DecisionListener

_NO_NAMES: dict[bytes, bytes | None] = {}
_NOTHING = memoryview(b"")

_UNAUTHORIZED = Last(refused(403, "The header x-quota-secret is missing or wrong."))

Request = tuple[HeaderIndex, bytes, bytes, Found]


class _Refused(Exception):
    """Raised inside a parser callback to stop the parser; becomes an answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class _Stopped(Exception):
    """Raised inside a parser callback after the last answer: requests behind it are not decided."""


class Connection(asyncio.Protocol):
    """The protocol of one connection. ``since_ms`` is when it became idle or its unfinished request began."""

    __slots__ = (
        "_body_bytes",
        "_found",
        "_gate",
        "_ignored",
        "_ignored_max",
        "_in_body",
        "_index",
        "_last",
        "_listener",
        "_message_bytes",
        "_names",
        "_open",
        "_parser",
        "_queue",
        "_refusing",
        "_special",
        "_stalled",
        "_task",
        "_transport",
        "_trusted",
        "_unread",
        "_upgrades",
        "_url",
        "_whole",
        "since_ms",
    )

    def __init__(self, listener: DecisionListener, *, trusted: bool) -> None:
        self._listener = listener
        self._gate = listener.gate
        self._trusted = trusted
        self._index = self._gate.index
        self._names = self._index.names
        self._parser = HttpRequestParser(self)
        self._url = b""
        self._found: Found = {}
        self._ignored = 0
        self._ignored_max = listener.limits.headers_max
        self._open = False  # a request has begun and is not complete
        self._whole: bytes | None = None  # the read that it began in, if it began with it
        self._in_body = False
        self._special = False
        self._upgrades = False
        self._message_bytes = 0
        self._body_bytes = 0
        self._last = False  # the next answer is the last
        self._refusing = False  # nothing more is parsed
        self._stalled = False  # the peer does not read
        self._queue: deque[tuple[bytes | Question | Request, bool]] = deque()
        self._unread = _NOTHING
        self._task: asyncio.Task[None] | None = None
        self.since_ms = listener.now_ms

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._listener.admit(self):
            self._refusing = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=self._listener.limits.write_buffer_bytes)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended changes nothing
        self._refusing = True
        self._queue.clear()
        self._listener.release(self)
        del self._parser  # it refers back to this object

    def data_received(self, data: bytes) -> None:
        if self._task is None and not (self._open or self._refusing or self._last):
            answer = self._gate.recall(data, trusted=self._trusted)
            if answer is not None:
                self.since_ms = self._listener.now_ms
                if answer.__class__ is bytes:
                    self._transport.write(answer)
                else:
                    self._send(answer, keep=True)
                return
        if self._open or self._refusing or len(data) > READ_BYTES_MAX:
            self._read_on(memoryview(data))
            return
        self._whole = data
        self._open = True
        self._message_bytes = len(data)
        self.since_ms = self._listener.now_ms
        index = self._gate.index
        if index is not self._index:
            self._index = index
            self._names = index.names
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._stop_parsing(error)

    def pause_writing(self) -> None:
        self._stalled = True
        self.since_ms = self._listener.now_ms
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = False
        self.since_ms = self._listener.now_ms
        self._resume()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if not self._open:  # behind another one in the same read
            self._open = True
            self._whole = None
            self._message_bytes = 0
            self.since_ms = self._listener.now_ms

    def on_url(self, url: bytes) -> None:
        if self._url:
            url = self._url + url
            if len(url) > self._listener.limits.url_bytes_max:
                raise _Refused(431, "The request target is too long.")
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        try:
            known = self._names[name]
        except KeyError:
            known = self._unfamiliar(name, value)
        if known is None:
            self._ignored += 1
            if self._ignored > self._ignored_max:
                raise _Refused(431, "The request has too many headers.")
        elif known in self._found:
            self._ignored += 1
            self._index.repeated(known, self._found)
        else:
            self._found[known] = value

    def on_chunk_header(self) -> None:
        self._in_body = self._special = True
        self._names = _NO_NAMES  # so that trailers are not taken for headers

    def on_body(self, body: bytes) -> None:
        self._in_body = self._special = True
        self._body_bytes += len(body)
        if self._body_bytes > self._listener.limits.body_bytes_max:
            raise _Refused(413, "The body is too large; a check needs none.")

    def on_message_complete(self) -> None:
        url = self._url
        found = self._found
        self._url = b""
        self._found = {}
        self._ignored = 0
        self._open = False
        index = self._index
        parser = self._parser
        keep = parser.should_keep_alive()
        whole = None if self._special else self._whole
        if self._special:
            keep = keep and not self._upgrades
            self._special = self._in_body = self._upgrades = False
            self._body_bytes = 0
            self._names = index.names
        if self._queue:
            self._queue.append(((index, parser.get_method(), url, found), keep))
            return
        if self._trusted or self._gate.admits(found):
            method = parser.get_method()
            answer = self._gate.decide(index, method, url, found)
            if keep and answer.__class__ is bytes and not self._last:
                self._transport.write(answer)
                if whole is not None:
                    self._gate.learn(whole, method, url, found, proven=not self._trusted)
                return
        else:
            answer = _UNAUTHORIZED
        self._send(answer, keep=keep and not self._last)
        if self._refusing:
            raise _Stopped

    # What the listener calls.

    def finish(self) -> None:
        """Close after the requests in flight are answered; at once when there are none."""
        self._last = True
        if not self._queue and (not self._open or self._refusing):
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def sweep(self, now_ms: int) -> None:
        """Close the connection if its time is over."""
        if self._task is not None or self._transport.is_closing():
            return  # a waiting decision has a bound of its own
        limits = self._listener.limits
        elapsed_ms = now_ms - self.since_ms
        if self._stalled or self._refusing:
            if elapsed_ms > limits.write_timeout_ms:
                self._gate.counters.timeouts += 1
                self._transport.abort()
        elif self._open:
            if elapsed_ms > limits.request_timeout_ms:
                self._refuse(408, "The request came too slowly.")
        elif elapsed_ms > limits.idle_timeout_ms:
            self._transport.close()

    # The rarer paths.

    def _read_on(self, data: memoryview) -> None:
        """A long read, or another part of an unfinished request, which is bounded as a whole."""
        self._whole = None
        while data and not self._refusing:
            if self._queue:
                self._unread = data  # parsed when those before are answered
                return
            if not self._open:
                self._open = True
                self._message_bytes = 0
                self.since_ms = self._listener.now_ms
                self._index = self._gate.index
                self._names = self._index.names
            limits = self._listener.limits
            bound = limits.message_bytes_max if self._in_body else limits.head_bytes_max
            piece = data[: min(READ_BYTES_MAX, bound - self._message_bytes)]
            if not piece:
                status, what = (413, "The request") if self._in_body else (431, "The head of the request")
                self._refuse(status, f"{what} is too large.")
                return
            self._message_bytes += len(piece)
            data = data[len(piece) :]
            try:
                self._parser.feed_data(piece)
            except (HttpParserError, HttpParserUpgrade) as error:
                self._stop_parsing(error)

    def _stop_parsing(self, error: Exception) -> None:
        """The parser gave up: because of what it read, or of what was raised in one of the methods above."""
        cause = error.__context__ if isinstance(error, HttpParserCallbackError) else error
        if self._refusing or isinstance(cause, _Stopped):
            return
        if isinstance(cause, HttpParserUpgrade):
            # CONNECT, or an Upgrade that was answered like any other request: what follows is not HTTP.
            self._refusing = True
            if self._queue:
                self._queue[-1] = (self._queue[-1][0], False)
            else:
                self._close()
        elif isinstance(cause, _Refused):
            self._refuse(cause.status, str(cause))
        elif isinstance(cause, HttpParserError):
            self._refuse(400, f"Malformed HTTP: {cause}.")
        else:
            self._gate.fail(error)
            self._refuse(500, "The request failed.")

    def _unfamiliar(self, name: bytes, value: bytes) -> bytes | None:
        """A header name in a spelling not seen before, or one that is special."""
        if self._in_body:
            return None  # a trailer
        known = self._index.canonical(name, self._found)
        if known not in SPECIAL:
            return known
        self._whole = None
        if known == EXPECT:
            if value.strip().lower() != b"100-continue":
                raise _Refused(417, "Only 100-continue can be expected.")
            self._send(CONTINUE, keep=True)  # early for the rest of the head, which the peer is sending anyway
        elif known == UPGRADE:
            self._special = self._upgrades = True  # what follows an upgrade is not HTTP, so it is answered and closed
        return None

    def _refuse(self, status: int, detail: str) -> None:
        """Answer in turn, parse nothing more, and close."""
        self._refusing = True
        self._gate.counters.malformed += 1
        self._send(Last(refused(status, detail)), keep=False)

    def _send(self, answer: bytes | Question, *, keep: bool) -> None:
        """Write an answer in its turn: behind what waits, and later if it has to wait itself."""
        if not self._queue and not isinstance(answer, Question):
            self._write(answer, keep=keep)
            return
        self._queue.append((answer, keep))
        if self._task is None:
            self._transport.pause_reading()
            self._task = self._listener.spawn(self._drain())

    async def _drain(self) -> None:
        """Answer what is queued, one after the other; the queue holds at most the requests of one read."""
        queue = self._queue
        while queue:
            entry, keep = queue[0]
            if isinstance(entry, tuple):
                admitted = self._trusted or self._gate.admits(entry[3])
                answer = self._gate.decide(*entry) if admitted else _UNAUTHORIZED
            else:
                answer = entry
            if isinstance(answer, Question):
                answer = await self._gate.decide_waiting(answer)
                if not queue or self._transport.is_closing():
                    return  # the connection was lost meanwhile
            queue.popleft()
            self._write(answer, keep=keep and bool(queue or self._unread or not self._last))
        self._task = None
        unread, self._unread = self._unread, _NOTHING
        self._read_on(unread)
        self._resume()

    def _resume(self) -> None:
        """Read on, unless a decision waits or the peer does not read."""
        if self._task is None and not self._stalled and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, answer: bytes, *, keep: bool) -> None:
        if keep and not isinstance(answer, Last):
            self._transport.write(answer)
            return
        if isinstance(answer, Last):
            self._refusing = True
            self.since_ms = self._listener.now_ms
        self._transport.write(last(answer))
        self._close()

    def _close(self) -> None:
        """Close after what was written.

        A peer that may still be sending would lose our answer to a reset, so its input is discarded until it closes
        too, or its time is over.
        """
        self._queue.clear()
        if self._refusing and not self._last and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._refusing = True
            self._transport.close()
