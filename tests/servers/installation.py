"""One installation inside a test: a store and a ledger on real servers, flushers and cores that a test drives itself.

Nothing runs in the background unless the test starts it, so that each step happens when the test says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import structs

from sidecar.clock import Clock
from sidecar.enforcement.core import Core
from sidecar.enforcement.decision import Decision, Identity
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.flusher import Flusher, FlushTerms
from sidecar.settings import Settings
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import CoreCounters, FlusherCounters

CATALOGUE = """
metrics:
  api_calls: {kind: sum}
plans:
  free:
    price: 0
    limits:
      api_calls: {included: 100, period: month, cap: hard}
  plus:
    price: 10
    limits:
      api_calls: {included: 1000, period: month, cap: hard}
identity:
  - header: x-tenant-id
default_plan: free
"""


class Installation:
    """Stores, flushers and cores of one test, on one key prefix and one database."""

    def __init__(self, redis_url: str, prefix: str, ledger: Ledger, directory: Path, stack: AsyncExitStack) -> None:
        self.ledger = ledger
        self.clock = Clock(directory / "clock")
        self.keys = Keyspace(prefix)
        self.directory = directory
        self._redis_url = redis_url
        self._stack = stack
        self._names = 0
        self.store = self.new_store()

    def new_store(self) -> Store:
        """One process' view of Redis."""
        self._names += 1
        store = Store(self._redis_url, self.keys, self.clock, identity=f"p{self._names}", timeout_ms=2_000)
        self._stack.push_async_callback(store.close)
        return store

    def flusher(self, *, hold: str = "reported", reclaim_after_ms: int = 60_000) -> Flusher:
        """A flusher that passes only when it is told to."""
        terms = FlushTerms(interval_ms=1_000, reclaim_after_ms=reclaim_after_ms, hold=hold)
        return Flusher(self.ledger, self.new_store(), self.clock, FlusherCounters(), terms)

    async def core(self, name: str = "one", **settings: Any) -> Core:
        """A running worker core; stopped at the end of the test if the test did not."""
        found = structs.replace(Settings(state_dir=str(self.directory / name)), sync_interval_ms=20, **settings)
        core = Core(found, self.new_store(), self.clock, CoreCounters())
        self._stack.push_async_callback(core.abandon)
        await core.start()
        return core

    async def catalogue(self, text: str = CATALOGUE) -> None:
        """Put a catalogue in force."""
        async with self.ledger.transaction() as tx:
            await plans.apply(tx, text, {}, actor="test")

    async def tenant(self, name: str, plan: str, **more: Any) -> None:
        """Put a tenant on a plan."""
        async with self.ledger.transaction() as tx:
            await tenants.put(tx, name, plan=plan, actor="test", **more)

    async def counted(self, tenant: str, metric: str = "api_calls", scope: str = "") -> int:
        """What the ledger has counted for a tenant in all."""
        async with self.ledger.transaction() as tx:
            connection = tx._connection
            found = await connection.fetchval(
                "select coalesce(sum(amount), 0) from usage_windows where tenant = $1 and metric = $2 and scope = $3",
                tenant,
                metric,
                scope,
            )
            return int(found)

    async def ask(self, core: Core, tenant: str, path: str = "/v1/things") -> Decision:
        """One request, decided as the listener would."""
        enforcer = core.enforcer
        route = enforcer.policy.routes.match("GET", "", path)
        identity = Identity(tenant)
        decision = enforcer.decide(identity, route, "")
        return decision if decision is not None else await enforcer.decide_waiting(identity, route, "")


@asynccontextmanager
async def installation(redis_url: str, prefix: str, dsn: str, directory: Path) -> AsyncIterator[Installation]:
    """Open an installation and close whatever of it a test opened."""
    async with AsyncExitStack() as stack:
        ledger = await Ledger.open(dsn, connections_max=8)
        stack.push_async_callback(ledger.close)
        yield Installation(redis_url, prefix, ledger, directory, stack)
