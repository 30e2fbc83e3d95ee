"""What clients and applications see through real gateways, for every decision the sidecar can make."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.gateways import GATEWAYS, Counts, Gateway
from tests.e2e.scripted import Script, ScriptedSidecar
from tests.servers.upstream import Upstream


async def test_an_allowed_request_tells_the_application_who_it_is_for(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    async with client.get(f"{gateway.url}/v1/things?page=2", headers={"x-api-key": "good"}) as answer:
        assert answer.status == 200
    received = upstream.last()
    assert received.target == "/v1/things?page=2"
    assert received.header("x-quota-tenant") == "acme"
    assert received.header("x-quota-plan") == "free"
    assert received.header("x-quota-status") == "ok"
    assert received.header("x-quota-feature-support") == "email"
    assert received.header("x-quota-feature-llm-provider") == "big"
    assert received.header("x-request-id") == script.asked[-1].request_id == answer.headers["x-request-id"]


async def test_an_allowed_request_tells_the_client_its_limit_once_and_nothing_else(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    async with client.get(gateway.url, headers={"x-api-key": "good"}) as answer:
        pass
    # The application claims all three as well; only the sidecar is heard.
    assert answer.headers.getall("ratelimit") == ['"api_calls";r=40;t=86400']
    assert answer.headers.getall("ratelimit-policy") == ['"api_calls";q=100;w=2592000']
    assert answer.headers.getall("x-quota-status") == ["ok"]
    assert "retry-after" not in answer.headers
    assert {name.lower() for name in answer.headers if name.lower().startswith("x-quota")} == {"x-quota-status"}


async def test_beyond_a_soft_cap_the_request_passes_and_says_so(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    async with client.get(gateway.url, headers={"x-api-key": "soft"}) as answer:
        assert answer.status == 200
    assert answer.headers["x-quota-status"] == "grace"
    assert upstream.last().header("x-quota-status") == "grace"


async def test_at_the_limit_the_client_gets_429_with_everything_it_needs(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    async with client.get(f"{gateway.url}/v1/things", headers={"x-api-key": "over"}) as answer:
        body = await answer.json(content_type="application/problem+json")
    assert answer.status == 429
    # The wait is for the end of the period, spread a little for a long one.
    assert 86_400 <= int(answer.headers["retry-after"]) <= 86_400 + 4_320
    assert answer.headers.getall("ratelimit") == ['"api_calls";r=0;t=86400']
    assert answer.headers["ratelimit-policy"] == '"api_calls";q=100;w=2592000'
    assert answer.headers["x-quota-status"] == "denied"
    assert body["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert (body["status"], body["limit"], body["used"]) == (429, 100, 100)
    assert body["violated-policies"] == ["api_calls"]
    assert body["upgrade-url"] == 'https://example.com/upgrade?from="acme"'
    assert body["request-id"] == answer.headers["x-request-id"] == script.asked[-1].request_id
    assert upstream.received == []


@pytest.mark.parametrize(
    ("key", "status"), [("unpaid", 402), ("lacking", 403), ("nobody", 401), (None, 401), ("closed", 503)]
)
async def test_every_denial_reaches_the_client_as_what_it_is(
    gateway: Gateway,
    script: Script,
    upstream: Upstream,
    client: aiohttp.ClientSession,
    key: str | None,
    status: int,
) -> None:
    async with client.get(gateway.url, headers={} if key is None else {"x-api-key": key}) as answer:
        body = await answer.json(content_type="application/problem+json")
    assert answer.status == body["status"] == status
    assert upstream.received == []
    assert len(script.asked) == 1
    if status == 401:
        assert answer.headers.getall("www-authenticate") == ['ApiKey realm="api"']
    if status == 503:
        assert answer.headers["retry-after"] == "1"
    # To Envoy every 5xx is a sidecar that is away, so it answers 503 by itself.
    if (gateway.kind, status) != ("envoy", 503):
        assert answer.headers["x-quota-status"] == "denied"
        assert "reason" in body


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_is_asked_about_and_passed_on(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession, method: str
) -> None:
    async with client.request(method, f"{gateway.url}/v1/dear/x", headers={"x-api-key": "good"}) as answer:
        assert answer.status == 200
    assert [asked.route for asked in script.asked] == ["dear"]
    assert [received.method for received in upstream.received] == [method]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_reaches_the_application_whole(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession, *, chunked: bool
) -> None:
    body = json.dumps(["a line of text"] * 40_000).encode()

    async def parts() -> object:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]

    async with client.post(gateway.url, data=parts() if chunked else body, headers={"x-api-key": "good"}) as answer:
        assert answer.status == 200
    assert upstream.last().body == body
    assert len(script.asked) == 1


async def test_a_denied_post_is_answered_although_nobody_reads_its_body(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    async with client.post(gateway.url, data=b"x" * 30_000, headers={"x-api-key": "over"}) as answer:
        assert answer.status == 429
        assert (await answer.json(content_type="application/problem+json"))["status"] == 429
    assert upstream.received == []


async def test_checks_share_few_connections(
    gateway: Gateway,
    script: Script,
    sidecar: ScriptedSidecar,
    upstream: Upstream,
    client: aiohttp.ClientSession,
) -> None:
    for _ in range(50):
        async with client.get(gateway.url, headers={"x-api-key": "good"}) as answer:
            assert answer.status == 200
    # They are still open, a few for each worker of the gateway.
    assert 1 <= sidecar.connections <= 8


async def test_the_applications_own_errors_pass_without_a_second_check(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    for status in (403, 429, 500, 503):
        async with client.get(f"{gateway.url}/status/{status}", headers={"x-api-key": "good"}) as answer:
            assert answer.status == status
            assert answer.content_type == "application/json", "the application's own body"
            assert answer.headers["x-quota-status"] == "ok"
    assert len(script.asked) == 4


@pytest.mark.parametrize("kind", GATEWAYS)
async def test_the_gateways_own_counters_agree_with_the_sidecar(
    kind: str, sidecar: ScriptedSidecar, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    script = sidecar.script
    script.reset()
    gateway = GATEWAYS[kind](tmp_path, authz_port=sidecar.port, upstream_port=upstream.port)
    gateway.start()
    try:
        keys = ["good"] * 7 + ["soft"] * 3 + ["over"] * 5 + ["unpaid", "lacking", "nobody"]
        for key in keys:
            async with client.get(gateway.url, headers={"x-api-key": key}):
                pass
        assert gateway.counts(len(keys)) == Counts(allowed=10, denied=8, away=0)
        assert len(script.asked) == len(keys)
        assert len(upstream.received) == 10
        assert [line["request_id"] for line in gateway.log()] == [asked.request_id for asked in script.asked]
    finally:
        gateway.stop()
