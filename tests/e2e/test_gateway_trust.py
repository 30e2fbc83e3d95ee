"""What clients say about themselves is not believed: not by the sidecar, not by the application."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from tests.e2e.gateways import GATEWAYS, ROOT, Gateway
from tests.e2e.scripted import Script, ScriptedSidecar
from tests.servers.upstream import Upstream

FORGED = "forged-by-the-client"
SECRET = "a-long-random-secret"
# The line of the guide, the line it goes below, and its file.
SECRET_LINES = {
    "envoy": (
        f'authorization_request: {{ headers_to_add: [{{ key: x-quota-secret, value: "{SECRET}" }}] }}',
        "path_prefix: /envoy\n                       ",
        "envoy.yaml",
    ),
    "nginx": (
        f'proxy_set_header X-Quota-Secret "{SECRET}";',
        "proxy_pass_request_headers off;",
        "quota-server.conf",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        # Who is asking, and spellings that some server takes for the same.
        "x-tenant-id",
        "X-TENANT-ID",
        "x-tenant",
        "X_Tenant_Id",
        "x_tenant-id",
        "x.tenant.id",
        "x-tenant.id",
        "x~tenant~id",
        "x-user-id",
        "x.user.id",
        "X_User_Id",
        "x-jwt-payload",
        "x-forwarded-client-cert",
        "x.api.key",
        "X_Api_Key",
        # What the sidecar says.
        "x-quota-tenant",
        "x-quota-plan",
        "x-quota-status",
        "x-quota-feature-support",
        "x-quota-feature-llm-provider",
        "x-quota-http-status",
        "x-quota-problem",
        "x-quota-secret",
        "x.quota.tenant",
        "x-quota.plan",
        "X_Quota_Tenant",
        "ratelimit",
        "ratelimit-policy",
        # What makes a repeated check count once, and what another gateway's dialect would say.
        "x-request-id",
        "x.request.id",
        "x-original-uri",
        "x-original-method",
        "x-original-host",
        "x-rewrite-url",
        "x-http-method-override",
    ],
)
async def test_a_forged_header_reaches_neither_the_sidecar_nor_the_application(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession, name: str
) -> None:
    async with client.get(f"{gateway.url}/v1/dear/x", headers={"x-api-key": "soft", name: FORGED}) as answer:
        pass
    if answer.status == 400:
        assert "_" in name, "only names with underscores are refused outright"
        assert script.asked == []
        assert upstream.received == []
        return
    assert answer.status == 200
    (asked,) = script.asked
    assert asked.identity.tenant is None
    assert asked.identity.user == ""
    assert asked.route == "dear"
    assert asked.request_id not in ("", FORGED)
    assert FORGED not in dict(upstream.last().headers).values()
    assert FORGED not in answer.headers.values()


async def test_a_forged_header_does_not_stand_in_for_a_key(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    async with client.get(gateway.url, headers={"x-tenant-id": "acme", "x-quota-tenant": "acme"}) as answer:
        assert answer.status == 401
    assert upstream.received == []


async def test_of_two_keys_the_application_sees_the_one_that_was_checked(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    headers = CIMultiDict([("x-api-key", "good"), ("x-api-key", "over")])
    async with client.get(gateway.url, headers=headers) as answer:
        pass
    if answer.status == 200:
        assert upstream.last().header("x-api-key") == "good"
    else:
        assert answer.status == 401
        assert upstream.received == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/dear/x",
        "//v1//dear/x",
        "/v1/./dear/x",
        "/v1/cheap/../dear/x",
        "/v1/cheap/%2e%2e/dear/x",
        "/v1/%64ear/x",
        "/v1/dear%2fx",
        "/v1/dear\\x",
        "/v1/dear/x?page=/../../cheap",
        "/v1/dear/x;p=1",
    ],
)
async def test_no_spelling_of_a_path_escapes_its_rule(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession, path: str
) -> None:
    url = URL(gateway.url + path, encoded=True)
    async with client.get(url, headers={"x-api-key": "good"}, allow_redirects=False) as answer:
        pass
    if answer.status == 400:
        assert upstream.received == []
        return
    assert answer.status == 200
    assert [asked.route for asked in script.asked] == ["dear"]


async def test_the_same_client_address_is_no_reason_to_believe_it(
    gateway: Gateway, script: Script, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    """Loopback and private addresses are "internal" to Envoy by default, and their ids and instructions are kept."""
    headers = {"x-api-key": "good", "x-forwarded-for": "10.0.0.1", "x-request-id": FORGED, "x-envoy-max-retries": "9"}
    for _ in range(2):
        async with client.get(gateway.url, headers=headers) as answer:
            assert answer.status == 200
    assert len({asked.request_id for asked in script.asked}) == 2
    assert FORGED not in {asked.request_id for asked in script.asked}
    assert "x-envoy-max-retries" not in upstream.last().names() or gateway.kind == "nginx"


@pytest.mark.parametrize("kind", GATEWAYS)
async def test_a_sidecar_that_asks_for_a_secret_takes_it_from_the_gateway_alone(
    kind: str, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    line, below, file = SECRET_LINES[kind]
    assert line in (ROOT / "docs" / "gateways" / f"{kind}.md").read_text()
    with ScriptedSidecar(secret=SECRET) as guarded:
        for knows in (False, True):
            folder = tmp_path / str(knows)
            folder.mkdir()
            gateway = GATEWAYS[kind](folder, authz_port=guarded.port, upstream_port=upstream.port)
            gateway.start(replace={file: {below: f"{below} {line}"}} if knows else {})
            try:
                upstream.received.clear()
                async with client.get(gateway.url, headers={"x-api-key": "good", "x-quota-secret": SECRET}) as answer:
                    assert answer.status == (200 if knows else 403)
                assert len(upstream.received) == knows
                assert all("x-quota-secret" not in received.names() for received in upstream.received)
            finally:
                gateway.stop()
