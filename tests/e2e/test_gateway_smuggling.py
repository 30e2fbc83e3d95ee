"""No request reaches the application but as the one that was checked: its own check, its own path, its own key."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
from urllib.parse import unquote

import pytest

from tests.e2e.gateways import Gateway
from tests.e2e.scripted import Asked, ScriptedSidecar
from tests.e2e.smuggling import CORPUS, get
from tests.e2e.spoken import spoken
from tests.servers.upstream import Received, Upstream

AT_ONCE = 16
# What the sidecar or the application trusts; clients never say it, nor do gateways here on their own.
NEVER = {
    *("x-tenant", "x-tenant-id", "x-user", "x-user-id", "x-jwt-payload", "x-forwarded-client-cert"),
    *("x-quota-secret", "x-quota-problem", "x-quota-http-status", "x-original-uri", "x-original-url"),
    *("x-original-method", "x-original-host", "x-rewrite-url", "x-http-method-override"),
}
SAID = {"x-quota-tenant", "x-quota-plan", "x-quota-status"}  # by the sidecar about every request here
KEYS = {hashlib.sha256(key.encode()).hexdigest(): key for key in ("soft", "good")}


class Outcome:
    """What became of one connection's bytes: the checks, and what the application got."""

    def __init__(self, answer: bytes, asked: list[Asked], received: list[Received]) -> None:
        self.answer = answer
        self.asked = {check.request_id: check for check in asked}
        self.checks = len(asked)
        self.received = received


async def outcome(gateway: Gateway, sidecar: ScriptedSidecar, application: Upstream, raw: bytes) -> Outcome:
    sidecar.script.reset()
    application.received.clear()
    answer = await spoken(gateway.port, raw)
    return Outcome(answer, list(sidecar.script.asked), list(application.received))


def dear(target: str) -> bool:
    """Whether an application that decodes a path once would say it falls under the dear rule."""
    path = target.partition("?")[0].partition("#")[0]
    if "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    path = posixpath.normpath("/" + unquote(path).lstrip("/"))
    return f"{path}/".startswith("/v1/dear/")


@pytest.mark.parametrize("name", CORPUS)
async def test_what_reaches_the_application_was_checked_as_it_is(
    gateway: Gateway, sidecar: ScriptedSidecar, application: Upstream, name: str
) -> None:
    found = await outcome(gateway, sidecar, application, CORPUS[name])
    assert len(found.received) <= found.checks, "more requests than checks"
    for received in found.received:
        request_id = received.header("x-request-id")
        assert request_id in found.asked, "a request without a check of its own"
        check = found.asked.pop(request_id)
        assert check.identity.tenant is None, "a tenant that a client named"
        assert KEYS.get(check.identity.key or "") == received.header("x-api-key")
        assert check.route == "dear" or not dear(received.target), received.target
        plain = {known.replace("_", "-").replace(".", "-") for known in received.names()}
        assert not NEVER & plain
        # Nginx drops headers name by name, so it lets through what neither we nor the application ever asked for.
        unknown = {"x-quota-anything-new"} if gateway.kind == "nginx" else set()
        assert {known for known in plain if known.startswith("x-quota-")} - unknown == SAID
        assert [received.header(known) for known in sorted(SAID)] == ["free", "grace", "acme"], "what the check said"
        # Nginx has no instructions under these names; Envoy writes its own after it has dropped the client's.
        assert gateway.kind == "nginx" or not {"x-envoy-max-retries", "x-envoy-internal"} & plain


async def test_afterwards_a_good_client_is_served(
    gateway: Gateway, sidecar: ScriptedSidecar, application: Upstream
) -> None:
    """Many at once, ahead of and between good requests: nobody's connection to the application is left out of step."""
    sending = asyncio.Semaphore(AT_ONCE)

    async def send(raw: bytes) -> bytes:
        async with sending:
            return await spoken(gateway.port, raw)

    good = get("/v1/cheap/good")
    answers = await asyncio.gather(*(send(raw) for bad in CORPUS.values() for raw in (bad, good)))
    assert all(answer.startswith(b"HTTP/1.1 200") and b"/v1/cheap/good" in answer for answer in answers[1::2])
