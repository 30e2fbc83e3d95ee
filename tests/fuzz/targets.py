"""What is fuzzed: each target takes any bytes and raises AssertionError where a promise is broken.

Anything else that is raised is a finding too: all of these are readers of what others wrote.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sidecar.billing.webhooks import webhooks
from sidecar.catalogue.amount import AMOUNT_MAX
from sidecar.catalogue.diff import diff
from sidecar.catalogue.load import parse
from sidecar.catalogue.model import Catalogue, IdentityRule
from sidecar.catalogue.resolve import resolve
from sidecar.catalogue.routes import RouteTable
from sidecar.enforcement.decision import Identity
from sidecar.errors import CatalogueInvalid, JournalUnusable
from sidecar.gateway.dialects import Improper
from sidecar.gateway.headers import FAULT, HeaderIndex, faulty
from sidecar.gateway.identity import CONFLICT, Found, acceptable
from sidecar.usage.journal import BLOCK_BYTES, HEADER_BYTES
from sidecar.usage.recovery import adopt, inspect
from sidecar.usage.window import TIME_S_MAX
from tests.fuzz.twins import Twins

STEP = b"\xfe"
STEPS_MAX = 24
_PROBLEM = re.compile(r"c:[0-9]+: .+; .+", re.DOTALL)
_WRITER = "0123456789abcdef"
_SECRET = "whsec_fuzz"
_NOW_S = 1_800_000_000


def listener(data: bytes) -> None:
    """Steps between 0xFE bytes: connection 0 to 3 and what is sent there (a to d: three times), w, or u0 to u2."""
    twins = Twins()
    for step in data.split(STEP)[:STEPS_MAX]:
        kind, sent = step[:1], step[1:]
        if kind in b"0123" and kind and sent:
            twins.send(int(kind), sent)
        elif kind in b"abcd" and kind and sent:
            for _ in range(3):
                twins.send(b"abcd".index(kind), sent)
        elif kind == b"w":
            twins.work()
        elif kind == b"u":
            twins.use(sum(sent[:1]))
    twins.close()


_RULES = [
    IdentityRule(kind="header", header="x-tenant-id"),
    IdentityRule(kind="api_key", header="authorization", scheme="Bearer"),
    IdentityRule(kind="jwt", header="x-jwt-payload", claim="org.id"),
    IdentityRule(kind="client_cert", header="x-forwarded-client-cert", claim="CN"),
    IdentityRule(kind="client_cert", header="x-client-fingerprint"),
    IdentityRule(kind="client_cert", header="x-client-cert", claim="URI"),
]
_CATALOGUE = Catalogue(metrics={}, plans={}, routes=(), identity=tuple(_RULES), user_header="x-user-id")
_WARM = HeaderIndex(_CATALOGUE)


def identity(data: bytes) -> None:
    """Header lines: the same ones always name the same caller, in whatever order, and a repeated one names nobody."""
    lines = [line.partition(b": ") for line in data.split(b"\n")[:24]]
    pairs = [(name, value) for name, _, value in lines if name]
    found = _identified(HeaderIndex(_CATALOGUE), pairs)
    assert found == _identified(_WARM, pairs), "what was asked before changes the answer"
    assert found == _identified(_WARM, pairs[::-1]), "the order of the headers changes the answer"
    if found is None or found == CONFLICT:
        return
    for text in (found.tenant, found.user):
        assert not text or acceptable(text), "an id that cannot be one"
    assert found.key is None or re.fullmatch("[0-9a-f]{64}", found.key), "a key that is no hash"
    for name, value in pairs:
        plain = name.lower().replace(b"_", b"-").replace(b".", b"-")
        if plain in _WARM.identity.headers:
            assert plain == name.lower(), "an alias was believed"
            twice = _identified(_WARM, [*pairs, (name.upper(), value)])
            assert twice in {None, CONFLICT}, "a repeated header was believed"


def _identified(index: HeaderIndex, pairs: list[tuple[bytes, bytes]]) -> Identity | None:
    """Who asks, by headers read as a connection does; None when the check is improper."""
    found: Found = {}
    for spelling, value in pairs:
        name = index.names.get(spelling) if spelling in index.names else index.canonical(spelling, found)
        if name is not None and name in found:
            index.repeated(name, found)
        elif name is not None:
            found[name] = value
    with suppress(Improper):
        return CONFLICT if FAULT in found and faulty(found) else index.identity.identify(found)
    return None


def catalogue(data: bytes) -> None:
    """A file: read whole, with plans that resolve and routes that match, or refused with its lines."""
    text = data.decode("utf-8", "replace")
    try:
        read = parse(text, "c")
    except CatalogueInvalid as refused:
        wrong = [problem for problem in refused.problems if not _PROBLEM.fullmatch(problem)]
        if wrong or not refused.problems:
            raise AssertionError(wrong or "refused without a problem") from refused
        return
    for name in read.plans:
        resolve(
            read,
            tenant="t",
            rev=1,
            plan=name,
            status="active",
            status_until_s=0,
            parent="",
            anchor_s=0,
            shadow=False,
            overrides={},
        )
    table = RouteTable(read.routes)
    for target in ("/", "/v1/x%2f..;a//y", text[:200]):
        assert table.match("GET", "a.example", target).name
    assert not diff(read, read)
    HeaderIndex(read).identity.identify({b"x-tenant-id": b"acme"})


def webhook(data: bytes) -> None:
    """A signature header, a line end, a body: only what was signed with our secret and lately is believed."""
    header, _, body = data.partition(b"\n")
    sent = header.decode("latin-1")
    with suppress(webhooks.EventRefused):
        webhooks.verify(body, sent, [_SECRET], _NOW_S)
        raise AssertionError("a signature without the secret")
    for stamp in {part[2:] for part in sent.split(",") if part.startswith("t=")}:
        signed = hmac.new(_SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        with suppress(webhooks.EventRefused):
            webhooks.verify(body, f"{sent},v1={signed}", [_SECRET], _NOW_S)
            assert int(stamp) >= _NOW_S - webhooks.TOLERANCE_S, "an old signature"
    with suppress(webhooks.EventRefused):
        event = webhooks.read(body)
        assert 0 < len(event.id) <= 255
        assert all(
            text.isascii() and text.isprintable() for text in (event.id, event.kind, event.object, event.customer)
        )
        assert 0 <= event.made_s < 2**40


def journal(data: bytes) -> None:
    """The first 24 bytes are the file's header, the rest is its blocks: what is read can be stored everywhere."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{_WRITER}.journal"
        path.write_bytes(data[:24] + bytes(HEADER_BYTES - 24) + data[24:] if len(data) > 24 else data)
        read = None
        with suppress(JournalUnusable):
            read = inspect(path)
        adopted = list(adopt(Path(folder)))
        found = [(one.writer, list(one.windows())) for one in adopted]
        for one in adopted:
            one.release()
        assert found == ([read] if read else [])
        if read is None:
            return
        writer, windows = read
        assert re.fullmatch("[0-9a-f]{16}", writer)
        assert len(data) < BLOCK_BYTES, "one block is enough here"
        for (tenant, series, period, hour), value in windows:
            assert "\0" not in tenant + series
            assert (tenant + series).encode()
            assert abs(period) <= TIME_S_MAX
            assert 0 <= hour <= TIME_S_MAX
            assert 0 < value <= AMOUNT_MAX


TARGETS: dict[str, Callable[[bytes], None]] = {
    "catalogue": catalogue,
    "identity": identity,
    "journal": journal,
    "listener": listener,
    "webhook": webhook,
}
