"""A gateway may ask twice for one request; it must do so under one id, by which the sidecar counts once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.gateways import Envoy, Nginx
from tests.e2e.scripted import ScriptedSidecar
from tests.servers.upstream import Upstream

GOOD = {"x-api-key": "good"}

# Ways in which Nginx starts a request over, as applications are really set up.
LOCATIONS = """
        location /try/ {
            include quota-application.conf;
            try_files /there/is/no/such/file @again;
        }
        location @again {
            include quota-application.conf;
            proxy_pass http://application;
        }
        location /rewritten/ {
            rewrite ^/rewritten/(.*) /v1/$1 last;
        }
        location /status/502 {
            include quota-application.conf;
            proxy_pass http://application;
            proxy_intercept_errors on;
            error_page 502 = /v1/fallback;
        }
        location = /inside/x {
            include quota-application.conf;
            proxy_pass http://application/status/502;
            proxy_intercept_errors on;
            error_page 502 = @inside;
        }
        location @inside {
            auth_request off;
            include quota-application.conf;
            proxy_pass http://application;
        }
"""


@pytest.fixture
def sidecar() -> Iterator[ScriptedSidecar]:
    with ScriptedSidecar() as scripted:
        yield scripted


@pytest.fixture
def nginx(sidecar: ScriptedSidecar, upstream: Upstream, tmp_path: Path) -> Iterator[Nginx]:
    gateway = Nginx(tmp_path, authz_port=sidecar.port, upstream_port=upstream.port)
    marker = "        # A location that is only reached from inside"
    gateway.start(replace={"nginx.conf": {marker: LOCATIONS + marker}})
    yield gateway
    gateway.stop()


@pytest.mark.parametrize(
    ("path", "arrives", "checks"),
    [
        ("/try/x", "/try/x", 2),
        ("/rewritten/x", "/v1/x", 1),
        ("/status/502", "/v1/fallback", 2),
        # "auth_request off" where only internal redirects lead: not even asked again.
        ("/inside/x", "/inside/x", 1),
    ],
)
async def test_nginx_keeps_one_id_through_internal_redirects(
    nginx: Nginx,
    sidecar: ScriptedSidecar,
    upstream: Upstream,
    client: aiohttp.ClientSession,
    path: str,
    arrives: str,
    checks: int,
) -> None:
    async with client.get(nginx.url + path, headers=GOOD) as answer:
        assert answer.status == 200
    asked = sidecar.script.asked
    assert len(asked) == checks
    assert {one.request_id for one in asked} == {answer.headers["x-request-id"]}
    assert upstream.last().target == arrives
    assert upstream.last().header("x-request-id") == answer.headers["x-request-id"]
    assert upstream.last().header("x-quota-tenant") == "acme"


async def test_nginx_does_not_ask_about_its_own_error_page(
    nginx: Nginx, sidecar: ScriptedSidecar, application: Upstream, client: aiohttp.ClientSession
) -> None:
    application.stop()
    try:
        async with client.get(nginx.url, headers=GOOD) as answer:
            problem = await answer.json(content_type="application/problem+json")
        assert answer.status == problem["status"] == 502
        assert answer.headers["x-quota-status"] == "ok", "it was counted, and the client is told where it stands"
        assert len(sidecar.script.asked) == 1
    finally:
        application.start()


async def test_envoy_asks_again_under_the_same_id_when_a_check_is_lost(
    sidecar: ScriptedSidecar, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    gateway = Envoy(tmp_path, authz_port=sidecar.port, upstream_port=upstream.port)
    gateway.start()
    try:
        sidecar.script.hold = 1
        async with client.get(gateway.url, headers=GOOD) as answer:
            assert answer.status == 200
        assert [asked.request_id for asked in sidecar.script.asked] == [answer.headers["x-request-id"]] * 2
        assert gateway.counts(1).allowed == 1
    finally:
        gateway.stop()


async def test_envoy_keeps_one_id_through_internal_redirects(
    sidecar: ScriptedSidecar, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    route = "route: { cluster: application, timeout: 60s }"
    redirecting = f"{route[:-2]}, internal_redirect_policy: {{}} }}"
    gateway = Envoy(tmp_path, authz_port=sidecar.port, upstream_port=upstream.port)
    gateway.start(replace={"envoy.yaml": {route: redirecting}})
    try:
        async with client.get(f"{gateway.url}/redirect?to=/v1/after", headers=GOOD) as answer:
            assert answer.status == 200
        assert [asked.request_id for asked in sidecar.script.asked] == [answer.headers["x-request-id"]] * 2
        assert [received.target for received in upstream.received] == ["/redirect?to=/v1/after", "/v1/after"]
        assert upstream.last().header("x-quota-tenant") == "acme"
    finally:
        gateway.stop()
