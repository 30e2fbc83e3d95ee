"""How each secret is kept, compared and replaced. That none is ever shown: tests/integration/test_secrets.py."""

from __future__ import annotations

import ast
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import make_mocked_request
from redis.asyncio import Redis

from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.billing.webhooks import webhooks
from sidecar.billing.webhooks.webhooks import EventRefused
from sidecar.clock import Clock
from sidecar.control.api import _authorized
from sidecar.embedded.redis import EmbeddedRedis
from sidecar.errors import LedgerRefused, StoreRefused
from sidecar.ledger import keys, tenants
from sidecar.ledger.connection import Ledger
from sidecar.settings import NAMES, is_secret
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from tests.servers.forwarding import HOUR_S, Forwarding
from tests.servers.stripe import KEY
from tests.unit.test_dialects import Recorder, gate_of

PACKAGE = Path(__file__).parents[2] / "sidecar"
SECRETS = tuple(f"secret-number-{number}" for number in range(3))
# Settings that say how a secret is used, and are none.
NO_SECRETS = {"SIDECAR_REDIS_KEY_FILE", "SIDECAR_STRIPE_URL", "SIDECAR_KEYS_CACHED_MAX"}


def test_whatever_holds_a_secret_may_come_from_a_file() -> None:
    """A name that sounds like one and is not marked would be read from the environment only, and be shown."""
    sounding = {
        name for name in NAMES if any(word in name for word in ("SECRET", "TOKEN", "KEY", "URL", "DSN", "PASSWORD"))
    }
    assert {name for name in NAMES if is_secret(NAMES[name].name)} == sounding - NO_SECRETS


class Counted:
    """Counts comparisons in constant time."""

    def __init__(self, compare: Any) -> None:
        self.calls = 0
        self._compare = compare

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.calls += 1
        return self._compare(*arguments, **more)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(hmac.compare_digest)
    monkeypatch.setattr(hmac, "compare_digest", counted)
    return counted


@pytest.mark.parametrize("given", [*SECRETS, "wrong", ""])
def test_a_gateways_secret_is_compared_with_each_in_constant_time(compared: Counted, given: str) -> None:
    gate = gate_of(Recorder(), *(secret.encode() for secret in SECRETS))
    assert gate.admits({b"x-quota-secret": given.encode()}) == (given in SECRETS)
    assert compared.calls == len(SECRETS)


@pytest.mark.parametrize("given", [*SECRETS, "wrong", ""])
async def test_an_admin_token_is_compared_with_each_in_constant_time(compared: Counted, given: str) -> None:
    passed = []

    async def handler(request: Any) -> Any:
        passed.append(request)

    request = make_mocked_request("GET", "/api/v1/tenants/acme", headers={"authorization": f"Bearer {given}"})
    await _authorized(SECRETS)(request, handler)
    assert bool(passed) == (given in SECRETS)
    assert compared.calls == len(SECRETS)


@pytest.mark.parametrize("signing", [*SECRETS, "wrong"])
def test_a_webhooks_signature_is_compared_with_each_in_constant_time(compared: Counted, signing: str) -> None:
    signature = hmac.new(signing.encode(), b'1.{"a":1}', hashlib.sha256).hexdigest()
    header = f"t=1,v1={signature}"
    if signing in SECRETS:
        webhooks.verify(b'{"a":1}', header, SECRETS, 1)
    else:
        with pytest.raises(EventRefused, match="fits none"):
            webhooks.verify(b'{"a":1}', header, SECRETS, 1)
    assert compared.calls == len(SECRETS)


