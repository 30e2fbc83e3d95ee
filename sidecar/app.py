"""The only wiring: builds the parts of one process by hand, in order, and takes them down in the reverse order.

Nothing else opens a pool, reads the environment or starts a task of its own accord.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from sidecar import address, child
from sidecar.child import Component, OpsSocket
from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.enforcement.core import Core
from sidecar.errors import SidecarError, StoreRefused, StoreUnavailable
from sidecar.gateway.listener import DecisionListener
from sidecar.gateway.local import local_app
from sidecar.ledger.connection import Ledger
from sidecar.ledger.flusher import Flusher, FlushTerms
from sidecar.logs import fields
from sidecar.settings import Settings
from sidecar.signals import Stop
from sidecar.state import State
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import CoreCounters, FlusherCounters, Reading

log = logging.getLogger(__name__)

BACKOFFICE_STORE_TIMEOUT_MS = 5_000
STORE_CHECK_RETRY_S = 0.5
# A pass may wait for a slow Postgres, a person who asked the API should not.
FLUSHER_TIMEOUT_S = 30
CONTROL_TIMEOUT_S = 5


class Worker:
    """One authz process: the core, its listeners, and what it tells the supervisor."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, counters: CoreCounters) -> None:
        self.core = Core(settings, store, clock, counters)
        self.listener = DecisionListener(self.core.enforcer, secrets=settings.authz_secrets, clock=clock)
        self._store = store
        self._clock = clock
        self._counters = counters

    def reading(self) -> Reading:
        """Everything this process counted."""
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


class Backoffice:
    """The flusher and the control API of a program, whichever its roles ask for."""

    def __init__(self, flusher: Flusher | None, counters: FlusherCounters, clock: Clock) -> None:
        self._flusher = flusher
        self._counters = counters
        self._clock = clock

    def reading(self) -> Reading:
        """Everything this process counted."""
        return self._counters.reading(self._clock.monotonic_ms()) if self._flusher is not None else {}

    def components(self) -> dict[str, Component]:
        """The flusher is told of, not required: restarting the pod mends neither Redis nor Postgres."""
        if self._flusher is None:
            return {}
        return {"ledger": Component(not self._flusher.cause, required=False, detail=self._flusher.cause)}

    async def flush(self) -> None:
        """Carry everything Redis has to the ledger."""
        if self._flusher is not None:
            await self._flusher.flush()


def run_worker(settings: Settings, index: int) -> None:
    """Run one authz worker until it is told to stop."""
    uvloop.run(_worker(settings, index))


def run_backoffice(settings: Settings, roles: Sequence[str]) -> None:
    """Run the flusher, the control API, or both, until told to stop."""
    uvloop.run(_backoffice(settings, roles))


async def _worker(settings: Settings, index: int) -> None:
    clock = _clock(settings)
    counters = CoreCounters(clock.monotonic_ms())
    with Stop() as stop:
        async with _store(settings, clock, f"w{os.getpid()}", settings.redis_timeout_ms) as store:
            worker = Worker(settings, store, clock, counters)
            check = await _checked(store)
            try:
                async with _ops_socket(settings, str(index), worker):
                    if not await _unless(stop, worker.core.start()):
                        return
                    async with _site(local_app(worker.core.enforcer), settings.local_listen):
                        await worker.listener.start(settings.authz_listen, reuse_port=True)
                        _settle_memory()
                        child.report_ready()
                        log.info("worker ready", extra=fields(index=index, writer=worker.core.writer))
                        await stop.wait()
                        await worker.listener.stop()
            finally:
                check.cancel()
                await worker.core.stop(max(1.0, settings.drain_s - 2))


async def _backoffice(settings: Settings, roles: Sequence[str]) -> None:
    clock = _clock(settings)
    counters = FlusherCounters(clock.monotonic_ms())
    with Stop() as stop:
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                _store(settings, clock, f"b{os.getpid()}", BACKOFFICE_STORE_TIMEOUT_MS)
            )
            flusher = None
            if "flusher" in roles:
                ledger = await _ledger(settings, stack, connections_max=8, timeout_s=FLUSHER_TIMEOUT_S)
                terms = FlushTerms(settings.flush_interval_ms, settings.reclaim_after_ms, settings.restore_hold)
                flusher = Flusher(ledger, store, clock, counters, terms)
                stack.callback((await _checked(store)).cancel)
                await stack.enter_async_context(_task(flusher.run()))
            await stack.enter_async_context(_ops_socket(settings, "backoffice", Backoffice(flusher, counters, clock)))
            if "control" in roles:
                ledger = await _ledger(settings, stack, connections_max=4, timeout_s=CONTROL_TIMEOUT_S)
                app = control_app(ledger, settings.admin_tokens, clock)
                await stack.enter_async_context(_site(app, settings.control_listen))
            child.report_ready()
            log.info("backoffice ready", extra=fields(roles=list(roles)))
            await stop.wait()
            if flusher is not None:
                with contextlib.suppress(SidecarError, TimeoutError):
                    await asyncio.wait_for(flusher.flush(), max(1.0, settings.drain_s / 2))


async def _ledger(
    settings: Settings, stack: contextlib.AsyncExitStack, *, connections_max: int, timeout_s: float
) -> Ledger:
    ledger = await Ledger.open(
        settings.postgres_dsn,
        shards=settings.shards,
        connections_max=connections_max,
        prepared=not settings.pgbouncer,
        timeout_s=timeout_s,
    )
    stack.push_async_callback(ledger.close)
    return ledger


def _clock(settings: Settings) -> Clock:
    return Clock(Path(settings.clock_file)) if settings.clock_file else Clock()


@contextlib.asynccontextmanager
async def _store(settings: Settings, clock: Clock, name: str, timeout_ms: int) -> AsyncIterator[Store]:
    keys = Keyspace(settings.redis_prefix, settings.shards)
    identity = f"{name}-{clock.wall_ms()}"
    store = Store(
        settings.redis_url, keys, clock, identity=identity, timeout_ms=timeout_ms, ca_file=settings.redis_ca_file
    )
    try:
        yield store
    finally:
        await store.close()


async def _checked(store: Store) -> asyncio.Task[None]:
    """Refuse to start on a Redis that cannot keep the promises (StoreRefused); look later at one that is away."""
    with contextlib.suppress(StoreUnavailable):
        await store.check()
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
async def _ops_socket(settings: Settings, process: str, inside: child.Inside) -> AsyncIterator[None]:
    ops = OpsSocket(State(settings.state).ops_socket(process), inside)
    await ops.start()
    try:
        yield
    finally:
        await ops.stop()


@contextlib.asynccontextmanager
async def _site(app: web.Application, where: str) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.SockSite(runner, address.listen(where)).start()
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _unless(stop: Stop, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless told to stop first; returns whether it was done."""
    doing, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if doing.done():
        doing.result()
        return True
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    return False


def _settle_memory() -> None:
    """What was built at start lives as long as the process: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
