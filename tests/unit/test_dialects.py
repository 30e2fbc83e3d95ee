from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sidecar.catalogue.model import Catalogue, IdentityRule, RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.fast_path import Check
from sidecar.errors import StoreUnavailable
from sidecar.gateway.answers import AnswerWriter
from sidecar.gateway.counters import GatewayCounters
from sidecar.gateway.gate import ROUTES_MAX, Gate, Last, Question
from sidecar.gateway.identity import Found

ALLOWED = Decision(allow=True, status=200, reason="allowed")
ROUTES = (
    RouteRule(name="run", methods=("POST",), host="api.example.com", path="/v1/run"),
    RouteRule(name="read", path="/v1/**"),
    RouteRule(name="rest"),
)


class Recorder:
    """An enforcer that keeps what it was asked and gives a prepared answer."""

    def __init__(
        self, answer: Decision | Exception | None = ALLOWED, *, routes: tuple[RouteRule, ...] = ROUTES
    ) -> None:
        rules = (IdentityRule(kind="header", header="x-tenant-id"),)
        self.in_force: Policy | None = Policy(
            Catalogue(metrics={}, plans={}, routes=routes, identity=rules), RouteTable(routes), 1
        )
        self.answer = answer
        self.asked: list[tuple[Identity, str, str]] = []

    @property
    def policy(self) -> Policy:
        if self.in_force is None:
            raise StoreUnavailable
        return self.in_force

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        self.asked.append((identity, route.name, request_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def allow_known(self, check: Check, request_id: bytes) -> None:
        """Leave everything to ``decide``."""

    def get_to_know(self, check: Check) -> None:
        """Forget it."""

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        return self.decide(identity, route, request_id) or ALLOWED


def gate_of(enforcer: Recorder, *secrets: bytes) -> Gate:
    return Gate(enforcer, AnswerWriter(lambda: 1_800_000_000), GatewayCounters(), secrets)


def asked(url: bytes, found: Found, method: bytes = b"GET") -> str:
    """The route under which a check was decided."""
    enforcer = Recorder()
    gate = gate_of(enforcer)
    answer = gate.decide(gate.index, method, url, found)
    assert isinstance(answer, bytes)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    return enforcer.asked[0][1]


def status(answer: bytes | Question) -> int:
    assert isinstance(answer, bytes)
    return int(answer[9:12])


def original(prefix: str, method: bytes, uri: bytes, host: bytes = b"") -> Found:
    uri_header = b"x-original-uri" if prefix == "original" else b"x-forwarded-uri"
    found = {f"x-{prefix}-method".encode(): method, uri_header: uri, b"host": b"sidecar:9000"}
    return found | ({f"x-{prefix}-host".encode(): host} if host else {})


def test_envoy_asks_about_its_own_method_host_and_path() -> None:
    assert asked(b"/envoy/v1/run", {b"host": b"api.example.com"}, b"POST") == "run"
    assert asked(b"/envoy/v1/run?a=/b", {b"host": b"api.example.com:443"}, b"POST") == "run"
    assert asked(b"/envoy/v1/run", {b"host": b"other.example.com"}, b"POST") == "read"
    assert asked(b"/envoy/v1/run", {b"host": b"api.example.com"}, b"PURGE") == "read"
    assert asked(b"/envoy/", {b"host": b"api.example.com"}) == "rest"
    assert asked(b"/envoy//v1/../v1/%72un", {b"host": b"API.example.com"}, b"POST") == "run"


@pytest.mark.parametrize(
    ("url", "prefix"), [(b"/nginx", "original"), (b"/nginx?x", "original"), (b"/forward", "forwarded")]
)
def test_the_others_name_the_original_in_headers(url: bytes, prefix: str) -> None:
    assert asked(url, original(prefix, b"POST", b"/v1/run?x=y", b"api.example.com")) == "run"
    assert asked(url, original(prefix, b"POST", b"/v1/run")) == "read"
    assert asked(url, original(prefix, b"POST", b"http://api.example.com/v1/run")) == "run"
    assert asked(url, original(prefix, b"POST", b"/envoy/v1/run", b"api.example.com")) == "rest"


def test_a_route_that_was_seen_through_one_gateway_does_not_leak_into_another() -> None:
    enforcer = Recorder()
    gate = gate_of(enforcer)
    gate.decide(gate.index, b"POST", b"/envoy/v1/run", {b"host": b"api.example.com"})
    gate.decide(gate.index, b"GET", b"/nginx", original("original", b"POST", b"/envoy/v1/run", b"api.example.com"))
    gate.decide(gate.index, b"GET", b"/forward", original("forwarded", b"POST", b"/v1/run", b"api.example.com"))
    assert [route for _, route, _ in enforcer.asked] == ["run", "rest", "run"]


@pytest.mark.parametrize(
    ("change"),
    [
        lambda found: found.pop(b"x-original-uri"),
        lambda found: found.pop(b"x-original-method"),
        lambda found: found.update({b"x-original-method": b"GET /"}),
        lambda found: found.update({b"x-original-method": b"G" * 33}),
        lambda found: found.update({b"x-original-host": b"api.example.com, other"}),
        lambda found: found.update({b":fault": b"request"}),
    ],
)
def test_an_improper_check_stops_the_request_at_nginx_too(change: Callable[[Found], object]) -> None:
    found = original("original", b"GET", b"/v1/run", b"api.example.com")
    change(found)
    enforcer = Recorder()
    gate = gate_of(enforcer)
    answer = gate.decide(gate.index, b"GET", b"/nginx", found)
    assert isinstance(answer, Last)
    assert status(answer) == 403
    assert bytes(answer).count(b"\r\nx-quota-http-status: 400\r\n") == 1
    assert enforcer.asked == []
    assert gate.counters.malformed == 1


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, b"X-Forwarded-Uri is missing"),
        ({b"x-forwarded-uri": b"/v1"}, b"X-Forwarded-Method is missing"),
        ({b"x-forwarded-uri": b"/v1", b"x-forwarded-method": b"G T"}, b"X-Forwarded-Method is no method"),
        (
            {b"x-forwarded-uri": b"/v1", b"x-forwarded-method": b"GET", b"x-forwarded-host": b"a, b"},
            b"X-Forwarded-Host is no host",
        ),
        (
            {b"x-forwarded-uri": b"/v1", b"x-forwarded-method": b"GET", b":fault": b"request"},
            b"a header that describes it is repeated",
        ),
    ],
)
def test_an_improper_check_is_400_elsewhere_and_names_the_header(found: Found, told: bytes) -> None:
    gate = gate_of(Recorder())
    answer = gate.decide(gate.index, b"GET", b"/forward", {b"host": b"a"} | found)
    assert isinstance(answer, Last)
    assert status(answer) == 400
    assert b"not described properly: " + told + b"." in bytes(answer)