def test_no_secret_is_compared_by_the_usual_operator() -> None:
    """Names of secrets stand beside == nowhere; an empty one is no secret."""
    words = {"secret", "secrets", "token", "tokens", "password", "admin_tokens", "authz_secrets", "offered"}
    found = []
    for source in PACKAGE.rglob("*.py"):
        if "stripe" in source.parts and "embedded" in source.parts:
            continue  # the stand-in guards nothing
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq | ast.In) for op in node.ops):
                sides = [node.left, *node.comparators]
                if any(isinstance(side, ast.Constant) for side in sides):
                    continue
                named = {side.id for side in sides if isinstance(side, ast.Name)}
                named |= {side.attr for side in sides if isinstance(side, ast.Attribute)}
                if named & words:
                    found.append(f"{source.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


async def test_a_new_api_key_is_good_beside_the_old_one_until_that_is_revoked(ledger: Ledger) -> None:
    async with ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="op")
        old = await keys.create(tx, "acme", actor="op", name="old")
        new = await keys.create(tx, "acme", actor="op", name="new")
        assert {key.sha256 for key in await keys.of_tenant(tx, "acme") if not key.revoked_s} == {
            hashlib.sha256(made.secret.encode()).hexdigest() for made in (old, new)
        }
        await keys.revoke(tx, old.row.sha256, actor="op")
        assert [key.name for key in await keys.of_tenant(tx, "acme") if not key.revoked_s] == ["new"]
    assert len(new.secret) > 30, "long enough that its hash need not be slow"


async def test_a_password_of_redis_is_replaced_while_both_are_good(redis_server: EmbeddedRedis) -> None:
    user, old, new = f"u{secrets.token_hex(4)}", SECRETS[0], SECRETS[1]
    async with Redis.from_url(redis_server.url) as administrator:
        for rule in (f">{old}", f">{new}"):
            await administrator.execute_command("ACL", "SETUSER", user, "on", rule, "~sc:*", "+@all")  # type: ignore[no-untyped-call]
        for password in (old, new):
            await check(redis_server, user, password)
        await administrator.execute_command("ACL", "SETUSER", user, f"<{old}")  # type: ignore[no-untyped-call]
        await check(redis_server, user, new)
        with pytest.raises(StoreRefused, match="does not accept the login"):
            await check(redis_server, user, old)
        await administrator.execute_command("ACL", "DELUSER", user)  # type: ignore[no-untyped-call]


async def check(server: EmbeddedRedis, user: str, password: str) -> None:
    store = Store(
        f"redis://{user}:{password}@127.0.0.1:{server.port}/0", Keyspace(), Clock(), identity="t", timeout_ms=5_000
    )
    try:
        await store.check()
    finally:
        await store.close()


async def test_a_key_of_stripe_is_replaced_while_both_are_good(place: Forwarding) -> None:
    """Flushers are started again one after the other; one is late, and keeps what it may no longer send."""
    await place.tenants(["acme"])
    late = place.forwarder()

    async def sent(sender: Forwarder, units: int) -> None:
        await place.count("acme", units)
        await sender.flush()
        await place.advance(300)

    await sent(late, 1)
    place.stripe.accept(KEY, f"{KEY}_new")
    started_again = place.forwarder()
    for units in (2, 4):
        await sent(late, units)
        await sent(started_again, units * 10)
    assert await place.states() == {"delivered": 5}
    await place.agree()

    place.stripe.accept(f"{KEY}_new")
    await sent(late, 8)
    assert await place.states() == {"delivered": 5, "waiting": 1}
    [refused] = [row for row in await place.rows() if row["state"] == "waiting"]
    assert "Invalid API Key" in refused["reason"]
    await place.advance(HOUR_S)
    await sent(started_again, 80)
    assert await place.states() == {"delivered": 7}
    await place.agree()


async def test_a_login_of_postgres_is_replaced_while_both_are_good(database: str, ledger: Ledger) -> None:
    """A role has one password; a second login of the same group is the overlap, its drop the end of the first."""
    place = database.partition("@")[2]
    owner = await asyncpg.connect(database)
    await ledger.installation()
    logins = [f"flusher_{secrets.token_hex(4)}" for _ in range(2)]
    for login in logins:
        await owner.execute(f"create role {login} login password '{SECRETS[0]}' in role sidecar_flusher")

    async def counted(login: str) -> list[object]:
        part = await Ledger.open(f"postgresql://{login}:{SECRETS[0]}@{place}", shards=1)
        try:
            async with part.transaction() as tx:
                return [*await tenants.page(tx)]
        finally:
            await part.close()

    old, new = logins
    assert [await counted(login) for login in logins] == [[], []]
    await owner.execute(f"drop role {old}")
    with pytest.raises(LedgerRefused, match=old):
        await counted(old)
    assert await counted(new) == []
    await owner.execute(f"drop role {new}")
    await owner.close()
