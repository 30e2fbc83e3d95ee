"""A memo of request heads: a check whose bytes were read before need not be parsed again, whatever changes each time.

What changes with each request is cut out before a head is looked up: the target, the value of x-request-id, the values
of tracing headers, and the original target where a header carries it. Two heads that are otherwise the same have the
same parse if what was cut out of both is made of characters that the parser treats alike: it is in the same state where
such a value begins, and again where it ends. So the rest of a head is kept after the parser has read it as one whole
request without a body.

Guarantees: a request is found only if the parser read the same bytes as one complete check before, but for what was cut
            out, under the same catalogue; memory is bounded, and heads that come only once are not kept.
Gives up:   heads that differ otherwise, such as in a cookie or a user agent: those are parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sidecar.enforcement.fast_path import Check
from sidecar.gateway.answers import REQUEST_ID_BYTES_MAX
from sidecar.gateway.dialects import FORWARD, NGINX
from sidecar.gateway.headers import REQUEST_ID
from sidecar.memo import remember

if TYPE_CHECKING:
    from sidecar.catalogue.model import RouteRule
    from sidecar.enforcement.decision import Identity
    from sidecar.gateway.dialects import Dialect

HEADS_MAX = 8_192
HEAD_BYTES_MAX = 2_048
SEEN_MAX = 32_768
CHECKS_MAX = 32
CUTS_MAX = 16
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})


def alphabet(characters: bytes) -> bytes:
    """A table by which ``translate`` leaves as it is what has no other characters, and nothing else."""
    return bytes(code if code in characters else not code for code in range(256))


_ALNUM = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# No blank, no "?" and no "#": what the parser reads in one state, in a path as in a value.
_PATH = _ALNUM + b"-._~!$&'()*+,;=:@/%"
PATH = alphabet(_PATH)
QUERY = alphabet(_PATH + b"?")
_ID = alphabet(_ALNUM + b"-")
_VISIBLE = alphabet(bytes(range(0x20, 0x7F)))
_VERSION = b" HTTP/1.1"
_END = b"\r\n\r\n"
_LOWER = b"\r\nx-request-id: "  # as Envoy writes it
_TITLE = b"\r\nX-Request-Id: "  # as ours for nginx do
# Values that are cut out beside the request id, from when they were first seen. Only those of targets are looked at.
_TARGETS = frozenset({NGINX.uri, FORWARD.uri})
_CUT = _TARGETS | {
    *(b"traceparent", b"tracestate", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-amzn-trace-id"),
    *(b"x-datadog-trace-id", b"x-datadog-parent-id", b"x-cloud-trace-context", b"uber-trace-id", b"x-forwarded-for"),
}


_NO_TARGETS: dict[bytes, bytes] = {}


class Parts(NamedTuple):
    """A head below its request line: before and behind the request id, without what was cut out.

    ``rear`` is None in a head that has no request id. ``targets`` are those that headers describe, by header.
    """

    front: bytes
    rear: bytes | None
    request_id: bytes
    targets: dict[bytes, bytes]


class Head:
    """Who asks, by a head without what changes.

    Where the gateway describes the original request in headers, ``line`` is the request line of the check, and
    ``method`` the original's. ``scope`` is what a route depends on beside the target. ``checks`` has one for each route
    rule (by its id) that was asked for. ``decisions`` are the dialect's counters by reason. ``proven``: the head brings
    a secret, so that it may come from anywhere.
    """

    __slots__ = ("checks", "decisions", "dialect", "host", "identity", "line", "method", "proven", "scope")

    def __init__(
        self, identity: Identity, dialect: Dialect, *, line: bytes = b"", method: bytes = b"", host: bytes = b""
    ) -> None:
        self.identity = identity
        self.dialect = dialect
        self.line = line
        self.method = method
        self.host = host
        self.scope = scope_of(method, host)
        self.proven = False
        self.checks: dict[int, Check] = {}
        self.decisions: dict[str, int] = {}

    def check(self, route: RouteRule) -> Check:
        """The check of a route rule that was not asked for yet."""
        return remember(self.checks, id(route), Check(self.identity, route), CHECKS_MAX)


def scope_of(method: bytes, host: bytes) -> bytes:
    """A key for method and host, to stand behind a target without its query; empty if both are.

    No such target has a question mark, and no method: so nothing else can be read as the same key.
    """
    return b"?%b?%b" % (method, host) if method or host else b""


class Heads:
    """Heads of one catalogue, by their bytes without what changes; ``kept`` are headers that say who asks."""

    __slots__ = ("_cut", "_cuts", "_idle", "_known", "_plain", "_seen")

    def __init__(self, kept: frozenset[bytes] = frozenset()) -> None:
        self._known: dict[tuple[bytes, bytes | None], Head] = {}
        self._seen: set[int] = set()
        self._cut = _CUT - kept
        self._idle = REQUEST_ID in kept  # then nothing of a head may change
        # What is cut out: the name between line end and value, and which target it describes, if any.
        self._cuts: tuple[tuple[bytes, bytes], ...] = ()
        self._plain = True  # no head is known from which more was cut out than an id that is spelled as in _LOWER

    def find(self, data: bytes) -> tuple[Head, bytes, bytes] | None:
        """The head of a request that is exactly these bytes, its target without the query, and its request id.

        The target has its method before it, unless a header describes both. That the one is among METHODS, and all
        characters of the other among PATH, is left to the caller, who may know them.
        """
        if len(data) > HEAD_BYTES_MAX:
            return None
        line, _, block = data.partition(_VERSION)
        request_id = b""
        targets = _NO_TARGETS
        rear: bytes | None = None
        if self._plain:
            front, found, rest = block.partition(_LOWER)
            if found:
                request_id, _, rear = rest.partition(b"\r")
                if request_id.translate(_ID) != request_id or not 0 < len(request_id) <= REQUEST_ID_BYTES_MAX:
                    return None
        else:
            parts = self._parts(block)
            if parts is None:
                return None
            front, rear, request_id, targets = parts
        head = self._known.get((front, rear))
        if head is None:
            return None
        if head.line:
            if line != head.line:
                return None
            line = targets.get(head.dialect.uri, b"")
        target, _, query = line.partition(b"?")
        if query and query.translate(QUERY) != query:
            return None
        return head, target, request_id

    def learn(self, data: bytes, head: Head, line: bytes, request_id: bytes, target: bytes) -> None:
        """Keep a head that comes for the second time, unless it is not of the plain form that ``find`` expects.

        In these bytes the parser found a check with that method and target (``line``), request id, and described
        target.
        """
        begins, _, block = data.partition(_VERSION)
        whole = len(data) <= HEAD_BYTES_MAX and data.find(_END) == len(data) - len(_END)
        if self._idle or not whole or begins != line or line.partition(b" ")[0] not in METHODS:
            return
        self._cut_more(block)
        self._plain = self._plain and not self._cuts and _TITLE not in block
        parts = self._parts(block)
        lowered = block.lower()
        if (
            parts is None
            or parts.request_id != request_id
            or (head.line and parts.targets.get(head.dialect.uri) != target)
            or lowered.count(REQUEST_ID) != bool(request_id)
            or any(lowered.count(needle.lower()) > 1 for needle, _ in self._cuts)
        ):
            return
        key = (parts.front, parts.rear)
        mark = hash(key)
        if mark in self._seen:
            remember(self._known, key, head, HEADS_MAX)
            return
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.add(mark)

    def _parts(self, block: bytes) -> Parts | None:
        """Take a head apart; None if what would be cut out could change how the rest is read."""
        front, found, rest = block.partition(_LOWER)
        if not found:
            front, found, rest = block.partition(_TITLE)
        request_id, end, rear = rest.partition(b"\r")
        if found and (request_id.translate(_ID) != request_id or not 0 < len(request_id) <= REQUEST_ID_BYTES_MAX):
            return None
        targets = _NO_TARGETS
        rear = end + rear
        for needle, uri in self._cuts:
            before, found, rest = front.partition(needle)
            behind = not found
            if behind:
                before, found, rest = rear.partition(needle)
                if not found:
                    continue
            value, end, after = rest.partition(b"\r")
            if not value or value.strip(b" ") != value or value.translate(_VISIBLE) != value:
                return None
            if uri:
                targets = {**targets, uri: value}
            if behind:
                rear = before + needle + end + after
            else:
                front = before + needle + end + after
        return Parts(front, rear[1:] if request_id else None, request_id, targets)

    def _cut_more(self, block: bytes) -> None:
        """Cut out from now on what changes in such a head with each request."""
        for text in block.split(b"\r\n"):
            name, colon, _ = text.partition(b": ")
            plain = name.lower()
            if plain not in self._cut or name not in _spellings(plain):
                continue
            uri = plain if plain in _TARGETS else b""
            cut = (b"\r\n" + name + colon, uri)
            # There is always a place for targets: clients choose how they spell what else is cut out.
            if cut not in self._cuts and (uri or len(self._cuts) < CUTS_MAX):
                self._cuts = (*self._cuts, cut)


def _spellings(name: bytes) -> tuple[bytes, ...]:
    """Those that gateways use."""
    return name, name.title(), name.title().replace(b"Uri", b"URI")
