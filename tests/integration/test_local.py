"""The local listener: explaining a request and listing limits say what the decision listener would do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.core import Core
from sidecar.gateway.local import BODY_BYTES_MAX, local_app
from tests.servers.installation import Installation, installation

CATALOGUE = """
metrics: {api_calls: , credits: {scale: 2}}
plans:
  scoped:
    limits:
      credits: {included: 2.5, period: month, cap: hard}
      api_calls: {included: 100, period: month, cap: hard}
      per_key: {metric: api_calls, included: 5, period: month, cap: hard, scope: key}
      per_user: {metric: api_calls, included: 6, period: month, cap: hard, scope: user}
  spent:
    limits:
      daily: {metric: api_calls, included: 0, period: day, cap: hard}
      monthly: {metric: api_calls, included: 0, period: lifetime, cap: hard}
  small:
    limits: {api_calls: {included: 0, period: month, cap: hard}}
  shadowing:
    shadow: true
    limits: {api_calls: {included: 0, period: month, cap: hard}}
  large:
    limits: {api_calls: {included: 1_000, period: month, cap: hard}}
identity: [{header: x-tenant-id}, {api_key: x-api-key}]
user_header: x-user-id
routes:
  - {name: dear, match: /dear, costs: {credits: 0.25}}
"""
KEY = hashlib.sha256(b"secret").hexdigest()


class Local:
    """The local listener of one worker, and its decisions."""

    def __init__(self, inside: Installation, core: Core, client: TestClient[Any, Any]) -> None:
        self.inside = inside
        self.core = core
        self._client = client

    async def explain(self, **body: Any) -> dict[str, Any]:
        answer = await self._client.post("/v1/explain", json=body)
        found = json.loads(await answer.text(), parse_float=Decimal)
        assert isinstance(found, dict)
        return found

    async def send(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Ask for an explanation with these bytes."""
        answer = await self._client.post("/v1/explain", data=body)
        return answer.status, json.loads(await answer.text())

    async def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
        answer = await self._client.request(method, path)
        return answer.status, json.loads(await answer.text(), parse_float=Decimal)

    async def tenant(self, name: str, plan: str, **more: Any) -> None:
        await self.inside.tenant(name, plan, **more)
        await self.inside.flusher().flush()
        await self.core.changes.catch_up()


