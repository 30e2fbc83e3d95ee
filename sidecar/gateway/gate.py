"""From the parsed head of a check to the bytes of its answer.

Guarantees: never raises. What is wrong with the check is refused, what fails in here is answered 500 (an error to
            every gateway, for which each has a failure mode) and never takes the connection or the process along.
"""

from __future__ import annotations

import hmac
from bisect import bisect_left
from time import perf_counter_ns
from typing import Protocol

from msgspec import Struct

from sidecar.catalogue.model import Catalogue, RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.enforcement.decision import Decision, Identity
from sidecar.errors import StoreUnavailable
from sidecar.gateway.answers import REQUEST_ID_BYTES_MAX, AnswerWriter, refused
from sidecar.gateway.counters import LATENCY_NS, GatewayCounters
from sidecar.gateway.dialects import NGINX, Dialect, dialect_of, original
from sidecar.gateway.headers import FAULT, IDENTITY_FAULT, REQUEST_ID, SECRET, HeaderIndex
from sidecar.gateway.identity import CONFLICT, Found


class Enforcer(Protocol):
    """What the gateway asks; enforcement.enforcer is the real one."""

    @property
    def policy(self) -> Policy:
        """The catalogue in force; swapped in one assignment."""

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        """The decision from memory, None when it must wait for the store."""

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        """The same, after waiting at most 50 ms; never raises."""


class Last(bytes):
    """An answer after which the connection is closed."""


class Question(Struct, frozen=True):
    """A check whose decision has to wait for the store."""

    identity: Identity
    route: RouteRule
    request_id: bytes
    dialect: Dialect
    started_ns: int


_IDENTITY_CONFLICT = Decision(allow=False, status=401, reason="identity_conflict", quota_status="denied")
_NO_CATALOGUE = Catalogue(metrics={}, plans={}, routes=(), identity=())
_UNAUTHORIZED = "The header x-quota-secret is missing or wrong."
_UNKNOWN_PATH = refused(404, "Checks go to /envoy/*, /nginx or /forward.")
_NOT_READY = refused(503, "There is no catalogue yet.")
_FAILED = refused(500, "The decision failed.")


class Gate:
    """Decides checks for all connections of one listener. Without secrets every peer is trusted."""

    def __init__(
        self, enforcer: Enforcer, answers: AnswerWriter, counters: GatewayCounters, secrets: tuple[bytes, ...]
    ) -> None:
        self.enforcer = enforcer
        self.policy: Policy | None = None
        self.index = HeaderIndex(_NO_CATALOGUE)
        self.counters = counters
        self.failure: Exception | None = None
        self._answers = answers
        self._secrets = secrets
        self._latency = counters.latency
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of coming requests by the catalogue in force, if there is one yet."""
        try:
            self._adopt(self.enforcer.policy)
        except StoreUnavailable:
            return

    def _adopt(self, policy: Policy) -> None:
        if policy is not self.policy:
            self.index = HeaderIndex(policy.catalogue)
            self.policy = policy

    def decide(self, index: HeaderIndex, method: bytes, url: bytes, found: Found, *, trusted: bool) -> bytes | Question:
        """The answer to a check, or the question that it waits for."""
        started_ns = perf_counter_ns()
        try:
            if not trusted and not self._has_secret(found):
                self.counters.secrets_refused += 1
                return Last(refused(403, _UNAUTHORIZED))
            dialect = dialect_of(url)
            if dialect is None:
                self.counters.unknown_paths += 1
                return _UNKNOWN_PATH
            request_id = found.get(REQUEST_ID, b"")
            if len(request_id) > REQUEST_ID_BYTES_MAX:
                request_id = b""
            asked = original(dialect, method, url, found)
            identity = index.identity.identify(found)
            if FAULT in found or asked is None:
                if asked is None or found[FAULT] is not IDENTITY_FAULT:
                    self.counters.malformed += 1
                    return Last(refused(400, "The original request is not described properly.", nginx=dialect is NGINX))
                identity = CONFLICT
            if identity is CONFLICT:
                return self._answer(_IDENTITY_CONFLICT, dialect, request_id, started_ns)
            enforcer = self.enforcer
            policy = enforcer.policy
            if policy is not self.policy:
                # This request was read by the rules before; that is well for one request, but not without any rules.
                without = self.policy is None
                self._adopt(policy)
                if without:
                    return _NOT_READY
            route = policy.routes.match(*asked)
            decision = enforcer.decide(identity, route, request_id.decode("latin-1"))
            if decision is None:
                return Question(identity, route, request_id, dialect, started_ns)
            return self._answer(decision, dialect, request_id, started_ns)
        except StoreUnavailable:
            return _NOT_READY
        except Exception as error:  # noqa: BLE001 - the outermost line of a decision
            return self.fail(error)

    async def decide_waiting(self, question: Question) -> bytes:
        """The answer to a question, once the store has answered or the wait is over."""
        try:
            decision = await self.enforcer.decide_waiting(
                question.identity, question.route, question.request_id.decode("latin-1")
            )
            return self._answer(decision, question.dialect, question.request_id, question.started_ns)
        except Exception as error:  # noqa: BLE001 - the outermost line of a decision
            return self.fail(error)

    def _answer(self, decision: Decision, dialect: Dialect, request_id: bytes, started_ns: int) -> bytes:
        if decision.allow:
            answer = self._answers.allowed(decision, request_id)
        else:
            answer = self._answers.denied(decision, request_id, nginx=dialect is NGINX)
        counters = self.counters
        counters.decisions[dialect.name][decision.reason] += 1
        elapsed_ns = perf_counter_ns() - started_ns
        self._latency[bisect_left(LATENCY_NS, elapsed_ns)] += 1
        counters.latency_ns += elapsed_ns
        return answer

    def _has_secret(self, found: Found) -> bool:
        offered = found.get(SECRET, b"")
        # Every secret is compared, so that the time says nothing about which one was nearly right.
        return sum(hmac.compare_digest(offered, secret) for secret in self._secrets) > 0

    def fail(self, error: Exception) -> bytes:
        """Note a failure, which the listener logs once for a series of them."""
        self.counters.failures += 1
        self.failure = error
        return _FAILED
