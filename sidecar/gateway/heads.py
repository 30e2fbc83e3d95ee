"""A memo of request heads: a check whose bytes were read before need not be parsed again, whatever its request id.

Two requests with the same bytes, but for the value of one x-request-id header that is letters, digits and dashes in
both, have the same parse: the parser is in the same state where the value begins, and again where it ends. So a head is
kept after the parser has read it as one whole request without a body, and only its request id is cut out.

Guarantees: a request is found only if the parser read the same bytes as one complete check before, under the same
            catalogue; memory is bounded, and heads that come only once are not kept.
Gives up:   heads that differ otherwise (other headers, other paths): those are parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.gateway.answers import REQUEST_ID_BYTES_MAX
from sidecar.gateway.memo import remember

if TYPE_CHECKING:
    from sidecar.enforcement.fast_path import Check
    from sidecar.gateway.dialects import Dialect

HEADS_MAX = 8_192
HEAD_BYTES_MAX = 2_048
SEEN_MAX = 32_768
_LOWER = b"\r\nx-request-id: "  # as Envoy writes it
_TITLE = b"\r\nX-Request-Id: "  # as ours for nginx do
_END = b"\r\n\r\n"


class Head:
    """What a head says. ``proven``: it brings one of the secrets, so that it may come from anywhere."""

    __slots__ = ("check", "dialect", "proven")

    def __init__(self, check: Check, dialect: Dialect, *, proven: bool) -> None:
        self.check = check
        self.dialect = dialect
        self.proven = proven


class Heads:
    """Heads of one catalogue, by their bytes without the request id."""

    __slots__ = ("_known", "_seen")

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._seen: set[int] = set()

    def find(self, data: bytes) -> tuple[Head | None, bytes]:
        """The head of a request that is exactly these bytes, and its request id; (None, b"") when it is not known."""
        if len(data) > HEAD_BYTES_MAX:
            return None, b""
        start, end = _request_id(data)
        if not end:
            return self._known.get(data), b""
        request_id = data[start:end]
        if not request_id.replace(b"-", b"").isalnum() or end - start > REQUEST_ID_BYTES_MAX:
            return None, b""
        return self._known.get(data[:start] + data[end:]), request_id

    def learn(self, data: bytes, request_id: bytes, head: Head) -> None:
        """Keep a head that the parser read whole, with that request id, when it comes for the second time."""
        if len(data) > HEAD_BYTES_MAX or data.find(_END) != len(data) - len(_END):
            return
        start, end = _request_id(data)
        if data[start:end] != request_id or data.lower().count(b"x-request-id") != bool(end):
            return
        if end and not request_id.replace(b"-", b"").isalnum():
            return
        key = data[:start] + data[end:]
        mark = hash(key)
        if mark in self._seen:
            remember(self._known, key, head, HEADS_MAX)
            return
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.add(mark)


def _request_id(data: bytes) -> tuple[int, int]:
    """Where the value of x-request-id begins and ends; (0, 0) when there is none in a spelling that gateways use."""
    start = data.find(_LOWER)
    if start < 0:
        start = data.find(_TITLE)
        if start < 0:
            return 0, 0
    start += len(_LOWER)
    return start, data.find(b"\r", start)