@pytest.fixture
async def local(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[tuple[Local, EmbeddedRedis]]:
    server = await fresh_redis()
    async with installation(server.url, redis_prefix, database, tmp_path) as inside:
        await inside.catalogue(CATALOGUE)
        await inside.flusher().flush()
        core = await inside.core()
        async with TestClient(TestServer(local_app(core.enforcer))) as client:
            yield Local(inside, core, client), server
        await core.abandon()


async def test_limits_are_listed_as_exact_decimals_before_any_request(local: tuple[Local, EmbeddedRedis]) -> None:
    place, _ = local
    await place.tenant("acme", "scoped")
    _, told = await place.get("/v1/limits/acme")
    rows = {row["limit"]: row for row in told["limits"]}
    assert list(rows) == ["credits", "api_calls", "per_key", "per_user"]
    assert (rows["credits"]["included"], rows["credits"]["used"], rows["credits"]["confirmed"]) == (
        Decimal("2.5"),
        0,
        True,
    )
    assert (rows["per_key"]["used"], rows["per_key"]["scope"]) == (None, "key")
    for _ in range(3):
        assert (await place.inside.ask(place.core, "acme", "/dear")).allow
    _, told = await place.get("/v1/limits/acme")
    assert told["limits"][0]["used"] == Decimal("0.75")
    told = await place.explain(tenant="acme", path="/dear")
    assert told["costs"] == {"credits": Decimal("0.25")}
    assert [limit["cost"] for limit in told["limits"]] == [Decimal("0.25")]


async def test_a_request_is_explained_for_a_key_and_a_user(local: tuple[Local, EmbeddedRedis]) -> None:
    place, _ = local
    await place.tenant("acme", "scoped")
    store = place.inside.store
    await store.put_key(KEY, "acme")
    told = await place.explain(tenant="acme", key=KEY, user="ann")
    assert [limit["limit"] for limit in told["limits"]] == ["api_calls", f"per_key:{KEY[:16]}", "per_user:ann"]
    assert [limit["limit"] for limit in (await place.explain(tenant="acme"))["limits"]] == ["api_calls"]
    by_key = await place.explain(key=KEY)
    assert (by_key["tenant"], by_key["allow"]) == ("acme", True)
    assert "SHA" not in str(await place.explain(headers={"x-api-key": "secret", "x-user-id": "ann"}))
    assert "key" in (await place.explain(key="secret"))["detail"]
    assert "send one of the two" in (await place.explain(tenant="acme", headers={"x-api-key": "secret"}))["detail"]


async def test_what_is_explained_is_what_the_listener_says(local: tuple[Local, EmbeddedRedis]) -> None:
    place, _ = local
    await place.tenant("acme", "spent")
    decision = await place.inside.ask(place.core, "acme")
    told = await place.explain(tenant="acme")
    assert (told["status"], told["reason"], told["retry_after"], told["violated"]) == (
        decision.status,
        decision.reason,
        decision.retry_after_s,
        list(decision.violated),
    )


async def test_a_parent_in_shadow_denies_nothing_in_the_explanation_either(local: tuple[Local, EmbeddedRedis]) -> None:
    place, _ = local
    await place.tenant("house", "shadowing")
    await place.tenant("member", "large", parent="house")
    told = await place.explain(tenant="member")
    assert (told["allow"], told["reason"], told["quota_status"]) == (True, "shadow", "shadow")
    decision = await place.inside.ask(place.core, "member")
    assert (decision.allow, decision.reason, decision.quota_status) == (True, "shadow", "shadow")


async def test_nobody_is_called_unknown_while_redis_cannot_say(local: tuple[Local, EmbeddedRedis]) -> None:
    place, server = local
    assert (await place.explain(tenant="nobody"))["reason"] == "tenant_unknown"
    assert (await place.get("/v1/limits/nobody"))[0] == 404
    await server.stop()
    told = await place.explain(tenant="acme")
    assert (told["status"], told["reason"], told["limits"]) == (503, "store_unavailable", [])
    assert (await place.explain(key=KEY))["reason"] == "store_unavailable"
    assert (await place.inside.ask(place.core, "acme")).reason == "store_unavailable"
    assert (await place.get("/v1/limits/acme"))[0] == 503


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/explain", 405)])
async def test_a_wrong_path_or_method_is_a_problem(
    local: tuple[Local, EmbeddedRedis], method: str, path: str, status: int
) -> None:
    place, _ = local
    found, problem = await place.get(path, method)
    assert (found, problem["status"]) == (status, status)
    assert path in problem["detail"]


async def test_a_body_that_is_too_large_is_413(local: tuple[Local, EmbeddedRedis]) -> None:
    assert (await local[0].send(b'{"path": "/' + b"x" * BODY_BYTES_MAX + b'"}'))[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b'{"path": "\xc3"}',
        b"[" * 60_000,
        b'{"path": "\\ud800"}',
        b'{"tenant": "a\\u0000b"}',
        b'{"user": " x"}',
        b'{"tenant": "' + b"x" * 129 + b'"}',
        b'{"key": "00"}',
        b'{"what": 1}',
    ],
)
async def test_a_body_that_means_nothing_is_400(local: tuple[Local, EmbeddedRedis], body: bytes) -> None:
    status, told = await local[0].send(body)
    assert (status, told["status"]) == (400, 400)


async def test_a_tenant_that_can_be_none_is_not_looked_up(local: tuple[Local, EmbeddedRedis]) -> None:
    for name in ("a%00b", "x" * 129, "%20", "%e2%80%ae"):
        assert (await local[0].get(f"/v1/limits/{name}"))[0] == 404
    assert not local[0].core.directory.accounts