@pytest.mark.parametrize(
    "url", [b"/", b"/envoy", b"/envoyx/", b"/nginx/", b"/forwarded", b"*", b"http://x/envoy/", b"/NGINX"]
)
def test_other_paths_are_404(url: bytes) -> None:
    gate = gate_of(Recorder())
    assert status(gate.decide(gate.index, b"GET", url, {})) == 404
    assert gate.counters.unknown_paths == 1


@pytest.mark.parametrize(("real", "at_nginx"), [(401, 401), (402, 403), (403, 403), (429, 403), (503, 403)])
def test_a_denial_is_the_real_status_except_at_nginx(real: int, at_nginx: int) -> None:
    denial = Decision(allow=False, status=real, reason="limit_reached", quota_status="denied")
    gate = gate_of(Recorder(denial))
    assert status(gate.decide(gate.index, b"GET", b"/envoy/", {})) == real
    assert status(gate.decide(gate.index, b"GET", b"/forward", original("forwarded", b"GET", b"/"))) == real
    answer = gate.decide(gate.index, b"GET", b"/nginx", original("original", b"GET", b"/"))
    assert status(answer) == at_nginx
    assert isinstance(answer, bytes)
    assert f"\r\nx-quota-http-status: {real}\r\n".encode() in answer


def test_an_identity_conflict_is_decided_without_asking() -> None:
    enforcer = Recorder()
    gate = gate_of(enforcer)
    assert status(gate.decide(gate.index, b"GET", b"/envoy/", {b":fault": b"identity"})) == 401
    assert status(gate.decide(gate.index, b"GET", b"/envoy/", {b"x-tenant-id": b"a,b"})) == 401
    assert enforcer.asked == []
    assert gate.counters.decisions["envoy"]["identity_conflict"] == 2


