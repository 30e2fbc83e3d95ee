"""The wiring of a process that decides: builds its parts by hand, in order, and takes them down in the reverse order.

app.py does the same for everything else. They are apart because a sidecar stands in every pod: what it need not import
is memory and time to be ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from sidecar import child, memory
from sidecar.child import Component, OpsSocket
from sidecar.clock import Clock
from sidecar.enforcement.core import Core
from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.gateway import limits
from sidecar.gateway.listener import DecisionListener
from sidecar.gateway.local_listener import LocalListener
from sidecar.logs import fields
from sidecar.settings import Settings
from sidecar.signals import Stop, end
from sidecar.state import State
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import CoreCounters, Reading

log = logging.getLogger(__name__)

STORE_CHECK_RETRY_S = 0.5


class Worker:
    """One authz process: the core, its listeners, and what it tells the supervisor."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, counters: CoreCounters) -> None:
        self.core = Core(settings, store, clock, counters)
        self.listener = DecisionListener(
            self.core.enforcer,
            secrets=settings.authz_secrets,
            limits=limits.within(child.descriptors()),
            clock=clock,
        )
        self._store = store
        self._clock = clock
        self._counters = counters

    async def reading(self) -> Reading:
        """Everything this process counted, and how it stands in this moment."""
        await self.core.observe()
        return self._counters.reading(self._clock.monotonic_ms()) | self.listener.counters.reading()

    def components(self) -> dict[str, Component]:
        """The parts of this process; only those it cannot decide without are required."""
        journal, changes = self.core.journal, self.core.changes
        policy = self.core.directory.policy
        return {
            "listener": Component(bool(self.listener.addresses), detail=", ".join(self.listener.addresses)),
            "catalogue": Component(
                policy is not None and not changes.problem,
                required=policy is None,
                detail=changes.problem or (f"revision {policy.revision}" if policy is not None else "none yet"),
            ),
            "journal": Component(journal.durable, required=False, detail=journal.cause or str(journal.path)),
            "store": Component(
                self._store.available, required=False, detail="" if self._store.available else "Redis does not answer"
            ),
        }

    async def flush(self) -> None:
        """Report everything counted so far to Redis."""
        await self.core.flush()


def run_worker(settings: Settings, index: int) -> None:
    """Run one authz worker until it is told to stop."""
    uvloop.run(_worker(settings, index))


async def _worker(settings: Settings, index: int) -> None:
    clock = clock_of(settings)
    counters = CoreCounters(clock.monotonic_ms())
    with Stop() as stop:
        async with store_of(settings, clock, f"w{os.getpid()}", settings.redis_timeout_ms) as store:
            worker = Worker(settings, store, clock, counters)
            check = await checked(store)
            try:
                async with ops_socket(settings, str(index), worker):
                    if not await stop.unless(worker.core.start()):
                        return
                    local = LocalListener(worker.core.enforcer)
                    try:
                        await local.start(settings.local_listen)
                        await worker.listener.start(settings.authz_listen, reuse_port=True)
                        memory.settle()
                        child.report_ready()
                        log.info("worker ready", extra=fields(index=index, writer=worker.core.writer))
                        tending = asyncio.create_task(memory.tend(lambda: counters.snapshot_hits))
                        await stop.wait()
                        await end([tending])
                        await worker.listener.stop()
                    finally:
                        await local.stop()
            finally:
                check.cancel()
                await worker.core.stop(max(1.0, settings.drain_s - 2))


def clock_of(settings: Settings) -> Clock:
    return Clock(Path(settings.clock_file)) if settings.clock_file else Clock()


@contextlib.asynccontextmanager
async def store_of(settings: Settings, clock: Clock, name: str, timeout_ms: int) -> AsyncIterator[Store]:
    keys = Keyspace(settings.redis_prefix, settings.shards)
    identity = f"{name}-{clock.wall_ms()}"
    store = Store(
        settings.redis_url,
        keys,
        clock,
        identity=identity,
        timeout_ms=timeout_ms,
        ca_file=settings.redis_ca_file,
        cert_file=settings.redis_cert_file,
        key_file=settings.redis_key_file,
    )
    try:
        yield store
    finally:
        await store.close()


async def checked(store: Store) -> asyncio.Task[None]:
    """Refuse to start on a Redis that cannot keep the promises (StoreRefused); look later at one that is away."""
    try:
        await store.check()
    except StoreUnavailable as error:
        log.warning(
            "Redis does not answer at the start; see to SIDECAR_REDIS_URL or to Redis", extra=fields(cause=str(error))
        )
    return asyncio.create_task(_check(store))


async def _check(store: Store) -> None:
    """Say what is wrong with a Redis that came after the start; deciding goes on by what is in force."""
    while True:
        try:
            await store.check()
        except StoreUnavailable:
            await asyncio.sleep(STORE_CHECK_RETRY_S)
        except StoreRefused as error:
            log.critical("Redis cannot be used as it is set up", extra=fields(cause=str(error)))
            return
        else:
            return


@contextlib.asynccontextmanager
async def ops_socket(settings: Settings, process: str, inside: child.Inside) -> AsyncIterator[None]:
    ops = OpsSocket(State(settings.state).ops_socket(process), inside)
    await ops.start()
    try:
        yield
    finally:
        await ops.stop()
