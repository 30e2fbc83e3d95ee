"""The real decision listener in front of a script instead of the enforcer.

For tests of what gateways make of an answer: every decision there is can be had by sending its API key.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from msgspec import Struct

from sidecar.catalogue.load import parse
from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.enforcement.decision import Decision, Identity, LimitView
from sidecar.enforcement.fast_path import Check
from sidecar.gateway.listener import DecisionListener
from tests.servers.background import Background

# Knows the header rule too, so that a spoofed tenant that came through would be believed.
CATALOGUE = """
identity:
  - header: x-tenant-id
  - api_key: x-api-key
user_header: x-user-id
metrics:
  api_calls: {}
plans:
  free:
    limits: {api_calls: 100}
routes:
  - name: dear
    match: /v1/dear/**
    costs: {api_calls: 10}
default:
  costs: {api_calls: 1}
"""

FULL = LimitView("api_calls", 100, 100, 0, 2_592_000, 86_400)
ROOM = LimitView("api_calls", 100, 60, 40, 2_592_000, 86_400)
DENIED = "denied"
DECISIONS = {
    "good": Decision(
        allow=True,
        status=200,
        reason="allowed",
        tenant="acme",
        plan="free",
        features=(("support", "email"), ("llm_provider", "big")),
        limit=ROOM,
    ),
    "soft": Decision(
        allow=True, status=200, reason="allowed", quota_status="grace", tenant="acme", plan="free", limit=FULL
    ),
    "over": Decision(
        allow=False,
        status=429,
        reason="limit_reached",
        quota_status=DENIED,
        tenant="acme",
        plan="free",
        limit=FULL,
        violated=("api_calls",),
        retry_after_s=86_400,
        upgrade_url='https://example.com/upgrade?from="acme"',
    ),
    "unpaid": Decision(allow=False, status=402, reason="payment_required", quota_status=DENIED, tenant="acme"),
    "lacking": Decision(allow=False, status=403, reason="feature_missing", quota_status=DENIED, tenant="acme"),
    "closed": Decision(allow=False, status=503, reason="store_unavailable", quota_status=DENIED, retry_after_s=1),
}
UNKNOWN = Decision(allow=False, status=401, reason="key_unknown", quota_status=DENIED)
MISSING = Decision(allow=False, status=401, reason="identity_missing", quota_status=DENIED)
_BY_HASH = {hashlib.sha256(key.encode()).hexdigest(): decision for key, decision in DECISIONS.items()}


class Asked(Struct, frozen=True):
    """One decision that was asked for."""

    identity: Identity
    route: str
    request_id: str


class Script:
    """Decides by the API key alone and remembers who asked. With ``hold`` set it first answers nobody."""

    def __init__(self) -> None:
        catalogue = parse(CATALOGUE, "scripted")
        self.policy = Policy(catalogue, RouteTable(catalogue.routes), 1)
        self.asked: list[Asked] = []
        self.hold = 0
        self._asked_again = asyncio.Event()

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        self.asked.append(Asked(identity, route.name, request_id))
        if self.hold:
            self.hold -= 1
            return None
        self._asked_again.set()
        if identity.tenant is not None:
            return Decision(allow=True, status=200, reason="allowed", tenant=identity.tenant, plan="free")
        if identity.key is None:
            return MISSING
        return _BY_HASH.get(identity.key, UNKNOWN)

    def allow_known(self, check: Check, request_id: bytes) -> None:
        """Leave everything to ``decide``."""

    def get_to_know(self, check: Check) -> None:
        """Forget it."""

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        """Answers only when somebody asked again: a sidecar that hangs."""
        await self._asked_again.wait()
        return UNKNOWN

    def reset(self) -> None:
        self.asked.clear()
        self.hold = 0
        self._asked_again.clear()


class ScriptedSidecar(Background):
    """The listener with its script, on a free port or a unix socket; the address stays the same over restarts."""

    def __init__(self, socket_path: Path | None = None, *, secret: str = "") -> None:
        super().__init__()
        self.script = Script()
        self._secrets = (secret,) if secret else ()
        self._address = f"unix:{socket_path}" if socket_path else "127.0.0.1:0"
        self.port = 0

    @property
    def connections(self) -> int:
        return self._listener.counters.connections

    async def open(self) -> None:
        self._listener = DecisionListener(self.script, secrets=self._secrets, require_secret=bool(self._secrets))
        await self._listener.start([self._address])
        if not self._address.startswith("unix:"):
            self._address = self._listener.addresses[0]
            self.port = int(self._address.rpartition(":")[2])

    async def close(self) -> None:
        await self._listener.stop(deadline_s=0.1)
