"""From the parsed head of a check to the bytes of its answer.

Guarantees: never raises. What is wrong with the check is refused, what fails in here is answered 500 (an error to
            every gateway, for which each has a failure mode) and never takes the connection or the process along.
Gives up:   the latency of every single decision: of those from memory, one in SAMPLED is timed and stands for all.

The memo of routes and the order of lookups are what bench/listener.py pays for.
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
from sidecar.enforcement.fast_path import Allowance, Check
from sidecar.errors import StoreUnavailable
from sidecar.gateway.answers import REQUEST_ID_BYTES_MAX, AnswerWriter, refused
from sidecar.gateway.counters import LATENCY_NS, GatewayCounters
from sidecar.gateway.dialects import BY_PATH, ENVOY, HOST, NGINX, NGINX_PATH, Dialect, Improper, original
from sidecar.gateway.headers import FAULT, REQUEST_ID, SECRET, HeaderIndex, faulty
from sidecar.gateway.heads import METHODS, PATH, Head, Heads, scope_of
from sidecar.gateway.identity import CONFLICT, Found
from sidecar.memo import remember

SAMPLED = 16
ROUTES_MAX = 16_384
ROUTE_BYTES_MAX = 256


class Enforcer(Protocol):
    """What the gateway asks; enforcement.enforcer is the real one."""

    @property
    def policy(self) -> Policy:
        """The catalogue in force; StoreUnavailable while there is none."""

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        """The decision from memory, None when it must wait for the store."""

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        """The same, after waiting at most 50 ms; never raises."""

    def allow_known(self, check: Check, request_id: bytes) -> Allowance | None:
        """Allow a check that was decided before, at once; None leaves the decision to ``decide``."""

    def get_to_know(self, check: Check) -> None:
        """Be told of a check that ``decide`` has just allowed and that may come again."""


class Last(bytes):
    """An answer after which the connection is closed."""


class Question(Struct, frozen=True):
    """A check whose decision has to wait for the store."""

    identity: Identity
    route: RouteRule
    request_id: bytes
    dialect: Dialect
    asked_ns: int


_NO_CATALOGUE = Catalogue(metrics={}, plans={}, routes=(), identity=())
_IDENTITY_CONFLICT = Decision(allow=False, status=401, reason="identity_conflict", quota_status="denied")
_IMPROPER = "The original request is not described properly: "
_UNKNOWN_PATH = refused(404, "Checks go to /envoy/*, /nginx or /forward.")
_NOT_READY = refused(503, "There is no catalogue yet.")
_FAILED = refused(500, "The decision failed.")


def _read_alike(one: Catalogue, other: Catalogue) -> bool:
    """Whether both say the same of who asks."""
    if bool(one.anonymous_plan) != bool(other.anonymous_plan):
        return False
    return one.identity == other.identity and one.user_header == other.user_header


class Gate:
    """Decides checks for all connections of one listener."""

    def __init__(
        self, enforcer: Enforcer, answers: AnswerWriter, counters: GatewayCounters, secrets: tuple[bytes, ...]
    ) -> None:
        self.counters = counters
        self.failure: Exception | None = None
        self.index = HeaderIndex(_NO_CATALOGUE)
        self._enforcer = enforcer
        self._policy: Policy | None = None
        self._hosts_matter = False
        self._routes: dict[bytes, RouteRule] = {}
        self._heads = Heads()
        self._read: tuple[Head, bytes] | None = None
        self._allow_known = enforcer.allow_known
        self._answers = answers
        self._secrets = secrets
        self._until_sample = SAMPLED
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of coming requests by the catalogue in force, if there is one yet."""
        try:
            policy = self._enforcer.policy
        except StoreUnavailable:
            return
        if policy is self._policy:
            return
        former, self._policy = self._policy, policy
        if former is not None and former.routes is policy.routes and _read_alike(former.catalogue, policy.catalogue):
            return  # plans changed: what is known of heads is as it was, and to read all of them anew takes a while
        self.index = HeaderIndex(policy.catalogue)
        self._routes = {}
        self._heads = Heads(self.index.identity.headers)
        self._hosts_matter = any(rule.host for rule in policy.catalogue.routes)

    def recall(self, data: bytes, *, trusted: bool) -> bytes | Question | None:
        """The answer to a request whose head was read before, or its question; None: it has to be parsed."""
        found = self._heads.find(data)
        if found is None:
            return None
        head, target, request_id = found
        if not (trusted or head.proven):
            return None
        try:
            self._until_sample -= 1
            started_ns = 0 if self._until_sample else self._sample()
            route = self._routes.get(target + head.scope) or self._route_of(head, target)
            if route is None:
                return None
            check = head.checks.get(id(route)) or head.check(route)
            allow = self._allow_known  # called as an attribute it would be looked for as a method first
            allowance = allow(check, request_id)
            if allowance is not None:
                head.decisions["allowed"] += 1
                answer = self._answers.write_known(allowance, request_id)
                if started_ns:
                    self._time(perf_counter_ns() - started_ns, SAMPLED)
                return answer
            decision = self._enforcer.decide(check.identity, route, request_id.decode())
            if decision is None:
                return Question(check.identity, route, request_id, head.dialect, started_ns or perf_counter_ns())
            if decision.allow:
                self._enforcer.get_to_know(check)
            return self._answered(decision, request_id, head.dialect, started_ns)
        except StoreUnavailable:
            return _NOT_READY
        except Exception as error:  # noqa: BLE001 - the outermost line of a decision
            return self.fail(error)

    def learn(self, data: bytes, method: bytes, url: bytes, found: Found, *, proven: bool) -> None:
        """Keep the head that was decided last, which was exactly these bytes, for ``recall``."""
        if self._read is not None and FAULT not in found:
            head, target = self._read
            head.proven = proven
            head.decisions = self.counters.decisions[head.dialect.name]
            self._heads.learn(data, head, method + b" " + url, found.get(REQUEST_ID, b""), target)

    def decide(self, index: HeaderIndex, method: bytes, url: bytes, found: Found) -> bytes | Question:
        """The answer to a check, or the question that it waits for. ``found`` was read by ``index``."""
        self._read = None
        try:
            self._until_sample -= 1
            started_ns = 0 if self._until_sample else self._sample()
            line = described = b""
            if url[:7] == b"/envoy/":
                dialect, host, target = ENVOY, found.get(HOST, b""), url[6:]
            else:
                asking = BY_PATH.get(url.partition(b"?")[0])
                if asking is None:
                    self.counters.unknown_paths += 1
                    return _UNKNOWN_PATH
                dialect = asking
                line = method + b" " + url
                method, host, target = original(dialect, found)
                described = target
            identity = CONFLICT if FAULT in found and faulty(found) else index.identity.identify(found)
            request_id = found.get(REQUEST_ID, b"")
            if len(request_id) > REQUEST_ID_BYTES_MAX:
                request_id = b""

            enforcer = self._enforcer
            if enforcer.policy is not self._policy:
                # This request was read by the rules before: well for one request, unless there were none at all.
                self.refresh()
                if index.catalogue is _NO_CATALOGUE:
                    return _NOT_READY
            host = host if self._hosts_matter else b""
            path = target.partition(b"?")[0]
            place = path + scope_of(method, host) if line else b"%b /envoy%b%b" % (method, path, scope_of(b"", host))
            route = self._routes.get(place) or self._route(place, method, host, path)
            if identity is CONFLICT:
                return self._answered(_IDENTITY_CONFLICT, request_id, dialect, started_ns)
            decision = enforcer.decide(identity, route, request_id.decode("latin-1"))
            if index is self.index:
                self._read = (
                    Head(identity, dialect, line=line, method=method if line else b"", host=host),
                    described,
                )
            if decision is None:
                return Question(identity, route, request_id, dialect, started_ns or perf_counter_ns())
            return self._answered(decision, request_id, dialect, started_ns)
        except Improper as error:
            self.counters.malformed += 1
            return Last(refused(400, f"{_IMPROPER}{error}.", nginx=url.startswith(NGINX_PATH)))
        except StoreUnavailable:
            return _NOT_READY
        except Exception as error:  # noqa: BLE001 - the outermost line of a decision
            return self.fail(error)

    async def decide_waiting(self, question: Question) -> bytes:
        """The answer to a question, once the store has answered or the wait is over."""
        try:
            decision = await self._enforcer.decide_waiting(
                question.identity, question.route, question.request_id.decode("latin-1")
            )
            self.counters.decisions[question.dialect.name][decision.reason] += 1
            answer = self._answers.write(decision, question.request_id, nginx=question.dialect is NGINX)
            self._time(perf_counter_ns() - question.asked_ns, 1)
        except Exception as error:  # noqa: BLE001 - the outermost line of a decision
            return self.fail(error)
        return answer

    def fail(self, error: Exception) -> bytes:
        """Note a failure, which the listener logs once for a series of them."""
        self.counters.failures += 1
        self.failure = error
        return _FAILED

    def admits(self, found: Found) -> bool:
        """Whether a check brings one of the secrets."""
        offered = found.get(SECRET, b"")
        # Every secret is compared, so that the time says nothing about which one was nearly right.
        if sum(hmac.compare_digest(offered, secret) for secret in self._secrets):
            return True
        self.counters.secrets_refused += 1
        return False

    def _route_of(self, head: Head, target: bytes) -> RouteRule | None:
        """The rule of a target that was cut out of a known head; None if the parser has to read it first."""
        if head.line:
            method, path = head.method, target
        else:
            method, _, path = target.partition(b" ")
            if method not in METHODS or not path.startswith(b"/envoy/"):
                return None
            path = path[6:]
        if path.translate(PATH) != path:
            return None
        return self._route(target + head.scope, method, head.host, path)

    def _route(self, place: bytes, method: bytes, host: bytes, path: bytes) -> RouteRule:
        """The rule of an original request that is not in the memo; without a catalogue there is none."""
        if self._policy is None:
            raise StoreUnavailable
        route = self._policy.routes.match(method.decode("latin-1"), host.decode("latin-1"), path.decode("latin-1"))
        # Only what the parser reads in one state, since ``recall`` takes what it finds here for well-formed.
        if len(place) <= ROUTE_BYTES_MAX and method in METHODS and path.translate(PATH) == path:
            remember(self._routes, place, route, ROUTES_MAX)
        return route

    def _answered(self, decision: Decision, request_id: bytes, dialect: Dialect, started_ns: int) -> bytes:
        self.counters.decisions[dialect.name][decision.reason] += 1
        answer = self._answers.write(decision, request_id, nginx=dialect is NGINX)
        if started_ns:
            self._time(perf_counter_ns() - started_ns, SAMPLED)
        return answer

    def _sample(self) -> int:
        """The time that a decision which stands for SAMPLED of them began."""
        self._until_sample = SAMPLED
        return perf_counter_ns()

    def _time(self, elapsed_ns: int, decisions: int) -> None:
        self.counters.latency[bisect_left(LATENCY_NS, elapsed_ns)] += decisions
        self.counters.latency_ns += elapsed_ns * decisions