@pytest.mark.parametrize(("sent", "kept"), [(b"abc", "abc"), (b"", ""), (b"x" * 128, "x" * 128), (b"x" * 129, "")])
def test_a_request_id_is_bounded(sent: bytes, kept: str) -> None:
    enforcer = Recorder()
    gate = gate_of(enforcer)
    gate.decide(gate.index, b"GET", b"/envoy/", {b"x-request-id": sent})
    assert enforcer.asked[0][2] == kept


def test_a_decision_that_raises_is_500_everywhere() -> None:
    gate = gate_of(Recorder(RuntimeError("bug")))
    for url in (b"/envoy/", b"/nginx", b"/forward"):
        found = original("original", b"GET", b"/") | original("forwarded", b"GET", b"/")
        assert status(gate.decide(gate.index, b"GET", url, found)) == 500
    assert gate.counters.failures == 3


def test_a_waiting_decision_that_raises_is_500() -> None:
    enforcer = Recorder(None)
    gate = gate_of(enforcer)
    question = gate.decide(gate.index, b"GET", b"/envoy/", {})
    assert isinstance(question, Question)
    assert status(asyncio.run(gate.decide_waiting(question))) == 200
    enforcer.answer = RuntimeError("bug")
    assert status(asyncio.run(gate.decide_waiting(question))) == 500


def test_without_a_catalogue_the_answer_is_503_until_there_is_one() -> None:
    enforcer = Recorder()
    policy, enforcer.in_force = enforcer.in_force, None
    gate = gate_of(enforcer)
    found = {b"x-tenant-id": b"acme"}
    assert status(gate.decide(gate.index, b"GET", b"/envoy/", found)) == 503
    enforcer.in_force = policy
    assert status(gate.decide(gate.index, b"GET", b"/envoy/", {})) == 503
    assert status(gate.decide(gate.index, b"GET", b"/envoy/", found)) == 200
    assert enforcer.asked == [(Identity("acme"), "rest", "")]


def test_another_catalogue_is_used_from_the_next_request_on() -> None:
    enforcer = Recorder()
    gate = gate_of(enforcer)
    gate.decide(gate.index, b"GET", b"/envoy/v1/x", {})
    enforcer.in_force = Recorder(routes=(RouteRule(name="new"),)).in_force
    gate.decide(gate.index, b"GET", b"/envoy/v1/x", {})
    assert [route for _, route, _ in enforcer.asked] == ["read", "new"]


def test_the_memo_of_routes_is_bounded() -> None:
    gate = gate_of(Recorder())
    for number in range(ROUTES_MAX + 50):
        gate.decide(gate.index, b"GET", b"/envoy/v1/%d" % number, {})
    gate.decide(gate.index, b"GET", b"/envoy/" + b"x" * 300, {})
    assert ROUTES_MAX * 3 // 4 < len(gate._routes) <= ROUTES_MAX


def test_any_of_the_secrets_admits() -> None:
    gate = gate_of(Recorder(), b"old-secret", b"new-secret")
    assert gate.admits({b"x-quota-secret": b"old-secret"})
    assert gate.admits({b"x-quota-secret": b"new-secret"})
    assert not gate.admits({b"x-quota-secret": b"new-secre"})
    assert not gate.admits({})
    assert gate.counters.secrets_refused == 2


def test_sampled_latencies_stand_for_all_decisions() -> None:
    gate = gate_of(Recorder())
    for _ in range(160):
        gate.decide(gate.index, b"GET", b"/envoy/", {})
    assert sum(gate.counters.latency) == 160
    assert gate.counters.decisions["envoy"]["allowed"] == 160
    reading = gate.counters.reading()
    assert sum(reading["sidecar_decision_seconds"][()][:-1]) == 160
    assert reading["sidecar_decisions_total"]["allowed", "envoy"] == [160]
