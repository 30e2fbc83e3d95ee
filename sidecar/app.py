"""The wiring of everything but workers: builds the parts of one process by hand, in order, and takes them down again.

Nothing but this and worker.py opens a pool, reads the environment or starts a task of its own accord.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, cast

import uvloop
from aiohttp import web

from sidecar import address, child, memory
from sidecar.billing.flush_requests import Answering, Asking, NobodyFlushes
from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.error_reports import ErrorReports
from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.billing.reconciliation.counters import DriftCounters
from sidecar.billing.reconciliation.reconciler import Reconciler
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions.following import Following
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Proration, Subscribing
from sidecar.billing.webhooks.inbox import Inbox
from sidecar.billing.webhooks.webhooks import WebhookCounters
from sidecar.child import Component
from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.control.billing import Desk
from sidecar.control.catalogues import Catalogues
from sidecar.control.webhooks import Receiver
from sidecar.errors import SidecarError, StoreRefused, StoreUnavailable
from sidecar.ledger.connection import Ledger
from sidecar.ledger.flusher import Flusher, FlushTerms
from sidecar.logs import fields
from sidecar.settings import Settings
from sidecar.signals import Stop, end
from sidecar.store.client import Store
from sidecar.telemetry import FlusherCounters, Reading
from sidecar.worker import checked, clock_of, ops_socket, store_of

log = logging.getLogger(__name__)

BACKOFFICE_STORE_TIMEOUT_MS = 5_000
EVICTIONS_INTERVAL_S = 10
# A pass may wait for a slow Postgres, a person who asked the API should not.
FLUSHER_TIMEOUT_S = 30
CONTROL_TIMEOUT_S = 5


class Backoffice:
    """The flusher and the control API of a program, whichever its roles ask for."""

    def __init__(
        self, flusher: Flusher | None, counters: FlusherCounters, clock: Clock, webhooks: WebhookCounters
    ) -> None:
        self._flusher = flusher
        self._counters = counters
        self._clock = clock
        self._webhooks = webhooks
        self.drift: DriftCounters | None = None  # of a process that compares with Stripe
        self.forwarder: Forwarder | None = None  # of a process that sends usage to Stripe

    async def reading(self) -> Reading:
        """Everything this process counted."""
        flushed = self._counters.reading(self._clock.monotonic_ms()) if self._flusher is not None else {}
        drift = self.drift.reading(self._clock.monotonic_ms()) if self.drift is not None else {}
        sent = self.forwarder.counters.reading() if self.forwarder is not None else {}
        return flushed | self._webhooks.reading() | drift | sent

    def components(self) -> dict[str, Component]:
        """The flusher is told of, not required: restarting the pod mends neither Redis nor Postgres."""
        if self._flusher is None:
            return {}
        parts = {"ledger": Component(not self._flusher.cause, required=False, detail=self._flusher.cause)}
        if self.forwarder is not None:
            parts["stripe"] = Component(not self.forwarder.cause, required=False, detail=self.forwarder.cause)
        return parts

    async def flush(self) -> None:
        """Carry everything Redis has to the ledger, and try to send what Stripe does not have of it."""
        await self.carry()
        if self.forwarder is not None:
            await self.forwarder.flush()

    async def flush_tenant(self, tenant: str) -> int:
        """Send everything that was counted of one tenant; how many deltas could not be sent."""
        if self.forwarder is None:
            raise NobodyFlushes
        await self.carry()
        return await self.forwarder.flush_tenant(tenant)

    async def carry(self) -> None:
        """Carry everything Redis has to the ledger."""
        if self._flusher is not None:
            await self._flusher.flush()


def run_backoffice(settings: Settings, roles: Sequence[str]) -> None:
    """Run the flusher, the control API, or both, until told to stop."""
    uvloop.run(_backoffice(settings, roles))


async def _backoffice(settings: Settings, roles: Sequence[str]) -> None:
    clock = clock_of(settings)
    counters = FlusherCounters(clock.monotonic_ms())
    webhooks = WebhookCounters()
    with Stop() as stop:
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                store_of(settings, clock, f"b{os.getpid()}", BACKOFFICE_STORE_TIMEOUT_MS)
            )
            flusher = None
            if "flusher" in roles:
                ledger = await _ledger(settings, stack, connections_max=8, timeout_s=FLUSHER_TIMEOUT_S)
                terms = FlushTerms(settings.flush_interval_ms, settings.reclaim_after_ms, settings.restore_hold)
                flusher = Flusher(ledger, store, clock, counters, terms)
                stack.callback((await checked(store)).cancel)
                await stack.enter_async_context(_task(flusher.run()))
                await stack.enter_async_context(_task(_watch_evictions(store, counters)))
            inside = Backoffice(flusher, counters, clock, webhooks)
            if flusher is not None and settings.stripe_key:
                inside.forwarder = await _forwarding(settings, stack, clock, flusher, inside)
            await stack.enter_async_context(ops_socket(settings, "backoffice", inside))
            if "flusher" in roles and settings.stripe_key and settings.stripe_reconcile_interval_s:
                await _reconciling(settings, stack, clock, inside)
            if "control" in roles:
                ledger = await _ledger(settings, stack, connections_max=4, timeout_s=CONTROL_TIMEOUT_S)
                desk, inbox = await _desk(settings, stack, clock, inside, webhooks)
                stored = inbox.wake if inbox is not None else _nobody_waits
                receiver = Receiver(ledger, settings.stripe_webhook_secrets, clock, webhooks, stored)
                app = control_app(ledger, settings.admin_tokens, clock, desk=desk, receiver=receiver)
                await stack.enter_async_context(_site(app, settings.control_listen))
            memory.settle()
            child.report_ready()
            log.info("backoffice ready", extra=fields(roles=list(roles)))
            await stop.wait()
            if flusher is not None:
                with contextlib.suppress(SidecarError, TimeoutError):
                    await asyncio.wait_for(flusher.flush(), max(1.0, settings.drain_s / 2))


async def _desk(
    settings: Settings, stack: contextlib.AsyncExitStack, clock: Clock, inside: Backoffice, counters: WebhookCounters
) -> tuple[Desk | None, Inbox | None]:
    """What changes customers and subscriptions, and works off webhooks; nothing while there is no Stripe key."""
    if not settings.stripe_key:
        return None, None
    api = StripeApi.open(settings.stripe_key, settings.stripe_url)
    stack.push_async_callback(api.close)
    ledger = await _ledger(settings, stack, connections_max=4, timeout_s=FLUSHER_TIMEOUT_S)
    mirror = Mirror(ledger, api, Catalogues().in_force, clock)

    inbox = Inbox(mirror, ErrorReports(ledger, api).handle, counters)
    await stack.enter_async_context(_task(inbox.run()))
    # Beside a flusher only is it known whether the ledger has everything that was counted.
    flush = inside.flush_tenant if inside.forwarder is not None else Asking(ledger)
    subscribing = Subscribing(mirror, flush, cast("Proration", settings.stripe_proration))
    await stack.enter_async_context(_task(subscribing.run()))
    await stack.enter_async_context(_task(Following(mirror, subscribing).run()))
    return Desk(mirror, subscribing), inbox


async def _forwarding(
    settings: Settings, stack: contextlib.AsyncExitStack, clock: Clock, flusher: Flusher, inside: Backoffice
) -> Forwarder:
    """Decide which usage Stripe does not have yet, and send it; what other processes ask for at once."""
    api = StripeApi.open(settings.stripe_key, settings.stripe_url)
    stack.push_async_callback(api.close)
    ledger = await _ledger(settings, stack, connections_max=4, timeout_s=FLUSHER_TIMEOUT_S)
    forwarder = Forwarder(ledger, api, _forwarder_terms(settings), BillingCounters(), clock, vouch=flusher.vouches)
    await stack.enter_async_context(_task(forwarder.run()))
    stack.push_async_callback(forwarder.stop)
    await stack.enter_async_context(_task(Answering(ledger, inside.flush_tenant).run()))
    return forwarder


def _forwarder_terms(settings: Settings) -> ForwarderTerms:
    return ForwarderTerms(
        interval_s=settings.stripe_interval_s,
        close_delay_s=settings.close_delay_s,
        calls_per_s=settings.stripe_calls_per_s,
        bulk=settings.stripe_bulk,
    )


async def _reconciling(settings: Settings, stack: contextlib.AsyncExitStack, clock: Clock, inside: Backoffice) -> None:
    """Compare ledger and Stripe now and then."""
    api = StripeApi.open(settings.stripe_key, settings.stripe_url)
    stack.push_async_callback(api.close)
    ledger = await _ledger(settings, stack, connections_max=2, timeout_s=FLUSHER_TIMEOUT_S)
    reconciler = Reconciler(ledger, api, clock)
    inside.drift = reconciler.counters
    await stack.enter_async_context(_task(reconciler.loop(settings.stripe_reconcile_interval_s)))


def _nobody_waits() -> None:
    """Events are stored all the same; a process with a Stripe key deals with them."""


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


async def _watch_evictions(store: Store, counters: FlusherCounters) -> None:
    """A policy can be changed under a running program: whatever was evicted is a count or a lease that is gone."""
    while True:
        with contextlib.suppress(StoreUnavailable, StoreRefused):
            evicted = await store.evicted_keys()
            if evicted > counters.evicted_keys:
                log.critical("Redis evicts keys; set maxmemory-policy to noeviction", extra=fields(keys=evicted))
            counters.evicted_keys = evicted
        await asyncio.sleep(EVICTIONS_INTERVAL_S)


@contextlib.asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end([task])


@contextlib.asynccontextmanager
async def _site(app: web.Application, where: str) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.SockSite(runner, address.listen(where)).start()
        yield
    finally:
        await runner.cleanup()
